//! `POST /api/sessions`.

use axum::Json;
use axum::extract::State;
use dormouse_sessions::NewSession;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{SessionReply, checked_title};
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

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
    responses((status = 200, description = "The session", body = SessionReply), ApiErrors))]
pub(crate) async fn create(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<CreateSessionRequest>,
) -> ApiResult<Json<SessionReply>> {
    let repo = body.repo_url.map(|url| url.parse()).transpose();
    let repo = repo.map_err(|error| ApiError::bad_request(format!("repoUrl {error}")))?;
    let title = body.title.map(checked_title).transpose()?;
    let session = app.sessions.create(&account, NewSession { title, repo }).await?.into();
    Ok(Json(SessionReply { session }))
}
