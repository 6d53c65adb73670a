//! `POST /api/sandbox/snapshot`.

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
pub(crate) struct PauseResponse {
    /// What resume brings back.
    snapshot_id: Option<String>,
    /// Epoch milliseconds.
    created_at: i64,
}

/// Put the sandbox to sleep now.
#[utoipa::path(post, path = "/api/sandbox/snapshot", tag = "sandbox", request_body = SessionRequest,
    responses((status = 200, description = "It sleeps", body = PauseResponse), ApiErrors))]
pub(crate) async fn pause(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<PauseResponse>> {
    let (name, at) = app.sessions.pause(&account, &required(body.session_id)?).await?;
    Ok(Json(PauseResponse { snapshot_id: name.map(|name| name.to_string()), created_at: at.as_millis() }))
}
