//! Table `snapshots`.

use dormouse_types::{
    HostId, ImageId, Namespace, RunId, SandboxId, SandboxName, SnapshotId, SnapshotKind, SnapshotStatus,
    Timestamp, VolumeId,
};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::garbage::{self, GarbageKind};
use crate::runs::{self, LIVE};
use crate::sql::{Row, placeholders};

/// One snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// Where its files are.
    pub host_id: HostId,
    /// Whose it is.
    pub namespace: Namespace,
    /// What it was made of.
    pub sandbox_id: SandboxId,
    /// Name of that sandbox.
    pub sandbox_name: SandboxName,
    /// The run that it was made of.
    pub source_run: RunId,
    /// The image below it.
    pub image_id: ImageId,
    /// Who made it.
    pub kind: SnapshotKind,
    /// Whether it is there.
    pub status: SnapshotStatus,
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

/// Which snapshots of a sandbox go when a new one is recorded. What another
/// sandbox (a fork) would start from next goes as soon as none does.
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

const COLUMNS: &str = "id, host_id, owner, project, sandbox_id, sandbox_name, source_run, image_id, kind,
    status, size_bytes, boots, parent, expiration_ms, expires_at, last_used_at, created_at, updated_at";

fn read(row: &Row) -> Result<SnapshotRow> {
    let row = row.of("snapshots", "");
    Ok(SnapshotRow {
        id: row.get("id")?,
        host_id: row.get("host_id")?,
        namespace: Namespace { owner: row.get("owner")?, project: row.get("project")? },
        sandbox_id: row.get("sandbox_id")?,
        sandbox_name: row.get("sandbox_name")?,
        source_run: row.get("source_run")?,
        image_id: row.get("image_id")?,
        kind: row.get("kind")?,
        status: row.get("status")?,
        size_bytes: row.get("size_bytes")?,
        boots: row.get("boots")?,
        parent: row.get("parent")?,
        expiration_ms: row.get("expiration_ms")?,
        expires_at: row.get("expires_at")?,
        last_used_at: row.get("last_used_at")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

/// Adds a snapshot; one that a crash recorded already stays as it is.
pub(crate) async fn insert(tx: &mut Tx, snapshot: &SnapshotRow) -> Result<()> {
    let into = "id, host_id, owner, project, sandbox_id, sandbox_name, source_run, image_id, kind, status,
        size_bytes, boots, parent, expiration_ms, expires_at, retired, created_at, updated_at";
    tx.sql(
        format!("insert snapshot {}", snapshot.id),
        format!("INSERT INTO snapshots ({into}) VALUES ({}) ON CONFLICT (id) DO NOTHING", placeholders(18)),
    )
    .bind(&snapshot.id)
    .bind(&snapshot.host_id)
    .bind(&snapshot.namespace.owner)
    .bind(&snapshot.namespace.project)
    .bind(&snapshot.sandbox_id)
    .bind(&snapshot.sandbox_name)
    .bind(&snapshot.source_run)
    .bind(&snapshot.image_id)
    .bind(snapshot.kind)
    .bind(snapshot.status)
    .bind(snapshot.size_bytes)
    .bind(snapshot.boots)
    .bind(&snapshot.parent)
    .bind(snapshot.expiration_ms)
    .bind(snapshot.expires_at)
    .bind(false)
    .bind(snapshot.created_at)
    .bind(snapshot.updated_at)
    .execute()
    .await
    .map(drop)
}

/// Snapshots that a change touched: which, and whether it deleted them.
type Touched = Vec<(SnapshotId, HostId, SnapshotStatus)>;

/// What every change that may delete snapshots answers with.
pub(crate) const TOUCHED: &str = "RETURNING id, host_id, status";

pub(crate) fn touched(row: &Row) -> Result<(SnapshotId, HostId, SnapshotStatus)> {
    let row = row.of("snapshots", "");
    Ok((row.get("id")?, row.get("host_id")?, row.get("status")?))
}

/// Locks the snapshots of a sandbox that are there. A condition on what stands on
/// them must come after: Postgres looks at other tables as they were when a
/// statement began, also when it had to wait for a row.
pub(crate) async fn lock_all_of(tx: &mut Tx, sandbox: &SandboxId) -> Result<()> {
    let locking = tx.locking();
    if locking.is_empty() {
        return Ok(());
    }
    let text =
        format!("SELECT id FROM snapshots WHERE sandbox_id = $1 AND status = 'created' ORDER BY id{locking}");
    tx.sql(format!("lock the snapshots of {sandbox}"), text).bind(sandbox).fetch_all().await.map(drop)
}

/// `SET` of snapshots that go: at once, or, while a sandbox would start from
/// one next, as soon as none does.
pub(crate) const GO: &str = "status = CASE WHEN EXISTS
       (SELECT 1 FROM sandboxes WHERE current_snapshot = snapshots.id) THEN status ELSE 'deleted' END,
     retired = TRUE, expires_at = NULL, expiration_ms = NULL, updated_at = $1";

/// Applies `rule` to the snapshots of `sandbox`, of which `replaced` was the
/// current one until now.
pub(crate) async fn retire(
    tx: &mut Tx,
    rule: Retire,
    sandbox: &SandboxId,
    replaced: Option<&SnapshotId>,
    now: Timestamp,
) -> Result<()> {
    lock_all_of(tx, sandbox).await?;
    let operation = format!("retire snapshots of {sandbox}");
    // A fork's first one belongs to another sandbox.
    let of_replaced = "status = 'created' AND sandbox_id = $2 AND id = $3 AND kind = 'automatic'";
    let beyond = "status = 'created' AND sandbox_id = $2 AND id NOT IN (SELECT id FROM snapshots
         WHERE sandbox_id = $2 AND status = 'created' ORDER BY id DESC LIMIT $3)";
    let later = "expires_at = $4, updated_at = $1";
    let changed: Touched = match (rule, replaced) {
        (Retire::Replaced | Retire::ReplacedAt(_), None) => return Ok(()),
        (Retire::Replaced, Some(replaced)) => {
            let text = format!("UPDATE snapshots SET {GO} WHERE {of_replaced} {TOUCHED}");
            tx.sql(operation, text).bind(now).bind(sandbox).bind(replaced).all(touched).await?
        }
        (Retire::ReplacedAt(at), Some(replaced)) => {
            let text =
                format!("UPDATE snapshots SET {later} WHERE {of_replaced} AND expires_at IS NULL {TOUCHED}");
            tx.sql(operation, text).bind(now).bind(sandbox).bind(replaced).bind(at).all(touched).await?
        }
        (Retire::BeyondNewest(count), _) => {
            let text = format!("UPDATE snapshots SET {GO} WHERE {beyond} {TOUCHED}");
            tx.sql(operation, text).bind(now).bind(sandbox).bind(i64::from(count)).all(touched).await?
        }
        (Retire::BeyondNewestAt(count, at), _) => {
            let text = format!(
                "UPDATE snapshots SET {later} WHERE {beyond} AND (expires_at IS NULL OR expires_at > $4) {TOUCHED}"
            );
            tx.sql(operation, text)
                .bind(now)
                .bind(sandbox)
                .bind(i64::from(count))
                .bind(at)
                .all(touched)
                .await?
        }
    };
    deleted(tx, changed, now).await
}

/// Nothing of a sandbox starts from `snapshot` any more: if it was only kept for
/// that, it goes.
pub(crate) async fn let_go(tx: &mut Tx, snapshot: &SnapshotId, now: Timestamp) -> Result<()> {
    let locking = tx.locking();
    if !locking.is_empty() {
        let text = format!("SELECT id FROM snapshots WHERE id = $1{locking}");
        tx.sql(format!("lock snapshot {snapshot}"), text).bind(snapshot).fetch_all().await?;
    }
    let changed = tx
        .sql(
            format!("let go of {snapshot}"),
            format!(
                "UPDATE snapshots SET status = 'deleted', updated_at = $1
                 WHERE id = $2 AND status = 'created' AND retired
                   AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE current_snapshot = $2) {TOUCHED}"
            ),
        )
        .bind(now)
        .bind(snapshot)
        .all(touched)
        .await?;
    deleted(tx, changed, now).await
}

/// What follows from a snapshot's deletion, for those that were deleted: its
/// files go, and with them the volumes of stopped sandboxes that would start from
/// it. Those do not start any more (provider contract, section 9).
pub(crate) async fn deleted(tx: &mut Tx, changed: Touched, now: Timestamp) -> Result<()> {
    for (id, host, _) in changed.iter().filter(|(_, _, status)| *status == SnapshotStatus::Deleted) {
        garbage::add(tx, host, GarbageKind::Snapshot, id.as_str(), now).await?;
        let volumes: Vec<VolumeId> = tx
            .sql(
                format!("find what stands on {id}"),
                format!(
                    "SELECT volume_id FROM sandboxes WHERE current_snapshot = $1 AND volume_id IS NOT NULL
                       AND NOT EXISTS (SELECT 1 FROM runs WHERE sandbox_id = sandboxes.id AND {LIVE})"
                ),
            )
            .bind(id)
            .all(|row| row.of("sandboxes", "").get("volume_id"))
            .await?;
        for volume in volumes {
            garbage::add(tx, host, GarbageKind::Volume, volume.as_str(), now).await?;
            tx.sql(format!("drop {volume}"), "UPDATE sandboxes SET volume_id = NULL WHERE volume_id = $1")
                .bind(&volume)
                .execute()
                .await?;
        }
    }
    Ok(())
}

impl Db {
    /// The snapshot with this id.
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>> {
        let text = format!("SELECT {COLUMNS} FROM snapshots WHERE id = $1");
        self.sql(format!("read snapshot {id}"), text).bind(id).one(read).await
    }

    /// Snapshots of a namespace (or of the sandboxes of one name), by age.
    pub async fn snapshots_of(
        &self,
        namespace: &Namespace,
        sandbox: Option<&str>,
        ascending: bool,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<SnapshotRow>> {
        let text = format!("SELECT {COLUMNS} FROM snapshots");
        let page = (ascending, after);
        runs::by_age(self, "list snapshots", text, namespace, sandbox, page, limit).all(read).await
    }

    /// Snapshots on top of `parent` but for `except`, newest first, and how many
    /// there are.
    pub async fn snapshot_children(
        &self,
        namespace: &Namespace,
        parent: &SnapshotId,
        except: Option<&SnapshotId>,
        limit: i64,
    ) -> Result<(Vec<SnapshotRow>, i64)> {
        let operation = format!("list what is on top of {parent}");
        // Nothing has an empty id.
        let except = except.map_or(String::new(), SnapshotId::to_string);
        let condition = "parent = $1 AND owner = $2 AND project = $3 AND id <> $4";
        let count = self
            .sql(&*operation, format!("SELECT COUNT(*) FROM snapshots WHERE {condition}"))
            .bind(parent)
            .bind(&namespace.owner)
            .bind(&namespace.project)
            .bind(&except)
            .count()
            .await?;
        let text = format!("SELECT {COLUMNS} FROM snapshots WHERE {condition} ORDER BY id DESC LIMIT $5");
        let rows = self
            .sql(operation, text)
            .bind(parent)
            .bind(&namespace.owner)
            .bind(&namespace.project)
            .bind(&except)
            .bind(limit)
            .all(read)
            .await?;
        Ok((rows, count))
    }

    /// How many snapshots of a sandbox are there.
    pub async fn count_snapshots(&self, sandbox: &SandboxId) -> Result<i64> {
        self.sql(
            format!("count snapshots of {sandbox}"),
            "SELECT COUNT(*) FROM snapshots WHERE sandbox_id = $1 AND status = 'created'",
        )
        .bind(sandbox)
        .count()
        .await
    }

    /// Deletes a snapshot; the record stays.
    pub async fn delete_snapshot(&self, id: &SnapshotId, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        lock_standing_on(&mut tx, id).await?;
        let changed = tx
            .sql(
                format!("delete snapshot {id}"),
                format!(
                    "UPDATE snapshots SET status = 'deleted', updated_at = $1
                     WHERE id = $2 AND status = 'created' {TOUCHED}"
                ),
            )
            .bind(now)
            .bind(id)
            .all(touched)
            .await?;
        deleted(&mut tx, changed, now).await?;
        tx.commit("delete snapshot").await
    }

    /// Names of the sandboxes that would start from a snapshot next, at most `limit`: those
    /// that have it and no run.
    pub async fn starting_from(&self, id: &SnapshotId, limit: i64) -> Result<Vec<SandboxName>> {
        self.sql(
            format!("find what starts from snapshot {id}"),
            "SELECT s.name FROM sandboxes s JOIN runs r ON r.id = s.current_run
             WHERE s.current_snapshot = $1 AND r.stopped_at IS NOT NULL ORDER BY s.name LIMIT $2",
        )
        .bind(id)
        .bind(limit)
        .all(|row| row.of("sandboxes", "").get("name"))
        .await
    }

    /// Deletes what has expired, at most `limit`; how many that were. Where
    /// nobody asked for an expiration, what a sandbox would start from next stays
    /// until none does.
    pub async fn expire_snapshots(&self, now: Timestamp, limit: i64) -> Result<usize> {
        let due: Vec<SnapshotId> = self
            .sql(
                "find snapshots that expire",
                "SELECT id FROM snapshots WHERE status = 'created' AND expires_at <= $1
                 ORDER BY expires_at LIMIT $2",
            )
            .bind(now)
            .bind(limit)
            .all(|row| row.of("snapshots", "").get("id"))
            .await?;
        let mut expired = 0;
        for id in due {
            let mut tx = self.write().await?;
            lock_standing_on(&mut tx, &id).await?;
            let changed = tx
                .sql(
                    format!("expire snapshot {id}"),
                    format!(
                        "UPDATE snapshots SET status = CASE WHEN expiration_ms IS NULL
                           AND EXISTS (SELECT 1 FROM sandboxes WHERE current_snapshot = snapshots.id)
                           THEN status ELSE 'deleted' END,
                         expires_at = CASE WHEN expiration_ms IS NULL
                           AND EXISTS (SELECT 1 FROM sandboxes WHERE current_snapshot = snapshots.id)
                           THEN NULL ELSE expires_at END,
                         retired = TRUE, updated_at = $1
                         WHERE id = $2 AND status = 'created' AND expires_at <= $1 {TOUCHED}"
                    ),
                )
                .bind(now)
                .bind(&id)
                .all(touched)
                .await?;
            expired += changed.iter().filter(|(_, _, status)| *status == SnapshotStatus::Deleted).count();
            deleted(&mut tx, changed, now).await?;
            tx.commit("expire snapshot").await?;
        }
        Ok(expired)
    }

    /// Forgets the records of snapshots that were deleted before `before`,
    /// oldest first, at most `limit`; how many those were.
    pub async fn prune_snapshots(&self, before: Timestamp, limit: i64) -> Result<u64> {
        let pruned = self
            .change(
                "prune snapshots",
                "DELETE FROM snapshots WHERE id IN (SELECT id FROM snapshots
                   WHERE status = 'deleted' AND updated_at < $1 ORDER BY updated_at LIMIT $2)",
            )
            .bind(before)
            .bind(limit)
            .execute()
            .await?;
        Ok(pruned)
    }
}

/// Locks the sandboxes that would start from a snapshot, before it changes.
async fn lock_standing_on(tx: &mut Tx, id: &SnapshotId) -> Result<()> {
    let locking = tx.locking();
    if locking.is_empty() {
        return Ok(());
    }
    let text = format!("SELECT id FROM sandboxes WHERE current_snapshot = $1 ORDER BY id{locking}");
    tx.sql(format!("lock what stands on {id}"), text).bind(id).fetch_all().await.map(drop)
}
