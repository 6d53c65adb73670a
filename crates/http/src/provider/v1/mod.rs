//! Version 1 of the protocol, which SDK 1 and the libraries above it speak:
//! a sandbox is one run, without a name and without a second life. What it
//! calls a sandbox the later versions call a session; commands and files are
//! the same.

mod create;
mod delete_snapshot;
mod extend;
mod get;
mod get_snapshot;
mod list;
mod list_snapshots;
mod set_policy;
mod snapshot;
mod stop;

use axum::routing::{get, post};
use axum::{Json, Router};
use dormouse_provider::{Direction, ListOf, Page};
use dormouse_types::Timestamp;
use dormouse_wire as wire;

use super::error::{WireError, WireResult};
use super::pages::page;
use super::scope::RunScope;
use super::{MAX_ARCHIVE, commands, files, present};
use crate::App;

const BASE: &str = "/api/v1/sandboxes";

pub(crate) fn router() -> Router<App> {
    let unlimited = axum::extract::DefaultBodyLimit::max(MAX_ARCHIVE);
    let path = |rest: &str| format!("{BASE}{rest}");
    Router::new()
        .route(BASE, post(create::create).get(list::list))
        .route(&path("/snapshots"), get(list_snapshots::list_snapshots))
        .route(
            &path("/snapshots/{id}"),
            get(get_snapshot::get_snapshot).delete(delete_snapshot::delete_snapshot),
        )
        .route(&path("/{id}"), get(self::get::get))
        .route(&path("/{id}/stop"), post(stop::stop))
        .route(&path("/{id}/extend-timeout"), post(extend::extend))
        .route(&path("/{id}/network-policy"), post(set_policy::set_policy))
        .route(&path("/{id}/snapshot"), post(snapshot::snapshot))
        .route(&path("/{id}/cmd"), post(commands::start::start).get(commands::list::list))
        .route(&path("/{id}/cmd/{command}"), get(commands::get::get))
        .route(&path("/{id}/cmd/{command}/logs"), get(commands::logs::logs))
        // The first SDK asks the one, Python's client the other.
        .route(&path("/{id}/{command}/kill"), post(commands::kill::kill))
        .route(&path("/{id}/cmd/{command}/kill"), post(commands::kill::kill))
        .route(&path("/{id}/fs/mkdir"), post(files::mkdir::mkdir))
        .route(&path("/{id}/fs/read"), post(files::read::read))
        .route(&path("/{id}/fs/write"), post(files::write::write).layer(unlimited))
}

async fn reply(
    app: &App,
    scope: &RunScope,
    run: dormouse_provider::Run,
) -> WireResult<Json<wire::v1::SandboxReply>> {
    let routes = present::routes(app.provider.routes(&scope.run).await?, &app.ports);
    Ok(Json(wire::v1::SandboxReply { sandbox: present::session(run), routes }))
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
) -> (Vec<T>, wire::v1::Pagination) {
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
    let pagination = wire::v1::Pagination { count: items.len(), next: oldest.filter(|_| more), prev: newest };
    (items, pagination)
}

fn list_of(query: &ListQuery, cursor: Option<String>) -> WireResult<ListOf> {
    let Page { limit, .. } = page(query.limit, None)?;
    Ok(ListOf { page: Page { limit, cursor }, order: Direction::Descending, sandbox: None })
}

#[cfg(test)]
mod tests {
    use dormouse_types::RunId;

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
