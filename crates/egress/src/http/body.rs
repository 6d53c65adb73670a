//! Bodies, counted as they pass.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::Failure;
use crate::ledger::Underway;

/// A body of a request or response.
pub(super) type Body = UnsyncBoxBody<Bytes, Failure>;

/// No body.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub(super) fn full(bytes: Bytes, underway: Option<Arc<Underway>>) -> Body {
    let body = Full::new(bytes).map_err(|never| match never {});
    match underway {
        Some(underway) => Metered { body, underway, sent: false }.boxed_unsync(),
        None => body.boxed_unsync(),
    }
}

/// A body whose bytes are counted.
#[derive(Debug)]
pub(super) struct Metered<B> {
    body: B,
    underway: Arc<Underway>,
    sent: bool,
}

impl Metered<Incoming> {
    /// It leaves the sandbox.
    pub(super) fn sent(body: Incoming, underway: Arc<Underway>) -> Body {
        Self { body, underway, sent: true }.map_err(|error| -> Failure { Box::new(error) }).boxed_unsync()
    }

    /// It comes.
    pub(super) fn received(body: Incoming, underway: Arc<Underway>) -> Body {
        Self { body, underway, sent: false }.map_err(|error| -> Failure { Box::new(error) }).boxed_unsync()
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Metered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            if self.sent {
                self.underway.sent(data.len());
            } else {
                self.underway.received(data.len());
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
