//! Feed standard input of a command.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::http::{StatusCode, header};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use dormouse_provider::Input;
use dormouse_wire as wire;
use futures::StreamExt as _;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use crate::App;
use crate::body::ApiJson;
use crate::error::ApiError;

/// Largest part of standard input as JSON, in bytes.
const MAX_INPUT: usize = 4 << 20;

/// Feed standard input of a command: a part of it as JSON, which may be sent again, or all of
/// it as bytes, whose end is the end of the body.
#[utoipa::path(post, path = "/sessions/{id}/cmd/{command}/stdin", tag = "commands", request_body(content((wire::InputRequest = "application/json"), (String = "application/octet-stream"))), params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery),
    responses((status = 200, body = wire::InputReply, description = "How much it has taken; nothing for bytes"), WireErrors))]
pub(crate) async fn stdin(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
    request: Request,
) -> WireResult<Json<wire::InputReply>> {
    let run_ref = scope.used(&app).await;
    let id = command_id(&path.1)?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.trim().to_ascii_lowercase().starts_with("application/json")) {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, MAX_INPUT).await.map_err(|_| {
            let message =
                format!("the body must not be over {MAX_INPUT} bytes; send more in parts, by offset");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        })?;
        let request = Request::from_parts(parts, Body::from(body));
        let ApiJson(body): ApiJson<wire::InputRequest> = ApiJson::from_request(request, &app).await?;
        let data = BASE64_STANDARD
            .decode(&body.data)
            .map_err(|error| WireError::bad_request(format!("data: it is no base64: {error}")))?;
        let input = Input { data: data.into(), offset: body.offset, close: body.close };
        let total = app.provider.input(&run_ref, &id, input).await?;
        return Ok(Json(wire::InputReply { bytes_written: Some(total) }));
    }
    let body = Body::from_request(request, &app).await.unwrap_or_else(|never| match never {});
    let body = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    app.provider.stdin(&run_ref, &id, Box::pin(body)).await?;
    Ok(Json(wire::InputReply { bytes_written: None }))
}
