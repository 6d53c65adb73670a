//! `GET /api/keys`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Key;
use crate::App;
use crate::auth::Account;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyListReply {
    keys: Vec<Key>,
}

/// List your keys, newest first.
#[utoipa::path(get, path = "/api/keys", tag = "keys",
    responses((status = 200, description = "Keys, without the keys themselves", body = KeyListReply), ApiErrors))]
pub(crate) async fn list(State(app): State<App>, Account(account): Account) -> ApiResult<Json<KeyListReply>> {
    let keys = app.db.keys_of(&account).await?.into_iter().map(Into::into).collect();
    Ok(Json(KeyListReply { keys }))
}
