//! What a run stands on: an image, and a volume that is there or that it is
//! given. Which one is decided here; who asks for a run is not here
//! (`machine`, `sandboxes`).

use std::sync::Arc;

use dormouse_provider::{ProviderError, Result, SnapshotStatus};
use dormouse_store::{ImageRow, RunRow, SandboxRow, SnapshotRow, VolumeState};
use dormouse_types::{SnapshotId, VolumeId};

use crate::config::RunConfig;
use crate::host::{Host, internal, pool};
use crate::storage::Origin;

/// The files that a run starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Files {
    /// Those of a volume that is there.
    There,
    /// Those of the image alone: the volume is to be made.
    Image,
    /// Those of a snapshot: the volume is to be made.
    Snapshot(SnapshotId),
}

/// Bytes that a sandbox may hold.
pub(crate) fn disk_limit(config: &RunConfig) -> Option<u64> {
    config.resources.disk_mib.map(|mib| mib << 20)
}

/// What a sandbox's next run stands on.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) volume: VolumeId,
    pub(crate) files: Files,
    pub(crate) state: VolumeState,
}

impl Standing {
    /// Its volume, if it has one; else a new one from its current snapshot, or
    /// from the image.
    pub(crate) fn of(sandbox: &SandboxRow, snapshot: Option<&SnapshotRow>, image: &ImageRow) -> Self {
        match (&sandbox.volume_id, snapshot) {
            (Some(volume), _) => Self {
                volume: volume.clone(),
                files: Files::There,
                state: VolumeState {
                    descends_from: sandbox.descends_from.clone(),
                    base_bytes: sandbox.base_bytes,
                    boots: sandbox.boots + 1,
                },
            },
            (None, Some(snapshot)) => Self {
                volume: VolumeId::generate(),
                files: Files::Snapshot(snapshot.id.clone()),
                state: VolumeState {
                    descends_from: Some(snapshot.id.clone()),
                    base_bytes: snapshot.size_bytes,
                    boots: sandbox.boots.max(snapshot.boots) + 1,
                },
            },
            (None, None) => Self {
                volume: VolumeId::generate(),
                files: Files::Image,
                state: VolumeState {
                    descends_from: None,
                    base_bytes: image.size_bytes,
                    boots: sandbox.boots + 1,
                },
            },
        }
    }
}

pub(crate) async fn image(host: &Host, sandbox: &SandboxRow) -> Result<ImageRow> {
    let image = host.db.image_by_id(&sandbox.image_id).await.map_err(internal("read image"))?;
    image.ok_or_else(|| ProviderError::NotFound(format!("image {}", sandbox.image_id)))
}

/// The snapshot, if it is still there.
pub(crate) async fn living(host: &Host, id: &SnapshotId) -> Result<SnapshotRow> {
    let found = host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
    let found = found.filter(|snapshot| snapshot.status == SnapshotStatus::Created.as_str());
    found.ok_or_else(|| ProviderError::SnapshotGone(id.to_string()))
}

/// Has image and volume of a run in place; where the image is mounted.
pub(crate) async fn prepare(
    host: &Arc<Host>,
    run: &RunRow,
    config: &RunConfig,
    image: String,
    files: Files,
) -> Result<std::path::PathBuf> {
    let (volume, sandbox) = (run.volume_id.clone(), run.sandbox_id.clone());
    let limit = disk_limit(config);
    let from = files.clone();
    let prepared = pool(host, "prepare the files of a run", move |storage| {
        let origin = match &from {
            Files::There => None,
            Files::Image => Some(Origin::Nothing),
            Files::Snapshot(id) => Some(Origin::Snapshot(id)),
        };
        match origin.map(|origin| storage.create_volume(&volume, origin, &sandbox, limit)) {
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Some(Err(error)) => return Err(error),
            Some(Ok(())) | None => {}
        }
        storage.mount_image(&image).map(Some)
    });
    match (prepared.await?, files) {
        (Some(place), _) => Ok(place),
        (None, Files::Snapshot(id)) => Err(ProviderError::SnapshotGone(id.to_string())),
        (None, _) => Err(ProviderError::internal("prepare the files of a run", "they are gone")),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_types::{ImageId, Timestamp};

    use super::*;
    use crate::machine::tests::{config, run, sandbox};

    #[test]
    fn a_run_stands_on_the_volume_that_is_there() {
        let image = ImageRow {
            id: ImageId::generate(),
            name: "default".to_owned(),
            digest: "d".to_owned(),
            size_bytes: 100,
            config: "{}".to_owned(),
            source: String::new(),
            created_at: Timestamp(1),
            replaced_at: None,
        };
        let mut sandbox = sandbox(&config());
        let kept = Standing::of(&sandbox, None, &image);
        assert_eq!((Some(kept.volume), kept.files), (sandbox.volume_id.clone(), Files::There));
        assert_eq!((kept.state.boots, kept.state.base_bytes), (2, 10));
        sandbox.volume_id = None;
        let fresh = Standing::of(&sandbox, None, &image);
        assert_eq!((fresh.files, fresh.state.base_bytes), (Files::Image, 100));
        let mut snapshot =
            crate::ending::row(&sandbox, &run(&sandbox), &SnapshotId::generate(), None, 5, Timestamp(3));
        snapshot.boots = 7;
        let back = Standing::of(&sandbox, Some(&snapshot), &image);
        assert_eq!(back.files, Files::Snapshot(snapshot.id.clone()));
        // Older files with younger process numbers, or the other way round:
        // what comes is beyond both.
        assert_eq!((back.state.boots, back.state.base_bytes), (8, 15));
        assert_eq!(back.state.descends_from, Some(snapshot.id));
    }
}
