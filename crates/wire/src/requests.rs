//! Sandboxes to make or to change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{KeepLastSnapshots, Mounts, NetworkPolicyRequest};

/// A sandbox to make. `network_id` is taken in only to be refused.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Drives, by the absolute path where each is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Mounts>,
    /// The caller is about to open terminals.
    #[serde(rename = "__interactive", default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Ours: forget the sandbox when its session ends.
    #[serde(rename = "__ephemeral", default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

/// What is put into a new sandbox.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Resources {
    /// CPUs.
    pub vcpus: u32,
    /// MiB: 2,048 for each CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// Changes to a sandbox; what is absent stays.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    #[cfg_attr(feature = "openapi", schema(value_type = Option<KeepLastSnapshots>))]
    pub keep_last_snapshots: Option<Option<KeepLastSnapshots>>,
    /// What the next session starts from; `null` is ours: its image, as when it was made.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub current_snapshot_id: Option<Option<String>>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_regions: Option<Vec<String>>,
    /// A private network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// Drives, by the absolute path where each is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Mounts>,
    /// Runtime, which old clients send and which cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Whatever else was sent, to be refused by name.
    #[serde(flatten, default)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: BTreeMap<String, serde_json::Value>,
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Ours: copy the source's files as they are now, not as its last snapshot
    /// has them.
    #[serde(rename = "__live", default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// Everything else.
    #[serde(flatten)]
    pub changes: UpdateRequest,
}
