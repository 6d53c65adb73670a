//! `/api/sessions` (session contract, section 10).

use axum::Json;
use axum::extract::{Path, State};
use dormouse_sessions::{NewSession, SessionPatch, SessionStatus};
use dormouse_store::{SessionFilter, SessionRow};
use dormouse_types::GithubRepo;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::sandbox::ErrorBody;
use super::session_id;
use crate::App;
use crate::auth::Caller;
use crate::body::{ApiJson, ApiQuery};
use crate::error::{ApiError, ApiResult};

/// Most sessions on one page.
const MAX_PAGE: i64 = 100;

/// Longest title, in characters.
const MAX_TITLE: usize = 200;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    id: String,
    user_id: String,
    title: String,
    status: String,
    repo_owner: Option<String>,
    repo_name: Option<String>,
    branch: Option<String>,
    clone_url: Option<String>,
    sandbox_name: Option<String>,
    lifecycle_state: Option<String>,
    lifecycle_version: i64,
    lifecycle_error: Option<String>,
    last_activity_at: Option<i64>,
    hibernate_after: Option<i64>,
    sandbox_expires_at: Option<i64>,
    lines_added: Option<i64>,
    lines_removed: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        let repo = row.clone_url.as_deref().and_then(|url| url.parse::<GithubRepo>().ok());
        Self {
            id: row.id.to_string(),
            user_id: row.account_id.to_string(),
            title: row.title,
            status: row.status.to_string(),
            repo_owner: repo.as_ref().map(|repo| repo.owner().to_owned()),
            repo_name: repo.as_ref().map(|repo| repo.name().to_owned()),
            branch: row.branch,
            clone_url: row.clone_url,
            sandbox_name: row.sandbox_name.map(|name| name.to_string()),
            lifecycle_state: Some(row.lifecycle_state.to_string()),
            lifecycle_version: row.lifecycle_version,
            lifecycle_error: row.lifecycle_error,
            last_activity_at: row.last_activity_at.map(|t| t.as_millis()),
            hibernate_after: row.hibernate_after.map(|t| t.as_millis()),
            sandbox_expires_at: row.sandbox_expires_at.map(|t| t.as_millis()),
            lines_added: row.lines_added,
            lines_removed: row.lines_removed,
            created_at: row.created_at.as_millis(),
            updated_at: row.updated_at.as_millis(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionReply {
    session: Session,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSessionRequest {
    /// Shown to users; never interpreted.
    title: Option<String>,
    /// Repository that the session is bound to.
    repo_url: Option<String>,
}

/// Make a session.
#[utoipa::path(post, path = "/api/sessions", tag = "sessions", request_body = CreateSessionRequest,
    responses((status = 200, body = SessionReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    Caller(account): Caller,
    ApiJson(body): ApiJson<CreateSessionRequest>,
) -> ApiResult<Json<SessionReply>> {
    let repo = body.repo_url.map(|url| url.parse()).transpose();
    let repo = repo.map_err(|error| ApiError::bad_request(format!("repoUrl {error}")))?;
    let title = body.title.map(checked_title).transpose()?;
    let session = app.sessions.create(&account, NewSession { title, repo }).await?.into();
    Ok(Json(SessionReply { session }))
}

fn checked_title(title: String) -> ApiResult<String> {
    if title.chars().count() > MAX_TITLE {
        return Err(ApiError::bad_request(format!("title must not be over {MAX_TITLE} characters")));
    }
    Ok(title)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// `all`, `active` or `archived`.
    status: Option<String>,
    /// 1 to 100.
    limit: Option<String>,
    /// How many to pass over.
    offset: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionListReply {
    sessions: Vec<Session>,
    archived_count: i64,
    pagination: Pagination,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pagination {
    limit: i64,
    offset: i64,
    has_more: bool,
    next_offset: Option<i64>,
}

/// List your sessions, newest first.
#[utoipa::path(get, path = "/api/sessions", tag = "sessions", params(ListQuery),
    responses((status = 200, body = SessionListReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<App>,
    Caller(account): Caller,
    ApiQuery(query): ApiQuery<ListQuery>,
) -> ApiResult<Json<SessionListReply>> {
    let filter = match query.status.as_deref() {
        None | Some("all") => SessionFilter::All,
        Some("active") => SessionFilter::Active,
        Some("archived") => SessionFilter::Archived,
        Some(_) => return Err(ApiError::bad_request("status must be all, active or archived")),
    };
    let limit = number(query.limit.as_deref(), 50).filter(|n| (1..=MAX_PAGE).contains(n));
    let limit =
        limit.ok_or_else(|| ApiError::bad_request(format!("limit must be a number from 1 to {MAX_PAGE}")))?;
    let offset = number(query.offset.as_deref(), 0).filter(|n| (0..1_000_000_000).contains(n));
    let offset = offset.ok_or_else(|| ApiError::bad_request("offset must be a number from 0"))?;
    let (mut rows, archived_count) = app.sessions.list(&account, filter, limit + 1, offset).await?;
    let has_more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(Json(SessionListReply {
        sessions: rows.into_iter().map(Into::into).collect(),
        archived_count,
        pagination: Pagination { limit, offset, has_more, next_offset: has_more.then_some(offset + limit) },
    }))
}

fn number(text: Option<&str>, default: i64) -> Option<i64> {
    text.map_or(Some(default), |text| text.parse().ok())
}

/// Get a session.
#[utoipa::path(get, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = SessionReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn get(
    State(app): State<App>,
    Caller(account): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<SessionReply>> {
    let session = app.sessions.get(&account, &session_id(&id)?).await?.into();
    Ok(Json(SessionReply { session }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PatchSessionRequest {
    /// Shown to users; never interpreted.
    title: Option<String>,
    /// `running`, `completed`, `failed` or `archived`.
    status: Option<String>,
    /// From 0.
    lines_added: Option<i64>,
    /// From 0.
    lines_removed: Option<i64>,
}

/// Change a session; archiving puts its sandbox to sleep.
#[utoipa::path(patch, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    request_body = PatchSessionRequest,
    responses((status = 200, body = SessionReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn patch(
    State(app): State<App>,
    Caller(account): Caller,
    Path(id): Path<String>,
    ApiJson(body): ApiJson<PatchSessionRequest>,
) -> ApiResult<Json<SessionReply>> {
    let id = session_id(&id)?;
    let status = body.status.map(|word| word.parse::<SessionStatus>()).transpose();
    let status = status.map_err(|error| ApiError::bad_request(error.to_string()))?;
    if body.title.as_deref().is_some_and(|title| title.trim().is_empty()) {
        return Err(ApiError::bad_request("title cannot be empty"));
    }
    if body.lines_added.is_some_and(|n| n < 0) || body.lines_removed.is_some_and(|n| n < 0) {
        return Err(ApiError::bad_request("linesAdded and linesRemoved must not be negative"));
    }
    let patch = SessionPatch {
        title: body.title.map(checked_title).transpose()?,
        status,
        lines_added: body.lines_added,
        lines_removed: body.lines_removed,
    };
    let session = app.sessions.patch(&account, &id, patch).await?.into();
    Ok(Json(SessionReply { session }))
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SuccessReply {
    success: bool,
}

/// Forget a session with its sandbox and everything in it.
#[utoipa::path(delete, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = SuccessReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(account): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<SuccessReply>> {
    app.sessions.delete(&account, &session_id(&id)?).await?;
    Ok(Json(SuccessReply { success: true }))
}
