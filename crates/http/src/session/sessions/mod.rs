//! `/api/sessions` (session contract, section 10).

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod patch;

use dormouse_store::SessionRow;
use dormouse_types::{GithubRepo, Timestamp};
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
    /// The one that is checked out, or is to be.
    branch: Option<String>,
    /// That branch is, or was, to be made.
    is_new_branch: bool,
    clone_url: Option<String>,
    /// Organization that it is for.
    organization_id: Option<String>,
    sandbox_name: Option<String>,
    sandbox_state: SandboxState,
    lifecycle_state: String,
    lifecycle_version: i64,
    lifecycle_error: Option<String>,
    /// Always `null`: nothing has to be started to watch over a session.
    lifecycle_run_id: Option<String>,
    /// ISO 8601, as all times of a session.
    last_activity_at: Option<String>,
    hibernate_after: Option<String>,
    sandbox_expires_at: Option<String>,
    /// Always `null`, as the two after it: a sleeping sandbox keeps its files under its name.
    snapshot_url: Option<String>,
    snapshot_created_at: Option<String>,
    snapshot_size_bytes: Option<i64>,
    lines_added: Option<i64>,
    lines_removed: Option<i64>,
    created_at: String,
    updated_at: String,
}

/// What is known of the sandbox, for clients that connect to it themselves.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxState {
    /// Always `vercel`: the name of the protocol.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    sandbox_name: Option<String>,
    /// Epoch milliseconds when its lifetime ends, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64, required = false)]
    expires_at: Option<i64>,
}

/// An instant as ISO 8601 has it.
fn iso(at: Timestamp) -> String {
    let at = chrono::DateTime::from_timestamp_millis(at.as_millis()).unwrap_or_default();
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
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
            branch: row.branch.or(row.wanted_branch),
            is_new_branch: row.is_new_branch,
            clone_url: row.clone_url,
            organization_id: row.organization.map(|id| id.to_string()),
            sandbox_state: SandboxState {
                kind: "vercel",
                sandbox_name: row.sandbox_name.as_ref().map(ToString::to_string),
                expires_at: row
                    .sandbox_expires_at
                    .filter(|_| row.sandbox_name.is_some())
                    .map(|t| t.as_millis()),
            },
            sandbox_name: row.sandbox_name.map(|name| name.to_string()),
            lifecycle_state: row.lifecycle_state.to_string(),
            lifecycle_version: row.lifecycle_version,
            lifecycle_error: row.lifecycle_error,
            lifecycle_run_id: None,
            last_activity_at: row.last_activity_at.map(iso),
            hibernate_after: sleeps_at.map(iso),
            sandbox_expires_at: row.sandbox_expires_at.map(iso),
            snapshot_url: None,
            snapshot_created_at: None,
            snapshot_size_bytes: None,
            lines_added: row.lines_added,
            lines_removed: row.lines_removed,
            created_at: iso(row.created_at),
            updated_at: iso(row.updated_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionReply {
    session: Session,
}

fn checked_title(title: String) -> ApiResult<String> {
    if title.contains('\0') {
        return Err(ApiError::field("title", "must not hold a NUL character"));
    }
    if title.chars().count() > MAX_TITLE {
        return Err(ApiError::field("title", format!("must not be over {MAX_TITLE} characters")));
    }
    Ok(title)
}
