//! Get a sandbox, or wake it.

use axum::Json;
use axum::extract::{Path, Query, State};
use dormouse_wire as wire;
use utoipa::IntoParams;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use super::key;
use crate::App;

#[derive(serde::Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct GetQuery {
    /// Wake it, if it sleeps.
    #[serde(default)]
    resume: bool,
}

/// Get a sandbox; with `resume`, one that runs.
#[utoipa::path(get, path = "/{name}", tag = "sandboxes", params(("name" = String, Path, description = "Sandbox name"), ScopeQuery, GetQuery),
    responses((status = 200, body = wire::SandboxReply, description = "The sandbox and its newest session"), WireErrors))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<GetQuery>,
) -> WireResult<Json<wire::SandboxReply>> {
    let key = key(&scope, &name)?;
    if !query.resume {
        return Ok(Json(present::found(app.provider.get(&key).await?, &app.ports, true)));
    }
    Ok(Json(present::found(app.sessions.wake_outside(&key).await?, &app.ports, true)))
}
