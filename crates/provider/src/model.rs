//! Domain types of the port.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_types::{
    AccountId, CommandId, GithubRepo, Namespace, Resources, RunId, RunStatus, SandboxName, SnapshotId,
    SnapshotKind, SnapshotStatus, Timestamp,
};

use crate::{Mount, NetworkPolicy};

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

/// For whom a policy has credentials in it that are not the caller's: they are brought up
/// to date, or taken away, for as long as nobody sets another policy. A fork has it from
/// its source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Grant {
    /// Who uses them.
    pub account: AccountId,
    /// What they are for.
    pub repo: GithubRepo,
}

/// Limits that a caller asks for; the rest is the host's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourcesRequest {
    /// CPUs: 1 or an even number.
    pub vcpus: u32,
    /// Memory in MiB; `None`: 2,048 for each CPU.
    pub memory_mib: Option<u64>,
}

/// What the files of a new sandbox are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Environment {
    /// The host's default image.
    #[default]
    Default,
    /// A base image by name.
    Image(String),
    /// The image of a language runtime, such as `node24`.
    Runtime(String),
}

/// What is put into a new sandbox before it is handed over.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// A git repository over https.
    Git(GitSource),
    /// A tar archive (plain, gzip, xz, bzip2, zstd) behind a URL, unpacked in
    /// the working directory.
    Tarball {
        /// `http` or `https`.
        url: String,
    },
    /// All files of a snapshot; the environment is that of the snapshot.
    Snapshot(SnapshotId),
    /// [`Source::Snapshot`] of another namespace. Whether the sandbox's owner may
    /// read it is for the caller to say. The sandbox does not begin as that
    /// snapshot's descendant, and shows nothing of it. It is gone where a new
    /// sandbox would get another image by now, if the provider can tell.
    SnapshotOf(Namespace, SnapshotId),
}

/// A git repository.
#[derive(Clone, PartialEq, Eq)]
pub struct GitSource {
    /// `https://…`.
    pub url: String,
    /// Commits of history; `None`: 1.
    pub depth: Option<u32>,
    /// Branch, tag or commit; `None`: the remote's default branch.
    pub revision: Option<String>,
    /// User and password for the clone alone: they are not kept in the sandbox.
    pub credentials: Option<(String, String)>,
    /// Where it goes.
    pub directory: CloneDirectory,
}

/// A URL without what may be a secret in it: user, password, query, fragment.
#[must_use]
pub fn shown_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Git(git) => write!(f, "Git({})", shown_url(&git.url)),
            Self::Tarball { url } => write!(f, "Tarball({})", shown_url(url)),
            Self::Snapshot(id) => write!(f, "Snapshot({id})"),
            Self::SnapshotOf(namespace, id) => write!(f, "SnapshotOf({namespace}, {id})"),
        }
    }
}

impl std::fmt::Debug for GitSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out.
        write!(f, "GitSource({})", shown_url(&self.url))
    }
}

/// Where a clone goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneDirectory {
    /// Into the working directory itself.
    Workdir,
    /// Into a directory of the repository's name below it.
    Named,
}

/// How long something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expiration {
    /// For ever.
    Never,
    /// For this many milliseconds after its last use.
    After(u64),
}

/// How many snapshots of a sandbox stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeepLast {
    /// 1 to 10.
    pub count: u32,
    /// For those that stay.
    pub expiration: Option<Expiration>,
    /// Delete the others at once, instead of at their expiration.
    pub delete_evicted: bool,
}

/// Which snapshots of a sandbox stay when a new one is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// Automatic ones at most while they are current: a provider that keeps a
    /// stopped sandbox's files otherwise makes none. Manual ones until deleted.
    #[default]
    Current,
    /// All, until they expire.
    Expiry,
    /// The last ones.
    KeepLast(KeepLast),
}

