//! Commands and files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A command.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// The same, in the words of the protocol's version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// `null` while it runs.
    pub exit_code: Option<i32>,
    /// When it started.
    pub started_at: i64,
    /// How long it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// A command to start.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandReply {
    /// The command.
    pub command: Command,
}

/// Reply of the list of commands.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandList {
    /// Oldest first.
    pub commands: Vec<Command>,
}

/// A line of output.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLine {
    /// `stdout`, `stderr`, or `error`.
    pub stream: String,
    /// Text; for `error` an object with `code` and `message`.
    pub data: serde_json::Value,
}

/// A signal to send.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KillRequest {
    /// Number.
    pub signal: i32,
}

/// A file to read, or a directory to make.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
