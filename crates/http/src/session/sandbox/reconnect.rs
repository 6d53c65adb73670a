//! `GET /api/sandbox/reconnect`.

use axum::Json;
use axum::extract::State;
use dormouse_sessions::Probe;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Lifecycle, SessionQuery, required};
use crate::App;
use crate::auth::Account;
use crate::body::ApiQuery;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReconnectResponse {
    /// `connected`, `expired` or `no_sandbox`.
    status: String,
    /// A sleeping sandbox can be resumed.
    has_snapshot: bool,
    /// Epoch milliseconds when its lifetime ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64, required = false)]
    expires_at: Option<i64>,
    lifecycle: Lifecycle,
}

/// Asks the sandbox itself whether it is there; never wakes it.
#[utoipa::path(get, path = "/api/sandbox/reconnect", tag = "sandbox", params(SessionQuery),
    responses((status = 200, description = "What the sandbox answered", body = ReconnectResponse), ApiErrors))]
pub(crate) async fn reconnect(
    State(app): State<App>,
    Account(account): Account,
    ApiQuery(query): ApiQuery<SessionQuery>,
) -> ApiResult<Json<ReconnectResponse>> {
    let (probe, status) = app.sessions.probe(&account, &required(query.session_id)?).await?;
    let (word, expires_at) = match probe {
        Probe::Connected(end) => ("connected", end.map(|t| t.as_millis())),
        Probe::Expired => ("expired", None),
        Probe::NoSandbox => ("no_sandbox", None),
    };
    Ok(Json(ReconnectResponse {
        status: word.to_owned(),
        has_snapshot: status.has_snapshot,
        expires_at,
        lifecycle: (&status).into(),
    }))
}
