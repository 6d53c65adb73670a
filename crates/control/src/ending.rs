//! The end of a run: what becomes of its files. Decided, and recorded, before
//! its processes end; so whoever finishes it, after a crash too, does what was
//! meant.

use std::time::Duration;

use dormouse_provider::{Expiration, KeepLast, Retention, SnapshotKind, SnapshotStatus, StopReason};
use dormouse_store::{Retire, RunRow, SnapshotRow, SnapshotsOfDeleted, Volume};
use dormouse_types::{SnapshotId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::record::SandboxRecord;
use crate::stored::{Stored as _, stored};

/// How long a snapshot that was replaced stays where nobody said (provider
/// contract, section 3).
const REPLACED_STAY: Duration = Duration::from_secs(7 * 24 * 3600);

/// A snapshot that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manual {
    /// Its own expiration, if it has one.
    pub expiration: Option<Expiration>,
}

/// A deletion that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Its snapshots go too.
    pub with_snapshots: bool,
}

/// How a run is to end, as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Why.
    pub reason: StopReason,
    /// Id of the snapshot that is made, if one is.
    pub snapshot: Option<SnapshotId>,
    /// Whether somebody asked for it.
    pub manual: Option<Manual>,
    /// The sandbox goes with the run.
    pub deletion: Option<Deletion>,
}

stored! { Ending, "end of a run", EndingVersions { "1" => V1(Ending) } }

impl Deletion {
    /// What becomes of the snapshots of `sandbox`.
    #[must_use]
    pub fn snapshots(self, sandbox: &SandboxRecord, now: Timestamp) -> SnapshotsOfDeleted {
        // A configuration that cannot be read must not keep it here.
        match sandbox.known_config().map(|config| config.retention) {
            _ if self.with_snapshots => SnapshotsOfDeleted::AllGo,
            Some(Retention::Current) => SnapshotsOfDeleted::AutomaticGo,
            _ => SnapshotsOfDeleted::Stay { automatic_until: now.plus(REPLACED_STAY) },
        }
    }
}

impl Ending {
    /// How a run of `sandbox` ends for `reason`. `sandbox`: `None` where it is
    /// gone.
    #[must_use]
    pub fn decide(sandbox: Option<&SandboxRecord>, reason: StopReason, manual: Option<Manual>) -> Self {
        let wants_one = sandbox.is_some_and(|sandbox| {
            // What cannot be read keeps too much rather than too little.
            let retention = sandbox.known_config().map(|config| config.retention);
            sandbox.row.persistent && retention.is_some_and(|retention| retention != Retention::Current)
        });
        let made = sandbox.is_some() && (manual.is_some() || wants_one);
        Self {
            reason,
            snapshot: made.then(SnapshotId::generate),
            manual: manual.filter(|_| made),
            deletion: None,
        }
    }

    /// The end of a run whose sandbox is deleted.
    #[must_use]
    pub fn of_deleted(deletion: Deletion) -> Self {
        Self { reason: StopReason::Deleted, snapshot: None, manual: None, deletion: Some(deletion) }
    }

    /// How a run was to end, if that was recorded.
    #[must_use]
    pub fn of(run: &RunRow) -> Option<Self> {
        Self::read(run.ending.as_deref()?).ok()
    }

    /// What becomes of the volume of `run`.
    #[must_use]
    pub fn volume(&self, sandbox: &SandboxRecord, run: &RunRow) -> Volume {
        match &sandbox.row.volume_id {
            _ if self.deletion.is_some() => Volume::Dropped,
            Some(volume) if volume == &run.volume_id => {
                if sandbox.row.persistent {
                    Volume::Kept
                } else {
                    Volume::Dropped
                }
            }
            _ => Volume::RolledBack,
        }
    }

    /// What becomes of the sandbox: `None`, it stays.
    #[must_use]
    pub fn forgets(&self, sandbox: &SandboxRecord, now: Timestamp) -> Option<SnapshotsOfDeleted> {
        match self.deletion {
            Some(deletion) => Some(deletion.snapshots(sandbox, now)),
            None if sandbox.known_config().is_some_and(|config| config.ephemeral) => {
                Some(SnapshotsOfDeleted::AutomaticGo)
            }
            None => None,
        }
    }
}

