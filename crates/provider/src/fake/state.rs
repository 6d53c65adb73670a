//! What the fake remembers, and how it changes: every rule of a provider that
//! the suite asks for, without a host below it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_types::{Namespace, RunId, RunStatus, SandboxName, SnapshotId, Timestamp};

use super::commands::Commands;
use super::files::Files;
use crate::{
    CreateSandbox, Expiration, KeepLast, ProviderError, Resources, Result, Retention, Route, Run, Sandbox,
    SandboxKey, SandboxView, Snapshot, SnapshotKind, SnapshotStatus, StopReason, UpdateSandbox,
};

/// Longest lifetime of a run, extensions included.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Limits of a sandbox that asks for none.
const RESOURCES: Resources = Resources { vcpus: 2, memory_mib: 4096, pids: 512, disk_mib: None };

/// Default working directory.
const CWD: &str = "/vercel/sandbox";

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) sandbox: Sandbox,
    pub(super) env: BTreeMap<String, String>,
    pub(super) routes: Vec<Route>,
    ephemeral: bool,
    retry_key: Option<String>,
    /// What its next run has; `None`: those of its current snapshot, or of the
    /// image.
    files: Option<Arc<Mutex<Files>>>,
    /// The last snapshot whose files these are.
    descends_from: Option<SnapshotId>,
}

#[derive(Debug)]
pub(super) struct Boot {
    pub(super) run: Run,
    pub(super) namespace: Namespace,
    pub(super) files: Arc<Mutex<Files>>,
    pub(super) commands: Commands,
    pub(super) running: Arc<Mutex<BTreeMap<String, u32>>>,
    /// The sandbox was told to start its next run from a snapshot.
    rolled_back: bool,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) snapshot: Snapshot,
    pub(super) namespace: Namespace,
    pub(super) sandbox: SandboxName,
    files: Files,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) machines: BTreeMap<(Namespace, SandboxName), Machine>,
    pub(super) boots: BTreeMap<RunId, Boot>,
    pub(super) kept: BTreeMap<SnapshotId, Kept>,
}

