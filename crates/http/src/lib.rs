//! Routers: session API, provider API, operations, OpenAPI document. A handler
//! parses, calls one method, presents; it holds no rule.

mod auth;
mod body;
mod cors;
mod error;
mod jwt;
mod linger;
mod openapi;
mod operations;
mod provider;
mod session;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use dormouse_jobs::Clock;
use dormouse_provider::SandboxProvider;
use dormouse_sessions::Sessions;
use dormouse_store::Db;
use tower_http::catch_panic::CatchPanicLayer;

pub use jwt::{JwtConfig, JwtVerifier};
pub use openapi::document as openapi_document;

/// Largest JSON body, in bytes.
const MAX_JSON: usize = 256 << 10;

/// What every handler can reach.
#[derive(Debug, Clone)]
pub struct App {
    /// Accounts and keys.
    pub db: Db,
    /// The product.
    pub sessions: Arc<Sessions>,
    /// Who runs sandboxes.
    pub provider: Arc<dyn SandboxProvider>,
    /// Time.
    pub clock: Clock,
    /// Foreign tokens, when configured.
    pub jwt: Option<Arc<JwtVerifier>>,
}

/// The whole service.
pub fn router(app: App) -> Router {
    let (session_routes, _) = session::router().split_for_parts();
    Router::new()
        .merge(session_routes)
        .merge(provider::router())
        .merge(operations::router())
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn(cors::apply))
        .layer(axum::middleware::from_fn(linger::apply))
        .with_state(app)
}
