//! Output of a command, as a stream that outlives its connection. A cut answer
//! says nothing about the command: it goes on, and its output can be read again
//! from the start, so what was seen is skipped and the rest follows.

use std::time::Duration;

use bytes::Bytes;
use dormouse_provider::{BoxStream, Command, LogEvent, ProviderError, Result};
use dormouse_types::{CommandId, RunId};
use dormouse_wire as wire;
use reqwest::Response;
use tokio::sync::mpsc::{Sender, channel};

use crate::replies;
use crate::transport::{ATTEMPTS, Call, Transport, describe};

/// Longest line of an answer, in bytes.
const MAX_LINE: usize = 16 << 20;

/// Events that wait for a slow reader.
const QUEUE: usize = 32;

/// Pause before output is read again.
const PAUSE: Duration = Duration::from_millis(400);

/// Which command.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    pub(crate) transport: Transport,
    pub(crate) run: RunId,
    /// Its time limit, if this side knows.
    pub(crate) limit: Option<Duration>,
}

impl Followed {
    pub(crate) fn path(&self, command: &CommandId, rest: &str) -> String {
        format!("/v2/sandboxes/sessions/{}/cmd/{command}{rest}", self.run)
    }

    /// The command; `wait`: once it has exited.
    pub(crate) async fn command(&self, id: &CommandId, wait: bool) -> Result<Command> {
        let mut call = Call::get(self.path(id, ""), format!("command {id}"));
        if wait {
            call = call.query("wait", "true").patient();
        }
        let reply: wire::CommandReply = self.transport.json(&call).await?;
        replies::command(reply.command, self.limit)
    }

