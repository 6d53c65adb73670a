//! Get a snapshot.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use super::locate;
use crate::App;

/// Get a snapshot, deleted or not.
#[utoipa::path(get, path = "/snapshots/{id}", tag = "snapshots", params(("id" = String, Path, description = "Snapshot id"), ScopeQuery),
    responses((status = 200, body = wire::SnapshotReply, description = "The snapshot"), WireErrors))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: Scope,
    Path(text): Path<String>,
) -> WireResult<Json<wire::SnapshotReply>> {
    let (namespace, id) = locate(&app, &scope, &text).await?;
    let snapshot = app.provider.get_snapshot(&namespace, &id).await?;
    Ok(Json(wire::SnapshotReply { snapshot: present::snapshot(snapshot), warnings: Vec::new() }))
}
