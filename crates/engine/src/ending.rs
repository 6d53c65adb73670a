//! The end of a run: what becomes of its files. Decided, and recorded, before
//! its processes end; so whoever finishes it, after a crash too, does what was
//! meant.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::{
    Expiration, KeepLast, ProviderError, Result, Retention, RunStatus, SnapshotKind, SnapshotStatus,
    StopReason,
};
use dormouse_store::{Retire, RunEnd, RunRow, SandboxRow, SnapshotRow, SnapshotsOfDeleted, Volume};
use dormouse_types::{SnapshotId, Timestamp, VolumeId};

use crate::config::{RunConfig, parse};
use crate::host::{Host, internal, pool};

/// How long a snapshot that was replaced stays where nobody said (provider
/// contract, section 3).
pub(crate) const REPLACED_STAY: Duration = Duration::from_secs(7 * 24 * 3600);

/// A snapshot that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Manual {
    /// Its own expiration, if it has one.
    pub(crate) expiration: Option<Expiration>,
}

/// How a run is to end, as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Ending {
    /// Word of a [`StopReason`].
    pub(crate) reason: String,
    /// Id of the snapshot that is made, if one is.
    pub(crate) snapshot: Option<SnapshotId>,
    /// Whether somebody asked for it.
    pub(crate) manual: Option<Manual>,
    /// The sandbox goes with the run.
    pub(crate) deletion: Option<Deletion>,
}

/// A deletion that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Deletion {
    /// Its snapshots go too.
    pub(crate) with_snapshots: bool,
}

impl Deletion {
    /// What becomes of the snapshots of `sandbox`.
    pub(crate) fn snapshots(self, sandbox: &SandboxRow, now: Timestamp) -> SnapshotsOfDeleted {
        // A configuration that cannot be read must not keep it here.
        match parse::<RunConfig>(&sandbox.config).map(|config| config.retention) {
            _ if self.with_snapshots => SnapshotsOfDeleted::AllGo,
            Ok(Retention::Current) => SnapshotsOfDeleted::AutomaticGo,
            _ => SnapshotsOfDeleted::Stay { automatic_until: now.plus(REPLACED_STAY) },
        }
    }
}

impl Ending {
    /// How a run of `sandbox` ends for `reason`. `sandbox`: `None` where it is
    /// gone.
    pub(crate) fn decide(sandbox: Option<&SandboxRow>, reason: StopReason, manual: Option<Manual>) -> Self {
        let wants_one = sandbox.is_some_and(|sandbox| {
            // What cannot be read keeps too much rather than too little.
            let retention = parse::<RunConfig>(&sandbox.config).map(|config| config.retention);
            sandbox.persistent && retention.is_ok_and(|retention| retention != Retention::Current)
        });
        let made = sandbox.is_some() && (manual.is_some() || wants_one);
        Self {
            reason: reason.as_str().to_owned(),
            snapshot: made.then(SnapshotId::generate),
            manual: manual.filter(|_| made),
            deletion: None,
        }
    }

    /// The end of a run whose sandbox is deleted.
    pub(crate) fn of_deleted(deletion: Deletion) -> Self {
        let reason = StopReason::Deleted.as_str().to_owned();
        Self { reason, snapshot: None, manual: None, deletion: Some(deletion) }
    }

    pub(crate) fn write(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| ProviderError::internal("write the end of a run", error))
    }

    /// How a run was to end, if that was recorded.
    pub(crate) fn of(run: &RunRow) -> Option<Self> {
        serde_json::from_str(run.ending.as_deref()?).ok()
    }
}

/// What becomes of the volume of `run`.
fn volume(sandbox: &SandboxRow, run: &RunRow, ending: &Ending) -> Volume {
    match &sandbox.volume_id {
        _ if ending.deletion.is_some() => Volume::Dropped,
        Some(volume) if volume == &run.volume_id => {
            if sandbox.persistent {
                Volume::Kept
            } else {
                Volume::Dropped
            }
        }
        _ => Volume::RolledBack,
    }
}

/// How an end went.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As it was meant.
    AsMeant,
    /// The files are kept, but there was no room for the snapshot of them that
    /// somebody asked for.
    WithoutSnapshot(ProviderError),
}

/// Keeps or drops the files of a run whose processes are gone, and records its
/// end. Done again after a crash, it finds what is left to do.
pub(crate) async fn finish(host: &Arc<Host>, run: &RunRow, ending: &Ending) -> Result<Ended> {
    let found = host.db.sandbox_by_id(&run.sandbox_id).await.map_err(internal("read sandbox"))?;
    let now = host.clock.now();
    let mut end = RunEnd {
        run,
        status: RunStatus::Stopped.as_str(),
        reason: &ending.reason,
        snapshot: None,
        retire: None,
        volume: Volume::Dropped,
        forget: None,
        now,
    };
    let Some(sandbox) = found else {
        return record(host, &end).await;
    };
    let config: Option<RunConfig> = parse(&sandbox.config).ok();
    end.volume = volume(&sandbox, run, ending);
    end.forget = match ending.deletion {
        Some(deletion) => Some(deletion.snapshots(&sandbox, now)),
        None if config.as_ref().is_some_and(|config| config.ephemeral) => {
            Some(SnapshotsOfDeleted::AutomaticGo)
        }
        None => None,
    };
    let keeps = ending.snapshot.is_some() || end.volume == Volume::Kept;
    let sought = run.volume_id.clone();
    if keeps && !pool(host, "look for the files of a run", move |storage| storage.has_volume(&sought)).await?
    {
        host.usable()?;
        tracing::error!(run = %run.id, volume = %run.volume_id, "its files are gone");
        (end.status, end.volume) = (RunStatus::Aborted.as_str(), Volume::Dropped);
        // A host that lost power just after the creation. An empty machine
        // under this name would be somebody else's.
        let runs = host.db.count_runs(&sandbox.id).await.map_err(internal("count runs"))?;
        if sandbox.current_snapshot.is_none() && runs == 1 {
            end.forget = Some(Deletion { with_snapshots: false }.snapshots(&sandbox, now));
        }
        return record(host, &end).await;
    }
    let mut refused = None;
    let mut snapshot = None;
    if let Some(id) = &ending.snapshot {
        match keep(host, &sandbox, run, ending, id, now).await {
            Ok(made) => snapshot = Some(made),
            // Nothing may be lost for want of room: the volume stays as it is.
            Err(error @ ProviderError::Capacity(_)) if host.usable().is_ok() => {
                tracing::warn!(run = %run.id, error = %error.detail(), "no snapshot was made");
                // One that was rolled back has its files from the snapshot.
                if end.volume != Volume::RolledBack {
                    end.volume = Volume::Kept;
                }
                refused = ending.manual.as_ref().map(|_| error);
            }
            Err(error) => return Err(error),
        }
    }
    if snapshot.is_none() && end.volume == Volume::Kept {
        let volume = run.volume_id.clone();
        pool(host, "sync the files of a run", move |storage| storage.seal(&volume)).await?;
    }
    end.snapshot = snapshot.as_ref();
    if keeps && let Some(config) = &config {
        end.retire = Some(retire(config.retention, now).0);
    }
    record(host, &end).await?;
    Ok(refused.map_or(Ended::AsMeant, Ended::WithoutSnapshot))
}

