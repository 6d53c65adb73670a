//! Calls on a live run: its agent is asked, and its answers are put into the
//! words of the port.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_agent_protocol::{CommandStatus, Frame, MAX_DATA, Reply, Request, Spawn, StdinMode};
use dormouse_control::order::LiveRun;
use dormouse_egress::{Access, Sums};
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, Input, LogEvent, Namespace, NetworkAccess, NetworkUse,
    PortError, PortStream, ProviderError, Result, StdinSource, TerminalOutput, TerminalSize, TerminalStream,
};
use dormouse_types::{CommandId, SandboxId, Timestamp};
use futures::StreamExt as _;

use crate::agent::{AgentError, Dialogue};
use crate::live::Live;
use crate::output::{Output, Piece};
use crate::ports::Tied;
use crate::trust;

/// Largest argument list and environment of a command, in bytes: half of what
/// the kernel takes (`execve(2)`), and well within one frame.
const MAX_COMMAND_BYTES: usize = 512 << 10;

#[async_trait]
impl LiveRun for Live {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    fn network_use(&self) -> NetworkUse {
        let sums = self.sandboxes.sums(self.address).unwrap_or_default();
        let recent = self.sandboxes.recent(self.address).into_iter().map(access).collect();
        let Sums { sent, received, allowed, denied } = sums;
        NetworkUse { sent, received, allowed, denied, recent }
    }

    async fn start(self: Arc<Self>, id: CommandId, spec: CommandSpec) -> Result<Command> {
        let request = Request::Start { spawn: spawn(&self, &id, &spec)?, follow: false, log: false };
        match self.agent.call(request).await? {
            Reply::Started(status) => Ok(started(&self, &id, &spec, &status)),
            other => Err(unexpected(&other)),
        }
    }

    async fn command(self: Arc<Self>, id: &CommandId) -> Result<Command> {
        match self.agent.call(Request::Inspect { id: id.to_string() }).await? {
            Reply::Command(status) => Ok(command(&self, id, &status)),
            other => Err(unexpected(&other)),
        }
    }

    async fn commands(self: Arc<Self>) -> Result<Vec<Command>> {
        match self.agent.call(Request::List).await? {
            Reply::Commands { commands } => Ok(commands
                .iter()
                .filter_map(|status| Some(command(&self, &status.id.parse().ok()?, status)))
                .collect()),
            other => Err(unexpected(&other)),
        }
    }

    async fn processor_time(self: Arc<Self>) -> Result<Option<Duration>> {
        let asking = tokio::task::spawn_blocking(move || self.cgroups.processor_time(&self.run));
        asking.await.map_err(|error| ProviderError::internal("read a run's processor time", error))
    }

    async fn wait(self: Arc<Self>, id: &CommandId) -> Result<Command> {
        let status = self.outputs.follow(&self.agent, id).await?.exit().await?;
        Ok(command(&self, id, &status))
    }

    async fn logs(self: Arc<Self>, id: &CommandId) -> Result<BoxStream<LogEvent>> {
        let output = self.outputs.follow(&self.agent, id).await?;
        Ok(events(self, output, id.clone(), None))
    }

