//! From rows to what callers see.

use std::time::Duration;

use dormouse_provider::{
    DiskUse, Namespace, ProviderError, Result, Resumed, Route, Run, RunStatus, Sandbox, Snapshot,
    SnapshotKind, SnapshotStatus,
};
use dormouse_store::{RunRow, SandboxRow, SnapshotRow};

use crate::Engine;
use crate::config::{RunConfig, parse};
use crate::host::{internal, pool};
use crate::machine::Live;

impl Engine {
    pub(crate) async fn present(&self, row: &SandboxRow, resumed: bool) -> Result<Resumed> {
        let run = self.host.db.newest_run(&row.id).await.map_err(internal("read newest run"))?;
        let run = run.ok_or_else(|| ProviderError::NotFound(format!("run of {}", row.name)))?;
        let (run, routes) = (self::run(&run)?, self.routes_of(row).await?);
        Ok(Resumed { sandbox: sandbox(row, &run)?, run, routes, resumed })
    }

    /// [`Engine::present`] with what the sandbox holds on disk.
    pub(crate) async fn present_whole(&self, row: &SandboxRow) -> Result<Resumed> {
        let mut found = self.present(row, false).await?;
        found.sandbox.disk = self.disk_use(row, &found.sandbox).await?;
        Ok(found)
    }

    async fn disk_use(&self, row: &SandboxRow, sandbox: &Sandbox) -> Result<Option<DiskUse>> {
        if self.host.usable().is_err() {
            return Ok(None);
        }
        let id = row.id.clone();
        let used = pool(&self.host, "size a sandbox", move |storage| storage.used(&id)).await?;
        let Some(used_bytes) = used else { return Ok(None) };
        let snapshots = self.host.db.count_snapshots(&row.id).await.map_err(internal("count snapshots"))?;
        Ok(Some(DiskUse {
            used_bytes,
            limit_bytes: sandbox.resources.disk_mib.map(|mib| mib << 20),
            snapshots: u64::try_from(snapshots).unwrap_or(0),
        }))
    }

    /// Tells whose write ran into a full disk what it is that is full, and which
    /// call frees room.
    pub(crate) async fn advise(&self, live: &Live, done: Result<()>) -> Result<()> {
        let Err(ProviderError::Refused { errno: errno @ (libc::EDQUOT | libc::ENOSPC), message }) = done
        else {
            return done;
        };
        let row = self.host.db.run(&live.run).await.map_err(internal("read run"))?;
        let sandbox = match row {
            Some(run) => {
                self.host.db.sandbox_by_id(&run.sandbox_id).await.map_err(internal("read sandbox"))?
            }
            None => None,
        };
        let disk = match sandbox {
            Some(row) => self.present_whole(&row).await?.sandbox.disk,
            None => None,
        };
        Err(ProviderError::Refused { errno, message: format!("{message}; {}", advice(disk)) })
    }

    /// Routes of a sandbox; most have none, and its configuration says so.
    pub(crate) async fn routes_of(&self, row: &SandboxRow) -> Result<Vec<Route>> {
        if parse::<RunConfig>(&row.config)?.ports.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.host.db.routes_of(&row.id).await.map_err(internal("read routes"))?;
        Ok(rows
            .into_iter()
            .map(|row| Route { port: row.port, subdomain: row.subdomain, url: None })
            .collect())
    }

    pub(crate) fn present_snapshot(&self, row: &SnapshotRow) -> Snapshot {
        let manual = row.kind == SnapshotKind::Manual.as_str();
        let created = row.status == SnapshotStatus::Created.as_str();
        Snapshot {
            id: row.id.clone(),
            source_run: row.source_run.clone(),
            kind: if manual { SnapshotKind::Manual } else { SnapshotKind::Automatic },
            status: if created { SnapshotStatus::Created } else { SnapshotStatus::Deleted },
            size_bytes: u64::try_from(row.size_bytes).unwrap_or(0),
            created_at: row.created_at,
            updated_at: row.updated_at,
            expires_at: row.expires_at.filter(|_| created),
            last_used_at: row.last_used_at,
            parent: row.parent.clone(),
        }
    }

    /// The snapshot, if `namespace` has it, deleted or not.
    pub(crate) async fn find_snapshot(
        &self,
        namespace: &Namespace,
        id: &dormouse_types::SnapshotId,
    ) -> Result<SnapshotRow> {
        let found = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
        found
            .filter(|row| row.namespace == namespace.0)
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

pub(crate) fn run(row: &RunRow) -> Result<Run> {
    let config: RunConfig = parse(&row.config)?;
    Ok(Run {
        id: row.id.clone(),
        sandbox: row.sandbox_name.clone(),
        status: RunStatus::from_word(&row.status)
            .ok_or_else(|| ProviderError::internal("read run", format!("unknown status {}", row.status)))?,
        resources: config.resources,
        timeout: Duration::from_millis(u64::try_from(row.timeout_ms).unwrap_or(0)),
        cwd: config.cwd,
        requested_at: row.requested_at,
        started_at: row.started_at,
        stop_requested_at: row.stop_requested_at,
        stopped_at: row.stopped_at,
        updated_at: row.updated_at,
        source_snapshot: row.source_snapshot.clone(),
        stop_reason: row.stop_reason.clone(),
        runtime: config.runtime.or(Some(config.image)),
        network: config.network,
        warnings: row.warnings.clone(),
    })
}

pub(crate) fn sandbox(row: &SandboxRow, run: &Run) -> Result<Sandbox> {
    let config: RunConfig = parse(&row.config)?;
    Ok(Sandbox {
        name: row.name.clone(),
        persistent: row.persistent,
        created_at: row.created_at,
        updated_at: row.updated_at.max(run.updated_at),
        current_run: run.id.clone(),
        status: run.status,
        resources: config.resources,
        image: config.image,
        runtime: config.runtime,
        timeout: Duration::from_millis(config.timeout_ms),
        network: config.network,
        current_snapshot: row.current_snapshot.clone(),
        cwd: config.cwd,
        tags: config.tags,
        expires_at: (run.status == RunStatus::Running).then(|| run.expires_at()),
        status_updated_at: row.status_updated_at,
        snapshot_expiration: config.snapshot_expiration,
        retention: config.retention,
        disk: None,
    })
}
