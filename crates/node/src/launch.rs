//! Making one run: its disk, its limits, its network, its processes; and
//! taking all of that away again. This is the one place for both.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_agent_protocol::{BootFile, Placing, Reply, Request};
use dormouse_control::SandboxConfig;
use dormouse_egress::{Occupant, Ruleset};
use dormouse_provider::{NetworkPolicy, ProviderError};
use dormouse_store::{RunProcess, RunRow};
use dormouse_types::{RunId, SandboxId, hex};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::agent::{Agent, PATIENCE};
use crate::cgroup::CgroupVersion;
use crate::host::Host;
use crate::network::PreparedNet;
use crate::seen::seen_limits;
use crate::trust;

/// How long a launcher may take.
const LAUNCH_PATIENCE: Duration = Duration::from_secs(20);

/// Why a run did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{operation} for run {run}")]
    Io {
        operation: &'static str,
        run: RunId,
        #[source]
        source: io::Error,
    },
    #[error("launch run {run}: {message}")]
    Launcher { run: RunId, message: String },
    #[error("boot run {run}")]
    Agent {
        run: RunId,
        #[source]
        source: crate::agent::AgentError,
    },
    #[error("all network slots are in use")]
    NoSlot,
    /// There is no room for the little that a start writes.
    #[error("launch run {run}: {message}")]
    NoRoom { run: RunId, message: String },
    /// A drive cannot be where it is to be.
    #[error("launch run {run}: {message}")]
    Place { run: RunId, message: String },
}

impl From<LaunchError> for ProviderError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::NoSlot => Self::Capacity(error.to_string()),
            LaunchError::Place { message, .. } => Self::Invalid(format!("mounts: {message}")),
            LaunchError::NoRoom { .. } => Self::Capacity("the disk of this server is full".to_owned()),
            other => Self::internal("start a run", other),
        }
    }
}

/// A drive in a run.
#[derive(Debug, Clone)]
pub(crate) struct MountedDrive {
    /// Directory of its files.
    pub(crate) files: PathBuf,
    /// Where it is inside.
    pub(crate) place: String,
    /// The run may write to it.
    pub(crate) writable: bool,
}

/// What a run stands on, made before.
#[derive(Debug, Clone)]
pub(crate) struct Footing {
    /// Its drives.
    pub(crate) drives: Vec<MountedDrive>,
    /// Root of the mounted image.
    pub(crate) image: PathBuf,
    /// How often these files were booted, this time included.
    pub(crate) boots: i64,
}

/// A run that came up.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) process: RunProcess,
    /// The working directory, which is not the one that was asked for where
    /// that cannot be.
    pub(crate) workdir: String,
    /// What did not go as it should.
    pub(crate) warnings: Vec<String>,
}

/// Makes the run. On failure everything that was made for it is gone again.
pub(crate) async fn launch(
    host: &Host,
    run: &RunRow,
    config: &SandboxConfig,
    footing: &Footing,
) -> Result<Launched, LaunchError> {
    let Some(net) = host.network.take().await else {
        return Err(LaunchError::NoSlot);
    };
    let slot = net.slot;
    let made = make(host, run, config, footing, net).await;
    if made.is_err() {
        remove(host, &run.id, Some(slot)).await;
    }
    made
}

/// Bytes of a sandbox's memory that its `/dev/shm` may take: not all,
/// so that who fills it is told and not killed. What is in it counts as memory of
/// the sandbox.
fn shm_bytes(memory: u64) -> u64 {
    memory / 16 * 9
}

/// Bytes of a sandbox's memory that its System V segments may take; messages may take
/// a fourth as much. With what lies in `/dev/shm` and `/run`, and the kernel's own
/// records of files there, which no process has to hold either, an eighth is left:
/// enough for the agent, and for a command that clears up.
fn segment_bytes(memory: u64) -> u64 {
    memory / 8
}

/// Bytes of a sandbox's memory that its `/run` may take.
fn run_bytes(memory: u64) -> u64 {
    memory / 16
}

