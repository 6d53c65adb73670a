//! The provider port, call by call: check, give an order or talk to the agent,
//! present. No rule lives here that another caller of the engine would miss.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_agent_protocol::{CommandStatus, Frame, MAX_DATA, Reply, Request, Spawn, StdinMode};
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, CreateSandbox, ForkSandbox, ListOf, ListSandboxes, LogEvent,
    MadeSnapshot, Namespace, NetworkPolicy, Order as ListOrder, ProviderError, Result, Resumed, Route, Run,
    RunRef, RunStatus, Sandbox, SandboxKey, SandboxProvider, Snapshot, SnapshotRequest, SnapshotTree,
    StdinSource, StopReason, Stopped, TerminalOutput, TerminalSize, TerminalStream, UpdateSandbox,
};
use dormouse_store::{RunRow, SandboxRow};
use dormouse_types::{CommandId, SnapshotId, Timestamp};
use futures::StreamExt as _;

use crate::Engine;
use crate::agent::{AgentError, Dialogue};
use crate::host::internal;
use crate::machine::{Live, Order};
use crate::present::{self, take_page};

/// Largest argument list and environment of a command, in bytes: half of what
/// the kernel takes (`execve(2)`), and well within one frame.
const MAX_COMMAND_BYTES: usize = 512 << 10;

impl Engine {
    pub(crate) async fn find(&self, key: &SandboxKey) -> Result<SandboxRow> {
        self.wait_until_recovered().await?;
        let row =
            self.host.db.sandbox(&key.namespace.0, &key.name).await.map_err(internal("read sandbox"))?;
        row.ok_or_else(|| ProviderError::NotFound(format!("sandbox {}", key.name)))
    }

    async fn find_run(&self, run: &RunRef) -> Result<RunRow> {
        let row = self.host.db.run(&run.id).await.map_err(internal("read run"))?;
        // Somebody else's run is no run at all.
        row.filter(|row| row.namespace == run.namespace.0)
            .ok_or_else(|| ProviderError::NotFound(format!("run {}", run.id)))
    }

    /// The live run, or the reason why there is none.
    pub(crate) async fn live(&self, run: &RunRef) -> Result<Arc<Live>> {
        self.wait_until_recovered().await?;
        if let Some(live) = self.registry.live(&run.id) {
            return if live.namespace == run.namespace.0 {
                Ok(live)
            } else {
                Err(ProviderError::NotFound(format!("run {}", run.id)))
            };
        }
        let row = self.find_run(run).await?;
        match RunStatus::from_word(&row.status) {
            Some(RunStatus::Stopping | RunStatus::Snapshotting | RunStatus::Pending) => {
                Err(ProviderError::Stopping)
            }
            // Between the record and the publishing of a fresh run.
            Some(RunStatus::Running) => self.registry.live(&run.id).ok_or(ProviderError::Stopping),
            _ => Err(ProviderError::Stopped),
        }
    }
}

#[async_trait]
impl SandboxProvider for Engine {
    async fn create(&self, request: CreateSandbox) -> Result<Resumed> {
        self.create_sandbox(request).await
    }

    async fn fork(&self, request: ForkSandbox) -> Result<Resumed> {
        self.fork_sandbox(request).await
    }

    async fn update(&self, key: &SandboxKey, changes: UpdateSandbox) -> Result<Resumed> {
        let row = self.find(key).await?;
        let changes = Box::new(changes);
        self.order(&row.id, |reply| Order::Update { changes: changes.clone(), reply }).await?;
        self.present(&self.find(key).await?, false).await
    }

    async fn get(&self, key: &SandboxKey) -> Result<Resumed> {
        let row = self.find(key).await?;
        self.present_whole(&row).await
    }

    async fn resume(&self, key: &SandboxKey) -> Result<Resumed> {
        let row = self.find(key).await?;
        let resumed = self.order(&row.id, |reply| Order::Resume { reply }).await?;
        self.present(&self.find(key).await?, resumed).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
        self.list_sandboxes(namespace, list).await
    }

    async fn delete(&self, key: &SandboxKey, with_snapshots: bool) -> Result<Sandbox> {
        let row = self.find(key).await?;
        let before = self.present(&row, false).await?;
        self.order(&row.id, |reply| Order::Delete { with_snapshots, reply }).await?;
        Ok(before.sandbox)
    }

    async fn run(&self, run: &RunRef) -> Result<Run> {
        present::run(&self.find_run(run).await?)
    }

    async fn routes(&self, run: &RunRef) -> Result<Vec<Route>> {
        let row = self.find_run(run).await?;
        let sandbox = self.host.db.sandbox_by_id(&row.sandbox_id).await.map_err(internal("read sandbox"))?;
        match sandbox {
            Some(sandbox) => self.routes_of(&sandbox).await,
            None => Ok(Vec::new()),
        }
    }

