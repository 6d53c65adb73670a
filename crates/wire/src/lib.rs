//! JSON of the Vercel Sandbox protocol (provider contract), shared by the
//! server and the command line. Absent fields are left out, never `null`,
//! except where the protocol says so; all times are milliseconds.
//!
//! Here a run is called a session, as on the wire, and nowhere else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Name, unique in its project.
    pub name: String,
    /// Keeps its files when it stops.
    pub persistent: bool,
    /// When it was made.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
    /// Newest session.
    pub current_session_id: String,
    /// Status of that session.
    pub status: String,
    /// When that last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_updated_at: Option<i64>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Runtime that it was asked for by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Milliseconds that a session may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Policy of the next session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// What the next session starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_snapshot_id: Option<String>,
    /// End of the current session, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// Default working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Milliseconds that its snapshots stay after their last use; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_expiration: Option<u64>,
    /// How many of them stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last_snapshots: Option<KeepLastSnapshots>,
}

/// How many snapshots of a sandbox stay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeepLastSnapshots {
    /// 1 to 10.
    pub count: u32,
    /// Milliseconds, for those that stay; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<u64>,
    /// Delete the others at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_evicted: Option<bool>,
}

/// One boot of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// `sbx_…`.
    pub id: String,
    /// MiB.
    pub memory: u64,
    /// CPUs.
    pub vcpus: u32,
    /// Where it runs.
    pub region: String,
    /// Runtime that its sandbox was asked for by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Milliseconds that it may live, extensions included.
    pub timeout: u64,
    /// Its state.
    pub status: String,
    /// When it was asked for.
    pub requested_at: i64,
    /// The same.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
    /// Default working directory.
    pub cwd: String,
    /// When it took commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// When its end was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_stop_at: Option<i64>,
    /// When it had ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<i64>,
    /// When it was ended without keeping its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aborted_at: Option<i64>,
    /// Milliseconds that it lived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    /// What it started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_snapshot_id: Option<String>,
    /// Stands for its terminals, when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interactive_port: Option<u16>,
    /// Policy in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Whose session it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_sandbox_name: Option<String>,
    /// Why it ended. Ours.
    #[serde(rename = "__stopReason", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// Ours: commands can be given standard input.
    #[serde(rename = "__stdin", default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
}

/// Network policy as it is reported: without the values of headers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// `allow-all`, `deny-all` or `custom`.
    pub mode: String,
    /// Domains that may be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_domains: Option<Vec<String>>,
    /// Networks that may be reached.
    #[serde(rename = "allowedCIDRs", skip_serializing_if = "Option::is_none")]
    pub allowed_cidrs: Option<Vec<String>>,
    /// Networks that may not.
    #[serde(rename = "deniedCIDRs", skip_serializing_if = "Option::is_none")]
    pub denied_cidrs: Option<Vec<String>>,
    /// Headers that are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injection_rules: Option<Vec<InjectionRule>>,
    /// Requests that go elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_rules: Option<Vec<ForwardRule>>,
}

/// Headers that are set on requests to a domain. In a request with their
/// values, in a reply with their names.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InjectionRule {
    /// Domain.
    pub domain: String,
    /// Names and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    /// Names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_names: Option<Vec<String>>,
    /// Which requests.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<serde_json::Value>,
}

impl std::fmt::Debug for InjectionRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InjectionRule({})", self.domain)
    }
}

/// Requests to a domain that go elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardRule {
    /// Domain.
    pub domain: String,
    /// Where they go.
    #[serde(rename = "forwardURL")]
    pub forward_url: String,
    /// Which requests.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<serde_json::Value>,
}

/// Network policy as it is asked for: by mode, by allowed domains and subnets,
/// or in the older form of [`NetworkPolicy`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyRequest {
    /// `allow-all`, `deny-all`, or `custom` with the older form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Domains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowedDomains>,
    /// Networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnets: Option<Subnets>,
    /// Older form of `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_domains: Option<Vec<String>>,
    /// Older form of `subnets.allow`.
    #[serde(rename = "allowedCIDRs", skip_serializing_if = "Option::is_none")]
    pub allowed_cidrs: Option<Vec<String>>,
    /// Older form of `subnets.deny`.
    #[serde(rename = "deniedCIDRs", skip_serializing_if = "Option::is_none")]
    pub denied_cidrs: Option<Vec<String>>,
    /// Older form of rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injection_rules: Option<Vec<InjectionRule>>,
    /// Older form of rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_rules: Option<Vec<ForwardRule>>,
}

