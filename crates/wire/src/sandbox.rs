//! Sandboxes, and replies about them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Mounts, NetworkPolicy, Pagination, Session};

/// A sandbox.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Drives of the next session, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: Mounts,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Milliseconds that its snapshots stay after their last use; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_expiration: Option<u64>,
    /// How many of them stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last_snapshots: Option<KeepLastSnapshots>,
    /// Ours: what it holds on disk; not in lists.
    #[serde(rename = "__disk", default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
}

/// What a sandbox holds on disk.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Bytes that it wrote and that it, or a snapshot of it, still holds.
    pub used_bytes: u64,
    /// Bytes that it may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Snapshots of it that are there.
    pub snapshots: u64,
}

/// How many snapshots of a sandbox stay.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

/// A published port.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Route {
    /// Where it is reached.
    pub url: String,
    /// First label of the host name.
    pub subdomain: String,
    /// Port inside.
    pub port: u16,
}

/// Reply of get.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxList {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// Reply of update and delete.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeReply {
    /// The sandbox: as it is, or as it was.
    pub sandbox: Sandbox,
    /// Published ports, when they changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
}
