//! What a request must be so that everybody reads it in one way.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Request, Version};

use crate::reason::Reason;

/// Who a request says that it is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl From<&Authority> for Named {
    fn from(authority: &Authority) -> Self {
        Self { host: authority.host().to_ascii_lowercase(), port: authority.port_u16() }
    }
}

/// Headers that are between two neighbours only (RFC 9110, section 7.6.1).
const HOPS: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// `Host`, `:authority` and an absolute URI: one of them, and all the same.
pub(super) fn authority<B>(request: &Request<B>) -> Result<Named, Reason> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let by_header = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => {
            let authority = Authority::try_from(host.as_bytes()).map_err(|_| Reason::Ambiguous)?;
            if authority.as_str().contains('@') {
                return Err(Reason::Ambiguous);
            }
            Some(Named::from(&authority))
        }
        (Some(_), Some(_)) => return Err(Reason::Ambiguous),
    };
    let by_uri = match request.uri().authority() {
        Some(authority) if authority.as_str().contains('@') => return Err(Reason::Ambiguous),
        authority => authority.map(Named::from),
    };
    match (by_header, by_uri) {
        (Some(header), Some(uri)) if header != uri => Err(Reason::OtherName),
        (Some(named), _) | (None, Some(named)) => Ok(named),
        (None, None) => Err(Reason::Ambiguous),
    }
}

/// One way to say where a message ends (RFC 9112, section 6.3).
pub(super) fn framing<B>(request: &Request<B>) -> Result<(), Reason> {
    let headers = request.headers();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Reason::Ambiguous);
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none() => {
            if request.version() == Version::HTTP_11 {
                Ok(())
            } else {
                Err(Reason::Ambiguous)
            }
        }
        _ => Err(Reason::Ambiguous),
    }
}

/// The protocol that an HTTP/1.1 request wants to go on with, if it is one that
/// passes: not another HTTP, which nobody would judge.
pub(super) fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let wanted = request.headers().get(header::UPGRADE)?;
    let asks = request.headers().get_all(header::CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")))
    });
    let passes = wanted.as_bytes().eq_ignore_ascii_case(b"websocket");
    (request.version() == Version::HTTP_11 && asks && passes).then(|| wanted.clone())
}

/// Takes out what is not for the next neighbour.
pub(super) fn strip_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Whoever hides what is judged or injected would have it arrive without.
        .filter(|name| *name != header::HOST && *name != header::AUTHORIZATION && *name != header::COOKIE)
        .collect();
    for name in HOPS.iter().chain(&named) {
        headers.remove(name);
    }
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    headers.remove(header::TE);
    if trailers {
        // gRPC asks for them; our side passes them on.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether a path has one reading: nothing in it that a server could resolve,
/// decode or fold into another path.
pub(super) fn is_plain(path: &str) -> bool {
    if !path.starts_with('/') || path.contains("//") || path.contains('\\') {
        return false;
    }
    let lower = path.to_ascii_lowercase();
    // Dots, slashes and NUL in disguise, and a percent sign before one.
    if ["%00", "%2e", "%2f", "%5c", "%252e", "%252f", "%255c"].iter().any(|bad| lower.contains(bad)) {
        return false;
    }
    // A parameter of a segment, as some servers cut it off.
    !path.split('/').any(|segment| {
        let bare = segment.split(';').next().unwrap_or_default();
        bare == "." || bare == ".."
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn named(host: &str, port: Option<u16>) -> Result<Named, Reason> {
        Ok(Named { host: host.to_owned(), port })
    }

    #[test]
    fn all_names_of_a_request_are_one() {
        assert_eq!(authority(&request("/", &[("host", "A.test")])), named("a.test", None));
        assert_eq!(authority(&request("/", &[("host", "a.test:443")])), named("a.test", Some(443)));
        assert_eq!(authority(&request("https://a.test/x", &[])), named("a.test", None));
        assert_eq!(authority(&request("https://a.test/x", &[("host", "a.test")])), named("a.test", None));
        assert_eq!(authority(&request("https://a.test/x", &[("host", "b.test")])), Err(Reason::OtherName));
        for headers in [
            &[][..],
            &[("host", "a.test"), ("host", "a.test")],
            &[("host", "")],
            &[("host", "a b")],
            &[("host", "u@a.test")],
        ] {
            assert_eq!(authority(&request("/", headers)), Err(Reason::Ambiguous), "{headers:?}");
        }
    }

    #[test]
    fn a_message_ends_in_one_place() {
        let check = |headers: &[(&str, &str)]| framing(&request("/", headers));
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[("content-length", "3")]), Ok(()));
        assert_eq!(check(&[("transfer-encoding", "Chunked")]), Ok(()));
        for headers in [
            &[("content-length", "3"), ("transfer-encoding", "chunked")][..],
            &[("content-length", "3"), ("content-length", "3")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "identity")],
            &[("transfer-encoding", "xchunked")],
            &[("transfer-encoding", "gzip, chunked")],
        ] {
            assert_eq!(check(headers), Err(Reason::Ambiguous), "{headers:?}");
        }
    }

    #[test]
    fn only_websockets_upgrade() {
        let asks = |protocol| {
            upgrade(&request("/", &[("connection", "keep-alive, Upgrade"), ("upgrade", protocol)]))
        };
        assert!(asks("WebSocket").is_some());
        assert!(asks("h2c").is_none() && asks("TLS/1.0").is_none());
        assert!(upgrade(&request("/", &[("upgrade", "websocket")])).is_none());
    }

    #[test]
    fn what_is_for_the_neighbour_stays_with_it() {
        let mut headers = request(
            "/",
            &[
                ("connection", "close, x-own, authorization"),
                ("x-own", "1"),
                ("te", "trailers"),
                ("authorization", "a"),
                ("upgrade", "h2c"),
                ("x", "y"),
            ],
        )
        .headers()
        .clone();
        strip_hops(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "te", "x"]);
    }

    #[test]
    fn paths_with_two_readings_are_none() {
        for plain in
            ["/", "/acme/widgets.git/info/refs", "/a/.well-known", "/a/..b", "/x%20y", "/a;v=1/b", "/100%25"]
        {
            assert!(is_plain(plain), "{plain}");
        }
        for odd in [
            "",
            "x",
            "//a",
            "/a//b",
            "/a/../b",
            "/a/..",
            "/./a",
            "/a/%2e%2e/b",
            "/a/%2E./b",
            "/a%2fb",
            "/a%5Cb",
            "/a\\b",
            "/a/..;/b",
            "/a/.;x/b",
            "/a/%252e%252e/b",
            "/a%00",
        ] {
            assert!(!is_plain(odd), "{odd}");
        }
    }
}
