//! Commands: starting them, following their output, signals.

use std::process::ExitCode;

use anyhow::Context as _;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use dormouse_wire as wire;
use futures::StreamExt as _;
use reqwest::{Method, Response};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{awake, exit_code};
use crate::client::Client;
use crate::output::Output;

/// Names and numbers of signals (`signal(7)`, x86-64 and aarch64).
const SIGNALS: [(&str, i32); 12] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
];

/// Starts a command and leaves it.
pub(super) async fn start(
    client: &Client,
    name: &str,
    request: &wire::CommandRequest,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let started = awake(client, name, |run| async move {
        client
            .json::<wire::CommandReply>(
                client.request(Method::POST, &format!("/sessions/{run}/cmd")).json(request),
            )
            .await
    })
    .await?;
    output.data(&serde_json::to_value(&started)?, &started.command.id);
    Ok(ExitCode::SUCCESS)
}

/// The command's output from the start; exits with its code.
pub(super) async fn logs(client: &Client, name: &str, command: Option<String>) -> anyhow::Result<ExitCode> {
    let run = client.sandbox(name, false).await?.session.id;
    let id = match command {
        Some(id) => id.parse::<dormouse_types::CommandId>()?.to_string(),
        None => {
            let newest = remembered(client, &run).await?.into_iter().max_by_key(|command| command.started_at);
            newest.with_context(|| format!("the current run of {name} has run no command"))?.id
        }
    };
    let path = format!("/sessions/{run}/cmd/{id}");
    let query = [("__encoding", "base64")];
    let answer = client.send(client.request(Method::GET, &format!("{path}/logs")).query(&query)).await?;
    let mut lines = Lines::new(answer);
    while let Some(line) = lines.next().await? {
        print(&read(&line)?)?;
    }
    let ended = client.request(Method::GET, &path).query(&[("wait", true)]);
    let ended: wire::CommandReply = client.json(ended).await?;
    Ok(exit(&ended.command).unwrap_or(ExitCode::FAILURE))
}

async fn remembered(client: &Client, run: &str) -> anyhow::Result<Vec<wire::Command>> {
    let path = format!("/sessions/{run}/cmd");
    Ok(client.json::<wire::CommandList>(client.request(Method::GET, &path)).await?.commands)
}

pub(super) async fn ps(client: &Client, name: &str, all: bool, output: &Output) -> anyhow::Result<()> {
    let run = client.sandbox(name, false).await?.session.id;
    let mut commands = remembered(client, &run).await?;
    commands.retain(|command| all || command.exit_code.is_none());
    let rows: Vec<_> = commands
        .iter()
        .map(|command| {
            let state = match (command.exit_code, command.oom) {
                (None, _) => "running".to_owned(),
                (Some(_), true) => "out of memory".to_owned(),
                (Some(code), false) => format!("exited {code}"),
            };
            let words: Vec<_> = std::iter::once(&command.name).chain(&command.args).cloned().collect();
            vec![command.id.clone(), state, words.join(" ")]
        })
        .collect();
    output.table(&json!({"commands": commands}), &["COMMAND", "STATE", "ARGUMENTS"], &rows);
    Ok(())
}

/// Number of a signal, by name or number.
fn number(signal: &str) -> anyhow::Result<i32> {
    let name = signal.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let known = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = known.or_else(|| name.parse().ok()).filter(|number| (1..=64).contains(number));
    number.with_context(|| format!("{signal:?} is no signal: give a name such as TERM, or a number"))
}

pub(super) async fn kill(
    client: &Client,
    name: &str,
    command: Option<String>,
    signal: &str,
    tree: bool,
    output: &Output,
) -> anyhow::Result<()> {
    let signal = number(signal)?;
    let run = client.sandbox(name, false).await?.session.id;
    let id = match command {
        Some(id) => id.parse::<dormouse_types::CommandId>()?.to_string(),
        None => {
            let running = remembered(client, &run).await?.into_iter().filter(|c| c.exit_code.is_none());
            let newest = running.max_by_key(|command| command.started_at);
            newest.with_context(|| format!("no command runs in {name}"))?.id
        }
    };
    let killed = send(client, &run, &id, signal, tree).await?;
    output.data(&serde_json::to_value(&killed)?, &id);
    Ok(())
}

async fn send(
    client: &Client,
    run: &str,
    id: &str,
    signal: i32,
    tree: bool,
) -> anyhow::Result<wire::CommandReply> {
    let request = client.request(Method::POST, &format!("/sessions/{run}/cmd/{id}/kill"));
    Ok(client.json(request.json(&wire::KillRequest { signal, tree })).await?)
}

