//! Change a sandbox.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::scope::{Scope, ScopeQuery};
use super::super::{present, requests};
use super::key;
use crate::App;
use crate::body::ApiJson;

/// Change a sandbox; limits apply from its next session on.
#[utoipa::path(patch, path = "/{name}", tag = "sandboxes", request_body = wire::UpdateRequest, params(("name" = String, Path, description = "Sandbox name"), ScopeQuery),
    responses((status = 200, body = wire::ChangeReply, description = "The sandbox as it is now"), WireErrors))]
pub(crate) async fn update(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    ApiJson(body): ApiJson<wire::UpdateRequest>,
) -> WireResult<Json<wire::ChangeReply>> {
    let key = key(&scope, &name)?;
    if let Some(runtime) = &body.runtime {
        let now = app.provider.get(&key).await?.sandbox.runtime;
        if now.as_ref() != Some(runtime) {
            return Err(WireError::bad_request("runtime: it cannot change; create another sandbox"));
        }
    }
    let ports = body.ports.is_some();
    let changed = app.provider.update(&key, requests::changes(body)?).await?;
    let routes = ports.then(|| present::routes(changed.routes, &app.ports));
    Ok(Json(wire::ChangeReply { sandbox: present::sandbox(changed.sandbox), routes }))
}