    async fn runs(&self, namespace: &Namespace, list: ListOf) -> Result<(Vec<Run>, Option<String>)> {
        let limit = i64::from(list.page.limit) + 1;
        let ascending = list.order == ListOrder::Ascending;
        let (sandbox, cursor) = (list.sandbox.as_deref(), list.page.cursor.as_deref());
        let rows = self.host.db.runs_of(&namespace.0, sandbox, ascending, cursor, limit).await;
        let mut rows = rows.map_err(internal("list runs"))?;
        let next = take_page(&mut rows, list.page.limit, |row| row.id.to_string());
        Ok((rows.iter().map(present::run).collect::<Result<_>>()?, next))
    }

    async fn snapshot(&self, run: &RunRef, request: SnapshotRequest) -> Result<MadeSnapshot> {
        self.live(run).await?;
        let row = self.find_run(run).await?;
        let id = run.id.clone();
        let made = |reply| Order::Snapshot { run: id.clone(), request, reply };
        let made = self.order(&row.sandbox_id, made).await?;
        let snapshot = self.find_snapshot(&run.namespace, &made.snapshot).await?;
        Ok(MadeSnapshot {
            snapshot: self.present_snapshot(&snapshot),
            run: present::run(&self.find_run(run).await?)?,
            stall: made.stall,
        })
    }

    async fn snapshots(
        &self,
        namespace: &Namespace,
        list: ListOf,
    ) -> Result<(Vec<Snapshot>, Option<String>)> {
        self.list_snapshots(namespace, list).await
    }

