//! Write files.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use futures::StreamExt as _;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use crate::App;

/// Unpack a tar archive below the directory that `x-cwd` names, as the default user.
#[utoipa::path(post, path = "/sessions/{id}/fs/write", tag = "files", request_body(content_type = "application/gzip", description = "The archive"), params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = serde_json::Value, description = "An empty object"), WireErrors))]
pub(crate) async fn write(
    State(app): State<App>,
    scope: RunScope,
    headers: HeaderMap,
    body: Body,
) -> WireResult<Json<serde_json::Value>> {
    let run_ref = scope.used(&app).await;
    let gzip = match headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) {
        Some("application/gzip" | "application/x-gzip") => true,
        Some("application/x-tar") => false,
        _ => {
            return Err(WireError::bad_request("content-type must be application/gzip or application/x-tar"));
        }
    };
    // Names of files are bytes of UTF-8, in a header too.
    let cwd = headers.get("x-cwd").map(|value| std::str::from_utf8(value.as_bytes())).transpose();
    let cwd = cwd.map_err(|_| WireError::bad_request("x-cwd must be UTF-8"))?.unwrap_or(".");
    let body = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    app.provider.write_files(&run_ref, cwd, gzip, Box::pin(body)).await?;
    Ok(Json(serde_json::json!({})))
}
