//! Table `runs`.

use dormouse_types::{RunId, SandboxId, SandboxName, SnapshotId, Timestamp, VolumeId};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::db::{Db, StoreError, Tx, commit, json, typed};
use crate::garbage::{self, GarbageKind};
use crate::sandboxes::{SandboxRow, SnapshotsOfDeleted};
use crate::snapshots::{Retire, SnapshotRow};

/// One boot of a sandbox.
#[derive(Debug, Clone)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// Whose boot it is.
    pub sandbox_id: SandboxId,
    /// Namespace of that sandbox.
    pub namespace: String,
    /// Name of that sandbox.
    pub sandbox_name: SandboxName,
    /// Status word.
    pub status: String,
    /// Configuration as JSON; only the engine reads it.
    pub config: String,
    /// What it started from.
    pub source_snapshot: Option<SnapshotId>,
    /// Its files.
    pub volume_id: VolumeId,
    /// The host process, once it exists.
    pub process: Option<RunProcess>,
    /// Hard lifetime in milliseconds.
    pub timeout_ms: i64,
    /// When that ends, once it runs.
    pub expires_at: Option<Timestamp>,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// When it took commands.
    pub started_at: Option<Timestamp>,
    /// When its end was asked for.
    pub stop_requested_at: Option<Timestamp>,
    /// When it had ended.
    pub stopped_at: Option<Timestamp>,
    /// Why it ended.
    pub stop_reason: Option<String>,
    /// What becomes of its files, as JSON, decided before its processes end;
    /// only the engine reads it.
    pub ending: Option<String>,
    /// What did not go as it should and did not keep it from starting.
    pub warnings: Vec<String>,
    /// When the row last changed.
    pub updated_at: Timestamp,
}

/// A process of this host, named for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunProcess {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// Which boot of the host.
    pub boot_id: String,
    /// Network and id range.
    pub slot: u32,
}

/// The end of a run.
#[derive(Debug, Clone, Copy)]
pub struct RunEnd<'a> {
    /// Which run.
    pub run: &'a RunRow,
    /// Its last status.
    pub status: &'a str,
    /// Why it ended.
    pub reason: &'a str,
    /// The snapshot that was made of its files.
    pub snapshot: Option<&'a SnapshotRow>,
    /// Which older snapshots go.
    pub retire: Option<Retire>,
    /// What becomes of its volume.
    pub volume: Volume,
    /// The sandbox goes with it: what becomes of its snapshots.
    pub forget: Option<SnapshotsOfDeleted>,
    /// When that is.
    pub now: Timestamp,
}

/// What becomes of the volume of a run that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// The sandbox's next run continues with it.
    Kept,
    /// It goes.
    Dropped,
    /// It goes, since the sandbox's next run was told to start from a snapshot.
    RolledBack,
}

/// What is below a sandbox's volume, and how old its files are.
#[derive(Debug, Clone)]
pub struct VolumeState {
    /// The last snapshot whose files it continues.
    pub descends_from: Option<SnapshotId>,
    /// Bytes of the image, and of the snapshot that it was copied from.
    pub base_bytes: i64,
    /// Runs that its files have seen, this one included.
    pub boots: i64,
}

const COLUMNS: &str = "id, sandbox_id, namespace, sandbox_name, status, config, source_snapshot, volume_id,
    pid, pid_start, boot_id, slot, timeout_ms, expires_at, requested_at, started_at,
    stop_requested_at, stopped_at, stop_reason, ending, warnings, updated_at";

