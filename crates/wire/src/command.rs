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
    /// Ours: it was killed because its time limit passed.
    #[serde(rename = "__timedOut", default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Ours: it, or a process of it, was killed because the sandbox's memory was used up.
    #[serde(rename = "__oom", default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// Ours: as many bytes of its output were lost; 1 where it is not known how many.
    #[serde(rename = "__outputLost", default, skip_serializing_if = "is_zero")]
    pub output_lost: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
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
    /// Standard input will be sent to `…/cmd/{id}/stdin`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attach_stdin: bool,
    /// The same, in the words of this server's earlier versions.
    #[serde(rename = "__stdin", default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Ours: how output is written in the answer.
    #[serde(rename = "__encoding", default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// How output is written in lines of JSON.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As text; what is no UTF-8 becomes U+FFFD.
    #[default]
    Utf8,
    /// Byte by byte, as base64 (RFC 4648, section 4).
    Base64,
}

/// A part of standard input.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InputRequest {
    /// The bytes, as base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// Where they stand in all that the command was ever sent; what it has taken already is
    /// passed over. Absent: behind what it has taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Close standard input after them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub close: bool,
}

/// What standard input has taken.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InputReply {
    /// Bytes since the command started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_written: Option<u64>,
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
    /// Ours: as many bytes of output were lost here, which the text says too.
    #[serde(rename = "__lost", default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Ours: how the text is written.
    #[serde(rename = "__encoding", default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// A signal to send.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KillRequest {
    /// Number.
    pub signal: i32,
    /// Ours: send it to everything that descends from the command too, whatever group or
    /// session it made for itself.
    #[serde(rename = "__tree", default, skip_serializing_if = "std::ops::Not::not")]
    pub tree: bool,
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
