//! Table `snapshots`.

use dormouse_types::{ImageId, LayerId, RunId, SandboxId, SandboxName, SnapshotId, Timestamp};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

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
    /// Image of that sandbox.
    pub image_id: ImageId,
    /// `manual` or `automatic`.
    pub kind: String,
    /// `created` or `deleted`.
    pub status: String,
    /// Layers, bottom first.
    pub layers: Vec<LayerId>,
    /// What it was made on top of.
    pub parent: Option<SnapshotId>,
    /// Milliseconds that it stays after its last use; `None`: for ever.
    pub expiration_ms: Option<i64>,
    /// When it goes.
    pub expires_at: Option<Timestamp>,
    /// When a run last started from it.
    pub last_used_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Which snapshots of a sandbox go when a new one is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retire {
    /// The automatic one that the new one replaces.
    Replaced,
    /// None; an automatic one that is replaced and would stay for ever goes at
    /// this time.
    ReplacedAt(Timestamp),
    /// All but the newest so many, the new one included.
    BeyondNewest(u32),
    /// Those go at this time, unless they go before.
    BeyondNewestAt(u32, Timestamp),
}

/// `SET` of a snapshot that goes at $1: at once, or, while a sandbox (a fork)
/// would start from it next, as soon as none does.
pub(crate) const GOES: &str = "status = CASE WHEN id IN (SELECT current_snapshot FROM sandboxes)
       THEN status ELSE 'deleted' END,
     expires_at = CASE WHEN id IN (SELECT current_snapshot FROM sandboxes)
       THEN $1 ELSE expires_at END, expiration_ms = NULL";

const COLUMNS: &str = "id, namespace, sandbox_id, sandbox_name, source_run, image_id, kind, status, layers,
    parent, expiration_ms, expires_at, last_used_at, created_at, updated_at";

fn row(raw: &SqliteRow) -> crate::Result<SnapshotRow> {
    fn column<'r, T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(
        raw: &'r SqliteRow,
        name: &'static str,
    ) -> crate::Result<T> {
        raw.try_get(name).map_err(StoreError::database(format!("read snapshots.{name}")))
    }
    let text = |name| column::<String>(raw, name);
    let number = |name| column::<Option<i64>>(raw, name);
    Ok(SnapshotRow {
        id: typed(&text("id")?, "snapshots", "id")?,
        namespace: text("namespace")?,
        sandbox_id: typed(&text("sandbox_id")?, "snapshots", "sandbox_id")?,
        sandbox_name: typed(&text("sandbox_name")?, "snapshots", "sandbox_name")?,
        source_run: typed(&text("source_run")?, "snapshots", "source_run")?,
        image_id: typed(&text("image_id")?, "snapshots", "image_id")?,
        kind: text("kind")?,
        status: text("status")?,
        layers: json(&text("layers")?, "snapshots", "layers")?,
        parent: column::<Option<String>>(raw, "parent")?
            .map(|id| typed(&id, "snapshots", "parent"))
            .transpose()?,
        expiration_ms: number("expiration_ms")?,
        expires_at: number("expires_at")?.map(Timestamp),
        last_used_at: number("last_used_at")?.map(Timestamp),
        created_at: Timestamp(column(raw, "created_at")?),
        updated_at: Timestamp(column(raw, "updated_at")?),
    })
}

