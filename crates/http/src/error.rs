//! Errors of the session API: one envelope (seed, `Error`), status by type.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use dormouse_provider::ProviderError;
use dormouse_sessions::{RemoteError, SessionError};
use dormouse_store::StoreError;
use dormouse_types::QuotaExceeded;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::request;

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
    /// The field that is wrong, of a 400.
    #[serde(rename = "missing_fields", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    missing_fields: Option<Vec<String>>,
    /// The same, by its other name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    path: Option<Vec<String>>,
}

/// Always `error`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ErrorWord {
    Error,
}

impl ErrorBody {
    pub(crate) fn new(message: String) -> Self {
        let request_id = request::current_id();
        Self { status: ErrorWord::Error, error: message, request_id, missing_fields: None, path: None }
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

/// An answer that is not success.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// When to try again, in seconds.
    pub(crate) retry_after: Option<u64>,
    /// Where the fault of the body is: empty, the body itself; `None`: somewhere else.
    pub(crate) path: Option<Vec<String>>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { status, message: message.into(), retry_after, path: None }
    }

    /// What is wrong with a field, in words that follow its name.
    pub(crate) fn field(name: &str, fault: impl std::fmt::Display) -> Self {
        Self::about(name, format!("{name} {fault}"))
    }

    /// What is wrong with a field, in a sentence.
    pub(crate) fn about(name: &str, message: impl Into<String>) -> Self {
        let path = name.split('.').map(str::to_owned).collect();
        Self { path: Some(path), ..Self::bad_request(message) }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The caller asks for more than they may; `wait`: until the next one.
    pub(crate) fn too_many(wait: Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        let message = format!("too many requests; try again after {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let told = self.clone();
        let body =
            ErrorBody { missing_fields: self.path.clone(), path: self.path, ..ErrorBody::new(self.message) };
        let mut response = (self.status, Json(body)).into_response();
        say_when(&mut response, self.retry_after);
        response.extensions_mut().insert(Told(told));
        response
    }
}

/// The error that an answer tells, for an API with another envelope.
#[derive(Debug, Clone)]
struct Told(ApiError);

/// Layer: below the provider API's paths every refusal has that API's envelope, whoever
/// refuses.
pub(crate) async fn envelope(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let of_provider = ["/api/v1/", "/api/v2/", "/api/v3/"].iter().any(|base| path.starts_with(base));
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Told>() {
        Some(Told(error)) if of_provider => crate::provider::refuse(error),
        _ => response,
    }
}

/// Says after how many seconds to try again.
pub(crate) fn say_when(response: &mut Response, retry_after: Option<u64>) {
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(subject) => {
                Self::new(StatusCode::CONFLICT, format!("{subject} exists already"))
            }
            other => {
                tracing::error!(error = chain(&other), "store");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "The database is not available; try again")
            }
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        let message = error.to_string();
        let status = match error {
            SessionError::NotFound | SessionError::NoSuchOrgSnapshot | SessionError::NoSuchOrganization => {
                StatusCode::NOT_FOUND
            }
            SessionError::Forbidden | SessionError::NotAMember | SessionError::NotClaimed(_) => {
                StatusCode::FORBIDDEN
            }
            SessionError::OtherRepository { .. }
            | SessionError::Archived
            | SessionError::Contended
            | SessionError::Interrupted
            | SessionError::CalledOff
            | SessionError::Reserved(_) => StatusCode::CONFLICT,
            SessionError::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            SessionError::NotInitialized | SessionError::NoOrgSnapshots(_) | SessionError::Secret(_) => {
                StatusCode::BAD_REQUEST
            }
            SessionError::NeverInitialized | SessionError::SandboxGone => StatusCode::NOT_FOUND,
            SessionError::Remote { error: RemoteError::Unreadable, .. } => StatusCode::NOT_FOUND,
            SessionError::Remote { error: RemoteError::NoBranch, .. } => StatusCode::CONFLICT,
            SessionError::Clone { .. } | SessionError::Remote { error: RemoteError::Silent(_), .. } => {
                StatusCode::BAD_GATEWAY
            }
            SessionError::Provider(ProviderError::Capacity(reason)) => {
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("No room for another sandbox now: {reason}"),
                );
            }
            SessionError::Provider(ProviderError::Unready(reason)) => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, reason);
            }
            SessionError::Provider(ProviderError::Busy(reason)) => {
                return Self { retry_after: Some(1), ..Self::new(StatusCode::TOO_MANY_REQUESTS, reason) };
            }
            SessionError::Provider(ProviderError::Quota(refused)) => {
                let status = status_of_quota(&refused);
                let retry_after = refused.kind.passes().then_some(1);
                return Self { retry_after, ..Self::new(status, refused.to_string()) };
            }
            SessionError::Provider(ProviderError::Stopping) => {
                return Self::new(
                    StatusCode::CONFLICT,
                    "The sandbox is stopping, and a process of it takes its time; try again",
                );
            }
            SessionError::Provider(ProviderError::TimeoutInvalid(reason)) => {
                return Self::bad_request(reason);
            }
            SessionError::Provider(error @ ProviderError::Elsewhere { .. }) => {
                return Self::new(StatusCode::MISDIRECTED_REQUEST, error.to_string());
            }
            SessionError::Provider(error) => {
                tracing::error!(error = error.detail(), "provider");
                StatusCode::BAD_GATEWAY
            }
            SessionError::Store(error) => return error.into(),
        };
        Self::new(status, message)
    }
}

/// What passes by itself is asked for too often, the rest is not theirs to have.
pub(crate) fn status_of_quota(refused: &QuotaExceeded) -> StatusCode {
    if refused.kind.passes() { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::FORBIDDEN }
}

/// The error and its causes, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

pub(crate) async fn no_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path; see GET /openapi.json")
}

pub(crate) async fn no_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take this method; see GET /openapi.json",
    )
}

pub(crate) fn panicked(_: Box<dyn Any + Send>) -> Response {
    // The panic itself went to the log through the hook.
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The server failed on this request").into_response()
}
