//! From domain types to the wire.

use dormouse_provider::{Command, Resumed, Run, Sandbox, Snapshot};
use dormouse_types::Timestamp;
use dormouse_wire as wire;

/// Every host is its own only region.
const REGION: &str = "iad1";

fn policy() -> wire::NetworkPolicy {
    wire::NetworkPolicy { mode: "allow-all".to_owned() }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn sandbox(sandbox: Sandbox) -> wire::Sandbox {
    wire::Sandbox {
        name: sandbox.name.to_string(),
        persistent: sandbox.persistent,
        created_at: sandbox.created_at.as_millis(),
        updated_at: sandbox.updated_at.as_millis(),
        current_session_id: sandbox.current_run.to_string(),
        status: sandbox.status.as_str().to_owned(),
        vcpus: sandbox.resources.vcpus,
        memory: sandbox.resources.memory_mib,
        image: sandbox.image,
        timeout: millis(sandbox.timeout),
        network_policy: policy(),
        current_snapshot_id: sandbox.current_snapshot.map(|id| id.to_string()),
        expires_at: sandbox.expires_at.map(Timestamp::as_millis),
        cwd: sandbox.cwd,
        tags: sandbox.tags,
    }
}

pub(crate) fn session(run: Run) -> wire::Session {
    wire::Session {
        id: run.id.to_string(),
        memory: run.resources.memory_mib,
        vcpus: run.resources.vcpus,
        region: REGION.to_owned(),
        timeout: millis(run.timeout),
        status: run.status.as_str().to_owned(),
        requested_at: run.requested_at.as_millis(),
        created_at: run.requested_at.as_millis(),
        updated_at: run.updated_at.as_millis(),
        cwd: run.cwd,
        started_at: run.started_at.map(Timestamp::as_millis),
        requested_stop_at: run.stop_requested_at.map(Timestamp::as_millis),
        stopped_at: run.stopped_at.map(Timestamp::as_millis),
        source_snapshot_id: run.source_snapshot.map(|id| id.to_string()),
        network_policy: policy(),
        source_sandbox_name: run.sandbox.to_string(),
    }
}

pub(crate) fn snapshot(snapshot: Snapshot) -> wire::Snapshot {
    wire::Snapshot {
        id: snapshot.id.to_string(),
        source_session_id: snapshot.source_run.to_string(),
        region: REGION.to_owned(),
        status: "created".to_owned(),
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at.as_millis(),
        updated_at: snapshot.created_at.as_millis(),
        creation_method: snapshot.kind.as_str().to_owned(),
        parent_id: snapshot.parent.map(|id| id.to_string()),
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
        exit_code: command.exit_code,
        started_at: command.started_at.as_millis(),
        duration_ms: command.duration.map(millis),
    }
}

pub(crate) fn found(found: Resumed) -> wire::SandboxReply {
    wire::SandboxReply {
        sandbox: sandbox(found.sandbox),
        session: session(found.run),
        routes: Vec::new(),
        resumed: found.resumed,
    }
}
