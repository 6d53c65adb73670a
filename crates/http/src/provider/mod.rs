//! The provider API: the Vercel Sandbox protocol over the provider port. Facts:
//! provider contract. Sessions of the wire are our runs.
//!
//! `/api/v2` and `/api/v3` are the same but for one thing: a git source goes into
//! the working directory itself in 2, into a directory of its own in 3. What
//! `/api/v1` calls a sandbox is what the others call a session (`v1`).
//!
//! One file holds one operation. What is done in a sandbox counts as use of the
//! session that it belongs to; the handler says so ([`scope::RunScope::used`]).

mod commands;
mod drives;
mod error;
mod files;
mod pages;
mod platform;
pub(crate) mod present;
mod requests;
mod runs;
mod sandboxes;
mod scope;
mod snapshots;
mod terminal;
mod v1;

use axum::routing::any;
use axum::{Extension, Router};
use dormouse_provider::CloneDirectory;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use error::WireError;
pub(crate) use error::refuse;
use scope::Scope;
pub(crate) use scope::note_use;

/// Largest archive that a write takes, in bytes.
const MAX_ARCHIVE: usize = 4 << 30;

/// Routes of versions 2 and 3, with their documentation.
pub(crate) fn documented() -> OpenApiRouter<App> {
    let versions =
        [("/api/v2/sandboxes", CloneDirectory::Workdir), ("/api/v3/sandboxes", CloneDirectory::Named)];
    versions.into_iter().fold(OpenApiRouter::new(), |router, (base, clones)| {
        router.nest(base, version().layer(Extension(clones)))
    })
}

/// Routes of one version, below its base.
fn version() -> OpenApiRouter<App> {
    let large = OpenApiRouter::new()
        .routes(routes!(commands::stdin::stdin))
        .routes(routes!(files::write::write))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_ARCHIVE));
    OpenApiRouter::new()
        .merge(large)
        .routes(routes!(sandboxes::list::list, sandboxes::create::create))
        .routes(routes!(sandboxes::get::get, sandboxes::update::update, sandboxes::delete::delete))
        .routes(routes!(sandboxes::fork::fork))
        .routes(routes!(sandboxes::network::network))
        .routes(routes!(runs::list::list))
        .routes(routes!(runs::get::get))
        .routes(routes!(runs::stop::stop))
        .routes(routes!(runs::extend::extend))
        .routes(routes!(runs::set_policy::set_policy))
        .routes(routes!(runs::snapshot::snapshot))
        .routes(routes!(terminal::invite))
        .routes(routes!(commands::start::start, commands::list::list))
        .routes(routes!(commands::get::get))
        .routes(routes!(commands::logs::logs))
        .routes(routes!(commands::kill::kill))
        .routes(routes!(files::mkdir::mkdir))
        .routes(routes!(files::read::read))
        .routes(routes!(snapshots::list::list))
        .routes(routes!(snapshots::tree::tree))
        .routes(routes!(snapshots::get::get, snapshots::delete::delete))
        .routes(routes!(drives::list::list))
        .routes(routes!(drives::get::get, drives::have::have, drives::delete::delete))
        .routes(routes!(drives::fork::fork))
}

/// Everything that needs a caller.
pub(crate) fn router() -> Router<App> {
    let (documented, _) = documented().split_for_parts();
    documented.merge(platform::router()).merge(v1::router())
}

/// What a ticket alone opens.
pub(crate) fn open_router() -> Router<App> {
    terminal::router()
}

/// The provider API of a server whose sandboxes run at `place`. Not 404: that
/// would say that a sandbox is gone.
pub(crate) fn elsewhere(place: String) -> Router<App> {
    let refuse = move |_: Scope| {
        let message = format!("this server has no sandboxes of its own: they run at {place}");
        std::future::ready(WireError::bad_request(message))
    };
    let first = ["/api/v1/sandboxes", "/api/v1/sandboxes/{*rest}"];
    ["/api/v2/sandboxes", "/api/v2/sandboxes/{*rest}", "/api/v3/sandboxes", "/api/v3/sandboxes/{*rest}"]
        .into_iter()
        .chain(first)
        .fold(Router::new(), |router, path| router.route(path, any(refuse.clone())))
}
