//! For operators and for clients: health, and the documents of both APIs.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use dormouse_provider::{Count, HealthCheck, HealthState};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

use crate::App;

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .route("/oidc/.well-known/jwks", get(keys))
        .route("/oidc/.well-known/openid-configuration", get(issuer))
        .route("/openapi.json", get(session_document))
        .route("/openapi/provider.json", get(provider_document))
}

/// 200 while requests can be answered, 503 when they cannot. The body says what
/// was looked at, and why something is not well.
async fn health(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let mut checks = app.health.as_ref().map(|source| source.health()).unwrap_or_default();
    let database = app.db.ping().await.inspect_err(|error| tracing::error!(%error, "health"));
    checks.push(HealthCheck {
        name: "database",
        state: if database.is_ok() { HealthState::Ok } else { HealthState::Failing },
        detail: database.err().map(|_| "the database does not answer".to_owned()),
    });
    let state = checks.iter().map(|check| check.state).max().unwrap_or(HealthState::Ok);
    let code = if state == HealthState::Failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let shown: serde_json::Map<_, _> = checks
        .into_iter()
        .map(|check| {
            let mut value = json!({"status": check.state.as_str()});
            if let Some(detail) = check.detail {
                value["detail"] = detail.into();
            }
            (check.name.to_owned(), value)
        })
        .collect();
    (code, Json(json!({"status": state.as_str(), "checks": shown})))
}

/// Keys with which the tokens of forwarded requests are checked.
async fn keys(State(app): State<App>) -> Json<Value> {
    Json(app.identity.keys.clone())
}

/// Where they are (OpenID Connect Discovery 1.0, section 3).
async fn issuer(State(app): State<App>) -> Json<Value> {
    let issuer = &app.identity.issuer;
    Json(json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
    }))
}

/// What the server counts, in Prometheus' text format.
async fn metrics(State(app): State<App>) -> ([(header::HeaderName, &'static str); 1], String) {
    let mut text = String::new();
    let mut last = "";
    for Count { name, help, label, value } in app.health.iter().flat_map(|source| source.counts()) {
        // Writing to a String cannot fail.
        if name != last {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            last = name;
        }
        let _ = match label {
            Some((key, label)) => writeln!(text, "{name}{{{key}=\"{label}\"}} {value}"),
            None => writeln!(text, "{name} {value}"),
        };
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn session_document() -> Json<OpenApi> {
    Json(crate::openapi::session_document())
}

async fn provider_document() -> Json<OpenApi> {
    Json(crate::openapi::provider_document())
}
