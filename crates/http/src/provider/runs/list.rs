//! List sessions.

use axum::Json;
use axum::extract::{Query, State};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::pages::ListQuery;
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;

/// List the sessions of a project, or of one sandbox.
#[utoipa::path(get, path = "/sessions", tag = "sessions", params(ScopeQuery, ListQuery),
    responses((status = 200, body = wire::SessionList, description = "A page of them"), WireErrors))]
pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::SessionList>> {
    let (runs, next) = app.provider.runs(&scope.namespace, query.list()?).await?;
    let sessions: Vec<_> = runs.into_iter().map(present::session).collect();
    let pagination = wire::Pagination { count: sessions.len(), next };
    Ok(Json(wire::SessionList { sessions, pagination }))
}
