//! `GET /api/sessions/{id}`.

use axum::Json;
use axum::extract::{Path, State};

use super::super::session_id;
use super::SessionReply;
use crate::App;
use crate::auth::Account;
use crate::error::{ApiErrors, ApiResult};

/// Get a session.
#[utoipa::path(get, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "Session id")),
    responses((status = 200, description = "The session", body = SessionReply), ApiErrors))]
pub(crate) async fn get(
    State(app): State<App>,
    Account(account): Account,
    Path(id): Path<String>,
) -> ApiResult<Json<SessionReply>> {
    let session = app.sessions.get(&account, &session_id(&id)?).await?.into();
    Ok(Json(SessionReply { session }))
}
