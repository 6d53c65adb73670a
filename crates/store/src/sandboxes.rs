//! Table `sandboxes`.

use dormouse_types::{ImageId, SandboxId, SandboxName, SnapshotId, Timestamp};

use crate::db::{Db, StoreError, commit, typed};
use crate::runs::{self, RunRow};

/// One sandbox.
#[derive(Debug, Clone)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub namespace: String,
    /// Its name there.
    pub name: SandboxName,
    /// Keeps its files when it stops.
    pub persistent: bool,
    /// Base image.
    pub image_id: ImageId,
    /// Configuration as JSON; only the engine reads it.
    pub config: String,
    /// What the next run starts from.
    pub current_snapshot: Option<SnapshotId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

type Raw = (String, String, String, bool, String, String, Option<String>, i64, i64);

fn row(raw: Raw) -> crate::Result<SandboxRow> {
    let (id, namespace, name, persistent, image, config, snapshot, created, updated) = raw;
    Ok(SandboxRow {
        id: typed(&id, "sandboxes", "id")?,
        namespace,
        name: typed(&name, "sandboxes", "name")?,
        persistent,
        image_id: typed(&image, "sandboxes", "image_id")?,
        config,
        current_snapshot: snapshot.map(|s| typed(&s, "sandboxes", "current_snapshot")).transpose()?,
        created_at: Timestamp(created),
        updated_at: Timestamp(updated),
    })
}

impl Db {
    /// Adds a sandbox together with its first run.
    pub async fn insert_sandbox(&self, sandbox: &SandboxRow, run: &RunRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO sandboxes (id, namespace, name, persistent, image_id, config,
             current_snapshot, created_at, updated_at) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9)",
        )
        .bind(sandbox.id.as_str())
        .bind(&sandbox.namespace)
        .bind(sandbox.name.as_str())
        .bind(sandbox.persistent)
        .bind(sandbox.image_id.as_str())
        .bind(&sandbox.config)
        .bind(sandbox.current_snapshot.as_ref().map(SnapshotId::as_str))
        .bind(sandbox.created_at.0)
        .bind(sandbox.updated_at.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::unique("insert sandbox", format!("sandbox {}", sandbox.name)))?;
        runs::insert(&mut tx, run).await?;
        commit(tx, "insert sandbox").await
    }

    /// The sandbox of this name.
    pub async fn sandbox(&self, namespace: &str, name: &SandboxName) -> crate::Result<Option<SandboxRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, namespace, name, persistent, image_id, config, current_snapshot,
             created_at, updated_at FROM sandboxes WHERE namespace = $1 AND name = $2",
        )
        .bind(namespace)
        .bind(name.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read sandbox {name}")))?
        .map(row)
        .transpose()
    }

    /// The sandbox with this id.
    pub async fn sandbox_by_id(&self, id: &SandboxId) -> crate::Result<Option<SandboxRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, namespace, name, persistent, image_id, config, current_snapshot,
             created_at, updated_at FROM sandboxes WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read sandbox {id}")))?
        .map(row)
        .transpose()
    }

    /// Sandboxes of a namespace made before the one with id `before`, newest
    /// first. Ids sort by age.
    pub async fn sandboxes_of(
        &self,
        namespace: &str,
        before: Option<&str>,
        limit: i64,
    ) -> crate::Result<Vec<SandboxRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, namespace, name, persistent, image_id, config, current_snapshot,
             created_at, updated_at FROM sandboxes
             WHERE namespace = $1 AND ($2 IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        )
        .bind(namespace)
        .bind(before)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::database("list sandboxes"))?
        .into_iter()
        .map(row)
        .collect()
    }

    /// Forgets a sandbox; its automatic snapshots go with it.
    pub async fn delete_sandbox(&self, id: &SandboxId, now: Timestamp) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM sandboxes WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database(format!("delete sandbox {id}")))?;
        sqlx::query(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1
             WHERE sandbox_id = $2 AND kind = 'automatic'",
        )
        .bind(now.0)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("delete snapshots of {id}")))?;
        commit(tx, "delete sandbox").await
    }
}
