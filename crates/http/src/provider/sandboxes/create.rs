//! Make a sandbox.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use dormouse_provider::{CloneDirectory, CreateSandbox, SandboxKey};
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{Scope, ScopeQuery};
use super::super::{present, requests};
use super::{Repeatable, reply};
use crate::App;

/// Lifetime of a run whose creator named none (provider contract, section 3).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// Make a sandbox and its first session.
#[utoipa::path(post, path = "", tag = "sandboxes", params(ScopeQuery), request_body = wire::CreateRequest,
    responses((status = 200, body = wire::SandboxReply, description = "The sandbox takes commands"), WireErrors))]
pub(crate) async fn create(
    Extension(clones): Extension<CloneDirectory>,
    State(app): State<App>,
    scope: Scope,
    Repeatable(body, digest): Repeatable<wire::CreateRequest>,
) -> WireResult<Response> {
    let (named, interactive) = (body.name.is_some(), body.interactive);
    let mut request = creation(clones, scope, body)?;
    // Nobody can ask for an unnamed one again.
    request.retry_key = named.then_some(digest);
    app.sessions.refuse_reserved(&request.key.name).await?;
    let key = named.then(|| request.key.clone());
    let made = app.provider.create(request).await?;
    Ok(reply(present::found(made, &app.ports, interactive), &app, key))
}

/// What a body asks for.
pub(crate) fn creation(
    clones: CloneDirectory,
    scope: Scope,
    body: wire::CreateRequest,
) -> WireResult<CreateSandbox> {
    requests::refuse_unsupported(
        body.region.as_deref(),
        body.failover_regions.as_deref(),
        body.network_id.as_deref(),
    )?;
    let scope = scope.with_project(body.project_id)?;
    let key = SandboxKey { namespace: scope.namespace, name: requests::name(body.name)? };
    Ok(CreateSandbox {
        persistent: body.persistent.unwrap_or(true),
        environment: requests::environment(body.runtime, body.image)?,
        source: body.source.map(|source| requests::source(source, clones)).transpose()?,
        resources: body.resources.map(requests::resources),
        timeout: Some(body.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_millis)),
        env: body.env.unwrap_or_default(),
        tags: body.tags.unwrap_or_default(),
        ports: body.ports.unwrap_or_default(),
        network: body.network_policy.map(requests::policy).transpose()?.unwrap_or_default(),
        snapshot_expiration: body.snapshot_expiration.map(requests::expiration).transpose()?,
        retention: requests::retention(body.keep_last_snapshots)?,
        mounts: body.mounts.map(requests::mounts).transpose()?.unwrap_or_default(),
        ephemeral: body.ephemeral,
        ..CreateSandbox::new(key)
    })
}
