//! Table `snapshots`.

use dormouse_types::{ImageId, RunId, SandboxId, SandboxName, SnapshotId, Timestamp};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::db::{Db, StoreError, Tx, commit, typed};
use crate::garbage::{self, GarbageKind};
use crate::sandboxes;
use crate::{RunEnd, runs};

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
    /// The image below it.
    pub image_id: ImageId,
    /// `manual` or `automatic`.
    pub kind: String,
    /// `created` or `deleted`.
    pub status: String,
    /// Bytes, those of the image included.
    pub size_bytes: i64,
    /// Runs that its files have seen.
    pub boots: i64,
    /// What it was made on top of.
    pub parent: Option<SnapshotId>,
    /// Milliseconds that it stays after its last use; `None`: until it is
    /// deleted.
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
    /// The automatic one that was current until now.
    Replaced,
    /// None; an automatic one that was current until now and has no end goes
    /// at this time.
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

const COLUMNS: &str = "id, namespace, sandbox_id, sandbox_name, source_run, image_id, kind, status,
    size_bytes, boots, parent, expiration_ms, expires_at, last_used_at, created_at, updated_at";

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
        size_bytes: column(raw, "size_bytes")?,
        boots: column(raw, "boots")?,
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

/// Adds a snapshot; one that a crash recorded already stays as it is.
async fn insert(tx: &mut Tx<'_>, snapshot: &SnapshotRow) -> crate::Result<()> {
    sqlx::query(
        "INSERT INTO snapshots (id, namespace, sandbox_id, sandbox_name, source_run, image_id, kind,
         status, size_bytes, boots, parent, expiration_ms, expires_at, created_at, updated_at)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15) ON CONFLICT (id) DO NOTHING",
    )
    .bind(snapshot.id.as_str())
    .bind(&snapshot.namespace)
    .bind(snapshot.sandbox_id.as_str())
    .bind(snapshot.sandbox_name.as_str())
    .bind(snapshot.source_run.as_str())
    .bind(snapshot.image_id.as_str())
    .bind(&snapshot.kind)
    .bind(&snapshot.status)
    .bind(snapshot.size_bytes)
    .bind(snapshot.boots)
    .bind(snapshot.parent.as_ref().map(SnapshotId::as_str))
    .bind(snapshot.expiration_ms)
    .bind(snapshot.expires_at.map(|at| at.0))
    .bind(snapshot.created_at.0)
    .bind(snapshot.updated_at.0)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(StoreError::database(format!("insert snapshot {}", snapshot.id)))
}

/// Makes `snapshot` what the sandbox's next copies start from; returns what
/// that was before. `None`: its volume alone tells its files.
async fn make_current(
    tx: &mut Tx<'_>,
    sandbox: &SandboxId,
    snapshot: Option<&SnapshotId>,
    now: Timestamp,
) -> crate::Result<Option<SnapshotId>> {
    let failed = || StoreError::database(format!("move the current snapshot of {sandbox}"));
    let before: Option<(Option<String>,)> =
        sqlx::query_as("SELECT current_snapshot FROM sandboxes WHERE id = $1")
            .bind(sandbox.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed())?;
    sqlx::query(
        "UPDATE sandboxes SET current_snapshot = $1, descends_from = COALESCE($1, descends_from),
         updated_at = $2 WHERE id = $3",
    )
    .bind(snapshot.map(SnapshotId::as_str))
    .bind(now.0)
    .bind(sandbox.as_str())
    .execute(&mut **tx)
    .await
    .map_err(failed())?;
    // Said again after a crash, it replaces nothing.
    let before = before.and_then(|(id,)| id).filter(|id| snapshot.is_none_or(|new| new.as_str() != id));
    before.map(|id| typed(&id, "sandboxes", "current_snapshot")).transpose()
}

