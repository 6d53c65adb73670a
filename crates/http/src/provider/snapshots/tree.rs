//! The line of descent of a snapshot.

use axum::Json;
use axum::extract::{Query, State};
use dormouse_wire as wire;
use utoipa::IntoParams;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::pages::order;
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use super::locate;
use crate::App;

#[derive(serde::Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct TreeQuery {
    /// The snapshot that is asked about.
    #[param(required)]
    snapshot_id: Option<String>,
    /// 1 to 100; by default 10.
    limit: Option<u32>,
    /// `desc`: what it was made on top of; `asc`: what was made on top of it.
    sort_order: Option<String>,
}

/// Get what a snapshot was made on top of, or what was made on top of it.
#[utoipa::path(get, path = "/snapshots/tree", tag = "snapshots", params(ScopeQuery, TreeQuery),
    responses((status = 200, body = wire::SnapshotTree, description = "Part of the line"), WireErrors))]
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
