//! Carries out the end of a run whose processes are gone: files are kept or
//! dropped as was decided (`dormouse_control::ending`), and that is recorded.
//! Done again after a crash, it finds what is left to do.

use std::path::PathBuf;
use std::sync::Arc;

use dormouse_control::ending::{Ending, Manual, retire, snapshot_row};
use dormouse_control::order::Recorded;
use dormouse_control::{Files, SandboxRecord};
use dormouse_provider::{ProviderError, Result};
use dormouse_store::{ImageRow, RunEnd, RunRow, SnapshotRow, Volume};
use dormouse_types::{RunStatus, SnapshotId, StopReason, Timestamp, VolumeId};

use crate::host::{Host, internal, pool};
use crate::storage::Origin;

/// How an end went.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What was recorded.
    pub(crate) recorded: Recorded,
    /// The files are kept, but there was no room for the snapshot of them that
    /// somebody asked for.
    pub(crate) refused: Option<ProviderError>,
}

/// Keeps or drops the files of `run`, and records its end. `sandbox`: `None`
/// where it is gone. `may_have_drives`: `false` saves asking for them.
pub(crate) async fn finish(
    host: &Arc<Host>,
    run: &RunRow,
    sandbox: Option<&SandboxRecord>,
    ending: &Ending,
    may_have_drives: bool,
) -> Result<Ended> {
    let now = host.clock.now();
    let mut end = RunEnd {
        run,
        status: RunStatus::Stopped,
        reason: ending.reason,
        snapshot: None,
        retire: None,
        volume: Volume::Dropped,
        forget: None,
        now,
    };
    let Some(sandbox) = sandbox else {
        return record(host, &end, None, None).await;
    };
    end.volume = ending.volume(sandbox, run);
    end.forget = ending.forgets(sandbox, now);
    let keeps = ending.snapshot.is_some() || end.volume == Volume::Kept;
    let drives = if may_have_drives {
        host.db.drives_attached(&run.id).await.map_err(internal("read the drives of a run"))?
    } else {
        Vec::new()
    };
    for drive in drives {
        // A drive that cannot be synced now is with the next commit.
        if let Err(error) = pool(host, "sync a drive", move |storage| storage.seal_drive(&drive)).await {
            tracing::warn!(run = %run.id, error = %error.detail(), "sync a drive");
        }
    }
    let sought = run.volume_id.clone();
    if keeps && !pool(host, "look for the files of a run", move |storage| storage.has_volume(&sought)).await?
    {
        host.usable()?;
        tracing::error!(run = %run.id, volume = %run.volume_id, "its files are gone");
        (end.status, end.volume) = (RunStatus::Aborted, Volume::Dropped);
        // A host that lost power just after the creation. An empty machine
        // under this name would be somebody else's.
        if sandbox.row.current_snapshot.is_none() && run.number == 1 {
            let deletion = dormouse_control::ending::Deletion { with_snapshots: false };
            end.forget = Some(deletion.snapshots(sandbox, now));
        }
        return record(host, &end, Some(sandbox), None).await;
    }
    let mut refused = None;
    let mut snapshot = None;
    if let Some(id) = &ending.snapshot {
        match keep(host, sandbox, run, ending.manual.as_ref(), id, now).await {
            Ok(made) => snapshot = Some(made),
            // Nothing may be lost for want of room: the volume stays as it is.
            Err(error @ ProviderError::Capacity(_)) if host.usable().is_ok() => {
                tracing::warn!(run = %run.id, error = %error.detail(), "no snapshot was made");
                // One that was rolled back has its files from the snapshot.
                if end.volume != Volume::RolledBack {
                    end.volume = Volume::Kept;
                }
                // Nor a sandbox that would have gone with its snapshot made.
                end.forget = None;
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
    if keeps && let Some(config) = sandbox.known_config() {
        end.retire = Some(retire(config.retention, now).0);
    }
    record(host, &end, Some(sandbox), refused).await
}

async fn record(
    host: &Arc<Host>,
    end: &RunEnd<'_>,
    sandbox: Option<&SandboxRecord>,
    refused: Option<ProviderError>,
) -> Result<Ended> {
    let row = host.db.record_end(end).await.map_err(internal("record the end of a run"))?;
    let replaced = sandbox.is_some_and(|sandbox| sandbox.row.current_snapshot.is_some());
    if end.volume != Volume::Kept || end.forget.is_some() || (end.retire.is_some() && replaced) {
        host.untidy.notify_one();
    }
    host.sync_database().await?;
    let run = ended(end.run, end.status, end.reason, end.now);
    let sandbox = row.map(|row| match sandbox {
        Some(sandbox) => sandbox.with_row(row),
        None => SandboxRecord::new(row),
    });
    Ok(Ended { recorded: Recorded { sandbox, run, snapshot: end.snapshot.cloned() }, refused })
}

/// A run that never took a command: nothing was acknowledged, so nothing of it
/// stays: a volume that was made for it goes, and the sandbox too if this was
/// to be its first run.
pub(crate) async fn abandon(host: &Host, run: &RunRow) -> Result<()> {
    let failed = host.db.run_failed(run, run.number == 1, host.clock.now()).await;
    failed.map_err(internal("end a run that did not start"))?;
    host.untidy.notify_one();
    Ok(())
}

/// The row of a run that has ended.
pub(crate) fn ended(run: &RunRow, status: RunStatus, reason: StopReason, now: Timestamp) -> RunRow {
    RunRow { status, stop_reason: Some(reason), stopped_at: Some(now), updated_at: now, ..run.clone() }
}

/// Makes a snapshot of the volume of a run that has ended; its row.
async fn keep(
    host: &Arc<Host>,
    sandbox: &SandboxRecord,
    run: &RunRow,
    manual: Option<&Manual>,
    id: &SnapshotId,
    now: Timestamp,
) -> Result<SnapshotRow> {
    let (volume, made): (VolumeId, SnapshotId) = (run.volume_id.clone(), id.clone());
    let bytes = pool(host, "make a snapshot", move |storage| {
        storage.snapshot(&volume, &made)?;
        storage.volume_bytes(&volume)
    })
    .await?;
    Ok(snapshot_row(sandbox, run, id, manual, bytes, now))
}

/// Has image and volume of a run in place; where the image is mounted. `ahead`: a copy
/// that was made ahead will do, which is on disk with the file system's next commit.
pub(crate) async fn prepare(
    host: &Arc<Host>,
    run: &RunRow,
    image: &ImageRow,
    files: Files,
    ahead: bool,
) -> Result<PathBuf> {
    let (volume, sandbox, digest) = (run.volume_id.clone(), run.sandbox_id.clone(), image.digest.clone());
    let limit = run.resources.disk_bytes();
    let from = files.clone();
    let prepared = pool(host, "prepare the files of a run", move |storage| {
        let origin = match &from {
            Files::There => None,
            Files::Image => Some(Origin::Nothing),
            Files::Snapshot(id) if ahead => Some(Origin::Ahead(id)),
            Files::Snapshot(id) => Some(Origin::Snapshot(id)),
        };
        match origin.map(|origin| storage.create_volume(&volume, origin, &sandbox, limit)) {
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Some(Err(error)) => return Err(error),
            Some(Ok(())) | None => {}
        }
        storage.mount_image(&digest).map(Some)
    });
    match (prepared.await?, files) {
        (Some(place), files) => {
            if let Files::Snapshot(id) = files
                && ahead
            {
                copy_ahead(host, id);
            }
            Ok(place)
        }
        (None, Files::Snapshot(id)) => Err(ProviderError::SnapshotGone(id.to_string())),
        (None, _) => Err(ProviderError::internal("prepare the files of a run", "they are gone")),
    }
}

/// Has copies made for who starts from a snapshot next, while nobody waits.
fn copy_ahead(host: &Arc<Host>, snapshot: SnapshotId) {
    let host = host.clone();
    tokio::spawn(async move {
        let of = snapshot.clone();
        let made = pool(&host, "copy a snapshot ahead", move |storage| storage.copy_ahead(&of)).await;
        if let Err(error) = made {
            tracing::warn!(%snapshot, error = error.detail(), "copy a snapshot ahead");
        }
    });
}
