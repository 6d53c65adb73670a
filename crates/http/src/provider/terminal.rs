//! Terminals over WebSocket (provider contract, section 10). A ticket, good for
//! one connection within a minute, stands for the right to open one: a
//! WebSocket's address travels where a key must not.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use dormouse_provider::{CommandSpec, RunRef, SandboxKey, TerminalInput, TerminalOutput, TerminalSize};
use dormouse_store::{TicketRow, hash_secret};
use dormouse_wire as wire;
use futures::{SinkExt as _, StreamExt as _};

use super::error::{WireError, WireErrors, WireResult};
use super::scope::{RunScope, ScopeQuery};
use crate::App;
use crate::activity::Activity;
use crate::auth::Right;

/// How long a ticket waits for its connection.
const TICKET: Duration = Duration::from_secs(60);

/// How long the first frame may take.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Both ends may be behind something that cuts silent connections.
const PING: Duration = Duration::from_secs(20);

/// Size of a window that does not say its own.
const SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// Largest message that a client sends, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// A new ticket for a run, good on every server of the database.
async fn issue(app: &App, run: RunRef, right: Right) -> WireResult<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| dormouse_provider::ProviderError::internal("make a ticket", error))?;
    let ticket = dormouse_types::hex(&bytes);
    let now = app.clock.now();
    let row = TicketRow {
        namespace: run.namespace,
        run_id: run.id,
        account_id: right.account,
        key_id: right.key,
        expires_at: now.plus(TICKET),
    };
    let added = app.db.insert_ticket(&hash_secret(&ticket), &row, now).await;
    added.map_err(crate::error::ApiError::from)?;
    Ok(ticket)
}

/// What a ticket stands for, once. What is no ticket costs the database nothing.
async fn redeem(app: &App, ticket: &str) -> WireResult<Option<(RunRef, Right)>> {
    if ticket.len() != 64 || !ticket.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let found = app.db.redeem_ticket(&hash_secret(ticket), app.clock.now()).await;
    let found = found.map_err(crate::error::ApiError::from)?;
    Ok(found.map(|row| {
        let right = Right { account: row.account_id, key: row.key_id, owner: row.namespace.owner.clone() };
        (RunRef { namespace: row.namespace, id: row.run_id }, right)
    }))
}

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/health", get(async || Json(serde_json::json!({"status": "ok"}))))
        .route("/terminal", get(connect))
}

/// Get the right to open a terminal in a session: a URL and a ticket for it.
#[utoipa::path(post, path = "/sessions/{id}/interactive", tag = "sessions",
    params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::InteractiveReply, description = "Where, and with what"), WireErrors))]
pub(crate) async fn invite(
    State(app): State<App>,
    scope: RunScope,
    headers: HeaderMap,
) -> WireResult<Json<wire::InteractiveReply>> {
    scope.used(&app).await;
    let run = app.provider.run(&scope.run).await?;
    match run.status {
        status if status.is_ended() => return Err(dormouse_provider::ProviderError::Stopped.into()),
        dormouse_provider::RunStatus::Running => {}
        _ => return Err(dormouse_provider::ProviderError::Stopping.into()),
    }
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).ok_or_else(|| WireError::bad_request("the Host header is missing"))?;
    // Whoever sits in front with TLS says so; what they say decides nothing here
    // but how the client comes back.
    let forwarded = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    let right = scope.right();
    let scheme = if forwarded == Some("https") { "wss" } else { "ws" };
    Ok(Json(wire::InteractiveReply {
        url: format!("{scheme}://{host}/terminal"),
        token: issue(&app, scope.run, right).await?,
    }))
}

#[derive(serde::Deserialize)]
struct Ticket {
    token: Option<String>,
}

async fn connect(
    State(app): State<App>,
    Query(query): Query<Ticket>,
    upgrade: WebSocketUpgrade,
) -> WireResult<Response> {
    let run = match query.token {
        Some(ticket) => redeem(&app, &ticket).await?,
        None => None,
    };
    let (run, right) =
        run.ok_or_else(|| WireError::forbidden("the token is unknown, used or older than a minute"))?;
    Ok(upgrade.max_message_size(MAX_MESSAGE).on_upgrade(move |socket| serve(app, run, right, socket)))
}

fn text(message: &wire::TerminalMessage) -> Message {
    // Strings and numbers: their JSON cannot fail.
    Message::Text(serde_json::to_string(message).unwrap_or_default().into())
}

