//! Version 1 of the protocol, which SDK 1 and the libraries above it speak:
//! a sandbox is one run, without a name and without a second life. What it
//! calls a sandbox the later versions call a session; commands and files are
//! the same.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use dormouse_provider::{CloneDirectory, Direction, ListOf, Page, SnapshotRequest, StopReason};
use dormouse_types::{RunId, Timestamp};
use dormouse_wire as wire;

use super::error::{WireError, WireResult};
use super::sandboxes::{creation, page};
use super::{MAX_ARCHIVE, RunScope, Scope, commands, files, present, requests, snapshots};
use crate::App;
use crate::body::ApiJson;

const BASE: &str = "/api/v1/sandboxes";

pub(crate) fn router() -> Router<App> {
    let unlimited = axum::extract::DefaultBodyLimit::max(MAX_ARCHIVE);
    let path = |rest: &str| format!("{BASE}{rest}");
    Router::new()
        .route(BASE, post(create).get(list))
        .route(&path("/snapshots"), get(list_snapshots))
        .route(&path("/snapshots/{id}"), get(snapshot).delete(delete_snapshot))
        .route(&path("/{id}"), get(show))
        .route(&path("/{id}/stop"), post(stop))
        .route(&path("/{id}/extend-timeout"), post(extend))
        .route(&path("/{id}/network-policy"), post(set_policy))
        .route(&path("/{id}/snapshot"), post(make_snapshot))
        .route(&path("/{id}/cmd"), post(commands::start).get(commands::list))
        .route(&path("/{id}/cmd/{command}"), get(commands::get))
        .route(&path("/{id}/cmd/{command}/logs"), get(commands::logs))
        .route(&path("/{id}/{command}/kill"), post(commands::kill))
        .route(&path("/{id}/fs/mkdir"), post(files::mkdir))
        .route(&path("/{id}/fs/read"), post(files::read))
        .route(&path("/{id}/fs/write"), post(files::write).layer(unlimited))
}

async fn reply(
    app: &App,
    scope: &RunScope,
    run: dormouse_provider::Run,
) -> WireResult<Json<wire::first::SandboxReply>> {
    let routes = present::routes(app.provider.routes(&scope.run).await?, &app.ports);
    Ok(Json(wire::first::SandboxReply { sandbox: present::session(run), routes }))
}

async fn create(
    State(app): State<App>,
    scope: Scope,
    ApiJson(body): ApiJson<wire::CreateRequest>,
) -> WireResult<Json<wire::first::SandboxReply>> {
    let mut request = creation(CloneDirectory::Workdir, scope, body)?;
    // It has no second run.
    (request.persistent, request.ephemeral) = (false, true);
    let made = app.provider.create(request).await?;
    let routes = present::routes(made.routes, &app.ports);
    Ok(Json(wire::first::SandboxReply { sandbox: present::session(made.run), routes }))
}

