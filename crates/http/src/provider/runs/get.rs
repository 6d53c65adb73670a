//! Get a session with the ports of its sandbox.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use crate::App;

/// Get a session with the ports of its sandbox.
#[utoipa::path(get, path = "/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::SessionReply, description = "The session"), WireErrors))]
pub(crate) async fn get(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::SessionReply>> {
    let run = app.provider.run(&scope.run).await?;
    let routes = present::routes(app.provider.routes(&scope.run).await?, &app.ports);
    Ok(Json(wire::SessionReply { session: present::session(run), routes }))
}
