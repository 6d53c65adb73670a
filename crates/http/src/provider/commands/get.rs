//! Get a command, or wait for its end.

use axum::Json;
use axum::extract::{Path, Query, State};
use dormouse_wire as wire;
use utoipa::IntoParams;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use crate::App;

#[derive(serde::Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Answer when it has ended.
    #[serde(default)]
    wait: bool,
}

/// Get a command; with `wait`, once it has ended.
#[utoipa::path(get, path = "/sessions/{id}/cmd/{command}", tag = "commands", params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery, WaitQuery),
    responses((status = 200, body = wire::CommandReply, description = "The command"), WireErrors))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> WireResult<Json<wire::CommandReply>> {
    let id = command_id(&path.1)?;
    let command = if query.wait {
        scope.activity(&app).during(app.provider.wait(&scope.run, &id)).await?
    } else {
        app.provider.command(&scope.run, &id).await?
    };
    Ok(Json(wire::CommandReply { command: present::command(command) }))
}
