//! A provider in memory, for tests of what stands above one. It passes the
//! conformance suite; its clock is whatever the test says, and it fails, or
//! hangs, where the test tells it to.
//!
//! ```no_run
//! # async fn example() {
//! use dormouse_provider::{ProviderError, fake::{Call, Fake, Fault}};
//! use dormouse_types::Timestamp;
//! let fake = Fake::new(|| Timestamp(0));
//! fake.plan(Call::Stop, Fault::Error(ProviderError::Stopping));
//! # }
//! ```

mod commands;
mod files;
mod shell;
mod state;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_types::{CommandId, Namespace, RunStatus, SnapshotId, StopReason, Timestamp};
use futures::StreamExt as _;
use tokio::sync::{Notify, mpsc};

use crate::{
    BodyStream, BoxStream, Command, CommandSpec, CreateSandbox, Direction, ForkSandbox, Input, ListOf,
    ListSandboxes, LogEvent, MadeSnapshot, NetworkPolicy, ProviderError, Result, Route, Run, RunRef, Sandbox,
    SandboxKey, SandboxProvider, SandboxSort, SandboxView, Snapshot, SnapshotNode, SnapshotRequest,
    SnapshotTree, StdinSource, Stopped, TerminalInput, TerminalOutput, TerminalSize, TerminalStream,
    UpdateSandbox,
};
use commands::Running;
use files::{ENOENT, FileError, absolute};
use shell::Process;
use state::State;

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the methods of the port, by name")]
pub enum Call {
    Create,
    Get,
    Resume,
    Update,
    Delete,
    Stop,
    Extend,
    Exec,
    Commands,
    SetNetworkPolicy,
}

/// How a call goes wrong.
#[derive(Debug)]
pub enum Fault {
    /// It fails, and does nothing.
    Error(ProviderError),
    /// It does what it should, and says that it failed: the answer was lost.
    LostAnswer,
    /// It waits until this is notified.
    Hang(Arc<Notify>),
}

/// What a command gives, instead of what the fake's own shell would.
type Programs = dyn Fn(&CommandSpec) -> Option<(i32, String)> + Send + Sync;

