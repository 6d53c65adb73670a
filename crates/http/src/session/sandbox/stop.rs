//! `DELETE /api/sandbox`.

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
pub(crate) struct StopResponse {
    success: bool,
    /// Nothing ran.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    already_stopped: bool,
}

/// Stop the session's sandbox; what is in it is kept.
#[utoipa::path(delete, path = "/api/sandbox", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, description = "It does not run", body = StopResponse), ApiErrors))]
pub(crate) async fn stop(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<StopResponse>> {
    let stopped = app.sessions.stop(&account, &required(body.session_id)?).await?;
    Ok(Json(StopResponse { success: true, already_stopped: !stopped }))
}
