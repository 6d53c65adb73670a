//! Have a drive.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use dormouse_wire as wire;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;
use crate::body::ApiJson;

/// Get the drive of this name, or make it. Region and size count where it is made; another
/// size than it has is a conflict.
#[utoipa::path(post, path = "/drives/{name}", tag = "drives", request_body = wire::DriveRequest, params(("name" = String, Path, description = "Drive name"), ScopeQuery),
    responses((status = 200, body = wire::DriveReply, description = "The drive, which was there"), (status = 201, body = wire::DriveReply, description = "The new drive"), WireErrors))]
pub(crate) async fn have(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    ApiJson(body): ApiJson<wire::DriveRequest>,
) -> WireResult<(StatusCode, Json<wire::DriveReply>)> {
    if body.region.as_deref().is_some_and(|region| region != present::REGION) {
        return Err(WireError::bad_request(format!("region: this server has {} only", present::REGION)));
    }
    let scope = scope.with_project(body.project_id)?;
    let had = app.provider.get_or_create_drive(&scope.namespace, &name, body.max_size_bytes).await?;
    let status = if had.1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(present::drive(had.0))))
}
