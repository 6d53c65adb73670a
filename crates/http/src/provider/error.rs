//! Errors of the provider API: `{"error":{"code","message"}}`, statuses as in
//! the provider contract, section 1.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dormouse_provider::ProviderError;
use dormouse_sessions::SessionError;
use dormouse_wire::{ErrorDetail, ErrorReply};

use crate::error::{ApiError, status_of_quota};

#[derive(Debug)]
pub(crate) struct WireError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

pub(crate) type WireResult<T> = Result<T, WireError>;

impl WireError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "bad_request", message: message.into() }
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, code: "forbidden", message: message.into() }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, code: "not_found", message: message.into() }
    }

    /// Code and message, for an error line in a stream.
    pub(crate) fn detail(&self) -> ErrorDetail {
        ErrorDetail { code: self.code.to_owned(), message: self.message.clone() }
    }
}

impl IntoResponse for WireError {
    fn into_response(self) -> Response {
        let request_id = crate::request::current_id();
        let again = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status);
        let mut response =
            (self.status, Json(ErrorReply { error: self.detail(), request_id })).into_response();
        crate::error::say_when(&mut response, again.then_some(1));
        response
    }
}

/// The answer to a caller who may not come in.
pub(crate) fn refuse(error: ApiError) -> Response {
    let retry_after = error.retry_after;
    let mut response = WireError::from(error).into_response();
    crate::error::say_when(&mut response, retry_after);
    response
}

/// Every error answer of this API.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "for the document only")]
pub(crate) enum WireErrors {
    /// The request is wrong; the message names the field.
    #[response(status = 400)]
    BadRequest(#[to_schema] ErrorReply),
    /// The credentials are missing or not right.
    #[response(status = 401)]
    Unauthorized(#[to_schema] ErrorReply),
    /// The caller may not do this.
    #[response(status = 403)]
    Forbidden(#[to_schema] ErrorReply),
    /// There is no such thing.
    #[response(status = 404)]
    NotFound(#[to_schema] ErrorReply),
    /// The name is taken.
    #[response(status = 409)]
    Conflict(#[to_schema] ErrorReply),
    /// The session has ended, or the snapshot is gone.
    #[response(status = 410)]
    Gone(#[to_schema] ErrorReply),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(#[to_schema] ErrorReply),
    /// The body is of another type.
    #[response(status = 415)]
    WrongType(#[to_schema] ErrorReply),
    /// The sandbox lives on another server; the message says where that is.
    #[response(status = 421)]
    WrongServer(#[to_schema] ErrorReply),
    /// The session is stopping.
    #[response(status = 422)]
    Stopping(#[to_schema] ErrorReply),
    /// Too many requests; `retry-after` says when the next one is served.
    #[response(status = 429)]
    TooMany(#[to_schema] ErrorReply),
    /// The server failed.
    #[response(status = 502)]
    Failed(#[to_schema] ErrorReply),
    /// There is no room now, or the database does not answer.
    #[response(status = 503)]
    Unavailable(#[to_schema] ErrorReply),
}

impl From<ApiError> for WireError {
    fn from(error: ApiError) -> Self {
        let code = match error.status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::CONFLICT => "conflict",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            StatusCode::TOO_MANY_REQUESTS => "rate_limited",
            StatusCode::MISDIRECTED_REQUEST => "wrong_server",
            _ => "bad_request",
        };
        Self { status: error.status, code, message: error.message }
    }
}

impl From<SessionError> for WireError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Provider(error) => error.into(),
            error => ApiError::from(error).into(),
        }
    }
}

impl From<ProviderError> for WireError {
    fn from(error: ProviderError) -> Self {
        let message = error.to_string();
        let (status, code) = match &error {
            ProviderError::Refused { errno: libc::EISDIR, .. } => (StatusCode::BAD_REQUEST, "is_a_directory"),
            ProviderError::Invalid(_) | ProviderError::Refused { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            ProviderError::TimeoutInvalid(_) => (StatusCode::BAD_REQUEST, "sandbox_timeout_invalid"),
            ProviderError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            ProviderError::Conflict(_) | ProviderError::InUse(_) => (StatusCode::CONFLICT, "conflict"),
            ProviderError::Stopped => (StatusCode::GONE, "sandbox_stopped"),
            ProviderError::Stopping => (StatusCode::UNPROCESSABLE_ENTITY, "sandbox_stopping"),
            ProviderError::SnapshotGone(_) => (StatusCode::GONE, "snapshot_not_found"),
            ProviderError::Elsewhere { .. } => (StatusCode::MISDIRECTED_REQUEST, "wrong_server"),
            // What clients of the protocol look for, status and code.
            ProviderError::InputRefused(_) => (StatusCode::BAD_REQUEST, "command_stdin_unavailable"),
            ProviderError::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "sandbox_busy"),
            ProviderError::Quota(refused) => (status_of_quota(refused), "quota_exceeded"),
            ProviderError::Capacity(_) | ProviderError::Unready(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            ProviderError::Internal { .. } => {
                tracing::error!(error = error.detail(), "provider");
                (StatusCode::BAD_GATEWAY, "provider_failed")
            }
        };
        Self { status, code, message }
    }
}
