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
use dormouse_provider::{
    Expiration, KeepLast, NetworkPolicy, ProviderError, Result, Retention, RunStatus, SnapshotKind,
    SnapshotStatus, Source, StopReason, UpdateSandbox,
};
use dormouse_store::{LayerRow, Retire, RunProcess, RunRow, SandboxRow, SnapshotRow, SnapshotsOfDeleted};
use dormouse_types::{LayerId, RunId, SandboxId, SnapshotId, Timestamp};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::config::RunConfig;
use crate::host::Host;
use crate::registry::Registry;
use crate::storage::layer_of;
use crate::{launch, sandboxes, source, sys};

/// How long a task without a live run waits for the next order.
const LINGER: Duration = Duration::from_secs(30);

/// On top of the grace period: what an agent may take to end a run.
const STOP_SLACK: Duration = Duration::from_secs(8);

/// How long a snapshot that was replaced stays where nobody said (provider
/// contract, section 3).
const REPLACED_STAY: Duration = Duration::from_secs(7 * 24 * 3600);

/// After SIGKILL to PID 1: how long the kernel may take to end the run.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// What a run may write on top of layers that use up the disk limit, in bytes:
/// enough to delete things with, which takes room too.
const DISK_FLOOR: u64 = 16 << 20;

/// What a task is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Bring up the pending run of a new sandbox and put its source in. `base`:
    /// how many of its layers are the image's.
    Boot { run: Box<RunRow>, base: usize, source: Option<Source>, reply: oneshot::Sender<Result<()>> },
    /// Have a live run; `true` when this order started it.
    Resume { reply: oneshot::Sender<Result<bool>> },
    /// Take over a run that a server before us started.
    Adopt { run: Box<RunRow> },
    /// End the live run; `None` means whichever it is.
    Stop { run: Option<RunId>, reason: StopReason, reply: oneshot::Sender<Result<()>> },
    /// End the live run and keep its files in a manual snapshot.
    Snapshot { run: RunId, expiration: Option<Expiration>, reply: oneshot::Sender<Result<()>> },
    /// End the live run and forget the sandbox.
    Delete { with_snapshots: bool, reply: oneshot::Sender<Result<()>> },
    /// Change the sandbox.
    Update { changes: Box<UpdateSandbox>, reply: oneshot::Sender<Result<()>> },
    /// Change what may leave the live run, which must be this one.
    SetPolicy { run: RunId, policy: NetworkPolicy, reply: oneshot::Sender<Result<()>> },
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
    /// Ends what outlives no run: connections to its ports.
    pub(crate) ended: CancellationToken,
}

