//! What every request has: an id, a time of receipt, a line in the access log.
//!
//! The id is the caller's `x-request-id`, or a new one. It is in every log line
//! that the request causes, in the answer's headers, and in error replies.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use dormouse_types::{AccountId, RequestId};
use tracing::Instrument as _;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that a caller may give, in bytes.
const MAX_ID: usize = 128;

struct Context {
    id: String,
    account: RefCell<Option<AccountId>>,
}

tokio::task_local! {
    static CONTEXT: Context;
}

/// The id of the request that is being answered.
pub(crate) fn current_id() -> Option<String> {
    CONTEXT.try_with(|context| context.id.clone()).ok()
}

/// The request is this account's; for the access log.
pub(crate) fn note_account(account: &AccountId) {
    // Outside of a request there is no line to put it in.
    let _ = CONTEXT.try_with(|context| *context.account.borrow_mut() = Some(account.clone()));
}

/// Who is at the other end of the connection.
pub(crate) fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
}

/// When the request was received, before anything was looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received(pub(crate) Instant);

impl<S: Send + Sync> FromRequestParts<S> for Received {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_else(|| Self(Instant::now())))
    }
}

/// An id that a caller gave, if it is fit for a log: visible ASCII, not too
/// long.
fn given(request: &Request) -> Option<String> {
    let text = request.headers().get(HEADER)?.to_str().ok()?;
    let plain = (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| text.to_owned())
}

/// The outermost layer.
pub(crate) async fn layer(mut request: Request, next: Next) -> Response {
    let received = Instant::now();
    request.extensions_mut().insert(Received(received));
    let id = given(&request).unwrap_or_else(|| RequestId::generate().to_string());
    // The query may hold a ticket: it stays out of the log.
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id);
    let context = Context { id: id.clone(), account: RefCell::default() };
    let answer = async move {
        // Two proxies may each believe another one (RFC 9112, section 3.2).
        let mut response = if request.headers().get_all(HOST).iter().count() > 1 {
            crate::error::ApiError::bad_request("a request has one Host header").into_response()
        } else {
            next.run(request).await
        };
        let account = CONTEXT.with(|context| context.account.borrow().as_ref().map(ToString::to_string));
        tracing::info!(
            target: "access",
            %method,
            path,
            status = response.status().as_u16(),
            ms = u64::try_from(received.elapsed().as_millis()).unwrap_or(u64::MAX),
            account,
        );
        if let Ok(value) = HeaderValue::try_from(id) {
            response.headers_mut().insert(HEADER, value);
        }
        response
    };
    CONTEXT.scope(context, answer.instrument(span)).await
}
