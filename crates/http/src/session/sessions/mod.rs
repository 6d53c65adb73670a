//! `/api/sessions` (session contract, section 10).

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod patch;

use dormouse_store::SessionRow;
use dormouse_types::GithubRepo;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};

/// Longest title, in characters.
const MAX_TITLE: usize = 200;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    id: String,
    user_id: String,
    title: String,
    status: String,
    repo_owner: Option<String>,
    repo_name: Option<String>,
    branch: Option<String>,
    clone_url: Option<String>,
    sandbox_name: Option<String>,
    lifecycle_state: String,
    lifecycle_version: i64,
    lifecycle_error: Option<String>,
    last_activity_at: Option<i64>,
    hibernate_after: Option<i64>,
    sandbox_expires_at: Option<i64>,
    lines_added: Option<i64>,
    lines_removed: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        let repo = row.clone_url.as_deref().and_then(|url| url.parse::<GithubRepo>().ok());
        let sleeps_at = row.sleeps_at();
        Self {
            id: row.id.to_string(),
            user_id: row.account_id.to_string(),
            title: row.title,
            status: row.status.to_string(),
            repo_owner: repo.as_ref().map(|repo| repo.owner().to_owned()),
            repo_name: repo.as_ref().map(|repo| repo.name().to_owned()),
            branch: row.branch,
            clone_url: row.clone_url,
            sandbox_name: row.sandbox_name.map(|name| name.to_string()),
            lifecycle_state: row.lifecycle_state.to_string(),
            lifecycle_version: row.lifecycle_version,
            lifecycle_error: row.lifecycle_error,
            last_activity_at: row.last_activity_at.map(|t| t.as_millis()),
            hibernate_after: sleeps_at.map(|t| t.as_millis()),
            sandbox_expires_at: row.sandbox_expires_at.map(|t| t.as_millis()),
            lines_added: row.lines_added,
            lines_removed: row.lines_removed,
            created_at: row.created_at.as_millis(),
            updated_at: row.updated_at.as_millis(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionReply {
    session: Session,
}

fn checked_title(title: String) -> ApiResult<String> {
    if title.contains('\0') {
        return Err(ApiError::bad_request("title must not hold a NUL character"));
    }
    if title.chars().count() > MAX_TITLE {
        return Err(ApiError::bad_request(format!("title must not be over {MAX_TITLE} characters")));
    }
    Ok(title)
}
