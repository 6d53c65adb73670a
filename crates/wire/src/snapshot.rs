//! Snapshots.

use serde::{Deserialize, Serialize};

use crate::{Pagination, Session};

/// A snapshot to make.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Milliseconds that it stays; 0: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<u64>,
    /// Ours: the session goes on.
    #[serde(rename = "__live", default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
}

/// A snapshot.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Bytes of its files, those of its image included.
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeSnapshotReply {
    /// What was made.
    pub snapshot: Snapshot,
    /// Of which session.
    pub session: Session,
    /// Ours: microseconds that the session's processes stood still, if it goes
    /// on.
    #[serde(rename = "__stallMicros", default, skip_serializing_if = "Option::is_none")]
    pub stall_micros: Option<u64>,
}

/// `{snapshot}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Ours: what its deletion means for sandboxes.
    #[serde(rename = "__warnings", default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Reply of the list of snapshots.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotList {
    /// Snapshots, deleted ones included.
    pub snapshots: Vec<Snapshot>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// A snapshot among those made on top of the same one.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
