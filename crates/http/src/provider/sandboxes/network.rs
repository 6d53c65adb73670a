//! What a sandbox does on the network.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use super::key;
use crate::App;

/// What the sandbox's live session did on the network, with the rule that denied what
/// was denied; zeros where nothing runs. An extension of this server.
#[utoipa::path(get, path = "/{name}/network", tag = "sandboxes", params(("name" = String, Path, description = "Sandbox name"), ScopeQuery),
    responses((status = 200, body = wire::NetworkUse, description = "Sums, and the last accesses"), WireErrors))]
pub(crate) async fn network(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> WireResult<Json<wire::NetworkUse>> {
    let key = key(&scope, &name)?;
    let found = app.provider.network_use(&key).await?;
    Ok(Json(found.map(present::network_use).unwrap_or_default()))
}
