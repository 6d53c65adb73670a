//! One task owns one sandbox: commands, the death of its processes and its
//! deadline all enter here, so there is one writer. What to do is decided in
//! [`crate::decide`], with its diagram; here it is done. What others may see of a
//! live run is published as [`Live`].
//!
//! The task lives while a run lives and for a while after; the next command
//! starts a new one.

mod end;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_control::ending::{Deletion, Manual};
use dormouse_control::order::{CopyTo, Creation, Recorded};
use dormouse_control::{Files, Ground, SandboxConfig, SandboxRecord, Stored as _, new_routes, pending_run};
use dormouse_provider::{
    Grant, MountMode, NetworkPolicy, ProviderError, Result, RunStatus, SnapshotRequest, SnapshotStatus,
    Source, StartFrom, StopReason, UpdateSandbox,
};
use dormouse_store::{
    Garbage, GarbageKind, ImageRow, RunProcess, RunRow, SandboxWithRun, SnapshotRow, VolumeState,
};
use dormouse_types::{RunId, SandboxId, SnapshotId, Timestamp};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::end::DEATH_PATIENCE;
use crate::agent::{Agent, AgentError};
use crate::decide::{Event, Phase, Plan, Step, Then, decide};
use crate::files::prepare;
use crate::host::{self, Host, internal, pool};
use crate::launch::{self, Footing, LaunchError, Launched, MountedDrive};
use crate::live::{Command, Live};
use crate::output::Outputs;
use crate::registry::Registry;
use crate::{copies, source, sys};

/// How long a task without a live run waits for the next command.
const LINGER: Duration = Duration::from_secs(30);

/// Beyond its lifetime a run waits this long for a server to end it, before it does so
/// itself.
const ALONE: Duration = Duration::from_secs(5);

/// The owner's own view of its live run.
struct Owned {
    row: RunRow,
    process: RunProcess,
    pidfd: AsyncFd<OwnedFd>,
    expires_at: Timestamp,
    /// The same, for who tells the run.
    ends_at: watch::Sender<Timestamp>,
}

/// What a run is started with.
struct Boot<'a> {
    run: RunRow,
    config: &'a Arc<SandboxConfig>,
    image: &'a ImageRow,
    /// How often these files were booted, this time included.
    boots: i64,
    files: Files,
    /// A copy that was made ahead will do.
    ahead: bool,
    source: Option<&'a Source>,
}

/// What an order that ends a run wants besides its end.
#[derive(Default)]
struct Intent {
    manual: Option<Manual>,
    deletion: Option<Deletion>,
}

pub(crate) struct Machine {
    host: Arc<Host>,
    registry: Arc<Registry>,
    sandbox: SandboxId,
    live: Option<Owned>,
    /// Its run has drives, as far as anybody knows.
    may_have_drives: bool,
}

