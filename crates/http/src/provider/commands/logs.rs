//! Follow the output of a command.

use axum::extract::{Path, Query, State};
use axum::response::Response;
use dormouse_wire as wire;
use utoipa::IntoParams;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use super::stream::{Form, stream};
use crate::App;

#[derive(serde::Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogsQuery {
    /// Ours: how output is written.
    #[serde(rename = "__encoding", default)]
    #[param(inline)]
    encoding: wire::Encoding,
}

/// Follow the output of a command from its first byte, as lines of JSON.
#[utoipa::path(get, path = "/sessions/{id}/cmd/{command}/logs", tag = "commands", params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery, LogsQuery),
    responses((status = 200, body = wire::LogLine, description = "One line for each piece of output"), WireErrors))]
pub(crate) async fn logs(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
    Query(query): Query<LogsQuery>,
) -> WireResult<Response> {
    let events = app.provider.logs(&scope.run, &command_id(&path.1)?).await?;
    let form = Form { logs: true, commands: false, encoding: query.encoding };
    Ok(stream(Box::pin(scope.right().bound(app, events)), form))
}