/// Domains that may be reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AllowedDomains {
    /// As they are.
    List(Vec<String>),
    /// With rules for their requests.
    Rules(BTreeMap<String, Vec<PolicyRule>>),
}

/// Networks that may or may not be reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Subnets {
    /// May.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// May not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<String>>,
}

/// What happens to requests that match. Exactly one of the last three.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Which requests.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<serde_json::Value>,
    /// Headers are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<Vec<Transform>>,
    /// They go elsewhere.
    #[serde(rename = "forwardURL", skip_serializing_if = "Option::is_none")]
    pub forward_url: Option<String>,
    /// They are answered at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<serde_json::Value>,
}

impl std::fmt::Debug for PolicyRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers hold secrets.
        f.write_str("PolicyRule")
    }
}

/// Headers that are set.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Transform {
    /// Names and values.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl std::fmt::Debug for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are secrets.
        f.debug_set().entries(self.headers.keys()).finish()
    }
}

/// A published port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Route {
    /// Where it is reached.
    pub url: String,
    /// First label of the host name.
    pub subdomain: String,
    /// Port inside.
    pub port: u16,
}

/// A sandbox to make. Fields that this server does not know are taken in by
/// `mounts`, `network_id` and `drives` only to be refused.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateRequest {
    /// Project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Name; made up when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Ports to publish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
    /// What is put into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Milliseconds that a session may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Runtime; not with `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Keep its files when it stops; the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// What may leave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyRequest>,
    /// Environment of every command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Milliseconds that its snapshots stay; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_expiration: Option<u64>,
    /// How many of them stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last_snapshots: Option<KeepLastSnapshots>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_regions: Option<Vec<String>>,
    /// A private network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// Drives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<serde_json::Value>,
    /// The caller is about to open terminals.
    #[serde(rename = "__interactive", default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Ours: forget the sandbox when its session ends.
    #[serde(rename = "__ephemeral", default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

/// What is put into a new sandbox.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Source {
    /// A git repository.
    Git {
        /// `https://…`.
        url: String,
        /// Commits of history.
        #[serde(skip_serializing_if = "Option::is_none")]
        depth: Option<u32>,
        /// Branch, tag or commit.
        #[serde(skip_serializing_if = "Option::is_none")]
        revision: Option<String>,
        /// For the clone alone.
        #[serde(skip_serializing_if = "Option::is_none")]
        username: Option<String>,
        /// For the clone alone.
        #[serde(skip_serializing_if = "Option::is_none")]
        password: Option<String>,
    },
    /// An archive.
    Tarball {
        /// Where it is.
        url: String,
    },
    /// A snapshot.
    #[serde(rename_all = "camelCase")]
    Snapshot {
        /// Which.
        snapshot_id: String,
    },
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Git { url, .. } => write!(f, "Git({url})"),
            Self::Tarball { url } => write!(f, "Tarball({url})"),
            Self::Snapshot { snapshot_id } => write!(f, "Snapshot({snapshot_id})"),
        }
    }
}

/// Limits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Resources {
    /// CPUs.
    pub vcpus: u32,
    /// MiB: 2,048 for each CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// Changes to a sandbox; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateRequest {
    /// Keep its files when it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Milliseconds that a session may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// What may leave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyRequest>,
    /// Labels, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Ports, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
    /// Milliseconds that its snapshots stay; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_expiration: Option<u64>,
    /// How many of them stay; `null`: as many as there are.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub keep_last_snapshots: Option<Option<KeepLastSnapshots>>,
    /// What the next session starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_snapshot_id: Option<String>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_regions: Option<Vec<String>>,
    /// A private network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// Drives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<serde_json::Value>,
    /// Runtime, which old clients send and which cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// Tells `null` from absence.
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// A sandbox to make from another; what is absent is copied.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForkRequest {
    /// Name; made up when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Environment of every command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// The caller is about to open terminals.
    #[serde(rename = "__interactive", default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Everything else.
    #[serde(flatten)]
    pub changes: UpdateRequest,
}

