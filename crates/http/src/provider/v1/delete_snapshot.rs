//! Delete a snapshot.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::scope::Scope;
use super::super::snapshots;
use crate::App;

pub(super) async fn delete_snapshot(
    app: State<App>,
    scope: Scope,
    id: Path<String>,
) -> WireResult<Json<wire::v1::SnapshotReply>> {
    let Json(reply) = snapshots::delete::delete(app, scope, id).await?;
    Ok(Json(wire::v1::SnapshotReply { snapshot: reply.snapshot.into() }))
}
