//! Snapshots.

use axum::Json;
use axum::extract::{Path, Query, State};
use dormouse_provider::SnapshotRequest;
use dormouse_types::SnapshotId;
use dormouse_wire as wire;

use super::error::{WireError, WireResult};
use super::sandboxes::{ListQuery, order};
use super::{RunScope, Scope, present, requests};
use crate::App;
use crate::body::ApiJson;

pub(crate) async fn create(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::SnapshotRequest>,
) -> WireResult<Json<wire::MadeSnapshotReply>> {
    let request = SnapshotRequest { expiration: body.expiration.map(requests::expiration), live: body.live };
    let made = app.provider.snapshot(&scope.run, request).await?;
    Ok(Json(wire::MadeSnapshotReply {
        snapshot: present::snapshot(made.snapshot),
        session: present::session(made.run),
        stall_micros: made.stall.map(|stall| u64::try_from(stall.as_micros()).unwrap_or(u64::MAX)),
    }))
}

pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::SnapshotList>> {
    let (snapshots, next) = app.provider.snapshots(&scope.namespace, query.list()?).await?;
    let snapshots: Vec<_> = snapshots.into_iter().map(present::snapshot).collect();
    let pagination = wire::Pagination { count: snapshots.len(), next };
    Ok(Json(wire::SnapshotList { snapshots, pagination }))
}

fn id(text: &str) -> WireResult<SnapshotId> {
    text.parse().map_err(|_| WireError::not_found(format!("snapshot {text} not found")))
}

/// The namespace of a snapshot of the caller's. The paths of one snapshot carry
/// no project, so the owner decides.
async fn locate(
    app: &App,
    scope: &Scope,
    text: &str,
) -> WireResult<(dormouse_provider::Namespace, SnapshotId)> {
    let id = id(text)?;
    let row = app.db.snapshot(&id).await.map_err(crate::error::ApiError::from)?;
    match row.filter(|row| row.namespace.owner == scope.owner) {
        Some(row) => Ok((row.namespace, id)),
        None => Err(WireError::not_found(format!("snapshot {id} not found"))),
    }
}

pub(crate) async fn get(
    State(app): State<App>,
    scope: Scope,
    Path(text): Path<String>,
) -> WireResult<Json<wire::SnapshotReply>> {
    let (namespace, id) = locate(&app, &scope, &text).await?;
    let snapshot = app.provider.get_snapshot(&namespace, &id).await?;
    Ok(Json(wire::SnapshotReply { snapshot: present::snapshot(snapshot) }))
}

pub(crate) async fn delete(
    State(app): State<App>,
    scope: Scope,
    Path(text): Path<String>,
) -> WireResult<Json<wire::SnapshotReply>> {
    let (namespace, id) = locate(&app, &scope, &text).await?;
    let snapshot = app.provider.delete_snapshot(&namespace, &id).await?;
    Ok(Json(wire::SnapshotReply { snapshot: present::snapshot(snapshot) }))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TreeQuery {
    snapshot_id: Option<String>,
    limit: Option<u32>,
    sort_order: Option<String>,
}

pub(crate) async fn tree(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<TreeQuery>,
) -> WireResult<Json<wire::SnapshotTree>> {
    let text = query.snapshot_id.ok_or_else(|| WireError::bad_request("snapshotId is missing"))?;
    let limit = query.limit.unwrap_or(10);
    if !(1..=100).contains(&limit) {
        return Err(WireError::bad_request("limit must be from 1 to 100"));
    }
    let (namespace, id) = locate(&app, &scope, &text).await?;
    let order = order(query.sort_order.as_deref())?;
    let tree = app.provider.snapshot_tree(&namespace, &id, order, limit).await?;
    let snapshots: Vec<_> = tree.nodes.into_iter().map(present::node).collect();
    let pagination = wire::Pagination { count: snapshots.len(), next: tree.next };
    Ok(Json(wire::SnapshotTree { snapshots, anchor: Some(present::node(tree.anchor)), pagination }))
}