async fn show(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::first::SandboxReply>> {
    let run = app.provider.run(&scope.run).await?;
    reply(&app, &scope, run).await
}

async fn stop(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::first::SandboxReply>> {
    let stopped = app.provider.stop(&scope.run, StopReason::Requested).await?;
    reply(&app, &scope, stopped.run).await
}

async fn extend(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::ExtendRequest>,
) -> WireResult<Json<wire::first::SandboxReply>> {
    let by = requests::extension(body.duration)?;
    let run = app.provider.extend(&scope.run, by).await?;
    reply(&app, &scope, run).await
}

async fn set_policy(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::NetworkPolicyRequest>,
) -> WireResult<Json<wire::first::SandboxReply>> {
    let run = app.provider.set_network_policy(&scope.run, requests::policy(body)?).await?;
    reply(&app, &scope, run).await
}

async fn make_snapshot(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::SnapshotRequest>,
) -> WireResult<Json<wire::first::MadeSnapshotReply>> {
    let expiration = body.expiration.map(requests::expiration);
    let request = SnapshotRequest { expiration, live: false };
    let made = app.provider.snapshot(&scope.run, request).await?;
    let (snapshot, sandbox) = (present::snapshot(made.snapshot).into(), present::session(made.run));
    Ok(Json(wire::first::MadeSnapshotReply { snapshot, sandbox }))
}

#[derive(serde::Deserialize)]
struct ListQuery {
    limit: Option<u32>,
    /// Not before, in milliseconds.
    since: Option<i64>,
    /// Before, in milliseconds.
    until: Option<i64>,
}

/// A place in a list that version 1 names by an instant: ids of this server
/// begin with theirs (UUIDv7, RFC 9562), so one can be made of it.
fn place<T: std::str::FromStr>(prefix: &str, until: Option<i64>) -> WireResult<Option<T>> {
    let Some(until) = until else { return Ok(None) };
    let bad = || WireError::bad_request("until must be milliseconds since 1970");
    let ms = u64::try_from(until).ok().filter(|ms| *ms < 1 << 48).ok_or_else(bad)?;
    format!("{prefix}{ms:012x}{:020x}", 0).parse().map(Some).map_err(|_| bad())
}

/// A page of `items`, newest first, that ends between two instants, since
/// that is how the next one is asked for.
fn cut<T>(
    mut items: Vec<T>,
    more: bool,
    since: Option<i64>,
    at: impl Fn(&T) -> Timestamp,
) -> (Vec<T>, wire::first::Pagination) {
    let mut more = more;
    if let Some(since) = since {
        let before = items.len();
        items.retain(|item| at(item).as_millis() >= since);
        more &= items.len() == before;
    }
    let last = items.last().map(|item| at(item).as_millis());
    if let Some(last) = last.filter(|_| more)
        && items.iter().any(|item| at(item).as_millis() != last)
    {
        items.retain(|item| at(item).as_millis() != last);
    }
    let oldest = items.last().map(|item| at(item).as_millis());
    let newest = items.first().map(|item| at(item).as_millis());
    let pagination =
        wire::first::Pagination { count: items.len(), next: oldest.filter(|_| more), prev: newest };
    (items, pagination)
}

fn list_of(query: &ListQuery, cursor: Option<String>) -> WireResult<ListOf> {
    let Page { limit, .. } = page(query.limit, None)?;
    Ok(ListOf { page: Page { limit, cursor }, order: Direction::Descending, sandbox: None })
}

async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::first::SandboxList>> {
    let cursor = place::<RunId>("sbx_", query.until)?.map(String::from);
    let (runs, next) = app.provider.runs(&scope.namespace, list_of(&query, cursor)?).await?;
    let (runs, pagination) = cut(runs, next.is_some(), query.since, |run| run.requested_at);
    let sandboxes = runs.into_iter().map(present::session).collect();
    Ok(Json(wire::first::SandboxList { sandboxes, pagination }))
}

async fn list_snapshots(
    State(app): State<App>,
    scope: Scope,
    Query(query): Query<ListQuery>,
) -> WireResult<Json<wire::first::SnapshotList>> {
    let cursor = place::<dormouse_types::SnapshotId>("snap_", query.until)?.map(String::from);
    let (found, next) = app.provider.snapshots(&scope.namespace, list_of(&query, cursor)?).await?;
    let (found, pagination) = cut(found, next.is_some(), query.since, |snapshot| snapshot.created_at);
    let snapshots = found.into_iter().map(|snapshot| present::snapshot(snapshot).into()).collect();
    Ok(Json(wire::first::SnapshotList { snapshots, pagination }))
}

async fn snapshot(
    app: State<App>,
    scope: Scope,
    id: Path<String>,
) -> WireResult<Json<wire::first::SnapshotReply>> {
    let Json(reply) = snapshots::get(app, scope, id).await?;
    Ok(Json(wire::first::SnapshotReply { snapshot: reply.snapshot.into() }))
}

async fn delete_snapshot(
    app: State<App>,
    scope: Scope,
    id: Path<String>,
) -> WireResult<Json<wire::first::SnapshotReply>> {
    let Json(reply) = snapshots::delete(app, scope, id).await?;
    Ok(Json(wire::first::SnapshotReply { snapshot: reply.snapshot.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_between_two_instants() {
        let at = |item: &i64| Timestamp(*item);
        let (items, page) = cut(vec![9, 8, 7, 7], true, None, at);
        assert_eq!((items, page.next, page.count), (vec![9, 8], Some(8), 2));
        let (items, page) = cut(vec![9, 8, 7, 7], false, None, at);
        assert_eq!((items.len(), page.next), (4, None));
        let (items, page) = cut(vec![9, 8, 7], true, Some(8), at);
        assert_eq!((items, page.next), (vec![9, 8], None));
        // Nothing else would be on the page.
        let (items, page) = cut(vec![7, 7], true, None, at);
        assert_eq!((items.len(), page.next), (2, Some(7)));
        let cursor = place::<RunId>("sbx_", Some(1_790_000_000_000)).ok().flatten();
        assert!(cursor.is_some_and(|id| id.as_str().len() == "sbx_".len() + 32));
        assert!(place::<RunId>("sbx_", Some(-1)).is_err());
    }
}
