//! The session API: `/api/sandbox…`, `/api/sessions…`, `/api/org-snapshots…`,
//! `/api/keys`,
//! `/api/organizations/…/secrets`. One file holds one operation.

mod keys;
mod org_snapshots;
mod sandbox;
mod secrets;
mod sessions;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use dormouse_types::SessionId;

use crate::App;
use crate::error::{ApiError, ApiResult};

/// All routes with their documentation.
pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sandbox::create::create, sandbox::stop::stop))
        .routes(routes!(sandbox::status::status))
        .routes(routes!(sandbox::reconnect::reconnect))
        .routes(routes!(sandbox::events::events))
        .routes(routes!(sandbox::network::network))
        .routes(routes!(sandbox::activity::activity))
        .routes(routes!(sandbox::extend::extend))
        .routes(routes!(sandbox::pause::pause, sandbox::resume::resume))
        .routes(routes!(sessions::list::list, sessions::create::create))
        .routes(routes!(sessions::get::get, sessions::patch::patch, sessions::delete::delete))
        .routes(routes!(org_snapshots::list::list, org_snapshots::build::build))
        .routes(routes!(org_snapshots::builds::builds))
        .routes(routes!(org_snapshots::delete::delete))
        .routes(routes!(secrets::list::list))
        .routes(routes!(secrets::set::set, secrets::delete::delete))
        .routes(routes!(keys::list::list, keys::create::create, keys::delete::delete))
}

/// A session id, or 404: what cannot be an id names no session.
fn session_id(text: &str) -> ApiResult<SessionId> {
    text.parse().map_err(|_| ApiError::new(axum::http::StatusCode::NOT_FOUND, "Session not found"))
}
