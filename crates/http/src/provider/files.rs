//! Files: write a tar, read one, make a directory.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use dormouse_wire as wire;
use futures::StreamExt as _;

use super::RunScope;
use super::error::{WireError, WireResult};
use crate::App;
use crate::body::ApiJson;

pub(crate) async fn mkdir(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::PathRequest>,
) -> WireResult<Json<serde_json::Value>> {
    let recursive = body.recursive.unwrap_or(false);
    app.provider.mkdir(&scope.run, &body.path, body.cwd.as_deref(), recursive).await?;
    Ok(Json(serde_json::json!({})))
}

pub(crate) async fn read(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::PathRequest>,
) -> WireResult<Response> {
    let content = app.provider.read_file(&scope.run, &body.path, body.cwd.as_deref()).await?;
    let content = content.map(|chunk| chunk.map_err(|error| std::io::Error::other(error.to_string())));
    let mut response = Response::new(Body::from_stream(content));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

pub(crate) async fn write(
    State(app): State<App>,
    scope: RunScope,
    headers: HeaderMap,
    body: Body,
) -> WireResult<Json<serde_json::Value>> {
    let gzip = match headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) {
        Some("application/gzip" | "application/x-gzip") => true,
        Some("application/x-tar") => false,
        _ => {
            return Err(WireError::bad_request("content-type must be application/gzip or application/x-tar"));
        }
    };
    let cwd = headers.get("x-cwd").and_then(|value| value.to_str().ok()).unwrap_or(".");
    let body = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    app.provider.write_files(&scope.run, cwd, gzip, Box::pin(body)).await?;
    Ok(Json(serde_json::json!({})))
}
