//! Table `runs`.

use dormouse_types::{
    HostId, Namespace, Resources, RunId, RunStatus, SandboxId, SandboxName, SnapshotId, StopReason,
    Timestamp, VolumeId,
};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::sql::{Row, placeholders};

/// One boot of a sandbox.
#[derive(Debug, Clone)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// Whose boot it is.
    pub sandbox_id: SandboxId,
    /// Where it runs, or ran, and where its files are.
    pub host_id: HostId,
    /// Namespace of that sandbox.
    pub namespace: Namespace,
    /// Name of that sandbox.
    pub sandbox_name: SandboxName,
    /// State.
    pub status: RunStatus,
    /// 1 for the sandbox's first run.
    pub number: i64,
    /// What it may use.
    pub resources: Resources,
    /// Default working directory.
    pub cwd: String,
    /// Runtime that its sandbox was asked for by, else its image.
    pub runtime: String,
    /// Policy in force, as JSON, without the values of headers.
    pub network: String,
    /// What it started from.
    pub source_snapshot: Option<SnapshotId>,
    /// Its files.
    pub volume_id: VolumeId,
    /// The volume was made for this run.
    pub made_volume: bool,
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
    pub stop_reason: Option<StopReason>,
    /// How it is to end, as JSON, decided before its processes do.
    pub ending: Option<String>,
    /// What did not go as it should and did not keep it from starting.
    pub warnings: Vec<String>,
    /// Bytes that left the sandbox, once the run has ended.
    pub sent_bytes: i64,
    /// Bytes that came.
    pub received_bytes: i64,
    /// When the row last changed.
    pub updated_at: Timestamp,
}

/// A process of a host, named for good.
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

/// What is below a sandbox's volume, and how old its files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeState {
    /// The last snapshot whose files it continues.
    pub descends_from: Option<SnapshotId>,
    /// Bytes of the image, and of the snapshot that it was copied from.
    pub base_bytes: i64,
    /// Runs that its files have seen, this one included.
    pub boots: i64,
}

/// Runs that have not ended, as a condition.
pub(crate) const LIVE: &str = "status IN ('pending', 'running', 'stopping', 'snapshotting')";

pub(crate) const COLUMNS: &[&str] = &[
    "id",
    "sandbox_id",
    "host_id",
    "owner",
    "project",
    "sandbox_name",
    "status",
    "number",
    "vcpus",
    "memory_mib",
    "pids",
    "disk_mib",
    "cwd",
    "runtime",
    "network",
    "source_snapshot",
    "volume_id",
    "made_volume",
    "pid",
    "pid_start",
    "boot_id",
    "slot",
    "timeout_ms",
    "expires_at",
    "requested_at",
    "started_at",
    "stop_requested_at",
    "stopped_at",
    "stop_reason",
    "ending",
    "warnings",
    "sent_bytes",
    "received_bytes",
    "updated_at",
];

fn columns() -> String {
    COLUMNS.join(", ")
}

/// The run in a row whose columns of this table have `prefix`.
pub(crate) fn read(row: &Row, prefix: &'static str) -> Result<RunRow> {
    let row = row.of("runs", prefix);
    let process = match (row.optional_number("pid")?, row.optional_number("slot")?) {
        (Some(pid), Some(slot)) => {
            Some(RunProcess { pid, start_time: row.number("pid_start")?, boot_id: row.get("boot_id")?, slot })
        }
        _ => None,
    };
    Ok(RunRow {
        id: row.get("id")?,
        sandbox_id: row.get("sandbox_id")?,
        host_id: row.get("host_id")?,
        namespace: Namespace { owner: row.get("owner")?, project: row.get("project")? },
        sandbox_name: row.get("sandbox_name")?,
        status: row.get("status")?,
        number: row.get("number")?,
        resources: Resources {
            vcpus: row.number("vcpus")?,
            memory_mib: row.number("memory_mib")?,
            pids: row.number("pids")?,
            disk_mib: row.optional_number("disk_mib")?,
        },
        cwd: row.get("cwd")?,
        runtime: row.get("runtime")?,
        network: row.get("network")?,
        source_snapshot: row.get("source_snapshot")?,
        volume_id: row.get("volume_id")?,
        made_volume: row.get("made_volume")?,
        process,
        timeout_ms: row.get("timeout_ms")?,
        expires_at: row.get("expires_at")?,
        requested_at: row.get("requested_at")?,
        started_at: row.get("started_at")?,
        stop_requested_at: row.get("stop_requested_at")?,
        stopped_at: row.get("stopped_at")?,
        stop_reason: row.get("stop_reason")?,
        ending: row.get("ending")?,
        warnings: row.json("warnings")?,
        sent_bytes: row.get("sent_bytes")?,
        received_bytes: row.get("received_bytes")?,
        updated_at: row.get("updated_at")?,
    })
}

/// A number of ours in a column; none comes near the end of `i64`.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Text of warnings: strings, whose JSON cannot fail.
fn warnings(run: &RunRow) -> String {
    serde_json::to_string(&run.warnings).unwrap_or_default()
}

