//! From rows to what callers see.

use std::time::Duration;

use dormouse_provider::{
    DiskUse, Namespace, NetworkPolicy, NetworkUse, ProviderError, Result, Retention, Route, Run, RunStatus,
    Sandbox, SandboxView, Snapshot, SnapshotStatus, Transfer,
};
use dormouse_store::{RunRow, SandboxWithRun, SnapshotRow};
use dormouse_types::{SandboxId, SnapshotId};

use crate::record::SandboxRecord;
use crate::{Control, internal};

impl Control {
    pub(crate) async fn view(
        &self,
        sandbox: &SandboxRecord,
        run: &RunRow,
        resumed: bool,
    ) -> Result<SandboxView> {
        let run = self.run_with_transfer(run);
        let routes = self.routes_of(sandbox).await?;
        Ok(SandboxView { sandbox: self::sandbox(sandbox, &run), run, routes, resumed })
    }

    /// A run, with what it sent and received so far: while it lives its host counts.
    pub(crate) fn run_with_transfer(&self, run: &RunRow) -> Run {
        let mut run = self::run(run);
        if let Some(live) = self.runner.live(&run.id) {
            let NetworkUse { sent, received, .. } = live.network_use();
            run.transfer = Some(Transfer { sent, received });
        }
        run
    }

    pub(crate) async fn view_found(&self, found: SandboxWithRun) -> Result<SandboxView> {
        self.view(&SandboxRecord::new(found.sandbox), &found.run, false).await
    }

    /// What a sandbox of this host holds on disk.
    pub(crate) async fn disk_use(&self, id: &SandboxId, sandbox: &Sandbox) -> Result<Option<DiskUse>> {
        let Some(used_bytes) = self.runner.used_bytes(id).await? else { return Ok(None) };
        let snapshots = self.db.count_snapshots(id).await.map_err(internal("count snapshots"))?;
        Ok(Some(DiskUse {
            used_bytes,
            limit_bytes: sandbox.resources.disk_bytes(),
            snapshots: u64::try_from(snapshots).unwrap_or(0),
        }))
    }

    /// Tells whose write ran into a full disk what it is that is full, and which
    /// call frees room.
    pub(crate) async fn advise<T>(&self, sandbox: &SandboxId, done: Result<T>) -> Result<T> {
        let Err(ProviderError::Refused { errno: errno @ (libc::EDQUOT | libc::ENOSPC), message }) = done
        else {
            return done;
        };
        let found = self.db.sandbox_by_id(sandbox).await.map_err(internal("read sandbox"))?;
        let disk = match found {
            Some(found) => {
                let view = self.view_found(found).await?;
                self.disk_use(sandbox, &view.sandbox).await?
            }
            None => None,
        };
        Err(ProviderError::Refused { errno, message: format!("{message}; {}", advice(disk)) })
    }

    /// Routes of a sandbox; most have none, and its configuration says so.
    pub(crate) async fn routes_of(&self, sandbox: &SandboxRecord) -> Result<Vec<Route>> {
        if sandbox.known_config().is_some_and(|config| config.ports.is_empty()) {
            return Ok(Vec::new());
        }
        let rows = self.db.routes_of(&sandbox.row.id).await.map_err(internal("read routes"))?;
        Ok(rows
            .into_iter()
            .map(|row| Route { port: row.port, subdomain: row.subdomain, url: None })
            .collect())
    }

    /// The snapshot, if `namespace` has it, deleted or not.
    pub(crate) async fn find_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<SnapshotRow> {
        let found = self.db.snapshot(id).await.map_err(internal("read snapshot"))?;
        found
            .filter(|row| &row.namespace == namespace)
            .ok_or_else(|| ProviderError::NotFound(format!("snapshot {id}")))
    }
}

