//! `GET /api/org-snapshots/builds`.

use axum::Json;
use axum::extract::State;
use dormouse_store::OrgBuildRow;
use serde::Serialize;
use utoipa::ToSchema;

use super::{RepoQuery, repo};
use crate::App;
use crate::auth::Account;
use crate::body::ApiQuery;
use crate::error::{ApiError, ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrgBuild {
    id: String,
    /// `public` or `claimed`, as of the org snapshot that it makes.
    access: String,
    /// `create`, `clone`, `set_up`, `snapshot`, `publish`, `published` or `failed`.
    phase: String,
    /// Build output; only the last 64 KiB are kept.
    log: String,
    /// Milliseconds since 1970.
    started_at: i64,
    /// Milliseconds since 1970.
    updated_at: i64,
    /// Milliseconds since 1970; absent while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<i64>,
}

impl From<OrgBuildRow> for OrgBuild {
    fn from(row: OrgBuildRow) -> Self {
        Self {
            id: row.id.to_string(),
            access: row.key.access.to_string(),
            phase: row.phase.to_string(),
            log: row.log,
            started_at: row.started_at.as_millis(),
            updated_at: row.updated_at.as_millis(),
            ended_at: row.ended_at.map(|at| at.as_millis()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OrgBuildListReply {
    builds: Vec<OrgBuild>,
}

/// List a repository's last ten builds with their logs, newest first, including one
/// in progress.
#[utoipa::path(get, path = "/api/org-snapshots/builds", tag = "org snapshots", params(RepoQuery),
    responses((status = 200, description = "The builds", body = OrgBuildListReply), ApiErrors))]
pub(crate) async fn builds(
    State(app): State<App>,
    Account(account): Account,
    ApiQuery(query): ApiQuery<RepoQuery>,
) -> ApiResult<Json<OrgBuildListReply>> {
    let url = query.repo_url.ok_or_else(|| ApiError::bad_request("repoUrl is required"))?;
    let rows = app.sessions.org_builds(&account, &repo(&url)?).await?;
    Ok(Json(OrgBuildListReply { builds: rows.into_iter().map(Into::into).collect() }))
}
