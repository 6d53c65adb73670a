//! Drives (provider contract, section 2, rows 24 to 26).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Pagination;

/// A drive.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drive {
    /// `drive_…`.
    pub id: String,
    /// Name, unique in its project.
    pub name: String,
    /// Project.
    pub project_id: String,
    /// Where it is.
    pub region: String,
    /// Bytes that it may hold.
    pub max_size_bytes: u64,
    /// The session that may write to it, while that lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_session_id: Option<String>,
    /// The sandbox of that session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_sandbox_name: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When it last changed hands.
    pub updated_at: i64,
}

/// `{drive}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriveReply {
    /// The drive.
    pub drive: Drive,
}

/// A page of drives.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriveList {
    /// The page.
    pub drives: Vec<Drive>,
    /// Where the next begins.
    pub pagination: Pagination,
}

/// A drive to have.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriveRequest {
    /// Project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Where it is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Bytes that it may hold; 1 TiB when it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
}

/// A drive to make from another.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriveForkRequest {
    /// Its name.
    pub name: String,
}

/// A drive in a sandbox.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// Name of the drive.
    pub drive: String,
    /// `read-write`, or `snapshot`: what was in it when the session began. `read-only` is an
    /// older word for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Drives of a sandbox, by the absolute path where each is.
pub type Mounts = BTreeMap<String, Mount>;
