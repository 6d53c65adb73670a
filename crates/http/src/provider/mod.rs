//! The provider API: the Vercel Sandbox protocol over the provider port. Facts:
//! provider contract. Sessions of the wire are our runs.
//!
//! `/api/v2` and `/api/v3` are the same but for one thing: a git source goes into
//! the working directory itself in 2, into a directory of its own in 3. What
//! `/api/v1` calls a sandbox is what the others call a session (`first`).

mod commands;
mod error;
mod files;
mod first;
mod platform;
mod present;
mod requests;
mod sandboxes;
mod snapshots;
mod terminal;

use axum::Router;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::routing::{any, get, post};
use dormouse_provider::{CloneDirectory, Namespace, RunRef};
use dormouse_types::{DEFAULT_PROJECT, RunId};

use crate::App;
use crate::auth::{Identity, authenticate};
use error::WireError;

/// Largest archive that a write takes, in bytes.
const MAX_ARCHIVE: usize = 4 << 30;

pub(crate) fn router() -> Router<App> {
    let unlimited = axum::extract::DefaultBodyLimit::max(MAX_ARCHIVE);
    let mut router = platform::router().merge(terminal::router()).merge(first::router());
    for (version, clones) in [("v2", CloneDirectory::Workdir), ("v3", CloneDirectory::Named)] {
        let base = format!("/api/{version}/sandboxes");
        let path = |rest: &str| format!("{base}{rest}");
        let create = post(move |app, scope, body| sandboxes::create(clones, app, scope, body));
        router = router
            .route(&base, get(sandboxes::list).merge(create))
            .route(&path("/sessions"), get(sandboxes::list_sessions))
            .route(&path("/sessions/{id}"), get(sandboxes::session))
            .route(&path("/sessions/{id}/stop"), post(sandboxes::stop))
            .route(&path("/sessions/{id}/extend-timeout"), post(sandboxes::extend))
            .route(&path("/sessions/{id}/network-policy"), post(sandboxes::set_policy))
            .route(&path("/sessions/{id}/snapshot"), post(snapshots::create))
            .route(&path("/sessions/{id}/interactive"), post(terminal::invite))
            .route(&path("/sessions/{id}/cmd"), post(commands::start).get(commands::list))
            .route(&path("/sessions/{id}/cmd/{command}"), get(commands::get))
            .route(&path("/sessions/{id}/cmd/{command}/logs"), get(commands::logs))
            .route(&path("/sessions/{id}/cmd/{command}/kill"), post(commands::kill))
            .route(&path("/sessions/{id}/cmd/{command}/stdin"), post(commands::stdin).layer(unlimited))
            .route(&path("/sessions/{id}/fs/mkdir"), post(files::mkdir))
            .route(&path("/sessions/{id}/fs/read"), post(files::read))
            .route(&path("/sessions/{id}/fs/write"), post(files::write).layer(unlimited))
            .route(&path("/snapshots"), get(snapshots::list))
            .route(&path("/snapshots/tree"), get(snapshots::tree))
            .route(&path("/snapshots/{id}"), get(snapshots::get).delete(snapshots::delete))
            .route(&path("/drives"), any(drives))
            .route(&path("/drives/{name}"), any(drives))
            .route(&path("/{name}"), get(sandboxes::get).patch(sandboxes::update).delete(sandboxes::delete))
            .route(&path("/{name}/fork"), post(sandboxes::fork));
    }
    router
}

/// The provider API of a server whose sandboxes run at `place`. Not 404: that
/// would say that a sandbox is gone.
pub(crate) fn elsewhere(place: String) -> Router<App> {
    let refuse = move |_: Scope| {
        let message = format!("this server has no sandboxes of its own: they run at {place}");
        std::future::ready(WireError::bad_request(message))
    };
    let first = ["/api/v1/sandboxes", "/api/v1/sandboxes/{*rest}"];
    ["/api/v2/sandboxes", "/api/v2/sandboxes/{*rest}", "/api/v3/sandboxes", "/api/v3/sandboxes/{*rest}"]
        .into_iter()
        .chain(first)
        .fold(Router::new(), |router, path| router.route(path, any(refuse.clone())))
}

/// Drives do not exist here. A 5xx would be tried again.
async fn drives(_scope: Scope) -> WireError {
    WireError::bad_request("drives are not supported by this server")
}

