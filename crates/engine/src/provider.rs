//! The provider port, call by call: check, give an order or talk to the agent,
//! present. No rule lives here that another caller of the engine would miss.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_agent_protocol::{CommandStatus, Frame, MAX_DATA, Reply, Request, Spawn, StdinMode};
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, CreateSandbox, LogEvent, Namespace, NetworkPolicy, Page,
    ProviderError, Resources, Result, Resumed, Run, RunRef, RunStatus, Sandbox, SandboxKey, SandboxProvider,
    Snapshot, SnapshotKind, StdinSource, StopReason, Stopped,
};
use dormouse_store::{RunRow, SandboxRow, SnapshotRow};
use dormouse_types::{CommandId, SandboxId, Timestamp};
use futures::StreamExt as _;

use crate::Engine;
use crate::agent::{AgentError, Dialogue};
use crate::config::{DEFAULT_CWD, DEFAULT_USER, RunConfig};
use crate::machine::{Live, Order, internal, parse, pending_run};

/// Largest argument list and environment of a command, in bytes: half of what
/// the kernel takes (`execve(2)`), and well within one frame.
const MAX_COMMAND_BYTES: usize = 512 << 10;

impl Engine {
    async fn find(&self, key: &SandboxKey) -> Result<SandboxRow> {
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
    async fn live(&self, run: &RunRef) -> Result<Arc<Live>> {
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

    async fn present(&self, row: &SandboxRow, resumed: bool) -> Result<Resumed> {
        let run = self.host.db.newest_run(&row.id).await.map_err(internal("read newest run"))?;
        let run = run.ok_or_else(|| ProviderError::NotFound(format!("run of {}", row.name)))?;
        let run = present_run(&run)?;
        Ok(Resumed { sandbox: present_sandbox(row, &run)?, run, resumed })
    }

    async fn present_snapshot(&self, row: &SnapshotRow) -> Result<Snapshot> {
        let size = self.host.db.layers_size(&row.layers).await.map_err(internal("size snapshot"))?;
        Ok(Snapshot {
            id: row.id.clone(),
            source_run: row.source_run.clone(),
            kind: if row.kind == SnapshotKind::Manual.as_str() {
                SnapshotKind::Manual
            } else {
                SnapshotKind::Automatic
            },
            size_bytes: u64::try_from(size).unwrap_or(0),
            created_at: row.created_at,
            parent: row.parent.clone(),
        })
    }

    fn limits(&self, asked: Option<Resources>) -> Result<Resources> {
        let limits = asked.unwrap_or(self.host.config.default_resources);
        let most = self.host.config.max_vcpus;
        if limits.vcpus == 0 || limits.vcpus > most {
            return Err(ProviderError::Invalid(format!("resources.vcpus must be from 1 to {most}")));
        }
        if limits.memory_mib < 16 || limits.pids < 8 {
            return Err(ProviderError::Invalid("a sandbox needs at least 16 MiB and 8 processes".to_owned()));
        }
        if limits.disk_mib.is_some() && !self.host.storage.enforces_limits() {
            return Err(ProviderError::Invalid(
                "this host's storage (plain) cannot limit disks; leave the disk limit out or use btrfs"
                    .to_owned(),
            ));
        }
        Ok(limits)
    }

    fn timeout(&self, asked: Option<Duration>) -> Result<Duration> {
        let timeout = asked.unwrap_or(self.host.config.default_timeout);
        let most = self.host.config.max_timeout;
        if timeout < Duration::from_secs(1) || timeout > most {
            let most = dormouse_types::format_duration(most);
            return Err(ProviderError::Invalid(format!("timeout must be from 1s to {most}")));
        }
        Ok(timeout)
    }
}

#[async_trait]
impl SandboxProvider for Engine {
    async fn create(&self, request: CreateSandbox) -> Result<Resumed> {
        self.wait_until_recovered().await?;
        let image_name = request.image.as_deref().unwrap_or(&self.host.config.default_image);
        let image = self.host.db.image(image_name).await.map_err(internal("read image"))?;
        let image =
            image.ok_or_else(|| ProviderError::Invalid(format!("there is no image {image_name:?}")))?;
        let config = RunConfig {
            resources: self.limits(request.resources)?,
            image: image.name.clone(),
            cwd: DEFAULT_CWD.to_owned(),
            env: request.env,
            tags: request.tags,
            timeout_ms: u64::try_from(self.timeout(request.timeout)?.as_millis()).unwrap_or(u64::MAX),
            network: NetworkPolicy::default(),
            ephemeral: request.ephemeral,
        };
        let now = self.host.clock.now();
        let row = SandboxRow {
            id: SandboxId::generate(),
            namespace: request.key.namespace.0.clone(),
            name: request.key.name,
            persistent: request.persistent,
            image_id: image.id,
            config: serde_json::to_string(&config)
                .map_err(|e| ProviderError::internal("write configuration", e))?,
            current_snapshot: None,
            created_at: now,
            updated_at: now,
        };
        let run = pending_run(&row, &config, image.layers, now);
        self.registry.begin(&run.id);
        let inserted = self.host.db.insert_sandbox(&row, &run).await.map_err(internal("insert sandbox"));
        if inserted.is_err() {
            self.registry.forget(&run.id, true);
        }
        inserted?;
        let boot = Box::new(run);
        self.order(&row.id, |reply| Order::Boot { run: boot.clone(), reply }).await?;
        self.present(&row, true).await
    }

    async fn get(&self, key: &SandboxKey) -> Result<Resumed> {
        let row = self.find(key).await?;
        self.present(&row, false).await
    }

    async fn resume(&self, key: &SandboxKey) -> Result<Resumed> {
        let row = self.find(key).await?;
        let resumed = self.order(&row.id, |reply| Order::Resume { reply }).await?;
        self.present(&self.find(key).await?, resumed).await
    }

    async fn list(&self, namespace: &Namespace, page: Page) -> Result<(Vec<Sandbox>, Option<String>)> {
        self.wait_until_recovered().await?;
        let limit = i64::from(page.limit);
        let rows = self.host.db.sandboxes_of(&namespace.0, page.cursor.as_deref(), limit + 1).await;
        let mut rows = rows.map_err(internal("list sandboxes"))?;
        let next = take_page(&mut rows, page.limit, |row| row.id.to_string());
        let mut sandboxes = Vec::with_capacity(rows.len());
        for row in &rows {
            // Deleted between the two reads: left out.
            if let Ok(found) = self.present(row, false).await {
                sandboxes.push(found.sandbox);
            }
        }
        Ok((sandboxes, next))
    }

    async fn delete(&self, key: &SandboxKey) -> Result<Sandbox> {
        let row = self.find(key).await?;
        let before = self.present(&row, false).await?;
        self.order(&row.id, |reply| Order::Delete { reply }).await?;
        Ok(before.sandbox)
    }

    async fn run(&self, run: &RunRef) -> Result<Run> {
        present_run(&self.find_run(run).await?)
    }

    async fn runs(
        &self,
        namespace: &Namespace,
        sandbox: Option<&str>,
        page: Page,
    ) -> Result<(Vec<Run>, Option<String>)> {
        let limit = i64::from(page.limit);
        let rows = self.host.db.runs_of(&namespace.0, sandbox, page.cursor.as_deref(), limit + 1).await;
        let mut rows = rows.map_err(internal("list runs"))?;
        let next = take_page(&mut rows, page.limit, |row| row.id.to_string());
        Ok((rows.iter().map(present_run).collect::<Result<_>>()?, next))
    }

    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped> {
        let row = self.find_run(run).await?;
        let id = run.id.clone();
        self.order(&row.sandbox_id, |reply| Order::Stop { run: Some(id.clone()), reason, reply }).await?;
        let run = present_run(&self.find_run(run).await?)?;
        let sandbox = self.host.db.sandbox_by_id(&row.sandbox_id).await.map_err(internal("read sandbox"))?;
        let mut stopped = Stopped { run, sandbox: None, snapshot: None };
        if let Some(sandbox) = sandbox {
            if let Some(id) = &sandbox.current_snapshot
                && let Some(snapshot) = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?
                && snapshot.source_run == row.id
            {
                stopped.snapshot = Some(self.present_snapshot(&snapshot).await?);
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
        // The command may end before its input does: then the agent says so
        // and reads no more.
        let fed = send_body(&mut dialogue, &mut body).await;
        match dialogue.expect().await {
            Ok(Frame::End) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(AgentError::Refused(errno)) => Err(AgentError::Refused(errno).into()),
            Err(other) => fed.and(Err(other.into())),
        }
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
        let request = Request::WriteTar { cwd, gzip, user: DEFAULT_USER.to_owned() };
        let mut dialogue = live.agent.open(request).await?;
        let sent = send_body(&mut dialogue, &mut body).await;
        match dialogue.expect().await {
            Ok(Frame::End) => sent,
            Ok(other) => Err(unexpected(&other)),
            Err(AgentError::Refused(errno)) => Err(AgentError::Refused(errno).into()),
            Err(other) => sent.and(Err(other.into())),
        }
    }

    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        let live = self.live(run).await?;
        let cwd = absolute(&live.config.cwd, cwd.unwrap_or("."))?;
        let request = Request::ReadFile { path: path_text(path)?, cwd, user: DEFAULT_USER.to_owned() };
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
            Request::Mkdir { path: path_text(path)?, cwd, recursive, user: DEFAULT_USER.to_owned() };
        let mut dialogue = live.agent.open(request).await?;
        match dialogue.expect().await.map_err(ProviderError::from) {
            Ok(Frame::End) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            // What is missing is the parent: the request is wrong, not lost.
            Err(ProviderError::NotFound(message)) => Err(ProviderError::Invalid(message)),
            Err(error) => Err(error),
        }
    }
}

/// A run that ended under a waiting call.
fn cut_off(error: AgentError) -> ProviderError {
    match error {
        AgentError::Broken(_) | AgentError::Gone(_) => ProviderError::Stopped,
        other => other.into(),
    }
}

async fn send_body(dialogue: &mut Dialogue, body: &mut BodyStream) -> Result<()> {
    while let Some(chunk) = body.next().await {
        let chunk =
            chunk.map_err(|error| ProviderError::Invalid(format!("the body ended early: {error}")))?;
        for part in chunk.chunks(MAX_DATA) {
            dialogue.send(&Frame::Data(part.to_vec())).await?;
        }
    }
    Ok(dialogue.send(&Frame::End).await?)
}

/// Waits for the first item, so that an error there is the call's own.
async fn first_or_error<T: Send + 'static>(mut stream: BoxStream<T>) -> Result<BoxStream<T>> {
    match stream.next().await {
        Some(Ok(first)) => Ok(Box::pin(futures::stream::iter([Ok(first)]).chain(stream))),
        Some(Err(error)) => Err(error),
        None => Ok(stream),
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

fn start_request(live: &Live, id: &CommandId, spec: &CommandSpec, follow: bool) -> Result<Request> {
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err(ProviderError::Invalid("command must not be empty".to_owned()));
    }
    let mut env = live.config.env.clone();
    if spec.sudo {
        env.insert("SUDO_USER".to_owned(), DEFAULT_USER.to_owned());
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
            user: if spec.sudo { "root" } else { DEFAULT_USER }.to_owned(),
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
        argv: Vec::new(),
        cwd: live.config.cwd.clone(),
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

fn unexpected(answer: &impl std::fmt::Debug) -> ProviderError {
    ProviderError::internal("talk to the agent", format!("unexpected answer {answer:?}"))
}

fn take_page<T>(rows: &mut Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Option<String> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| more).map(cursor)
}

fn present_run(row: &RunRow) -> Result<Run> {
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
        network: config.network,
    })
}

fn present_sandbox(row: &SandboxRow, run: &Run) -> Result<Sandbox> {
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
        timeout: Duration::from_millis(config.timeout_ms),
        network: config.network,
        current_snapshot: row.current_snapshot.clone(),
        cwd: config.cwd,
        tags: config.tags,
        expires_at: (run.status == RunStatus::Running).then(|| run.expires_at()),
    })
}
