//! Domain types of the port.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_types::{CommandId, RunId, SandboxName, SnapshotId, Timestamp};

/// Owner and project of a sandbox, as one opaque word. The provider keeps
/// namespaces apart and knows nothing else about them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace(pub String);

/// A sandbox in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SandboxKey {
    /// Whose it is.
    pub namespace: Namespace,
    /// Its name there.
    pub name: SandboxName,
}

/// A run, as a caller of `namespace` names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunRef {
    /// Whose it must be.
    pub namespace: Namespace,
    /// Which run.
    pub id: RunId,
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// CPUs' worth of time.
    pub vcpus: u32,
    /// Memory in MiB, page cache and tmpfs included.
    pub memory_mib: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Disk in MiB on top of the base image; `None`: not limited.
    pub disk_mib: Option<u64>,
}

/// What may leave a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicy {
    /// Everything public.
    #[default]
    AllowAll,
}

/// A sandbox to make.
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// Where and under which name.
    pub key: SandboxKey,
    /// Keep its files when it stops.
    pub persistent: bool,
    /// Base image by name; `None`: the default.
    pub image: Option<String>,
    /// Limits; `None`: the host's default.
    pub resources: Option<Resources>,
    /// Hard lifetime of each run; `None`: the host's default.
    pub timeout: Option<Duration>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Forget the sandbox when its run ends.
    pub ephemeral: bool,
}

/// State of one run.
///
/// ```text
/// pending ─► running ─► stopping ─► snapshotting ─► stopped
///    │          │                                     ▲
///    └► failed  └───── died, host restarted ──────────┴► aborted (nothing kept)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Being made.
    Pending,
    /// Takes commands.
    Running,
    /// Processes are being ended.
    Stopping,
    /// Its files are being kept.
    Snapshotting,
    /// Ended.
    Stopped,
    /// Never came up.
    Failed,
    /// Ended without keeping its files.
    Aborted,
}

impl RunStatus {
    /// Word of the wire and of the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Snapshotting => "snapshotting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }

    /// The status that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [
            Self::Pending,
            Self::Running,
            Self::Stopping,
            Self::Snapshotting,
            Self::Stopped,
            Self::Failed,
            Self::Aborted,
        ]
        .into_iter()
        .find(|status| status.as_str() == word)
    }

    /// The run has ended for good.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Aborted)
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked.
    Requested,
    /// Nobody used it for its idle timeout.
    Idle,
    /// Its hard lifetime passed.
    Lifetime,
    /// Its processes ended by themselves or were killed.
    Died,
    /// The host was restarted.
    HostRestart,
    /// The sandbox was deleted.
    Deleted,
    /// It never came up.
    StartFailed,
}

impl StopReason {
    /// Word in the database and the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Died => "died",
            Self::HostRestart => "host_restart",
            Self::Deleted => "deleted",
            Self::StartFailed => "start_failed",
        }
    }
}

/// A sandbox as it stands.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its name.
    pub name: SandboxName,
    /// Keeps its files when it stops.
    pub persistent: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Newest run.
    pub current_run: RunId,
    /// Status of that run.
    pub status: RunStatus,
    /// Limits.
    pub resources: Resources,
    /// Base image.
    pub image: String,
    /// Hard lifetime of a run.
    pub timeout: Duration,
    /// Policy in force.
    pub network: NetworkPolicy,
    /// What the next run starts from.
    pub current_snapshot: Option<SnapshotId>,
    /// Default working directory.
    pub cwd: String,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// End of the current run, while it lives.
    pub expires_at: Option<Timestamp>,
}

/// One boot of a sandbox.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Whose run it is.
    pub sandbox: SandboxName,
    /// Its state.
    pub status: RunStatus,
    /// Limits.
    pub resources: Resources,
    /// Hard lifetime, extensions included.
    pub timeout: Duration,
    /// Default working directory.
    pub cwd: String,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// When it took its first command.
    pub started_at: Option<Timestamp>,
    /// When its end was asked for.
    pub stop_requested_at: Option<Timestamp>,
    /// When it had ended.
    pub stopped_at: Option<Timestamp>,
    /// When the row last changed.
    pub updated_at: Timestamp,
    /// What it started from.
    pub source_snapshot: Option<SnapshotId>,
    /// Why it ended.
    pub stop_reason: Option<String>,
    /// Policy in force.
    pub network: NetworkPolicy,
}

impl Run {
    /// When the hard lifetime ends.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.started_at.unwrap_or(self.requested_at).plus(self.timeout)
    }
}

/// A sandbox with its newest run.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its newest run.
    pub run: Run,
    /// This call started that run.
    pub resumed: bool,
}

/// Who made a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Somebody asked.
    Manual,
    /// The stop of a persistent sandbox.
    Automatic,
}

impl SnapshotKind {
    /// Word of the wire and of the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Automatic => "automatic",
        }
    }
}

/// An immutable root file system.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The run that it was made of.
    pub source_run: RunId,
    /// Who made it.
    pub kind: SnapshotKind,
    /// Bytes on top of the base image, as far as they were counted.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it was made on top of.
    pub parent: Option<SnapshotId>,
}

/// What a stop left.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// The run.
    pub run: Run,
    /// The sandbox, unless it is gone.
    pub sandbox: Option<Sandbox>,
    /// The snapshot that this stop made.
    pub snapshot: Option<Snapshot>,
}

/// Where a command's standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinSource {
    /// Nothing.
    Empty,
    /// [`crate::SandboxProvider::stdin`].
    Stream,
}

/// A command to start.
#[derive(Debug, Clone)]
pub struct CommandSpec {
    /// Executable and arguments; not a shell line.
    pub argv: Vec<String>,
    /// Working directory; `None`: the sandbox's default.
    pub cwd: Option<String>,
    /// Environment on top of the sandbox's.
    pub env: BTreeMap<String, String>,
    /// Run as root.
    pub sudo: bool,
    /// Kill the command after this long.
    pub timeout: Option<Duration>,
    /// Standard input.
    pub stdin: StdinSource,
}

impl CommandSpec {
    /// `argv` in the default directory with no input and no limit.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            cwd: None,
            env: BTreeMap::new(),
            sudo: false,
            timeout: None,
            stdin: StdinSource::Empty,
        }
    }
}

/// A command as it stands.
#[derive(Debug, Clone)]
pub struct Command {
    /// Its id.
    pub id: CommandId,
    /// Executable and arguments, where the provider still knows them.
    pub argv: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// The run that it runs in.
    pub run: RunId,
    /// When it started.
    pub started_at: Timestamp,
    /// 128+n for signal n; `None` while it runs.
    pub exit_code: Option<i32>,
    /// How long it ran.
    pub duration: Option<Duration>,
    /// It was killed because its time limit passed.
    pub timed_out: bool,
    /// Some output was lost.
    pub output_truncated: bool,
}

/// What a followed command tells.
#[derive(Debug, Clone)]
pub enum LogEvent {
    /// It runs.
    Started(Command),
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// It ended; nothing comes after.
    Exited(Command),
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// At most this many.
    pub limit: u32,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 20, cursor: None }
    }
}
