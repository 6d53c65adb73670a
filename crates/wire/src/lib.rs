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
    /// CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory: u64,
    /// Base image.
    pub image: String,
    /// Milliseconds that a session may live.
    pub timeout: u64,
    /// Policy in force.
    pub network_policy: NetworkPolicy,
    /// What the next session starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_snapshot_id: Option<String>,
    /// End of the current session, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// Default working directory.
    pub cwd: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
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
    /// Always the same here.
    pub region: String,
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
    /// What it started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_snapshot_id: Option<String>,
    /// Policy in force.
    pub network_policy: NetworkPolicy,
    /// Whose session it is.
    pub source_sandbox_name: String,
}

/// Network policy as it is reported.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// `allow-all`.
    pub mode: String,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// `snap_…`.
    pub id: String,
    /// The session that it was made of.
    pub source_session_id: String,
    /// Always the same here.
    pub region: String,
    /// `created`.
    pub status: String,
    /// Bytes, as far as they were counted.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: i64,
    /// The same.
    pub updated_at: i64,
    /// `automatic` or `manual`.
    pub creation_method: String,
    /// What it was made on top of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
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
    pub routes: Vec<serde_json::Value>,
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

/// Reply of delete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The sandbox as it was.
    pub sandbox: Sandbox,
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
    pub routes: Vec<serde_json::Value>,
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