/// A sandbox to make.
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// Where and under which name.
    pub key: SandboxKey,
    /// Keep its files when it stops.
    pub persistent: bool,
    /// Image or runtime.
    pub environment: Environment,
    /// What is put into it.
    pub source: Option<Source>,
    /// Limits; `None`: the host's default.
    pub resources: Option<ResourcesRequest>,
    /// Hard lifetime of each run; `None`: the host's default.
    pub timeout: Option<Duration>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Ports that get a route.
    pub ports: Vec<u16>,
    /// What may leave it.
    pub network: NetworkPolicy,
    /// Whose credentials are in that policy; `None`: the caller's own.
    pub grant: Option<Grant>,
    /// For its snapshots; `None`: the host's default.
    pub snapshot_expiration: Option<Expiration>,
    /// Which snapshots stay.
    pub retention: Retention,
    /// Drives, by the absolute path where each is.
    pub mounts: BTreeMap<String, Mount>,
    /// Forget the sandbox when its run ends.
    pub ephemeral: bool,
    /// Makes the creation safe to repeat: another one with this key and name,
    /// while nobody has taken the answer ([`crate::SandboxProvider::taken`]),
    /// waits for the first and gets the same sandbox.
    pub retry_key: Option<String>,
}

impl CreateSandbox {
    /// A persistent sandbox of the default image with the host's defaults.
    #[must_use]
    pub fn new(key: SandboxKey) -> Self {
        Self {
            key,
            persistent: true,
            environment: Environment::Default,
            source: None,
            resources: None,
            timeout: None,
            env: BTreeMap::new(),
            tags: BTreeMap::new(),
            ports: Vec::new(),
            network: NetworkPolicy::AllowAll,
            grant: None,
            snapshot_expiration: None,
            retention: Retention::Current,
            mounts: BTreeMap::new(),
            ephemeral: false,
            retry_key: None,
        }
    }
}

/// Changes to a sandbox; `None` changes nothing. They apply to its next run,
/// tags, ports and retention at once.
#[derive(Debug, Clone, Default)]
pub struct UpdateSandbox {
    /// Keep its files when it stops.
    pub persistent: Option<bool>,
    /// Limits.
    pub resources: Option<ResourcesRequest>,
    /// Hard lifetime of each run.
    pub timeout: Option<Duration>,
    /// Labels, all of them.
    pub tags: Option<BTreeMap<String, String>>,
    /// Ports, all of them.
    pub ports: Option<Vec<u16>>,
    /// What may leave it.
    pub network: Option<NetworkPolicy>,
    /// Whose credentials are in that policy; `None` beside a policy: the caller's own.
    pub grant: Option<Grant>,
    /// For its snapshots.
    pub snapshot_expiration: Option<Expiration>,
    /// Which snapshots stay.
    pub retention: Option<Retention>,
    /// Drives of its next run, all of them.
    pub mounts: Option<BTreeMap<String, Mount>>,
    /// What the next run starts from.
    pub start_from: Option<StartFrom>,
}

/// What the next run of a sandbox starts from, instead of what it has on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFrom {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// Its image, as when it was made.
    Image,
}

/// A sandbox to make from another: its files as they were last kept, and its
/// configuration, but for what is named here.
#[derive(Debug, Clone)]
pub struct ForkSandbox {
    /// Name of the source, in the same namespace.
    pub source: SandboxName,
    /// The new sandbox.
    pub key: SandboxKey,
    /// Environment of every command.
    pub env: Option<BTreeMap<String, String>>,
    /// Copy the source's files as they are now, not as its last snapshot has
    /// them.
    pub live: bool,
    /// Everything else.
    pub changes: UpdateSandbox,
    /// See [`CreateSandbox::retry_key`].
    pub retry_key: Option<String>,
}

/// A snapshot to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotRequest {
    /// For this snapshot alone.
    pub expiration: Option<Expiration>,
    /// The run goes on; its processes stand still for the moment.
    pub live: bool,
}

/// A snapshot that was made.
#[derive(Debug, Clone)]
pub struct MadeSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The run that it was made of.
    pub run: Run,
    /// How long its processes stood still, if it goes on.
    pub stall: Option<Duration>,
}

/// What a sandbox holds on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes that it wrote and that it, or a snapshot of it, still holds.
    pub used_bytes: u64,
    /// Bytes that it may hold; `None`: not limited.
    pub limit_bytes: Option<u64>,
    /// Snapshots of it that are there, which hold what it deleted since.
    pub snapshots: u64,
}

