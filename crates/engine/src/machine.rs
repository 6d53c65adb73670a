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
use std::sync::Arc;
use std::time::Duration;

use dormouse_agent_protocol::Request;
use dormouse_provider::{
    NetworkPolicy, ProviderError, Result, RunStatus, SnapshotRequest, SnapshotStatus, Source, StopReason,
    UpdateSandbox,
};
use dormouse_store::{RunProcess, RunRow, SandboxRow, SnapshotRow, SnapshotsOfDeleted};
use dormouse_types::{RunId, SandboxId, Timestamp, VolumeId};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::config::{RunConfig, parse, write};
use crate::copies::{Copied, CopyTo, Kept};
use crate::ending::{Deletion, Ended, Ending, Manual, finish};
use crate::host::{self, Host, internal, pool};
use crate::launch::{Ground, LaunchError, Launched};
use crate::registry::Registry;
use crate::standing::{Files, Standing, disk_limit, image, living, prepare};
use crate::{launch, sandboxes, source, sys};

/// How long a task without a live run waits for the next order.
const LINGER: Duration = Duration::from_secs(30);

/// On top of the grace period: what an agent may take to end a run.
const STOP_SLACK: Duration = Duration::from_secs(8);

/// After SIGKILL to PID 1: how long the kernel may take to end the run.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// What a task is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Bring up the pending run of a new sandbox and put its source in.
    Boot { boot: Box<Boot>, reply: oneshot::Sender<Result<()>> },
    /// Have a live run; `true` when this order started it.
    Resume { reply: oneshot::Sender<Result<bool>> },
    /// Take over a run that a server before us started.
    Adopt { run: Box<RunRow>, reply: oneshot::Sender<Result<()>> },
    /// End the live run; `None` means whichever it is.
    Stop { run: Option<RunId>, reason: StopReason, reply: oneshot::Sender<Result<()>> },
    /// Keep the files of the live run in a manual snapshot, which ends it unless
    /// it is to be a live one.
    Snapshot { run: RunId, request: SnapshotRequest, reply: oneshot::Sender<Result<Kept>> },
    /// Make a volume of another sandbox a copy of this one's files, as they are
    /// now; `None` where it has no volume.
    Copy { to: Box<CopyTo>, reply: oneshot::Sender<Result<Option<Copied>>> },
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

/// A run to bring up.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    pub(crate) run: RunRow,
    /// Digest of the image.
    pub(crate) image: String,
    /// How often these files were booted, this time included.
    pub(crate) boots: i64,
    pub(crate) files: Files,
    pub(crate) source: Option<Source>,
}

/// The owner's own view of its live run.
pub(crate) struct Owned {
    pub(crate) row: RunRow,
    pub(crate) process: RunProcess,
    pidfd: AsyncFd<OwnedFd>,
    expires_at: Timestamp,
}

