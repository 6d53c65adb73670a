//! Sandboxes and their sessions.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use dormouse_provider::{Page, SandboxKey, StopReason};
use dormouse_types::SandboxName;
use dormouse_wire as wire;

use super::error::{WireError, WireResult};
use super::{RunScope, Scope, present};
use crate::App;
use crate::body::ApiJson;

/// Most items on one page.
const MAX_PAGE: u32 = 100;

#[derive(serde::Deserialize)]
pub(crate) struct ListQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    name: Option<String>,
}

fn page(query: &ListQuery) -> WireResult<Page> {
    let limit = query.limit.unwrap_or(20);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(WireError::bad_request(format!("limit must be from 1 to {MAX_PAGE}")));
    }
    Ok(Page { limit, cursor: query.cursor.clone() })
}

pub(crate) async fn list(
    State(app): State<App>,
    Scope(namespace): Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::SandboxList>> {
    let (sandboxes, next) = app.provider.list(&namespace, page(&query)?).await?;
    let sandboxes: Vec<_> = sandboxes.into_iter().map(present::sandbox).collect();
    let pagination = wire::Pagination { count: sandboxes.len(), next };
    Ok(Json(wire::SandboxList { sandboxes, pagination }))
}

pub(crate) async fn list_sessions(
    State(app): State<App>,
    Scope(namespace): Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::SessionList>> {
    let (runs, next) = app.provider.runs(&namespace, query.name.as_deref(), page(&query)?).await?;
    let sessions: Vec<_> = runs.into_iter().map(present::session).collect();
    let pagination = wire::Pagination { count: sessions.len(), next };
    Ok(Json(wire::SessionList { sessions, pagination }))
}

fn key(namespace: dormouse_provider::Namespace, name: &str) -> WireResult<SandboxKey> {
    let name: SandboxName =
        name.parse().map_err(|_| WireError::not_found(format!("sandbox {name} not found")))?;
    Ok(SandboxKey { namespace, name })
}

#[derive(serde::Deserialize)]
pub(crate) struct GetQuery {
    #[serde(default)]
    resume: bool,
}

pub(crate) async fn get(
    State(app): State<App>,
    Scope(namespace): Scope,
    Path(name): Path<String>,
    Query(query): Query<GetQuery>,
) -> WireResult<Json<wire::SandboxReply>> {
    let key = key(namespace, &name)?;
    let found = if query.resume { app.provider.resume(&key).await? } else { app.provider.get(&key).await? };
    Ok(Json(present::found(found)))
}

pub(crate) async fn delete(
    State(app): State<App>,
    Scope(namespace): Scope,
    Path(name): Path<String>,
) -> WireResult<Json<wire::DeleteReply>> {
    let sandbox = app.provider.delete(&key(namespace, &name)?).await?;
    Ok(Json(wire::DeleteReply { sandbox: present::sandbox(sandbox) }))
}

pub(crate) async fn session(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::SessionReply>> {
    let run = app.provider.run(&scope.run).await?;
    Ok(Json(wire::SessionReply { session: present::session(run), routes: Vec::new() }))
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
    if body.duration < 1000 {
        return Err(WireError::bad_request("duration must be at least 1000 milliseconds"));
    }
    let run = app.provider.extend(&scope.run, Duration::from_millis(body.duration)).await?;
    Ok(Json(wire::SessionReply { session: present::session(run), routes: Vec::new() }))
}
