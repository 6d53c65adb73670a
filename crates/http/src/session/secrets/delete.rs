//! `DELETE /api/organizations/{org}/secrets/{name}`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::auth::Account;
use crate::error::{ApiError, ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeleteSecretReply {
    name: String,
    deleted: bool,
}

/// Delete a secret of an organization.
#[utoipa::path(delete, path = "/api/organizations/{org}/secrets/{name}", tag = "secrets",
    params(("org" = String, Path, description = "Id or name of the organization"), ("name" = String, Path, description = "Name of the secret")),
    responses((status = 200, description = "It is gone", body = DeleteSecretReply), ApiErrors))]
pub(crate) async fn delete(
    State(app): State<App>,
    Account(account): Account,
    Path((org, name)): Path<(String, String)>,
) -> ApiResult<Json<DeleteSecretReply>> {
    if !app.sessions.delete_secret(&account, &org, &name).await? {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "Secret not found"));
    }
    Ok(Json(DeleteSecretReply { name, deleted: true }))
}
