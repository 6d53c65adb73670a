//! Routers: session API, provider API, operations, OpenAPI document. A handler
//! parses, calls one method, presents; it holds no rule.

mod activity;
mod auth;
mod body;
mod cors;
mod error;
mod jwt;
mod linger;
mod listen;
mod openapi;
mod operations;
mod ports;
mod provider;
mod rates;
mod request;
mod session;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use dormouse_jobs::Clock;
use dormouse_provider::{HealthSource, PortGateway, SandboxProvider};
use dormouse_sessions::Sessions;
use dormouse_store::Db;
use tower_http::catch_panic::CatchPanicLayer;

pub use jwt::{JwtConfig, JwtVerifier};
pub use listen::{Tls, TlsError, serve};
pub use openapi::{provider_document, session_document};
pub use ports::PortsConfig;
pub use rates::RatesConfig;

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
    /// How many requests a caller may make.
    pub rates: RatesConfig,
    /// Time.
    pub clock: Clock,
    /// Foreign tokens, when configured.
    pub jwt: Option<Arc<JwtVerifier>>,
    /// What identifies sandboxes to others.
    pub identity: Identity,
}

/// Who signs tokens of sandboxes, and with which keys they are checked.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The issuer's URL.
    pub issuer: String,
    /// Its public keys (RFC 7517).
    pub keys: serde_json::Value,
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
    noted: activity::Noted,
    rates: rates::Rates,
    identity: Arc<Identity>,
}

/// The whole service.
pub fn router(parts: Parts) -> Router {
    let Parts { db, sessions, provider, gateway, health, elsewhere, ports, rates, clock, jwt, identity } =
        parts;
    let app = App {
        db,
        sessions,
        provider,
        gateway,
        health,
        ports: Arc::new(ports),
        clock,
        jwt,
        noted: activity::Noted::default(),
        rates: rates::Rates::new(rates),
        identity: Arc::new(identity),
    };
    let (session_routes, _) = session::router().split_for_parts();
    // Whoever calls is asked who they are before anything else is looked at.
    let guard = |routes: Router<App>, refuse: fn(error::ApiError) -> Response| {
        let layer = move |State(app): State<App>, request: Request, next: Next| {
            auth::layer(app, request, next, refuse)
        };
        routes.route_layer(axum::middleware::from_fn_with_state(app.clone(), layer))
    };
    let provider_routes = match elsewhere {
        None => guard(provider::router(), provider::refuse).merge(provider::open_router()),
        Some(place) => guard(provider::elsewhere(place), provider::refuse),
    };
    Router::new()
        .merge(guard(session_routes, IntoResponse::into_response))
        .merge(provider_routes)
        .merge(operations::router())
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn(error::envelope))
        .layer(axum::middleware::from_fn(cors::apply))
        .layer(axum::middleware::from_fn(linger::apply))
        .layer(axum::middleware::from_fn(request::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), ports::route))
        .with_state(app)
}
