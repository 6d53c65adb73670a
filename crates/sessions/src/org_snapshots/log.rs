//! The record of a build: where it is, and what was said in it, to be read while
//! it goes on.

use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_store::{Db, OrgBuildRow, OrgSnapshotKey};
use dormouse_types::{BuildId, BuildPhase, Timestamp};

use crate::Sessions;

/// Most that is kept of a log, in bytes: the last part.
const MAX_LOG: usize = 64 << 10;

/// Most that is kept of a line, in characters.
const MAX_LINE: usize = 2000;

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
        // Postgres keeps no NUL. One line does not push all others out.
        self.row.log.extend(text.chars().filter(|c| *c != '\0').take(MAX_LINE));
        self.row.log.push('\n');
        let over = self.row.log.len().saturating_sub(MAX_LOG);
        if over > 0 {
            // Whole lines: after the end of one a character begins.
            let end = self.row.log.as_bytes()[over..].iter().position(|byte| *byte == b'\n');
            self.row.log.drain(..end.map_or(self.row.log.len(), |end| over + end + 1));
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
    /// Ends the records of builds whose server is gone: at its start those of this
    /// place alone, all; later what takes longer than any build.
    pub(super) async fn end_lost_builds(&self, at_start: bool) {
        let now = self.now();
        let before = match self.place() {
            place if at_start && !place.is_empty() => Timestamp(now.0.saturating_add(1)),
            _ => now.minus(LOST),
        };
        if let Err(error) = self.db.end_org_builds(self.place(), before, now).await {
            tracing::warn!(%error, "end builds that nobody makes");
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_types::{GithubRepo, RepoAccess};

    use super::*;

    #[tokio::test]
    async fn a_long_log_keeps_its_last_lines_whole() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_file(&dir.path().join("dormouse.db")).await.unwrap();
        let repo: GithubRepo = "https://github.com/acme/widgets".parse().unwrap();
        let key = OrgSnapshotKey::new(&repo, RepoAccess::Public, "");
        let mut log = BuildLog::begin(&db, &Clock::fixed(Timestamp(1)), &key).await;
        for n in 0..9000 {
            log.line(&format!("✔ step {n} …\0"));
        }
        log.line(&"✔".repeat(MAX_LOG));
        assert!(log.row.log.len() <= MAX_LOG && log.row.log.starts_with("✔ step "));
        assert!(log.row.log.contains("step 8999 …\n"));
        log.end(BuildPhase::Failed).await;
        let kept = db.last_org_build(&key).await.unwrap().unwrap();
        assert!(kept.ended_at.is_some() && kept.log.ends_with("✔\n"));
    }
}