pub(crate) struct Machine {
    pub(crate) host: Arc<Host>,
    registry: Arc<Registry>,
    pub(crate) sandbox: SandboxId,
    pub(crate) live: Option<Owned>,
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
            Order::Boot { boot, reply } => drop(reply.send(self.boot(*boot).await)),
            Order::Resume { reply } => drop(reply.send(self.resume().await)),
            Order::Adopt { run, reply } => drop(reply.send(self.adopt(*run).await)),
            Order::Stop { run, reason, reply } => drop(reply.send(self.stop(run, reason).await)),
            Order::Snapshot { run, request, reply } => {
                drop(reply.send(self.snapshot(&run, request).await));
            }
            Order::Copy { to, reply } => drop(reply.send(self.copy(*to).await)),
            Order::Delete { with_snapshots, reply } => drop(reply.send(self.delete(with_snapshots).await)),
            Order::Update { changes, reply } => drop(reply.send(self.update(*changes).await)),
            Order::SetPolicy { run, policy, reply } => {
                drop(reply.send(self.set_policy(&run, policy).await));
            }
            Order::Extend { run, by, reply } => drop(reply.send(self.extend(&run, by).await)),
        }
    }

    pub(crate) async fn row(&self) -> Result<SandboxRow> {
        let row = self.host.db.sandbox_by_id(&self.sandbox).await.map_err(internal("read sandbox"))?;
        row.ok_or_else(|| ProviderError::NotFound("sandbox".to_owned()))
    }

    async fn boot(&mut self, boot: Boot) -> Result<()> {
        let copied = boot.files != Files::Image;
        let booted = self.start(boot).await;
        if booted.is_ok() {
            self.host.note_new();
            // A copy is on disk already, and its row not long after.
            if copied && let Err(error) = self.host.sync_database().await {
                tracing::warn!(error = %error.detail(), "it is saved with the next");
            }
        } else {
            // A sandbox that never came up was never acknowledged.
            let (now, gone) = (self.host.clock.now(), SnapshotsOfDeleted::AllGo);
            let deleted = self.host.db.delete_sandbox(&self.sandbox, gone, now).await;
            deleted.map_err(internal("delete sandbox"))?;
            self.host.untidy.notify_one();
        }
        booted
    }

    async fn resume(&mut self) -> Result<bool> {
        if self.live.as_ref().is_some_and(|live| !has_ended(live) && !host::is_exiting(live.process.pid)) {
            return Ok(false);
        }
        self.host.usable()?;
        if let Some(live) = &self.live {
            // Its processes die and the news is still on its way.
            let _ = tokio::time::timeout(DEATH_PATIENCE, live.pidfd.readable()).await;
            self.end(StopReason::Died, None).await?;
        }
        self.finish_left_over(StopReason::Died).await?;
        let sandbox = self.row().await?;
        let config: RunConfig = parse(&sandbox.config)?;
        let image = image(&self.host, &sandbox).await?;
        let snapshot = match &sandbox.current_snapshot {
            Some(id) => Some(living(&self.host, id).await?),
            None => None,
        };
        let ground = Standing::of(&sandbox, snapshot.as_ref(), &image);
        if ground.files == Files::There {
            let volume = ground.volume.clone();
            let there = pool(&self.host, "look for the files of a sandbox", move |s| s.has_volume(&volume));
            if !there.await? {
                let missing = format!("volume {} is not there", ground.volume);
                return Err(ProviderError::internal(format!("resume {}", sandbox.name), missing));
            }
        }
        let run = pending_run(&sandbox, &config, ground.volume, self.host.clock.now());
        let inserted = self.host.db.insert_run(&run, &ground.state, &sandbox).await;
        if !inserted.map_err(internal("insert run"))? {
            // Its snapshot went in this moment, and its files with it.
            return Box::pin(self.resume()).await;
        }
        // A volume that is made now is as new as that of a creation.
        if ground.files != Files::There {
            self.host.note_new();
        }
        let boot =
            Boot { run, image: image.digest, boots: ground.state.boots, files: ground.files, source: None };
        self.start(boot).await?;
        Ok(true)
    }

    /// Finishes a run whose end failed half-way, and that nobody owns, if there
    /// is one: as it was meant, else for this reason.
    async fn finish_left_over(&self, reason: StopReason) -> Result<()> {
        let newest = self.host.db.newest_run(&self.sandbox).await.map_err(internal("read newest run"))?;
        let is_left_over = |run: &RunRow| !RunStatus::from_word(&run.status).is_some_and(RunStatus::is_ended);
        let Some(run) = newest.filter(is_left_over) else { return Ok(()) };
        self.host.usable()?;
        launch::remove(&self.host, &run.id, None).await;
        let ending = match Ending::of(&run) {
            Some(ending) => ending,
            None => Ending::decide(Some(&self.row().await?), reason, None),
        };
        finish(&self.host, &run, &ending).await.map(drop)
    }

    /// Brings up a pending run. On failure the run has ended, and what is left
    /// of it is the volume that was there before.
    async fn start(&mut self, boot: Boot) -> Result<()> {
        let (run, made) = (boot.run.clone(), boot.files != Files::There);
        self.registry.begin(&run.id);
        let started = self.try_start(boot).await;
        if let Err(error) = &started {
            tracing::warn!(run = %run.id, sandbox = %run.sandbox_name, error = %error.detail(), "run did not start");
            self.give_up(&run, made).await?;
        }
        self.registry.forget(&run.id, started.is_err());
        started
    }

    /// Ends a run that did not come up; a volume that was made for it goes.
    async fn give_up(&self, run: &RunRow, made: bool) -> Result<()> {
        let (reason, now) = (StopReason::StartFailed.as_str(), self.host.clock.now());
        self.host.db.run_failed(run, made, reason, now).await.map_err(internal("end run"))?;
        self.host.untidy.notify_one();
        Ok(())
    }

    async fn try_start(&mut self, boot: Boot) -> Result<()> {
        let Boot { run, image, boots, files, source } = boot;
        let mut config: RunConfig = parse(&run.config)?;
        self.host.usable()?;
        let image = prepare(&self.host, &run, &config, image, files).await?;
        let launched = self.launch(&run, &config, &Ground { image, boots }).await?;
        let Launched { process, workdir, warnings } = launched;
        if !workdir.is_empty() {
            config.cwd = workdir;
        }
        for warning in &warnings {
            tracing::warn!(run = %run.id, sandbox = %run.sandbox_name, warning, "boot");
        }
        let run = RunRow { config: write(&config)?, warnings, ..run };
        let slot = process.slot;
        let own = async {
            if let Some(source) = &source {
                source::put_in(&self.host, &run, &config, slot, source).await?;
            }
            // The lifetime is the caller's, so it begins when they get the sandbox.
            let now = self.host.clock.now();
            let expires_at = now.plus(Duration::from_millis(config.timeout_ms));
            let pidfd = sys::watch_process(process.pid);
            let pidfd = pidfd.map_err(|e| ProviderError::internal(format!("watch run {}", run.id), e))?;
            let started = self.host.db.run_started(&run, &process, now, expires_at).await;
            started.map_err(internal("start run"))?;
            Ok((pidfd, expires_at))
        };
        match own.await {
            Ok((pidfd, expires_at)) => {
                self.take_over(run, process, pidfd, expires_at, config);
                Ok(())
            }
            Err(error) => {
                launch::remove(&self.host, &run.id, Some(slot)).await;
                Err(error)
            }
        }
    }

    /// Launches a run, of a sandbox whose disk is full too: who is in can
    /// delete.
    async fn launch(&self, run: &RunRow, config: &RunConfig, ground: &Ground) -> Result<Launched> {
        match launch::launch(&self.host, run, config, ground).await {
            Err(LaunchError::NoRoom { message, .. }) => tracing::info!(run = %run.id, message, "full"),
            other => return Ok(other?),
        }
        let (limit, sandbox) = (disk_limit(config), run.sandbox_id.clone());
        pool(&self.host, "make room for a start", move |storage| storage.lift(&sandbox, limit)).await?;
        let launched = launch::launch(&self.host, run, config, ground).await;
        let sandbox = run.sandbox_id.clone();
        let settled = pool(&self.host, "limit a sandbox", move |storage| storage.settle(&sandbox, limit));
        if let Err(error) = settled.await {
            // The next server to adopt it sets its limit.
            tracing::warn!(run = %run.id, error = %error.detail(), "limit a sandbox");
        }
        Ok(launched?)
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

    /// Takes over a run that lives. On failure it does not any more, or is
    /// nothing that this server can keep.
    async fn adopt(&mut self, run: RunRow) -> Result<()> {
        let config: RunConfig = parse(&run.config)?;
        let process = run.process.clone();
        let process = process.ok_or_else(|| ProviderError::internal("adopt a run", "it has no process"))?;
        let pidfd = sys::watch_process(process.pid)
            .map_err(|error| ProviderError::internal(format!("watch run {}", run.id), error))?;
        let expires_at = run.expires_at.unwrap_or_else(|| self.host.clock.now());
        tracing::info!(run = %run.id, sandbox = %run.sandbox_name, "adopted");
        launch::put_policy(&self.host, process.slot, &config.network);
        // A server that was killed while it made a snapshot left it so.
        self.host.cgroups.thaw(run.id.as_str());
        // Or while it let a full sandbox start.
        if let Err(error) = self.host.storage.set_limit(&run.sandbox_id, disk_limit(&config)) {
            tracing::warn!(run = %run.id, %error, "limit a sandbox");
        }
        self.take_over(run, process, pidfd, expires_at, config);
        Ok(())
    }

    async fn stop(&mut self, run: Option<RunId>, reason: StopReason) -> Result<()> {
        match &self.live {
            Some(live) if run.is_none_or(|wanted| wanted == live.row.id) => {
                self.host.usable()?;
                self.end(reason, None).await.map(drop)
            }
            // Another one: that which was meant has ended.
            Some(_) => Ok(()),
            None => self.finish_left_over(reason).await,
        }
    }

    async fn snapshot(&mut self, run: &RunId, request: SnapshotRequest) -> Result<Kept> {
        if self.live.as_ref().is_none_or(|live| &live.row.id != run) {
            return Err(ProviderError::Stopped);
        }
        self.host.usable()?;
        let manual = Manual { expiration: request.expiration };
        if request.live {
            return self.snapshot_live(manual).await;
        }
        let ended = self.end(StopReason::Snapshot, Some(manual)).await?;
        // Asked for, so it was made.
        let snapshot = ended.and_then(|ending| ending.snapshot);
        let snapshot = snapshot.ok_or_else(|| ProviderError::internal("make a snapshot", "none was made"))?;
        Ok(Kept { snapshot, stall: None })
    }

    async fn delete(&mut self, with_snapshots: bool) -> Result<()> {
        let deletion = Deletion { with_snapshots };
        // One step with the end of its run: a deletion that is cut off goes on.
        if self.live.is_some() {
            return self.end_as(Ending::of_deleted(deletion)).await.map(drop);
        }
        let (row, now) = (self.row().await?, self.host.clock.now());
        let deleted = self.host.db.delete_sandbox(&self.sandbox, deletion.snapshots(&row, now), now).await;
        deleted.map_err(internal("delete sandbox"))?;
        self.host.untidy.notify_one();
        self.host.sync_database().await
    }

    async fn update(&mut self, changes: UpdateSandbox) -> Result<()> {
        let mut row = self.row().await?;
        let mut config: RunConfig = parse(&row.config)?;
        let (tags, ports) = (changes.tags.clone(), changes.ports.clone());
        let rolled_back = changes.current_snapshot.clone();
        if let Some(id) = &rolled_back {
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
        }
        row.persistent = changes.persistent.unwrap_or(row.persistent);
        let policy = changes.network.clone();
        config.change(&self.host.config, changes)?;
        row.config = write(&config)?;
        row.updated_at = self.host.clock.now();
        let routes = ports.as_deref().map(sandboxes::new_routes).transpose()?;
        let updated = self.host.db.update_sandbox(&row, tags.as_ref(), routes.as_deref()).await;
        updated.map_err(internal("update sandbox"))?;
        if let Some(id) = rolled_back {
            let (live, now) = (self.live.is_some(), self.host.clock.now());
            let rolled_back = self.host.db.roll_back(&self.sandbox, &id, live, now).await;
            if !rolled_back.map_err(internal("roll back"))? {
                return Err(ProviderError::SnapshotGone(id.to_string()));
            }
            self.host.untidy.notify_one();
        }
        self.host.sync_database().await?;
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
        if let Err(error) = self.end(reason, None).await {
            // The run is still in the database: start-up and the next order
            // try again.
            tracing::error!(sandbox = %self.sandbox, error = %error.detail(), "end run");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Ends the live run, if any. Returns how it ended.
    async fn end(&mut self, reason: StopReason, manual: Option<Manual>) -> Result<Option<Ending>> {
        let Some(live) = &self.live else {
            return Ok(None);
        };
        let ending = match Ending::of(&live.row) {
            // An end that failed half-way goes on as it was meant.
            Some(ending) => ending,
            None => {
                let sandbox = self.host.db.sandbox_by_id(&self.sandbox).await;
                Ending::decide(sandbox.map_err(internal("read sandbox"))?.as_ref(), reason, manual)
            }
        };
        self.end_as(ending).await
    }

    /// Ends the live run, if any: what is meant is recorded, then processes end,
    /// then files are kept or dropped, then the end is recorded.
    async fn end_as(&mut self, ending: Ending) -> Result<Option<Ending>> {
        let Some(live) = &self.live else {
            return Ok(None);
        };
        let (host, run) = (&self.host, live.row.id.clone());
        let recorded = ending.write()?;
        host.db.run_stopping(&run, &recorded, host.clock.now()).await.map_err(internal("stop run"))?;
        self.registry.unpublish(&run);
        end_processes(host, live, ending.deletion.is_some()).await;
        let live = self.live.as_mut().ok_or_else(|| ProviderError::internal("end a run", "it is gone"))?;
        live.row.ending = Some(recorded);
        let slot = live.process.slot;
        let ended = finish(&self.host, &live.row, &ending).await?;
        self.let_go(&run, slot);
        match ended {
            Ended::AsMeant => Ok(Some(ending)),
            Ended::WithoutSnapshot(error) => Err(error),
        }
    }

    /// Forgets the live run, which has ended.
    fn let_go(&mut self, run: &RunId, slot: u32) {
        self.live = None;
        // Nobody waits for what is only tidying; start-up does it after a crash.
        let (host, registry, run) = (self.host.clone(), self.registry.clone(), run.clone());
        registry.begin(&run);
        tokio::spawn(async move {
            launch::remove(&host, &run, Some(slot)).await;
            registry.forget(&run, true);
        });
    }
}

fn has_ended(live: &Owned) -> bool {
    host::start_time(live.process.pid) != Some(live.process.start_time)
}

/// Gracefully, then by force. Returns when PID 1 is gone, and with it every
/// process of its namespace.
async fn end_processes(host: &Host, live: &Owned, at_once: bool) {
    let grace = if at_once { Duration::ZERO } else { host.config.stop_grace };
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

/// A run that is about to be made.
pub(crate) fn pending_run(
    sandbox: &SandboxRow,
    config: &RunConfig,
    volume: VolumeId,
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
        volume_id: volume,
        process: None,
        timeout_ms: i64::try_from(config.timeout_ms).unwrap_or(i64::MAX),
        expires_at: None,
        requested_at: now,
        started_at: None,
        stop_requested_at: None,
        stopped_at: None,
        stop_reason: None,
        ending: None,
        warnings: Vec::new(),
        updated_at: now,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use dormouse_provider::{Resources, Retention};
    use dormouse_types::ImageId;

    use super::*;

    pub(crate) fn config() -> RunConfig {
        RunConfig {
            resources: Resources { vcpus: 1, memory_mib: 1, pids: 1, disk_mib: None },
            image: "default".to_owned(),
            cwd: "/".to_owned(),
            user: "ubuntu".to_owned(),
            image_env: BTreeMap::new(),
            env: BTreeMap::new(),
            tags: BTreeMap::new(),
            timeout_ms: 1,
            network: NetworkPolicy::default(),
            ephemeral: false,
            runtime: None,
            ports: Vec::new(),
            snapshot_expiration: None,
            retention: Retention::Current,
        }
    }

    pub(crate) fn sandbox(config: &RunConfig) -> SandboxRow {
        let now = Timestamp(1);
        SandboxRow {
            id: SandboxId::generate(),
            namespace: "a/default".to_owned(),
            name: "one".parse().unwrap(),
            persistent: true,
            image_id: ImageId::generate(),
            config: write(config).unwrap(),
            current_snapshot: None,
            volume_id: Some(VolumeId::generate()),
            descends_from: None,
            base_bytes: 10,
            boots: 1,
            created_at: now,
            updated_at: now,
            status_updated_at: now,
        }
    }

    pub(crate) fn run(sandbox: &SandboxRow) -> RunRow {
        let volume = sandbox.volume_id.clone().unwrap_or_else(VolumeId::generate);
        pending_run(sandbox, &config(), volume, Timestamp(2))
    }
}