fn row(raw: &SqliteRow) -> crate::Result<RunRow> {
    let text = |column: &'static str| -> crate::Result<String> {
        raw.try_get(column).map_err(StoreError::database(format!("read runs.{column}")))
    };
    let number = |column: &'static str| -> crate::Result<Option<i64>> {
        raw.try_get(column).map_err(StoreError::database(format!("read runs.{column}")))
    };
    let optional = |column: &'static str| -> crate::Result<Option<String>> {
        raw.try_get(column).map_err(StoreError::database(format!("read runs.{column}")))
    };
    let corrupt = |column| StoreError::Corrupt { table: "runs", column };
    let process = match (number("pid")?, number("pid_start")?, optional("boot_id")?, number("slot")?) {
        (Some(pid), Some(start), Some(boot_id), Some(slot)) => Some(RunProcess {
            pid: pid.try_into().map_err(|_| corrupt("pid"))?,
            start_time: start.try_into().map_err(|_| corrupt("pid_start"))?,
            boot_id,
            slot: slot.try_into().map_err(|_| corrupt("slot"))?,
        }),
        _ => None,
    };
    Ok(RunRow {
        id: typed(&text("id")?, "runs", "id")?,
        sandbox_id: typed(&text("sandbox_id")?, "runs", "sandbox_id")?,
        namespace: text("namespace")?,
        sandbox_name: typed(&text("sandbox_name")?, "runs", "sandbox_name")?,
        status: text("status")?,
        config: text("config")?,
        source_snapshot: optional("source_snapshot")?
            .map(|id| typed(&id, "runs", "source_snapshot"))
            .transpose()?,
        volume_id: typed(&text("volume_id")?, "runs", "volume_id")?,
        process,
        timeout_ms: number("timeout_ms")?.unwrap_or(0),
        expires_at: number("expires_at")?.map(Timestamp),
        requested_at: Timestamp(number("requested_at")?.unwrap_or(0)),
        started_at: number("started_at")?.map(Timestamp),
        stop_requested_at: number("stop_requested_at")?.map(Timestamp),
        stopped_at: number("stopped_at")?.map(Timestamp),
        stop_reason: optional("stop_reason")?,
        ending: optional("ending")?,
        warnings: json(&text("warnings")?, "runs", "warnings")?,
        updated_at: Timestamp(number("updated_at")?.unwrap_or(0)),
    })
}

pub(crate) async fn insert(tx: &mut Tx<'_>, run: &RunRow) -> crate::Result<()> {
    sqlx::query(
        "INSERT INTO runs (id, sandbox_id, namespace, sandbox_name, status, config,
         source_snapshot, volume_id, timeout_ms, requested_at, updated_at)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)",
    )
    .bind(run.id.as_str())
    .bind(run.sandbox_id.as_str())
    .bind(&run.namespace)
    .bind(run.sandbox_name.as_str())
    .bind(&run.status)
    .bind(&run.config)
    .bind(run.source_snapshot.as_ref().map(SnapshotId::as_str))
    .bind(run.volume_id.as_str())
    .bind(run.timeout_ms)
    .bind(run.requested_at.0)
    .bind(run.updated_at.0)
    .execute(&mut **tx)
    .await
    .map_err(StoreError::unique("insert run", format!("a live run of {}", run.sandbox_name)))?;
    if let Some(snapshot) = &run.source_snapshot {
        // Use puts its expiration off.
        sqlx::query(
            "UPDATE snapshots SET last_used_at = $1,
             expires_at = CASE WHEN expiration_ms IS NULL THEN expires_at ELSE $1 + expiration_ms END
             WHERE id = $2",
        )
        .bind(run.requested_at.0)
        .bind(snapshot.as_str())
        .execute(&mut **tx)
        .await
        .map_err(StoreError::database(format!("note use of {snapshot}")))?;
    }
    status_changed(tx, &run.id, run.requested_at).await
}

/// The status of the sandbox's newest run is another from now on.
async fn status_changed(tx: &mut Tx<'_>, run: &RunId, now: Timestamp) -> crate::Result<()> {
    sqlx::query(
        "UPDATE sandboxes SET status_updated_at = $1
         WHERE id = (SELECT sandbox_id FROM runs WHERE id = $2)",
    )
    .bind(now.0)
    .bind(run.as_str())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(StoreError::database(format!("move the status of the sandbox of {run}")))
}

