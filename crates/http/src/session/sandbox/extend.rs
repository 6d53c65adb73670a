//! `POST /api/sandbox/extend`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{SessionRequest, millis, required};
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiErrors, ApiResult};

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
    responses((status = 200, description = "The new end", body = ExtendResponse), ApiErrors))]
pub(crate) async fn extend(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<SessionRequest>,
) -> ApiResult<Json<ExtendResponse>> {
    let (end, by) = app.sessions.extend(&account, &required(body.session_id)?).await?;
    Ok(Json(ExtendResponse { success: true, expires_at: end.as_millis(), extended_by: millis(by) }))
}
