//! Table `runs`.

use dormouse_types::{LayerId, RunId, SandboxId, SandboxName, SnapshotId, Timestamp};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::db::{Db, StoreError, Tx, commit, json, typed};

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
    /// Layers that it stands on, bottom first.
    pub layers: Vec<LayerId>,
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

const COLUMNS: &str = "id, sandbox_id, namespace, sandbox_name, status, config, source_snapshot, layers,
    pid, pid_start, boot_id, slot, timeout_ms, expires_at, requested_at, started_at,
    stop_requested_at, stopped_at, stop_reason, updated_at";

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
        layers: json(&text("layers")?, "runs", "layers")?,
        process,
        timeout_ms: number("timeout_ms")?.unwrap_or(0),
        expires_at: number("expires_at")?.map(Timestamp),
        requested_at: Timestamp(number("requested_at")?.unwrap_or(0)),
        started_at: number("started_at")?.map(Timestamp),
        stop_requested_at: number("stop_requested_at")?.map(Timestamp),
        stopped_at: number("stopped_at")?.map(Timestamp),
        stop_reason: optional("stop_reason")?,
        updated_at: Timestamp(number("updated_at")?.unwrap_or(0)),
    })
}

pub(crate) async fn insert(tx: &mut Tx<'_>, run: &RunRow) -> crate::Result<()> {
    sqlx::query(
        "INSERT INTO runs (id, sandbox_id, namespace, sandbox_name, status, config,
         source_snapshot, layers, timeout_ms, requested_at, updated_at)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)",
    )
    .bind(run.id.as_str())
    .bind(run.sandbox_id.as_str())
    .bind(&run.namespace)
    .bind(run.sandbox_name.as_str())
    .bind(&run.status)
    .bind(&run.config)
    .bind(run.source_snapshot.as_ref().map(SnapshotId::as_str))
    .bind(serde_json::to_string(&run.layers).unwrap_or_default())
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

impl Db {
    /// Adds a run to an existing sandbox.
    pub async fn insert_run(&self, run: &RunRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        insert(&mut tx, run).await?;
        commit(tx, "insert run").await
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
        let sql = format!(
            "SELECT {COLUMNS} FROM runs WHERE sandbox_id = $1 ORDER BY requested_at DESC, id DESC LIMIT 1"
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

    /// The run takes commands from now on.
    pub async fn run_started(
        &self,
        id: &RunId,
        process: &RunProcess,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE runs SET status = 'running', pid = $1, pid_start = $2, boot_id = $3, slot = $4,
             started_at = $5, expires_at = $6, updated_at = $5 WHERE id = $7 AND status = 'pending'",
        )
        .bind(process.pid)
        .bind(i64::try_from(process.start_time).unwrap_or(i64::MAX))
        .bind(&process.boot_id)
        .bind(process.slot)
        .bind(now.0)
        .bind(expires_at.0)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("start run {id}")))?;
        status_changed(&mut tx, id, now).await?;
        commit(tx, "start run").await
    }

    /// The run is on its way out.
    pub async fn run_stopping(&self, id: &RunId, now: Timestamp) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE runs SET status = 'stopping', stop_requested_at = $1, updated_at = $1
             WHERE id = $2 AND status IN ('pending', 'running')",
        )
        .bind(now.0)
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

    /// The run has ended, with nothing kept.
    pub async fn run_ended(
        &self,
        id: &RunId,
        status: &str,
        reason: &str,
        now: Timestamp,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        ended(&mut tx, id, status, reason, now).await?;
        commit(tx, "end run").await
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