/// A snapshot to make.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Milliseconds that it stays; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<u64>,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// `snap_…`.
    pub id: String,
    /// The session that it was made of.
    pub source_session_id: String,
    /// Where it is.
    pub region: String,
    /// `created`, `deleted` or `failed`.
    pub status: String,
    /// Bytes, as far as they were counted.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
    /// When it goes by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// When a session last started from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<i64>,
    /// `automatic` or `manual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_method: Option<String>,
    /// What it was made on top of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
}

/// `{snapshot, session}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeSnapshotReply {
    /// What was made.
    pub snapshot: Snapshot,
    /// Of which session.
    pub session: Session,
}

/// `{snapshot}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// Reply of the list of snapshots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotList {
    /// Snapshots, deleted ones included.
    pub snapshots: Vec<Snapshot>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// A snapshot among those made on top of the same one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotNode {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Others, not all of them.
    pub siblings: Vec<Snapshot>,
    /// How many there are, in digits.
    pub count: String,
}

/// Reply of the line of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotTree {
    /// Nearest first.
    pub snapshots: Vec<SnapshotNode>,
    /// The snapshot that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor: Option<SnapshotNode>,
    /// Place in the line.
    pub pagination: Pagination,
}

/// Where a terminal is opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InteractiveReply {
    /// `ws://…`, without a query.
    pub url: String,
    /// For the query, as `token`.
    pub token: String,
}

/// What the two sides of a terminal say in text frames; bytes go in binary ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum TerminalMessage {
    /// The first frame.
    Start {
        /// Executable.
        command: String,
        /// Arguments.
        #[serde(default)]
        args: Vec<String>,
        /// `NAME=value`.
        #[serde(default)]
        env: Vec<String>,
        /// Working directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cwd: Option<String>,
        /// Columns.
        #[serde(default)]
        cols: Option<u16>,
        /// Rows.
        #[serde(default)]
        rows: Option<u16>,
    },
    /// The window has another size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// The command ended.
    Exit {
        /// Its code.
        code: i32,
    },
}

/// A command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    /// `cmd_…`.
    pub id: String,
    /// Executable.
    pub name: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// The session that it runs in.
    pub session_id: String,
    /// `null` while it runs.
    pub exit_code: Option<i32>,
    /// When it started.
    pub started_at: i64,
    /// How long it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// A place in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pagination {
    /// Items on this page.
    pub count: usize,
    /// Cursor of the next page; `null` on the last.
    pub next: Option<String>,
}

/// Reply of get.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxReply {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its newest session.
    pub session: Session,
    /// Published ports.
    pub routes: Vec<Route>,
    /// This call started that session.
    #[serde(default)]
    pub resumed: bool,
}

/// Reply of list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxList {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// Reply of the list of sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionList {
    /// Newest first.
    pub sessions: Vec<Session>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// Reply of update and delete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeReply {
    /// The sandbox: as it is, or as it was.
    pub sandbox: Sandbox,
    /// Published ports, when they changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
}

/// Reply of stop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StopReply {
    /// The session.
    pub session: Session,
    /// Its sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// What the stop kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

/// A command to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandRequest {
    /// Executable.
    pub command: String,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// As root.
    #[serde(default)]
    pub sudo: bool,
    /// Answer with a stream that ends with the command.
    #[serde(default)]
    pub wait: bool,
    /// Put output into that stream.
    #[serde(default)]
    pub logs: bool,
    /// Milliseconds after which the command is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Ours: standard input will be sent to `…/cmd/{id}/stdin`.
    #[serde(rename = "__stdin", default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
}

/// `{command}`: a reply, and first and last line of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandReply {
    /// The command.
    pub command: Command,
}

/// Reply of the list of commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandList {
    /// Oldest first.
    pub commands: Vec<Command>,
}

/// A line of output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLine {
    /// `stdout`, `stderr`, or `error`.
    pub stream: String,
    /// Text; for `error` an object with `code` and `message`.
    pub data: serde_json::Value,
}

/// A signal to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KillRequest {
    /// Number.
    pub signal: i32,
}

/// A file to read, or a directory to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathRequest {
    /// Absolute, or relative to `cwd`.
    pub path: String,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Make parents too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recursive: Option<bool>,
}

/// Time to add.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExtendRequest {
    /// Milliseconds.
    pub duration: u64,
}

/// `{session}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionReply {
    /// The session.
    pub session: Session,
    /// Published ports.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// `{error:{code,message}}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// Code and sentence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}