impl Machine {
    /// Runs the task of `sandbox` until it has nothing more to own.
    pub(crate) async fn run(
        host: Arc<Host>,
        registry: Arc<Registry>,
        sandbox: SandboxId,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let mut machine = Self { host, registry, sandbox, live: None, may_have_drives: true };
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
                command = commands.recv() => match command {
                    Some(command) => machine.obey(command).await,
                    None => return,
                },
                () = ended => machine.happen(Event::Died).await,
                () = tokio::time::sleep(patience) => {
                    let now = machine.host.clock.now();
                    match &machine.live {
                        Some(live) if live.expires_at <= now => machine.happen(Event::Expired).await,
                        Some(_) => {}
                        None if machine.registry.retire(&machine.sandbox, &commands) => return,
                        None => {}
                    }
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may be gone; the command is carried out all the same.
        match command {
            Command::Create { creation, reply } => drop(reply.send(self.create(*creation).await)),
            Command::Resume { reply } => drop(reply.send(self.resume().await)),
            Command::Adopt { run, reply } => drop(reply.send(self.adopt(*run).await)),
            Command::Stop { run, reason, reply } => drop(reply.send(self.stop(run, reason).await)),
            Command::Snapshot { run, request, reply } => {
                drop(reply.send(self.snapshot(&run, request).await));
            }
            Command::Copy { to, reply } => drop(reply.send(self.copy(to).await)),
            Command::Delete { with_snapshots, reply } => {
                drop(reply.send(self.delete(Deletion { with_snapshots }).await));
            }
            Command::Update { changes, reply } => drop(reply.send(self.update(*changes).await)),
            Command::SetPolicy { run, policy, reply } => {
                drop(reply.send(self.set_policy(&run, policy).await));
            }
            Command::Renew { run, renewal, reply } => {
                let (grant, policy) = *renewal;
                drop(reply.send(self.renew(&run, grant, policy).await));
            }
            Command::Extend { run, by, reply } => drop(reply.send(self.extend(&run, by).await)),
        }
    }

    /// What happens without anybody's asking.
    async fn happen(&mut self, event: Event) {
        let plan = decide(self.live_phase().unwrap_or(Phase::Asleep), event);
        if let Err(error) = self.take(&plan, Intent::default()).await {
            // The run is still in the database: start-up and the next command
            // try again.
            tracing::error!(sandbox = %self.sandbox, error = %error.detail(), "end run");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The phase, as long as this task has a run.
    fn live_phase(&self) -> Option<Phase> {
        let live = self.live.as_ref()?;
        Some(if live.row.ending.is_some() {
            Phase::Ending
        } else if !self.host.lives(&live.process) || host::is_exiting(live.process.pid) {
            Phase::Dying
        } else {
            Phase::Live
        })
    }

    /// Whether `run` is the one that lives here.
    fn has(&self, run: &RunId) -> bool {
        self.live.as_ref().is_some_and(|live| &live.row.id == run)
    }

    async fn find(&self) -> Result<SandboxWithRun> {
        let found = self.host.db.sandbox_by_id(&self.sandbox).await.map_err(internal("read sandbox"))?;
        found.ok_or_else(|| ProviderError::NotFound("sandbox".to_owned()))
    }

    /// What to do about an event, and what is recorded of the sandbox, where
    /// that had to be read to know it.
    async fn decide(&self, event: Event) -> Result<(Plan, Option<SandboxWithRun>)> {
        if let Some(phase) = self.live_phase() {
            return Ok((decide(phase, event), None));
        }
        let found = self.find().await?;
        let phase = if found.run.status.is_ended() { Phase::Asleep } else { Phase::LeftOver };
        Ok((decide(phase, event), Some(found)))
    }

    /// Takes the steps of a plan; what the last end recorded.
    async fn take(&mut self, plan: &Plan, mut intent: Intent) -> Result<Option<Recorded>> {
        let mut last = None;
        for step in &plan.steps {
            match step {
                Step::AwaitDeath => {
                    if let Some(live) = &self.live {
                        let _ = tokio::time::timeout(DEATH_PATIENCE, live.pidfd.readable()).await;
                    }
                }
                Step::End(reason) => last = Some(self.end(*reason, std::mem::take(&mut intent)).await?),
                Step::FinishLeftOver(reason) => {
                    last = Some(self.finish_left_over(*reason, intent.deletion).await?);
                }
            }
        }
        Ok(last)
    }

    async fn create(&mut self, creation: Creation) -> Result<Recorded> {
        let Creation { sandbox, run, tags, routes, files, image, source } = creation;
        // What stands on no snapshot of its own started from somebody else's: like one that
        // starts from the image it is saved with the next.
        let ahead = matches!(files, Files::Snapshot(_)) && sandbox.current_snapshot.is_none();
        let copied = files != Files::Image && !ahead;
        let quota = self.host.config.limits.quotas.of(&run.namespace.owner);
        self.registry.begin(&run.id);
        let admitted = self.host.admits().and_then(|()| self.host.admission.begin());
        let inserted = match &admitted {
            Ok(_starting) => {
                let inserted = self.host.db.insert_sandbox(&sandbox, &run, &tags, &routes, &quota).await;
                inserted.map_err(internal("insert sandbox"))
            }
            Err(error) => Err(error.repeated()),
        };
        if let Err(error) = inserted {
            self.registry.forget(&run.id, true);
            if files == Files::There {
                let copy = Garbage { kind: GarbageKind::Volume, name: run.volume_id.to_string() };
                pool(&self.host, "drop a copy", move |storage| storage.delete(&copy)).await?;
            }
            return Err(error);
        }
        let sandbox = SandboxRecord::new(sandbox);
        let (boots, source) = (sandbox.row.boots, source.as_ref());
        let config = sandbox.config()?;
        let boot = Boot { run, config, image: &image, boots, files, ahead, source };
        // A sandbox that never came up was never acknowledged.
        let run = self.start(boot, true).await?;
        self.host.note_new();
        // A copy is on disk already, and its row not long after.
        if copied && let Err(error) = self.host.sync_database().await {
            tracing::warn!(error = %error.detail(), "it is saved with the next");
        }
        Ok(Recorded { sandbox: Some(sandbox), run, snapshot: None })
    }

    async fn resume(&mut self) -> Result<(Recorded, bool)> {
        self.host.usable()?;
        loop {
            let (plan, found) = self.decide(Event::Resume).await?;
            let ended = self.take(&plan, Intent::default()).await?;
            if plan.then == Then::Answer {
                return Ok((self.as_recorded(None).await?, false));
            }
            // What an end recorded is newer than what was found before it.
            let found = if ended.is_some() { None } else { found };
            let found = match found {
                Some(found) => found,
                None => self.find().await?,
            };
            if let Some(recorded) = self.start_again(found).await? {
                return Ok((recorded, true));
            }
            // Its snapshot went in this moment, and its files with it.
        }
    }

    /// Starts a run of a sandbox that has none; `None` where it has changed
    /// since it was read.
    async fn start_again(&mut self, found: SandboxWithRun) -> Result<Option<Recorded>> {
        let _starting = self.host.admission.begin()?;
        let sandbox = SandboxRecord::new(found.sandbox);
        let config = sandbox.config()?.clone();
        let image = self.host.db.image_by_id(&sandbox.row.image_id).await.map_err(internal("read image"))?;
        let image =
            image.ok_or_else(|| ProviderError::NotFound(format!("image {}", sandbox.row.image_id)))?;
        let snapshot = match &sandbox.row.current_snapshot {
            Some(id) => Some(self.living_snapshot(id).await?),
            None => None,
        };
        let Ground { volume, files, state } = Ground::of(&sandbox.row, snapshot.as_ref(), &image);
        if files == Files::There {
            let sought = volume.clone();
            let there = pool(&self.host, "look for the files of a sandbox", move |s| s.has_volume(&sought));
            if !there.await? {
                let missing = format!("volume {volume} is not there");
                return Err(ProviderError::internal(format!("resume {}", sandbox.row.name), missing));
            }
        }
        let now = self.host.clock.now();
        let (id, made) = (RunId::generate(), files != Files::There);
        let number = (id, found.run.number + 1);
        let run = pending_run(&self.host.config.host, &sandbox.row, &config, number, (volume, made), now)?;
        let quota = self.host.config.limits.quotas.of(&run.namespace.owner);
        let inserted = self.host.db.insert_run(&run, &state, &sandbox.row, &quota).await;
        if !inserted.map_err(internal("insert run"))? {
            return Ok(None);
        }
        // A volume that is made now is as new as that of a creation.
        if made {
            self.host.note_new();
        }
        let (config, boots) = (&config, state.boots);
        let boot = Boot { run, config, image: &image, boots, files, ahead: false, source: None };
        let run = self.start(boot, false).await?;
        let mut row = sandbox.row.clone();
        (row.current_run, row.volume_id) = (run.id.clone(), Some(run.volume_id.clone()));
        (row.boots, row.base_bytes, row.descends_from) = (state.boots, state.base_bytes, state.descends_from);
        row.status_updated_at = run.updated_at;
        Ok(Some(Recorded { sandbox: Some(sandbox.with_row(row)), run, snapshot: None }))
    }

    /// The snapshot, if it is still there.
    async fn living_snapshot(&self, id: &SnapshotId) -> Result<SnapshotRow> {
        let found = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
        let found = found.filter(|snapshot| snapshot.status == SnapshotStatus::Created);
        found.ok_or_else(|| ProviderError::SnapshotGone(id.to_string()))
    }

    /// Brings up a pending run. On failure the run has ended, a volume that was
    /// made for it goes, and `with_sandbox` the sandbox.
    async fn start(&mut self, boot: Boot<'_>, with_sandbox: bool) -> Result<RunRow> {
        let run = boot.run.clone();
        self.registry.begin(&run.id);
        let started = self.try_start(boot).await;
        if let Err(error) = &started {
            tracing::warn!(run = %run.id, sandbox = %run.sandbox_name, error = %error.detail(), "run did not start");
            let now = self.host.clock.now();
            let failed = self.host.db.run_failed(&run, with_sandbox, now).await;
            self.registry.forget(&run.id, true);
            // What is not recorded is left over, and the next order finishes it.
            failed.map_err(internal("end run"))?;
            self.host.untidy.notify_one();
            return started;
        }
        self.registry.forget(&run.id, false);
        started
    }

    async fn try_start(&mut self, boot: Boot<'_>) -> Result<RunRow> {
        let Boot { run, config, image, boots, files, ahead, source } = boot;
        self.host.usable()?;
        let image = prepare(&self.host, &run, image, files, ahead).await?;
        let drives = match self.mount_drives(&run, config).await {
            Ok(drives) => drives,
            Err(error) => {
                launch::remove(&self.host, &run.id, None).await;
                return Err(error);
            }
        };
        self.may_have_drives = !drives.is_empty();
        let launched = self.launch(&run, config, &Footing { image, boots, drives }).await?;
        let Launched { process, workdir, warnings } = launched;
        for warning in &warnings {
            tracing::warn!(run = %run.id, sandbox = %run.sandbox_name, warning, "boot");
        }
        let cwd = if workdir.is_empty() { run.cwd.clone() } else { workdir };
        let run = RunRow { cwd, warnings, ..run };
        let slot = process.slot;
        let own = async {
            if let Some(source) = source {
                source::put_in(&self.host, &run, config, slot, source).await?;
            }
            // The lifetime is the caller's, so it begins when they get the sandbox.
            let now = self.host.clock.now();
            let lifetime = Duration::from_millis(u64::try_from(run.timeout_ms).unwrap_or(0));
            let pidfd = sys::watch_process(process.pid);
            let pidfd = pidfd.map_err(|e| ProviderError::internal(format!("watch run {}", run.id), e))?;
            let run = RunRow {
                status: RunStatus::Running,
                process: Some(process.clone()),
                started_at: Some(now),
                expires_at: Some(now.plus(lifetime)),
                updated_at: now,
                ..run.clone()
            };
            self.host.db.run_started(&run, &process).await.map_err(internal("start run"))?;
            Ok((run, pidfd))
        };
        match own.await {
            Ok((run, pidfd)) => {
                self.take_over(run.clone(), process, pidfd, config.clone());
                Ok(run)
            }
            Err(error) => {
                launch::remove(&self.host, &run.id, Some(slot)).await;
                Err(error)
            }
        }
    }

    /// Has the drives of a run: those that it may write to are its own from here on, until it
    /// ends; of the others it sees what is in them now.
    async fn mount_drives(&self, run: &RunRow, config: &SandboxConfig) -> Result<Vec<MountedDrive>> {
        let mut mounted = Vec::new();
        for (number, (place, mount)) in config.mounts.iter().enumerate() {
            let found =
                self.host.db.drive(&run.namespace, &mount.drive).await.map_err(internal("read drive"))?;
            let drive = found.ok_or_else(|| ProviderError::NotFound(format!("drive {}", mount.drive)))?;
            if drive.host_id != self.host.config.host {
                return Err(ProviderError::Invalid(format!(
                    "mounts: drive {} is on another server",
                    drive.name
                )));
            }
            let id = drive.id.clone();
            let files = match mount.mode {
                MountMode::ReadWrite => {
                    let now = self.host.clock.now();
                    let attached = self.host.db.attach_drive(&drive.id, &run.id, now).await;
                    if !attached.map_err(internal("attach drive"))? {
                        let holder =
                            drive.attached.map(|(_, sandbox)| sandbox.to_string()).unwrap_or_default();
                        return Err(ProviderError::InUse(format!(
                            "mounts: drive {} is attached to sandbox {holder}; stop that first, or mount a snapshot",
                            drive.name
                        )));
                    }
                    let limit = u64::try_from(drive.max_size_bytes).unwrap_or(0);
                    pool(&self.host, "have a drive", move |storage| {
                        storage.have_drive(&id, limit)?;
                        Ok(storage.drive_path(&id))
                    })
                    .await?
                }
                MountMode::Snapshot if !drive.made => {
                    return Err(ProviderError::Invalid(format!(
                        "mounts: nothing was ever written to drive {}; mount it read-write first",
                        drive.name
                    )));
                }
                MountMode::Snapshot => {
                    let name = format!("{}-{number}", run.id);
                    pool(&self.host, "view a drive", move |storage| storage.view_drive(&id, &name)).await?
                }
            };
            let writable = mount.mode == MountMode::ReadWrite;
            mounted.push(MountedDrive { files, place: place.clone(), writable });
        }
        // Else a host that dies now forgets whose they are.
        if !mounted.is_empty() {
            self.host.sync_database().await?;
        }
        Ok(mounted)
    }

    /// Launches a run, of a sandbox whose disk is full too: who is in can
    /// delete.
    async fn launch(&self, run: &RunRow, config: &SandboxConfig, footing: &Footing) -> Result<Launched> {
        match launch::launch(&self.host, run, config, footing).await {
            Err(LaunchError::NoRoom { message, .. }) => tracing::info!(run = %run.id, message, "full"),
            other => return Ok(other?),
        }
        let (limit, sandbox) = (run.resources.disk_bytes(), run.sandbox_id.clone());
        pool(&self.host, "make room for a start", move |storage| storage.lift(&sandbox, limit)).await?;
        let launched = launch::launch(&self.host, run, config, footing).await;
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
        config: Arc<SandboxConfig>,
    ) {
        self.registry.publish(Live {
            cgroups: self.host.cgroups.clone(),
            run: row.id.clone(),
            sandbox: row.sandbox_id.clone(),
            namespace: row.namespace.clone(),
            config,
            cwd: row.cwd.clone(),
            agent: Agent::in_dir(&self.host.socket_dir(row.id.as_str())),
            address: self.host.numbering.address(process.slot),
            sandboxes: self.host.sandboxes.clone(),
            saved: Mutex::new((row.sent_bytes, row.received_bytes)),
            outputs: Outputs::default(),
            ended: CancellationToken::new(),
        });
        let expires_at = row.expires_at.unwrap_or_else(|| self.host.clock.now());
        let (ends_at, told) = watch::channel(expires_at);
        self.arm(&row.id, told);
        self.live = Some(Owned { row, process, pidfd, expires_at, ends_at });
    }

    /// Tells a run when its lifetime is over, now and whenever that changes: it ends then,
    /// also where this server does not live to end it.
    fn arm(&self, run: &RunId, ends_at: watch::Receiver<Timestamp>) {
        let agent = Agent::in_dir(&self.host.socket_dir(run.as_str()));
        let (host, run, mut ends_at) = (self.host.clone(), run.clone(), ends_at);
        tokio::spawn(async move {
            loop {
                let end = *ends_at.borrow_and_update();
                let left = end.since(host.clock.now()) + ALONE;
                let pause = match agent.end_after(left, host.config.stop_grace).await {
                    Ok(()) => Duration::from_secs(86_400),
                    // Its agent is older than that.
                    Err(AgentError::Refused(_)) => return,
                    Err(error) => {
                        tracing::warn!(%run, %error, "tell a run when it ends");
                        Duration::from_secs(1)
                    }
                };
                tokio::select! {
                    changed = ends_at.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(pause) => {}
                }
            }
        });
    }

    /// Takes over a run that lives. On failure it does not any more, or is
    /// nothing that this server can keep.
    async fn adopt(&mut self, run: RunRow) -> Result<()> {
        // A database that does not answer for a moment ends nobody.
        let found = loop {
            match self.host.db.sandbox_by_id(&self.sandbox).await {
                Ok(found) => break found,
                Err(error) => {
                    tracing::error!(run = %run.id, %error, "read a sandbox to adopt; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        let found = found.ok_or_else(|| ProviderError::NotFound(format!("sandbox {}", self.sandbox)))?;
        let sandbox = SandboxRecord::new(found.sandbox);
        let config = sandbox.config()?.clone();
        let process = run.process.clone();
        let process = process.ok_or_else(|| ProviderError::internal("adopt a run", "it has no process"))?;
        let pidfd = sys::watch_process(process.pid)
            .map_err(|error| ProviderError::internal(format!("watch run {}", run.id), error))?;
        tracing::info!(run = %run.id, sandbox = %run.sandbox_name, "adopted");
        launch::put_policy(&self.host, process.slot, &run, &config.network);
        // A server that was killed while it made a snapshot left it so.
        self.host.cgroups.thaw(run.id.as_str());
        // Or while it let a full sandbox start.
        let limit = run.resources.disk_bytes();
        if let Err(error) = self.host.storage.set_limit(&run.sandbox_id, limit) {
            tracing::warn!(run = %run.id, %error, "limit a sandbox");
        }
        self.may_have_drives = true;
        self.take_over(run, process, pidfd, config);
        if let Some(lingering) = self.live.as_ref().filter(|live| live.row.status == RunStatus::Stopping) {
            // Nobody is let in; its death ends it as was recorded.
            self.registry.unpublish(&lingering.row.id);
        }
        Ok(())
    }

    /// What is recorded of the sandbox and of one of its runs, by default of the
    /// newest.
    async fn as_recorded(&self, run: Option<&RunId>) -> Result<Recorded> {
        let found = self.host.db.sandbox_by_id(&self.sandbox).await.map_err(internal("read sandbox"))?;
        let wanted = match (run, &found) {
            (Some(run), Some(found)) if &found.run.id == run => Some(found.run.clone()),
            (Some(run), _) => self.host.db.run(run).await.map_err(internal("read run"))?,
            (None, found) => found.as_ref().map(|found| found.run.clone()),
        };
        let run = wanted.ok_or_else(|| ProviderError::NotFound("run".to_owned()))?;
        let sandbox = found.map(|found| SandboxRecord::new(found.sandbox));
        Ok(Recorded { sandbox, run, snapshot: None })
    }

    async fn stop(&mut self, run: Option<RunId>, reason: StopReason) -> Result<Recorded> {
        let current = run.as_ref().is_none_or(|run| self.has(run));
        if current && self.live.is_some() {
            self.host.usable()?;
        }
        let plan = match self.decide(Event::Stop { current, reason }).await {
            Ok((plan, _)) => plan,
            // Its sandbox is gone, and it ended before.
            Err(ProviderError::NotFound(_)) => return self.as_recorded(run.as_ref()).await,
            Err(error) => return Err(error),
        };
        match self.take(&plan, Intent::default()).await? {
            Some(recorded) => Ok(recorded),
            None => self.as_recorded(run.as_ref()).await,
        }
    }

    async fn snapshot(
        &mut self,
        run: &RunId,
        request: SnapshotRequest,
    ) -> Result<(Recorded, Option<Duration>)> {
        let event = Event::Snapshot { current: self.has(run), live: request.live };
        let plan = decide(self.live_phase().unwrap_or(Phase::Asleep), event);
        let manual = Manual { expiration: request.expiration };
        match plan.then {
            Then::CopyLive => {
                self.host.usable()?;
                let sandbox = SandboxRecord::new(self.find().await?.sandbox);
                let Some(live) = &self.live else { return Err(ProviderError::Stopped) };
                let (recorded, stall) =
                    copies::snapshot_live(&self.host, sandbox, &live.row, &manual).await?;
                Ok((recorded, Some(stall)))
            }
            Then::Answer => {
                self.host.usable()?;
                let intent = Intent { manual: Some(manual), deletion: None };
                let recorded = self.take(&plan, intent).await?.ok_or(ProviderError::Stopped)?;
                Ok((recorded, None))
            }
            _ => Err(ProviderError::Stopped),
        }
    }

    async fn copy(&mut self, to: CopyTo) -> Result<Option<VolumeState>> {
        self.host.admits()?;
        let (plan, _) = self.decide(Event::Copy).await?;
        self.take(&plan, Intent::default()).await?;
        let sandbox = SandboxRecord::new(self.find().await?.sandbox);
        let live = self.live.as_ref().filter(|_| plan.then == Then::CopyLive).map(|live| &live.row);
        copies::copy(&self.host, &sandbox, live, to).await
    }

    async fn delete(&mut self, deletion: Deletion) -> Result<()> {
        let (plan, found) = self.decide(Event::Delete).await?;
        let intent = Intent { manual: None, deletion: Some(deletion) };
        self.take(&plan, intent).await?;
        let (Then::Forget, Some(found)) = (plan.then, found) else { return Ok(()) };
        let (now, host) = (self.host.clock.now(), &found.run.host_id);
        let snapshots = deletion.snapshots(&SandboxRecord::new(found.sandbox), now);
        let deleted = self.host.db.delete_sandbox(&self.sandbox, host, snapshots, now).await;
        deleted.map_err(internal("delete sandbox"))?;
        self.host.untidy.notify_one();
        self.host.sync_database().await
    }

    async fn update(&mut self, changes: UpdateSandbox) -> Result<Recorded> {
        let (plan, found) = self.decide(Event::Update).await?;
        if plan.then != Then::Change {
            return Err(ProviderError::Stopping);
        }
        let SandboxWithRun { sandbox, run } = match found {
            Some(found) => found,
            None => self.find().await?,
        };
        let record = SandboxRecord::new(sandbox);
        let mut config = SandboxConfig::clone(record.config()?);
        let mut row = record.row;
        let (tags, ports) = (changes.tags.clone(), changes.ports.clone());
        let rolled_back = changes.start_from.clone();
        if let Some(StartFrom::Snapshot(id)) = &rolled_back {
            let found = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
            let fits = |snapshot: &SnapshotRow| {
                snapshot.namespace == row.namespace && snapshot.status == SnapshotStatus::Created
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
        let policy = changes.network.is_some();
        config.change(&self.host.config.limits, changes)?;
        row.config = config.write()?;
        row.updated_at = self.host.clock.now();
        let routes = ports.as_deref().map(new_routes).transpose()?;
        let updated = self.host.db.update_sandbox(&row, tags.as_ref(), routes.as_deref()).await;
        updated.map_err(internal("update sandbox"))?;
        if let Some(from) = rolled_back {
            let live = self.live.as_ref().map(|live| &live.row);
            let snapshot = match from {
                StartFrom::Snapshot(id) => Some(id),
                StartFrom::Image => None,
            };
            let host = &self.host.config.host;
            let rolled_back =
                self.host.db.roll_back(&self.sandbox, snapshot.as_ref(), host, live, row.updated_at).await;
            if !rolled_back.map_err(internal("roll back"))? {
                return Err(match snapshot {
                    Some(id) => ProviderError::SnapshotGone(id.to_string()),
                    None => ProviderError::NotFound("sandbox".to_owned()),
                });
            }
            self.host.untidy.notify_one();
            row.current_snapshot = snapshot;
        }
        self.host.sync_database().await?;
        let run = if policy { self.apply_policy(&config, run).await? } else { run };
        Ok(Recorded { sandbox: Some(SandboxRecord::new(row)), run, snapshot: None })
    }

    /// Whether the policy of a run can be changed now.
    fn takes_policy(&self, run: &RunId) -> Result<()> {
        let event = Event::SetPolicy { current: self.has(run) };
        match decide(self.live_phase().unwrap_or(Phase::Asleep), event).then {
            Then::Change => Ok(()),
            _ => Err(ProviderError::Stopped),
        }
    }

    async fn set_policy(&mut self, run: &RunId, policy: NetworkPolicy) -> Result<Recorded> {
        self.takes_policy(run)?;
        self.update(UpdateSandbox { network: Some(policy), ..UpdateSandbox::default() }).await
    }

    /// [`Machine::set_policy`] for whoever keeps the credentials of a grant up to date.
    async fn renew(&mut self, run: &RunId, grant: Grant, policy: NetworkPolicy) -> Result<bool> {
        self.takes_policy(run)?;
        let record = SandboxRecord::new(self.find().await?.sandbox);
        let config = record.config()?;
        if config.grant.as_ref() != Some(&grant) {
            return Ok(false);
        }
        if config.network != policy {
            let changes =
                UpdateSandbox { network: Some(policy), grant: Some(grant), ..UpdateSandbox::default() };
            self.update(changes).await?;
        }
        Ok(true)
    }

    /// Puts the policy of a sandbox in force in its live run, if there is one.
    /// The record came first: a server that is killed between the two reads it
    /// when it adopts the run.
    async fn apply_policy(&mut self, config: &SandboxConfig, run: RunRow) -> Result<RunRow> {
        let Some(live) = self.live.as_mut() else { return Ok(run) };
        launch::put_policy(&self.host, live.process.slot, &live.row, &config.network);
        live.row.network = config.shown_network()?;
        live.row.updated_at = self.host.clock.now();
        let noted = self.host.db.note_policy(&live.row.id, &live.row.network, live.row.updated_at).await;
        noted.map_err(internal("record policy"))?;
        Ok(live.row.clone())
    }

    async fn extend(&mut self, run: &RunId, by: Duration) -> Result<Recorded> {
        let event = Event::Extend { current: self.has(run) };
        let plan = decide(self.live_phase().unwrap_or(Phase::Asleep), event);
        let Some(live) = self.live.as_mut().filter(|_| plan.then == Then::Change) else {
            return Err(ProviderError::Stopped);
        };
        let now = self.host.clock.now();
        let timeout_ms = self.host.config.limits.extended(live.row.timeout_ms, by)?;
        let expires_at = live.expires_at.plus(by);
        self.host.db.extend_run(run, timeout_ms, expires_at, now).await.map_err(internal("extend run"))?;
        (live.row.timeout_ms, live.row.expires_at, live.row.updated_at) = (timeout_ms, Some(expires_at), now);
        live.expires_at = expires_at;
        // Whoever tells it goes with the run.
        let _ = live.ends_at.send(expires_at);
        let row = live.row.clone();
        Ok(Recorded { sandbox: None, run: row, snapshot: None })
    }
}
