//! Ports of sandboxes, published under names of their own: a reverse proxy for
//! HTTP and WebSocket on the same listener as the APIs. The first label of the
//! host name decides, whatever the domain after it: the protocol's clients bring
//! their own. The name is unguessable and is the only credential.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use dormouse_provider::{PortConnection, PortError, PortGateway, ProviderError};
use dormouse_sessions::SessionError;
use dormouse_types::Cidr;
use dormouse_wire::{ErrorDetail, ErrorReply};
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;

use crate::App;
use crate::activity::{Activity, Frames, StreamUse, Watched};

/// How ports are published.
#[derive(Debug, Clone)]
pub struct PortsConfig {
    /// What comes after the first label, with a port where it is not the
    /// scheme's own: `sandboxes.example.com`, `localhost:7700`.
    pub domain: String,
    /// `http`, or `https` behind something that speaks TLS.
    pub scheme: String,
    /// Start a stopped persistent sandbox for a request to one of its ports.
    pub wake_on_traffic: bool,
    /// For how long after a client's last word what a sandbox sends it counts as use.
    pub unattended: Duration,
    /// From whom `x-forwarded-host` counts.
    pub trusted_proxies: Vec<Cidr>,
}

impl PortsConfig {
    pub(crate) fn url(&self, subdomain: &str) -> String {
        format!("{}://{subdomain}.{}", self.scheme, self.domain)
    }
}

/// Header with the first label of a port's host.
const NAMED_PORT: HeaderName = HeaderName::from_static("x-dormouse-port");

/// Whether a label is one of ours.
fn is_subdomain(label: &str) -> bool {
    label.strip_prefix("dm-").is_some_and(|word| {
        word.len() == 20 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

fn first_label(host: &str) -> String {
    host.split(['.', ':']).next().unwrap_or_default().to_ascii_lowercase()
}

/// Middleware: requests to a published port go there, the others on.
pub(crate) async fn route(State(app): State<App>, request: Request, next: Next) -> Response {
    let peer = crate::request::peer(&request);
    let host = asked_host(&request, peer, &app.ports.trusted_proxies).map(|host| first_label(&host));
    match [host, named_port(&request)].into_iter().flatten().find(|label| is_subdomain(label)) {
        Some(subdomain) => to_port(app, subdomain, request, peer).await,
        None => next.run(request).await,
    }
}

/// The port that a client names in a header, which knows the server's address but cannot
/// resolve names below it.
fn named_port(request: &Request) -> Option<String> {
    request.headers().get(NAMED_PORT)?.to_str().ok().map(str::to_ascii_lowercase)
}

async fn to_port(app: App, subdomain: String, mut request: Request, peer: Option<IpAddr>) -> Response {
    request.headers_mut().remove(NAMED_PORT);
    let Some(gateway) = app.gateway.clone() else {
        return refusal(StatusCode::NOT_FOUND, "SANDBOX_NOT_FOUND", "this server publishes no ports");
    };
    let connected = match gateway.connect(&subdomain).await {
        Err(PortError::Stopped(Some(key))) if app.ports.wake_on_traffic => {
            match app.sessions.wake_outside(&key).await {
                Ok(_) => gateway.connect(&subdomain).await,
                Err(SessionError::Provider(error)) => Err(error.into()),
                Err(SessionError::Archived) => Err(PortError::Stopped(None)),
                Err(error) => Err(ProviderError::internal("wake for traffic", error).into()),
            }
        }
        connected => connected,
    };
    match connected {
        Ok(connection) => pass(app, connection, request, peer).await,
        Err(error) => {
            let message = error.to_string();
            match error {
                PortError::Unknown => refusal(StatusCode::NOT_FOUND, "SANDBOX_NOT_FOUND", &message),
                PortError::Stopped(_) => refusal(StatusCode::GONE, "SANDBOX_STOPPED", &message),
                PortError::NotListening(_) => {
                    refusal(StatusCode::BAD_GATEWAY, "SANDBOX_NOT_LISTENING", &message)
                }
                PortError::Provider(error) => {
                    tracing::warn!(error = error.detail(), "reach port");
                    refusal(StatusCode::BAD_GATEWAY, "SANDBOX_UNREACHABLE", "the sandbox was not reached")
                }
            }
        }
    }
}

/// The host that the client asked for: as a trusted proxy says, else as the
/// request does.
fn asked_host(request: &Request, peer: Option<IpAddr>, trusted: &[Cidr]) -> Option<String> {
    let text = |name: HeaderName| request.headers().get(name)?.to_str().ok().map(str::to_owned);
    let is_trusted =
        peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(peer.to_canonical())));
    let forwarded = text(HeaderName::from_static("x-forwarded-host")).filter(|_| is_trusted);
    forwarded.or_else(|| request.uri().host().map(str::to_owned)).or_else(|| text(header::HOST))
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let error = ErrorDetail { code: code.to_owned(), message: message.to_owned() };
    (status, Json(ErrorReply { error, request_id: None })).into_response()
}

/// Headers that are about one connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

async fn pass(app: App, connection: PortConnection, mut request: Request, peer: Option<IpAddr>) -> Response {
    let PortConnection { key, port: _, stream } = connection;
    let unreachable = || {
        refusal(
            StatusCode::BAD_GATEWAY,
            "SANDBOX_UNREACHABLE",
            "the program in the sandbox broke the connection",
        )
    };
    let used = Activity::new(&app, key).stream();
    used.client();

    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let host = request.uri().host().map(str::to_owned);
    strip(request.headers_mut());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Ok(uri) = path.parse() else { return unreachable() };
    *request.uri_mut() = uri;
    *request.version_mut() = axum::http::Version::HTTP_11;
    // HTTP/2 has no Host header of its own.
    if !request.headers().contains_key(header::HOST)
        && let Some(Ok(host)) = host.map(HeaderValue::try_from)
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if let Some(Ok(peer)) = peer.map(|peer| HeaderValue::try_from(peer.to_string())) {
        request.headers_mut().append("x-forwarded-for", peer);
    }
    let websocket =
        upgrade.as_ref().is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let of_client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    if let Some(upgrade) = upgrade {
        request.headers_mut().insert(header::UPGRADE, upgrade);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    // An upload that goes on for long is use for as long.
    let by_client = used.clone();
    let request =
        request.map(|body| Body::from_stream(body.into_data_stream().inspect(move |_| by_client.client())));
    let Ok((mut sender, driver)) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await
    else {
        return unreachable();
    };
    tokio::spawn(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::debug!(%error, "connection to a port");
        }
    });
    let Ok(mut response) = sender.send_request(request).await else { return unreachable() };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let of_sandbox = hyper::upgrade::on(&mut response);
        let Some(of_client) = of_client else { return unreachable() };
        tokio::spawn(join(of_client, of_sandbox, used, websocket));
        return response.map(|_| Body::empty());
    }
    strip(response.headers_mut());
    response
        .map(|body| Body::from_stream(Body::new(body).into_data_stream().inspect(move |_| used.sandbox())))
}

