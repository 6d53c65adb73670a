//! Table `garbage`: files that nothing refers to any more and that are still
//! on disk. A row is written in the transaction that takes the last reference
//! away, so what has to go is found by index and survives a crash.

use dormouse_types::{HostId, SnapshotId, Timestamp, VolumeId, words};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::runs::LIVE;

words! {
    /// What kind of files they are.
    GarbageKind, "kind of garbage" {
        /// The files of a sandbox; the name is a volume id.
        Volume = "volume",
        /// A snapshot; the name is its id.
        Snapshot = "snapshot",
        /// The file of a base image; the name is its digest.
        Image = "image",
        /// A drive; the name is its id.
        Drive = "drive",
        /// What a run sees of a drive that it may not write to; the name begins with the
        /// run's id.
        View = "view",
    }
}

/// Files that have to go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Garbage {
    /// What they are.
    pub kind: GarbageKind,
    /// Which they are.
    pub name: String,
}

pub(crate) async fn add(
    tx: &mut Tx,
    host: &HostId,
    kind: GarbageKind,
    name: &str,
    now: Timestamp,
) -> Result<()> {
    tx.sql(
        format!("add garbage {name}"),
        "INSERT INTO garbage (host_id, kind, name, since) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(host)
    .bind(kind)
    .bind(name.to_owned())
    .bind(now)
    .execute()
    .await
    .map(drop)
}

/// Something refers to these files again, or they are gone.
pub(crate) async fn spare(tx: &mut Tx, host: &HostId, kind: GarbageKind, name: &str) -> Result<()> {
    tx.sql(format!("spare {name}"), "DELETE FROM garbage WHERE host_id = $1 AND kind = $2 AND name = $3")
        .bind(host)
        .bind(kind)
        .bind(name.to_owned())
        .execute()
        .await
        .map(drop)
}

impl Db {
    /// The oldest garbage of a host.
    pub async fn garbage(&self, host: &HostId, limit: i64) -> Result<Vec<Garbage>> {
        self.sql("list garbage", "SELECT kind, name FROM garbage WHERE host_id = $1 ORDER BY since LIMIT $2")
            .bind(host)
            .bind(limit)
            .all(|row| {
                let row = row.of("garbage", "");
                Ok(Garbage { kind: row.get("kind")?, name: row.get("name")? })
            })
            .await
    }

    /// These files are gone.
    pub async fn forget_garbage(&self, host: &HostId, gone: &[Garbage]) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut tx = self.write().await?;
        for garbage in gone {
            spare(&mut tx, host, garbage.kind, &garbage.name).await?;
        }
        tx.commit("forget garbage").await
    }

    /// Whether a sandbox, a live run or the garbage owns this volume.
    pub async fn owns_volume(&self, id: &VolumeId) -> Result<bool> {
        self.sql(
            format!("look for the owner of {id}"),
            format!(
                "SELECT 1 FROM sandboxes WHERE volume_id = $1
                 UNION ALL SELECT 1 FROM runs WHERE volume_id = $1 AND {LIVE}
                 UNION ALL SELECT 1 FROM garbage WHERE kind = 'volume' AND name = $1 LIMIT 1"
            ),
        )
        .bind(id)
        .exists()
        .await
    }

    /// Whether a snapshot that is there, or the garbage, owns these files.
    pub async fn owns_snapshot(&self, id: &SnapshotId) -> Result<bool> {
        self.sql(
            format!("look for the owner of {id}"),
            "SELECT 1 FROM snapshots WHERE id = $1 AND status = 'created'
             UNION ALL SELECT 1 FROM garbage WHERE kind = 'snapshot' AND name = $1 LIMIT 1",
        )
        .bind(id)
        .exists()
        .await
    }
}