/// Adds a pending run.
pub(crate) async fn insert(tx: &mut Tx, run: &RunRow) -> Result<()> {
    let into = "id, sandbox_id, host_id, owner, project, sandbox_name, status, number, vcpus, memory_mib,
        pids, disk_mib, cwd, runtime, network, source_snapshot, volume_id, made_volume, timeout_ms,
        requested_at, warnings, updated_at";
    tx.sql(
        format!("insert run {}", run.id),
        format!("INSERT INTO runs ({into}) VALUES ({})", placeholders(22)),
    )
    .bind(&run.id)
    .bind(&run.sandbox_id)
    .bind(&run.host_id)
    .bind(&run.namespace.owner)
    .bind(&run.namespace.project)
    .bind(&run.sandbox_name)
    .bind(run.status)
    .bind(run.number)
    .bind(i64::from(run.resources.vcpus))
    .bind(number(run.resources.memory_mib))
    .bind(number(run.resources.pids))
    .bind(run.resources.disk_mib.map(number))
    .bind(&run.cwd)
    .bind(&run.runtime)
    .bind(&run.network)
    .bind(&run.source_snapshot)
    .bind(&run.volume_id)
    .bind(run.made_volume)
    .bind(run.timeout_ms)
    .bind(run.requested_at)
    .bind(warnings(run))
    .bind(run.updated_at)
    .execute()
    .await
    .map_err(|error| error.unique(format!("a live run of {}", run.sandbox_name)))?;
    let Some(snapshot) = &run.source_snapshot else { return Ok(()) };
    // Use puts its expiration off.
    tx.sql(
        format!("note use of {snapshot}"),
        "UPDATE snapshots SET last_used_at = $1,
         expires_at = CASE WHEN expiration_ms IS NULL THEN expires_at ELSE $1 + expiration_ms END
         WHERE id = $2",
    )
    .bind(run.requested_at)
    .bind(snapshot)
    .execute()
    .await
    .map(drop)
}

/// The status of a run is another from now on, and its sandbox's with it.
async fn status_changed(tx: &mut Tx, run: &RunRow, now: Timestamp) -> Result<()> {
    tx.sql(
        format!("move the status of {}", run.sandbox_id),
        "UPDATE sandboxes SET status_updated_at = $1 WHERE id = $2 AND current_run = $3",
    )
    .bind(now)
    .bind(&run.sandbox_id)
    .bind(&run.id)
    .execute()
    .await
    .map(drop)
}

impl Db {
    /// The run with this id.
    pub async fn run(&self, id: &RunId) -> Result<Option<RunRow>> {
        self.sql(format!("read run {id}"), format!("SELECT {} FROM runs WHERE id = $1", columns()))
            .bind(id)
            .one(|row| read(row, ""))
            .await
    }

    /// Runs of a host that have not ended.
    pub async fn live_runs(&self, host: &HostId) -> Result<Vec<RunRow>> {
        let text = format!("SELECT {} FROM runs WHERE host_id = $1 AND {LIVE} ORDER BY id", columns());
        self.sql("list live runs", text).bind(host).all(|row| read(row, "")).await
    }

