//! Get a command, or wait for its end.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use dormouse_wire as wire;
use futures::FutureExt as _;
use utoipa::IntoParams;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::present;
use super::super::scope::{RunScope, ScopeQuery};
use super::command_id;
use super::stream::{SILENCE, never_silent};
use crate::App;

#[derive(serde::Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Answer when it has ended.
    #[serde(default)]
    wait: bool,
}

/// Get a command; with `wait`, once it has ended. An answer that takes long begins at once,
/// with spaces.
#[utoipa::path(get, path = "/sessions/{id}/cmd/{command}", tag = "commands", params(("id" = String, Path, description = "Session id"), ("command" = String, Path, description = "Command id"), ScopeQuery, WaitQuery),
    responses((status = 200, body = wire::CommandReply, description = "The command"), WireErrors))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: RunScope,
    Path(path): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> WireResult<Response> {
    let id = command_id(&path.1)?;
    let reply = |command| wire::CommandReply { command: present::command(command) };
    if !query.wait {
        return Ok(Json(reply(app.provider.command(&scope.run, &id).await?)).into_response());
    }
    let (right, activity, run) = (scope.right(), scope.activity(&app), scope.run);
    let mut waiting = async move {
        tokio::select! {
            ended = activity.during(app.provider.wait(&run, &id)) => Ok(reply(ended?)),
            () = right.lost(&app) => Err(WireError::forbidden("the right to this sandbox has ended")),
        }
    }
    .boxed();
    if let Ok(ended) = tokio::time::timeout(SILENCE, &mut waiting).await {
        return Ok(Json(ended?).into_response());
    }
    // The status is said by now: an error is said in the body, which is no command then.
    let last = waiting.map(|ended: WireResult<_>| {
        let text = match ended {
            Ok(reply) => serde_json::to_vec(&reply),
            Err(error) => serde_json::to_vec(&wire::ErrorReply { error: error.detail(), request_id: None }),
        };
        // Strings and numbers: their JSON cannot fail.
        Bytes::from(text.unwrap_or_default())
    });
    let filler = Bytes::from_static(b" ");
    let first = futures::stream::iter([filler.clone()]);
    let body = futures::StreamExt::chain(first, never_silent(futures::stream::once(last), filler));
    let body = futures::StreamExt::map(body, Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
