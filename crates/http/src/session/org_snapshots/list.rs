//! `GET /api/org-snapshots`.

use axum::Json;
use axum::extract::State;
use dormouse_store::OrgSnapshotRow;
use serde::Serialize;
use utoipa::ToSchema;

use super::{RepoQuery, repo};
use crate::App;
use crate::auth::Account;
use crate::body::ApiQuery;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrgSnapshot {
    id: String,
    /// `owner/name` in lower case.
    repo: String,
    /// `public`: for everybody. `claimed`: for members of organizations that
    /// claim the repository.
    access: String,
    /// Branch that is checked out.
    branch: String,
    /// Commit that is checked out.
    commit: String,
    /// What became of the repository's set-up: `none`, `pending`, `done` or
    /// `failed`.
    set_up: String,
    /// Milliseconds since 1970.
    created_at: i64,
    /// When a sandbox last started from it, to the hour. Milliseconds since 1970.
    last_used_at: i64,
    /// Server that has it, where several share a database.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

impl From<OrgSnapshotRow> for OrgSnapshot {
    fn from(row: OrgSnapshotRow) -> Self {
        Self {
            id: row.id.to_string(),
            host: Some(row.key.place).filter(|place| !place.is_empty()),
            repo: row.key.repo,
            access: row.key.access.to_string(),
            branch: row.branch,
            commit: row.commit_id,
            set_up: row.set_up.to_string(),
            created_at: row.created_at.as_millis(),
            last_used_at: row.last_used_at.as_millis(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrgSnapshotListReply {
    org_snapshots: Vec<OrgSnapshot>,
}

/// List the org snapshots of a repository; without `repoUrl`, the newest 100 of
/// repositories that your organizations claim.
#[utoipa::path(get, path = "/api/org-snapshots", tag = "org snapshots", params(RepoQuery),
    responses((status = 200, description = "Current org snapshots", body = OrgSnapshotListReply), ApiErrors))]
pub(crate) async fn list(
    State(app): State<App>,
    Account(account): Account,
    ApiQuery(query): ApiQuery<RepoQuery>,
) -> ApiResult<Json<OrgSnapshotListReply>> {
    let repo = query.repo_url.as_deref().map(repo).transpose()?;
    let rows = app.sessions.org_snapshots(&account, repo.as_ref()).await?;
    Ok(Json(OrgSnapshotListReply { org_snapshots: rows.into_iter().map(Into::into).collect() }))
}
