//! `POST /api/sandbox/activity`.

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
    responses((status = 200, description = "Whether sleep was put off", body = ActivityResponse), ApiErrors))]
pub(crate) async fn activity(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<ActivityResponse>> {
    let success = app.sessions.activity(&account, &required(body.session_id)?).await?;
    Ok(Json(ActivityResponse { success, reason: (!success).then(|| "not-active".to_owned()) }))
}
