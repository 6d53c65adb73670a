//! Request bodies that an answer did not wait for.
//!
//! A request may be answered before its body was read: wrong key, body too
//! large. Closing the connection there and then can reach the client as a
//! reset, in the middle of its write, and the answer is lost with it (RFC 9112,
//! section 9.6). So what is left of a body is read and thrown away, within
//! bounds.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt as _;

/// Most bytes that are read for nothing.
const MAX_BYTES: usize = 16 << 20;

/// Longest time that is spent on it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Middleware that gives every request such a body.
pub(crate) async fn apply(request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::new(Lingering(body)))).await
}

struct Lingering(Body);

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        let body = std::mem::take(&mut self.0);
        // Outside of a runtime there is no connection either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(PATIENCE, drain(body)));
        }
    }
}

async fn drain(body: Body) {
    let mut read = 0;
    let mut data = body.into_data_stream();
    while let Some(Ok(chunk)) = data.next().await {
        read += chunk.len();
        if read > MAX_BYTES {
            return;
        }
    }
}
