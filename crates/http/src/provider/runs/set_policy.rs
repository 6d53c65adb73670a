//! Change what may leave a session, and the later ones of its sandbox.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::super::{present, requests};
use crate::App;
use crate::body::ApiJson;

/// Change what may leave a session, and the later ones of its sandbox.
#[utoipa::path(post, path = "/sessions/{id}/network-policy", tag = "sessions", request_body = wire::NetworkPolicyRequest, params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::SessionReply, description = "The session as it is now"), WireErrors))]
pub(crate) async fn set_policy(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::NetworkPolicyRequest>,
) -> WireResult<Json<wire::SessionReply>> {
    let run_ref = scope.used(&app).await;
    let run = app.provider.set_network_policy(&run_ref, requests::policy(body)?).await?;
    Ok(Json(wire::SessionReply { session: present::session(run), routes: Vec::new() }))
}