/// The sandbox has this volume no more, and the volume's files go.
pub(crate) async fn drop_volume(
    tx: &mut Tx<'_>,
    sandbox: &SandboxId,
    volume: &VolumeId,
    now: Timestamp,
) -> crate::Result<()> {
    garbage::add(tx, GarbageKind::Volume, volume.as_str(), now).await?;
    sqlx::query("UPDATE sandboxes SET volume_id = NULL WHERE id = $1 AND volume_id = $2")
        .bind(sandbox.as_str())
        .bind(volume.as_str())
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(StoreError::database(format!("drop {volume}")))
}

impl Db {
    /// Adds a run to an existing sandbox, whose volume is the run's from now on.
    /// `false`, and nothing done, where the files of the sandbox are not those of
    /// `was` any more: the snapshot that it stood on went.
    pub async fn insert_run(
        &self,
        run: &RunRow,
        volume: &VolumeState,
        was: &SandboxRow,
    ) -> crate::Result<bool> {
        let mut tx = self.write().await?;
        insert(&mut tx, run).await?;
        let given = sqlx::query(
            "UPDATE sandboxes SET volume_id = $1, descends_from = $2, base_bytes = $3, boots = $4
             WHERE id = $5 AND volume_id IS $6 AND current_snapshot IS $7",
        )
        .bind(run.volume_id.as_str())
        .bind(volume.descends_from.as_ref().map(SnapshotId::as_str))
        .bind(volume.base_bytes)
        .bind(volume.boots)
        .bind(run.sandbox_id.as_str())
        .bind(was.volume_id.as_ref().map(VolumeId::as_str))
        .bind(was.current_snapshot.as_ref().map(SnapshotId::as_str))
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("give {} to its sandbox", run.volume_id)))?;
        if given.rows_affected() == 0 {
            return Ok(false);
        }
        commit(tx, "insert run").await.map(|()| true)
    }

    /// The run with this id.
    pub async fn run(&self, id: &RunId) -> crate::Result<Option<RunRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM runs WHERE id = $1")))
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read run {id}")))?
            .as_ref()
            .map(row)
            .transpose()
    }

    /// The newest run of a sandbox.
    pub async fn newest_run(&self, sandbox: &SandboxId) -> crate::Result<Option<RunRow>> {
        // The live one is the newest also where the host's clock was set back.
        let sql = format!(
            "SELECT {COLUMNS} FROM runs WHERE id = COALESCE(
               (SELECT id FROM runs WHERE sandbox_id = $1
                AND status IN ('pending', 'running', 'stopping', 'snapshotting')),
               (SELECT id FROM runs WHERE sandbox_id = $1 ORDER BY requested_at DESC, id DESC LIMIT 1))"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(sandbox.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read newest run of {sandbox}")))?
            .as_ref()
            .map(row)
            .transpose()
    }

    /// Runs that have not ended.
    pub async fn live_runs(&self) -> crate::Result<Vec<RunRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM runs
             WHERE status IN ('pending', 'running', 'stopping', 'snapshotting') ORDER BY id"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database("list live runs"))?
            .iter()
            .map(row)
            .collect()
    }

    /// Runs of a namespace (or of the sandboxes of one name in it), by age.
    pub async fn runs_of(
        &self,
        namespace: &str,
        sandbox: Option<&str>,
        ascending: bool,
        after: Option<&str>,
        limit: i64,
    ) -> crate::Result<Vec<RunRow>> {
        let (compare, direction) = if ascending { (">", "ASC") } else { ("<", "DESC") };
        let sql = format!(
            "SELECT {COLUMNS} FROM runs WHERE namespace = $1 AND ($2 IS NULL OR sandbox_name = $2)
             AND ($3 IS NULL OR id {compare} $3) ORDER BY id {direction} LIMIT $4"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(namespace)
            .bind(sandbox)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database("list runs"))?
            .iter()
            .map(row)
            .collect()
    }

    /// How many runs a sandbox had so far.
    pub async fn count_runs(&self, sandbox: &SandboxId) -> crate::Result<i64> {
        let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM runs WHERE sandbox_id = $1")
            .bind(sandbox.as_str())
            .fetch_one(&self.readers)
            .await
            .map_err(StoreError::database(format!("count runs of {sandbox}")))?;
        Ok(count)
    }

    /// The run takes commands from now on, with the configuration and the
    /// warnings that `run` has.
    pub async fn run_started(
        &self,
        run: &RunRow,
        process: &RunProcess,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE runs SET status = 'running', pid = $1, pid_start = $2, boot_id = $3, slot = $4,
             started_at = $5, expires_at = $6, config = $7, warnings = $8, updated_at = $5
             WHERE id = $9 AND status = 'pending'",
        )
        .bind(process.pid)
        .bind(i64::try_from(process.start_time).unwrap_or(i64::MAX))
        .bind(&process.boot_id)
        .bind(process.slot)
        .bind(now.0)
        .bind(expires_at.0)
        .bind(&run.config)
        .bind(serde_json::to_string(&run.warnings).unwrap_or_default())
        .bind(run.id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("start run {}", run.id)))?;
        status_changed(&mut tx, &run.id, now).await?;
        commit(tx, "start run").await
    }

    /// The run is on its way out. `ending` says what becomes of its files,
    /// for whoever has to finish this after a crash; the first one counts.
    pub async fn run_stopping(&self, id: &RunId, ending: &str, now: Timestamp) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE runs SET status = 'stopping', stop_requested_at = $1, updated_at = $1, ending = $2
             WHERE id = $3 AND status IN ('pending', 'running')",
        )
        .bind(now.0)
        .bind(ending)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("stop run {id}")))?;
        status_changed(&mut tx, id, now).await?;
        commit(tx, "stop run").await
    }

    /// Replaces the configuration of a live run.
    pub async fn configure_run(&self, id: &RunId, config: &str, now: Timestamp) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("UPDATE runs SET config = $1, updated_at = $2 WHERE id = $3 AND status = 'running'")
            .bind(config)
            .bind(now.0)
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database(format!("configure run {id}")))?;
        commit(tx, "configure run").await
    }

    /// Moves the hard end of a live run.
    pub async fn extend_run(
        &self,
        id: &RunId,
        timeout_ms: i64,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE runs SET timeout_ms = $1, expires_at = $2, updated_at = $3
             WHERE id = $4 AND status = 'running'",
        )
        .bind(timeout_ms)
        .bind(expires_at.0)
        .bind(now.0)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("extend run {id}")))?;
        commit(tx, "extend run").await
    }

    /// The run never came up. A volume that was `made` for it goes; one that
    /// was there before is as it was.
    pub async fn run_failed(
        &self,
        run: &RunRow,
        made: bool,
        reason: &str,
        now: Timestamp,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        if made {
            drop_volume(&mut tx, &run.sandbox_id, &run.volume_id, now).await?;
        }
        ended(&mut tx, &run.id, "failed", reason, now).await?;
        commit(tx, "end run").await
    }

    /// Whether another run of the same sandbox had the volume of `run` before.
    pub async fn volume_had_runs(&self, run: &RunRow) -> crate::Result<bool> {
        let found: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM runs WHERE sandbox_id = $1 AND volume_id = $2 AND id <> $3 LIMIT 1",
        )
        .bind(run.sandbox_id.as_str())
        .bind(run.volume_id.as_str())
        .bind(run.id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("look for other runs of {}", run.volume_id)))?;
        Ok(found.is_some())
    }
}

/// Ends a live run inside a larger change.
pub(crate) async fn ended(
    tx: &mut Tx<'_>,
    id: &RunId,
    status: &str,
    reason: &str,
    now: Timestamp,
) -> crate::Result<()> {
    sqlx::query(
        "UPDATE runs SET status = $1, stop_reason = $2, stopped_at = $3, updated_at = $3
         WHERE id = $4 AND status IN ('pending', 'running', 'stopping', 'snapshotting')",
    )
    .bind(status)
    .bind(reason)
    .bind(now.0)
    .bind(id.as_str())
    .execute(&mut **tx)
    .await
    .map_err(StoreError::database(format!("end run {id}")))?;
    status_changed(tx, id, now).await
}
