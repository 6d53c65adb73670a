//! Secrets that were put into a request are taken out of its answer, where the
//! other side repeats them: asterisks of the same length take their place. That
//! holds for what can be read, which is why such requests ask for no compression.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderValue};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use memchr::memmem;

/// Shorter texts are no secrets: they would be found everywhere.
const MIN_SECRET: usize = 8;

/// Texts that are looked for.
#[derive(Clone, Default)]
pub(super) struct Needles(Arc<Vec<Vec<u8>>>);

impl std::fmt::Debug for Needles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Needles({})", self.0.len())
    }
}

impl Needles {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a header, its parts, and the password in it.
    pub(super) fn add(&mut self, value: &HeaderValue) {
        let needles = Arc::make_mut(&mut self.0);
        let mut add = |text: &[u8]| {
            if text.len() >= MIN_SECRET && !needles.iter().any(|needle| needle == text) {
                needles.push(text.to_vec());
            }
        };
        add(value.as_bytes());
        for word in value.as_bytes().split(|byte| *byte == b' ') {
            add(word);
            // Basic authentication (RFC 7617).
            if let Ok(pair) = BASE64_STANDARD.decode(word)
                && let Some(at) = pair.iter().position(|byte| *byte == b':')
            {
                add(&pair[at + 1..]);
            }
        }
        // The longest first: what is part of another goes with it.
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
    }

    /// Overwrites what is found; tells whether something was.
    fn scrub(&self, bytes: &mut [u8]) -> bool {
        let mut found = false;
        for needle in self.0.iter() {
            let mut from = 0;
            while let Some(at) = memmem::find(&bytes[from..], needle) {
                bytes[from + at..from + at + needle.len()].fill(b'*');
                from += at + needle.len();
                found = true;
            }
        }
        found
    }

    pub(super) fn scrub_headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            let mut bytes = value.as_bytes().to_vec();
            if self.scrub(&mut bytes) {
                *value = HeaderValue::from_bytes(&bytes).unwrap_or(HeaderValue::from_static("*"));
            }
        }
    }

    /// How many bytes at the end could be the beginning of a needle.
    fn held_back(&self, bytes: &[u8]) -> usize {
        let longest = self.0.first().map_or(0, Vec::len);
        let most = longest.saturating_sub(1).min(bytes.len());
        (1..=most)
            .rev()
            .find(|length| {
                let tail = &bytes[bytes.len() - length..];
                self.0.iter().any(|needle| needle.len() > *length && needle.starts_with(tail))
            })
            .unwrap_or(0)
    }
}

/// A body without the needles.
#[derive(Debug)]
pub(super) struct Scrubbed<B> {
    body: B,
    needles: Needles,
    held: BytesMut,
    /// Comes behind what is held.
    next: Option<Frame<Bytes>>,
}

impl<B> Scrubbed<B> {
    pub(super) fn new(body: B, needles: Needles) -> Self {
        Self { body, needles, held: BytesMut::new(), next: None }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Scrubbed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if let Some(frame) = this.next.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        loop {
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.held.extend_from_slice(&data);
                        this.needles.scrub(&mut this.held);
                        let keep = this.needles.held_back(&this.held);
                        let ready = this.held.split_to(this.held.len() - keep);
                        if !ready.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(ready.freeze()))));
                        }
                    }
                    Err(mut other) => {
                        if let Some(trailers) = other.trailers_mut() {
                            this.needles.scrub_headers(trailers);
                        }
                        if this.held.is_empty() {
                            return Poll::Ready(Some(Ok(other)));
                        }
                        this.next = Some(other);
                        let rest = std::mem::take(&mut this.held).freeze();
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if this.held.is_empty() => return Poll::Ready(None),
                None => {
                    let rest = std::mem::take(&mut this.held).freeze();
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.next.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Nothing gets longer or shorter; what is held was promised before.
        let inner = self.body.size_hint();
        let held = self.held.len() as u64;
        match inner.exact() {
            Some(exact) => SizeHint::with_exact(exact + held),
            None => SizeHint::default(),
        }
    }
}

