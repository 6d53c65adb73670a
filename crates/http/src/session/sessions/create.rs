//! `POST /api/sessions`.

use axum::Json;
use axum::extract::State;
use dormouse_sessions::NewSession;
use dormouse_types::GithubRepo;
use serde::Deserialize;
use utoipa::ToSchema;

use super::super::sandbox::create::{checked_branch, checked_type};
use super::{SessionReply, checked_title};
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSessionRequest {
    /// Shown to users; never interpreted.
    title: Option<String>,
    /// Repository that the session is bound to: `https://github.com/owner/repo`.
    repo_url: Option<String>,
    /// The same.
    clone_url: Option<String>,
    /// The same, with `repoName`.
    repo_owner: Option<String>,
    /// See `repoOwner`.
    repo_name: Option<String>,
    /// Branch that the first checkout is to be on; without it the default branch.
    branch: Option<String>,
    /// `branch` is to be made, at the tip of the default branch.
    is_new_branch: Option<bool>,
    /// Organization that it is for, which you are a member of.
    organization_id: Option<String>,
    /// `vercel`, the name of the protocol.
    sandbox_type: Option<String>,
}

impl CreateSessionRequest {
    /// The repository, however it is named.
    fn repo(&self) -> ApiResult<Option<GithubRepo>> {
        let mut found: Option<GithubRepo> = None;
        let pair = match (&self.repo_owner, &self.repo_name) {
            (None, None) => None,
            (Some(owner), Some(name)) => Some(format!("https://github.com/{owner}/{name}")),
            (None, Some(_)) => return Err(ApiError::field("repoOwner", "is missing beside repoName")),
            (Some(_), None) => return Err(ApiError::field("repoName", "is missing beside repoOwner")),
        };
        let named = [("repoUrl", &self.repo_url), ("cloneUrl", &self.clone_url), ("repoOwner", &pair)];
        for (field, url) in named {
            let Some(url) = url else { continue };
            let repo = url.parse::<GithubRepo>().map_err(|error| ApiError::field(field, error))?;
            if found.as_ref().is_some_and(|found| *found != repo) {
                return Err(ApiError::field(field, "names another repository than the fields before it"));
            }
            found = Some(repo);
        }
        Ok(found)
    }
}

/// Make a session.
#[utoipa::path(post, path = "/api/sessions", tag = "sessions", request_body = CreateSessionRequest,
    responses((status = 200, description = "The session", body = SessionReply), ApiErrors))]
pub(crate) async fn create(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<CreateSessionRequest>,
) -> ApiResult<Json<SessionReply>> {
    checked_type(body.sandbox_type.as_deref())?;
    let repo = body.repo()?;
    let branch = checked_branch(body.branch, body.is_new_branch)?;
    let organization = body.organization_id.map(|id| id.parse()).transpose();
    let organization = organization.map_err(|error| ApiError::field("organizationId", error))?;
    let title = body.title.map(checked_title).transpose()?;
    let new = NewSession { title, repo, branch, organization };
    let session = app.sessions.create(&account, new).await?.into();
    Ok(Json(SessionReply { session }))
}