async fn make(
    host: &Host,
    run: &RunRow,
    config: &SandboxConfig,
    footing: &Footing,
    net: PreparedNet,
) -> Result<Launched, LaunchError> {
    let failed = |operation: &'static str| {
        let run = run.id.clone();
        move |source: io::Error| LaunchError::Io { operation, run, source }
    };
    // Before the first instruction.
    put_policy(host, net.slot, run, &config.network);
    host.cgroups.create(&run.id, &run.resources).map_err(failed("create cgroups"))?;
    let socket_dir = host.socket_dir(run.id.as_str());
    std::fs::create_dir(&socket_dir).map_err(failed("create socket directory"))?;

    let seen =
        seen_limits(host.config.instance, &run.resources).map_err(failed("write what shows limits"))?;
    let (memory, kernel) = (run.resources.memory_mib << 20, &host.config.kernel);
    let mut command = Command::new(&host.binaries.launcher);
    let path = |key: &str, path: PathBuf| format!("{key}={}", path.display());
    command
        .arg(path("agent", host.binaries.agent.clone()))
        .arg(path("seccomp", host.binaries.seccomp.clone()))
        .arg(path("socket-dir", socket_dir.clone()))
        .arg(path("lower", footing.image.clone()))
        .arg(path("volume", host.storage.volume_path(&run.volume_id)))
        .arg(path("output", host.storage.output()))
        .arg(path("memory-events", host.cgroups.memory_events(run.id.as_str())))
        .arg(format!("boots={}", footing.boots))
        .arg(format!("shm-bytes={}", shm_bytes(memory)))
        .arg(format!("run-bytes={}", run_bytes(memory)))
        .arg(format!("shared-bytes={}", segment_bytes(memory)))
        .arg(path("meminfo", seen.meminfo))
        .arg(format!("boot-id={}", boot_id(&run.id)))
        .arg(format!("pending-signals={}", kernel.pending_signals))
        .arg(format!("queue-bytes={}", kernel.queue_bytes))
        .arg(format!("terminals={}", kernel.terminals))
        .arg(format!("uid-base={}", host.numbering.uid_base(net.slot)))
        .arg(format!("hostname={HOSTNAME}"))
        .arg(format!(
            "netns=/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&net.netns)
        ));
    let cgroup = match host.cgroups.version() {
        CgroupVersion::V1 => "cgroup",
        CgroupVersion::V2 => "cgroup2",
    };
    if let Some(cpuinfo) = seen.cpuinfo {
        command.arg(path("cpuinfo", cpuinfo));
    }
    if let Some(lxcfs) = &host.config.lxcfs {
        command.arg(path("lxcfs", lxcfs.clone()));
    }
    for drive in &footing.drives {
        command
            .arg(path("drive", drive.files.clone()))
            .arg(format!("drive-place={}", drive.place))
            .arg(format!("drive-writable={}", u8::from(drive.writable)));
    }
    for group in host.cgroups.paths(run.id.as_str()).iter().chain(host.cgroups.shared()) {
        command.arg(path(cgroup, group.clone()));
    }
    // Dropped on a time-out, the launcher is killed, and its child with it.
    command.env_clear().stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LAUNCH_PATIENCE, command.output())
        .await
        .map_err(|_| failed("wait for the launcher")(io::ErrorKind::TimedOut.into()))?
        .map_err(failed("run the launcher"))?;
    let line = String::from_utf8_lossy(&output.stdout);
    let Report { pid, start_time, micros } = parse_report(line.trim()).map_err(|failure| {
        let run = run.id.clone();
        match failure {
            Failure::Place(message) => LaunchError::Place { run, message: message.to_owned() },
            Failure::NoRoom(message) => LaunchError::NoRoom { run, message: message.to_owned() },
            Failure::Other(message) => LaunchError::Launcher { run, message: message.to_owned() },
        }
    })?;
    tracing::debug!(run = %run.id, pid, launcher_us = micros, "launched");

    let boot = Request::Boot {
        files: boot_files(host, net.slot, &run.sandbox_id, config),
        workdir: run.cwd.clone(),
        user: config.user.clone(),
    };
    let agent_failed = |source| LaunchError::Agent { run: run.id.clone(), source };
    let (warnings, workdir) =
        match Agent::in_dir(&socket_dir).control(boot, PATIENCE).await.map_err(agent_failed)? {
            Reply::Ready { warnings, workdir } => (warnings, workdir),
            other => {
                return Err(LaunchError::Launcher {
                    run: run.id.clone(),
                    message: format!("agent answered {other:?}"),
                });
            }
        };
    let process = RunProcess { pid, start_time, boot_id: host.boot_id.clone(), slot: net.slot };
    Ok(Launched { process, workdir, warnings })
}

/// Puts a policy in force for a run in `slot`.
pub(crate) fn put_policy(host: &Host, slot: u32, run: &RunRow, policy: &NetworkPolicy) {
    let rules = Ruleset::new(policy).unwrap_or_else(|error| {
        // It was checked when it was asked for (`dormouse_control`): a record that
        // somebody changed by hand lets nothing out.
        tracing::error!(run = %run.id, error, "compile the network policy; nothing is allowed");
        Ruleset::nothing()
    });
    put_rules(host, slot, run, rules);
}

/// [`put_policy`] with one that is compiled.
pub(crate) fn put_rules(host: &Host, slot: u32, run: &RunRow, rules: Ruleset) {
    let (sandbox, account) = (run.sandbox_id.as_str(), run.namespace.owner.as_str());
    let occupant = Occupant {
        sandbox,
        account,
        project: &run.namespace.project,
        sent: u64::try_from(run.sent_bytes).unwrap_or(0),
        received: u64::try_from(run.received_bytes).unwrap_or(0),
    };
    host.sandboxes.put(host.numbering.address(slot), occupant, rules);
}

/// Host name of every sandbox. It must not tell the run.
const HOSTNAME: &str = "sandbox";

/// What stands in `/etc/machine-id` of a sandbox: its own, forks included
/// (`machine-id(5)`).
fn machine_id(sandbox: &SandboxId) -> String {
    let digest = Sha256::digest(format!("machine-id {sandbox}"));
    hex(&digest[..16])
}