    async fn get_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        Ok(self.present_snapshot(&self.find_snapshot(namespace, id).await?))
    }

    async fn delete_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        self.drop_snapshot(namespace, id).await
    }

    async fn snapshot_tree(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: ListOrder,
        limit: u32,
    ) -> Result<SnapshotTree> {
        self.line_of_snapshots(namespace, id, order, limit).await
    }

    async fn set_network_policy(&self, run: &RunRef, policy: NetworkPolicy) -> Result<Run> {
        self.live(run).await?;
        let row = self.find_run(run).await?;
        let (id, set) = (run.id.clone(), policy);
        self.order(&row.sandbox_id, |reply| Order::SetPolicy { run: id.clone(), policy: set.clone(), reply })
            .await?;
        SandboxProvider::run(self, run).await
    }

    async fn terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        self.open_terminal(run, spec, size, input).await
    }

    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped> {
        let row = self.find_run(run).await?;
        let id = run.id.clone();
        self.order(&row.sandbox_id, |reply| Order::Stop { run: Some(id.clone()), reason, reply }).await?;
        let run = present::run(&self.find_run(run).await?)?;
        let sandbox = self.host.db.sandbox_by_id(&row.sandbox_id).await.map_err(internal("read sandbox"))?;
        let mut stopped = Stopped { run, sandbox: None, snapshot: None };
        if let Some(sandbox) = sandbox {
            if let Some(id) = &sandbox.current_snapshot
                && let Some(snapshot) = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?
                && snapshot.source_run == row.id
            {
                stopped.snapshot = Some(self.present_snapshot(&snapshot));
            }
            stopped.sandbox = Some(self.present(&sandbox, false).await?.sandbox);
        }
        Ok(stopped)
    }

    async fn extend(&self, run: &RunRef, by: Duration) -> Result<Run> {
        let row = self.find_run(run).await?;
        let id = run.id.clone();
        self.order(&row.sandbox_id, |reply| Order::Extend { run: id.clone(), by, reply }).await?;
        SandboxProvider::run(self, run).await
    }

    async fn start(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<Command> {
        let live = self.live(run).await?;
        let request = start_request(&live, &id, &spec, false)?;
        match live.agent.call(request).await? {
            Reply::Started(status) => Ok(started(&live, &id, &spec, &status)),
            other => Err(unexpected(&other)),
        }
    }

    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        let live = self.live(run).await?;
        match live.agent.call(Request::Inspect { id: id.to_string() }).await? {
            Reply::Command(status) => Ok(command(&live, id, &status)),
            other => Err(unexpected(&other)),
        }
    }

    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>> {
        let live = self.live(run).await?;
        match live.agent.call(Request::List).await? {
            Reply::Commands { commands } => Ok(commands
                .iter()
                .filter_map(|status| Some(command(&live, &status.id.parse().ok()?, status)))
                .collect()),
            other => Err(unexpected(&other)),
        }
    }

    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        let live = self.live(run).await?;
        let mut dialogue = live.agent.open(Request::Follow { id: id.to_string(), output: false }).await?;
        match dialogue.expect().await {
            Ok(Frame::Reply(Reply::Exited(status))) => Ok(command(&live, id, &status)),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(cut_off(error)),
        }
    }

    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>> {
        let live = self.live(run).await?;
        let dialogue = live.agent.open(Request::Follow { id: id.to_string(), output: true }).await?;
        Ok(first_or_error(events(live, dialogue, id.clone(), None)).await?)
    }

    async fn exec(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>> {
        let live = self.live(run).await?;
        let dialogue = live.agent.open(start_request(&live, &id, &spec, true)?).await?;
        Ok(first_or_error(events(live, dialogue, id, Some(spec))).await?)
    }

    async fn stdin(&self, run: &RunRef, id: &CommandId, mut body: BodyStream) -> Result<()> {
        let live = self.live(run).await?;
        let mut dialogue = live.agent.open(Request::Stdin { id: id.to_string() }).await?;
        deliver(&mut dialogue, &mut body).await
    }

    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32) -> Result<Command> {
        let live = self.live(run).await?;
        match live.agent.call(Request::Signal { id: id.to_string(), signal }).await? {
            Reply::Command(status) => Ok(command(&live, id, &status)),
            other => Err(unexpected(&other)),
        }
    }

    async fn write_files(&self, run: &RunRef, cwd: &str, gzip: bool, mut body: BodyStream) -> Result<()> {
        let live = self.live(run).await?;
        let cwd = absolute(&live.config.cwd, cwd)?;
        let request = Request::WriteTar { cwd, gzip, user: live.config.user.clone() };
        let mut dialogue = live.agent.open(request).await?;
        let delivered = deliver(&mut dialogue, &mut body).await;
        self.advise(&live, delivered).await
    }

    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        let live = self.live(run).await?;
        let cwd = absolute(&live.config.cwd, cwd.unwrap_or("."))?;
        let request = Request::ReadFile { path: path_text(path)?, cwd, user: live.config.user.clone() };
        let dialogue = live.agent.open(request).await?;
        let frames = futures::stream::unfold(Some(dialogue), |dialogue| async {
            let mut dialogue = dialogue?;
            match dialogue.expect().await {
                Ok(Frame::Data(data)) => Some((Ok(Bytes::from(data)), Some(dialogue))),
                Ok(Frame::End) => None,
                Ok(other) => Some((Err(unexpected(&other)), None)),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(first_or_error(Box::pin(frames)).await?)
    }

    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()> {
        let live = self.live(run).await?;
        let cwd = absolute(&live.config.cwd, cwd.unwrap_or("."))?;
        let request =
            Request::Mkdir { path: path_text(path)?, cwd, recursive, user: live.config.user.clone() };
        let mut dialogue = live.agent.open(request).await?;
        match dialogue.expect().await.map_err(ProviderError::from) {
            Ok(Frame::End) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            // What is missing is the parent: the request is wrong, not lost.
            Err(ProviderError::NotFound(message)) => Err(ProviderError::Invalid(message)),
            Err(error) => self.advise(&live, Err(error)).await,
        }
    }
}

/// A run that ended under a waiting call.
pub(crate) fn cut_off(error: AgentError) -> ProviderError {
    match error {
        AgentError::Broken(_) | AgentError::Gone(_) => ProviderError::Stopped,
        other => other.into(),
    }
}

/// Passes a body on and takes the agent's verdict. An agent that has what it
/// needs closes before the last byte is sent (an archive ends with padding, a
/// command may not read all of its input): its word counts, not the broken pipe.
///
/// # Errors
/// At once when the body breaks: the agent would wait for the rest.
async fn deliver(dialogue: &mut Dialogue, body: &mut BodyStream) -> Result<()> {
    let mut sent = Ok(());
    'body: while let Some(chunk) = body.next().await {
        let chunk =
            chunk.map_err(|error| ProviderError::Invalid(format!("the body ended early: {error}")))?;
        for part in chunk.chunks(MAX_DATA) {
            sent = dialogue.send(&Frame::Data(part.to_vec())).await;
            if sent.is_err() {
                break 'body;
            }
        }
    }
    if sent.is_ok() {
        sent = dialogue.send(&Frame::End).await;
    }
    match dialogue.expect().await {
        Ok(Frame::End) => Ok(()),
        Ok(other) => Err(unexpected(&other)),
        Err(AgentError::Refused(errno)) => Err(AgentError::Refused(errno).into()),
        Err(other) => Err(sent.err().unwrap_or(other).into()),
    }
}

