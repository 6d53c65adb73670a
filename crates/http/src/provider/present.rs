//! From domain types to the wire.

use std::collections::BTreeMap;

use dormouse_provider::{
    Action, Command, CustomPolicy, Drive, Expiration, KeepLast, Mount, NetworkPolicy, NetworkUse, Retention,
    Route, Run, RunStatus, Sandbox, SandboxView, Snapshot, SnapshotNode,
};
use dormouse_types::Timestamp;
use dormouse_wire as wire;

use crate::PortsConfig;

/// Every server is its own only region.
pub(crate) const REGION: &str = "iad1";

/// Stands for the terminals of a session: clients only ask whether it is there,
/// and leave a route to it out of lists. Nobody publishes a port of that number.
const INTERACTIVE_PORT: u16 = 22;

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a run did on the network.
pub(crate) fn network_use(found: NetworkUse) -> wire::NetworkUse {
    let NetworkUse { sent, received, allowed, denied, recent } = found;
    let recent = recent
        .into_iter()
        .map(|line| wire::NetworkAccess {
            at: line.at.0,
            way: line.way,
            host: line.host,
            address: line.address,
            method: line.method,
            status: line.status,
            denied: line.denied,
            sent: line.sent,
            received: line.received,
        })
        .collect();
    wire::NetworkUse { sent, received, allowed, denied, recent }
}

/// A policy as it is enforced, without the values of headers.
pub(crate) fn policy(policy: NetworkPolicy) -> wire::NetworkPolicy {
    let mode = |mode: &str| wire::NetworkPolicy { mode: mode.to_owned(), ..wire::NetworkPolicy::default() };
    let custom = match policy {
        NetworkPolicy::AllowAll => return mode("allow-all"),
        NetworkPolicy::DenyAll => return mode("deny-all"),
        NetworkPolicy::Custom(custom) => custom,
    };
    let CustomPolicy { domains, allowed_networks, denied_networks } = custom;
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let (mut injection, mut forward) = (Vec::new(), Vec::new());
    for domain in &domains {
        for rule in &domain.rules {
            let matches = rule.matches.as_ref().and_then(|m| serde_json::to_value(m).ok());
            match &rule.action {
                Action::SetHeaders(headers) => injection.push(wire::InjectionRule {
                    domain: domain.domain.clone(),
                    headers: None,
                    header_names: Some(headers.keys().cloned().collect()),
                    matches,
                }),
                Action::Swap(swap) => injection.push(wire::InjectionRule {
                    domain: domain.domain.clone(),
                    headers: None,
                    header_names: Some(vec![swap.header.clone()]),
                    matches,
                }),
                Action::Forward(url) => forward.push(wire::ForwardRule {
                    domain: domain.domain.clone(),
                    forward_url: url.clone(),
                    matches,
                }),
                // The protocol has no words for it in a reply.
                Action::Respond(_) => {}
            }
        }
    }
    wire::NetworkPolicy {
        allowed_domains: some(domains.into_iter().map(|domain| domain.domain).collect()),
        allowed_cidrs: some(allowed_networks.iter().map(ToString::to_string).collect()),
        denied_cidrs: some(denied_networks.iter().map(ToString::to_string).collect()),
        injection_rules: (!injection.is_empty()).then_some(injection),
        forward_rules: (!forward.is_empty()).then_some(forward),
        ..mode("custom")
    }
}

fn expiration(expiration: Expiration) -> u64 {
    match expiration {
        Expiration::Never => 0,
        Expiration::After(ms) => ms,
    }
}

