//! `DELETE /api/keys`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dormouse_types::KeyId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DeleteKeyRequest {
    /// Key id.
    #[schema(required, value_type = String)]
    id: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeleteKeyReply {
    status: String,
    message: String,
}

/// Revoke a key.
#[utoipa::path(delete, path = "/api/keys", tag = "keys", request_body = DeleteKeyRequest,
    responses((status = 200, description = "It is revoked", body = DeleteKeyReply), ApiErrors))]
pub(crate) async fn delete(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<DeleteKeyRequest>,
) -> ApiResult<Json<DeleteKeyReply>> {
    let missing = || ApiError::new(StatusCode::NOT_FOUND, "API key not found");
    let id = body.id.ok_or_else(|| ApiError::bad_request("id is required"))?;
    let id: KeyId = id.parse().map_err(|_| missing())?;
    let row = app.db.key(&id).await?.ok_or_else(missing)?;
    if row.account_id != account {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "Access denied"));
    }
    app.db.revoke_key(&id, app.clock.now()).await?;
    Ok(Json(DeleteKeyReply {
        status: "success".to_owned(),
        message: "API key deleted successfully".to_owned(),
    }))
}