impl Db {
    /// The end of a run that is kept, in one transaction: the new layer, the
    /// snapshot, the sandbox that now starts from it, the run with its reason,
    /// and what the new snapshot retires. Doing it again after a crash changes
    /// nothing more.
    pub async fn record_stop(
        &self,
        snapshot: &SnapshotRow,
        layer: &LayerRow,
        retire: Retire,
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
            "INSERT INTO snapshots (id, namespace, sandbox_id, sandbox_name, source_run, image_id, kind,
             status, layers, parent, expiration_ms, expires_at, created_at, updated_at)
             VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14)",
        )
        .bind(snapshot.id.as_str())
        .bind(&snapshot.namespace)
        .bind(snapshot.sandbox_id.as_str())
        .bind(snapshot.sandbox_name.as_str())
        .bind(snapshot.source_run.as_str())
        .bind(snapshot.image_id.as_str())
        .bind(&snapshot.kind)
        .bind(&snapshot.status)
        .bind(serde_json::to_string(&snapshot.layers).unwrap_or_default())
        .bind(snapshot.parent.as_ref().map(SnapshotId::as_str))
        .bind(snapshot.expiration_ms)
        .bind(snapshot.expires_at.map(|at| at.0))
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
        // $1 now, $2 parent, $3 sandbox, $4 count, $5 time.
        let beyond = "sandbox_id = $3 AND id NOT IN (SELECT id FROM snapshots
             WHERE sandbox_id = $3 AND status = 'created' ORDER BY id DESC LIMIT $4)";
        // A fork's first parent belongs to another sandbox.
        let replaced = "id = $2 AND sandbox_id = $3 AND kind = 'automatic' AND $4 = $4";
        let (change, which, count, at) = match retire {
            Retire::Replaced => (GOES, replaced.to_owned(), 0, now),
            Retire::ReplacedAt(at) => {
                ("expires_at = $5", format!("{replaced} AND expires_at IS NULL"), 0, at)
            }
            Retire::BeyondNewest(count) => (GOES, beyond.to_owned(), count, now),
            Retire::BeyondNewestAt(count, at) => (
                "expires_at = $5",
                format!("{beyond} AND (expires_at IS NULL OR expires_at > $5)"),
                count,
                at,
            ),
        };
        let sql = format!(
            "UPDATE snapshots SET {change}, updated_at = $1
             WHERE status = 'created' AND ($2 IS NULL OR $2 = $2) AND $5 = $5 AND {which}"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now.0)
            .bind(snapshot.parent.as_ref().map(SnapshotId::as_str))
            .bind(snapshot.sandbox_id.as_str())
            .bind(i64::from(count))
            .bind(at.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("retire the snapshots before that"))?;
        runs::ended(&mut tx, &snapshot.source_run, "stopped", reason, now).await?;
        commit(tx, "record stop").await
    }

    /// The snapshot with this id.
    pub async fn snapshot(&self, id: &SnapshotId) -> crate::Result<Option<SnapshotRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM snapshots WHERE id = $1")))
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read snapshot {id}")))?
            .as_ref()
            .map(row)
            .transpose()
    }

    /// Snapshots of a namespace (or of the sandboxes of one name), by age.
    pub async fn snapshots_of(
        &self,
        namespace: &str,
        sandbox: Option<&str>,
        ascending: bool,
        after: Option<&str>,
        limit: i64,
    ) -> crate::Result<Vec<SnapshotRow>> {
        let (compare, direction) = if ascending { (">", "ASC") } else { ("<", "DESC") };
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots WHERE namespace = $1 AND ($2 IS NULL OR sandbox_name = $2)
             AND ($3 IS NULL OR id {compare} $3) ORDER BY id {direction} LIMIT $4"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(namespace)
            .bind(sandbox)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database("list snapshots"))?
            .iter()
            .map(row)
            .collect()
    }

    /// Snapshots on top of `parent` (`None`: on top of an image) but for
    /// `except`, newest first, and how many there are.
    pub async fn snapshot_children(
        &self,
        namespace: &str,
        parent: Option<&SnapshotId>,
        except: Option<&SnapshotId>,
        limit: i64,
    ) -> crate::Result<(Vec<SnapshotRow>, i64)> {
        let which = "namespace = $1 AND (parent = $2 OR ($2 IS NULL AND parent IS NULL))
             AND ($3 IS NULL OR id <> $3)";
        let (parent, except) = (parent.map(SnapshotId::as_str), except.map(SnapshotId::as_str));
        let failed = || StoreError::database("list children of a snapshot");
        let (count,): (i64,) =
            sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM snapshots WHERE {which}")))
                .bind(namespace)
                .bind(parent)
                .bind(except)
                .fetch_one(&self.readers)
                .await
                .map_err(failed())?;
        let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE {which} ORDER BY id DESC LIMIT $4");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(namespace)
            .bind(parent)
            .bind(except)
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(failed())?;
        Ok((rows.iter().map(row).collect::<crate::Result<_>>()?, count))
    }

    /// Deletes a snapshot; the record stays.
    pub async fn delete_snapshot(&self, id: &SnapshotId, now: Timestamp) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1 WHERE id = $2 AND status = 'created'",
        )
        .bind(now.0)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("delete snapshot {id}")))?;
        commit(tx, "delete snapshot").await
    }

    /// Deletes what has expired; how many that were. Where nobody asked for an
    /// expiration, what a sandbox would start from next stays.
    pub async fn expire_snapshots(&self, now: Timestamp) -> crate::Result<u64> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1
             WHERE status = 'created' AND expires_at IS NOT NULL AND expires_at <= $1
               AND (expiration_ms IS NOT NULL
                 OR NOT EXISTS (SELECT 1 FROM sandboxes WHERE current_snapshot = snapshots.id))",
        )
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database("expire snapshots"))?;
        commit(tx, "expire snapshots").await?;
        Ok(done.rows_affected())
    }

    /// Live snapshots whose stack is deeper than `depth`, and which no live
    /// run stands on.
    pub async fn deep_snapshots(&self, depth: i64, limit: i64) -> crate::Result<Vec<SnapshotRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots
             WHERE status = 'created' AND json_array_length(layers) > $1 ORDER BY id LIMIT $2"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(depth)
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database("list deep snapshots"))?
            .iter()
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
