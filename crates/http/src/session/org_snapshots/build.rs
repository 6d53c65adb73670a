//! `POST /api/org-snapshots`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::repo;
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuildOrgSnapshotRequest {
    /// `https://github.com/OWNER/NAME`.
    #[schema(required, value_type = String)]
    repo_url: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BuildOrgSnapshotReply {
    success: bool,
}

/// Rebuild a repository's org snapshot, including its set-up. Requests made while a
/// build is queued are merged.
#[utoipa::path(post, path = "/api/org-snapshots", tag = "org snapshots", request_body = BuildOrgSnapshotRequest,
    responses((status = 202, description = "The build is queued", body = BuildOrgSnapshotReply), ApiErrors))]
pub(crate) async fn build(
    State(app): State<App>,
    Account(account): Account,
    ApiJson(body): ApiJson<BuildOrgSnapshotRequest>,
) -> ApiResult<(StatusCode, Json<BuildOrgSnapshotReply>)> {
    let url = body.repo_url.ok_or_else(|| ApiError::bad_request("repoUrl is required"))?;
    app.sessions.build_org_snapshot(&account, &repo(&url)?).await?;
    Ok((StatusCode::ACCEPTED, Json(BuildOrgSnapshotReply { success: true })))
}