/// The row of a snapshot of `run`, whose volume holds `bytes`.
#[must_use]
pub fn snapshot_row(
    sandbox: &SandboxRecord,
    run: &RunRow,
    id: &SnapshotId,
    manual: Option<&Manual>,
    bytes: u64,
    now: Timestamp,
) -> SnapshotRow {
    let config = sandbox.known_config();
    let of_kept = config.and_then(|config| retire(config.retention, now).1);
    let usual = config.and_then(|config| config.snapshot_expiration);
    let own = manual.and_then(|manual| manual.expiration);
    let expiration_ms = match own.or(of_kept).or(usual) {
        None | Some(Expiration::Never) => None,
        Some(Expiration::After(ms)) => Some(i64::try_from(ms).unwrap_or(i64::MAX)),
    };
    SnapshotRow {
        id: id.clone(),
        host_id: run.host_id.clone(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        image_id: sandbox.row.image_id.clone(),
        kind: if manual.is_some() { SnapshotKind::Manual } else { SnapshotKind::Automatic },
        status: SnapshotStatus::Created,
        size_bytes: sandbox.row.base_bytes.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX)),
        boots: sandbox.row.boots,
        parent: sandbox.row.descends_from.clone(),
        expiration_ms,
        expires_at: expiration_ms.map(|ms| Timestamp(now.0.saturating_add(ms))),
        last_used_at: None,
        created_at: now,
        updated_at: now,
    }
}

/// What a new snapshot retires, and the expiration of those that are kept.
#[must_use]
pub fn retire(retention: Retention, now: Timestamp) -> (Retire, Option<Expiration>) {
    match retention {
        Retention::Current => (Retire::Replaced, None),
        Retention::Expiry => (Retire::ReplacedAt(now.plus(REPLACED_STAY)), None),
        Retention::KeepLast(KeepLast { count, expiration, delete_evicted }) => {
            let retire = if delete_evicted {
                Retire::BeyondNewest(count)
            } else {
                Retire::BeyondNewestAt(count, now.plus(REPLACED_STAY))
            };
            (retire, expiration)
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_store::SandboxRow;

    use super::*;
    use crate::record::tests::{config, run, sandbox};
    use crate::stored::SandboxConfig;

    fn sandbox_with(retention: Retention, persistent: bool) -> SandboxRecord {
        let config = SandboxConfig { retention, ..config() };
        SandboxRecord::new(SandboxRow { persistent, ..sandbox(&config) })
    }

    #[test]
    fn a_stop_makes_a_snapshot_where_the_retention_wants_one() {
        let keep = KeepLast { count: 2, expiration: None, delete_evicted: true };
        for (retention, persistent, made) in [
            (Retention::Current, true, false),
            (Retention::Expiry, true, true),
            (Retention::KeepLast(keep), true, true),
            (Retention::Expiry, false, false),
        ] {
            let sandbox = sandbox_with(retention, persistent);
            let ending = Ending::decide(Some(&sandbox), StopReason::Requested, None);
            assert_eq!(ending.snapshot.is_some(), made, "{retention:?} {persistent}");
            // Somebody asked: always.
            let manual = Some(Manual { expiration: None });
            let asked = Ending::decide(Some(&sandbox), StopReason::Snapshot, manual.clone());
            assert!(asked.snapshot.is_some() && asked.manual == manual);
            let deleted = Ending::of_deleted(Deletion { with_snapshots: false });
            assert_eq!(deleted.snapshot, None);
        }
        assert_eq!(Ending::decide(None, StopReason::Died, None).snapshot, None);
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        let manual = Some(Manual { expiration: Some(Expiration::After(5)) });
        let sandbox = sandbox_with(Retention::Current, false);
        let ending = Ending::decide(Some(&sandbox), StopReason::Snapshot, manual);
        let run = RunRow { ending: Some(ending.write().unwrap()), ..run(&sandbox.row) };
        assert_eq!(Ending::of(&run), Some(ending));
        assert_eq!(Ending::of(&RunRow { ending: None, ..run }), None);
    }

    #[test]
    fn volumes_stay_with_persistent_sandboxes_that_were_not_rolled_back() {
        let stopped = Ending::decide(None, StopReason::Requested, None);
        let kept = sandbox_with(Retention::Current, true);
        let run = run(&kept.row);
        assert_eq!(stopped.volume(&kept, &run), Volume::Kept);
        let deleted = Ending::of_deleted(Deletion { with_snapshots: true });
        assert_eq!(deleted.volume(&kept, &run), Volume::Dropped);
        let temporary = SandboxRecord::new(SandboxRow { persistent: false, ..kept.row.clone() });
        assert_eq!(stopped.volume(&temporary, &run), Volume::Dropped);
        let rolled_back = SandboxRecord::new(SandboxRow { volume_id: None, ..kept.row });
        assert_eq!(stopped.volume(&rolled_back, &run), Volume::RolledBack);
    }
}