/// What a run takes for the id of its boot (`proc_sys_kernel(5)`, `random/boot_id`):
/// a random UUID, as it were.
fn boot_id(run: &RunId) -> uuid::Uuid {
    let digest = Sha256::digest(format!("boot-id {run}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn boot_files(host: &Host, slot: u32, sandbox: &SandboxId, config: &SandboxConfig) -> Vec<BootFile> {
    let file = |path: &str, placing, content: String| BootFile { path: path.to_owned(), content, placing };
    let mut files = vec![
        // Whatever server is named here, our resolver answers.
        file(
            "/etc/resolv.conf",
            Placing::Block,
            format!("nameserver {}\noptions ndots:1\n", host.numbering.listener()),
        ),
        file("/etc/hostname", Placing::Absent, format!("{HOSTNAME}\n")),
        file(
            "/etc/hosts",
            Placing::Block,
            format!("127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n::1 localhost\n"),
        ),
        file("/etc/machine-id", Placing::Whole, format!("{}\n", machine_id(sandbox))),
    ];
    if let Some(path) = config.env.get("PATH").or_else(|| config.image_env.get("PATH")) {
        // A login shell begins with the system's own search path. This one comes after that.
        let quoted = path.replace('\'', r"'\''");
        files.push(file("/etc/profile.d/dormouse.sh", Placing::Whole, format!("export PATH='{quoted}'\n")));
    }
    if let Some(certificate) = host.sandboxes.certificate(host.numbering.address(slot)) {
        files.extend(trust::files(&certificate));
    }
    if !host.git_config.is_empty() {
        files.push(file("/etc/gitconfig", Placing::Block, host.git_config.clone()));
    }
    files
}

/// What a launcher says of the run that it made.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    pid: i32,
    start_time: u64,
    /// From its own start to the exec of the agent.
    micros: u64,
}

/// What a launcher says when it made none.
#[derive(Debug, PartialEq, Eq)]
enum Failure<'a> {
    /// The overlay came up without writes.
    NoRoom(&'a str),
    /// A drive cannot be where it is to be.
    Place(&'a str),
    Other(&'a str),
}

fn parse_report(line: &str) -> Result<Report, Failure<'_>> {
    fn number<T: std::str::FromStr>(word: Option<&str>) -> Option<T> {
        word?.parse().ok()
    }
    let mut words = line.split(' ');
    match (words.next(), number(words.next()), number(words.next()), number(words.next())) {
        (Some("ok"), Some(pid), Some(start_time), Some(micros)) => Ok(Report { pid, start_time, micros }),
        _ => Err(match line.split_once(' ') {
            Some(("place", message)) => Failure::Place(message),
            Some(("no-room", message)) => Failure::NoRoom(message),
            Some(("error", message)) => Failure::Other(message),
            _ => Failure::Other("the launcher died"),
        }),
    }
}

/// Removes everything of a run but its files: processes, limits, socket,
/// slot. Harmless where there is nothing.
pub(crate) async fn remove(host: &Host, run: &RunId, slot: Option<u32>) {
    remove_named(host, run.as_str()).await;
    if let Some(slot) = slot {
        host.sandboxes.remove(host.numbering.address(slot));
        host.network.release(slot);
    }
}

/// [`remove`] for what start-up found and the database does not know.
pub(crate) async fn remove_named(host: &Host, run: &str) {
    let (cgroups, name) = (host.cgroups.clone(), run.to_owned());
    let removed = tokio::task::spawn_blocking(move || cgroups.remove(&name)).await;
    match removed {
        Ok(Err(error)) => tracing::warn!(run, %error, "remove cgroups"),
        Err(error) => tracing::warn!(run, %error, "remove cgroups"),
        Ok(Ok(())) => {}
    }
    let (storage, name) = (host.storage.clone(), run.to_owned());
    let dropped = tokio::task::spawn_blocking(move || storage.drop_views(&name)).await;
    if let Err(error) = dropped.map_err(io::Error::other).and_then(|dropped| dropped) {
        // The next start finds them.
        tracing::warn!(run, %error, "drop what the run saw of drives");
    }
    match std::fs::remove_dir_all(host.socket_dir(run)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(run, %error, "remove socket directory");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Report, machine_id, parse_report};
    use dormouse_types::SandboxId;

    #[test]
    fn machines_are_told_apart() {
        let (one, other) = (SandboxId::generate(), SandboxId::generate());
        assert_ne!(machine_id(&one), machine_id(&other));
        assert_eq!(machine_id(&one), machine_id(&one));
        assert_eq!(machine_id(&one).len(), 32);
    }

    #[test]
    fn reads_the_launchers_report() {
        let report = Report { pid: 12, start_time: 345, micros: 1700 };
        assert_eq!(parse_report("ok 12 345 1700"), Ok(report));
        assert_eq!(parse_report("error open agent: no"), Err(Failure::Other("open agent: no")));
        assert_eq!(parse_report("no-room at all"), Err(Failure::NoRoom("at all")));
        assert_eq!(parse_report("place /a: no"), Err(Failure::Place("/a: no")));
        assert_eq!(parse_report(""), Err(Failure::Other("the launcher died")));
    }
}
