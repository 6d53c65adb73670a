//! One task owns one sandbox: orders, the death of its processes and its
//! deadline all enter here, so there is one writer. What others may see of a
//! live run is published in [`Live`].
//!
//! ```text
//!              boot / resume                 stop, delete, deadline, death
//!  stopped ───────────────────► live ─────────────────────────────────────► stopped
//!     ▲  (launch fails: everything is taken back)                              │
//!     └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The task lives while a run lives and for a while after; the next order
//! starts a new one.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dormouse_agent_protocol::Request;
use dormouse_provider::{ProviderError, Result, RunStatus, SnapshotKind, StopReason};
use dormouse_store::{LayerRow, RunProcess, RunRow, SandboxRow, SnapshotRow};
use dormouse_types::{LayerId, RunId, SandboxId, SnapshotId, Timestamp};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::agent::Agent;
use crate::config::RunConfig;
use crate::host::Host;
use crate::registry::Registry;
use crate::storage::layer_of;
use crate::{launch, sys};

/// How long a task without a live run waits for the next order.
const LINGER: Duration = Duration::from_secs(30);

/// On top of the grace period: what an agent may take to end a run.
const STOP_SLACK: Duration = Duration::from_secs(8);

/// After SIGKILL to PID 1: how long the kernel may take to end the run.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// What a run may write on top of layers that use up the disk limit, in bytes:
/// enough to delete things with, which takes room too.
const DISK_FLOOR: u64 = 16 << 20;

/// What a task is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Bring up the pending run of a new sandbox.
    Boot { run: Box<RunRow>, reply: oneshot::Sender<Result<()>> },
    /// Have a live run; `true` when this order started it.
    Resume { reply: oneshot::Sender<Result<bool>> },
    /// Take over a run that a server before us started.
    Adopt { run: Box<RunRow> },
    /// End the live run; `None` means whichever it is.
    Stop { run: Option<RunId>, reason: StopReason, reply: oneshot::Sender<Result<()>> },
    /// End the live run and forget the sandbox.
    Delete { reply: oneshot::Sender<Result<()>> },
    /// Move the hard end later.
    Extend { run: RunId, by: Duration, reply: oneshot::Sender<Result<()>> },
}

/// A live run, as everybody may see it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) run: RunId,
    pub(crate) namespace: String,
    pub(crate) config: RunConfig,
    pub(crate) agent: Agent,
}

/// The owner's own view of its live run.
struct Owned {
    row: RunRow,
    process: RunProcess,
    pidfd: AsyncFd<OwnedFd>,
    expires_at: Timestamp,
}

pub(crate) struct Machine {
    host: Arc<Host>,
    registry: Arc<Registry>,
    sandbox: SandboxId,
    live: Option<Owned>,
}

