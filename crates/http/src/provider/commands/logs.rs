//! Follow the output of a command.

use axum::extract::{Path, State};
use axum::response::Response;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use super::stream::stream;
use crate::App;

/// Follow the output of a command from its first byte, as lines of JSON.
#[utoipa::path(get, path = "/sessions/{id}/cmd/{command}/logs", tag = "commands", params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery),
    responses((status = 200, body = wire::LogLine, description = "One line for each piece of output"), WireErrors))]
pub(crate) async fn logs(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
) -> WireResult<Response> {
    let events = app.provider.logs(&scope.run, &command_id(&path.1)?).await?;
    Ok(stream(Box::pin(scope.right().bound(app, events)), true, false))
}