/// What helps where a write ran into a full disk.
fn advice(disk: Option<DiskUse>) -> String {
    let Some((disk, limit)) = disk.and_then(|disk| Some((disk, disk.limit_bytes?))) else {
        return "the disk of this server is full".to_owned();
    };
    // Less than what one large write wants.
    if disk.used_bytes + (16 << 20) < limit {
        return "the disk of this server is full".to_owned();
    }
    let held = format!("the sandbox holds {} of its {} MiB", disk.used_bytes >> 20, limit >> 20);
    match disk.snapshots {
        0 => format!("{held}: delete files in it"),
        count => format!(
            "{held}: delete files in it, and snapshots of it (DELETE /v2/sandboxes/snapshots/ID), {count} of \
             which hold what it deleted since"
        ),
    }
}

pub(crate) fn take_page<T>(rows: &mut Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Option<String> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| more).map(cursor)
}

/// A policy that cannot be read is shown as the strictest, with a warning: what is
/// broken in one row hides nothing else and hinders no deletion.
pub(crate) fn run(row: &RunRow) -> Run {
    let mut warnings = row.warnings.clone();
    let network = serde_json::from_str(&row.network).unwrap_or_else(|error| {
        tracing::error!(run = %row.id, %error, "read a network policy");
        warnings.push("the record of the network policy cannot be read".to_owned());
        NetworkPolicy::DenyAll
    });
    Run {
        id: row.id.clone(),
        sandbox: row.sandbox_name.clone(),
        status: row.status,
        resources: row.resources,
        timeout: Duration::from_millis(u64::try_from(row.timeout_ms).unwrap_or(0)),
        cwd: row.cwd.clone(),
        requested_at: row.requested_at,
        started_at: row.started_at,
        stop_requested_at: row.stop_requested_at,
        stopped_at: row.stopped_at,
        updated_at: row.updated_at,
        source_snapshot: row.source_snapshot.clone(),
        stop_reason: row.stop_reason.map(|reason| reason.to_string()),
        runtime: Some(row.runtime.clone()),
        network,
        transfer: Some(Transfer {
            sent: u64::try_from(row.sent_bytes).unwrap_or(0),
            received: u64::try_from(row.received_bytes).unwrap_or(0),
        }),
        warnings,
    }
}

/// A sandbox whose configuration cannot be read is shown as its newest run was.
pub(crate) fn sandbox(record: &SandboxRecord, run: &Run) -> Sandbox {
    let (row, config) = (&record.row, record.known_config());
    Sandbox {
        name: row.name.clone(),
        persistent: row.persistent,
        created_at: row.created_at,
        updated_at: row.updated_at.max(run.updated_at),
        current_run: run.id.clone(),
        status: run.status,
        resources: config.map_or(run.resources, |config| config.resources),
        image: match config {
            Some(config) => config.image.clone(),
            None => run.runtime.clone().unwrap_or_default(),
        },
        runtime: config.and_then(|config| config.runtime.clone()),
        timeout: config.map_or(run.timeout, |config| Duration::from_millis(config.timeout_ms)),
        network: config.map_or_else(|| run.network.clone(), |config| config.network.clone()),
        current_snapshot: row.current_snapshot.clone(),
        cwd: config.map_or_else(|| run.cwd.clone(), |config| config.cwd.clone()),
        tags: config.map(|config| config.tags.clone()).unwrap_or_default(),
        expires_at: (run.status == RunStatus::Running).then(|| run.expires_at()),
        status_updated_at: row.status_updated_at,
        snapshot_expiration: config.and_then(|config| config.snapshot_expiration),
        retention: config.map_or(Retention::Current, |config| config.retention),
        mounts: config.map(|config| config.mounts.clone()).unwrap_or_default(),
        disk: None,
    }
}

pub(crate) fn snapshot(row: &SnapshotRow) -> Snapshot {
    Snapshot {
        id: row.id.clone(),
        source_run: row.source_run.clone(),
        kind: row.kind,
        status: row.status,
        size_bytes: u64::try_from(row.size_bytes).unwrap_or(0),
        created_at: row.created_at,
        updated_at: row.updated_at,
        expires_at: row.expires_at.filter(|_| row.status == SnapshotStatus::Created),
        last_used_at: row.last_used_at,
        parent: row.parent.clone(),
    }
}
