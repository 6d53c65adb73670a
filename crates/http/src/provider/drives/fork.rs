//! Make a drive from another.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;
use crate::body::ApiJson;

/// Make a drive with what is in another now.
#[utoipa::path(post, path = "/drives/{name}/fork", tag = "drives", request_body = wire::DriveForkRequest, params(("name" = String, Path, description = "Drive name"), ScopeQuery),
    responses((status = 200, body = wire::DriveReply, description = "The new drive"), WireErrors))]
pub(crate) async fn fork(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    ApiJson(body): ApiJson<wire::DriveForkRequest>,
) -> WireResult<Json<wire::DriveReply>> {
    Ok(Json(present::drive(app.provider.fork_drive(&scope.namespace, &name, &body.name).await?)))
}
