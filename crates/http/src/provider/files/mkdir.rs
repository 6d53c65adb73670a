//! Make a directory.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use crate::App;
use crate::body::ApiJson;

/// Make a directory, as the default user.
#[utoipa::path(post, path = "/sessions/{id}/fs/mkdir", tag = "files", request_body = wire::PathRequest, params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = serde_json::Value, description = "An empty object"), WireErrors))]
pub(crate) async fn mkdir(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::PathRequest>,
) -> WireResult<Json<serde_json::Value>> {
    let run_ref = scope.used(&app).await;
    let recursive = body.recursive.unwrap_or(false);
    app.provider.mkdir(&run_ref, &body.path, body.cwd.as_deref(), recursive).await?;
    Ok(Json(serde_json::json!({})))
}
