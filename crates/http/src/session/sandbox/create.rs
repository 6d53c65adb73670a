//! `POST /api/sandbox` (seed).

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
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

/// Says that nothing was left of what was in the session's sandbox.
const BEGAN_ANEW: HeaderName = HeaderName::from_static("x-dormouse-began-anew");

/// Longest key of a request, in characters.
const MAX_KEY: usize = 255;

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
    /// `vercel`, the name of the protocol.
    #[serde(default)]
    #[schema(value_type = String, required = false)]
    sandbox_type: Option<String>,
}

/// The kind of sandbox that a caller asks for, which is ours.
pub(crate) fn checked_type(kind: Option<&str>) -> ApiResult<()> {
    match kind {
        None | Some("vercel") => Ok(()),
        Some(other) => Err(ApiError::field("sandboxType", format!("must be vercel, not {other:?}"))),
    }
}

/// The branch that a caller asks for.
pub(crate) fn checked_branch(name: Option<String>, new: Option<bool>) -> ApiResult<Option<Branch>> {
    match (name, new.unwrap_or(false)) {
        (None, false) => Ok(None),
        (None, true) => Err(ApiError::about("branch", "isNewBranch needs a branch")),
        (Some(name), new) => {
            let name = name.parse::<BranchName>().map_err(|error| ApiError::field("branch", error))?;
            Ok(Some(if new { Branch::New(name) } else { Branch::Existing(name) }))
        }
    }
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
///
/// Without a session, an `Idempotency-Key` makes it safe to send the request again: for
/// 24 hours the same key gets the same sandbox.
#[utoipa::path(post, path = "/api/sandbox", tag = "sandbox", request_body = CreateSandboxRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 characters; of a request without a session")),
    responses((status = 200, body = CreateSandboxResponse, description = "The sandbox is ready",
        headers(("x-dormouse-began-anew" = Option<String>, description = "`true` where nothing was left of what was in the session's sandbox"))), ApiErrors))]
pub(crate) async fn create(
    State(app): State<App>,
    Received(received): Received,
    Account(account): Account,
    headers: HeaderMap,
    ApiJson(body): ApiJson<CreateSandboxRequest>,
) -> ApiResult<(HeaderMap, Json<CreateSandboxResponse>)> {
    let url = match body.repo_url {
        Field::Missing => return Err(ApiError::field("repoUrl", "is required")),
        Field::NotText => return Err(ApiError::field("repoUrl", "must be a string")),
        Field::Text(url) if url.trim().is_empty() => {
            return Err(ApiError::field("repoUrl", "cannot be empty"));
        }
        Field::Text(url) => url,
    };
    let repo: GithubRepo = url.parse().map_err(|error| ApiError::field("repoUrl", error))?;
    if body.session_id.as_deref() == Some("") {
        let words = "must not be empty; leave it out for a sandbox without a session";
        return Err(ApiError::field("sessionId", words));
    }
    checked_type(body.sandbox_type.as_deref())?;
    let session = body.session_id.map(|id| session_id(&id)).transpose()?;
    let branch = checked_branch(body.branch, body.is_new_branch)?;
    let wanted = Wanted { repo, branch };
    let ready = match (session, idempotency_key(&headers)?) {
        // A session's sandbox is the same one however often it is asked for.
        (None, Some(key)) => app.sessions.provision_once(account, wanted, key).await?,
        (session, _) => app.sessions.provision(account, session, wanted).await?,
    };
    let mut told = HeaderMap::new();
    if ready.anew {
        told.insert(BEGAN_ANEW, HeaderValue::from_static("true"));
    }
    let reply = Json(CreateSandboxResponse {
        created_at: ready.ready_at.as_millis(),
        timeout: millis(ready.timeout),
        current_branch: ready.branch,
        mode: Mode::Vercel,
        timing: Timing { ready_ms: millis(received.elapsed()) },
    });
    Ok((told, reply))
}

/// The caller's name for this request (draft-ietf-httpapi-idempotency-key-header).
fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().map(|text| text.trim().trim_matches('"'));
    match text.filter(|text| (1..=MAX_KEY).contains(&text.len())) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(ApiError::bad_request("Idempotency-Key must be 1 to 255 printable ASCII characters")),
    }
}