    /// Runs of a namespace (or of the sandboxes of one name in it), by age.
    pub async fn runs_of(
        &self,
        namespace: &Namespace,
        sandbox: Option<&str>,
        ascending: bool,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<RunRow>> {
        let text = format!("SELECT {} FROM runs", columns());
        let query = by_age(self, "list runs", text, namespace, sandbox, (ascending, after), limit);
        query.all(|row| read(row, "")).await
    }

    /// The run takes commands from now on, as `run` says.
    pub async fn run_started(&self, run: &RunRow, process: &RunProcess) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("start run {}", run.id),
            "UPDATE runs SET status = $1, pid = $2, pid_start = $3, boot_id = $4, slot = $5,
             started_at = $6, expires_at = $7, cwd = $8, warnings = $9, updated_at = $10
             WHERE id = $11 AND status = 'pending'",
        )
        .bind(RunStatus::Running)
        .bind(i64::from(process.pid))
        .bind(number(process.start_time))
        .bind(&process.boot_id)
        .bind(i64::from(process.slot))
        .bind(run.started_at)
        .bind(run.expires_at)
        .bind(&run.cwd)
        .bind(warnings(run))
        .bind(run.updated_at)
        .bind(&run.id)
        .execute()
        .await?;
        status_changed(&mut tx, run, run.updated_at).await?;
        tx.commit("start run").await
    }

    /// So many bytes were sent and received by each run so far.
    pub async fn runs_transferred(&self, runs: &[(RunId, (i64, i64))]) -> Result<()> {
        let mut tx = self.write().await?;
        for (run, (sent, received)) in runs {
            let text =
                format!("UPDATE runs SET sent_bytes = $1, received_bytes = $2 WHERE id = $3 AND {LIVE}");
            tx.sql(format!("count bytes of {run}"), text)
                .bind(*sent)
                .bind(*received)
                .bind(run)
                .execute()
                .await?;
        }
        tx.commit("count bytes of runs").await
    }

    /// The run is on its way out. `ending` says how, for whoever has to finish
    /// this after a crash; the first one counts.
    pub async fn run_stopping(&self, run: &RunRow, ending: &str, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("stop run {}", run.id),
            "UPDATE runs SET status = $1, stop_requested_at = $2, updated_at = $2, ending = $3
             WHERE id = $4 AND status IN ('pending', 'running')",
        )
        .bind(RunStatus::Stopping)
        .bind(now)
        .bind(ending)
        .bind(&run.id)
        .execute()
        .await?;
        status_changed(&mut tx, run, now).await?;
        tx.commit("stop run").await
    }

    /// Notes what there is to say of a run that is stopping.
    pub async fn note_warnings(&self, id: &RunId, why: &[String], now: Timestamp) -> Result<()> {
        self.change(
            format!("note what there is to say of {id}"),
            "UPDATE runs SET warnings = $1, updated_at = $2 WHERE id = $3 AND status = 'stopping'",
        )
        .bind(serde_json::to_string(why).unwrap_or_default())
        .bind(now)
        .bind(id)
        .execute()
        .await
        .map(drop)
    }

    /// Notes the policy that is in force in a live run.
    pub async fn note_policy(&self, id: &RunId, network: &str, now: Timestamp) -> Result<()> {
        self.change(
            format!("note the policy of {id}"),
            "UPDATE runs SET network = $1, updated_at = $2 WHERE id = $3 AND status = 'running'",
        )
        .bind(network)
        .bind(now)
        .bind(id)
        .execute()
        .await
        .map(drop)
    }

    /// Moves the hard end of a live run.
    pub async fn extend_run(
        &self,
        id: &RunId,
        timeout_ms: i64,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        self.change(
            format!("extend run {id}"),
            "UPDATE runs SET timeout_ms = $1, expires_at = $2, updated_at = $3
             WHERE id = $4 AND status = 'running'",
        )
        .bind(timeout_ms)
        .bind(expires_at)
        .bind(now)
        .bind(id)
        .execute()
        .await
        .map(drop)
    }

    /// Forgets runs that have been history since before `before`, oldest first,
    /// at most `limit`; how many those were.
    pub async fn prune_runs(&self, before: Timestamp, limit: i64) -> Result<u64> {
        let pruned = self
            .change(
                "prune runs",
                "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE superseded_at < $1
                   AND status IN ('stopped', 'failed', 'aborted') ORDER BY superseded_at LIMIT $2)",
            )
            .bind(before)
            .bind(limit)
            .execute()
            .await?;
        Ok(pruned)
    }
}

/// A page of a table that has owner, project, `sandbox_name` and an id that
/// grows with age. Each form of it has its own index.
pub(crate) fn by_age<'t>(
    db: &'t Db,
    operation: &str,
    mut text: String,
    namespace: &Namespace,
    sandbox: Option<&str>,
    (ascending, after): (bool, Option<&str>),
    limit: i64,
) -> crate::sql::Sql<'t> {
    let (compare, direction) = if ascending { (">", "ASC") } else { ("<", "DESC") };
    text.push_str(" WHERE owner = $1 AND project = $2");
    let mut place = 3;
    if sandbox.is_some() {
        text.push_str(&format!(" AND sandbox_name = ${place}"));
        place += 1;
    }
    if after.is_some() {
        text.push_str(&format!(" AND id {compare} ${place}"));
        place += 1;
    }
    text.push_str(&format!(" ORDER BY id {direction} LIMIT ${place}"));
    let mut query = db.sql(operation, text).bind(&namespace.owner).bind(&namespace.project);
    if let Some(sandbox) = sandbox {
        query = query.bind(sandbox.to_owned());
    }
    if let Some(after) = after {
        query = query.bind(after.to_owned());
    }
    query.bind(limit)
}

/// From now on `run` is no sandbox's current one.
pub(crate) async fn supersede(tx: &mut Tx, run: &RunId, now: Timestamp) -> Result<()> {
    tx.sql(format!("supersede {run}"), "UPDATE runs SET superseded_at = $1 WHERE id = $2")
        .bind(now)
        .bind(run)
        .execute()
        .await
        .map(drop)
}

/// Ends a live run inside a larger change.
pub(crate) async fn ended(
    tx: &mut Tx,
    run: &RunRow,
    status: RunStatus,
    reason: StopReason,
    now: Timestamp,
) -> Result<()> {
    tx.sql(
        format!("end run {}", run.id),
        format!(
            "UPDATE runs SET status = $1, stop_reason = $2, stopped_at = $3, updated_at = $3,
               sent_bytes = $4, received_bytes = $5 WHERE id = $6 AND {LIVE}"
        ),
    )
    .bind(status)
    .bind(reason)
    .bind(now)
    .bind(run.sent_bytes)
    .bind(run.received_bytes)
    .bind(&run.id)
    .execute()
    .await?;
    status_changed(tx, run, now).await
}