/// Applies `rule` to the snapshots of `sandbox`, of which `replaced` was the
/// current one until now.
async fn retire(
    tx: &mut Tx<'_>,
    rule: Retire,
    sandbox: &SandboxId,
    replaced: Option<&SnapshotId>,
    now: Timestamp,
) -> crate::Result<()> {
    // $1 now, $2 the one replaced, $3 sandbox, $4 count, $5 time.
    let beyond = "sandbox_id = $3 AND id NOT IN (SELECT id FROM snapshots
         WHERE sandbox_id = $3 AND status = 'created' ORDER BY id DESC LIMIT $4)";
    // A fork's first one belongs to another sandbox.
    let of_replaced = "id = $2 AND sandbox_id = $3 AND kind = 'automatic' AND $4 = $4";
    let (change, which, count, at) = match rule {
        Retire::Replaced => (GOES, of_replaced.to_owned(), 0, now),
        Retire::ReplacedAt(at) => ("expires_at = $5", format!("{of_replaced} AND expires_at IS NULL"), 0, at),
        Retire::BeyondNewest(count) => (GOES, beyond.to_owned(), count, now),
        Retire::BeyondNewestAt(count, at) => {
            ("expires_at = $5", format!("{beyond} AND (expires_at IS NULL OR expires_at > $5)"), count, at)
        }
    };
    let sql = format!(
        "UPDATE snapshots SET {change}, updated_at = $1
         WHERE status = 'created' AND ($2 IS NULL OR $2 = $2) AND $5 = $5 AND {which} RETURNING id, status"
    );
    let changed: Vec<(String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(now.0)
        .bind(replaced.map(SnapshotId::as_str))
        .bind(sandbox.as_str())
        .bind(i64::from(count))
        .bind(at.0)
        .fetch_all(&mut **tx)
        .await
        .map_err(StoreError::database(format!("retire snapshots of {sandbox}")))?;
    deleted(tx, changed, now).await
}

/// What follows from a snapshot's deletion, for those of `changed` (id and
/// status) that were deleted: its files go, and with them the volumes of
/// stopped sandboxes that would start from it. Those do not start any more
/// (provider contract, section 9).
pub(crate) async fn deleted(
    tx: &mut Tx<'_>,
    changed: Vec<(String, String)>,
    now: Timestamp,
) -> crate::Result<()> {
    for (id, _) in changed.iter().filter(|(_, status)| status == "deleted") {
        garbage::add(tx, GarbageKind::Snapshot, id, now).await?;
        let failed = || StoreError::database(format!("drop what stood on {id}"));
        let stopped = "current_snapshot = $1 AND volume_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM runs
             WHERE sandbox_id = sandboxes.id AND status IN ('pending', 'running', 'stopping', 'snapshotting'))";
        let sql = format!("SELECT volume_id FROM sandboxes WHERE {stopped}");
        let volumes: Vec<(String,)> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_all(&mut **tx).await.map_err(failed())?;
        for (volume,) in volumes {
            garbage::add(tx, GarbageKind::Volume, &volume, now).await?;
            sqlx::query("UPDATE sandboxes SET volume_id = NULL WHERE volume_id = $1")
                .bind(volume)
                .execute(&mut **tx)
                .await
                .map_err(failed())?;
        }
    }
    Ok(())
}

