//! `GET /api/sandbox/events`: the history of a session, in pages or as a stream
//! of server-sent events (WHATWG HTML, "Server-sent events").

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use dormouse_sessions::SessionError;
use dormouse_store::SessionEventRow;
use dormouse_types::{AccountId, SessionId};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::{IntoParams, ToSchema};

use super::required;
use crate::App;
use crate::auth::{Account, still_allowed};
use crate::body::ApiQuery;
use crate::error::{ApiError, ApiErrors, ApiResult};

/// Longest page.
const MAX_PAGE: i64 = 100;

/// How often a stream looks without being told: for what other servers do.
const LOOK: Duration = Duration::from_secs(2);

/// How often a stream looks whether its caller may still read it.
const CHECK: Duration = Duration::from_secs(10);

/// How often a stream that has nothing to say says so, so that proxies keep it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// Session id.
    #[param(required = true)]
    session_id: Option<String>,
    /// Return events after this id. A `Last-Event-ID` header takes precedence.
    after: Option<String>,
    /// Page size, 1 to 100; 100 by default. Ignored for a stream.
    limit: Option<String>,
}

/// Something that happened to a session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionEvent {
    /// Increases within the session.
    id: i64,
    /// Milliseconds since 1970.
    at: i64,
    /// `lifecycleVersion` of the session after it.
    lifecycle_version: i64,
    /// State before.
    from: String,
    /// State after; equal to `from` if it did not change.
    to: String,
    /// `provision`, `clone`, `ready`, `failed`, `called_off`, `idle`, `lifetime`,
    /// `requested`, `died`, `asleep`, `used`, `archived`, `unarchived`,
    /// `sandbox_deleted`, `began_anew` or `recovered`.
    reason: String,
    /// Account that caused it; absent: the server did, or it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
    /// The branch, of `ready`; the reason, of `failed`; how far it is, of `clone`: `42%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl From<SessionEventRow> for SessionEvent {
    fn from(row: SessionEventRow) -> Self {
        Self {
            id: row.seq,
            at: row.at.as_millis(),
            lifecycle_version: row.version,
            from: row.before.to_string(),
            to: row.after.to_string(),
            reason: row.cause.reason.to_string(),
            actor: row.cause.actor.map(|actor| actor.to_string()),
            detail: row.cause.detail,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventsReply {
    events: Vec<SessionEvent>,
    /// Pass as `after` to get the next page. Absent on the last page; to poll, pass
    /// the id of the last event that you have.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

/// List a session's events, oldest first. With `Accept: text/event-stream`, stream
/// them, and new ones as they happen. The stream ends with an event named `deleted`
/// when the session is deleted.
#[utoipa::path(get, path = "/api/sandbox/events", tag = "sandbox", params(EventsQuery),
    responses((status = 200, description = "A page of events, or a stream of them",
        content((EventsReply = "application/json"), (String = "text/event-stream"))), ApiErrors))]
pub(crate) async fn events(
    State(app): State<App>,
    Account(account): Account,
    headers: HeaderMap,
    ApiQuery(query): ApiQuery<EventsQuery>,
) -> ApiResult<Response> {
    let session = required(query.session_id)?;
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
    let after = match last.or(query.after.as_deref()) {
        None => 0,
        Some(text) => number(text).ok_or_else(|| {
            let name = if last.is_some() { "Last-Event-ID" } else { "after" };
            ApiError::bad_request(format!("{name} must be the id of an event"))
        })?,
    };
    if text(header::ACCEPT).is_some_and(|accepts| accepts.contains("text/event-stream")) {
        // Whoever may not read it is told so by a status.
        app.sessions.get(&account, &session).await?;
        let heard = app.sessions.listen();
        let due = VecDeque::new();
        let follower =
            Follower { app, account, headers, session, after, due, heard, checked: Instant::now() };
        let events = stream::unfold(Some(follower), |follower| async move {
            let (event, follower) = follower?.next().await?;
            Some((Ok::<_, Infallible>(event), follower))
        });
        let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
        response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        return Ok(response);
    }
    let limit = query.limit.as_deref().map_or(Some(MAX_PAGE), number);
    let limit = limit.filter(|limit| (1..=MAX_PAGE).contains(limit));
    let limit =
        limit.ok_or_else(|| ApiError::bad_request(format!("limit must be a number from 1 to {MAX_PAGE}")))?;
    let found = app.sessions.events(&account, &session, after, limit).await?;
    let whole = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let next = found.last().map(|row| row.seq).filter(|_| whole);
    Ok(Json(EventsReply { events: found.into_iter().map(Into::into).collect(), next }).into_response())
}

/// Who follows the events of a session.
struct Follower {
    app: App,
    account: AccountId,
    /// With the caller's credentials.
    headers: HeaderMap,
    session: SessionId,
    /// The last event that was sent.
    after: i64,
    /// Events that are to be sent.
    due: VecDeque<SessionEventRow>,
    heard: broadcast::Receiver<SessionId>,
    /// When the caller's right was last looked at.
    checked: Instant,
}

impl Follower {
    /// The next event, and who goes on after it; `None`: the stream is over.
    async fn next(mut self) -> Option<(Event, Option<Self>)> {
        loop {
            if let Some(row) = self.due.pop_front() {
                self.after = row.seq;
                let event = Event::default().id(row.seq.to_string()).event("lifecycle");
                // It has nothing that JSON cannot say.
                return Some((event.json_data(SessionEvent::from(row)).ok()?, Some(self)));
            }
            if self.checked.elapsed() >= CHECK {
                still_allowed(&self.headers, &self.app, &self.account).await.then_some(())?;
                self.checked = Instant::now();
            }
            match self.app.sessions.events(&self.account, &self.session, self.after, MAX_PAGE).await {
                Ok(found) if found.is_empty() => {
                    let sessions = self.app.sessions.clone();
                    tokio::select! {
                        () = self.wait() => {}
                        // Whoever follows comes back, to the next server.
                        () = sessions.closed() => return None,
                    }
                }
                Ok(found) => self.due.extend(found),
                Err(SessionError::NotFound) => {
                    return Some((Event::default().event("deleted").data("{}"), None));
                }
                Err(error) => {
                    tracing::warn!(session = %self.session, ?error, "read events");
                    return None;
                }
            }
        }
    }

    /// Waits until something may have happened.
    async fn wait(&mut self) {
        let told = async {
            loop {
                match self.heard.recv().await {
                    Ok(session) if session != self.session => {}
                    // Too many to hear them all: it may have been among them.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Either way it looks.
        let _ = tokio::time::timeout(LOOK, told).await;
    }
}