/// The header's value with the secret in place of what stands for it, in basic
/// authentication too. `None`: that does not stand there.
pub(super) fn swap(sent: &HeaderValue, placeholder: &str, secret: &HeaderValue) -> Option<HeaderValue> {
    let secret = secret.to_str().ok()?;
    let sent = sent.to_str().ok()?;
    let swapped = if sent.contains(placeholder) {
        sent.replace(placeholder, secret)
    } else {
        let (scheme, pair) =
            sent.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))?;
        let pair = String::from_utf8(BASE64_STANDARD.decode(pair.trim()).ok()?).ok()?;
        if !pair.contains(placeholder) {
            return None;
        }
        format!("{scheme} {}", BASE64_STANDARD.encode(pair.replace(placeholder, secret)))
    };
    let mut swapped = HeaderValue::from_str(&swapped).ok()?;
    swapped.set_sensitive(true);
    Some(swapped)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;

    use super::*;

    fn needles(values: &[&'static str]) -> Needles {
        let mut needles = Needles::default();
        for value in values {
            needles.add(&HeaderValue::from_static(value));
        }
        needles
    }

    fn scrub(chunks: Vec<Vec<u8>>, needles: &Needles) -> Vec<u8> {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, std::io::Error>(Frame::data(Bytes::from(chunk))));
        let body = Scrubbed::new(StreamBody::new(stream::iter(frames)), needles.clone());
        futures::executor::block_on(body.collect()).unwrap().to_bytes().to_vec()
    }

    #[test]
    fn the_secret_is_found_in_every_form_that_it_was_sent_in() {
        // x-access-token:s3cret-s3cret
        let needles = needles(&["Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0LXMzY3JldA==", "Bearer abcdefgh"]);
        let text = b"{\"a\":\"Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0LXMzY3JldA==\",\"b\":\"s3cret-s3cret\",\"c\":\"abcdefgh\"}";
        let clean = String::from_utf8(scrub(vec![text.to_vec()], &needles)).unwrap();
        assert_eq!(clean.len(), text.len());
        assert!(
            !clean.contains("s3cret") && !clean.contains("abcdefgh") && !clean.contains("eC1h"),
            "{clean}"
        );
        assert!(clean.starts_with("{\"a\":\"***") && clean.ends_with("\"}"), "{clean}");
    }

    #[test]
    fn trailers_are_scrubbed_too() {
        let trailers = HeaderMap::from_iter([(
            http::header::HeaderName::from_static("grpc-message"),
            HeaderValue::from_static("no access with s3cret-s3cret"),
        )]);
        let frames = [
            Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"s3cret-"))),
            Ok(Frame::trailers(trailers)),
        ];
        let body = Scrubbed::new(StreamBody::new(stream::iter(frames)), needles(&["s3cret-s3cret"]));
        let whole = futures::executor::block_on(body.collect()).unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-message"], "no access with *************");
        assert_eq!(whole.to_bytes(), "s3cret-");
    }

    #[test]
    fn placeholders_are_swapped_where_they_stand() {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let swap = |sent: &str| swap(&value(sent), "dm_placeholder_1", &value("s3cret"));
        assert_eq!(swap("Bearer dm_placeholder_1").unwrap(), "Bearer s3cret");
        // user:dm_placeholder_1
        assert_eq!(swap("Basic dXNlcjpkbV9wbGFjZWhvbGRlcl8x").unwrap(), "Basic dXNlcjpzM2NyZXQ=");
        assert!(swap("Bearer other").is_none() && swap("Basic !!!").is_none());
    }

    proptest! {
        /// However a body is cut, the secret is gone and nothing else is.
        #[test]
        fn cuts_do_not_matter(
            words in proptest::collection::vec(prop_oneof![Just("s3cret-s3cret"), Just("s3cret"), Just("x"), Just("s3cret-s3")], 0..12),
            cuts in proptest::collection::vec(1..9_usize, 1..40),
        ) {
            let needles = needles(&["s3cret-s3cret"]);
            let text = words.concat().into_bytes();
            let mut chunks = Vec::new();
            let mut rest = &text[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (chunk, left) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk.to_vec());
                rest = left;
            }
            let mut whole = text.clone();
            needles.scrub(&mut whole);
            prop_assert_eq!(scrub(chunks, &needles), whole);
        }
    }
}
