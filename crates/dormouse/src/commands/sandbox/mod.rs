//! `dormouse sandbox …`, over the provider API.

mod command;
mod copy;
mod create;
mod shell;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_types::parse_duration;
use dormouse_wire as wire;
use reqwest::Method;
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
        SandboxAction::Rollback { name, snapshot, image: _ } => {
            create::roll_back(&client, &name, snapshot, output).await?;
        }
        SandboxAction::Shell { name, sudo, cwd, env, command } => {
            let shell = shell::Shell { sudo, cwd, env: environment(&env)?, command };
            return shell::run(&client, &name, shell).await;
        }
        SandboxAction::Logs { name, command } => return command::logs(&client, &name, command).await,
        SandboxAction::Ps { name, all } => command::ps(&client, &name, all, output).await?,
        SandboxAction::Kill { name, command, signal, tree } => {
            command::kill(&client, &name, command, &signal, tree, output).await?;
        }
        SandboxAction::Network { name } => network(&client, &name, output).await?,
        SandboxAction::Ports { name, set, none } => ports(&client, &name, set, none, output).await?,
        SandboxAction::List => list(&client, output).await?,
        SandboxAction::Show { name } => {
            let found = client.sandbox(&name, false).await?;
            output.data(&serde_json::to_value(&found)?, &described(&found));
        }
        SandboxAction::Exec { name, sudo, cwd, env, tty: true, command, .. } => {
            let shell = shell::Shell { sudo, cwd, env: environment(&env)?, command };
            return shell::run(&client, &name, shell).await;
        }
        SandboxAction::Exec { name, sudo, cwd, env, timeout, interactive, tty: _, detach, command } => {
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
                attach_stdin: interactive,
                encoding: Some(wire::Encoding::Base64),
                ..wire::CommandRequest::default()
            };
            if detach {
                return command::start(&client, &name, &request, output).await;
            }
            return command::exec(&client, &name, &request).await;
        }
        SandboxAction::Cp { from, to } => copy::copy(&client, &from, &to).await?,
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
