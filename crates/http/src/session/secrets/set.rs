//! `PUT /api/organizations/{org}/secrets/{name}`.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_sessions::NewSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

#[derive(Deserialize, ToSchema)]
pub(crate) struct SetSecretRequest {
    /// The secret. It is never shown again.
    #[schema(required, value_type = String)]
    value: Option<String>,
    /// Hosts that it is for; `*.` at the beginning stands for any subdomain.
    #[schema(required, value_type = Vec<String>)]
    hosts: Option<Vec<String>>,
    /// Header in which it goes there.
    #[serde(default = "authorization")]
    header: String,
}

impl std::fmt::Debug for SetSecretRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The value stays out.
        f.debug_struct("SetSecretRequest").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

fn authorization() -> String {
    "authorization".to_owned()
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SetSecretReply {
    name: String,
}

/// Set a secret of an organization. Sandboxes with a repository that it claims have a
/// placeholder in `DORMOUSE_SECRET_NAME`, which is swapped for the value in that header
/// of requests to those hosts, outside of the sandbox.
#[utoipa::path(put, path = "/api/organizations/{org}/secrets/{name}", tag = "secrets", request_body = SetSecretRequest,
    params(("org" = String, Path, description = "Id or name of the organization"), ("name" = String, Path, description = "Name of the secret: capital letters, digits and underscores")),
    responses((status = 200, description = "It is set", body = SetSecretReply), ApiErrors))]
pub(crate) async fn set(
    State(app): State<App>,
    Account(account): Account,
    Path((org, name)): Path<(String, String)>,
    ApiJson(body): ApiJson<SetSecretRequest>,
) -> ApiResult<Json<SetSecretReply>> {
    let value = body.value.ok_or_else(|| ApiError::bad_request("value is required"))?;
    let hosts = body.hosts.ok_or_else(|| ApiError::bad_request("hosts is required"))?;
    let secret = NewSecret { name: name.clone(), hosts, header: body.header, value };
    app.sessions.set_secret(&account, &org, secret).await?;
    Ok(Json(SetSecretReply { name }))
}
