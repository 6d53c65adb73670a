//! `GET /api/sessions`.

use axum::Json;
use axum::extract::State;
use dormouse_store::SessionFilter;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Session;
use crate::App;
use crate::auth::Account;
use crate::body::ApiQuery;
use crate::error::{ApiError, ApiErrors, ApiResult};

/// Longest page.
const MAX_PAGE: i64 = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// `all`, `active` or `archived`.
    status: Option<String>,
    /// 1 to 100.
    limit: Option<String>,
    /// How many to pass over.
    offset: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionListReply {
    sessions: Vec<Session>,
    archived_count: i64,
    pagination: Pagination,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pagination {
    limit: i64,
    offset: i64,
    has_more: bool,
    next_offset: Option<i64>,
}

/// List your sessions, newest first.
#[utoipa::path(get, path = "/api/sessions", tag = "sessions", params(ListQuery),
    responses((status = 200, description = "A page of them", body = SessionListReply), ApiErrors))]
pub(crate) async fn list(
    State(app): State<App>,
    Account(account): Account,
    ApiQuery(query): ApiQuery<ListQuery>,
) -> ApiResult<Json<SessionListReply>> {
    let filter = match query.status.as_deref() {
        None | Some("all") => SessionFilter::All,
        Some("active") => SessionFilter::Active,
        Some("archived") => SessionFilter::Archived,
        Some(_) => return Err(ApiError::bad_request("status must be all, active or archived")),
    };
    let limit = number(query.limit.as_deref(), 50).filter(|n| (1..=MAX_PAGE).contains(n));
    let limit =
        limit.ok_or_else(|| ApiError::bad_request(format!("limit must be a number from 1 to {MAX_PAGE}")))?;
    let offset = number(query.offset.as_deref(), 0).filter(|n| (0..1_000_000_000).contains(n));
    let offset = offset.ok_or_else(|| ApiError::bad_request("offset must be a number from 0"))?;
    let (mut rows, archived_count) = app.sessions.list(&account, filter, limit + 1, offset).await?;
    let has_more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(Json(SessionListReply {
        sessions: rows.into_iter().map(Into::into).collect(),
        archived_count,
        pagination: Pagination { limit, offset, has_more, next_offset: has_more.then_some(offset + limit) },
    }))
}

fn number(text: Option<&str>, default: i64) -> Option<i64> {
    text.map_or(Some(default), |text| text.parse().ok())
}
