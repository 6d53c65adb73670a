//! From the wire to domain types. A reply that cannot be read is the other
//! side's failure, not the caller's.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_provider::{
    Action, Command, CustomPolicy, DiskUse, DomainPolicy, Drive, Expiration, KeepLast, Mount, MountMode,
    NetworkPolicy, ProviderError, Resources, Result, Retention, Route, Rule, Run, RunStatus, Sandbox,
    SandboxView, Snapshot, SnapshotKind, SnapshotNode, SnapshotStatus, SnapshotTree, Transfer,
};
use dormouse_types::Timestamp;
use dormouse_wire as wire;

/// Label of ours that tells whose creation a sandbox is; not shown.
pub(crate) const CREATION_TAG: &str = "dormouse-creation";

/// Field of a reply that does not say what the protocol says it does.
fn wrong(field: &str, value: &str) -> ProviderError {
    ProviderError::internal("read the sandbox provider's answer", format!("{field} is {value:?}"))
}

fn id<T: std::str::FromStr>(field: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| wrong(field, value))
}

fn status(word: &str) -> Result<RunStatus> {
    word.parse().map_err(|_| wrong("status", word))
}

fn expiration(ms: u64) -> Expiration {
    if ms == 0 { Expiration::Never } else { Expiration::After(ms) }
}

