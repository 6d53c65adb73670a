//! Table `garbage`: files that nothing refers to any more and that are still
//! on disk. A row is written in the transaction that takes the last reference
//! away, so what has to go is found by index and survives a crash.

use dormouse_types::{SnapshotId, Timestamp, VolumeId};

use crate::db::{Db, StoreError, Tx, commit};

/// What kind of files they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GarbageKind {
    /// The files of a sandbox; the name is a volume id.
    Volume,
    /// A snapshot; the name is its id.
    Snapshot,
    /// The file of a base image; the name is its digest.
    Image,
}

impl GarbageKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
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

pub(crate) async fn add(tx: &mut Tx<'_>, kind: GarbageKind, name: &str, now: Timestamp) -> crate::Result<()> {
    sqlx::query("INSERT INTO garbage (kind, name, since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(kind.as_str())
        .bind(name)
        .bind(now.0)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(StoreError::database(format!("add garbage {name}")))
}

/// Something refers to these files again.
pub(crate) async fn spare(tx: &mut Tx<'_>, kind: GarbageKind, name: &str) -> crate::Result<()> {
    sqlx::query("DELETE FROM garbage WHERE kind = $1 AND name = $2")
        .bind(kind.as_str())
        .bind(name)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(StoreError::database(format!("spare {name}")))
}

impl Db {
    /// The oldest garbage.
    pub async fn garbage(&self, limit: i64) -> crate::Result<Vec<Garbage>> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT kind, name FROM garbage ORDER BY since LIMIT $1")
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .map_err(StoreError::database("list garbage"))?;
        rows.into_iter()
            .map(|(kind, name)| {
                let kinds = [GarbageKind::Volume, GarbageKind::Snapshot, GarbageKind::Image];
                let kind = kinds.into_iter().find(|known| known.as_str() == kind);
                let kind = kind.ok_or(StoreError::Corrupt { table: "garbage", column: "kind" })?;
                Ok(Garbage { kind, name })
            })
            .collect()
    }

    /// These files are gone.
    pub async fn forget_garbage(&self, gone: &[Garbage]) -> crate::Result<()> {
        let mut tx = self.write().await?;
        for garbage in gone {
            spare(&mut tx, garbage.kind, &garbage.name).await?;
        }
        commit(tx, "forget garbage").await
    }

    /// Whether a sandbox, a live run or the garbage owns this volume.
    pub async fn owns_volume(&self, id: &VolumeId) -> crate::Result<bool> {
        let found: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM sandboxes WHERE volume_id = $1
             UNION ALL SELECT 1 FROM runs WHERE volume_id = $1
               AND status IN ('pending', 'running', 'stopping', 'snapshotting')
             UNION ALL SELECT 1 FROM garbage WHERE kind = 'volume' AND name = $1 LIMIT 1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("look for the owner of {id}")))?;
        Ok(found.is_some())
    }

    /// Whether a snapshot that is there, or the garbage, owns these files.
    pub async fn owns_snapshot(&self, id: &SnapshotId) -> crate::Result<bool> {
        let found: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM snapshots WHERE id = $1 AND status = 'created'
             UNION ALL SELECT 1 FROM garbage WHERE kind = 'snapshot' AND name = $1 LIMIT 1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("look for the owner of {id}")))?;
        Ok(found.is_some())
    }
}
