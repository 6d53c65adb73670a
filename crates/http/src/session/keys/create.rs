//! `POST /api/keys`. A key is shown once, here.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dormouse_store::{ApiKey, KeyRow, hash_secret};
use dormouse_types::KeyId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

/// Longest name, in characters.
const MAX_NAME: usize = 100;

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateKeyRequest {
    /// Shown to users; never interpreted.
    #[schema(required, value_type = String)]
    key_name: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreateKeyReply {
    id: String,
    /// Shown this once.
    key: String,
}

/// Make a key.
#[utoipa::path(post, path = "/api/keys", tag = "keys", request_body = CreateKeyRequest,
    responses((status = 200, description = "The key", body = CreateKeyReply), ApiErrors))]
pub(crate) async fn create(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<CreateKeyRequest>,
) -> ApiResult<Json<CreateKeyReply>> {
    let name = body.key_name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::bad_request("key_name is required"))?;
    if name.chars().count() > MAX_NAME {
        return Err(ApiError::bad_request(format!("key_name must not be over {MAX_NAME} characters")));
    }
    let key = ApiKey::generate().map_err(|error| {
        tracing::error!(%error, "randomness");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no key could be made; try again")
    })?;
    let row = KeyRow {
        id: KeyId::generate(),
        account_id: account,
        name,
        created_at: app.clock.now(),
        expires_at: None,
        revoked_at: None,
    };
    app.db.insert_key(&row, &hash_secret(key.reveal())).await?;
    Ok(Json(CreateKeyReply { id: row.id.to_string(), key: key.reveal().to_owned() }))
}
