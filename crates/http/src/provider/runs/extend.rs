//! Move the end of a session later.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::super::{present, requests};
use crate::App;
use crate::body::ApiJson;

/// Move the end of a session later.
#[utoipa::path(post, path = "/sessions/{id}/extend-timeout", tag = "sessions", request_body = wire::ExtendRequest, params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::SessionReply, description = "The session as it is now"), WireErrors))]
pub(crate) async fn extend(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::ExtendRequest>,
) -> WireResult<Json<wire::SessionReply>> {
    let run_ref = scope.used(&app).await;
    let run = app.provider.extend(&run_ref, requests::extension(body.duration)?).await?;
    Ok(Json(wire::SessionReply { session: present::session(run), routes: Vec::new() }))
}
