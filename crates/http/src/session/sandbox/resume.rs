//! `PUT /api/sandbox/snapshot`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{SessionRequest, required};
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiErrors, ApiResult};

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
    /// The same: a sandbox keeps its name.
    sandbox_id: String,
}

/// Wake a sleeping sandbox.
#[utoipa::path(put, path = "/api/sandbox/snapshot", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, description = "It is awake", body = ResumeResponse), ApiErrors))]
pub(crate) async fn resume(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<ResumeResponse>> {
    let (already_running, name) = app.sessions.wake_up(&account, &required(body.session_id)?).await?;
    let name = name.to_string();
    Ok(Json(ResumeResponse { success: true, already_running, restored_from: name.clone(), sandbox_id: name }))
}
