//! `POST /api/sandbox` (seed).

use axum::Json;
use axum::extract::State;
use dormouse_sessions::{Branch, Wanted};
use dormouse_types::{BranchName, GithubRepo};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::session_id;
use super::millis;
use crate::App;
use crate::auth::Account;
use crate::body::ApiJson;
use crate::error::{ApiError, ApiErrors, ApiResult};
use crate::request::Received;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSandboxRequest {
    /// GitHub repository URL: `https://github.com/owner/repo`.
    #[serde(default, deserialize_with = "present")]
    #[schema(required, value_type = String)]
    repo_url: Field,
    /// Owning session. Without it a one-shot sandbox is made.
    #[serde(default)]
    #[schema(value_type = String, required = false)]
    session_id: Option<String>,
    /// Branch to check out; without it the default branch. It counts when the
    /// checkout is made: one that is there stays on its branch.
    #[serde(default)]
    #[schema(value_type = String, required = false)]
    branch: Option<String>,
    /// `branch` is to be made, at the tip of the default branch.
    #[serde(default)]
    #[schema(value_type = bool, required = false)]
    is_new_branch: Option<bool>,
}

/// A field whose absence, type and emptiness each get their own message.
#[derive(Debug, Default)]
enum Field {
    #[default]
    Missing,
    NotText,
    Text(String),
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Field::Text(text),
        _ => Field::NotText,
    })
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSandboxResponse {
    /// Epoch milliseconds when the sandbox was ready.
    created_at: i64,
    /// Idle timeout in milliseconds.
    timeout: i64,
    /// Branch that is checked out.
    current_branch: String,
    #[schema(inline)]
    mode: Mode,
    timing: Timing,
}

/// Always `vercel`: the name of the protocol.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Vercel,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timing {
    /// Milliseconds from request receipt until the sandbox was ready.
    ready_ms: i64,
}

/// Create or restore the session's sandbox.
#[utoipa::path(post, path = "/api/sandbox", tag = "sandbox", request_body = CreateSandboxRequest,
    responses((status = 200, body = CreateSandboxResponse, description = "The sandbox is ready"), ApiErrors))]
pub(crate) async fn create(
    State(app): State<App>,
    Received(received): Received,
    Account(account): Account,
    ApiJson(body): ApiJson<CreateSandboxRequest>,
) -> ApiResult<Json<CreateSandboxResponse>> {
    let url = match body.repo_url {
        Field::Missing => return Err(ApiError::bad_request("repoUrl is required")),
        Field::NotText => return Err(ApiError::bad_request("repoUrl must be a string")),
        Field::Text(url) if url.trim().is_empty() => {
            return Err(ApiError::bad_request("repoUrl cannot be empty"));
        }
        Field::Text(url) => url,
    };
    let repo: GithubRepo = url.parse().map_err(|error| ApiError::bad_request(format!("repoUrl {error}")))?;
    if body.session_id.as_deref() == Some("") {
        return Err(ApiError::bad_request(
            "sessionId must not be empty; leave it out for a sandbox without a session",
        ));
    }
    let session = body.session_id.map(|id| session_id(&id)).transpose()?;
    let branch = match (body.branch, body.is_new_branch.unwrap_or(false)) {
        (None, false) => None,
        (None, true) => return Err(ApiError::bad_request("isNewBranch needs a branch")),
        (Some(name), new) => {
            let name = name.parse::<BranchName>();
            let name = name.map_err(|error| ApiError::bad_request(format!("branch {error}")))?;
            Some(if new { Branch::New(name) } else { Branch::Existing(name) })
        }
    };
    let ready = app.sessions.provision(account, session, Wanted { repo, branch }).await?;
    Ok(Json(CreateSandboxResponse {
        created_at: ready.ready_at.as_millis(),
        timeout: millis(ready.timeout),
        current_branch: ready.branch,
        mode: Mode::Vercel,
        timing: Timing { ready_ms: millis(received.elapsed()) },
    }))
}