/// The caller, and the namespace that the query names.
pub(crate) struct Scope {
    /// Account or organization.
    pub(crate) owner: String,
    pub(crate) namespace: Namespace,
}

impl Scope {
    /// The scope with the project that a body names, which the query did not.
    pub(crate) fn with_project(self, project: Option<String>) -> Result<Self, WireError> {
        match project {
            None => Ok(self),
            Some(project) => {
                let namespace = namespace(&self.owner, Some(project))?;
                Ok(Self { namespace, ..self })
            }
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeQuery {
    team_id: Option<String>,
    slug: Option<String>,
    project_id: Option<String>,
    project: Option<String>,
}

fn namespace(owner: &str, project: Option<String>) -> Result<Namespace, WireError> {
    let project = project.filter(|project| !project.is_empty()).unwrap_or_else(|| DEFAULT_PROJECT.to_owned());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    if project.len() > 100 || !project.bytes().all(plain) {
        return Err(WireError::bad_request("projectId must have 1 to 100 letters, digits, -, _ and ."));
    }
    Ok(Namespace::new(owner, project))
}

/// The account or organization that `team` names, if the caller may speak for
/// it; without a name, their own account.
pub(crate) async fn owner(app: &App, identity: &Identity, team: Option<&str>) -> Result<String, WireError> {
    let account = identity.account.as_str();
    let own = |team: &str| {
        team == account || identity.platform.as_ref().is_some_and(|platform| platform.owner_id == team)
    };
    match team.filter(|team| !team.is_empty()) {
        Some(team) if !own(team) => {
            let org = app.db.org_of_member(&identity.account, team).await;
            let org = org.map_err(crate::error::ApiError::from)?;
            org.map(|org| org.id.to_string()).ok_or_else(|| {
                WireError::forbidden("teamId is neither your account nor an organization that you belong to")
            })
        }
        _ => Ok(account.to_owned()),
    }
}

async fn scope_query(parts: &mut Parts, app: &App) -> Result<(Identity, String, ScopeQuery), WireError> {
    let identity = authenticate(&parts.headers, app).await?;
    let query = axum::extract::Query::<ScopeQuery>::from_request_parts(parts, app).await;
    let axum::extract::Query(query) = query
        .map_err(|rejection| WireError::bad_request(format!("wrong query: {}", rejection.body_text())))?;
    let team = query.team_id.as_deref().or(query.slug.as_deref());
    let owner = owner(app, &identity, team).await?;
    Ok((identity, owner, query))
}

impl FromRequestParts<App> for Scope {
    type Rejection = WireError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, WireError> {
        let (identity, owner, query) = scope_query(parts, app).await?;
        let of_token = identity.platform.as_ref().and_then(|platform| platform.project_id.clone());
        let namespace = namespace(&owner, query.project_id.or(query.project).or(of_token))?;
        Ok(Self { owner, namespace })
    }
}

/// The run that a path names. Runs are looked up with the owner, whatever the
/// project, since these paths carry none.
pub(crate) struct RunScope {
    pub(crate) run: RunRef,
}

impl FromRequestParts<App> for RunScope {
    type Rejection = WireError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, WireError> {
        let (_, owner, _) = scope_query(parts, app).await?;
        let params = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app).await;
        let id = params.ok().and_then(|Path(params)| params.get("id").cloned()).unwrap_or_default();
        let missing = || WireError::not_found(format!("session {id} not found"));
        let id: RunId = id.parse().map_err(|_| missing())?;
        let row = app.db.run(&id).await.map_err(crate::error::ApiError::from)?;
        let row = row.filter(|row| row.namespace.owner == owner).ok_or_else(missing)?;
        let namespace = row.namespace;
        // What is done in a session's sandbox is use of that session.
        if parts.method != axum::http::Method::GET && !parts.uri.path().ends_with("/stop") {
            note_use(app, &namespace, &row.sandbox_name).await;
        }
        Ok(Self { run: RunRef { namespace, id } })
    }
}

/// Tells the session of a sandbox that it is used; a failure is only logged.
pub(crate) async fn note_use(app: &App, namespace: &Namespace, sandbox: &dormouse_types::SandboxName) {
    if let Err(error) = app.sessions.note_use(namespace, sandbox).await {
        tracing::warn!(%sandbox, ?error, "note activity");
    }
}