async fn record(host: &Arc<Host>, end: &RunEnd<'_>) -> Result<Ended> {
    host.db.record_end(end).await.map_err(internal("record the end of a run"))?;
    host.untidy.notify_one();
    host.sync_database().await?;
    Ok(Ended::AsMeant)
}

/// Makes the snapshot of an end; its row.
async fn keep(
    host: &Arc<Host>,
    sandbox: &SandboxRow,
    run: &RunRow,
    ending: &Ending,
    id: &SnapshotId,
    now: Timestamp,
) -> Result<SnapshotRow> {
    let bytes = take(host, &run.volume_id, id).await?;
    Ok(row(sandbox, run, id, ending.manual.as_ref(), bytes, now))
}

/// Makes a snapshot of a volume; the bytes that the volume holds.
pub(crate) async fn take(host: &Arc<Host>, volume: &VolumeId, id: &SnapshotId) -> Result<u64> {
    let (volume, id) = (volume.clone(), id.clone());
    pool(host, "make a snapshot", move |storage| {
        storage.snapshot(&volume, &id)?;
        storage.volume_bytes(&volume)
    })
    .await
}

/// The row of a snapshot of `run`, whose volume holds `bytes`.
pub(crate) fn row(
    sandbox: &SandboxRow,
    run: &RunRow,
    id: &SnapshotId,
    manual: Option<&Manual>,
    bytes: u64,
    now: Timestamp,
) -> SnapshotRow {
    let config: Option<RunConfig> = parse(&sandbox.config).ok();
    let of_kept = config.as_ref().and_then(|config| retire(config.retention, now).1);
    let usual = config.and_then(|config| config.snapshot_expiration);
    let own = manual.and_then(|manual| manual.expiration);
    let expiration_ms = match own.or(of_kept).or(usual) {
        None | Some(Expiration::Never) => None,
        Some(Expiration::After(ms)) => Some(i64::try_from(ms).unwrap_or(i64::MAX)),
    };
    let kind = if manual.is_some() { SnapshotKind::Manual } else { SnapshotKind::Automatic };
    SnapshotRow {
        id: id.clone(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        image_id: sandbox.image_id.clone(),
        kind: kind.as_str().to_owned(),
        status: SnapshotStatus::Created.as_str().to_owned(),
        size_bytes: sandbox.base_bytes.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX)),
        boots: sandbox.boots,
        parent: sandbox.descends_from.clone(),
        expiration_ms,
        expires_at: expiration_ms.map(|ms| Timestamp(now.0.saturating_add(ms))),
        last_used_at: None,
        created_at: now,
        updated_at: now,
    }
}

/// What a new snapshot retires, and the expiration of those that are kept.
pub(crate) fn retire(retention: Retention, now: Timestamp) -> (Retire, Option<Expiration>) {
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
    use super::*;
    use crate::machine::tests::{config, sandbox};

    fn sandbox_with(retention: Retention, persistent: bool) -> SandboxRow {
        let config = RunConfig { retention, ..config() };
        SandboxRow { persistent, ..sandbox(&config) }
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
        let run = RunRow { ending: Some(ending.write().unwrap()), ..crate::machine::tests::run(&sandbox) };
        assert_eq!(Ending::of(&run), Some(ending));
        assert_eq!(Ending::of(&RunRow { ending: None, ..run }), None);
    }

    #[test]
    fn volumes_stay_with_persistent_sandboxes_that_were_not_rolled_back() {
        let ending = |reason| Ending::decide(None, reason, None);
        let stopped = ending(StopReason::Requested);
        let kept = sandbox_with(Retention::Current, true);
        let run = crate::machine::tests::run(&kept);
        assert_eq!(volume(&kept, &run, &stopped), Volume::Kept);
        let deleted = Ending::of_deleted(Deletion { with_snapshots: true });
        assert_eq!(volume(&kept, &run, &deleted), Volume::Dropped);
        let temporary = SandboxRow { persistent: false, ..kept.clone() };
        assert_eq!(volume(&temporary, &run, &stopped), Volume::Dropped);
        let rolled_back = SandboxRow { volume_id: None, ..kept };
        assert_eq!(volume(&rolled_back, &run, &stopped), Volume::RolledBack);
    }
}
