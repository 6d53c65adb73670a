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

/// Longest value in which a placeholder is swapped, in bytes.
const MAX_SWAPPED: usize = 8 << 10;

/// Texts that are looked for.
#[derive(Clone, Default)]
pub(super) struct Needles(Arc<Vec<Needle>>);

impl std::fmt::Debug for Needles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Needles({})", self.0.len())
    }
}

impl Needles {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a header, its parts, and the password in it, in the forms in which JSON,
    /// URLs and HTML have them.
    pub(super) fn add(&mut self, value: &HeaderValue) {
        let needles = Arc::make_mut(&mut self.0);
        let mut add = |text: &[u8]| {
            for form in forms(text) {
                if form.len() >= MIN_SECRET && !needles.iter().any(|needle| needle.text == form) {
                    needles.push(Needle::new(form));
                }
            }
        };
        let value = value.as_bytes();
        add(value);
        if let Some(scheme) = value.iter().position(|byte| *byte == b' ') {
            add(&value[scheme + 1..]);
        }
        let mut words = value.split(|byte| b" ;,&".contains(byte)).filter(|word| !word.is_empty());
        // The scheme (RFC 9110, section 11.4), where more follows.
        let first = words.next().filter(|word| word.len() == value.len() || word.contains(&b'='));
        for word in first.into_iter().chain(words) {
            // `session=SECRET` and `token="SECRET"`; not the padding of Base64.
            let set = word.iter().position(|byte| *byte == b'=').map(|at| &word[at + 1..]);
            let text = set.filter(|set| set.iter().any(|byte| *byte != b'=')).unwrap_or(word);
            let quoted = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
            add(quoted.unwrap_or(text));
            // Basic authentication (RFC 7617): the password, or who has none of that length
            // and is the secret himself.
            if let Ok(pair) = BASE64_STANDARD.decode(word)
                && let Some(at) = pair.iter().position(|byte| *byte == b':')
            {
                let (user, password) = (&pair[..at], &pair[at + 1..]);
                add(if password.len() >= MIN_SECRET { password } else { user });
            }
        }
        // The longest first: what is part of another goes with it.
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.text.len()));
    }

    /// Overwrites what is found; tells whether something was.
    fn scrub(&self, bytes: &mut [u8]) -> bool {
        let mut found = false;
        for Needle { text, .. } in self.0.iter() {
            let mut from = 0;
            while let Some(at) = memmem::find(&bytes[from..], text) {
                bytes[from + at..from + at + text.len()].fill(b'*');
                from += at + text.len();
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
        self.0.iter().map(|needle| needle.begun(bytes)).max().unwrap_or(0)
    }
}

/// A text that is looked for.
#[derive(Clone)]
struct Needle {
    text: Vec<u8>,
    /// Of each beginning of the text, the longest shorter one that it ends with (Knuth,
    /// Morris and Pratt): what is looked for may be what a sandbox chose.
    borders: Vec<usize>,
}

impl Needle {
    fn new(text: Vec<u8>) -> Self {
        let mut borders = vec![0; text.len()];
        let mut border = 0;
        for at in 1..text.len() {
            while border > 0 && text[at] != text[border] {
                border = borders[border - 1];
            }
            border += usize::from(text[at] == text[border]);
            borders[at] = border;
        }
        Self { text, borders }
    }

    /// How much of it stands at the end of `bytes`, which do not hold it whole.
    fn begun(&self, bytes: &[u8]) -> usize {
        let from = bytes.len().saturating_sub(self.text.len() - 1);
        let mut matched = 0;
        for byte in &bytes[from..] {
            while matched > 0 && *byte != self.text[matched] {
                matched = self.borders[matched - 1];
            }
            matched += usize::from(*byte == self.text[matched]);
        }
        matched
    }
}

/// A text, and as JSON, URLs and HTML may have it, each also without the padding of Base64.
fn forms(text: &[u8]) -> Vec<Vec<u8>> {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escapes: [&dyn Fn(u8) -> Option<String>; 6] = [
        &|_| None,
        &|byte| b"/\"\\".contains(&byte).then(|| format!("\\{}", char::from(byte))),
        &|byte| (!unreserved(byte)).then(|| format!("%{byte:02X}")),
        &|byte| (!unreserved(byte)).then(|| format!("%{byte:02x}")),
        &|byte| match byte {
            b'&' => Some("&amp;".to_owned()),
            b'<' => Some("&lt;".to_owned()),
            b'>' => Some("&gt;".to_owned()),
            b'"' => Some("&quot;".to_owned()),
            b'\'' => Some("&#39;".to_owned()),
            _ => None,
        },
        &|byte| b"&<>\"'`=/".contains(&byte).then(|| format!("&#x{byte:X};")),
    ];
    let bare = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let mut forms = Vec::new();
    for text in [text, &text[..bare]] {
        for escape in escapes {
            let form =
                text.iter().flat_map(|byte| escape(*byte).map_or_else(|| vec![*byte], String::into_bytes));
            forms.push(form.collect());
        }
    }
    forms.sort();
    forms.dedup();
    forms
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
    let sent = sent.to_str().ok().filter(|sent| sent.len() <= MAX_SWAPPED)?;
    let swapped = if sent.contains(placeholder) {
        // Once: what is sent must not grow with what the sandbox says.
        sent.replacen(placeholder, secret, 1)
    } else {
        let (scheme, pair) =
            sent.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))?;
        let pair = String::from_utf8(BASE64_STANDARD.decode(pair.trim()).ok()?).ok()?;
        if !pair.contains(placeholder) {
            return None;
        }
        format!("{scheme} {}", BASE64_STANDARD.encode(pair.replacen(placeholder, secret, 1)))
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

    /// What ordinary servers make of a header that they repeat.
    #[test]
    fn the_secret_is_found_as_others_write_it() {
        for (value, repeated, secret) in [
            (
                "session=s3cret-cookie; theme=dark",
                r#"{"cookies":{"session":"s3cret-cookie","theme":"dark"}}"#,
                "s3cret-cookie",
            ),
            ("Token token=\"s3cret/slash\"", r#"{"token":"s3cret\/slash"}"#, "s3cret"),
            ("Bearer s3cret+/plus==", "https://x.test/?t=s3cret%2B%2Fplus%3D%3D", "s3cret"),
            ("Bearer s3cret+/plus==", "https://x.test/?t=s3cret%2b%2fplus", "s3cret"),
            ("Bearer s3cret&<more", "<p>s3cret&amp;&lt;more</p>", "s3cret"),
            ("Bearer s3cret/=more", "<p>s3cret&#x2F;&#x3D;more</p>", "s3cret"),
            // sk_live_key:
            ("Basic c2tfbGl2ZV9rZXk6", r#"{"user":"sk_live_key"}"#, "sk_live_key"),
        ] {
            let mut needles = Needles::default();
            needles.add(&HeaderValue::from_str(value).unwrap());
            let clean = String::from_utf8(scrub(vec![repeated.as_bytes().to_vec()], &needles)).unwrap();
            assert!(!clean.contains(secret), "{value}: {clean}");
        }
        // Words that are no secrets stay.
        let needles =
            needles(&["Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0LXMzY3JldA==", "GoogleLogin auth=s3cret-s3cret"]);
        let text = b"x-access-token and GoogleLogin".to_vec();
        assert_eq!(scrub(vec![text.clone()], &needles), text);
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
