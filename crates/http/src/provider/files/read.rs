//! Read a file.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use dormouse_wire as wire;
use futures::StreamExt as _;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use crate::App;
use crate::body::ApiJson;

/// Read a regular file, as the default user.
#[utoipa::path(post, path = "/sessions/{id}/fs/read", tag = "files", request_body = wire::PathRequest, params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, content_type = "application/octet-stream", description = "Its bytes"), WireErrors))]
pub(crate) async fn read(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::PathRequest>,
) -> WireResult<Response> {
    let run_ref = scope.used(&app).await;
    let content = app.provider.read_file(&run_ref, &body.path, body.cwd.as_deref()).await?;
    let content = content.map(|chunk| chunk.map_err(|error| std::io::Error::other(error.to_string())));
    let mut response = Response::new(Body::from_stream(content));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
