//! List sandboxes.

use axum::Json;
use axum::extract::{Query, State};
use dormouse_types::RunId;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::present;
use super::super::scope::Scope;
use super::{ListQuery, cut, list_of, place};
use crate::App;

pub(super) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::v1::SandboxList>> {
    let cursor = place::<RunId>("sbx_", query.until)?.map(String::from);
    let (runs, next) = app.provider.runs(&scope.namespace, list_of(&query, cursor)?).await?;
    let (runs, pagination) = cut(runs, next.is_some(), query.since, |run| run.requested_at);
    let sandboxes = runs.into_iter().map(present::session).collect();
    Ok(Json(wire::v1::SandboxList { sandboxes, pagination }))
}
