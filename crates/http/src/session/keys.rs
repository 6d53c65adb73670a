//! `/api/keys`: the caller's own keys. A key is shown once, by the call that makes it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dormouse_store::{ApiKey, KeyRow, hash_secret};
use dormouse_types::KeyId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::sandbox::ErrorBody;
use crate::App;
use crate::auth::Caller;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiResult};

/// Longest name, in characters.
const MAX_NAME: usize = 100;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Key {
    id: String,
    name: String,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl From<KeyRow> for Key {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name,
            created_at: row.created_at.as_millis(),
            expires_at: row.expires_at.map(|t| t.as_millis()),
            revoked_at: row.revoked_at.map(|t| t.as_millis()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyListReply {
    keys: Vec<Key>,
}

/// List your keys, newest first.
#[utoipa::path(get, path = "/api/keys", tag = "keys",
    responses((status = 200, body = KeyListReply), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, Caller(account): Caller) -> ApiResult<Json<KeyListReply>> {
    let keys = app.db.keys_of(&account).await?.into_iter().map(Into::into).collect();
    Ok(Json(KeyListReply { keys }))
}

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
    responses((status = 200, body = CreateKeyReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    Caller(account): Caller,
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
    responses((status = 200, body = DeleteKeyReply), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(account): Caller,
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
