//! Get a command, or wait for its end.

use axum::Json;
use axum::extract::{Path, Query, State};
use dormouse_wire as wire;
use utoipa::IntoParams;

use super::super::error::{WireError, WireErrors, WireResult};
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
        let (right, activity) = (scope.right(), scope.activity(&app));
        tokio::select! {
            ended = activity.during(app.provider.wait(&scope.run, &id)) => ended?,
            () = right.lost(&app) => {
                return Err(WireError::forbidden("the right to this sandbox has ended"));
            }
        }
    } else {
        app.provider.command(&scope.run, &id).await?
    };
    Ok(Json(wire::CommandReply { command: present::command(command) }))
}
