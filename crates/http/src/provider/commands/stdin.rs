//! Feed standard input of a command.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use futures::StreamExt as _;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use crate::App;

/// Feed standard input of a command; its end is the end of the body.
#[utoipa::path(post, path = "/sessions/{id}/cmd/{command}/stdin", tag = "commands", request_body(content_type = "application/octet-stream", description = "The bytes"), params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery),
    responses((status = 200, body = serde_json::Value, description = "An empty object"), WireErrors))]
pub(crate) async fn stdin(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
    body: Body,
) -> WireResult<Json<serde_json::Value>> {
    let run_ref = scope.used(&app).await;
    let body = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    app.provider.stdin(&run_ref, &command_id(&path.1)?, Box::pin(body)).await?;
    Ok(Json(serde_json::json!({})))
}
