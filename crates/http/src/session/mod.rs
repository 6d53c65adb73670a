//! The session API: `/api/sandbox…`, `/api/sessions…`, `/api/keys`.

mod keys;
mod sandbox;
mod sessions;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use dormouse_types::SessionId;

use crate::App;
use crate::error::{ApiError, ApiResult};

/// All routes with their documentation.
pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sandbox::create, sandbox::stop))
        .routes(routes!(sandbox::status))
        .routes(routes!(sandbox::reconnect))
        .routes(routes!(sandbox::activity))
        .routes(routes!(sandbox::extend))
        .routes(routes!(sandbox::pause, sandbox::resume))
        .routes(routes!(sessions::list, sessions::create))
        .routes(routes!(sessions::get, sessions::patch, sessions::delete))
        .routes(routes!(keys::list, keys::create, keys::delete))
}

/// A session id, or 404: what cannot be an id names no session.
fn session_id(text: &str) -> ApiResult<SessionId> {
    text.parse().map_err(|_| ApiError::new(axum::http::StatusCode::NOT_FOUND, "Session not found"))
}