impl Db {
    /// The end of a run, in one transaction: its status and reason, the
    /// snapshot that was made, the sandbox's volume and current snapshot, and
    /// what retires. Doing it again after a crash changes nothing more.
    pub async fn record_end(&self, end: &RunEnd<'_>) -> crate::Result<()> {
        let RunEnd { run, status, reason, snapshot, retire: rule, volume, forget, now } = end;
        let mut tx = self.write().await?;
        if let Some(snapshot) = snapshot {
            insert(&mut tx, snapshot).await?;
        }
        let made = snapshot.map(|snapshot| &snapshot.id);
        let replaced = match volume {
            runs::Volume::Kept => Some(make_current(&mut tx, &run.sandbox_id, made, *now).await?),
            runs::Volume::Dropped => {
                runs::drop_volume(&mut tx, &run.sandbox_id, &run.volume_id, *now).await?;
                match made {
                    Some(made) => Some(make_current(&mut tx, &run.sandbox_id, Some(made), *now).await?),
                    None => None,
                }
            }
            // The sandbox was rolled back while the run lived: it has moved on.
            runs::Volume::RolledBack => {
                runs::drop_volume(&mut tx, &run.sandbox_id, &run.volume_id, *now).await?;
                None
            }
        };
        if let Some(rule) = rule {
            let replaced = replaced.flatten();
            retire(&mut tx, *rule, &run.sandbox_id, replaced.as_ref(), *now).await?;
        }
        runs::ended(&mut tx, &run.id, status, reason, *now).await?;
        if let Some(snapshots) = forget {
            sandboxes::forget(&mut tx, &run.sandbox_id, *snapshots, *now).await?;
        }
        commit(tx, "record the end of a run").await
    }

    /// A snapshot of a run that goes on: it becomes the sandbox's current one,
    /// unless the sandbox was rolled back meanwhile and has moved on.
    pub async fn record_snapshot(&self, snapshot: &SnapshotRow, rule: Retire) -> crate::Result<()> {
        let now = snapshot.updated_at;
        let mut tx = self.write().await?;
        insert(&mut tx, snapshot).await?;
        let own: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM sandboxes JOIN runs ON runs.volume_id = sandboxes.volume_id
             WHERE sandboxes.id = $1 AND runs.id = $2",
        )
        .bind(snapshot.sandbox_id.as_str())
        .bind(snapshot.source_run.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::database(format!("read the volume of {}", snapshot.sandbox_id)))?;
        let replaced = match own {
            Some(_) => make_current(&mut tx, &snapshot.sandbox_id, Some(&snapshot.id), now).await?,
            None => None,
        };
        retire(&mut tx, rule, &snapshot.sandbox_id, replaced.as_ref(), now).await?;
        commit(tx, "record snapshot").await
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

    /// How many snapshots of a sandbox are there.
    pub async fn count_snapshots(&self, sandbox: &SandboxId) -> crate::Result<i64> {
        let (count,): (i64,) =
            sqlx::query_as("SELECT COUNT(*) FROM snapshots WHERE sandbox_id = $1 AND status = 'created'")
                .bind(sandbox.as_str())
                .fetch_one(&self.readers)
                .await
                .map_err(StoreError::database(format!("count snapshots of {sandbox}")))?;
        Ok(count)
    }

    /// Deletes a snapshot; the record stays.
    pub async fn delete_snapshot(&self, id: &SnapshotId, now: Timestamp) -> crate::Result<()> {
        let mut tx = self.write().await?;
        let changed = sqlx::query_as(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1
             WHERE id = $2 AND status = 'created' RETURNING id, status",
        )
        .bind(now.0)
        .bind(id.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(StoreError::database(format!("delete snapshot {id}")))?;
        deleted(&mut tx, changed, now).await?;
        commit(tx, "delete snapshot").await
    }

    /// Deletes what has expired; how many that were. Where nobody asked for an
    /// expiration, what a sandbox would start from next stays.
    pub async fn expire_snapshots(&self, now: Timestamp) -> crate::Result<usize> {
        let mut tx = self.write().await?;
        let changed: Vec<(String, String)> = sqlx::query_as(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1
             WHERE status = 'created' AND expires_at IS NOT NULL AND expires_at <= $1
               AND (expiration_ms IS NOT NULL
                 OR NOT EXISTS (SELECT 1 FROM sandboxes WHERE current_snapshot = snapshots.id))
             RETURNING id, status",
        )
        .bind(now.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(StoreError::database("expire snapshots"))?;
        let count = changed.len();
        deleted(&mut tx, changed, now).await?;
        commit(tx, "expire snapshots").await?;
        Ok(count)
    }
}
