//! What replies have in common.

use serde::{Deserialize, Serialize};

/// A place in a list.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pagination {
    /// Items on this page.
    pub count: usize,
    /// Cursor of the next page; `null` on the last.
    pub next: Option<String>,
}

/// `{error:{code,message}}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorReply {
    /// What went wrong.
    pub error: ErrorDetail,
    /// What the server's log calls the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// Code and sentence.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub code: String,
    /// Shown to users; never interpreted.
    pub message: String,
}
