//! Sandboxes and their sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use dormouse_provider::{
    CloneDirectory, CreateSandbox, Direction, ForkSandbox, ListOf, ListSandboxes, Page, SandboxKey,
    SandboxSort, SandboxView, StopReason,
};
use dormouse_types::SandboxName;
use dormouse_wire as wire;
use sha2::{Digest as _, Sha256};

use super::error::{WireError, WireResult};
use super::{RunScope, Scope, note_use, present, requests};
use crate::App;
use crate::body::ApiJson;

/// Most items on one page.
const MAX_PAGE: u32 = 100;

/// Lifetime of a run whose creator named none (provider contract, section 3).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    sort_order: Option<String>,
    name: Option<String>,
}

pub(crate) fn page(limit: Option<u32>, cursor: Option<String>) -> WireResult<Page> {
    let limit = limit.unwrap_or(20);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(WireError::bad_request(format!("limit must be from 1 to {MAX_PAGE}")));
    }
    Ok(Page { limit, cursor: cursor.filter(|cursor| !cursor.is_empty()) })
}

pub(crate) fn order(text: Option<&str>) -> WireResult<Direction> {
    match text {
        None | Some("desc") => Ok(Direction::Descending),
        Some("asc") => Ok(Direction::Ascending),
        Some(_) => Err(WireError::bad_request("sortOrder must be asc or desc")),
    }
}

impl ListQuery {
    pub(crate) fn list(self) -> WireResult<ListOf> {
        Ok(ListOf {
            page: page(self.limit, self.cursor)?,
            order: order(self.sort_order.as_deref())?,
            sandbox: self.name,
        })
    }
}

/// Parameters may come more than once (`tags`), which a struct cannot read.
pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(pairs): Query<Vec<(String, String)>>,
) -> WireResult<Json<wire::SandboxList>> {
    let one = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let limit =
        one("limit").map(|text| text.parse().map_err(|_| WireError::bad_request("limit must be a number")));
    let name_prefix = one("namePrefix").filter(|prefix| !prefix.is_empty());
    let sort = match one("sortBy").as_deref() {
        None | Some("createdAt") => SandboxSort::CreatedAt,
        Some("name") => SandboxSort::Name,
        Some("statusUpdatedAt") => SandboxSort::StatusUpdatedAt,
        Some(_) => {
            return Err(WireError::bad_request("sortBy must be createdAt, name or statusUpdatedAt"));
        }
    };
    if name_prefix.is_some() && sort != SandboxSort::Name {
        return Err(WireError::bad_request("namePrefix needs sortBy=name"));
    }
    let mut tags = BTreeMap::new();
    for (_, tag) in pairs.iter().filter(|(key, _)| key == "tags" || key == "tags[]") {
        let (key, value) =
            tag.split_once(':').ok_or_else(|| WireError::bad_request("tags must be written key:value"))?;
        if tags.insert(key.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
            return Err(WireError::bad_request(format!("tags: {key} cannot have two values")));
        }
    }
    let list = ListSandboxes {
        page: page(limit.transpose()?, one("cursor"))?,
        sort,
        order: order(one("sortOrder").as_deref())?,
        name_prefix,
        tags,
    };
    let (sandboxes, next) = app.provider.list(&scope.namespace, list).await?;
    let sandboxes: Vec<_> = sandboxes.into_iter().map(present::sandbox).collect();
    let pagination = wire::Pagination { count: sandboxes.len(), next };
    Ok(Json(wire::SandboxList { sandboxes, pagination }))
}

pub(crate) async fn list_sessions(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::SessionList>> {
    let (runs, next) = app.provider.runs(&scope.namespace, query.list()?).await?;
    let sessions: Vec<_> = runs.into_iter().map(present::session).collect();
    let pagination = wire::Pagination { count: sessions.len(), next };
    Ok(Json(wire::SessionList { sessions, pagination }))
}

fn key(scope: &Scope, name: &str) -> WireResult<SandboxKey> {
    let name: SandboxName =
        name.parse().map_err(|_| WireError::not_found(format!("sandbox {name} not found")))?;
    Ok(SandboxKey { namespace: scope.namespace.clone(), name })
}

/// A body, and what it is recognized by when it is sent again. The protocol's
/// clients send a creation again when the connection broke or a gateway answered
/// in our place, and have no key to say so: what they send again is the same
/// body for the same name.
pub(crate) struct Repeatable<T>(T, String);

impl<T: serde::de::DeserializeOwned> axum::extract::FromRequest<App> for Repeatable<T> {
    type Rejection = WireError;

    async fn from_request(request: axum::extract::Request, app: &App) -> Result<Self, WireError> {
        let (parts, body) = request.into_parts();
        let bytes = Bytes::from_request(axum::extract::Request::from_parts(parts.clone(), body), app).await;
        let bytes =
            bytes.map_err(|_| WireError::bad_request("the body could not be read, or is too large"))?;
        let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let request = axum::extract::Request::from_parts(parts, Body::from(bytes));
        let ApiJson(value) = ApiJson::from_request(request, app).await?;
        Ok(Self(value, digest))
    }
}

pub(crate) async fn create(
    clones: CloneDirectory,
    State(app): State<App>,
    scope: Scope,
    Repeatable(body, digest): Repeatable<wire::CreateRequest>,
) -> WireResult<Response> {
    let (named, interactive) = (body.name.is_some(), body.interactive);
    let mut request = creation(clones, scope, body)?;
    // Nobody can ask for an unnamed one again.
    request.retry_key = named.then_some(digest);
    let key = named.then(|| request.key.clone());
    let made = app.provider.create(request).await?;
    Ok(reply(present::found(made, &app.ports, interactive), &app, key))
}

/// What a body asks for.
pub(super) fn creation(
    clones: CloneDirectory,
    scope: Scope,
    body: wire::CreateRequest,
) -> WireResult<CreateSandbox> {
    requests::refuse_unsupported(
        body.region.as_deref(),
        body.failover_regions.as_deref(),
        body.network_id.as_deref(),
        body.mounts.as_ref(),
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
        snapshot_expiration: body.snapshot_expiration.map(requests::expiration),
        retention: requests::retention(body.keep_last_snapshots),
        ephemeral: body.ephemeral,
        ..CreateSandbox::new(key)
    })
}

