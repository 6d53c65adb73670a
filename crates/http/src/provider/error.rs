//! Errors of the provider API: `{"error":{"code","message"}}`, statuses as in
//! the provider contract, section 1.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dormouse_provider::ProviderError;
use dormouse_wire::{ErrorDetail, ErrorReply};

use crate::error::ApiError;

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
        (self.status, Json(ErrorReply { error: self.detail() })).into_response()
    }
}

impl From<ApiError> for WireError {
    fn from(error: ApiError) -> Self {
        let code = match error.status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            StatusCode::MISDIRECTED_REQUEST => "wrong_server",
            _ => "bad_request",
        };
        Self { status: error.status, code, message: error.message }
    }
}

impl From<ProviderError> for WireError {
    fn from(error: ProviderError) -> Self {
        let message = error.to_string();
        let (status, code) = match &error {
            ProviderError::Invalid(_) | ProviderError::Refused { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            ProviderError::TimeoutInvalid(_) => (StatusCode::BAD_REQUEST, "sandbox_timeout_invalid"),
            ProviderError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            ProviderError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            ProviderError::Stopped => (StatusCode::GONE, "sandbox_stopped"),
            ProviderError::Stopping => (StatusCode::UNPROCESSABLE_ENTITY, "sandbox_stopping"),
            ProviderError::SnapshotGone(_) => (StatusCode::GONE, "snapshot_not_found"),
            ProviderError::Elsewhere { .. } => (StatusCode::MISDIRECTED_REQUEST, "wrong_server"),
            ProviderError::Capacity(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ProviderError::Internal { .. } => {
                tracing::error!(error = error.detail(), "provider");
                (StatusCode::BAD_GATEWAY, "provider_failed")
            }
        };
        Self { status, code, message }
    }
}
