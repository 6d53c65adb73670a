//! Making sandboxes and snapshots.

use std::collections::BTreeMap;

use dormouse_wire as wire;
use reqwest::Method;

use super::{awake, environment, millis};
use crate::cli::{CreateArgs, ForkArgs, RetentionArgs, SettingsArgs};
use crate::client::{Client, plain};
use crate::output::Output;

/// Milliseconds of a duration, 0 for `never`.
fn expiration(text: &str) -> anyhow::Result<u64> {
    if text == "never" { Ok(0) } else { millis(text) }
}

fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn pairs(list: &[String]) -> anyhow::Result<Option<BTreeMap<String, String>>> {
    Ok(if list.is_empty() { None } else { Some(environment(list)?) })
}

fn policy(settings: &SettingsArgs) -> Option<wire::NetworkPolicyRequest> {
    let SettingsArgs { network, allow_network, deny_network, .. } = settings;
    if let Some(mode) = network {
        return Some(wire::NetworkPolicyRequest {
            mode: Some(mode.clone()),
            ..wire::NetworkPolicyRequest::default()
        });
    }
    if allow_network.is_empty() && deny_network.is_empty() {
        return None;
    }
    // Without anything that is allowed, everything else is.
    let all = || wire::AllowedDomains::List(vec!["*".to_owned()]);
    Some(wire::NetworkPolicyRequest {
        allow: allow_network.is_empty().then(all),
        subnets: Some(wire::Subnets {
            allow: given(allow_network.clone()),
            deny: given(deny_network.clone()),
        }),
        ..wire::NetworkPolicyRequest::default()
    })
}

/// What a creation and a fork have in common.
fn settings(settings: SettingsArgs, retention: &RetentionArgs) -> anyhow::Result<wire::UpdateRequest> {
    let keep = retention
        .keep_last
        .map(|count| Some(wire::KeepLastSnapshots { count, expiration: None, delete_evicted: None }));
    Ok(wire::UpdateRequest {
        resources: settings.vcpus.map(|vcpus| wire::Resources { vcpus, memory: None }),
        timeout: settings.timeout.as_deref().map(millis).transpose()?,
        network_policy: policy(&settings),
        tags: pairs(&settings.tags)?,
        ports: given(settings.ports),
        snapshot_expiration: retention.snapshots_expire_in.as_deref().map(expiration).transpose()?,
        keep_last_snapshots: keep,
        ..wire::UpdateRequest::default()
    })
}

fn made(reply: &wire::SandboxReply, output: &Output) -> anyhow::Result<()> {
    output.data(&serde_json::to_value(reply)?, &reply.sandbox.name);
    Ok(())
}

pub(super) async fn create(client: &Client, args: CreateArgs, output: &Output) -> anyhow::Result<()> {
    let env = pairs(&args.settings.env)?;
    let settings = settings(args.settings, &args.retention)?;
    let git = |url| wire::Source::Git {
        url,
        depth: args.depth,
        revision: args.revision.clone(),
        username: None,
        password: None,
    };
    let source = args
        .snapshot
        .map(|snapshot_id| wire::Source::Snapshot { snapshot_id })
        .or(args.tarball.map(|url| wire::Source::Tarball { url }))
        .or(args.git.map(git));
    let request = wire::CreateRequest {
        name: args.name,
        ports: settings.ports,
        source,
        timeout: settings.timeout,
        resources: settings.resources,
        runtime: args.runtime,
        image: args.image,
        persistent: Some(!args.temporary),
        network_policy: settings.network_policy,
        env,
        tags: settings.tags,
        snapshot_expiration: settings.snapshot_expiration,
        keep_last_snapshots: settings.keep_last_snapshots.flatten(),
        ..wire::CreateRequest::default()
    };
    made(&client.json(client.request(Method::POST, "").json(&request)).await?, output)
}

pub(super) async fn fork(client: &Client, args: ForkArgs, output: &Output) -> anyhow::Result<()> {
    let request = wire::ForkRequest {
        name: args.name,
        env: pairs(&args.settings.env)?,
        live: args.live,
        changes: settings(args.settings, &args.retention)?,
        ..wire::ForkRequest::default()
    };
    let path = format!("/{}/fork", plain(&args.source)?);
    made(&client.json(client.request(Method::POST, &path).json(&request)).await?, output)
}

/// A sandbox that sleeps is woken first: the protocol makes snapshots of runs.
pub(super) async fn snapshot(
    client: &Client,
    name: &str,
    expires_in: Option<&str>,
    live: bool,
    output: &Output,
) -> anyhow::Result<()> {
    let request = wire::SnapshotRequest { expiration: expires_in.map(expiration).transpose()?, live };
    let request = &request;
    let reply = awake(client, name, |run| async move {
        let path = format!("/sessions/{run}/snapshot");
        client.json::<wire::MadeSnapshotReply>(client.request(Method::POST, &path).json(request)).await
    })
    .await?;
    output.data(&serde_json::to_value(&reply)?, &reply.snapshot.id);
    Ok(())
}

pub(super) async fn roll_back(
    client: &Client,
    name: &str,
    snapshot: Option<String>,
    output: &Output,
) -> anyhow::Result<()> {
    let words = format!("{name} starts from {}", snapshot.as_deref().unwrap_or("its image"));
    let change =
        wire::UpdateRequest { current_snapshot_id: Some(snapshot), ..wire::UpdateRequest::default() };
    let request = client.request(Method::PATCH, &format!("/{}", plain(name)?));
    let reply: wire::ChangeReply = client.json(request.json(&change)).await?;
    output.data(&serde_json::to_value(&reply)?, &words);
    Ok(())
}
