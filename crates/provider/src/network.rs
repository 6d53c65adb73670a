//! What a run did on the network, as far as its provider tells.

use dormouse_types::Timestamp;

/// Sums of a run, and the last of what it was allowed and denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkUse {
    /// Bytes that left the sandbox.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
    /// Connections, requests and questions that were allowed.
    pub allowed: u64,
    /// Those that were denied, or failed.
    pub denied: u64,
    /// The last of them, oldest first.
    pub recent: Vec<NetworkAccess>,
}

/// One connection, request or question. Of a request neither path nor query nor the
/// value of a header is kept: each may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAccess {
    /// When it began.
    pub at: Timestamp,
    /// How it went: `dns`, `direct`, `spliced`, `http` or `packet`.
    pub way: String,
    /// Host that was named.
    pub host: Option<String>,
    /// Address and port that the sandbox dialled.
    pub address: Option<String>,
    /// Method of a request.
    pub method: Option<String>,
    /// Status of its response.
    pub status: Option<u16>,
    /// The rule that denied it, or why it failed, in one word.
    pub denied: Option<String>,
    /// Bytes that left the sandbox.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
}
