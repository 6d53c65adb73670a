//! What a run did on the network. An extension of ours: the protocol has no words for
//! more than the bytes.

use serde::{Deserialize, Serialize};

/// What a sandbox's live session did on the network.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkUse {
    /// Bytes that left the sandbox.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
    /// Connections, requests and questions that were allowed.
    pub allowed: u64,
    /// Those that were denied, or failed.
    pub denied: u64,
    /// The last of them, oldest first, at most 200.
    pub recent: Vec<NetworkAccess>,
}

/// One connection, request or question, without a value of its.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAccess {
    /// When it began, in milliseconds since 1970.
    pub at: i64,
    /// `dns`, `direct`, `spliced`, `http` or `packet`.
    pub way: String,
    /// Host that was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Address and port that the sandbox dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Method of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Status of its response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was denied or failed, in one word; absent: it was allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
    /// Bytes that left the sandbox.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
}
