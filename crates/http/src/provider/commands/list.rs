//! List commands.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use crate::App;

/// List the commands that a session remembers, oldest first.
#[utoipa::path(get, path = "/sessions/{id}/cmd", tag = "commands", params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::CommandList, description = "The commands"), WireErrors))]
pub(crate) async fn list(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::CommandList>> {
    let commands = app.provider.commands(&scope.run).await?;
    let commands = commands.into_iter().map(present::command).collect();
    Ok(Json(wire::CommandList { commands }))
}