    /// Waits for the exit, however long: an answer that does not come in time
    /// is asked for again while the command is seen to run.
    pub(crate) async fn exited(&self, id: &CommandId) -> Result<Command> {
        loop {
            match self.command(id, true).await {
                Ok(command) if command.exit_code.is_some() => return Ok(command),
                Ok(_) => tokio::time::sleep(PAUSE).await,
                Err(ProviderError::Internal { .. }) => {
                    // Still there: the wait alone took too long.
                    let now = self.command(id, false).await?;
                    if now.exit_code.is_some() {
                        return Ok(now);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Follows from the answer to a start.
    pub(crate) fn after_start(self, answer: Response) -> BoxStream<LogEvent> {
        self.spawn(None, answer)
    }

    /// Follows a command that runs or ran, from its first byte.
    pub(crate) fn after_logs(self, id: CommandId, answer: Response) -> BoxStream<LogEvent> {
        self.spawn(Some(id), answer)
    }

    fn spawn(self, id: Option<CommandId>, answer: Response) -> BoxStream<LogEvent> {
        let (events, stream) = channel(QUEUE);
        tokio::spawn(async move {
            let gone = events.clone();
            let work = Work { followed: self, id, seen: [0; 2], events };
            tokio::select! {
                () = work.run(answer) => {}
                // Nobody listens any more; the command goes on.
                () = gone.closed() => {}
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))
    }
}

struct Work {
    followed: Followed,
    id: Option<CommandId>,
    /// Bytes of standard output and standard error that were passed on.
    seen: [u64; 2],
    events: Sender<Result<LogEvent>>,
}

/// How an answer ended.
enum End {
    /// With the command's exit, which was passed on.
    Exited,
    /// Without it, between two lines, as the output of a command does.
    Ended,
    /// In the middle.
    Cut(String),
}

impl Work {
    async fn run(mut self, first: Response) {
        if let Err(error) = self.follow(first).await {
            // Nobody listens any more.
            let _ = self.events.send(Err(error)).await;
        }
    }

    async fn follow(&mut self, mut answer: Response) -> Result<()> {
        let mut fruitless = 0;
        // A start is answered up to the exit; output says nothing of it.
        let mut may_end = self.id.is_some();
        loop {
            let before = self.seen;
            let (why, whole) = match self.read(answer, before).await? {
                End::Exited => return Ok(()),
                End::Ended => ("it ended before the command did".to_owned(), may_end),
                End::Cut(why) => (why, false),
            };
            let Some(id) = self.id.clone() else {
                return Err(ProviderError::internal(
                    format!("start a command in run {}", self.followed.run),
                    format!("the answer was cut off before it named the command: {why}"),
                ));
            };
            // Output that ends with its answer ended with the command.
            let command = self.followed.command(&id, false).await?;
            if whole && command.exit_code.is_some() {
                return self.tell(LogEvent::Exited(command)).await;
            }
            fruitless = if self.seen == before { fruitless + 1 } else { 0 };
            if fruitless == ATTEMPTS {
                return Err(ProviderError::internal(format!("follow command {id}"), why));
            }
            tokio::time::sleep(PAUSE).await;
            let call = Call::get(self.followed.path(&id, "/logs"), format!("command {id}")).patient();
            answer = self.followed.transport.stream(&call).await?;
            may_end = true;
        }
    }

    async fn tell(&self, event: LogEvent) -> Result<()> {
        // Whoever stopped listening wants nothing; the task ends by itself.
        let _ = self.events.send(Ok(event)).await;
        Ok(())
    }

    /// Passes on what an answer holds. `before`: what was seen of output that
    /// this answer may hold again.
    async fn read(&mut self, mut answer: Response, before: [u64; 2]) -> Result<End> {
        let mut skip = if self.id.is_some() { before } else { [0; 2] };
        let mut buffer: Vec<u8> = Vec::new();
        let mut searched = 0;
        loop {
            while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=searched + end).collect();
                searched = 0;
                if self.line(&line, &mut skip).await? {
                    return Ok(End::Exited);
                }
            }
            searched = buffer.len();
            match answer.chunk().await {
                Ok(Some(chunk)) => buffer.extend_from_slice(&chunk),
                Ok(None) if buffer.iter().all(u8::is_ascii_whitespace) => return Ok(End::Ended),
                Ok(None) => return Ok(End::Cut("it ended in the middle of a line".to_owned())),
                Err(error) => return Ok(End::Cut(describe(&error))),
            }
            if buffer.len() > MAX_LINE {
                let why = format!("a line is longer than {MAX_LINE} bytes");
                return Err(ProviderError::internal("read the output of a command", why));
            }
        }
    }

    /// `true`: the command has exited.
    async fn line(&mut self, line: &[u8], skip: &mut [u64; 2]) -> Result<bool> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(false);
        }
        if let Ok(wire::CommandReply { command }) = serde_json::from_slice(line) {
            let command = replies::command(command, self.followed.limit)?;
            let exited = command.exit_code.is_some();
            if self.id.is_none() {
                self.id = Some(command.id.clone());
                let started =
                    Command { exit_code: None, duration: None, timed_out: false, ..command.clone() };
                self.tell(LogEvent::Started(started)).await?;
            }
            if exited {
                self.tell(LogEvent::Exited(command)).await?;
            }
            return Ok(exited);
        }
        let log: wire::LogLine = serde_json::from_slice(line)
            .map_err(|error| ProviderError::internal("read the output of a command", error))?;
        if let Some(lost) = log.lost {
            // An answer that is read again tells it again.
            if lost > 0 && skip.iter().all(|left| *left == 0) {
                self.tell(LogEvent::Lost(lost)).await?;
            }
            return Ok(false);
        }
        let stream = match log.stream.as_str() {
            "stdout" => 0,
            "stderr" => 1,
            _ => return Err(stream_error(&log.data)),
        };
        let text = log.data.as_str().unwrap_or_default().as_bytes();
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let known = skip[stream].min(length);
        skip[stream] -= known;
        let new = &text[usize::try_from(known).unwrap_or(text.len())..];
        if !new.is_empty() {
            self.seen[stream] += length - known;
            let data = Bytes::copy_from_slice(new);
            self.tell(if stream == 0 { LogEvent::Stdout(data) } else { LogEvent::Stderr(data) }).await?;
        }
        Ok(false)
    }
}

/// An error line, by its code.
fn stream_error(data: &serde_json::Value) -> ProviderError {
    match data["code"].as_str() {
        Some("sandbox_stopped" | "sandbox_stream_closed") => ProviderError::Stopped,
        Some("sandbox_stopping" | "sandbox_snapshotting") => ProviderError::Stopping,
        _ => ProviderError::internal("follow a command", data.to_string()),
    }
}