async fn close(mut socket: WebSocket, code: u16, reason: String) {
    let reason: String = reason.chars().take(100).collect();
    // The other side may be gone.
    let _ = socket.send(Message::Text(format!("{reason}\r\n").into())).await;
    let frame = CloseFrame { code, reason: Utf8Bytes::from(reason) };
    let _ = socket.send(Message::Close(Some(frame))).await;
}

/// The command that the first frame names.
async fn first(socket: &mut WebSocket) -> Result<(CommandSpec, TerminalSize), String> {
    let frame = tokio::time::timeout(START_PATIENCE, socket.recv()).await;
    let Ok(Some(Ok(Message::Text(frame)))) = frame else {
        return Err("the first frame must be a text frame of type start".to_owned());
    };
    let message = serde_json::from_str(&frame).map_err(|error| format!("malformed start frame: {error}"))?;
    let wire::TerminalMessage::Start { command, args, env, cwd, cols, rows } = message else {
        return Err("the first frame must be of type start".to_owned());
    };
    let mut spec = CommandSpec::new(std::iter::once(command).chain(args));
    spec.env = env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect::<BTreeMap<_, _>>();
    spec.cwd = cwd.filter(|cwd| !cwd.is_empty());
    let size = TerminalSize { cols: cols.unwrap_or(SIZE.cols), rows: rows.unwrap_or(SIZE.rows) };
    Ok((spec, size))
}

async fn serve(app: App, run: RunRef, right: Right, mut socket: WebSocket) {
    let (spec, size) = match first(&mut socket).await {
        Ok(first) => first,
        Err(reason) => return close(socket, 1008, reason).await,
    };
    // The ticket, and whoever holds it, took their time.
    if !right.holds(&app).await {
        return close(socket, 1008, "the right to this sandbox has ended".to_owned()).await;
    }
    let (typed, input) = tokio::sync::mpsc::channel(16);
    let input = Box::pin(tokio_stream::wrappers::ReceiverStream::new(input));
    let mut output = match app.provider.terminal(&run, spec, size, input).await {
        Ok(output) => output,
        Err(error) => {
            let error = WireError::from(error).detail();
            return close(socket, 1011, error.message).await;
        }
    };
    let used = match app.provider.run(&run).await {
        Ok(found) => {
            let key = SandboxKey { namespace: run.namespace.clone(), name: found.sandbox };
            Activity::new(&app, key).stream()
        }
        Err(error) => {
            let error = WireError::from(error).detail();
            return close(socket, 1011, error.message).await;
        }
    };
    let (mut to_client, mut from_client) = socket.split();
    let (at_the_keys, open) = (used.clone(), used.clone());
    let typing = async move {
        while let Some(Ok(message)) = from_client.next().await {
            if matches!(message, Message::Binary(_) | Message::Text(_)) {
                at_the_keys.client();
            }
            let event = match message {
                Message::Binary(data) => TerminalInput::Data(data),
                Message::Text(frame) => match serde_json::from_str(&frame) {
                    Ok(wire::TerminalMessage::Resize { cols, rows }) => {
                        TerminalInput::Resize(TerminalSize { cols, rows })
                    }
                    // What is no message is typed.
                    _ => TerminalInput::Data(bytes::Bytes::copy_from_slice(frame.as_bytes())),
                },
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            if typed.send(event).await.is_err() {
                break;
            }
        }
    };
    let showing = async move {
        let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
        loop {
            let message = tokio::select! {
                event = output.next() => match event {
                    Some(Ok(TerminalOutput::Data(data))) => {
                        used.sandbox();
                        Message::Binary(data)
                    }
                    Some(Ok(TerminalOutput::Exited(code))) => {
                        let _ = to_client.send(text(&wire::TerminalMessage::Exit { code })).await;
                        break;
                    }
                    Some(Err(error)) => {
                        let message = WireError::from(error).detail().message;
                        let _ = to_client.send(Message::Text(format!("{message}\r\n").into())).await;
                        break;
                    }
                    None => break,
                },
                _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
            };
            if to_client.send(message).await.is_err() {
                break;
            }
        }
        // Says goodbye, so that the client does not take it for a broken line.
        let _ = to_client.send(Message::Close(None)).await;
        let _ = to_client.close().await;
    };
    // The end of either is the end: dropping the input hangs up.
    tokio::select! {
        () = typing => {}
        () = showing => {}
        () = right.lost(&app) => {}
        () = open.open() => {}
    }
}
