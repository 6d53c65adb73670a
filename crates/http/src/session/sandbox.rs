//! `/api/sandbox` and its siblings (seed; session contract, sections 2 and 4).

use std::time::Instant;

use axum::Json;
use axum::extract::{FromRequest as _, FromRequestParts as _, Request, State};
use dormouse_sessions::{Probe, Status};
use dormouse_types::{ErrorBody as PlainError, GithubRepo};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::session_id;
use crate::App;
use crate::auth::Caller;
use crate::body::{ApiJson, ApiQuery};
use crate::error::{ApiError, ApiResult};

/// Error reply.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody {
    /// Always `"error"`.
    #[schema(example = "error")]
    status: String,
    /// Human-readable error message.
    error: String,
}

impl From<PlainError> for ErrorBody {
    fn from(body: PlainError) -> Self {
        Self { status: body.status, error: body.error }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSandboxRequest {
    /// GitHub repository URL: `https://github.com/owner/repo`.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String)]
    repo_url: Field,
    /// Owning session. Without it a one-shot sandbox is made.
    #[serde(default)]
    session_id: Option<String>,
}

/// A field whose absence, type and emptiness each get their own message.
#[derive(Debug, Default)]
enum Field {
    #[default]
    Missing,
    NotText,
    Text(String),
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Field::Text(text),
        _ => Field::NotText,
    })
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSandboxResponse {
    /// Epoch milliseconds when the sandbox was ready.
    created_at: i64,
    /// Idle timeout in milliseconds.
    timeout: i64,
    /// Branch that is checked out.
    current_branch: String,
    /// Always `vercel`: the name of the protocol.
    mode: Mode,
    timing: Timing,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Vercel,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timing {
    /// Milliseconds from request receipt until the sandbox was ready.
    ready_ms: i64,
}

/// Create or restore the session's sandbox.
#[utoipa::path(post, path = "/api/sandbox", tag = "sandbox", request_body = CreateSandboxRequest,
    responses(
        (status = 200, body = CreateSandboxResponse, description = "The sandbox is ready"),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    request: Request,
) -> ApiResult<Json<CreateSandboxResponse>> {
    // The clock starts before anything is looked at.
    let received = Instant::now();
    let (mut parts, body) = request.into_parts();
    let Caller(account) = Caller::from_request_parts(&mut parts, &app).await?;
    let request = Request::from_parts(parts, body);
    let ApiJson(body) = ApiJson::<CreateSandboxRequest>::from_request(request, &app).await?;
    let url = match body.repo_url {
        Field::Missing => return Err(ApiError::bad_request("repoUrl is required")),
        Field::NotText => return Err(ApiError::bad_request("repoUrl must be a string")),
        Field::Text(url) if url.trim().is_empty() => {
            return Err(ApiError::bad_request("repoUrl cannot be empty"));
        }
        Field::Text(url) => url,
    };
    let repo: GithubRepo = url.parse().map_err(|error| ApiError::bad_request(format!("repoUrl {error}")))?;
    let session = body.session_id.filter(|id| !id.is_empty()).map(|id| session_id(&id)).transpose()?;
    let ready = app.sessions.provision(account, session, repo).await?;
    Ok(Json(CreateSandboxResponse {
        created_at: ready.ready_at.as_millis(),
        timeout: millis(ready.timeout),
        current_branch: ready.branch,
        mode: Mode::Vercel,
        timing: Timing { ready_ms: millis(received.elapsed()) },
    }))
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionQuery {
    /// Session id.
    #[param(required)]
    session_id: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionRequest {
    /// Session id.
    #[schema(required, value_type = String)]
    session_id: Option<String>,
}

fn required(id: Option<String>) -> ApiResult<dormouse_types::SessionId> {
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| ApiError::bad_request("Missing sessionId"))?;
    session_id(&id)
}

/// Lifecycle as clients poll it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lifecycle {
    /// Epoch milliseconds on the server.
    server_time: i64,
    /// Lifecycle state.
    state: Option<String>,
    /// Epoch milliseconds of the last use.
    last_activity_at: Option<i64>,
    /// Epoch milliseconds when it will be put to sleep.
    hibernate_after: Option<i64>,
    /// Epoch milliseconds when its lifetime ends.
    sandbox_expires_at: Option<i64>,
}

impl From<&Status> for Lifecycle {
    fn from(status: &Status) -> Self {
        Self {
            server_time: status.now.as_millis(),
            state: Some(status.row.lifecycle_state.to_string()),
            last_activity_at: status.row.last_activity_at.map(|t| t.as_millis()),
            hibernate_after: status.row.hibernate_after.map(|t| t.as_millis()),
            sandbox_expires_at: status.row.sandbox_expires_at.map(|t| t.as_millis()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusResponse {
    /// `active` or `no_sandbox`.
    status: String,
    /// A sleeping sandbox can be resumed.
    has_snapshot: bool,
    /// Grows with every change of the session.
    lifecycle_version: i64,
    lifecycle: Lifecycle,
}

/// Where the session's sandbox stands; asks the database only.
#[utoipa::path(get, path = "/api/sandbox/status", tag = "sandbox", params(SessionQuery),
    responses((status = 200, body = StatusResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn status(
    State(app): State<App>,
    Caller(account): Caller,
    ApiQuery(query): ApiQuery<SessionQuery>,
) -> ApiResult<Json<StatusResponse>> {
    let status = app.sessions.status(&account, &required(query.session_id)?).await?;
    Ok(Json(StatusResponse {
        status: if status.active { "active" } else { "no_sandbox" }.to_owned(),
        has_snapshot: status.has_snapshot,
        lifecycle_version: status.row.lifecycle_version,
        lifecycle: (&status).into(),
    }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReconnectResponse {
    /// `connected`, `expired` or `no_sandbox`.
    status: String,
    /// A sleeping sandbox can be resumed.
    has_snapshot: bool,
    /// Epoch milliseconds when its lifetime ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64, required = false)]
    expires_at: Option<i64>,
    lifecycle: Lifecycle,
}

/// Asks the sandbox itself whether it is there; never wakes it.
#[utoipa::path(get, path = "/api/sandbox/reconnect", tag = "sandbox", params(SessionQuery),
    responses((status = 200, body = ReconnectResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn reconnect(
    State(app): State<App>,
    Caller(account): Caller,
    ApiQuery(query): ApiQuery<SessionQuery>,
) -> ApiResult<Json<ReconnectResponse>> {
    let (probe, status) = app.sessions.probe(&account, &required(query.session_id)?).await?;
    let (word, expires_at) = match probe {
        Probe::Connected(end) => ("connected", end.map(|t| t.as_millis())),
        Probe::Expired => ("expired", None),
        Probe::NoSandbox => ("no_sandbox", None),
    };
    Ok(Json(ReconnectResponse {
        status: word.to_owned(),
        has_snapshot: status.has_snapshot,
        expires_at,
        lifecycle: (&status).into(),
    }))
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ActivityResponse {
    /// Whether sleep was put off.
    success: bool,
    /// `not-active` where there is nothing to keep awake.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    reason: Option<String>,
}

/// Somebody uses the session: put sleep off.
#[utoipa::path(post, path = "/api/sandbox/activity", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, body = ActivityResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn activity(
    State(app): State<App>,
    Caller(account): Caller,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<ActivityResponse>> {
    let success = app.sessions.activity(&account, &required(body.session_id)?).await?;
    Ok(Json(ActivityResponse { success, reason: (!success).then(|| "not-active".to_owned()) }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExtendResponse {
    success: bool,
    /// Epoch milliseconds of the new end.
    expires_at: i64,
    /// Milliseconds that were added.
    extended_by: i64,
}

/// Move the end of the sandbox's lifetime 20 minutes later.
#[utoipa::path(post, path = "/api/sandbox/extend", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, body = ExtendResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn extend(
    State(app): State<App>,
    Caller(account): Caller,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<ExtendResponse>> {
    let (end, by) = app.sessions.extend(&account, &required(body.session_id)?).await?;
    Ok(Json(ExtendResponse { success: true, expires_at: end.as_millis(), extended_by: millis(by) }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PauseResponse {
    /// What resume brings back.
    snapshot_id: Option<String>,
    /// Epoch milliseconds.
    created_at: i64,
}

/// Put the sandbox to sleep now.
#[utoipa::path(post, path = "/api/sandbox/snapshot", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, body = PauseResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn pause(
    State(app): State<App>,
    Caller(account): Caller,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<PauseResponse>> {
    let (name, at) = app.sessions.pause(&account, &required(body.session_id)?).await?;
    Ok(Json(PauseResponse { snapshot_id: name.map(|name| name.to_string()), created_at: at.as_millis() }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResumeResponse {
    success: bool,
    /// It was awake.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    already_running: bool,
    /// What came back.
    restored_from: String,
}

/// Wake a sleeping sandbox.
#[utoipa::path(put, path = "/api/sandbox/snapshot", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, body = ResumeResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn resume(
    State(app): State<App>,
    Caller(account): Caller,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<ResumeResponse>> {
    let (already_running, name) = app.sessions.wake_up(&account, &required(body.session_id)?).await?;
    Ok(Json(ResumeResponse { success: true, already_running, restored_from: name.to_string() }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StopResponse {
    success: bool,
    /// Nothing ran.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    already_stopped: bool,
}

/// Stop the session's sandbox; what is in it is kept.
#[utoipa::path(delete, path = "/api/sandbox", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, body = StopResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn stop(
    State(app): State<App>,
    Caller(account): Caller,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<StopResponse>> {
    let stopped = app.sessions.stop(&account, &required(body.session_id)?).await?;
    Ok(Json(StopResponse { success: true, already_stopped: !stopped }))
}
