//! `/api/sandbox` and its siblings (seed; session contract, sections 2 and 4).

pub(crate) mod activity;
pub(crate) mod create;
pub(crate) mod events;
pub(crate) mod extend;
pub(crate) mod network;
pub(crate) mod pause;
pub(crate) mod reconnect;
pub(crate) mod resume;
pub(crate) mod status;
pub(crate) mod stop;

use dormouse_sessions::Status;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::session_id;
use crate::error::{ApiError, ApiResult};

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionQuery {
    /// Session id.
    #[param(required)]
    session_id: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionRequest {
    /// Session id.
    #[schema(required, value_type = String)]
    session_id: Option<String>,
}

fn required(id: Option<String>) -> ApiResult<dormouse_types::SessionId> {
    let id =
        id.filter(|id| !id.is_empty()).ok_or_else(|| ApiError::about("sessionId", "Missing sessionId"))?;
    session_id(&id)
}

/// Lifecycle as clients poll it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lifecycle {
    /// Epoch milliseconds on the server.
    server_time: i64,
    /// Lifecycle state.
    state: String,
    /// Epoch milliseconds of the last use.
    last_activity_at: Option<i64>,
    /// Epoch milliseconds when it will be put to sleep.
    hibernate_after: Option<i64>,
    /// Epoch milliseconds when its lifetime ends.
    sandbox_expires_at: Option<i64>,
}

impl From<&Status> for Lifecycle {
    fn from(status: &Status) -> Self {
        Self {
            server_time: status.now.as_millis(),
            state: status.row.lifecycle_state.to_string(),
            last_activity_at: status.row.last_activity_at.map(|t| t.as_millis()),
            hibernate_after: status.row.sleeps_at().map(|t| t.as_millis()),
            sandbox_expires_at: status.row.sandbox_expires_at.map(|t| t.as_millis()),
        }
    }
}
