//! `DELETE /api/sessions/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::session_id;
use crate::App;
use crate::auth::Account;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SuccessReply {
    success: bool,
}

/// Forget a session with its sandbox and everything in it.
#[utoipa::path(delete, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "Session id")),
    responses((status = 200, description = "It is gone", body = SuccessReply), ApiErrors))]
pub(crate) async fn delete(
    State(app): State<App>,
    Account(account): Account,
    Path(id): Path<String>,
) -> ApiResult<Json<SuccessReply>> {
    app.sessions.delete(&account, &session_id(&id)?).await?;
    Ok(Json(SuccessReply { success: true }))
}