/// Runs a command to its end, and passes signals on to it.
pub(super) async fn exec(
    client: &Client,
    name: &str,
    request: &wire::CommandRequest,
) -> anyhow::Result<ExitCode> {
    let (mut interrupts, mut terminations) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let answer = awake(client, name, |run| async move {
        client.send(client.request(Method::POST, &format!("/sessions/{run}/cmd")).json(request)).await
    });
    let answer = tokio::select! {
        answer = answer => answer?,
        _ = interrupts.recv() => return Ok(exit_code(130)),
        _ = terminations.recv() => return Ok(exit_code(143)),
    };
    let mut lines = Lines::new(answer);
    let (mut started, mut interrupted) = (None::<wire::Command>, false);
    loop {
        let number = tokio::select! {
            line = lines.next() => {
                let Some(line) = line? else {
                    anyhow::bail!("the server ended the answer before the command did");
                };
                if let Ok(reply) = serde_json::from_str::<wire::CommandReply>(&line) {
                    if let Some(code) = exit(&reply.command) {
                        return Ok(code);
                    }
                    if request.attach_stdin && started.is_none() {
                        // A thread of its own, which no end of ours waits for: reading a
                        // terminal cannot be called off.
                        tokio::spawn(feed(client.clone(), reply.command.clone()));
                    }
                    started = Some(reply.command);
                } else {
                    print(&read(&line)?)?;
                }
                continue;
            }
            // Who asks twice means it.
            _ = interrupts.recv() => if std::mem::replace(&mut interrupted, true) { 9 } else { 2 },
            _ = terminations.recv() => 15,
        };
        let Some(command) = &started else { return Ok(exit_code(128 + number)) };
        if send(client, &command.session_id, &command.id, number, number == 9).await.is_err() {
            return Ok(exit_code(128 + number));
        }
    }
}

/// What to exit with, if the command has ended.
fn exit(command: &wire::Command) -> Option<ExitCode> {
    if command.oom {
        eprintln!("dormouse: the sandbox is out of memory: the kernel killed the command");
    }
    if command.timed_out {
        eprintln!("dormouse: the command was killed: its time limit passed");
    }
    command.exit_code.map(exit_code)
}

/// Sends our standard input to the command.
async fn feed(client: Client, command: wire::Command) {
    let (chunks, input) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let chunk = match std::io::Read::read(&mut std::io::stdin(), &mut buffer) {
                Ok(0) => return,
                Ok(read) => Ok(Bytes::copy_from_slice(&buffer[..read])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if chunks.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    let body = tokio_stream::wrappers::ReceiverStream::new(input);
    let path = format!("/sessions/{}/cmd/{}/stdin", command.session_id, command.id);
    let request = client.request(Method::POST, &path).body(reqwest::Body::wrap_stream(body));
    // A command that ends before its input is not an error.
    let _ = client.send(request).await;
}

/// Output of a command.
pub(super) enum Said {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// A line about output.
///
/// # Errors
/// That of an error line.
pub(super) fn read(line: &str) -> anyhow::Result<Said> {
    let log: wire::LogLine = serde_json::from_str(line).context("read the server's answer")?;
    let text = log.data.as_str().unwrap_or_default();
    let bytes = match log.encoding {
        Some(wire::Encoding::Base64) => BASE64_STANDARD.decode(text).context("read the server's answer")?,
        _ => text.as_bytes().to_vec(),
    };
    match log.stream.as_str() {
        "stdout" => Ok(Said::Stdout(bytes)),
        "stderr" => Ok(Said::Stderr(bytes)),
        _ => anyhow::bail!("{}", log.data["message"].as_str().unwrap_or("the command was cut off")),
    }
}

fn print(said: &Said) -> anyhow::Result<()> {
    fn write(mut to: impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
        to.write_all(bytes)?;
        to.flush()
    }
    let written = match said {
        Said::Stdout(bytes) => write(std::io::stdout(), bytes),
        Said::Stderr(bytes) => write(std::io::stderr(), bytes),
    };
    Ok(written?)
}

/// Lines of an NDJSON answer; empty ones are left out.
pub(super) struct Lines {
    body: futures::stream::BoxStream<'static, reqwest::Result<Bytes>>,
    buffer: Vec<u8>,
    /// Where in it no end of a line is.
    searched: usize,
}

impl Lines {
    pub(super) fn new(answer: Response) -> Self {
        Self { body: answer.bytes_stream().boxed(), buffer: Vec::new(), searched: 0 }
    }

    /// The next line. May be dropped and called again.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
                self.searched = 0;
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if !line.is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.buffer.len();
            match self.body.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.context("read the server's answer")?),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(number("TERM").unwrap(), 15);
        assert_eq!(number("sigkill").unwrap(), 9);
        assert_eq!(number("2").unwrap(), 2);
        assert!(number("0").is_err() && number("65").is_err() && number("NO").is_err());
    }
}
