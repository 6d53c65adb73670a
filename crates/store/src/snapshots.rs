//! Table `snapshots`.

use dormouse_types::{LayerId, RunId, SandboxId, SandboxName, SnapshotId, Timestamp};

use crate::db::{Db, StoreError, commit, json, typed};
use crate::{LayerRow, runs};

/// One snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub namespace: String,
    /// What it was made of.
    pub sandbox_id: SandboxId,
    /// Name of that sandbox.
    pub sandbox_name: SandboxName,
    /// The run that it was made of.
    pub source_run: RunId,
    /// `manual` or `automatic`.
    pub kind: String,
    /// `created` or `deleted`.
    pub status: String,
    /// Layers, bottom first.
    pub layers: Vec<LayerId>,
    /// What it was made on top of.
    pub parent: Option<SnapshotId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

type Raw = (String, String, String, String, String, String, String, String, Option<String>, i64, i64);

fn row(raw: Raw) -> crate::Result<SnapshotRow> {
    let (id, namespace, sandbox_id, name, run, kind, status, layers, parent, created, updated) = raw;
    Ok(SnapshotRow {
        id: typed(&id, "snapshots", "id")?,
        namespace,
        sandbox_id: typed(&sandbox_id, "snapshots", "sandbox_id")?,
        sandbox_name: typed(&name, "snapshots", "sandbox_name")?,
        source_run: typed(&run, "snapshots", "source_run")?,
        kind,
        status,
        layers: json(&layers, "snapshots", "layers")?,
        parent: parent.map(|id| typed(&id, "snapshots", "parent")).transpose()?,
        created_at: Timestamp(created),
        updated_at: Timestamp(updated),
    })
}

impl Db {
    /// The end of a persistent run, in one transaction: the new layer, the
    /// snapshot, the sandbox that now starts from it, the run with its reason.
    /// The automatic snapshot that this one replaces is deleted. Doing it
    /// again after a crash changes nothing more.
    pub async fn record_stop(
        &self,
        snapshot: &SnapshotRow,
        layer: &LayerRow,
        reason: &str,
    ) -> crate::Result<()> {
        let now = snapshot.updated_at;
        let mut tx = self.write().await?;
        let failed = |what: &str| StoreError::database(format!("{what} of run {}", snapshot.source_run));
        sqlx::query(
            "INSERT INTO layers (id, size_bytes, created_at) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(layer.id.as_str())
        .bind(layer.size_bytes)
        .bind(layer.created_at.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("insert layer"))?;
        sqlx::query(
            "INSERT INTO snapshots (id, namespace, sandbox_id, sandbox_name, source_run, kind, status,
             layers, parent, created_at, updated_at) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)",
        )
        .bind(snapshot.id.as_str())
        .bind(&snapshot.namespace)
        .bind(snapshot.sandbox_id.as_str())
        .bind(snapshot.sandbox_name.as_str())
        .bind(snapshot.source_run.as_str())
        .bind(&snapshot.kind)
        .bind(&snapshot.status)
        .bind(serde_json::to_string(&snapshot.layers).unwrap_or_default())
        .bind(snapshot.parent.as_ref().map(SnapshotId::as_str))
        .bind(snapshot.created_at.0)
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("insert snapshot"))?;
        sqlx::query("UPDATE sandboxes SET current_snapshot = $1, updated_at = $2 WHERE id = $3")
            .bind(snapshot.id.as_str())
            .bind(now.0)
            .bind(snapshot.sandbox_id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed("move sandbox"))?;
        sqlx::query(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1
             WHERE id = $2 AND kind = 'automatic' AND status = 'created'",
        )
        .bind(now.0)
        .bind(snapshot.parent.as_ref().map(SnapshotId::as_str))
        .execute(&mut *tx)
        .await
        .map_err(failed("retire the snapshot before that"))?;
        runs::ended(&mut tx, &snapshot.source_run, "stopped", reason, now).await?;
        commit(tx, "record stop").await
    }

    /// The snapshot with this id.
    pub async fn snapshot(&self, id: &SnapshotId) -> crate::Result<Option<SnapshotRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, namespace, sandbox_id, sandbox_name, source_run, kind, status, layers, parent,
             created_at, updated_at FROM snapshots WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read snapshot {id}")))?
        .map(row)
        .transpose()
    }

    /// Live snapshots whose stack is deeper than `depth`, and which no live
    /// run stands on.
    pub async fn deep_snapshots(&self, depth: i64, limit: i64) -> crate::Result<Vec<SnapshotRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, namespace, sandbox_id, sandbox_name, source_run, kind, status, layers, parent,
             created_at, updated_at FROM snapshots
             WHERE status = 'created' AND json_array_length(layers) > $1 ORDER BY id LIMIT $2",
        )
        .bind(depth)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::database("list deep snapshots"))?
        .into_iter()
        .map(row)
        .collect()
    }

    /// Replaces the stack of a live snapshot by an equivalent one, if it still
    /// is the one that was read. The new layer is recorded with it.
    pub async fn replace_layers(
        &self,
        snapshot: &SnapshotRow,
        layers: &[LayerId],
        new: &LayerId,
        now: Timestamp,
    ) -> crate::Result<bool> {
        let mut tx = self.write().await?;
        sqlx::query("INSERT INTO layers (id, created_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
            .bind(new.as_str())
            .bind(now.0)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database("insert squashed layer"))?;
        let done = sqlx::query(
            "UPDATE snapshots SET layers = $1, updated_at = $2
             WHERE id = $3 AND status = 'created' AND layers = $4",
        )
        .bind(serde_json::to_string(layers).unwrap_or_default())
        .bind(now.0)
        .bind(snapshot.id.as_str())
        .bind(serde_json::to_string(&snapshot.layers).unwrap_or_default())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("squash snapshot {}", snapshot.id)))?;
        commit(tx, "squash snapshot").await?;
        Ok(done.rows_affected() > 0)
    }
}
