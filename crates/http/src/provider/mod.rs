//! The provider API, as far as the command line needs it: sandboxes, sessions
//! (our runs), commands, files. Facts: provider contract.

mod commands;
mod error;
mod files;
mod present;
mod sandboxes;

use axum::Router;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::routing::{get, post};
use dormouse_provider::{Namespace, RunRef};
use dormouse_types::RunId;

use crate::App;
use crate::auth::Caller;
use error::WireError;

/// Largest archive that a write takes, in bytes.
const MAX_ARCHIVE: usize = 4 << 30;

pub(crate) fn router() -> Router<App> {
    let base = "/api/v2/sandboxes";
    let path = |rest: &str| format!("{base}{rest}");
    let unlimited = axum::extract::DefaultBodyLimit::max(MAX_ARCHIVE);
    Router::new()
        .route(base, get(sandboxes::list))
        .route(&path("/sessions"), get(sandboxes::list_sessions))
        .route(&path("/sessions/{id}"), get(sandboxes::session))
        .route(&path("/sessions/{id}/stop"), post(sandboxes::stop))
        .route(&path("/sessions/{id}/extend-timeout"), post(sandboxes::extend))
        .route(&path("/sessions/{id}/cmd"), post(commands::start).get(commands::list))
        .route(&path("/sessions/{id}/cmd/{command}"), get(commands::get))
        .route(&path("/sessions/{id}/cmd/{command}/logs"), get(commands::logs))
        .route(&path("/sessions/{id}/cmd/{command}/kill"), post(commands::kill))
        .route(&path("/sessions/{id}/cmd/{command}/stdin"), post(commands::stdin).layer(unlimited))
        .route(&path("/sessions/{id}/fs/mkdir"), post(files::mkdir))
        .route(&path("/sessions/{id}/fs/read"), post(files::read))
        .route(&path("/sessions/{id}/fs/write"), post(files::write).layer(unlimited))
        .route(&path("/{name}"), get(sandboxes::get).delete(sandboxes::delete))
}

/// The caller and the namespace that the query names.
pub(crate) struct Scope(pub(crate) Namespace);

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeQuery {
    team_id: Option<String>,
    slug: Option<String>,
    project_id: Option<String>,
    project: Option<String>,
}

impl FromRequestParts<App> for Scope {
    type Rejection = WireError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, WireError> {
        let Caller(account) = Caller::from_request_parts(parts, app).await?;
        let query = axum::extract::Query::<ScopeQuery>::from_request_parts(parts, app).await;
        let axum::extract::Query(query) = query
            .map_err(|rejection| WireError::bad_request(format!("wrong query: {}", rejection.body_text())))?;
        let own = |id: &String| id == account.as_str();
        if query.team_id.as_ref().or(query.slug.as_ref()).is_some_and(|id| !own(id)) {
            return Err(WireError::forbidden("teamId is not your account"));
        }
        let project = query.project_id.or(query.project).unwrap_or_else(|| "default".to_owned());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if project.is_empty() || project.len() > 100 || !project.bytes().all(plain) {
            return Err(WireError::bad_request("projectId must have 1 to 100 letters, digits, - and _"));
        }
        Ok(Self(Namespace(format!("{account}/{project}"))))
    }
}

/// The run that a path names. Runs are looked up in the caller's account,
/// whatever the project, since these paths carry none.
pub(crate) struct RunScope {
    pub(crate) run: RunRef,
}

impl FromRequestParts<App> for RunScope {
    type Rejection = WireError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, WireError> {
        let Caller(account) = Caller::from_request_parts(parts, app).await?;
        let params = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app).await;
        let id = params.ok().and_then(|Path(params)| params.get("id").cloned()).unwrap_or_default();
        let missing = || WireError::not_found(format!("session {id} not found"));
        let id: RunId = id.parse().map_err(|_| missing())?;
        let row = app.db.run(&id).await.map_err(crate::error::ApiError::from)?;
        let row = row
            .filter(|row| row.namespace.split_once('/').is_some_and(|(owner, _)| owner == account.as_str()));
        let row = row.ok_or_else(missing)?;
        // What is done in a session's sandbox is use of that session.
        if let Some(session) = row.sandbox_name.session()
            && parts.method != axum::http::Method::GET
            && !parts.uri.path().ends_with("/stop")
            && let Err(error) = app.sessions.touch(&session).await
        {
            tracing::warn!(%session, ?error, "note activity");
        }
        Ok(Self { run: RunRef { namespace: Namespace(row.namespace), id } })
    }
}
