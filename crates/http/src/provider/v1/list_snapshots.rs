//! List snapshots.

use axum::Json;
use axum::extract::{Query, State};
use dormouse_types::SnapshotId;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::present;
use super::super::scope::Scope;
use super::{ListQuery, cut, list_of, place};
use crate::App;

pub(super) async fn list_snapshots(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::v1::SnapshotList>> {
    let cursor = place::<SnapshotId>("snap_", query.until)?.map(String::from);
    let (found, next) = app.provider.snapshots(&scope.namespace, list_of(&query, cursor)?).await?;
    let (found, pagination) = cut(found, next.is_some(), query.since, |snapshot| snapshot.created_at);
    let snapshots = found.into_iter().map(|snapshot| present::snapshot(snapshot).into()).collect();
    Ok(Json(wire::v1::SnapshotList { snapshots, pagination }))
}
