//! `GET /api/sandbox/network`.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::{SessionQuery, required};
use crate::App;
use crate::auth::Account;
use crate::body::ApiQuery;
use crate::error::{ApiErrors, ApiResult};
use crate::provider::present;

/// What the session's sandbox did on the network since it woke, with the rule that
/// denied what was denied; zeros while it sleeps.
#[utoipa::path(get, path = "/api/sandbox/network", tag = "sandbox", params(SessionQuery),
    responses((status = 200, description = "Sums, and the last accesses", body = wire::NetworkUse), ApiErrors))]
pub(crate) async fn network(
    State(app): State<App>,
    Account(account): Account,
    ApiQuery(query): ApiQuery<SessionQuery>,
) -> ApiResult<Json<wire::NetworkUse>> {
    let found = app.sessions.network_use(&account, &required(query.session_id)?).await?;
    Ok(Json(found.map(present::network_use).unwrap_or_default()))
}
