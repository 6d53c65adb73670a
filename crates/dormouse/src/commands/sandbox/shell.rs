//! `dormouse sandbox shell`: this terminal on one inside.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_wire as wire;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

use super::{awake, exit_code};
use crate::client::Client;

/// What runs on the terminal.
pub(super) struct Shell {
    pub(super) sudo: bool,
    pub(super) cwd: Option<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) command: Vec<String>,
}

/// The terminal as it was, put back at the end.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("set the terminal up")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // There is nothing left to do about it.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Columns and rows of this terminal.
fn size() -> (Option<u16>, Option<u16>) {
    tcgetwinsize(std::io::stdout()).map_or((None, None), |size| (Some(size.ws_col), Some(size.ws_row)))
}

fn text(message: &wire::TerminalMessage) -> anyhow::Result<Message> {
    Ok(Message::Text(serde_json::to_string(message)?.into()))
}

fn first(shell: Shell) -> wire::TerminalMessage {
    let mut argv = shell.command;
    if argv.is_empty() {
        argv = vec!["bash".to_owned(), "--login".to_owned()];
    }
    if shell.sudo {
        argv.splice(0..0, ["sudo", "--preserve-env", "--"].map(str::to_owned));
    }
    let mut env = shell.env;
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
    env.entry("TERM".to_owned()).or_insert_with(|| term.unwrap_or_else(|| "xterm-256color".to_owned()));
    let (cols, rows) = size();
    wire::TerminalMessage::Start {
        command: argv.remove(0),
        args: argv,
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: shell.cwd,
        cols,
        rows,
    }
}

pub(super) async fn run(client: &Client, name: &str, shell: Shell) -> anyhow::Result<ExitCode> {
    let invited: wire::InteractiveReply = awake(client, name, |run| async move {
        let path = format!("/sessions/{run}/interactive");
        client.json(client.request(Method::POST, &path).json(&serde_json::json!({}))).await
    })
    .await?;
    let address = format!("{}?token={}", invited.url, invited.token);
    let connected = tokio_tungstenite::connect_async(address).await;
    let (socket, _) = connected.with_context(|| format!("open a terminal at {}", invited.url))?;
    let (mut to_server, mut from_server) = socket.split();
    to_server.send(text(&first(shell))?).await.context("start the terminal")?;

    let raw = Raw::enter()?;
    let typing = async {
        let mut resized = signal(SignalKind::window_change())?;
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 4096];
        let mut open = true;
        loop {
            let message = tokio::select! {
                read = stdin.read(&mut buffer), if open => match read.context("read from the terminal")? {
                    // The end of a pipe is what a person types as control-D.
                    0 => { open = false; Message::Binary(vec![4].into()) }
                    read => Message::Binary(buffer[..read].to_vec().into()),
                },
                _ = resized.recv() => match size() {
                    (Some(cols), Some(rows)) => text(&wire::TerminalMessage::Resize { cols, rows })?,
                    _ => continue,
                },
            };
            if to_server.send(message).await.is_err() {
                // What the server still has to say tells why.
                std::future::pending::<()>().await;
            }
        }
    };
    let showing = async {
        let mut stdout = std::io::stdout();
        while let Some(message) = from_server.next().await {
            let shown = match message.context("read from the server")? {
                Message::Binary(data) => data,
                Message::Text(frame) => match serde_json::from_str(&frame) {
                    Ok(wire::TerminalMessage::Exit { code }) => return Ok(code),
                    _ => bytes::Bytes::copy_from_slice(frame.as_bytes()),
                },
                Message::Close(_) => break,
                _ => continue,
            };
            stdout.write_all(&shown)?;
            stdout.flush()?;
        }
        anyhow::bail!("the server closed the terminal")
    };
    let code = tokio::select! {
        typed = typing => typed,
        code = showing => code,
    };
    drop(raw);
    Ok(exit_code(code?))
}
