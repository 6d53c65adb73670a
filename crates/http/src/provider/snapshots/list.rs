//! List snapshots.

use axum::Json;
use axum::extract::{Query, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::pages::ListQuery;
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;

/// List the snapshots of a project or of one sandbox, deleted ones included.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots", params(ScopeQuery, ListQuery),
    responses((status = 200, body = wire::SnapshotList, description = "A page of them"), WireErrors))]
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
