//! Delete a sandbox.

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
pub(crate) struct DeleteQuery {
    /// Delete its manual snapshots too.
    #[serde(default)]
    delete_orphan_snapshots: bool,
}

/// Delete a sandbox, whatever its state.
#[utoipa::path(delete, path = "/{name}", tag = "sandboxes", params(("name" = String, Path, description = "Sandbox name"), ScopeQuery, DeleteQuery),
    responses((status = 200, body = wire::ChangeReply, description = "The sandbox as it was"), WireErrors))]
pub(crate) async fn delete(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> WireResult<Json<wire::ChangeReply>> {
    let key = key(&scope, &name)?;
    let sandbox = app.provider.delete(&key, query.delete_orphan_snapshots).await?;
    if let Err(error) = app.sessions.note_gone(&key).await {
        // The session finds out when it is wanted.
        tracing::warn!(sandbox = %key.name, ?error, "note that it is gone");
    }
    Ok(Json(wire::ChangeReply { sandbox: present::sandbox(sandbox), routes: None }))
}
