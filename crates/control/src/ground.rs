//! What a run stands on: an image, and a volume that is there or that it is
//! given. Decided here, made by the host.

use dormouse_store::{ImageRow, SandboxRow, SnapshotRow, VolumeState};
use dormouse_types::{SnapshotId, VolumeId};

/// The files that a run starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// Those of a volume that is there.
    There,
    /// Those of the image alone: the volume is to be made.
    Image,
    /// Those of a snapshot: the volume is to be made.
    Snapshot(SnapshotId),
}

/// What a sandbox's next run stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// Its volume.
    pub volume: VolumeId,
    /// What is in it.
    pub files: Files,
    /// How old that is.
    pub state: VolumeState,
}

impl Ground {
    /// The image alone.
    #[must_use]
    pub fn image(image: &ImageRow, boots: i64) -> Self {
        let state = VolumeState { descends_from: None, base_bytes: image.size_bytes, boots: boots + 1 };
        Self { volume: VolumeId::generate(), files: Files::Image, state }
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(snapshot: &SnapshotRow, boots: i64) -> Self {
        let state = VolumeState {
            descends_from: Some(snapshot.id.clone()),
            base_bytes: snapshot.size_bytes,
            boots: boots.max(snapshot.boots) + 1,
        };
        Self { volume: VolumeId::generate(), files: Files::Snapshot(snapshot.id.clone()), state }
    }

    /// The sandbox's volume, if it has one; else a new one from its current
    /// snapshot, or from the image.
    #[must_use]
    pub fn of(sandbox: &SandboxRow, snapshot: Option<&SnapshotRow>, image: &ImageRow) -> Self {
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
            (None, Some(snapshot)) => Self::snapshot(snapshot, sandbox.boots),
            (None, None) => Self::image(image, sandbox.boots),
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_types::{ImageId, Timestamp};

    use super::*;
    use crate::record::SandboxRecord;
    use crate::record::tests::{config, run, sandbox};

    #[test]
    fn a_run_stands_on_the_volume_that_is_there() {
        let image = ImageRow {
            id: ImageId::generate(),
            host_id: "host_one".parse().unwrap(),
            name: "default".to_owned(),
            digest: "d".to_owned(),
            size_bytes: 100,
            config: "{}".to_owned(),
            source: String::new(),
            created_at: Timestamp(1),
            replaced_at: None,
        };
        let mut sandbox = sandbox(&config());
        let kept = Ground::of(&sandbox, None, &image);
        assert_eq!((Some(kept.volume), kept.files), (sandbox.volume_id.clone(), Files::There));
        assert_eq!((kept.state.boots, kept.state.base_bytes), (2, 10));
        sandbox.volume_id = None;
        let fresh = Ground::of(&sandbox, None, &image);
        assert_eq!((fresh.files, fresh.state.base_bytes), (Files::Image, 100));
        let record = SandboxRecord::new(sandbox.clone());
        let id = SnapshotId::generate();
        let mut snapshot = crate::ending::snapshot_row(&record, &run(&sandbox), &id, None, 5, Timestamp(3));
        snapshot.boots = 7;
        let back = Ground::of(&sandbox, Some(&snapshot), &image);
        assert_eq!(back.files, Files::Snapshot(snapshot.id.clone()));
        // Older files with younger process numbers, or the other way round:
        // what comes is beyond both.
        assert_eq!((back.state.boots, back.state.base_bytes), (8, 15));
        assert_eq!(back.state.descends_from, Some(snapshot.id));
    }
}