pub(crate) async fn fork(
    State(app): State<App>,
    scope: Scope,
    Path(source): Path<String>,
    Repeatable(body, digest): Repeatable<wire::ForkRequest>,
) -> WireResult<Response> {
    let source = key(&scope, &source)?.name;
    let named = body.name.is_some();
    let key = SandboxKey { namespace: scope.namespace, name: requests::name(body.name)? };
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

/// JSON that counts as taken once the last of it was asked for: from then on
/// the name of `key` is taken, also for who repeats its creation.
fn reply(reply: wire::SandboxReply, app: &App, key: Option<SandboxKey>) -> Response {
    // Strings and numbers: their JSON cannot fail.
    let text = Bytes::from(serde_json::to_vec(&reply).unwrap_or_default());
    let answer = key.map(|key| (app.provider.clone(), key));
    let chunks = futures::stream::unfold((Some(text), answer), |(text, answer)| async {
        match (text, answer) {
            (Some(text), answer) => Some((Ok::<_, std::convert::Infallible>(text), (None, answer))),
            // The connection took all of it and asks for more. The end of the
            // answer waits for the note: who has it and asks again is told so.
            (None, Some((provider, key))) => {
                if let Err(error) = provider.taken(&key).await {
                    tracing::warn!(sandbox = %key.name, error = error.detail(), "note that it was handed over");
                }
                None
            }
            (None, None) => None,
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GetQuery {
    #[serde(default)]
    resume: bool,
}

pub(crate) async fn get(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<GetQuery>,
) -> WireResult<Json<wire::SandboxReply>> {
    let key = key(&scope, &name)?;
    if !query.resume {
        return Ok(Json(present::found(app.provider.get(&key).await?, &app.ports, true)));
    }
    // Before as well: what is answered as running must not be on its way to
    // sleep.
    note_use(&app, &key.namespace, &key.name).await;
    let found = app.provider.resume(&key).await?;
    if found.resumed {
        note_use(&app, &key.namespace, &key.name).await;
    }
    Ok(Json(present::found(found, &app.ports, true)))
}

pub(crate) async fn update(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    ApiJson(body): ApiJson<wire::UpdateRequest>,
) -> WireResult<Json<wire::ChangeReply>> {
    let key = key(&scope, &name)?;
    if let Some(runtime) = &body.runtime {
        let now = app.provider.get(&key).await?.sandbox.runtime;
        if now.as_ref() != Some(runtime) {
            return Err(WireError::bad_request("runtime: it cannot change; create another sandbox"));
        }
    }
    let ports = body.ports.is_some();
    let changed: SandboxView = app.provider.update(&key, requests::changes(body)?).await?;
    let routes = ports.then(|| present::routes(changed.routes, &app.ports));
    Ok(Json(wire::ChangeReply { sandbox: present::sandbox(changed.sandbox), routes }))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeleteQuery {
    #[serde(default)]
    delete_orphan_snapshots: bool,
}

pub(crate) async fn delete(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> WireResult<Json<wire::ChangeReply>> {
    let sandbox = app.provider.delete(&key(&scope, &name)?, query.delete_orphan_snapshots).await?;
    Ok(Json(wire::ChangeReply { sandbox: present::sandbox(sandbox), routes: None }))
}

pub(crate) async fn session(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::SessionReply>> {
    let run = app.provider.run(&scope.run).await?;
    let routes = present::routes(app.provider.routes(&scope.run).await?, &app.ports);
    Ok(Json(wire::SessionReply { session: present::session(run), routes }))
}

pub(crate) async fn stop(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::StopReply>> {
    let stopped = app.provider.stop(&scope.run, StopReason::Requested).await?;
    Ok(Json(wire::StopReply {
        session: present::session(stopped.run),
        sandbox: stopped.sandbox.map(present::sandbox),
        snapshot: stopped.snapshot.map(present::snapshot),
    }))
}

pub(crate) async fn extend(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::ExtendRequest>,
) -> WireResult<Json<wire::SessionReply>> {
    let run = app.provider.extend(&scope.run, requests::extension(body.duration)?).await?;
    Ok(Json(wire::SessionReply { session: present::session(run), routes: Vec::new() }))
}

pub(crate) async fn set_policy(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::NetworkPolicyRequest>,
) -> WireResult<Json<wire::SessionReply>> {
    let run = app.provider.set_network_policy(&scope.run, requests::policy(body)?).await?;
    Ok(Json(wire::SessionReply { session: present::session(run), routes: Vec::new() }))
}
