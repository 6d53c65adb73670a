//! List drives.

use axum::Json;
use axum::extract::{Query, State};
use dormouse_provider::{DriveSort, ListDrives};
use dormouse_wire as wire;
use utoipa::IntoParams;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::pages::{order, page};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;

/// Which drives.
#[derive(serde::Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct DriveQuery {
    /// 1 to 100; by default 20.
    limit: Option<u32>,
    /// Where the page before ended.
    cursor: Option<String>,
    /// `createdAt`, `updatedAt` or `name`.
    sort_by: Option<String>,
    /// `asc` or `desc`, which is the default.
    sort_order: Option<String>,
    /// Only names that begin so; needs `sortBy=name`.
    name_prefix: Option<String>,
}

/// List the drives of a project.
#[utoipa::path(get, path = "/drives", tag = "drives", params(ScopeQuery, DriveQuery),
    responses((status = 200, body = wire::DriveList, description = "A page of them"), WireErrors))]
pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<DriveQuery>,
) -> WireResult<Json<wire::DriveList>> {
    let sort = match query.sort_by.as_deref() {
        None | Some("createdAt") => DriveSort::CreatedAt,
        Some("updatedAt") => DriveSort::UpdatedAt,
        Some("name") => DriveSort::Name,
        Some(_) => return Err(WireError::bad_request("sortBy must be createdAt, updatedAt or name")),
    };
    let name_prefix = query.name_prefix.filter(|prefix| !prefix.is_empty());
    if name_prefix.is_some() && sort != DriveSort::Name {
        return Err(WireError::bad_request("namePrefix needs sortBy=name"));
    }
    let list = ListDrives {
        page: page(query.limit, query.cursor)?,
        sort,
        order: order(query.sort_order.as_deref())?,
        name_prefix,
    };
    let (drives, next) = app.provider.drives(&scope.namespace, list).await?;
    let drives: Vec<_> = drives.into_iter().map(present::listed_drive).collect();
    let pagination = wire::Pagination { count: drives.len(), next };
    Ok(Json(wire::DriveList { drives, pagination }))
}