impl Machine {
    /// Runs the task of `sandbox` until it has nothing more to own.
    pub(crate) async fn run(
        host: Arc<Host>,
        registry: Arc<Registry>,
        sandbox: SandboxId,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut machine = Self { host, registry, sandbox, live: None };
        loop {
            let ended = async {
                match &machine.live {
                    Some(live) => drop(live.pidfd.readable().await),
                    None => std::future::pending().await,
                }
            };
            let patience = match &machine.live {
                Some(live) => live.expires_at.since(machine.host.clock.now()),
                None => LINGER,
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => machine.obey(order).await,
                    None => return,
                },
                () = ended => machine.end_and_log(StopReason::Died).await,
                () = tokio::time::sleep(patience) => {
                    let now = machine.host.clock.now();
                    match &machine.live {
                        Some(live) if live.expires_at <= now => {
                            machine.end_and_log(StopReason::Lifetime).await;
                        }
                        Some(_) => {}
                        None if machine.registry.retire(&machine.sandbox, &orders) => return,
                        None => {}
                    }
                }
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        // Whoever asked may be gone; the order is carried out all the same.
        match order {
            Order::Boot { run, reply } => drop(reply.send(self.boot(*run).await)),
            Order::Resume { reply } => drop(reply.send(self.resume().await)),
            Order::Adopt { run } => self.adopt(*run).await,
            Order::Stop { run, reason, reply } => drop(reply.send(self.stop(run, reason).await)),
            Order::Delete { reply } => drop(reply.send(self.delete().await)),
            Order::Extend { run, by, reply } => drop(reply.send(self.extend(&run, by).await)),
        }
    }

    async fn row(&self) -> Result<SandboxRow> {
        let row = self.host.db.sandbox_by_id(&self.sandbox).await.map_err(internal("read sandbox"))?;
        row.ok_or_else(|| ProviderError::NotFound("sandbox".to_owned()))
    }

    async fn boot(&mut self, run: RunRow) -> Result<()> {
        // The first run stands on the image alone.
        let base = run.layers.len();
        let booted = self.start(run, base).await;
        if booted.is_err() {
            // A sandbox that never came up was never acknowledged.
            let now = self.host.clock.now();
            self.host.db.delete_sandbox(&self.sandbox, now).await.map_err(internal("delete sandbox"))?;
        }
        booted
    }

    async fn resume(&mut self) -> Result<bool> {
        if self.live.as_ref().is_some_and(|live| !has_ended(live)) {
            return Ok(false);
        }
        if self.live.is_some() {
            // Its processes died and the news is still on its way.
            self.end(StopReason::Died).await?;
        }
        let newest = self.host.db.newest_run(&self.sandbox).await.map_err(internal("read newest run"))?;
        if let Some(run) = newest
            && !RunStatus::from_word(&run.status).is_some_and(RunStatus::is_ended)
        {
            // Its end failed half-way, and nobody owns it: finish that first.
            launch::remove(&self.host, &run.id, None).await;
            finish(&self.host, &run, StopReason::Died).await?;
        }
        let sandbox = self.row().await?;
        let config: RunConfig = parse(&sandbox.config)?;
        let image = self.host.db.image_by_id(&sandbox.image_id).await.map_err(internal("read image"))?;
        let image = image.ok_or_else(|| ProviderError::NotFound(format!("image {}", config.image)))?;
        let base = image.layers.len();
        let run = {
            let _layers_stay = self.host.layers.read().await;
            let layers = match &sandbox.current_snapshot {
                None => image.layers,
                Some(id) => {
                    let found = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
                    let found = found.filter(|snapshot| snapshot.status == "created");
                    found.ok_or_else(|| ProviderError::SnapshotGone(id.to_string()))?.layers
                }
            };
            let run = pending_run(&sandbox, &config, layers, self.host.clock.now());
            self.host.db.insert_run(&run).await.map_err(internal("insert run"))?;
            run
        };
        self.start(run, base).await?;
        Ok(true)
    }

    /// Brings up a pending run. On failure the run has ended and nothing of it
    /// is left.
    /// The lowest `base` layers are the image's, which the sandbox shares.
    async fn start(&mut self, run: RunRow, base: usize) -> Result<()> {
        let config: RunConfig = parse(&run.config)?;
        self.registry.begin(&run.id);
        let started = self.try_start(&run, &config, base).await;
        if let Err(error) = &started {
            tracing::error!(run = %run.id, sandbox = %run.sandbox_name, error = %error.detail(), "run did not start");
            let (failed, reason) = (RunStatus::Failed.as_str(), StopReason::StartFailed.as_str());
            let now = self.host.clock.now();
            self.host.db.run_ended(&run.id, failed, reason, now).await.map_err(internal("end run"))?;
        }
        self.registry.forget(&run.id, started.is_err());
        started
    }

    async fn try_start(&mut self, run: &RunRow, config: &RunConfig, base: usize) -> Result<()> {
        let disk = match config.resources.disk_mib {
            Some(mib) => Some(allowance(mib << 20, held(&self.host, &run.layers, base).await?)?),
            None => None,
        };
        let process = launch::launch(&self.host, run, config, disk).await?;
        let slot = process.slot;
        let now = self.host.clock.now();
        let expires_at = now.plus(Duration::from_millis(config.timeout_ms));
        let own = async {
            let pidfd = sys::watch_process(process.pid);
            let pidfd = pidfd.map_err(|e| ProviderError::internal(format!("watch run {}", run.id), e))?;
            self.host
                .db
                .run_started(&run.id, &process, now, expires_at)
                .await
                .map_err(internal("start run"))?;
            Ok(pidfd)
        };
        match own.await {
            Ok(pidfd) => {
                self.take_over(run.clone(), process, pidfd, expires_at, config.clone());
                Ok(())
            }
            Err(error) => {
                launch::remove(&self.host, &run.id, Some(slot)).await;
                let discarded = self.host.storage.discard_run(&run.id);
                discarded.map_err(|e| ProviderError::internal(format!("discard run {}", run.id), e))?;
                Err(error)
            }
        }
    }

    fn take_over(
        &mut self,
        row: RunRow,
        process: RunProcess,
        pidfd: AsyncFd<OwnedFd>,
        expires_at: Timestamp,
        config: RunConfig,
    ) {
        self.registry.publish(Live {
            run: row.id.clone(),
            namespace: row.namespace.clone(),
            config,
            agent: Agent::in_dir(&self.host.socket_dir(row.id.as_str())),
        });
        self.live = Some(Owned { row, process, pidfd, expires_at });
    }

    async fn adopt(&mut self, run: RunRow) {
        let (Some(process), Ok(config)) = (run.process.clone(), parse(&run.config)) else {
            tracing::error!(run = %run.id, "a live run without process or configuration");
            return;
        };
        match sys::watch_process(process.pid) {
            Ok(pidfd) => {
                let expires_at = run.expires_at.unwrap_or_else(|| self.host.clock.now());
                tracing::info!(run = %run.id, sandbox = %run.sandbox_name, "adopted");
                self.take_over(run, process, pidfd, expires_at, config);
            }
            Err(error) => tracing::warn!(run = %run.id, %error, "adopt"),
        }
    }

    async fn stop(&mut self, run: Option<RunId>, reason: StopReason) -> Result<()> {
        match &self.live {
            Some(live) if run.is_none_or(|wanted| wanted == live.row.id) => self.end(reason).await,
            _ => Ok(()),
        }
    }

    async fn delete(&mut self) -> Result<()> {
        self.end(StopReason::Deleted).await?;
        let now = self.host.clock.now();
        self.host.db.delete_sandbox(&self.sandbox, now).await.map_err(internal("delete sandbox"))
    }

    async fn extend(&mut self, run: &RunId, by: Duration) -> Result<()> {
        let now = self.host.clock.now();
        let most = self.host.config.max_timeout;
        let Some(live) = self.live.as_mut().filter(|live| &live.row.id == run) else {
            return Err(ProviderError::Stopped);
        };
        let timeout = Duration::from_millis(u64::try_from(live.row.timeout_ms).unwrap_or(0)) + by;
        if timeout > most {
            let most = dormouse_types::format_duration(most);
            return Err(ProviderError::Invalid(format!("the total timeout must not be over {most}")));
        }
        let expires_at = live.expires_at.plus(by);
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        self.host.db.extend_run(run, timeout_ms, expires_at, now).await.map_err(internal("extend run"))?;
        live.row.timeout_ms = timeout_ms;
        live.expires_at = expires_at;
        Ok(())
    }

    async fn end_and_log(&mut self, reason: StopReason) {
        if let Err(error) = self.end(reason).await {
            // The run is still in the database: start-up and the next order
            // try again.
            tracing::error!(sandbox = %self.sandbox, error = %error.detail(), "end run");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Ends the live run, if any: processes, then files, then the record.
    async fn end(&mut self, reason: StopReason) -> Result<()> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let (host, run) = (&self.host, live.row.id.clone());
        self.registry.unpublish(&run);
        host.db.run_stopping(&run, host.clock.now()).await.map_err(internal("stop run"))?;
        end_processes(host, live, reason).await;
        finish(host, &live.row, reason).await?;
        let slot = live.process.slot;
        self.live = None;
        // Nobody waits for what is only tidying; start-up does it after a crash.
        let (host, registry) = (self.host.clone(), self.registry.clone());
        registry.begin(&run);
        tokio::spawn(async move {
            launch::remove(&host, &run, Some(slot)).await;
            registry.forget(&run, true);
        });
        Ok(())
    }
}

fn has_ended(live: &Owned) -> bool {
    crate::host::start_time(live.process.pid) != Some(live.process.start_time)
}

/// Gracefully, then by force. Returns when PID 1 is gone, and with it every
/// process of its namespace.
async fn end_processes(host: &Host, live: &Owned, reason: StopReason) {
    let grace = if reason == StopReason::Deleted { Duration::ZERO } else { host.config.stop_grace };
    if !has_ended(live) {
        let agent = Agent::in_dir(&host.socket_dir(live.row.id.as_str()));
        let shutdown = Request::Shutdown { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(0) };
        if let Err(error) = agent.call_within(shutdown, grace + STOP_SLACK).await {
            tracing::warn!(run = %live.row.id, %error, "the agent did not end the run; killing it");
            let _ = sys::pidfd_kill(live.pidfd.get_ref());
        }
    }
    if tokio::time::timeout(DEATH_PATIENCE, live.pidfd.readable()).await.is_err() {
        let _ = sys::pidfd_kill(live.pidfd.get_ref());
        if tokio::time::timeout(DEATH_PATIENCE, live.pidfd.readable()).await.is_err() {
            tracing::error!(run = %live.row.id, "PID 1 does not end; its files are kept as they are");
        }
    }
    sys::reap(live.process.pid);
}

/// Keeps or drops the files of a run whose processes are gone, and records its
/// end. Done again after a crash, it finds what is left to do.
pub(crate) async fn finish(host: &Arc<Host>, run: &RunRow, reason: StopReason) -> Result<()> {
    let sandbox = host.db.sandbox_by_id(&run.sandbox_id).await.map_err(internal("read sandbox"))?;
    let keep = reason != StopReason::Deleted && sandbox.as_ref().is_some_and(|sandbox| sandbox.persistent);
    let now = host.clock.now();
    if !keep {
        let (storage, id) = (host.storage.clone(), run.id.clone());
        blocking("discard run", move || storage.discard_run(&id)).await?;
        let ended = RunStatus::Stopped.as_str();
        host.db.run_ended(&run.id, ended, reason.as_str(), now).await.map_err(internal("end run"))?;
        let ephemeral = parse::<RunConfig>(&run.config).is_ok_and(|config| config.ephemeral);
        if ephemeral && reason != StopReason::Deleted {
            host.db.delete_sandbox(&run.sandbox_id, now).await.map_err(internal("delete sandbox"))?;
        }
        return Ok(());
    }
    let (storage, id) = (host.storage.clone(), run.id.clone());
    let frozen = blocking("freeze run", move || {
        let Some(layer) = storage.freeze(&id)? else { return Ok(None) };
        storage.sync()?;
        let size = storage.frozen_size(&layer)?;
        Ok(Some((layer, size)))
    })
    .await?;
    let Some((layer, size)) = frozen else {
        let aborted = RunStatus::Aborted.as_str();
        tracing::error!(run = %run.id, "its files are gone");
        return host.db.run_ended(&run.id, aborted, reason.as_str(), now).await.map_err(internal("end run"));
    };
    debug_assert_eq!(layer, layer_of(&run.id));
    let layer = LayerRow {
        id: layer,
        size_bytes: size.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        created_at: now,
    };
    let snapshot = SnapshotRow {
        id: SnapshotId::generate(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        kind: SnapshotKind::Automatic.as_str().to_owned(),
        status: "created".to_owned(),
        layers: run.layers.iter().cloned().chain([layer.id.clone()]).collect(),
        parent: sandbox.as_ref().and_then(|sandbox| sandbox.current_snapshot.clone()),
        created_at: now,
        updated_at: now,
    };
    host.db.record_stop(&snapshot, &layer, reason.as_str()).await.map_err(internal("record stop"))?;
    host.db.sync().await.map_err(|error| ProviderError::internal("sync the database", error))?;
    if let Some(sandbox) = sandbox
        && let Err(error) = note_crowding(host, &sandbox, &snapshot).await
    {
        tracing::warn!(run = %run.id, error = %error.detail(), "look at the room that layers take");
    }
    Ok(())
}

/// Bytes that the sandbox's own layers hold, those above the image's.
async fn held(host: &Host, layers: &[LayerId], base: usize) -> Result<u64> {
    let own = layers.get(base..).unwrap_or_default();
    if own.is_empty() {
        return Ok(0);
    }
    let sum = host.db.layers_size(own).await.map_err(internal("size layers"))?;
    Ok(u64::try_from(sum).unwrap_or(0))
}

/// What a run may write when its sandbox's layers hold `held` bytes of `limit`.
/// A full sandbox still starts, so that its owner can delete; one that used
/// this to grow to twice its limit does not.
fn allowance(limit: u64, held: u64) -> Result<u64> {
    if held >= limit.saturating_mul(2).max(4 * DISK_FLOOR) {
        let mib = |bytes: u64| bytes >> 20;
        return Err(ProviderError::Capacity(format!(
            "the sandbox holds {} MiB on disk, twice its limit of {} MiB and more",
            mib(held),
            mib(limit)
        )));
    }
    Ok(limit.saturating_sub(held).max(DISK_FLOOR))
}

/// Has the stack of a sandbox squashed that used half of its disk limit: what
/// it overwrote or deleted gives its room back.
async fn note_crowding(host: &Host, sandbox: &SandboxRow, snapshot: &SnapshotRow) -> Result<()> {
    let config: RunConfig = parse(&sandbox.config)?;
    let Some(limit) = config.resources.disk_mib.map(|mib| mib << 20) else { return Ok(()) };
    let image = host.db.image_by_id(&sandbox.image_id).await.map_err(internal("read image"))?;
    let base = image.map_or(0, |image| image.layers.len());
    // One layer of the sandbox's own has nothing to be merged with.
    if snapshot.layers.len() >= base + 2 && held(host, &snapshot.layers, base).await? > limit / 2 {
        host.crowded.lock().unwrap_or_else(PoisonError::into_inner).insert(snapshot.id.clone());
    }
    Ok(())
}

/// A run that is about to be made.
pub(crate) fn pending_run(
    sandbox: &SandboxRow,
    config: &RunConfig,
    layers: Vec<LayerId>,
    now: Timestamp,
) -> RunRow {
    RunRow {
        id: RunId::generate(),
        sandbox_id: sandbox.id.clone(),
        namespace: sandbox.namespace.clone(),
        sandbox_name: sandbox.name.clone(),
        status: RunStatus::Pending.as_str().to_owned(),
        config: sandbox.config.clone(),
        source_snapshot: sandbox.current_snapshot.clone(),
        layers,
        process: None,
        timeout_ms: i64::try_from(config.timeout_ms).unwrap_or(i64::MAX),
        expires_at: None,
        requested_at: now,
        started_at: None,
        stop_requested_at: None,
        stopped_at: None,
        stop_reason: None,
        updated_at: now,
    }
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(config: &str) -> Result<T> {
    serde_json::from_str(config).map_err(|error| ProviderError::internal("read stored configuration", error))
}

pub(crate) fn internal(
    operation: &'static str,
) -> impl Fn(dormouse_store::StoreError) -> ProviderError + Send + 'static {
    move |error| match error {
        dormouse_store::StoreError::Conflict(subject) => ProviderError::Conflict(subject),
        other => ProviderError::internal(operation, other),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| ProviderError::internal(operation, error))?;
    done.map_err(|error| ProviderError::internal(operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_leaves_room_to_delete_but_not_for_ever() {
        let gib = 1 << 30;
        assert_eq!(allowance(gib, 0).unwrap(), gib);
        assert_eq!(allowance(gib, gib / 4).unwrap(), gib / 4 * 3);
        assert_eq!(allowance(gib, gib).unwrap(), DISK_FLOOR);
        assert_eq!(allowance(gib, 2 * gib - 1).unwrap(), DISK_FLOOR);
        assert!(matches!(allowance(gib, 2 * gib), Err(ProviderError::Capacity(_))));
    }
}
