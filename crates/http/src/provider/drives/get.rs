//! Get a drive.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;

/// Get a drive.
#[utoipa::path(get, path = "/drives/{name}", tag = "drives", params(("name" = String, Path, description = "Drive name"), ScopeQuery),
    responses((status = 200, body = wire::DriveReply, description = "The drive"), WireErrors))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> WireResult<Json<wire::DriveReply>> {
    Ok(Json(present::drive(app.provider.drive(&scope.namespace, &name).await?)))
}
