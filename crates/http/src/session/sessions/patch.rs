//! `PATCH /api/sessions/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_sessions::{SessionPatch, SessionStatus};
use serde::Deserialize;
use utoipa::ToSchema;

use super::super::session_id;
use super::{SessionReply, checked_title};
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

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
#[utoipa::path(patch, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "Session id")),
    request_body = PatchSessionRequest,
    responses((status = 200, description = "The session as it is now", body = SessionReply), ApiErrors))]
pub(crate) async fn patch(
    State(app): State<App>,
    Account(account): Account,
    Path(id): Path<String>,
    ApiJson(body): ApiJson<PatchSessionRequest>,
) -> ApiResult<Json<SessionReply>> {
    let id = session_id(&id)?;
    let status = body.status.map(|word| word.parse::<SessionStatus>()).transpose();
    let status = status.map_err(|error| ApiError::about("status", error.to_string()))?;
    if body.title.as_deref().is_some_and(|title| title.trim().is_empty()) {
        return Err(ApiError::field("title", "cannot be empty"));
    }
    for (field, lines) in [("linesAdded", body.lines_added), ("linesRemoved", body.lines_removed)] {
        if lines.is_some_and(|lines| lines < 0) {
            return Err(ApiError::field(field, "must not be negative"));
        }
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
