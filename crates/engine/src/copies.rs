//! Copies of a sandbox's files while it goes on: live snapshots, and forks of
//! its files as they are now.
//!
//! Its processes stand still for the moment of the copy, so that all files are
//! of one instant. What they wrote before goes to disk first, while they run:
//! the moment is short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_provider::{ProviderError, Result};
use dormouse_store::{RunRow, VolumeState};
use dormouse_types::{RunId, SandboxId, SnapshotId, VolumeId};

use crate::config::{RunConfig, parse};
use crate::ending::{self, Manual};
use crate::host::{Host, internal, pool};
use crate::machine::Machine;
use crate::storage::{Origin, Storage};

/// A snapshot that was made.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) snapshot: SnapshotId,
    /// How long the processes stood still, if they go on.
    pub(crate) stall: Option<Duration>,
}

/// A volume to be made a copy.
#[derive(Debug, Clone)]
pub(crate) struct CopyTo {
    pub(crate) volume: VolumeId,
    pub(crate) sandbox: SandboxId,
    /// Bytes that the sandbox may hold.
    pub(crate) limit: Option<u64>,
}

/// A volume that was made a copy.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    /// What the sandbox of the copy has to remember of it.
    pub(crate) state: VolumeState,
}

impl Machine {
    /// A manual snapshot of the live run, which goes on.
    pub(crate) async fn snapshot_live(&mut self, manual: Manual) -> Result<Kept> {
        let live = self.live.as_ref().ok_or(ProviderError::Stopped)?;
        let run = live.row.clone();
        let sandbox = self.row().await?;
        let config: RunConfig = parse(&sandbox.config)?;
        let id = SnapshotId::generate();
        let made = id.clone();
        let stall = still(&self.host, &run, move |storage, volume| storage.snapshot(volume, &made)).await?;
        let volume = run.volume_id.clone();
        let bytes = pool(&self.host, "size a snapshot", move |storage| storage.volume_bytes(&volume)).await?;
        let now = self.host.clock.now();
        let row = ending::row(&sandbox, &run, &id, Some(&manual), bytes, now);
        let (retire, _) = ending::retire(config.retention, now);
        self.host.db.record_snapshot(&row, retire).await.map_err(internal("record snapshot"))?;
        self.host.untidy.notify_one();
        self.host.sync_database().await?;
        tracing::info!(snapshot = %id, run = %run.id, stall_us = stall.as_micros(), "live snapshot");
        Ok(Kept { snapshot: id, stall: Some(stall) })
    }

    /// Copies this sandbox's files, as they are now, into a volume of another
    /// one. `None`: it has none of its own now.
    pub(crate) async fn copy(&mut self, to: CopyTo) -> Result<Option<Copied>> {
        self.host.usable()?;
        let sandbox = self.row().await?;
        let source = match &self.live {
            Some(live) => {
                let to = to.clone();
                still(&self.host, &live.row, move |storage, volume| {
                    storage.create_volume(&to.volume, Origin::Volume(volume), &to.sandbox, to.limit)
                })
                .await?;
                live.row.volume_id.clone()
            }
            None => {
                let Some(volume) = sandbox.volume_id.clone() else { return Ok(None) };
                let (to, from) = (to.clone(), volume.clone());
                pool(&self.host, "copy the files of a sandbox", move |storage| {
                    storage.create_volume(&to.volume, Origin::Volume(&from), &to.sandbox, to.limit)
                })
                .await?;
                volume
            }
        };
        let bytes = pool(&self.host, "size a copy", move |storage| storage.volume_bytes(&source)).await?;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Some(Copied {
            state: VolumeState {
                descends_from: sandbox.descends_from,
                base_bytes: sandbox.base_bytes.saturating_add(bytes),
                boots: sandbox.boots + 1,
            },
        }))
    }
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