fn copy(files: &Arc<Mutex<Files>>) -> Files {
    files.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn place(key: &SandboxKey) -> (Namespace, SandboxName) {
    (key.namespace.clone(), key.name.clone())
}

fn checked_timeout(timeout: Option<Duration>) -> Result<Duration> {
    let timeout = timeout.unwrap_or(Duration::from_secs(300));
    if timeout > MAX_TIMEOUT {
        return Err(ProviderError::TimeoutInvalid("timeout is too long".to_owned()));
    }
    Ok(timeout)
}

fn routes(ports: &[u16]) -> Vec<Route> {
    ports.iter().map(|port| Route { port: *port, subdomain: format!("port-{port}"), url: None }).collect()
}

impl State {
    pub(super) fn machine(&mut self, key: &SandboxKey) -> Result<&mut Machine> {
        self.machines
            .get_mut(&place(key))
            .ok_or_else(|| ProviderError::NotFound(format!("sandbox {}", key.name)))
    }

    pub(super) fn boot(&mut self, namespace: &Namespace, run: &RunId) -> Result<&mut Boot> {
        self.boots
            .get_mut(run)
            .filter(|boot| &boot.namespace == namespace)
            .ok_or_else(|| ProviderError::NotFound(format!("run {run}")))
    }

    /// Lifetimes that are over end in a stop, expirations in a deletion.
    pub(super) fn settle(&mut self, now: Timestamp) {
        let over: Vec<(Namespace, RunId)> = self
            .boots
            .values()
            .filter(|boot| boot.run.status == RunStatus::Running && boot.run.expires_at() <= now)
            .map(|boot| (boot.namespace.clone(), boot.run.id.clone()))
            .collect();
        for (namespace, run) in over {
            // It runs, so it can be stopped.
            let _ = self.end(&namespace, &run, StopReason::Lifetime, None, now);
        }
        for kept in self.kept.values_mut() {
            if kept.snapshot.expires_at.is_some_and(|at| at <= now) {
                kept.snapshot.status = SnapshotStatus::Deleted;
            }
        }
    }

    pub(super) fn create(&mut self, request: CreateSandbox, now: Timestamp) -> Result<SandboxView> {
        if let Some(machine) = self.machines.get(&place(&request.key)) {
            let repeated = machine.retry_key.is_some() && machine.retry_key == request.retry_key;
            return if repeated {
                self.view(&request.key, true)
            } else {
                Err(ProviderError::Conflict(format!("sandbox {}", request.key.name)))
            };
        }
        let timeout = checked_timeout(request.timeout)?;
        let from = match &request.source {
            Some(crate::Source::Snapshot(id)) => {
                Some(self.living(&request.key.namespace, id)?.snapshot.id.clone())
            }
            _ => None,
        };
        let files = match &request.source {
            Some(crate::Source::SnapshotOf(namespace, id)) => {
                Some(Arc::new(Mutex::new(self.living(namespace, id)?.files.clone())))
            }
            _ => None,
        };
        let sandbox = Sandbox {
            name: request.key.name.clone(),
            persistent: request.persistent,
            created_at: now,
            updated_at: now,
            current_run: RunId::generate(),
            status: RunStatus::Pending,
            resources: RESOURCES,
            image: "default".to_owned(),
            runtime: None,
            timeout,
            network: request.network,
            current_snapshot: from,
            cwd: CWD.to_owned(),
            tags: request.tags,
            expires_at: None,
            status_updated_at: now,
            snapshot_expiration: request.snapshot_expiration,
            retention: request.retention,
            mounts: std::collections::BTreeMap::new(),
            disk: None,
        };
        let machine = Machine {
            sandbox,
            env: request.env,
            routes: routes(&request.ports),
            ephemeral: request.ephemeral,
            retry_key: request.retry_key,
            files,
            descends_from: None,
        };
        self.machines.insert(place(&request.key), machine);
        self.start(&request.key, now)?;
        self.view(&request.key, true)
    }

    pub(super) fn taken(&mut self, key: &SandboxKey) {
        if let Some(machine) = self.machines.get_mut(&place(key)) {
            machine.retry_key = None;
        }
    }

    /// A copy of a sandbox, whose run is started by the caller.
    pub(super) fn fork(&mut self, request: crate::ForkSandbox, now: Timestamp) -> Result<SandboxView> {
        let from = SandboxKey { namespace: request.key.namespace.clone(), name: request.source };
        if self.machines.contains_key(&place(&request.key)) {
            return Err(ProviderError::Conflict(format!("sandbox {}", request.key.name)));
        }
        let machine = self.machine(&from)?;
        let (source, env, ports) = (
            machine.sandbox.clone(),
            machine.env.clone(),
            machine.routes.iter().map(|route| route.port).collect::<Vec<_>>(),
        );
        let (own, run) = (machine.files.clone(), source.current_run.clone());
        let now_files = match self.boots.get(&run) {
            Some(boot) if boot.run.status == RunStatus::Running => Some(copy(&boot.files)),
            _ => own.as_ref().map(copy),
        };
        let mut create = CreateSandbox::new(request.key.clone());
        create.persistent = source.persistent;
        create.timeout = Some(source.timeout);
        create.env = request.env.unwrap_or(env);
        create.tags = source.tags;
        create.ports = ports;
        create.network = source.network;
        create.retention = source.retention;
        create.snapshot_expiration = source.snapshot_expiration;
        create.retry_key = request.retry_key;
        let files = if request.live || source.current_snapshot.is_none() { now_files } else { None };
        if files.is_none() {
            create.source = source.current_snapshot.map(crate::Source::Snapshot);
        }
        self.create(create, now)?;
        if let Some(files) = files {
            let machine = self.machine(&request.key)?;
            let run = machine.sandbox.current_run.clone();
            let boot = self.boot(&request.key.namespace, &run)?;
            *boot.files.lock().unwrap_or_else(PoisonError::into_inner) = files;
        }
        self.update(&request.key, request.changes, now)?;
        self.view(&request.key, true)
    }

    fn living(&self, namespace: &Namespace, id: &SnapshotId) -> Result<&Kept> {
        self.kept
            .get(id)
            .filter(|kept| &kept.namespace == namespace && kept.snapshot.status == SnapshotStatus::Created)
            .ok_or_else(|| ProviderError::SnapshotGone(id.to_string()))
    }

    /// Gives a sandbox that has none a live run.
    pub(super) fn start(&mut self, key: &SandboxKey, now: Timestamp) -> Result<()> {
        let machine = self.machine(key)?;
        let (sandbox, own) = (machine.sandbox.clone(), machine.files.take());
        let files = match &sandbox.current_snapshot {
            Some(id) => {
                let kept = self.living(&key.namespace, id)?.files.clone();
                own.unwrap_or_else(|| Arc::new(Mutex::new(kept)))
            }
            None => own.unwrap_or_else(|| Arc::new(Mutex::new(Files::of_image()))),
        };
        let id = RunId::generate();
        let run = Run {
            id: id.clone(),
            sandbox: sandbox.name.clone(),
            status: RunStatus::Running,
            resources: sandbox.resources,
            timeout: sandbox.timeout,
            cwd: sandbox.cwd.clone(),
            requested_at: now,
            started_at: Some(now),
            stop_requested_at: None,
            stopped_at: None,
            updated_at: now,
            source_snapshot: sandbox.current_snapshot.clone(),
            stop_reason: None,
            runtime: Some(sandbox.image.clone()),
            network: sandbox.network.clone(),
            transfer: None,
            warnings: Vec::new(),
        };
        let (commands, running) = (Commands::new(), Arc::default());
        let namespace = key.namespace.clone();
        self.boots.insert(id.clone(), Boot { run, namespace, files, commands, running, rolled_back: false });
        let machine = self.machine(key)?;
        if let Some(id) = &machine.sandbox.current_snapshot {
            machine.descends_from = Some(id.clone());
        }
        machine.sandbox.current_run = id;
        machine.sandbox.status = RunStatus::Running;
        machine.sandbox.status_updated_at = now;
        Ok(())
    }

    /// Ends a run. Returns the snapshot that was made.
    pub(super) fn end(
        &mut self,
        namespace: &Namespace,
        id: &RunId,
        reason: StopReason,
        manual: Option<Option<Expiration>>,
        now: Timestamp,
    ) -> Result<Option<Snapshot>> {
        let boot = self.boot(namespace, id)?;
        if boot.run.status.is_ended() {
            return Ok(None);
        }
        boot.run.status = RunStatus::Stopped;
        boot.run.stop_reason = Some(reason.to_string());
        (boot.run.stop_requested_at, boot.run.stopped_at, boot.run.updated_at) = (Some(now), Some(now), now);
        boot.commands.values().for_each(|command| command.kill(9));
        let (files, rolled_back, name) = (boot.files.clone(), boot.rolled_back, boot.run.sandbox.clone());
        let key = SandboxKey { namespace: namespace.clone(), name };
        let Ok(machine) = self.machine(&key) else { return Ok(None) };
        machine.sandbox.status = RunStatus::Stopped;
        machine.sandbox.status_updated_at = now;
        let (persistent, retention) = (machine.sandbox.persistent, machine.sandbox.retention);
        let ephemeral = machine.ephemeral;
        if persistent && !rolled_back {
            machine.files = Some(files.clone());
        }
        let made = if manual.is_some() || (persistent && retention != Retention::Current) {
            Some(self.keep(&key, id, &copy(&files), manual, !rolled_back, now)?)
        } else {
            if persistent && !rolled_back {
                self.machine(&key)?.sandbox.current_snapshot = None;
            }
            None
        };
        if ephemeral {
            self.machines.remove(&place(&key));
        }
        Ok(made)
    }

    /// Makes a snapshot of files; `current`: the sandbox starts from it next.
    pub(super) fn keep(
        &mut self,
        key: &SandboxKey,
        run: &RunId,
        files: &Files,
        manual: Option<Option<Expiration>>,
        current: bool,
        now: Timestamp,
    ) -> Result<Snapshot> {
        let machine = self.machine(key)?;
        let (retention, usual) = (machine.sandbox.retention, machine.sandbox.snapshot_expiration);
        let of_kept = match retention {
            Retention::KeepLast(KeepLast { expiration, .. }) => expiration,
            _ => None,
        };
        let expiration = manual.flatten().or(of_kept).or(usual);
        let id = SnapshotId::generate();
        let parent = machine.descends_from.replace(id.clone());
        if current {
            machine.sandbox.current_snapshot = Some(id.clone());
        }
        let snapshot = Snapshot {
            id: id.clone(),
            source_run: run.clone(),
            kind: if manual.is_some() { SnapshotKind::Manual } else { SnapshotKind::Automatic },
            status: SnapshotStatus::Created,
            size_bytes: files.size(),
            created_at: now,
            updated_at: now,
            expires_at: match expiration {
                Some(Expiration::After(ms)) => Some(now.plus(Duration::from_millis(ms))),
                Some(Expiration::Never) | None => None,
            },
            last_used_at: None,
            parent,
        };
        let kept = Kept {
            snapshot: snapshot.clone(),
            namespace: key.namespace.clone(),
            sandbox: key.name.clone(),
            files: files.clone(),
        };
        self.kept.insert(id, kept);
        if let Retention::KeepLast(KeepLast { count, .. }) = retention {
            let of_sandbox =
                self.kept.values_mut().rev().filter(|kept| {
                    kept.sandbox == key.name && kept.snapshot.status == SnapshotStatus::Created
                });
            for kept in of_sandbox.skip(usize::try_from(count).unwrap_or(usize::MAX)) {
                kept.snapshot.status = SnapshotStatus::Deleted;
            }
        }
        Ok(snapshot)
    }

    pub(super) fn update(&mut self, key: &SandboxKey, changes: UpdateSandbox, now: Timestamp) -> Result<()> {
        if let Some(crate::StartFrom::Snapshot(id)) = &changes.start_from {
            self.living(&key.namespace, id)?;
        }
        let timeout = changes.timeout.map(|timeout| checked_timeout(Some(timeout))).transpose()?;
        let machine = self.machine(key)?;
        let sandbox = &mut machine.sandbox;
        sandbox.persistent = changes.persistent.unwrap_or(sandbox.persistent);
        sandbox.timeout = timeout.unwrap_or(sandbox.timeout);
        sandbox.tags = changes.tags.unwrap_or_else(|| sandbox.tags.clone());
        sandbox.retention = changes.retention.unwrap_or(sandbox.retention);
        sandbox.snapshot_expiration = changes.snapshot_expiration.or(sandbox.snapshot_expiration);
        sandbox.updated_at = now;
        if let Some(ports) = changes.ports {
            machine.routes = routes(&ports);
        }
        let run = sandbox.current_run.clone();
        if let Some(network) = changes.network {
            sandbox.network = network.clone();
            if let Some(boot) = self.boots.get_mut(&run).filter(|boot| !boot.run.status.is_ended()) {
                boot.run.network = network;
            }
        }
        if let Some(from) = changes.start_from {
            let machine = self.machine(key)?;
            let snapshot = match from {
                crate::StartFrom::Snapshot(id) => Some(id),
                crate::StartFrom::Image => None,
            };
            machine.sandbox.current_snapshot = snapshot.clone();
            machine.descends_from = snapshot;
            machine.files = None;
            if let Some(boot) = self.boots.get_mut(&run).filter(|boot| !boot.run.status.is_ended()) {
                boot.rolled_back = true;
            }
        }
        Ok(())
    }

    pub(super) fn extend(&mut self, namespace: &Namespace, id: &RunId, by: Duration) -> Result<Run> {
        let boot = self.boot(namespace, id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        boot.run.timeout = checked_timeout(Some(boot.run.timeout + by))?;
        Ok(boot.run.clone())
    }

    pub(super) fn view(&mut self, key: &SandboxKey, resumed: bool) -> Result<SandboxView> {
        let machine = self.machine(key)?;
        let (mut sandbox, routes) = (machine.sandbox.clone(), machine.routes.clone());
        let run = self.boot(&key.namespace, &sandbox.current_run)?.run.clone();
        sandbox.status = run.status;
        sandbox.expires_at = (run.status == RunStatus::Running).then(|| run.expires_at());
        Ok(SandboxView { sandbox, run, routes, resumed })
    }

    pub(super) fn delete(
        &mut self,
        key: &SandboxKey,
        with_snapshots: bool,
        now: Timestamp,
    ) -> Result<Sandbox> {
        let before = self.view(key, false)?;
        if let Ok(machine) = self.machine(key) {
            // Its files go with it.
            (machine.sandbox.persistent, machine.sandbox.retention) = (false, Retention::Current);
        }
        self.end(&key.namespace, &before.run.id, StopReason::Deleted, None, now)?;
        self.machines.remove(&place(key));
        for kept in self.kept.values_mut().filter(|kept| {
            kept.sandbox == key.name
                && kept.namespace == key.namespace
                && (with_snapshots || kept.snapshot.kind == SnapshotKind::Automatic)
        }) {
            kept.snapshot.status = SnapshotStatus::Deleted;
        }
        Ok(before.sandbox)
    }

    pub(super) fn delete_snapshot(
        &mut self,
        namespace: &Namespace,
        id: &SnapshotId,
        now: Timestamp,
    ) -> Result<Snapshot> {
        let kept = self.kept.get_mut(id).filter(|kept| &kept.namespace == namespace);
        let kept = kept.ok_or_else(|| ProviderError::NotFound(format!("snapshot {id}")))?;
        (kept.snapshot.status, kept.snapshot.updated_at) = (SnapshotStatus::Deleted, now);
        Ok(kept.snapshot.clone())
    }
}