/// Drives by path; a mode that is left out is the usual one.
fn mounts(mounts: wire::Mounts) -> Result<BTreeMap<String, Mount>> {
    let mount = |(path, wire::Mount { drive, mode }): (String, wire::Mount)| match MountMode::from_word(
        mode.as_deref(),
    ) {
        Some(mode) => Ok((path, Mount { drive, mode })),
        None => Err(wrong("mounts.mode", &mode.unwrap_or_default())),
    };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn drive(drive: wire::Drive) -> Result<Drive> {
    let attached = match (drive.current_session_id, drive.current_sandbox_name) {
        (Some(run), Some(name)) => {
            let sandbox = name.parse().map_err(|_| wrong("currentSandboxName", &name))?;
            Some((id("currentSessionId", &run)?, sandbox))
        }
        _ => None,
    };
    Ok(Drive {
        id: id("drive.id", &drive.id)?,
        name: drive.name,
        project: drive.project_id,
        max_size: drive.max_size_bytes,
        attached,
        created_at: Timestamp(drive.created_at),
        updated_at: Timestamp(drive.updated_at),
    })
}

fn retention(keep: Option<wire::KeepLastSnapshots>) -> Retention {
    keep.map_or(Retention::Expiry, |keep| {
        Retention::KeepLast(KeepLast {
            count: keep.count,
            expiration: keep.expiration.map(expiration),
            delete_evicted: keep.delete_evicted.unwrap_or(true),
        })
    })
}

pub(crate) fn policy(policy: Option<wire::NetworkPolicy>) -> Result<NetworkPolicy> {
    let Some(policy) = policy else { return Ok(NetworkPolicy::AllowAll) };
    match policy.mode.as_str() {
        "allow-all" => return Ok(NetworkPolicy::AllowAll),
        "deny-all" => return Ok(NetworkPolicy::DenyAll),
        "custom" => {}
        other => return Err(wrong("networkPolicy.mode", other)),
    }
    let mut domains: BTreeMap<String, Vec<Rule>> =
        policy.allowed_domains.unwrap_or_default().into_iter().map(|domain| (domain, Vec::new())).collect();
    let matches = |value: Option<serde_json::Value>| {
        let read = value.map(serde_json::from_value).transpose();
        read.map_err(|error| ProviderError::internal("read a rule of the network policy", error))
    };
    for rule in policy.injection_rules.unwrap_or_default() {
        // The values stay on the other side.
        let headers = rule.header_names.unwrap_or_default().into_iter().map(|name| (name, None)).collect();
        let rule =
            (rule.domain, Rule { matches: matches(rule.matches)?, action: Action::SetHeaders(headers) });
        domains.entry(rule.0).or_default().push(rule.1);
    }
    for rule in policy.forward_rules.unwrap_or_default() {
        let action = Action::Forward(rule.forward_url);
        domains.entry(rule.domain).or_default().push(Rule { matches: matches(rule.matches)?, action });
    }
    let networks = |field: &str, list: Option<Vec<String>>| {
        list.unwrap_or_default().iter().map(|text| id(field, text)).collect::<Result<Vec<_>>>()
    };
    Ok(NetworkPolicy::Custom(CustomPolicy {
        domains: domains.into_iter().map(|(domain, rules)| DomainPolicy { domain, rules }).collect(),
        allowed_networks: networks("networkPolicy.allowedCIDRs", policy.allowed_cidrs)?,
        denied_networks: networks("networkPolicy.deniedCIDRs", policy.denied_cidrs)?,
    }))
}

fn resources(vcpus: u32, memory_mib: u64) -> Resources {
    // The wire has no words for the other two.
    Resources { vcpus, memory_mib, pids: 0, disk_mib: None }
}

pub(crate) fn sandbox(sandbox: wire::Sandbox) -> Result<Sandbox> {
    let mut tags = sandbox.tags;
    tags.remove(CREATION_TAG);
    Ok(Sandbox {
        name: id("sandbox.name", &sandbox.name)?,
        persistent: sandbox.persistent,
        created_at: Timestamp(sandbox.created_at),
        updated_at: Timestamp(sandbox.updated_at),
        current_run: id("sandbox.currentSessionId", &sandbox.current_session_id)?,
        status: status(&sandbox.status)?,
        resources: resources(sandbox.vcpus.unwrap_or(0), sandbox.memory.unwrap_or(0)),
        image: sandbox.image.unwrap_or_default(),
        runtime: sandbox.runtime,
        timeout: Duration::from_millis(sandbox.timeout.unwrap_or(0)),
        network: policy(sandbox.network_policy)?,
        current_snapshot: sandbox
            .current_snapshot_id
            .map(|text| id("sandbox.currentSnapshotId", &text))
            .transpose()?,
        cwd: sandbox.cwd.unwrap_or_default(),
        tags,
        expires_at: sandbox.expires_at.map(Timestamp),
        status_updated_at: Timestamp(sandbox.status_updated_at.unwrap_or(sandbox.updated_at)),
        snapshot_expiration: sandbox.snapshot_expiration.map(expiration),
        retention: retention(sandbox.keep_last_snapshots),
        mounts: mounts(sandbox.mounts)?,
        disk: sandbox.disk.map(|disk| DiskUse {
            used_bytes: disk.used_bytes,
            limit_bytes: disk.limit_bytes,
            snapshots: disk.snapshots,
        }),
    })
}

/// `of`: the sandbox that it belongs to, where the reply leaves that out.
pub(crate) fn run(session: wire::Session, of: Option<&str>) -> Result<Run> {
    let name = session.source_sandbox_name.as_deref().or(of);
    Ok(Run {
        id: id("session.id", &session.id)?,
        // The wire lets a session go without its sandbox's name.
        sandbox: id("session.sourceSandboxName", name.unwrap_or("unknown"))?,
        status: status(&session.status)?,
        resources: resources(session.vcpus, session.memory),
        timeout: Duration::from_millis(session.timeout),
        cwd: session.cwd,
        requested_at: Timestamp(session.requested_at),
        started_at: session.started_at.map(Timestamp),
        stop_requested_at: session.requested_stop_at.map(Timestamp),
        stopped_at: session.stopped_at.or(session.aborted_at).map(Timestamp),
        updated_at: Timestamp(session.updated_at),
        source_snapshot: session
            .source_snapshot_id
            .map(|text| id("session.sourceSnapshotId", &text))
            .transpose()?,
        stop_reason: session.stop_reason,
        runtime: session.runtime,
        network: policy(session.network_policy)?,
        transfer: session
            .network_transfer
            .map(|bytes| Transfer { sent: bytes.egress, received: bytes.ingress }),
        warnings: session.warnings,
    })
}

pub(crate) fn routes(routes: Vec<wire::Route>) -> Vec<Route> {
    routes
        .into_iter()
        .map(|route| Route { port: route.port, subdomain: route.subdomain, url: Some(route.url) })
        .collect()
}

pub(crate) fn found(reply: wire::SandboxReply) -> Result<SandboxView> {
    let name = reply.sandbox.name.clone();
    Ok(SandboxView {
        run: run(reply.session, Some(&name))?,
        sandbox: sandbox(reply.sandbox)?,
        routes: routes(reply.routes),
        resumed: reply.resumed,
    })
}

pub(crate) fn snapshot(snapshot: wire::Snapshot) -> Result<Snapshot> {
    Ok(Snapshot {
        id: id("snapshot.id", &snapshot.id)?,
        source_run: id("snapshot.sourceSessionId", &snapshot.source_session_id)?,
        kind: match snapshot.creation_method.as_deref() {
            Some("automatic") => SnapshotKind::Automatic,
            _ => SnapshotKind::Manual,
        },
        status: match snapshot.status.as_str() {
            "created" => SnapshotStatus::Created,
            // Nothing can start from one that failed, either.
            "deleted" | "failed" => SnapshotStatus::Deleted,
            other => return Err(wrong("snapshot.status", other)),
        },
        size_bytes: snapshot.size_bytes,
        created_at: Timestamp(snapshot.created_at),
        updated_at: Timestamp(snapshot.updated_at),
        expires_at: snapshot.expires_at.map(Timestamp),
        last_used_at: snapshot.last_used_at.map(Timestamp),
        parent: snapshot.parent_id.map(|text| id("snapshot.parentId", &text)).transpose()?,
    })
}

pub(crate) fn snapshots(list: Vec<wire::Snapshot>) -> Result<Vec<Snapshot>> {
    list.into_iter().map(snapshot).collect()
}

fn node(node: wire::SnapshotNode) -> Result<SnapshotNode> {
    Ok(SnapshotNode {
        snapshot: snapshot(node.snapshot)?,
        siblings: snapshots(node.siblings)?,
        sibling_count: node.count.parse().map_err(|_| wrong("count", &node.count))?,
    })
}

pub(crate) fn tree(tree: wire::SnapshotTree) -> Result<SnapshotTree> {
    let anchor = tree.anchor.ok_or_else(|| wrong("anchor", "absent"))?;
    Ok(SnapshotTree {
        nodes: tree.snapshots.into_iter().map(node).collect::<Result<_>>()?,
        anchor: node(anchor)?,
        next: tree.pagination.next,
    })
}

/// `limit`: the time limit that it was started with, if this side knows.
pub(crate) fn command(command: wire::Command, limit: Option<Duration>) -> Result<Command> {
    let duration = command.duration_ms.map(Duration::from_millis);
    let killed = command.exit_code == Some(128 + 9);
    let timed_out =
        command.timed_out || killed && limit.zip(duration).is_some_and(|(limit, duration)| duration >= limit);
    Ok(Command {
        id: id("command.id", &command.id)?,
        argv: std::iter::once(command.name).chain(command.args).collect(),
        cwd: command.cwd,
        run: id("command.sessionId", &command.session_id)?,
        started_at: Timestamp(command.started_at),
        exit_code: command.exit_code,
        duration,
        timed_out,
        output_lost: command.output_lost,
        oom: command.oom,
    })
}