pub(crate) fn mounts(mounts: BTreeMap<String, Mount>) -> wire::Mounts {
    let mount = |(path, Mount { drive, mode }): (String, Mount)| {
        (path, wire::Mount { drive, mode: Some(mode.as_str().to_owned()) })
    };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn drive(drive: Drive) -> wire::DriveReply {
    wire::DriveReply { drive: listed_drive(drive) }
}

pub(crate) fn listed_drive(drive: Drive) -> wire::Drive {
    let (run, sandbox) = drive.attached.unzip();
    wire::Drive {
        id: drive.id.to_string(),
        name: drive.name,
        project_id: drive.project,
        region: REGION.to_owned(),
        max_size_bytes: drive.max_size,
        current_session_id: run.map(|run| run.to_string()),
        current_sandbox_name: sandbox.map(|sandbox| sandbox.to_string()),
        created_at: drive.created_at.as_millis(),
        updated_at: drive.updated_at.as_millis(),
    }
}

pub(crate) fn sandbox(sandbox: Sandbox) -> wire::Sandbox {
    let keep = match sandbox.retention {
        Retention::KeepLast(KeepLast { count, expiration: of_kept, delete_evicted }) => {
            Some(wire::KeepLastSnapshots {
                count,
                expiration: of_kept.map(expiration),
                delete_evicted: Some(delete_evicted),
            })
        }
        Retention::Current | Retention::Expiry => None,
    };
    wire::Sandbox {
        name: sandbox.name.to_string(),
        persistent: sandbox.persistent,
        created_at: sandbox.created_at.as_millis(),
        updated_at: sandbox.updated_at.as_millis(),
        current_session_id: sandbox.current_run.to_string(),
        status: sandbox.status.as_str().to_owned(),
        status_updated_at: Some(sandbox.status_updated_at.as_millis()),
        region: Some(REGION.to_owned()),
        vcpus: Some(sandbox.resources.vcpus),
        memory: Some(sandbox.resources.memory_mib),
        image: Some(sandbox.image),
        runtime: sandbox.runtime,
        timeout: Some(millis(sandbox.timeout)),
        network_policy: Some(policy(sandbox.network)),
        current_snapshot_id: sandbox.current_snapshot.map(|id| id.to_string()),
        expires_at: sandbox.expires_at.map(Timestamp::as_millis),
        cwd: Some(sandbox.cwd),
        mounts: mounts(sandbox.mounts),
        tags: sandbox.tags,
        snapshot_expiration: sandbox.snapshot_expiration.map(expiration),
        keep_last_snapshots: keep,
        disk: sandbox.disk.map(|disk| wire::Disk {
            used_bytes: disk.used_bytes,
            limit_bytes: disk.limit_bytes,
            snapshots: disk.snapshots,
        }),
    }
}

pub(crate) fn session(run: Run) -> wire::Session {
    let aborted = run.status == RunStatus::Aborted;
    let lived = run.started_at.zip(run.stopped_at).map(|(start, end)| millis(end.since(start)));
    wire::Session {
        id: run.id.to_string(),
        memory: run.resources.memory_mib,
        vcpus: run.resources.vcpus,
        region: REGION.to_owned(),
        runtime: run.runtime,
        network_transfer: run
            .transfer
            .map(|bytes| wire::NetworkTransfer { ingress: bytes.received, egress: bytes.sent }),
        timeout: millis(run.timeout),
        status: run.status.as_str().to_owned(),
        requested_at: run.requested_at.as_millis(),
        created_at: run.requested_at.as_millis(),
        updated_at: run.updated_at.as_millis(),
        cwd: run.cwd,
        started_at: run.started_at.map(Timestamp::as_millis),
        requested_stop_at: run.stop_requested_at.map(Timestamp::as_millis),
        stopped_at: run.stopped_at.filter(|_| !aborted).map(Timestamp::as_millis),
        aborted_at: run.stopped_at.filter(|_| aborted).map(Timestamp::as_millis),
        duration: lived,
        source_snapshot_id: run.source_snapshot.map(|id| id.to_string()),
        interactive_port: None,
        network_policy: Some(policy(run.network)),
        source_sandbox_name: Some(run.sandbox.to_string()),
        stop_reason: run.stop_reason,
        stdin: true,
        live: true,
        warnings: run.warnings,
    }
}

pub(crate) fn snapshot(snapshot: Snapshot) -> wire::Snapshot {
    wire::Snapshot {
        id: snapshot.id.to_string(),
        source_session_id: snapshot.source_run.to_string(),
        region: REGION.to_owned(),
        status: snapshot.status.as_str().to_owned(),
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at.as_millis(),
        updated_at: snapshot.updated_at.as_millis(),
        expires_at: snapshot.expires_at.map(Timestamp::as_millis),
        last_used_at: snapshot.last_used_at.map(Timestamp::as_millis),
        creation_method: Some(snapshot.kind.as_str().to_owned()),
        parent_id: snapshot.parent.map(|id| id.to_string()),
    }
}

pub(crate) fn node(node: SnapshotNode) -> wire::SnapshotNode {
    wire::SnapshotNode {
        snapshot: snapshot(node.snapshot),
        siblings: node.siblings.into_iter().map(snapshot).collect(),
        count: node.sibling_count.to_string(),
    }
}

pub(crate) fn command(command: Command) -> wire::Command {
    let mut argv = command.argv.into_iter();
    wire::Command {
        id: command.id.to_string(),
        name: argv.next().unwrap_or_default(),
        args: argv.collect(),
        cwd: command.cwd,
        session_id: command.run.to_string(),
        sandbox_id: Some(command.run.to_string()),
        exit_code: command.exit_code,
        started_at: command.started_at.as_millis(),
        duration_ms: command.duration.map(millis),
        timed_out: command.timed_out,
        oom: command.oom,
        output_lost: command.output_lost,
    }
}

pub(crate) fn routes(routes: Vec<Route>, ports: &PortsConfig) -> Vec<wire::Route> {
    routes
        .into_iter()
        .map(|Route { port, subdomain, url }| {
            let url = url.unwrap_or_else(|| ports.url(&subdomain));
            wire::Route { url, subdomain, port }
        })
        .collect()
}

/// A sandbox with its session. `interactive`: the caller asked for terminals.
pub(crate) fn found(found: SandboxView, ports: &PortsConfig, interactive: bool) -> wire::SandboxReply {
    let mut session = session(found.run);
    session.interactive_port = interactive.then_some(INTERACTIVE_PORT);
    wire::SandboxReply {
        sandbox: sandbox(found.sandbox),
        session,
        routes: routes(found.routes, ports),
        resumed: found.resumed,
    }
}
