//! What replies have in common.

use serde::{Deserialize, Serialize};

/// A place in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pagination {
    /// Items on this page.
    pub count: usize,
    /// Cursor of the next page; `null` on the last.
    pub next: Option<String>,
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