    async fn exec(self: Arc<Self>, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>> {
        let request = Request::Start { spawn: spawn(&self, &id, &spec)?, follow: true, log: true };
        let mut dialogue = self.agent.open(request).await?;
        let begun = match dialogue.expect().await? {
            Frame::Reply(Reply::Started(status)) => started(&self, &id, &spec, &status),
            other => return Err(unexpected(&other)),
        };
        let output = self.outputs.take(&id, dialogue);
        let first = futures::stream::iter([Ok(LogEvent::Started(begun))]);
        Ok(Box::pin(first.chain(events(self, output, id, Some(spec)))))
    }

    async fn stdin(self: Arc<Self>, id: &CommandId, mut body: BodyStream) -> Result<()> {
        let request = Request::Stdin { id: id.to_string(), counted: false, offset: None, close: false };
        let mut dialogue = self.agent.open(request).await?;
        match deliver(&mut dialogue, &mut body).await.map_err(refused_input)? {
            Frame::End => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn input(self: Arc<Self>, id: &CommandId, input: Input) -> Result<u64> {
        let Input { data, offset, close } = input;
        let request = Request::Stdin { id: id.to_string(), counted: true, offset, close };
        let mut dialogue = self.agent.open_new(4, request).await?;
        let mut body: BodyStream = Box::pin(futures::stream::iter([Ok(data)]));
        match deliver(&mut dialogue, &mut body).await.map_err(refused_input)? {
            Frame::Reply(Reply::Taken { total }) => Ok(total),
            other => Err(unexpected(&other)),
        }
    }

    async fn kill(self: Arc<Self>, id: &CommandId, signal: i32, tree: bool) -> Result<Command> {
        let request = Request::Signal { id: id.to_string(), signal, tree };
        let mut dialogue = self.agent.open_new(if tree { 4 } else { 1 }, request).await?;
        match dialogue.expect().await? {
            Frame::Reply(Reply::Command(status)) => Ok(command(&self, id, &status)),
            other => Err(unexpected(&other)),
        }
    }

    async fn write_files(self: Arc<Self>, cwd: &str, gzip: bool, mut body: BodyStream) -> Result<()> {
        let cwd = absolute(&self.cwd, cwd)?;
        let request = Request::WriteTar { cwd, gzip, user: self.config.user.clone() };
        let mut dialogue = self.agent.open(request).await?;
        match deliver(&mut dialogue, &mut body).await {
            Ok(Frame::End) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(self.of_a_helper(error).await),
        }
    }

    async fn read_file(self: Arc<Self>, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        let cwd = absolute(&self.cwd, cwd.unwrap_or("."))?;
        let request = Request::ReadFile { path: path_text(path)?, cwd, user: self.config.user.clone() };
        let dialogue = self.agent.open(request).await?;
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

    async fn mkdir(self: Arc<Self>, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()> {
        let cwd = absolute(&self.cwd, cwd.unwrap_or("."))?;
        let request =
            Request::Mkdir { path: path_text(path)?, cwd, recursive, user: self.config.user.clone() };
        let mut dialogue = self.agent.open(request).await?;
        match dialogue.expect().await {
            Ok(Frame::End) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            // What is missing is the parent: the request is wrong, not lost.
            Err(AgentError::Refused(refused)) if refused.errno == libc::ENOENT => {
                Err(ProviderError::Invalid(refused.message))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn terminal(
        self: Arc<Self>,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        self.open_terminal(spec, size, input).await
    }

    async fn dial(self: Arc<Self>, port: u16) -> std::result::Result<Box<dyn PortStream>, PortError> {
        match self.agent.dial(port).await {
            Ok(stream) => Ok(Box::new(Tied::new(stream, &self.ended))),
            Err(AgentError::Refused(refused)) if refused.errno == libc::ECONNREFUSED => {
                Err(PortError::NotListening(port))
            }
            Err(AgentError::Gone(_)) => Err(PortError::Stopped(None)),
            Err(error) => Err(ProviderError::from(error).into()),
        }
    }
}

impl Live {
    /// What became of a file operation whose helper has ended without a word: so
    /// has the run, or the kernel ended the helper alone, for lack of memory.
    async fn of_a_helper(&self, error: ProviderError) -> ProviderError {
        if !matches!(error, ProviderError::Stopped) {
            return error;
        }
        match tokio::time::timeout(NEWS_OF_AN_END, self.ended.cancelled()).await {
            Ok(()) => error,
            Err(_) => ProviderError::Refused {
                errno: libc::ENOMEM,
                message: "unpack: the sandbox has too little memory for it".to_owned(),
            },
        }
    }
}

/// How long it takes at most until the end of a run is known.
const NEWS_OF_AN_END: std::time::Duration = std::time::Duration::from_millis(500);

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
async fn deliver(dialogue: &mut Dialogue, body: &mut BodyStream) -> Result<Frame> {
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
        Ok(last) => Ok(last),
        Err(word @ (AgentError::Refused(_) | AgentError::Gone(_))) => Err(word.into()),
        Err(other) => Err(sent.err().unwrap_or(other).into()),
    }
}

/// Standard input that nobody reads any more is not a fault of the sandbox's.
fn refused_input(error: ProviderError) -> ProviderError {
    match error {
        ProviderError::Refused { errno: libc::EPIPE, message } => ProviderError::InputRefused(message),
        other => other,
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

fn events(live: Arc<Live>, output: Output, id: CommandId, spec: Option<CommandSpec>) -> BoxStream<LogEvent> {
    Box::pin(futures::stream::unfold(Some(output), move |output| {
        let (live, id, spec) = (live.clone(), id.clone(), spec.clone());
        async move {
            let mut output = output?;
            let event = match output.next().await {
                Ok(Piece::Stdout(data)) => LogEvent::Stdout(data),
                Ok(Piece::Stderr(data)) => LogEvent::Stderr(data),
                Ok(Piece::Lost(bytes)) => LogEvent::Lost(bytes),
                Ok(Piece::Exited(status)) => {
                    let mut exited = command(&live, &id, &status);
                    if let Some(spec) = &spec {
                        exited.argv.clone_from(&spec.argv);
                    }
                    return Some((Ok(LogEvent::Exited(exited)), None));
                }
                Err(error) => return Some((Err(error), None)),
            };
            Some((Ok(event), Some(output)))
        }
    }))
}

fn access(line: Access) -> NetworkAccess {
    NetworkAccess {
        at: Timestamp(i64::try_from(line.at).unwrap_or(i64::MAX)),
        way: line.way.word().to_owned(),
        host: line.host.map(|host| host.to_string()),
        address: line.address.map(|address| address.to_string()),
        method: line.method,
        status: line.status,
        denied: line.denied.map(|reason| reason.word().to_owned()),
        sent: line.sent,
        received: line.received,
    }
}

/// The command as the agent is told it.
pub(crate) fn spawn(live: &Live, id: &CommandId, spec: &CommandSpec) -> Result<Spawn> {
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err(ProviderError::Invalid("command must not be empty".to_owned()));
    }
    let mut env = trust::environment();
    env.extend(live.config.image_env.clone());
    env.extend(live.config.env.clone());
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
    Ok(Spawn {
        id: id.to_string(),
        argv: spec.argv.clone(),
        cwd: absolute(&live.cwd, spec.cwd.as_deref().unwrap_or("."))?,
        env: env.into_iter().collect(),
        user: if spec.sudo { "root".to_owned() } else { live.config.user.clone() },
        stdin: match spec.stdin {
            StdinSource::Empty => StdinMode::Null,
            StdinSource::Stream => StdinMode::Pipe,
        },
        timeout_ms: spec.timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        sudo_user: spec.sudo.then(|| live.config.user.clone()),
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
        cwd: if status.cwd.is_empty() { live.cwd.clone() } else { status.cwd.clone() },
        run: live.run.clone(),
        started_at: Timestamp(status.started_at),
        exit_code: status.exit_code,
        duration: status.duration_ms.map(Duration::from_millis),
        timed_out: status.timed_out,
        // An agent of before does not say how much.
        output_lost: status.output_lost.max(status.output_truncated.into()),
        oom: status.oom,
    }
}

fn started(live: &Live, id: &CommandId, spec: &CommandSpec, status: &CommandStatus) -> Command {
    let cwd = spec.cwd.clone().unwrap_or_else(|| live.cwd.clone());
    Command { argv: spec.argv.clone(), cwd, ..command(live, id, status) }
}

pub(crate) fn unexpected(answer: &impl std::fmt::Debug) -> ProviderError {
    ProviderError::internal("talk to the agent", format!("unexpected answer {answer:?}"))
}
