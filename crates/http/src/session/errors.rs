//! Every error answer of this API, said once.

use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// Error reply (seed, `Error`).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorBody {
    #[schema(inline)]
    status: ErrorWord,
    /// What went wrong and what would be right.
    error: String,
    /// What the server's log calls the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    request_id: Option<String>,
}

/// Always `error`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ErrorWord {
    Error,
}

impl ErrorBody {
    pub(crate) fn new(message: String) -> Self {
        Self { status: ErrorWord::Error, error: message, request_id: crate::request::current_id() }
    }
}

/// Every error answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "for the document only")]
pub(crate) enum ApiErrors {
    /// The request is wrong; the message names the field.
    #[response(status = 400)]
    BadRequest(#[to_schema] ErrorBody),
    /// The credentials are missing or not right.
    #[response(status = 401)]
    Unauthorized(#[to_schema] ErrorBody),
    /// It is somebody else's.
    #[response(status = 403)]
    Forbidden(#[to_schema] ErrorBody),
    /// There is no such thing.
    #[response(status = 404)]
    NotFound(#[to_schema] ErrorBody),
    /// The session is in no state for it.
    #[response(status = 409)]
    Conflict(#[to_schema] ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(#[to_schema] ErrorBody),
    /// The body is of another type.
    #[response(status = 415)]
    WrongType(#[to_schema] ErrorBody),
    /// The sandbox lives on another server; the message says where that is.
    #[response(status = 421)]
    WrongServer(#[to_schema] ErrorBody),
    /// Too many requests; `retry-after` says when the next one is served.
    #[response(status = 429)]
    TooMany(#[to_schema] ErrorBody),
    /// The repository could not be cloned, or the sandbox failed.
    #[response(status = 502)]
    Failed(#[to_schema] ErrorBody),
    /// There is no room now, or the database does not answer.
    #[response(status = 503)]
    Unavailable(#[to_schema] ErrorBody),
}