/// Passes bytes between two upgraded connections until either ends. `websocket`:
/// what its frames carry counts, not that they come.
async fn join(
    client: hyper::upgrade::OnUpgrade,
    sandbox: hyper::upgrade::OnUpgrade,
    used: StreamUse,
    websocket: bool,
) {
    let (Ok(client), Ok(sandbox)) = tokio::join!(client, sandbox) else { return };
    let (mut from_client, mut from_sandbox) = (Frames::default(), Frames::default());
    let by_client = used.clone();
    let mut client = Watched::new(TokioIo::new(client), move |bytes: &[u8]| {
        if !websocket || from_client.have_data(bytes) {
            by_client.client();
        }
    });
    let mut sandbox = Watched::new(TokioIo::new(sandbox), move |bytes: &[u8]| {
        if !websocket || from_sandbox.have_data(bytes) {
            used.sandbox();
        }
    });
    // Either side may break off.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut sandbox).await;
}

/// For [`App`].
pub(crate) type Gateway = Option<Arc<dyn PortGateway>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_labels_are_ports() {
        assert!(is_subdomain(&first_label("dm-abcdefghijklmnopqr22.localhost:7700")));
        assert!(is_subdomain(&first_label("DM-ABCDEFGHIJKLMNOPQR22.vercel.run")));
        for host in ["localhost:7700", "127.0.0.1", "dm-short.localhost", "x.dm-abcdefghijklmnopqr22.y", ""] {
            assert!(!is_subdomain(&first_label(host)), "{host}");
        }
    }

    #[test]
    fn a_forwarded_host_counts_from_a_trusted_proxy_only() {
        let request = Request::builder()
            .header("host", "a.test")
            .header("x-forwarded-host", "b.test")
            .body(Body::empty())
            .unwrap();
        let trusted = ["127.0.0.0/8".parse().unwrap()];
        let host = |peer: &str| asked_host(&request, Some(peer.parse().unwrap()), &trusted).unwrap();
        assert_eq!(host("127.0.0.1"), "b.test");
        assert_eq!(host("::ffff:127.0.0.1"), "b.test");
        assert_eq!(host("192.0.2.1"), "a.test");
    }

    #[test]
    fn headers_of_one_hop_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "x-own, close"), ("x-own", "1"), ("te", "trailers"), ("accept", "*/*")]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
