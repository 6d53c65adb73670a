//! `GET /api/sandbox/status`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Lifecycle, SessionQuery, required};
use crate::App;
use crate::auth::Account;
use crate::body::ApiQuery;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusResponse {
    /// `active` or `no_sandbox`.
    status: String,
    /// A sleeping sandbox can be resumed.
    has_snapshot: bool,
    /// Grows with every change of the session.
    lifecycle_version: i64,
    lifecycle: Lifecycle,
}

/// Where the session's sandbox stands; asks the database only.
#[utoipa::path(get, path = "/api/sandbox/status", tag = "sandbox", params(SessionQuery),
    responses((status = 200, description = "Where it stands", body = StatusResponse), ApiErrors))]
pub(crate) async fn status(
    State(app): State<App>,
    Account(account): Account,
    ApiQuery(query): ApiQuery<SessionQuery>,
) -> ApiResult<Json<StatusResponse>> {
    let status = app.sessions.status(&account, &required(query.session_id)?).await?;
    Ok(Json(StatusResponse {
        status: if status.active { "active" } else { "no_sandbox" }.to_owned(),
        has_snapshot: status.has_snapshot,
        lifecycle_version: status.row.lifecycle_version,
        lifecycle: (&status).into(),
    }))
}