/// Waits for the first item, so that an error there is the call's own.
async fn first_or_error<T: Send + 'static>(mut stream: BoxStream<T>) -> Result<BoxStream<T>> {
    match stream.next().await {
        Some(Ok(first)) => Ok(Box::pin(futures::stream::iter([Ok(first)]).chain(stream))),
        Some(Err(error)) => Err(error),
        // It must not be asked again.
        None => Ok(Box::pin(futures::stream::empty())),
    }
}

fn events(
    live: Arc<Live>,
    dialogue: Dialogue,
    id: CommandId,
    spec: Option<CommandSpec>,
) -> BoxStream<LogEvent> {
    Box::pin(futures::stream::unfold(Some(dialogue), move |dialogue| {
        let (live, id, spec) = (live.clone(), id.clone(), spec.clone());
        async move {
            let mut dialogue = dialogue?;
            let event = match dialogue.expect().await {
                Ok(Frame::Stdout(data)) => LogEvent::Stdout(data.into()),
                Ok(Frame::Stderr(data)) => LogEvent::Stderr(data.into()),
                Ok(Frame::Reply(Reply::Started(status))) => LogEvent::Started(match &spec {
                    Some(spec) => started(&live, &id, spec, &status),
                    None => command(&live, &id, &status),
                }),
                Ok(Frame::Reply(Reply::Exited(status))) => {
                    let mut exited = command(&live, &id, &status);
                    if let Some(spec) = &spec {
                        exited.argv.clone_from(&spec.argv);
                    }
                    return Some((Ok(LogEvent::Exited(exited)), None));
                }
                Ok(Frame::End) => return None,
                Ok(other) => return Some((Err(unexpected(&other)), None)),
                Err(error) => return Some((Err(cut_off(error)), None)),
            };
            Some((Ok(event), Some(dialogue)))
        }
    }))
}

pub(crate) fn start_request(
    live: &Live,
    id: &CommandId,
    spec: &CommandSpec,
    follow: bool,
) -> Result<Request> {
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err(ProviderError::Invalid("command must not be empty".to_owned()));
    }
    let mut env = live.config.image_env.clone();
    env.extend(live.config.env.clone());
    if spec.sudo {
        env.insert("SUDO_USER".to_owned(), live.config.user.clone());
    }
    env.extend(spec.env.clone());
    let size: usize = spec.argv.iter().map(String::len).sum::<usize>()
        + env.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if size > MAX_COMMAND_BYTES {
        return Err(ProviderError::Invalid(format!(
            "args and env must not be over {MAX_COMMAND_BYTES} bytes"
        )));
    }
    if let Some(key) = env.keys().find(|key| key.is_empty() || key.contains('=')) {
        return Err(ProviderError::Invalid(format!("env has a name that no environment can hold: {key:?}")));
    }
    Ok(Request::Start {
        spawn: Spawn {
            id: id.to_string(),
            argv: spec.argv.clone(),
            cwd: absolute(&live.config.cwd, spec.cwd.as_deref().unwrap_or("."))?,
            env: env.into_iter().collect(),
            user: if spec.sudo { "root".to_owned() } else { live.config.user.clone() },
            stdin: match spec.stdin {
                StdinSource::Empty => StdinMode::Null,
                StdinSource::Stream => StdinMode::Pipe,
            },
            timeout_ms: spec.timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        },
        follow,
    })
}

fn path_text(path: &str) -> Result<String> {
    if path.is_empty() || path.contains('\0') {
        return Err(ProviderError::Invalid("path must not be empty or contain a NUL".to_owned()));
    }
    Ok(path.to_owned())
}

/// `path` seen from the sandbox's working directory. Resolved inside.
fn absolute(base: &str, path: &str) -> Result<String> {
    let path = path_text(path)?;
    Ok(match path.as_str() {
        "." => base.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{base}/{path}"),
    })
}

fn command(live: &Live, id: &CommandId, status: &CommandStatus) -> Command {
    Command {
        id: id.clone(),
        argv: status.argv.clone(),
        cwd: if status.cwd.is_empty() { live.config.cwd.clone() } else { status.cwd.clone() },
        run: live.run.clone(),
        started_at: Timestamp(status.started_at),
        exit_code: status.exit_code,
        duration: status.duration_ms.map(Duration::from_millis),
        timed_out: status.timed_out,
        output_truncated: status.output_truncated,
    }
}

fn started(live: &Live, id: &CommandId, spec: &CommandSpec, status: &CommandStatus) -> Command {
    let cwd = spec.cwd.clone().unwrap_or_else(|| live.config.cwd.clone());
    Command { argv: spec.argv.clone(), cwd, ..command(live, id, status) }
}

pub(crate) fn unexpected(answer: &impl std::fmt::Debug) -> ProviderError {
    ProviderError::internal("talk to the agent", format!("unexpected answer {answer:?}"))
}
