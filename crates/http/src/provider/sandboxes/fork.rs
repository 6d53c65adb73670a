//! Make a sandbox from another.

use axum::extract::{Path, State};
use axum::response::Response;
use dormouse_provider::{ForkSandbox, SandboxKey};
use dormouse_wire as wire;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::scope::{Scope, ScopeQuery};
use super::super::{present, requests};
use super::{Repeatable, key, reply};
use crate::App;

/// Make a sandbox with the files and the configuration of another.
#[utoipa::path(post, path = "/{name}/fork", tag = "sandboxes", request_body = wire::ForkRequest, params(("name" = String, Path, description = "Sandbox name"), ScopeQuery),
    responses((status = 200, body = wire::SandboxReply, description = "The new sandbox takes commands"), WireErrors))]
pub(crate) async fn fork(
    State(app): State<App>,
    scope: Scope,
    Path(source): Path<String>,
    Repeatable(body, digest): Repeatable<wire::ForkRequest>,
) -> WireResult<Response> {
    let source = key(&scope, &source)?.name;
    let named = body.name.is_some();
    let key = SandboxKey { namespace: scope.namespace, name: requests::name(body.name)? };
    app.sessions.refuse_reserved(&key.name).await?;
    if body.image.is_some() || body.changes.runtime.is_some() {
        return Err(WireError::bad_request("image: a fork stands on what its source stands on"));
    }
    let request = ForkSandbox {
        source,
        key: key.clone(),
        env: body.env,
        live: body.live,
        changes: requests::changes(body.changes)?,
        retry_key: named.then_some(digest),
    };
    let made = app.provider.fork(request).await?;
    Ok(reply(present::found(made, &app.ports, body.interactive), &app, named.then_some(key)))
}
