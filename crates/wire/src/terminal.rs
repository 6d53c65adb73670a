//! Terminals.

use serde::{Deserialize, Serialize};

/// Where a terminal is opened.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InteractiveReply {
    /// `ws://…`, without a query.
    pub url: String,
    /// For the query, as `token`.
    pub token: String,
}

/// What the two sides of a terminal say in text frames; bytes go in binary ones.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum TerminalMessage {
    /// The first frame.
    Start {
        /// Executable.
        command: String,
        /// Arguments.
        #[serde(default)]
        args: Vec<String>,
        /// `NAME=value`.
        #[serde(default)]
        env: Vec<String>,
        /// Working directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cwd: Option<String>,
        /// Columns.
        #[serde(default)]
        cols: Option<u16>,
        /// Rows.
        #[serde(default)]
        rows: Option<u16>,
    },
    /// The window has another size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// The command ended.
    Exit {
        /// Its code.
        code: i32,
    },
}
