//! For operators: health, and the document of the session API.

use axum::Json;
use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use crate::App;

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/healthz", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/openapi.json", get(document))
}

async fn document() -> Json<Value> {
    Json(serde_json::to_value(crate::openapi::document()).unwrap_or_default())
}
