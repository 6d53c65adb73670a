//! Whose sandboxes a call is about, and which run.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use dormouse_provider::{Namespace, RunRef, SandboxKey};
use dormouse_types::{DEFAULT_PROJECT, RunId};
use utoipa::IntoParams;

use super::error::WireError;
use crate::App;
use crate::activity::Activity;
use crate::auth::{Caller, Identity, Right};

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

/// Whose sandboxes a call is about.
#[derive(serde::Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct ScopeQuery {
    /// Account or organization, by id or name; by default the caller's account.
    team_id: Option<String>,
    /// The same, by name.
    slug: Option<String>,
    /// Project; by default `default`.
    project_id: Option<String>,
    /// The same.
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
    let Caller(identity) = Caller::from_request_parts(parts, app).await?;
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
    sandbox: SandboxKey,
    right: Right,
}

impl RunScope {
    /// The run, of which the call is use: what is done in a session's sandbox
    /// puts the session's sleep off.
    pub(crate) async fn used(&self, app: &App) -> RunRef {
        note_use(app, &self.sandbox).await;
        self.run.clone()
    }

    /// The caller's right to it, for as long as a call goes on.
    pub(crate) fn right(&self) -> Right {
        self.right.clone()
    }

    /// Use of its sandbox by a call that goes on.
    pub(crate) fn activity(&self, app: &App) -> Activity {
        Activity::new(app, self.sandbox.clone())
    }
}

impl FromRequestParts<App> for RunScope {
    type Rejection = WireError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, WireError> {
        let (identity, owner, _) = scope_query(parts, app).await?;
        let params = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app).await;
        let id = params.ok().and_then(|Path(params)| params.get("id").cloned()).unwrap_or_default();
        let missing = || WireError::not_found(format!("session {id} not found"));
        let id: RunId = id.parse().map_err(|_| missing())?;
        let row = app.db.run(&id).await.map_err(crate::error::ApiError::from)?;
        let row = row.filter(|row| row.namespace.owner == owner).ok_or_else(missing)?;
        let right = Right { account: identity.account, key: identity.key, owner };
        let sandbox = SandboxKey { namespace: row.namespace.clone(), name: row.sandbox_name };
        Ok(Self { run: RunRef { namespace: row.namespace, id }, sandbox, right })
    }
}

/// Tells the session of a sandbox that it is used; a failure is only logged.
pub(crate) async fn note_use(app: &App, key: &SandboxKey) {
    if let Err(error) = app.sessions.note_use(key).await {
        tracing::warn!(sandbox = %key.name, ?error, "note activity");
    }
}