/// The provider.
pub struct Fake {
    state: Mutex<State>,
    faults: Mutex<VecDeque<(Call, Fault)>>,
    calls: Mutex<Vec<Call>>,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    programs: Box<Programs>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Fake {
    /// One without sandboxes, in which it is always as late as `now` says.
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::default(),
            faults: Mutex::default(),
            calls: Mutex::default(),
            now: Box::new(now),
            programs: Box::new(|_| None),
        }
    }

    /// With programs of the test's own: for a command, its exit code and what it
    /// prints; `None`: the fake's shell runs it.
    #[must_use]
    pub fn with_programs(
        self,
        programs: impl Fn(&CommandSpec) -> Option<(i32, String)> + Send + Sync + 'static,
    ) -> Self {
        Self { programs: Box::new(programs), ..self }
    }

    /// The next `call` goes wrong so.
    pub fn plan(&self, call: Call, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push_back((call, fault));
    }

    /// How often `call` was made.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|made| **made == call).count()
    }

    /// Names of all sandboxes, with the state of their newest runs.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<(String, RunStatus)> {
        let state = self.state();
        let machines = state.machines.values();
        machines.map(|machine| (machine.sandbox.name.to_string(), machine.sandbox.status)).collect()
    }

    /// Puts a file into a live run, at an absolute path; `false`: it cannot be put
    /// there.
    pub fn put_file(&self, run: &RunRef, path: &str, content: &[u8]) -> bool {
        let Ok((files, _)) = self.files(run) else { return false };
        let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
        files.write(path, content, false, "ubuntu", 0o644).is_ok()
    }

    /// The state, after everything that is due has happened.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.settle((self.now)());
        state
    }

    /// Goes wrong as was planned; `true`: after the work.
    async fn fault(&self, call: Call) -> Result<bool> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        let planned = {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            let place = faults.iter().position(|(planned, _)| *planned == call);
            place.and_then(|place| faults.remove(place)).map(|(_, fault)| fault)
        };
        match planned {
            None => Ok(false),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::LostAnswer) => Ok(true),
            Some(Fault::Hang(until)) => {
                until.notified().await;
                Ok(false)
            }
        }
    }

    /// Starts a command in a live run.
    fn launch(
        &self,
        run: &RunRef,
        id: CommandId,
        spec: &CommandSpec,
        window: Option<Arc<Mutex<(u16, u16)>>>,
    ) -> Result<Arc<Running>> {
        if spec.argv.first().is_none_or(|program| program.is_empty() || program.contains(' ')) {
            return Err(ProviderError::Invalid("command: there is no such program".to_owned()));
        }
        let mut state = self.state();
        let now = (self.now)();
        let boot = state.boot(&run.namespace, &run.id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        if let Some(known) = boot.commands.get(&id) {
            return Ok(known.clone());
        }
        let (files, running, base) = (boot.files.clone(), boot.running.clone(), boot.run.cwd.clone());
        let key = SandboxKey { namespace: run.namespace.clone(), name: boot.run.sandbox.clone() };
        let mut env = state.machine(&key)?.env.clone();
        env.extend(spec.env.clone());
        let cwd = absolute(&base, spec.cwd.as_deref().unwrap_or("."));
        let user = if spec.sudo { "root" } else { "ubuntu" }.to_owned();
        let begun = commands::command(id.clone(), run.id.clone(), spec, cwd.clone(), now);
        let answer = (self.programs)(spec);
        let no_input = spec.stdin == StdinSource::Empty && window.is_none();
        let process = |output, input, background| Process {
            files,
            env,
            cwd,
            user,
            output,
            window,
            input: Arc::new(tokio::sync::Mutex::new(input)),
            running,
            background,
        };
        let started = Running::start(begun, spec, process, answer);
        if no_input {
            *started.input.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let boot = state.boot(&run.namespace, &run.id)?;
        boot.commands.insert(id, started.clone());
        Ok(started)
    }

    fn running(&self, run: &RunRef, id: &CommandId) -> Result<Arc<Running>> {
        let mut state = self.state();
        let boot = state.boot(&run.namespace, &run.id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        boot.commands.get(id).cloned().ok_or_else(|| ProviderError::NotFound(format!("command {id}")))
    }

    /// The files of a live run, and its working directory.
    fn files(&self, run: &RunRef) -> Result<(Arc<Mutex<files::Files>>, String)> {
        let mut state = self.state();
        let boot = state.boot(&run.namespace, &run.id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        Ok((boot.files.clone(), boot.run.cwd.clone()))
    }
}

fn refused(error: FileError) -> ProviderError {
    match error.errno {
        ENOENT => ProviderError::NotFound(error.message),
        errno => ProviderError::Refused { errno, message: error.message },
    }
}

fn lost<T>(operation: &'static str) -> Result<T> {
    Err(ProviderError::internal(operation, "the answer was lost"))
}

/// A page of `items`, which are in ascending order.
fn page<T>(
    mut items: Vec<T>,
    order: Direction,
    page: &crate::Page,
    name: impl Fn(&T) -> String,
) -> (Vec<T>, Option<String>) {
    if order == Direction::Descending {
        items.reverse();
    }
    if let Some(cursor) = &page.cursor {
        let at = items.iter().position(|item| name(item) == *cursor).map_or(items.len(), |at| at + 1);
        items.drain(..at);
    }
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(name);
    (items, next)
}

#[async_trait]
impl SandboxProvider for Fake {
    async fn create(&self, request: CreateSandbox) -> Result<SandboxView> {
        let lose = self.fault(Call::Create).await?;
        let made = self.state().create(request, (self.now)())?;
        if lose { lost("create") } else { Ok(made) }
    }

    async fn taken(&self, key: &SandboxKey) -> Result<()> {
        self.state().taken(key);
        Ok(())
    }

    async fn get(&self, key: &SandboxKey) -> Result<SandboxView> {
        self.fault(Call::Get).await?;
        self.state().view(key, false)
    }

    async fn resume(&self, key: &SandboxKey) -> Result<SandboxView> {
        let lose = self.fault(Call::Resume).await?;
        let mut state = self.state();
        let found = state.view(key, false)?;
        let resumed = found.run.status.is_ended();
        if resumed {
            state.start(key, (self.now)())?;
        }
        let found = state.view(key, resumed)?;
        if lose { lost("resume") } else { Ok(found) }
    }

    async fn list(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
        let state = self.state();
        let mut found: Vec<Sandbox> = state
            .machines
            .iter()
            .filter(|((of, _), machine)| {
                let sandbox = &machine.sandbox;
                of == namespace
                    && list
                        .name_prefix
                        .as_ref()
                        .is_none_or(|prefix| sandbox.name.as_str().starts_with(prefix))
                    && list.tags.iter().all(|(key, value)| sandbox.tags.get(key) == Some(value))
            })
            .map(|(_, machine)| machine.sandbox.clone())
            .collect();
        match list.sort {
            SandboxSort::Name => {}
            SandboxSort::CreatedAt => {
                found.sort_by_key(|sandbox| (sandbox.created_at, sandbox.current_run.clone()));
            }
            SandboxSort::StatusUpdatedAt => {
                found.sort_by_key(|sandbox| (sandbox.status_updated_at, sandbox.current_run.clone()));
            }
        }
        Ok(page(found, list.order, &list.page, |sandbox| sandbox.name.to_string()))
    }

    async fn update(&self, key: &SandboxKey, changes: UpdateSandbox) -> Result<SandboxView> {
        self.fault(Call::Update).await?;
        let mut state = self.state();
        state.update(key, changes, (self.now)())?;
        state.view(key, false)
    }

    async fn fork(&self, request: ForkSandbox) -> Result<SandboxView> {
        self.state().fork(request, (self.now)())
    }

    async fn delete(&self, key: &SandboxKey, with_snapshots: bool) -> Result<Sandbox> {
        self.fault(Call::Delete).await?;
        self.state().delete(key, with_snapshots, (self.now)())
    }

    async fn run(&self, run: &RunRef) -> Result<Run> {
        Ok(self.state().boot(&run.namespace, &run.id)?.run.clone())
    }

    async fn routes(&self, run: &RunRef) -> Result<Vec<Route>> {
        let mut state = self.state();
        let name = state.boot(&run.namespace, &run.id)?.run.sandbox.clone();
        let key = SandboxKey { namespace: run.namespace.clone(), name };
        Ok(state.machine(&key).map(|machine| machine.routes.clone()).unwrap_or_default())
    }

    async fn runs(&self, namespace: &Namespace, list: ListOf) -> Result<(Vec<Run>, Option<String>)> {
        let state = self.state();
        let of = |name: &str| list.sandbox.as_deref().is_none_or(|wanted| wanted == name);
        let found = state.boots.values().filter(|boot| &boot.namespace == namespace);
        let found = found.map(|boot| boot.run.clone()).filter(|run| of(run.sandbox.as_str())).collect();
        Ok(page(found, list.order, &list.page, |run| run.id.to_string()))
    }

    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped> {
        let lose = self.fault(Call::Stop).await?;
        let mut state = self.state();
        let snapshot = state.end(&run.namespace, &run.id, reason, None, (self.now)())?;
        let run = state.boot(&run.namespace, &run.id)?;
        let key = SandboxKey { namespace: run.namespace.clone(), name: run.run.sandbox.clone() };
        let run = run.run.clone();
        let sandbox = state.view(&key, false).ok().map(|found| found.sandbox);
        if lose { lost("stop") } else { Ok(Stopped { run, sandbox, snapshot }) }
    }

    async fn snapshot(&self, run: &RunRef, request: SnapshotRequest) -> Result<MadeSnapshot> {
        let mut state = self.state();
        let now = (self.now)();
        let boot = state.boot(&run.namespace, &run.id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        let key = SandboxKey { namespace: run.namespace.clone(), name: boot.run.sandbox.clone() };
        let manual = Some(request.expiration);
        let (snapshot, stall) = if request.live {
            let files = boot.files.lock().unwrap_or_else(PoisonError::into_inner).clone();
            (Some(state.keep(&key, &run.id, &files, manual, true, now)?), Some(Duration::ZERO))
        } else {
            (state.end(&run.namespace, &run.id, StopReason::Snapshot, manual, now)?, None)
        };
        let snapshot = snapshot.ok_or(ProviderError::Stopped)?;
        let run = state.boot(&run.namespace, &run.id)?.run.clone();
        Ok(MadeSnapshot { snapshot, run, stall })
    }

    async fn snapshots(
        &self,
        namespace: &Namespace,
        list: ListOf,
    ) -> Result<(Vec<Snapshot>, Option<String>)> {
        let state = self.state();
        let of = |name: &str| list.sandbox.as_deref().is_none_or(|wanted| wanted == name);
        let found =
            state.kept.values().filter(|kept| &kept.namespace == namespace && of(kept.sandbox.as_str()));
        let found = found.map(|kept| kept.snapshot.clone()).collect();
        Ok(page(found, list.order, &list.page, |snapshot| snapshot.id.to_string()))
    }

    async fn get_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        let state = self.state();
        let kept = state.kept.get(id).filter(|kept| &kept.namespace == namespace);
        kept.map(|kept| kept.snapshot.clone())
            .ok_or_else(|| ProviderError::NotFound(format!("snapshot {id}")))
    }

    async fn delete_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        self.state().delete_snapshot(namespace, id, (self.now)())
    }

    async fn snapshot_tree(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: Direction,
        limit: u32,
    ) -> Result<SnapshotTree> {
        let anchor = self.get_snapshot(namespace, id).await?;
        let state = self.state();
        let node = |snapshot: Snapshot| SnapshotNode { snapshot, siblings: Vec::new(), sibling_count: 0 };
        let (mut nodes, mut at, mut next) = (Vec::new(), anchor.clone(), None);
        loop {
            let following = match order {
                Direction::Descending => at.parent.as_ref().and_then(|parent| state.kept.get(parent)),
                Direction::Ascending => {
                    state.kept.values().rev().find(|kept| kept.snapshot.parent.as_ref() == Some(&at.id))
                }
            };
            let Some(following) = following.map(|kept| kept.snapshot.clone()) else { break };
            if nodes.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
                next = Some(at.id.to_string());
                break;
            }
            nodes.push(node(following.clone()));
            at = following;
        }
        Ok(SnapshotTree { nodes, anchor: node(anchor), next })
    }

    async fn set_network_policy(&self, run: &RunRef, policy: NetworkPolicy) -> Result<Run> {
        self.fault(Call::SetNetworkPolicy).await?;
        let mut state = self.state();
        let boot = state.boot(&run.namespace, &run.id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        let key = SandboxKey { namespace: run.namespace.clone(), name: boot.run.sandbox.clone() };
        let changes = UpdateSandbox { network: Some(policy), ..UpdateSandbox::default() };
        state.update(&key, changes, (self.now)())?;
        Ok(state.boot(&run.namespace, &run.id)?.run.clone())
    }

    async fn terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        mut input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        let window = Arc::new(Mutex::new((size.cols, size.rows)));
        let running = self.launch(run, CommandId::generate(), &spec, Some(window.clone()))?;
        let feed = running.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        tokio::spawn(async move {
            while let Some(event) = input.next().await {
                match event {
                    TerminalInput::Resize(size) => {
                        *window.lock().unwrap_or_else(PoisonError::into_inner) = (size.cols, size.rows);
                    }
                    // A program that has ended reads nothing.
                    TerminalInput::Data(data) => drop(feed.as_ref().map(|feed| feed.send(data.to_vec()))),
                }
            }
        });
        let output = running.follow().filter_map(|event| {
            futures::future::ready(match event {
                Ok(LogEvent::Started(_) | LogEvent::Lost(_)) => None,
                Ok(LogEvent::Stdout(data) | LogEvent::Stderr(data)) => Some(Ok(TerminalOutput::Data(data))),
                Ok(LogEvent::Exited(command)) => {
                    Some(Ok(TerminalOutput::Exited(command.exit_code.unwrap_or(-1))))
                }
                Err(error) => Some(Err(error)),
            })
        });
        Ok(Box::pin(output))
    }

    async fn extend(&self, run: &RunRef, by: Duration) -> Result<Run> {
        let lose = self.fault(Call::Extend).await?;
        let extended = self.state().extend(&run.namespace, &run.id, by)?;
        if lose { lost("extend") } else { Ok(extended) }
    }

    async fn start(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<Command> {
        Ok(self.launch(run, id, &spec, None)?.command())
    }

    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        Ok(self.running(run, id)?.command())
    }

    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>> {
        self.fault(Call::Commands).await?;
        let mut state = self.state();
        let boot = state.boot(&run.namespace, &run.id)?;
        if boot.run.status.is_ended() {
            return Err(ProviderError::Stopped);
        }
        Ok(boot.commands.values().map(|running| running.command()).collect())
    }

    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        let running = self.running(run, id)?;
        Ok(running.ended().await)
    }

    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>> {
        let events = self.running(run, id)?.follow();
        Ok(Box::pin(
            events.filter(|event| futures::future::ready(!matches!(event, Ok(LogEvent::Started(_))))),
        ))
    }

    async fn exec(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>> {
        self.fault(Call::Exec).await?;
        Ok(self.launch(run, id, &spec, None)?.follow())
    }

    async fn stdin(&self, run: &RunRef, id: &CommandId, mut body: BodyStream) -> Result<()> {
        let running = self.running(run, id)?;
        let feed = running.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let feed: mpsc::UnboundedSender<Vec<u8>> = feed.ok_or_else(no_input)?;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| ProviderError::Invalid(error.to_string()))?;
            // A program that has ended reads nothing.
            let _ = feed.send(chunk.to_vec());
        }
        Ok(())
    }

    async fn input(&self, run: &RunRef, id: &CommandId, input: Input) -> Result<u64> {
        let running = self.running(run, id)?;
        if running.command().exit_code.is_some() {
            return Err(no_input());
        }
        let mut feed = running.input.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = running.taken.load(Ordering::Relaxed);
        let offset = input.offset.unwrap_or(taken);
        if offset > taken {
            return Err(ProviderError::Invalid(format!(
                "offset: it is {offset}, but {taken} bytes were taken"
            )));
        }
        let known = usize::try_from(taken - offset).unwrap_or(usize::MAX).min(input.data.len());
        let new = input.data.slice(known..);
        if !new.is_empty() || feed.is_none() {
            // A program that has ended reads nothing.
            let _ = feed.as_ref().ok_or_else(no_input)?.send(new.to_vec());
        }
        running.taken.store(taken + new.len() as u64, Ordering::Relaxed);
        if input.close {
            *feed = None;
        }
        Ok(taken + new.len() as u64)
    }

    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32, _tree: bool) -> Result<Command> {
        let running = self.running(run, id)?;
        running.kill(signal);
        Ok(running.command())
    }

    async fn write_files(&self, run: &RunRef, cwd: &str, _gzip: bool, mut body: BodyStream) -> Result<()> {
        let (files, base) = self.files(run)?;
        let mut archive = Vec::new();
        while let Some(chunk) = body.next().await {
            archive.extend_from_slice(&chunk.map_err(|error| ProviderError::Invalid(error.to_string()))?);
        }
        let below = absolute(&base, cwd);
        let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
        // POSIX ustar: a header of 512 bytes, the content, padding.
        let mut rest = &archive[..];
        while let Some(header) = rest.get(..512).filter(|header| header[0] != 0) {
            let text = |from: usize, to: usize| {
                String::from_utf8_lossy(&header[from..to]).trim_end_matches(['\0', ' ']).to_owned()
            };
            let octal = |from, to| usize::from_str_radix(&text(from, to), 8).unwrap_or(0);
            let (size, mode) = (octal(124, 136), octal(100, 108));
            let malformed = || ProviderError::Invalid("the archive is cut off".to_owned());
            let content = rest.get(512..512 + size).ok_or_else(malformed)?;
            // Names lead nowhere else than below the directory.
            let path = format!("{}{}", below.trim_end_matches('/'), absolute("/", &text(0, 100)));
            let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent).to_owned();
            files.mkdir(&parent, true, "ubuntu").map_err(refused)?;
            let mode = u32::try_from(mode).unwrap_or(0o644);
            files.write(&path, content, false, "ubuntu", mode).map_err(refused)?;
            rest = rest.get(512 + size.next_multiple_of(512)..).unwrap_or_default();
        }
        Ok(())
    }

    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        let (files, base) = self.files(run)?;
        let path = absolute(&absolute(&base, cwd.unwrap_or(".")), path);
        let read = files.lock().unwrap_or_else(PoisonError::into_inner).read(&path, "ubuntu");
        Ok(Box::pin(futures::stream::iter([Ok(Bytes::from(read.map_err(refused)?))])))
    }

    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()> {
        let (files, base) = self.files(run)?;
        let path = absolute(&absolute(&base, cwd.unwrap_or(".")), path);
        let made = files.lock().unwrap_or_else(PoisonError::into_inner).mkdir(&path, recursive, "ubuntu");
        made.map_err(|error| match error.errno {
            // What is missing is the parent: the request is wrong.
            ENOENT => ProviderError::Invalid(error.message),
            errno => ProviderError::Refused { errno, message: error.message },
        })
    }
}

fn no_input() -> ProviderError {
    ProviderError::InputRefused("the command takes no input".to_owned())
}
