//! Stop a session; a persistent sandbox keeps its files.

use axum::Json;
use axum::extract::State;
use dormouse_provider::StopReason;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use crate::App;

/// Stop a session; a persistent sandbox keeps its files.
#[utoipa::path(post, path = "/sessions/{id}/stop", tag = "sessions", params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::StopReply, description = "What the stop left"), WireErrors))]
pub(crate) async fn stop(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::StopReply>> {
    let stopped = app.provider.stop(&scope.run, StopReason::Requested).await?;
    Ok(Json(wire::StopReply {
        session: present::session(stopped.run),
        sandbox: stopped.sandbox.map(present::sandbox),
        snapshot: stopped.snapshot.map(present::snapshot),
    }))
}
