//! Send a signal to a command.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use crate::App;
use crate::body::ApiJson;

/// Send a signal to the process group of a command, or to all that descends from it.
#[utoipa::path(post, path = "/sessions/{id}/cmd/{command}/kill", tag = "commands", request_body = wire::KillRequest, params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery),
    responses((status = 200, body = wire::CommandReply, description = "The command"), WireErrors))]
pub(crate) async fn kill(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
    ApiJson(body): ApiJson<wire::KillRequest>,
) -> WireResult<Json<wire::CommandReply>> {
    let run_ref = scope.used(&app).await;
    let command = app.provider.kill(&run_ref, &command_id(&path.1)?, body.signal, body.tree).await?;
    Ok(Json(wire::CommandReply { command: present::command(command) }))
}
