//! The record of a build: where it is, and what was said in it, to be read while
//! it goes on.

use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_store::{Db, OrgBuildRow, OrgSnapshotKey};
use dormouse_types::{BuildId, BuildPhase, Timestamp};

use crate::Sessions;

/// Most that is kept of a log, in bytes: the last part.
const MAX_LOG: usize = 64 << 10;

/// A log that grows is written down once in this time.
const STEP: Duration = Duration::from_secs(1);

/// A build at a place that several servers share is given up this long after it
/// began.
const LOST: Duration = Duration::from_secs(6 * 3600);

/// The record of a build that goes on. What cannot be written down is no reason
/// not to build.
#[derive(Debug)]
pub(super) struct BuildLog {
    db: Db,
    clock: Clock,
    row: OrgBuildRow,
}

impl BuildLog {
    pub(super) async fn begin(db: &Db, clock: &Clock, key: &OrgSnapshotKey) -> Self {
        let now = clock.now();
        let row = OrgBuildRow {
            id: BuildId::generate(),
            key: key.clone(),
            phase: BuildPhase::Create,
            log: String::new(),
            started_at: now,
            updated_at: now,
            ended_at: None,
        };
        if let Err(error) = db.insert_org_build(&row).await {
            tracing::warn!(build = %row.id, %key, %error, "write down a build");
        }
        Self { db: db.clone(), clock: clock.clone(), row }
    }

    /// The build is there now.
    pub(super) async fn phase(&mut self, phase: BuildPhase) {
        self.row.phase = phase;
        self.line(&format!("== {phase}"));
        self.write().await;
    }

    /// Something was said; it is written down with the next phase, or by
    /// [`BuildLog::step`].
    pub(super) fn line(&mut self, text: &str) {
        // Postgres keeps no NUL.
        self.row.log.push_str(&text.replace('\0', ""));
        self.row.log.push('\n');
        let over = self.row.log.len().saturating_sub(MAX_LOG);
        if over > 0 {
            let whole = self.row.log[over..].find('\n').map_or(self.row.log.len(), |end| over + end + 1);
            self.row.log.drain(..whole);
        }
    }

    /// Writes down what was said, if that was not done for a while.
    pub(super) async fn step(&mut self) {
        if self.clock.now().since(self.row.updated_at) >= STEP {
            self.write().await;
        }
    }

    /// It is over.
    pub(super) async fn end(mut self, phase: BuildPhase) {
        self.row.phase = phase;
        self.row.ended_at = Some(self.clock.now());
        self.write().await;
    }

    async fn write(&mut self) {
        self.row.updated_at = self.clock.now();
        if let Err(error) = self.db.update_org_build(&self.row).await {
            tracing::warn!(build = %self.row.id, %error, "write down a build");
        }
    }
}

impl Sessions {
    /// Ends the records of builds whose server is gone: of this place alone, all.
    pub(super) async fn end_lost_builds(&self) {
        let now = self.now();
        let before = match self.place() {
            "" => now.minus(LOST),
            _ => Timestamp(now.0.saturating_add(1)),
        };
        if let Err(error) = self.db.end_org_builds(self.place(), before, now).await {
            tracing::warn!(%error, "end builds that nobody makes");
        }
    }
}