/// What becomes of a run's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// An automatic snapshot if the sandbox is persistent, else nothing.
    AsConfigured,
    /// A manual snapshot, with an expiration of its own or without.
    Manual(Option<Expiration>),
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
            Order::Boot { run, base, source, reply } => {
                drop(reply.send(self.boot(*run, base, source).await));
            }
            Order::Resume { reply } => drop(reply.send(self.resume().await)),
            Order::Adopt { run } => self.adopt(*run).await,
            Order::Stop { run, reason, reply } => drop(reply.send(self.stop(run, reason).await)),
            Order::Snapshot { run, expiration, reply } => {
                drop(reply.send(self.snapshot(&run, expiration).await));
            }
            Order::Delete { with_snapshots, reply } => drop(reply.send(self.delete(with_snapshots).await)),
            Order::Update { changes, reply } => drop(reply.send(self.update(*changes).await)),
            Order::SetPolicy { run, policy, reply } => {
                drop(reply.send(self.set_policy(&run, policy).await));
            }
            Order::Extend { run, by, reply } => drop(reply.send(self.extend(&run, by).await)),
        }
    }

    async fn row(&self) -> Result<SandboxRow> {
        let row = self.host.db.sandbox_by_id(&self.sandbox).await.map_err(internal("read sandbox"))?;
        row.ok_or_else(|| ProviderError::NotFound("sandbox".to_owned()))
    }

    async fn boot(&mut self, run: RunRow, base: usize, source: Option<Source>) -> Result<()> {
        let booted = self.start(run, base, source).await;
        if booted.is_err() {
            // A sandbox that never came up was never acknowledged.
            let (now, gone) = (self.host.clock.now(), SnapshotsOfDeleted::AllGo);
            let deleted = self.host.db.delete_sandbox(&self.sandbox, gone, now).await;
            deleted.map_err(internal("delete sandbox"))?;
        }
        booted
    }

    async fn resume(&mut self) -> Result<bool> {
        if self.live.as_ref().is_some_and(|live| !has_ended(live)) {
            return Ok(false);
        }
        if self.live.is_some() {
            // Its processes died and the news is still on its way.
            self.end(StopReason::Died, Keep::AsConfigured).await?;
        }
        let newest = self.host.db.newest_run(&self.sandbox).await.map_err(internal("read newest run"))?;
        if let Some(run) = newest
            && !RunStatus::from_word(&run.status).is_some_and(RunStatus::is_ended)
        {
            // Its end failed half-way, and nobody owns it: finish that first.
            launch::remove(&self.host, &run.id, None).await;
            finish(&self.host, &run, StopReason::Died, Keep::AsConfigured).await?;
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
        self.start(run, base, None).await?;
        Ok(true)
    }

    /// Brings up a pending run. On failure the run has ended and nothing of it
    /// is left.
    /// The lowest `base` layers are the image's, which the sandbox shares.
    async fn start(&mut self, run: RunRow, base: usize, source: Option<Source>) -> Result<()> {
        let config: RunConfig = parse(&run.config)?;
        self.registry.begin(&run.id);
        let started = self.try_start(&run, &config, base, source.as_ref()).await;
        if let Err(error) = &started {
            tracing::warn!(run = %run.id, sandbox = %run.sandbox_name, error = %error.detail(), "run did not start");
            let (failed, reason) = (RunStatus::Failed.as_str(), StopReason::StartFailed.as_str());
            let now = self.host.clock.now();
            self.host.db.run_ended(&run.id, failed, reason, now).await.map_err(internal("end run"))?;
        }
        self.registry.forget(&run.id, started.is_err());
        started
    }

    async fn try_start(
        &mut self,
        run: &RunRow,
        config: &RunConfig,
        base: usize,
        source: Option<&Source>,
    ) -> Result<()> {
        let disk = match config.resources.disk_mib {
            Some(mib) => Some(allowance(mib << 20, held(&self.host, &run.layers, base).await?)?),
            None => None,
        };
        let process = launch::launch(&self.host, run, config, disk).await?;
        let slot = process.slot;
        let own = async {
            if let Some(source) = source {
                source::put_in(&self.host, run, config, slot, source).await?;
            }
            // The lifetime is the caller's, so it begins when they get the sandbox.
            let now = self.host.clock.now();
            let expires_at = now.plus(Duration::from_millis(config.timeout_ms));
            let pidfd = sys::watch_process(process.pid);
            let pidfd = pidfd.map_err(|e| ProviderError::internal(format!("watch run {}", run.id), e))?;
            self.host
                .db
                .run_started(&run.id, &process, now, expires_at)
                .await
                .map_err(internal("start run"))?;
            Ok((pidfd, expires_at))
        };
        match own.await {
            Ok((pidfd, expires_at)) => {
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
            ended: CancellationToken::new(),
        });
        self.live = Some(Owned { row, process, pidfd, expires_at });
    }

    async fn adopt(&mut self, run: RunRow) {
        let (Some(process), Ok(config)) = (run.process.clone(), parse::<RunConfig>(&run.config)) else {
            tracing::error!(run = %run.id, "a live run without process or configuration");
            return;
        };
        match sys::watch_process(process.pid) {
            Ok(pidfd) => {
                let expires_at = run.expires_at.unwrap_or_else(|| self.host.clock.now());
                tracing::info!(run = %run.id, sandbox = %run.sandbox_name, "adopted");
                launch::put_policy(&self.host, process.slot, &config.network);
                self.take_over(run, process, pidfd, expires_at, config);
            }
            Err(error) => tracing::warn!(run = %run.id, %error, "adopt"),
        }
    }

    async fn stop(&mut self, run: Option<RunId>, reason: StopReason) -> Result<()> {
        match &self.live {
            Some(live) if run.is_none_or(|wanted| wanted == live.row.id) => {
                self.end(reason, Keep::AsConfigured).await
            }
            _ => Ok(()),
        }
    }

    async fn snapshot(&mut self, run: &RunId, expiration: Option<Expiration>) -> Result<()> {
        if self.live.as_ref().is_none_or(|live| &live.row.id != run) {
            return Err(ProviderError::Stopped);
        }
        self.end(StopReason::Snapshot, Keep::Manual(expiration)).await
    }

    async fn delete(&mut self, with_snapshots: bool) -> Result<()> {
        self.end(StopReason::Deleted, Keep::AsConfigured).await?;
        let config: RunConfig = parse(&self.row().await?.config)?;
        let now = self.host.clock.now();
        let snapshots = match config.retention {
            _ if with_snapshots => SnapshotsOfDeleted::AllGo,
            Retention::Current => SnapshotsOfDeleted::AutomaticGo,
            _ => SnapshotsOfDeleted::Stay { automatic_until: now.plus(REPLACED_STAY) },
        };
        let deleted = self.host.db.delete_sandbox(&self.sandbox, snapshots, now).await;
        deleted.map_err(internal("delete sandbox"))
    }

    async fn update(&mut self, changes: UpdateSandbox) -> Result<()> {
        let mut row = self.row().await?;
        let mut config: RunConfig = parse(&row.config)?;
        let (tags, ports) = (changes.tags.clone(), changes.ports.clone());
        if let Some(id) = &changes.current_snapshot {
            let found = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
            let fits = |snapshot: &SnapshotRow| {
                snapshot.namespace == row.namespace && snapshot.status == SnapshotStatus::Created.as_str()
            };
            let found = found.filter(fits);
            let found = found.ok_or_else(|| ProviderError::NotFound(format!("snapshot {id}")))?;
            if found.image_id != row.image_id {
                return Err(ProviderError::Invalid(format!(
                    "currentSnapshotId: snapshot {id} stands on another image than the sandbox"
                )));
            }
            row.current_snapshot = Some(found.id);
        }
        row.persistent = changes.persistent.unwrap_or(row.persistent);
        let policy = changes.network.clone();
        config.change(&self.host.config, changes)?;
        row.config = write(&config)?;
        row.updated_at = self.host.clock.now();
        let routes = ports.as_deref().map(sandboxes::new_routes).transpose()?;
        let updated = self.host.db.update_sandbox(&row, tags.as_ref(), routes.as_deref()).await;
        updated.map_err(internal("update sandbox"))?;
        match policy {
            Some(policy) => self.apply_policy(policy).await,
            None => Ok(()),
        }
    }

    async fn set_policy(&mut self, run: &RunId, policy: NetworkPolicy) -> Result<()> {
        if self.live.as_ref().is_none_or(|live| &live.row.id != run) {
            return Err(ProviderError::Stopped);
        }
        self.update(UpdateSandbox { network: Some(policy), ..UpdateSandbox::default() }).await
    }

    /// Puts a policy in force in the live run, if there is one. The record comes
    /// first: a server that is killed between the two reads it when it adopts
    /// the run.
    async fn apply_policy(&mut self, policy: NetworkPolicy) -> Result<()> {
        let Some(live) = self.live.as_mut() else { return Ok(()) };
        let mut config: RunConfig = parse(&live.row.config)?;
        config.network = policy;
        live.row.config = write(&config)?;
        let (id, now) = (&live.row.id, self.host.clock.now());
        let written = self.host.db.configure_run(id, &live.row.config, now).await;
        written.map_err(internal("record policy"))?;
        launch::put_policy(&self.host, live.process.slot, &config.network);
        Ok(())
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
            return Err(ProviderError::TimeoutInvalid(format!("the total timeout must not be over {most}")));
        }
        let expires_at = live.expires_at.plus(by);
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        self.host.db.extend_run(run, timeout_ms, expires_at, now).await.map_err(internal("extend run"))?;
        live.row.timeout_ms = timeout_ms;
        live.expires_at = expires_at;
        Ok(())
    }

    async fn end_and_log(&mut self, reason: StopReason) {
        if let Err(error) = self.end(reason, Keep::AsConfigured).await {
            // The run is still in the database: start-up and the next order
            // try again.
            tracing::error!(sandbox = %self.sandbox, error = %error.detail(), "end run");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Ends the live run, if any: processes, then files, then the record.
    async fn end(&mut self, reason: StopReason, keep: Keep) -> Result<()> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let (host, run) = (&self.host, live.row.id.clone());
        self.registry.unpublish(&run);
        host.db.run_stopping(&run, host.clock.now()).await.map_err(internal("stop run"))?;
        end_processes(host, live, reason).await;
        finish(host, &live.row, reason, keep).await?;
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
pub(crate) async fn finish(host: &Arc<Host>, run: &RunRow, reason: StopReason, keep: Keep) -> Result<()> {
    let sandbox = host.db.sandbox_by_id(&run.sandbox_id).await.map_err(internal("read sandbox"))?;
    let now = host.clock.now();
    let kept = sandbox.filter(|sandbox| {
        reason != StopReason::Deleted && (sandbox.persistent || matches!(keep, Keep::Manual(_)))
    });
    let Some(sandbox) = kept else {
        let (storage, id) = (host.storage.clone(), run.id.clone());
        blocking("discard run", move || storage.discard_run(&id)).await?;
        let ended = RunStatus::Stopped.as_str();
        host.db.run_ended(&run.id, ended, reason.as_str(), now).await.map_err(internal("end run"))?;
        let ephemeral = parse::<RunConfig>(&run.config).is_ok_and(|config| config.ephemeral);
        if ephemeral && reason != StopReason::Deleted {
            let deleted = host.db.delete_sandbox(&run.sandbox_id, SnapshotsOfDeleted::AutomaticGo, now).await;
            deleted.map_err(internal("delete sandbox"))?;
        }
        return Ok(());
    };
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
    let config: RunConfig = parse(&sandbox.config)?;
    let (kind, own) = match keep {
        Keep::AsConfigured => (SnapshotKind::Automatic, None),
        Keep::Manual(expiration) => (SnapshotKind::Manual, expiration),
    };
    let (retire, of_kept) = retire(config.retention, now);
    let expiration_ms = match own.or(of_kept).or(config.snapshot_expiration) {
        None | Some(Expiration::Never) => None,
        Some(Expiration::After(ms)) => Some(i64::try_from(ms).unwrap_or(i64::MAX)),
    };
    let snapshot = SnapshotRow {
        id: SnapshotId::generate(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        image_id: sandbox.image_id.clone(),
        kind: kind.as_str().to_owned(),
        status: SnapshotStatus::Created.as_str().to_owned(),
        layers: run.layers.iter().cloned().chain([layer.id.clone()]).collect(),
        parent: run.source_snapshot.clone(),
        expiration_ms,
        expires_at: expiration_ms.map(|ms| Timestamp(now.0.saturating_add(ms))),
        last_used_at: None,
        created_at: now,
        updated_at: now,
    };
    host.db.record_stop(&snapshot, &layer, retire, reason.as_str()).await.map_err(internal("record stop"))?;
    host.db.sync().await.map_err(|error| ProviderError::internal("sync the database", error))?;
    if let Err(error) = note_crowding(host, &sandbox, &snapshot).await {
        tracing::warn!(run = %run.id, error = %error.detail(), "look at the room that layers take");
    }
    Ok(())
}

/// What a new snapshot retires, and the expiration of those that are kept.
fn retire(retention: Retention, now: Timestamp) -> (Retire, Option<Expiration>) {
    match retention {
        Retention::Current => (Retire::Replaced, None),
        Retention::Expiry => (Retire::ReplacedAt(now.plus(REPLACED_STAY)), None),
        Retention::KeepLast(KeepLast { count, expiration, delete_evicted }) => {
            let retire = if delete_evicted {
                Retire::BeyondNewest(count)
            } else {
                Retire::BeyondNewestAt(count, now.plus(REPLACED_STAY))
            };
            (retire, expiration)
        }
    }
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

pub(crate) fn write(config: &RunConfig) -> Result<String> {
    serde_json::to_string(config).map_err(|error| ProviderError::internal("write configuration", error))
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
