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
mod ports;
mod provider;
mod session;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use dormouse_jobs::Clock;
use dormouse_provider::{HealthSource, PortGateway, SandboxProvider};
use dormouse_sessions::Sessions;
use dormouse_store::Db;
use tower_http::catch_panic::CatchPanicLayer;

pub use jwt::{JwtConfig, JwtVerifier};
pub use openapi::document as openapi_document;
pub use ports::PortsConfig;

/// Largest JSON body, in bytes.
const MAX_JSON: usize = 256 << 10;

/// What the service is made of.
#[derive(Debug)]
pub struct Parts {
    /// Accounts and keys.
    pub db: Db,
    /// The product.
    pub sessions: Arc<Sessions>,
    /// Who runs sandboxes.
    pub provider: Arc<dyn SandboxProvider>,
    /// Who reaches their ports; `None`: the provider publishes them itself.
    pub gateway: Option<Arc<dyn PortGateway>>,
    /// Who knows how this host is; `None`: nothing runs here.
    pub health: Option<Arc<dyn HealthSource>>,
    /// Where the provider serves its own API, when that is not here: sandboxes
    /// of another service belong to its accounts, not to ours.
    pub elsewhere: Option<String>,
    /// How ports are published.
    pub ports: PortsConfig,
    /// Time.
    pub clock: Clock,
    /// Foreign tokens, when configured.
    pub jwt: Option<Arc<JwtVerifier>>,
}

/// What every handler can reach.
#[derive(Debug, Clone)]
pub(crate) struct App {
    db: Db,
    sessions: Arc<Sessions>,
    provider: Arc<dyn SandboxProvider>,
    gateway: ports::Gateway,
    health: Option<Arc<dyn HealthSource>>,
    ports: Arc<PortsConfig>,
    clock: Clock,
    jwt: Option<Arc<JwtVerifier>>,
    noted: ports::Noted,
}

/// The whole service.
pub fn router(parts: Parts) -> Router {
    let Parts { db, sessions, provider, gateway, health, elsewhere, ports, clock, jwt } = parts;
    let app = App {
        db,
        sessions,
        provider,
        gateway,
        health,
        ports: Arc::new(ports),
        clock,
        jwt,
        noted: ports::Noted::default(),
    };
    let (session_routes, _) = session::router().split_for_parts();
    Router::new()
        .merge(session_routes)
        .merge(match elsewhere {
            None => provider::router(),
            Some(place) => provider::elsewhere(place),
        })
        .merge(operations::router())
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn(cors::apply))
        .layer(axum::middleware::from_fn(linger::apply))
        .layer(axum::middleware::from_fn_with_state(app.clone(), ports::route))
        .with_state(app)
}
