//! Replies of version 1 of the protocol, where a session is called a sandbox.

use serde::{Deserialize, Serialize};

use crate::{Route, Session};

/// Reply about one sandbox.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::SandboxReply))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxReply {
    /// The session.
    pub sandbox: Session,
    /// Published ports.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// Reply of the list of sandboxes.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::SandboxList))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxList {
    /// Newest first.
    pub sandboxes: Vec<Session>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// A place in a list, named by instants in milliseconds.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::Pagination))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pagination {
    /// Items on this page.
    pub count: usize,
    /// For `until`, on the next page; `null` on the last.
    pub next: Option<i64>,
    /// For `since`, on the page before.
    pub prev: Option<i64>,
}

/// A snapshot.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::Snapshot))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The session that it was made of.
    pub source_sandbox_id: String,
    /// Everything else.
    #[serde(flatten)]
    pub snapshot: crate::Snapshot,
}

impl From<crate::Snapshot> for Snapshot {
    fn from(snapshot: crate::Snapshot) -> Self {
        Self { source_sandbox_id: snapshot.source_session_id.clone(), snapshot }
    }
}

/// Reply about one snapshot.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::SnapshotReply))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// Reply of the list of snapshots.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::SnapshotList))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotList {
    /// Newest first.
    pub snapshots: Vec<Snapshot>,
    /// Place in the list.
    pub pagination: Pagination,
}

/// Reply of a snapshot that was made.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = v1::MadeSnapshotReply))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeSnapshotReply {
    /// What was made.
    pub snapshot: Snapshot,
    /// Of which session.
    pub sandbox: Session,
}
