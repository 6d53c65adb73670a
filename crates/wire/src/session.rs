//! Sessions: our runs.

use serde::{Deserialize, Serialize};

use crate::{NetworkPolicy, Pagination, Route, Sandbox, Snapshot};

/// One boot of a sandbox.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Bytes on the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_transfer: Option<NetworkTransfer>,
    /// Whose session it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_sandbox_name: Option<String>,
    /// Why it ended. Ours.
    #[serde(rename = "__stopReason", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// Ours: commands can be given standard input.
    #[serde(rename = "__stdin", default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Ours: snapshots and forks can be made of it while it goes on.
    #[serde(rename = "__live", default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// Ours: what did not go as it should and did not keep it from starting.
    #[serde(rename = "__warnings", default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Reply of the list of sessions.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionList {
    /// Newest first.
    pub sessions: Vec<Session>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// Reply of stop.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

/// Time to add.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExtendRequest {
    /// Milliseconds.
    pub duration: u64,
}

/// `{session}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionReply {
    /// The session.
    pub session: Session,
    /// Published ports.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// Bytes on the network of a session.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct NetworkTransfer {
    /// That came.
    pub ingress: u64,
    /// That left the sandbox.
    pub egress: u64,
}
