//! Delete a snapshot.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use super::locate;
use crate::App;

/// Delete a snapshot; sandboxes that would start from it next do not start any more.
#[utoipa::path(delete, path = "/snapshots/{id}", tag = "snapshots", params(("id" = String, Path, description = "Snapshot id"), ScopeQuery),
    responses((status = 200, body = wire::SnapshotReply, description = "The snapshot as it is now"), WireErrors))]
pub(crate) async fn delete(
    State(app): State<App>,
    scope: Scope,
    Path(text): Path<String>,
) -> WireResult<Json<wire::SnapshotReply>> {
    let (namespace, id) = locate(&app, &scope, &text).await?;
    let orphans = app.provider.starting_from(&namespace, &id).await?;
    let snapshot = app.provider.delete_snapshot(&namespace, &id).await?;
    if let Err(error) = app.sessions.note_gone_snapshot(&id).await {
        // Sessions find out when they are wanted.
        tracing::warn!(snapshot = %id, ?error, "note that it is gone");
    }
    let warnings = orphans
        .into_iter()
        .map(|name| {
            format!(
                "{name} has no files any more and does not start; PATCH it with a currentSnapshotId, null for \
                 its image, or use `dormouse sandbox rollback {name} --image`"
            )
        })
        .collect();
    Ok(Json(wire::SnapshotReply { snapshot: present::snapshot(snapshot), warnings }))
}
