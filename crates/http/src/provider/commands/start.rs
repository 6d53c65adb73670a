//! Start a command.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use dormouse_provider::{CommandSpec, StdinSource};
use dormouse_types::CommandId;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use super::stream::{Form, stream};
use crate::App;
use crate::body::ApiJson;

/// Start a command; with `wait`, follow it to its end as lines of JSON.
#[utoipa::path(post, path = "/sessions/{id}/cmd", tag = "commands", request_body = wire::CommandRequest, params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::CommandReply, description = "The command; with `wait` one line at its start and one at its end, output between them"), WireErrors))]
pub(crate) async fn start(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::CommandRequest>,
) -> WireResult<Response> {
    let run_ref = scope.used(&app).await;
    let spec = CommandSpec {
        argv: std::iter::once(body.command).chain(body.args).collect(),
        cwd: body.cwd.filter(|cwd| !cwd.is_empty()),
        env: body.env,
        sudo: body.sudo,
        timeout: body.timeout.map(Duration::from_millis),
        stdin: if body.stdin || body.attach_stdin { StdinSource::Stream } else { StdinSource::Empty },
    };
    let id = CommandId::generate();
    if !body.wait {
        let command = app.provider.start(&run_ref, id, spec).await?;
        return Ok(Json(wire::CommandReply { command: present::command(command) }).into_response());
    }
    let events = app.provider.exec(&run_ref, id, spec).await?;
    // Somebody waits for it: the session is in use until it ends.
    let events = Box::pin(scope.right().bound(app.clone(), scope.activity(&app).while_followed(events)));
    let form = Form { logs: body.logs, commands: true, encoding: body.encoding.unwrap_or_default() };
    Ok(stream(events, form))
}