/// A port of a sandbox, and the name under which it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Port inside.
    pub port: u16,
    /// First label of its host name.
    pub subdomain: String,
    /// Whole URL, where the provider knows it.
    pub url: Option<String>,
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
    /// Runtime that it was asked for by.
    pub runtime: Option<String>,
    /// Hard lifetime of a run.
    pub timeout: Duration,
    /// Policy of its next run.
    pub network: NetworkPolicy,
    /// What the next run starts from.
    pub current_snapshot: Option<SnapshotId>,
    /// Default working directory.
    pub cwd: String,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// End of the current run, while it lives.
    pub expires_at: Option<Timestamp>,
    /// When `status` last changed.
    pub status_updated_at: Timestamp,
    /// For its snapshots, when it was asked for.
    pub snapshot_expiration: Option<Expiration>,
    /// Which snapshots stay.
    pub retention: Retention,
    /// Drives of its next run, by path.
    pub mounts: BTreeMap<String, Mount>,
    /// What it holds on disk, where the provider counts; not in lists.
    pub disk: Option<DiskUse>,
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
    /// Runtime that its sandbox was asked for by, else its image: clients of
    /// the protocol's version 2 want a word.
    pub runtime: Option<String>,
    /// Policy in force.
    pub network: NetworkPolicy,
    /// Bytes that left the sandbox and that came, where the provider tells.
    pub transfer: Option<Transfer>,
    /// What did not go as it should and did not keep it from starting; fit to
    /// show to a caller.
    pub warnings: Vec<String>,
}

/// Bytes on the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfer {
    /// That left the sandbox.
    pub sent: u64,
    /// That came.
    pub received: u64,
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
pub struct SandboxView {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its newest run.
    pub run: Run,
    /// Its ports.
    pub routes: Vec<Route>,
    /// This call started that run.
    pub resumed: bool,
}

/// An immutable root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The run that it was made of.
    pub source_run: RunId,
    /// Who made it.
    pub kind: SnapshotKind,
    /// Whether it is still there.
    pub status: SnapshotStatus,
    /// Bytes of its files, those of its image included.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// When it goes by itself.
    pub expires_at: Option<Timestamp>,
    /// When a run last started from it.
    pub last_used_at: Option<Timestamp>,
    /// What it was made on top of.
    pub parent: Option<SnapshotId>,
}

/// A snapshot among those made on top of the same one.
#[derive(Debug, Clone)]
pub struct SnapshotNode {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Others on top of the same parent, newest first, not all of them.
    pub siblings: Vec<Snapshot>,
    /// How many there are.
    pub sibling_count: u64,
}

/// Part of a line of snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotTree {
    /// Ancestors or descendants, nearest first.
    pub nodes: Vec<SnapshotNode>,
    /// The snapshot that was asked about.
    pub anchor: SnapshotNode,
    /// Where the next part begins.
    pub next: Option<String>,
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
    /// Bytes of output that were lost; 1 where it is not known how many.
    pub output_lost: u64,
    /// It, or a process of it, was killed because the sandbox's memory was used up.
    pub oom: bool,
}

/// Standard input for a command, which does not end with it.
#[derive(Debug, Clone)]
pub struct Input {
    /// The bytes.
    pub data: Bytes,
    /// Where they stand in all that the command was ever sent: what it has taken already is
    /// passed over, so the same may be sent again. `None`: behind what it has taken.
    pub offset: Option<u64>,
    /// Close standard input after them.
    pub close: bool,
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
    /// As many bytes of output were lost here.
    Lost(u64),
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

/// Which way a list runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Oldest, or first by name, first.
    Ascending,
    /// The other way.
    #[default]
    Descending,
}

/// What a list of sandboxes is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxSort {
    /// When it was made.
    #[default]
    CreatedAt,
    /// Its name.
    Name,
    /// When its status last changed.
    StatusUpdatedAt,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct ListSandboxes {
    /// How many, from where.
    pub page: Page,
    /// By what.
    pub sort: SandboxSort,
    /// Which way.
    pub order: Direction,
    /// Only names that begin so.
    pub name_prefix: Option<String>,
    /// Only with all of these labels.
    pub tags: BTreeMap<String, String>,
}

/// Which runs or snapshots to list.
#[derive(Debug, Clone, Default)]
pub struct ListOf {
    /// How many, from where.
    pub page: Page,
    /// Which way, by age.
    pub order: Direction,
    /// Only those of this sandbox.
    pub sandbox: Option<String>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// What the user of a terminal does.
#[derive(Debug, Clone)]
pub enum TerminalInput {
    /// Types.
    Data(Bytes),
    /// Has another window.
    Resize(TerminalSize),
}

/// What a terminal shows.
#[derive(Debug, Clone)]
pub enum TerminalOutput {
    /// Bytes for the screen.
    Data(Bytes),
    /// Its command ended with this code; nothing comes after.
    Exited(i32),
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 20, cursor: None }
    }
}
