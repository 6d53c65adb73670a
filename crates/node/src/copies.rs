//! Copies of a sandbox's files while it goes on: live snapshots, and forks of
//! its files as they are now.
//!
//! Its processes stand still for the moment of the copy, so that all files are
//! of one instant. What they wrote before goes to disk first, while they run:
//! the moment is short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_control::SandboxRecord;
use dormouse_control::ending::{Manual, retire, snapshot_row};
use dormouse_control::order::{CopyTo, Recorded};
use dormouse_provider::Result;
use dormouse_store::{RunRow, VolumeState};
use dormouse_types::{RunId, SnapshotId, VolumeId};

use crate::host::{Host, internal, pool};
use crate::storage::{Origin, Storage};

/// A manual snapshot of a run, which goes on; how long it stood still.
pub(crate) async fn snapshot_live(
    host: &Arc<Host>,
    sandbox: SandboxRecord,
    run: &RunRow,
    manual: &Manual,
) -> Result<(Recorded, Duration)> {
    let retention = sandbox.config()?.retention;
    let id = SnapshotId::generate();
    let made = id.clone();
    let stall = still(host, run, move |storage, volume| storage.snapshot(volume, &made)).await?;
    let volume = run.volume_id.clone();
    let bytes = pool(host, "size a snapshot", move |storage| storage.volume_bytes(&volume)).await?;
    let now = host.clock.now();
    let row = snapshot_row(&sandbox, run, &id, Some(manual), bytes, now);
    let recorded = host.db.record_snapshot(&row, run, retire(retention, now).0).await;
    recorded.map_err(internal("record snapshot"))?;
    host.untidy.notify_one();
    host.sync_database().await?;
    tracing::info!(snapshot = %id, run = %run.id, stall_us = stall.as_micros(), "live snapshot");
    Ok((Recorded { sandbox: Some(sandbox), run: run.clone(), snapshot: Some(row) }, stall))
}

/// Copies a sandbox's files, as they are now, into a volume of another one.
/// `None`: it has none of its own now.
pub(crate) async fn copy(
    host: &Arc<Host>,
    sandbox: &SandboxRecord,
    live: Option<&RunRow>,
    to: CopyTo,
) -> Result<Option<VolumeState>> {
    let source = match live {
        Some(run) => {
            still(host, run, move |storage, volume| {
                storage.create_volume(&to.volume, Origin::Volume(volume), &to.sandbox, to.limit)
            })
            .await?;
            run.volume_id.clone()
        }
        None => {
            let Some(volume) = sandbox.row.volume_id.clone() else { return Ok(None) };
            let from = volume.clone();
            pool(host, "copy the files of a sandbox", move |storage| {
                storage.create_volume(&to.volume, Origin::Volume(&from), &to.sandbox, to.limit)
            })
            .await?;
            volume
        }
    };
    let bytes = pool(host, "size a copy", move |storage| storage.volume_bytes(&source)).await?;
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok(Some(VolumeState {
        descends_from: sandbox.row.descends_from.clone(),
        base_bytes: sandbox.row.base_bytes.saturating_add(bytes),
        boots: sandbox.row.boots + 1,
    }))
}

/// Does `work` with the volume of a run while its processes stand still; how
/// long they did.
async fn still(
    host: &Arc<Host>,
    run: &RunRow,
    work: impl FnOnce(&Storage, &VolumeId) -> std::io::Result<()> + Send + 'static,
) -> Result<Duration> {
    let cgroups = host.cgroups.clone();
    let (id, volume): (RunId, VolumeId) = (run.id.clone(), run.volume_id.clone());
    pool(host, "copy the files of a run", move |storage| {
        storage.write_back(&volume)?;
        let began = Instant::now();
        let frozen = cgroups.freeze(&id)?;
        work(storage, &volume)?;
        drop(frozen);
        Ok(began.elapsed())
    })
    .await
}
