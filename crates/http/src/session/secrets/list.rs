//! `GET /api/organizations/{org}/secrets`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::Secret;
use crate::App;
use crate::auth::Account;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SecretListReply {
    secrets: Vec<Secret>,
}

/// List an organization's secrets, without their values.
#[utoipa::path(get, path = "/api/organizations/{org}/secrets", tag = "secrets", params(("org" = String, Path, description = "Id or name of the organization")),
    responses((status = 200, description = "Secrets, by name", body = SecretListReply), ApiErrors))]
pub(crate) async fn list(
    State(app): State<App>,
    Account(account): Account,
    Path(org): Path<String>,
) -> ApiResult<Json<SecretListReply>> {
    let secrets = app.sessions.secrets(&account, &org).await?;
    Ok(Json(SecretListReply { secrets: secrets.into_iter().map(Into::into).collect() }))
}
