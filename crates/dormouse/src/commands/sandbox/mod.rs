//! `dormouse sandbox …`, over the provider API.

mod create;
mod shell;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_types::parse_duration;
use dormouse_wire as wire;
use futures::StreamExt as _;
use reqwest::{Method, Response};
use serde_json::json;

use crate::cli::{RemoteArgs, SandboxAction};
use crate::client::{CallError, Client, plain};
use crate::output::Output;

/// Sandboxes on one page.
const PAGE: &str = "100";

pub(crate) async fn run(
    remote: &RemoteArgs,
    action: SandboxAction,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(remote)?;
    match action {
        SandboxAction::Create(args) => create::create(&client, args, output).await?,
        SandboxAction::Fork(args) => create::fork(&client, args, output).await?,
        SandboxAction::Snapshot { name, expires_in, live } => {
            create::snapshot(&client, &name, expires_in.as_deref(), live, output).await?;
        }
        SandboxAction::Rollback { name, snapshot } => {
            create::roll_back(&client, &name, snapshot, output).await?;
        }
        SandboxAction::Shell { name, sudo, cwd, env, command } => {
            let shell = shell::Shell { sudo, cwd, env: environment(&env)?, command };
            return shell::run(&client, &name, shell).await;
        }
        SandboxAction::Logs { name, command } => return logs(&client, &name, command).await,
        SandboxAction::Network { name } => network(&client, &name, output).await?,
        SandboxAction::Ports { name, set, none } => ports(&client, &name, set, none, output).await?,
        SandboxAction::List => list(&client, output).await?,
        SandboxAction::Show { name } => {
            let found = client.sandbox(&name, false).await?;
            output.data(&serde_json::to_value(&found)?, &described(&found));
        }
        SandboxAction::Exec { name, sudo, cwd, env, timeout, interactive, detach, command } => {
            let mut command = command.into_iter();
            let request = wire::CommandRequest {
                command: command.next().unwrap_or_default(),
                args: command.collect(),
                cwd,
                env: environment(&env)?,
                sudo,
                wait: !detach,
                logs: !detach,
                timeout: timeout.as_deref().map(millis).transpose()?,
                stdin: !detach && (interactive || !std::io::IsTerminal::is_terminal(&std::io::stdin())),
            };
            if detach {
                return start(&client, &name, &request, output).await;
            }
            return exec(&client, &name, &request).await;
        }
        SandboxAction::Cp { from, to } => copy(&client, &from, &to).await?,
        SandboxAction::Stop { name } => {
            let found = client.sandbox(&name, false).await?;
            let path = format!("/sessions/{}/stop", found.session.id);
            let stopped: wire::StopReply = client.json(client.request(Method::POST, &path)).await?;
            output.data(&serde_json::to_value(&stopped)?, &format!("{name} {}", stopped.session.status));
        }
        SandboxAction::Delete { name } => {
            let path = format!("/{}", plain(&name)?);
            let deleted: wire::ChangeReply = client.json(client.request(Method::DELETE, &path)).await?;
            output.data(&serde_json::to_value(&deleted)?, &format!("{name} deleted"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A sandbox in words.
fn described(found: &wire::SandboxReply) -> String {
    let sandbox = &found.sandbox;
    let mut rows = vec![
        ("name", sandbox.name.clone()),
        ("status", sandbox.status.clone()),
        ("image", sandbox.image.clone().unwrap_or_else(|| "-".to_owned())),
        ("vcpus", sandbox.vcpus.unwrap_or(0).to_string()),
        ("memory", format!("{} MiB", sandbox.memory.unwrap_or(0))),
        ("session", sandbox.current_session_id.clone()),
        ("snapshot", sandbox.current_snapshot_id.clone().unwrap_or_else(|| "-".to_owned())),
    ];
    if let Some(disk) = sandbox.disk {
        let used = disk.used_bytes >> 20;
        rows.push((
            "disk",
            match disk.limit_bytes {
                Some(limit) => format!("{used} of {} MiB", limit >> 20),
                None => format!("{used} MiB"),
            },
        ));
        if let Some(advice) = advice(&disk, &sandbox.name) {
            rows.push(("", advice));
        }
    }
    rows.extend(found.session.warnings.iter().map(|warning| ("warning", warning.clone())));
    let lines: Vec<_> = rows.into_iter().map(|(name, value)| format!("{name:<9} {value}")).collect();
    lines.join("\n")
}

/// What helps a sandbox that is nearly full.
fn advice(disk: &wire::Disk, name: &str) -> Option<String> {
    let full = disk.limit_bytes.is_some_and(|limit| disk.used_bytes >= limit / 10 * 9);
    full.then(|| match disk.snapshots {
        0 => "nearly full: delete files in it".to_owned(),
        count => format!(
            "nearly full: delete files in it; what its {count} snapshots hold is freed by `dormouse snapshot \
             delete ID` (`dormouse snapshot list --sandbox {name}`)"
        ),
    })
}

async fn list(client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = vec![("limit", PAGE.to_owned())];
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: wire::SandboxList = client.json(client.request(Method::GET, "").query(&query)).await?;
        all.extend(page.sandboxes);
        cursor = page.pagination.next;
        if cursor.is_none() {
            break;
        }
    }
    let rows: Vec<_> = all
        .iter()
        .map(|s| vec![s.name.clone(), s.status.clone(), s.image.clone().unwrap_or_default()])
        .collect();
    output.table(&json!({"sandboxes": all}), &["NAME", "STATUS", "IMAGE"], &rows);
    Ok(())
}

/// Milliseconds of a duration such as `30m`.
fn millis(text: &str) -> anyhow::Result<u64> {
    Ok(u64::try_from(parse_duration(text)?.as_millis()).unwrap_or(u64::MAX))
}

/// Starts a command and leaves it.
async fn start(
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

/// Prints a command's output from the start; exits with its code.
async fn logs(client: &Client, name: &str, command: Option<String>) -> anyhow::Result<ExitCode> {
    let run = client.sandbox(name, false).await?.session.id;
    let id = match command {
        Some(id) => id.parse::<dormouse_types::CommandId>()?.to_string(),
        None => {
            let path = format!("/sessions/{run}/cmd");
            let list: wire::CommandList = client.json(client.request(Method::GET, &path)).await?;
            let newest = list.commands.into_iter().max_by_key(|command| command.started_at);
            newest.with_context(|| format!("the current run of {name} has run no command"))?.id
        }
    };
    let path = format!("/sessions/{run}/cmd/{id}");
    let answer = client.send(client.request(Method::GET, &format!("{path}/logs"))).await?;
    let mut lines = Lines::new(answer);
    while let Some(line) = lines.next().await? {
        print_log(&line)?;
    }
    let ended = client.request(Method::GET, &path).query(&[("wait", true)]);
    let ended: wire::CommandReply = client.json(ended).await?;
    Ok(exit_code(ended.command.exit_code.unwrap_or(1)))
}

async fn network(client: &Client, name: &str, output: &Output) -> anyhow::Result<()> {
    let path = format!("/{}/network", plain(name)?);
    let found = client.json::<wire::NetworkUse>(client.request(Method::GET, &path)).await?;
    let rows: Vec<_> = found
        .recent
        .iter()
        .map(|line| {
            let target = line.host.clone().or_else(|| line.address.clone()).unwrap_or_default();
            let outcome = match (&line.denied, line.status) {
                (Some(rule), _) => format!("denied: {rule}"),
                (None, Some(status)) => status.to_string(),
                (None, None) => "allowed".to_owned(),
            };
            let method = line.method.clone().unwrap_or_default();
            vec![line.way.clone(), target, method, outcome, line.sent.to_string(), line.received.to_string()]
        })
        .collect();
    output.table(&json!(found), &["WAY", "TARGET", "METHOD", "OUTCOME", "SENT", "RECEIVED"], &rows);
    Ok(())
}

async fn ports(
    client: &Client,
    name: &str,
    set: Vec<u16>,
    none: bool,
    output: &Output,
) -> anyhow::Result<()> {
    if none || !set.is_empty() {
        let change = wire::UpdateRequest { ports: Some(set), ..wire::UpdateRequest::default() };
        let path = format!("/{}", plain(name)?);
        client.json::<wire::ChangeReply>(client.request(Method::PATCH, &path).json(&change)).await?;
    }
    let routes = client.sandbox(name, false).await?.routes;
    let rows: Vec<_> = routes.iter().map(|route| vec![route.port.to_string(), route.url.clone()]).collect();
    output.table(&json!({"routes": routes}), &["PORT", "URL"], &rows);
    Ok(())
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

fn print_log(line: &str) -> anyhow::Result<()> {
    let log: wire::LogLine = serde_json::from_str(line).context("read the server's answer")?;
    let text = log.data.as_str().unwrap_or_default();
    match log.stream.as_str() {
        "stdout" => write(&mut std::io::stdout(), text),
        "stderr" => write(&mut std::io::stderr(), text),
        _ => anyhow::bail!("{}", log.data["message"].as_str().unwrap_or("the command was cut off")),
    }
}

fn environment(pairs: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    pairs
        .iter()
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').with_context(|| format!("{pair:?} is not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Repeats `call` once on a new run when the sandbox slept.
async fn awake<T, F>(client: &Client, name: &str, call: impl Fn(String) -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, CallError>>,
{
    let found = client.sandbox(name, true).await?;
    match call(found.session.id).await {
        Err(CallError::Stopped) => Ok(call(client.sandbox(name, true).await?.session.id).await?),
        other => Ok(other?),
    }
}

async fn exec(client: &Client, name: &str, request: &wire::CommandRequest) -> anyhow::Result<ExitCode> {
    let answer = awake(client, name, |run| async move {
        client.send(client.request(Method::POST, &format!("/sessions/{run}/cmd")).json(request)).await
    })
    .await?;
    let mut feeding = None;
    let mut lines = Lines::new(answer);
    while let Some(line) = lines.next().await? {
        if let Ok(reply) = serde_json::from_str::<wire::CommandReply>(&line) {
            if let Some(code) = reply.command.exit_code {
                return Ok(exit_code(code));
            }
            if request.stdin && feeding.is_none() {
                feeding = Some(tokio::spawn(feed(client.clone(), reply.command)));
            }
            continue;
        }
        print_log(&line)?;
    }
    anyhow::bail!("the server ended the answer before the command did")
}

fn write(to: &mut impl std::io::Write, text: &str) -> anyhow::Result<()> {
    to.write_all(text.as_bytes())?;
    Ok(to.flush()?)
}

/// Sends our standard input to the command.
async fn feed(client: Client, command: wire::Command) {
    let input = tokio_util::io::ReaderStream::new(tokio::io::stdin());
    let path = format!("/sessions/{}/cmd/{}/stdin", command.session_id, command.id);
    let request = client.request(Method::POST, &path).body(reqwest::Body::wrap_stream(input));
    // A command that ends before its input is not an error.
    let _ = client.send(request).await;
}

/// Lines of an NDJSON answer.
struct Lines {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(answer: Response) -> Self {
        Self { body: answer.bytes_stream().boxed(), buffer: Vec::new() }
    }

    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            match self.body.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.context("read the server's answer")?),
                None => return Ok(None),
            }
        }
    }
}

async fn copy(client: &Client, from: &str, to: &str) -> anyhow::Result<()> {
    match (remote_side(from), remote_side(to)) {
        (None, Some((name, path))) => upload(client, Path::new(from), name, path).await,
        (Some((name, path)), None) => download(client, name, path, Path::new(to)).await,
        _ => anyhow::bail!("exactly one side must be in a sandbox, written NAME:PATH"),
    }
}

fn remote_side(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(name, path)| !name.contains('/') && !name.is_empty() && !path.is_empty())
}

async fn upload(client: &Client, from: &Path, name: &str, to: &str) -> anyhow::Result<()> {
    let to = Path::new(to);
    let (Some(parent), Some(file)) = (to.parent(), to.file_name()) else {
        anyhow::bail!("{} names no file", to.display());
    };
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    archive.follow_symlinks(false);
    let packed = if from.is_dir() {
        archive.append_dir_all(Path::new(file), from)
    } else {
        archive.append_path_with_name(from, Path::new(file))
    };
    packed.with_context(|| format!("read {}", from.display()))?;
    let body = bytes::Bytes::from(archive.into_inner()?.finish()?);
    let cwd = match parent.to_str() {
        Some("") => ".".to_owned(),
        Some(parent) => parent.to_owned(),
        None => anyhow::bail!("{} is not UTF-8", parent.display()),
    };
    awake(client, name, |run| {
        let request = client
            .request(Method::POST, &format!("/sessions/{run}/fs/write"))
            .header("content-type", "application/gzip")
            .header("x-cwd", &cwd)
            .body(body.clone());
        async move { client.send(request).await }
    })
    .await
    .map(drop)
}

async fn download(client: &Client, name: &str, from: &str, to: &Path) -> anyhow::Result<()> {
    let request = wire::PathRequest { path: from.to_owned(), cwd: None, recursive: None };
    let request = &request;
    let answer = awake(client, name, |run| async move {
        client.send(client.request(Method::POST, &format!("/sessions/{run}/fs/read")).json(request)).await
    })
    .await?;
    let file = Path::new(from).file_name().unwrap_or_default();
    let target = if to.is_dir() { to.join(file) } else { to.to_owned() };
    let mut out = std::fs::File::create(&target).with_context(|| format!("write {}", target.display()))?;
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        out.write_all(&chunk.context("read the server's answer")?)?;
    }
    Ok(())
}
