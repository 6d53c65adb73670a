//! HTTP with a sandbox, request by request: every request is judged by the policy
//! that is in force when it comes, whatever its connection was opened for. HTTP/1.1
//! and HTTP/2 to the sandbox, the same to the other side, each as it is spoken
//! there; bodies, trailers and WebSockets pass as they come.
//!
//! Requests are read and written anew, so what two sides could read in two ways
//! does not pass. Nothing is cached, no redirect is followed, no cookie is kept.

mod body;
mod check;
mod connect;
mod scrub;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormouse_provider::{DirectResponse, HostName};
use futures::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::io::InspectReader;
use url::Url;

pub(crate) use connect::Tls;

use crate::dial::Dialer;
use crate::dns::Resolver;
use crate::identity::Signer;
use crate::ledger::{Access, Underway, Way};
use crate::mirror::{self, Mirrors};
use crate::places::Place;
use crate::policy::{Asked, Injection, Named, Outcome, Ruleset};
use crate::reason::Reason;
use crate::sandboxes::Member;
use body::{Body, Metered};
use connect::{Connector, Purpose, Route};
use scrub::{Needles, Scrubbed};

/// Largest head of a request or response, in bytes.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 200;

/// How long a head may take, and a connection be kept for the next one: 20 idle
/// minutes are usual.
const PATIENCE: Duration = Duration::from_secs(25 * 60);

/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;

/// Bytes that a stream of HTTP/2 may be ahead of who takes them; a connection twice that.
const WINDOW: u32 = 1 << 20;

/// Longest method, in bytes: it is in the access log.
const MAX_METHOD: usize = 32;

/// Hosts that one connection without TLS may be for.
const MAX_HOSTS: usize = 64;

/// How long a connection may take to say what it wants first.
const FIRST_REQUEST: Duration = Duration::from_secs(60);

/// Says why a request was denied, in the word of [`Reason`].
const DENIED: HeaderName = HeaderName::from_static("x-dormouse-denied");

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The proxy of one instance.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) mirrors: Arc<Mirrors>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) tls: Tls,
    pub(crate) signer: Option<Arc<Signer>>,
}

/// One connection of a sandbox.
#[derive(Debug)]
pub(crate) struct Conversation {
    member: Arc<Member>,
    /// Where it went.
    target: SocketAddrV4,
    /// Host that TLS was made with; `None`: there is no TLS.
    secured: Option<HostName>,
    /// A connection to it that was made before.
    upstream: Mutex<Option<TcpStream>>,
    /// For the sandbox's connection and one to the other side, until the last of both is
    /// gone, WebSockets included.
    place: Place,
    reached: Mutex<Reached>,
}

/// What requests of a connection reached: a change of the policy may forbid it.
#[derive(Debug, Default)]
struct Reached {
    hosts: Vec<HostName>,
    addresses: Vec<Ipv4Addr>,
    /// The address that was dialled, without a name.
    by_address: bool,
    /// The place for a connection to the other side is taken.
    connected: bool,
}

impl Conversation {
    pub(crate) fn new(
        member: Arc<Member>,
        target: SocketAddrV4,
        secured: Option<HostName>,
        upstream: Option<TcpStream>,
        place: Place,
    ) -> Self {
        Self { member, target, secured, upstream: Mutex::new(upstream), place, reached: Mutex::default() }
    }

    fn reached(&self) -> std::sync::MutexGuard<'_, Reached> {
        // Lists only: a panic elsewhere cannot tear them.
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `policy` allows what its requests reached so far.
    pub(crate) fn allowed_by(&self, policy: &Ruleset) -> bool {
        let reached = self.reached();
        let by_address = |host| matches!(policy.named(host, *self.target.ip()), Named::Address);
        !policy.is_shut()
            && reached.addresses.iter().all(|address| !policy.denies(*address))
            && reached
                .hosts
                .iter()
                .chain(&self.secured)
                .all(|host| policy.host(host).is_some() || (self.secured.is_none() && by_address(Some(host))))
            && (!reached.by_address || by_address(None))
    }

    /// A request is for `host`, or for the address that was dialled.
    fn reaches(&self, host: Option<&HostName>) -> Result<(), Denial> {
        let mut reached = self.reached();
        match host {
            None => reached.by_address = true,
            Some(host) if reached.hosts.contains(host) => {}
            Some(_) if reached.hosts.len() == MAX_HOSTS => {
                return Err(Denial::new(StatusCode::MISDIRECTED_REQUEST, Reason::OtherName));
            }
            Some(host) => reached.hosts.push(host.clone()),
        }
        Ok(())
    }
}

/// Connections to the other side, for as long as the one of the sandbox lasts.
#[derive(Debug)]
struct Talk {
    proxy: Arc<Proxy>,
    conversation: Arc<Conversation>,
    requests: Client<Connector, Body>,
    upgrades: Client<Connector, Body>,
    mirrors: Client<Connector, Body>,
}

/// Why a request gets no answer from its host.
#[derive(Debug)]
struct Denial {
    status: StatusCode,
    reason: Reason,
}

impl Denial {
    fn new(status: StatusCode, reason: Reason) -> Self {
        Self { status, reason }
    }
}

/// Where a request is for.
#[derive(Debug)]
enum Site {
    Host(HostName),
    /// The address that was dialled, where the policy allows it.
    Address(SocketAddrV4),
}

impl Proxy {
    /// Serves one connection until it ends.
    pub(crate) async fn serve<S>(self: &Arc<Self>, stream: S, conversation: Arc<Conversation>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let client = |purpose| {
            let mut builder = Client::builder(TokioExecutor::new());
            builder
                .pool_timer(TokioTimer::new())
                .http1_max_headers(MAX_HEADERS)
                .http2_max_header_list_size(MAX_HEAD as u32)
                .http2_initial_stream_window_size(WINDOW)
                .http2_initial_connection_window_size(WINDOW * 2)
                // The sandbox's own words, once.
                .retry_canceled_requests(false)
                .set_host(false);
            builder.build(Connector::new(self.clone(), conversation.clone(), purpose))
        };
        let talk = Arc::new(Talk {
            proxy: self.clone(),
            conversation: conversation.clone(),
            requests: client(Purpose::Requests),
            upgrades: client(Purpose::Upgrades),
            mirrors: client(Purpose::Mirrors),
        });
        let begun = Arc::new(AtomicBool::new(false));
        let asked = begun.clone();
        let service = hyper::service::service_fn(move |request| {
            asked.store(true, Ordering::Relaxed);
            let talk = talk.clone();
            let answering: BoxFuture<'static, _> = Box::pin(async move { talk.answer(request).await });
            async move { Ok::<_, std::convert::Infallible>(answering.await) }
        });
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD.max(256 << 10))
            .half_close(true);
        server
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 2)
            .keep_alive_interval(Duration::from_secs(120));
        let mut serving =
            std::pin::pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
        // The library waits for ever to see which HTTP it is.
        let ended = match tokio::time::timeout(FIRST_REQUEST, &mut serving).await {
            Ok(ended) => ended,
            Err(_) if begun.load(Ordering::Relaxed) => serving.await,
            Err(_) => return,
        };
        if let Err(error) = ended {
            tracing::debug!(sandbox = conversation.member.sandbox, %error, "HTTP with a sandbox");
        }
    }
}

impl Talk {
    fn member(&self) -> &Arc<Member> {
        &self.conversation.member
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().as_str();
        let line = Access {
            method: (method.len() <= MAX_METHOD).then(|| method.to_owned()),
            ..Access::now(Way::Http).address(self.conversation.target)
        };
        let underway = Arc::new(Underway::new(self.member().ledger.clone(), line));
        match self.pass(request, &underway).await {
            Ok(response) => response,
            Err(Denial { status, reason }) => {
                underway.amend(|line| {
                    line.denied = Some(reason);
                    line.status = Some(status.as_u16());
                });
                let text = format!("dormouse: {}\n", reason.sentence());
                let mut response = Response::new(body::full(text.into(), Some(underway)));
                *response.status_mut() = status;
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                headers.insert(DENIED, HeaderValue::from_static(reason.word()));
                response
            }
        }
    }

    /// Who a request is for, by everything that says so.
    fn site(&self, request: &Request<Incoming>) -> Result<Site, Denial> {
        let named =
            check::authority(request).map_err(|reason| Denial::new(StatusCode::BAD_REQUEST, reason))?;
        let conversation = &self.conversation;
        let mismatch = || Denial::new(StatusCode::MISDIRECTED_REQUEST, Reason::OtherName);
        let target = conversation.target;
        if named.port.is_some_and(|port| port != target.port()) {
            return Err(mismatch());
        }
        match (&conversation.secured, named.host.parse::<HostName>()) {
            (Some(secured), Ok(host)) if *secured == host => Ok(Site::Host(host)),
            (Some(_), _) => Err(mismatch()),
            (None, Ok(host)) => Ok(Site::Host(host)),
            (None, Err(_)) if named.host == target.ip().to_string() => Ok(Site::Address(target)),
            (None, Err(_)) => Err(mismatch()),
        }
    }

    async fn pass(
        &self,
        mut request: Request<Incoming>,
        underway: &Arc<Underway>,
    ) -> Result<Response<Body>, Denial> {
        let bad = |reason| Denial::new(StatusCode::BAD_REQUEST, reason);
        check::framing(&request).map_err(bad)?;
        if matches!(*request.method(), Method::CONNECT | Method::TRACE)
            || request.method().as_str().len() > MAX_METHOD
        {
            return Err(Denial::new(StatusCode::METHOD_NOT_ALLOWED, Reason::Method));
        }
        let site = self.site(&request)?;
        let policy = self.member().policy();
        let host = match &site {
            Site::Host(host) => host,
            Site::Address(target) => {
                return match policy.named(None, *target.ip()) {
                    Named::Address => {
                        self.conversation.reaches(None)?;
                        self.send(request, Route::Address(*target), None, Vec::new(), underway).await
                    }
                    _ => Err(Denial::new(StatusCode::FORBIDDEN, Reason::NoName)),
                };
            }
        };
        underway.amend(|line| line.host = Some(host.clone()));
        self.conversation.reaches(Some(host))?;
        let Some(rules) = policy.host(host) else {
            // Without TLS the address may be allowed by itself.
            let target = self.conversation.target;
            return match (&self.conversation.secured, policy.named(Some(host), *target.ip())) {
                (None, Named::Address) => {
                    self.send(request, Route::Address(target), None, Vec::new(), underway).await
                }
                _ => Err(Denial::new(StatusCode::FORBIDDEN, Reason::NotAllowed)),
            };
        };
        let mirrored = self.proxy.mirrors.covers(host);
        if (mirrored || rules.is_some_and(|rules| rules.look_at_paths()))
            && !check::is_plain(request.uri().path())
        {
            return Err(bad(Reason::Ambiguous));
        }
        let outcome = rules.map(|rules| {
            let (method, uri, headers) = (request.method(), request.uri(), request.headers());
            rules.judge(Asked { method, uri, headers })
        });
        let injections = match outcome {
            None => Vec::new(),
            Some(Outcome::Respond(response)) => return Ok(respond(&response, underway)),
            Some(Outcome::Forward(url)) => return self.forward(request, host, &url, underway).await,
            // A secret does not go over a connection that anybody can read.
            Some(Outcome::Pass(_)) if self.conversation.secured.is_none() => Vec::new(),
            Some(Outcome::Pass(injections)) => injections,
        };
        if mirrored && self.conversation.secured.is_some() {
            let target = self.proxy.mirrors.target(host, request.method(), request.uri());
            let Some(url) = target else {
                return Err(Denial::new(StatusCode::NOT_FOUND, Reason::NotAllowed));
            };
            let batch = url.path().ends_with(mirror::BATCH);
            if batch {
                // What is read here must not be compressed.
                request.headers_mut().remove(header::ACCEPT_ENCODING);
            }
            let response = self.send(request, Route::Mirror(url), None, injections, underway).await?;
            return if batch && response.status().is_success() {
                self.public_batch(response, underway).await
            } else {
                Ok(response)
            };
        }
        let secure = self.conversation.secured.is_some();
        self.send(request, Route::Host { host: host.clone(), secure }, None, injections, underway).await
    }

    /// An LFS server's answer of where objects are, in public URLs.
    async fn public_batch(
        &self,
        response: Response<Body>,
        underway: &Arc<Underway>,
    ) -> Result<Response<Body>, Denial> {
        let wrong = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "answer of a git mirror to an LFS batch");
            Denial::new(StatusCode::BAD_GATEWAY, Reason::Unreachable)
        };
        let (mut parts, body) = response.into_parts();
        let mut body = std::pin::pin!(body);
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|error| wrong(&error))?.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > mirror::MAX_BATCH {
                return Err(wrong(&"too large"));
            }
        }
        let text = self.proxy.mirrors.public_batch(&bytes).map_err(|error| wrong(&error))?;
        parts.headers.remove(header::CONTENT_LENGTH);
        Ok(Response::from_parts(parts, body::full(text.into(), Some(underway.clone()))))
    }

    /// Sends a request to a URL of the policy, with a token that says who it is from
    /// (provider contract, section 6).
    async fn forward(
        &self,
        mut request: Request<Incoming>,
        host: &HostName,
        url: &Url,
        underway: &Arc<Underway>,
    ) -> Result<Response<Body>, Denial> {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::debug!(%error, "forward a request");
            Denial::new(StatusCode::BAD_GATEWAY, Reason::Unreachable)
        };
        let conversation = &self.conversation;
        let scheme = if conversation.secured.is_some() { "https" } else { "http" };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let said = [
            ("vercel-forwarded-host", host.to_string()),
            ("vercel-forwarded-scheme", scheme.to_owned()),
            ("vercel-forwarded-port", conversation.target.port().to_string()),
            ("vercel-forwarded-path", path),
        ];
        // Nobody says who it is but we.
        let name = HeaderName::from_static("vercel-sandbox-oidc-token");
        request.headers_mut().remove(&name);
        let mut injections = Vec::new();
        if let Some(signer) = &self.proxy.signer {
            let token = signer.sign(
                &self.member().sandbox,
                &self.member().account,
                &self.member().project,
                url.as_str(),
            );
            let token = token.map_err(|error| failed(&error))?;
            let value = HeaderValue::from_str(&token).map_err(|error| failed(&error))?;
            injections.push(Injection { name, value, placeholder: None });
        }
        for (name, value) in said {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|error| failed(&error))?;
            // Whatever the sandbox says of itself.
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        let name = url.host_str().unwrap_or_default().parse::<HostName>().map_err(|error| failed(&error))?;
        let route = Route::Forward { host: name, port: url.port_or_known_default().unwrap_or(443) };
        self.send(request, route, Some(url), injections, underway).await
    }

    /// Sends a request on, and its answer back.
    async fn send(
        &self,
        mut request: Request<Incoming>,
        route: Route,
        url: Option<&Url>,
        injections: Vec<Injection>,
        underway: &Arc<Underway>,
    ) -> Result<Response<Body>, Denial> {
        let upgrade = check::upgrade(&request);
        let from_sandbox = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let failed = |error: &dyn std::fmt::Display| {
            tracing::debug!(%error, "write a request");
            Denial::new(StatusCode::BAD_REQUEST, Reason::Ambiguous)
        };
        parts.uri = route.uri(&parts.uri, url).map_err(|error| failed(&error))?;
        check::strip_hops(&mut parts.headers);
        let host = HeaderValue::from_str(&route.shown_authority()).map_err(|error| failed(&error))?;
        parts.headers.insert(header::HOST, host);
        let needles = inject(&mut parts.headers, injections);
        if let Some(upgrade) = &upgrade {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, upgrade.clone());
        }
        if needles.is_some() {
            // An answer that repeats the secret must be readable here.
            parts.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            // In pieces it could not be found. Whoever is asked for a part may send all.
            parts.headers.remove(header::RANGE);
            parts.headers.remove(header::IF_RANGE);
        }
        // What the client speaks is its own business.
        parts.version = Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        let request = Request::from_parts(parts, Metered::sent(body, underway.clone()));
        let client = match route {
            Route::Mirror(_) => &self.mirrors,
            _ if upgrade.is_some() => &self.upgrades,
            _ => &self.requests,
        };
        let mut response = client.request(request).await.map_err(|error| {
            let reason = connect::reason(&error);
            tracing::debug!(sandbox = self.member().sandbox, ?route, ?error, "request of a sandbox");
            let status = match reason {
                Reason::NotAllowed
                | Reason::Private
                | Reason::Metadata
                | Reason::Host
                | Reason::Operator
                | Reason::NoUnicast
                | Reason::DeniedNetwork => StatusCode::FORBIDDEN,
                Reason::Busy => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_GATEWAY,
            };
            Denial::new(status, reason)
        })?;
        underway.amend(|line| line.status = Some(response.status().as_u16()));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(from_sandbox), Some(upgrade)) = (from_sandbox, upgrade) else {
                return Err(Denial::new(StatusCode::BAD_GATEWAY, Reason::Ambiguous));
            };
            let from_upstream = hyper::upgrade::on(&mut response);
            if let Some(needles) = &needles {
                needles.scrub_headers(response.headers_mut());
            }
            self.tie(from_sandbox, from_upstream, underway.clone());
            check::strip_hops(response.headers_mut());
            *response.extensions_mut() = http::Extensions::new();
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, upgrade);
            return Ok(response.map(|_| body::empty()));
        }
        check::strip_hops(response.headers_mut());
        // The words behind its status, which may be any.
        *response.extensions_mut() = http::Extensions::new();
        if let Some(needles) = &needles {
            needles.scrub_headers(response.headers_mut());
            let codings = response.headers().get_all(header::CONTENT_ENCODING);
            if codings.iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
                return Err(Denial::new(StatusCode::BAD_GATEWAY, Reason::Compressed));
            }
        }
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| {
            let body = Metered::received(body, underway.clone());
            match needles {
                Some(needles) => Scrubbed::new(body, needles).boxed_unsync(),
                None => body,
            }
        }))
    }

    /// Passes bytes of an upgraded connection until it ends, or the policy no longer
    /// allows it.
    fn tie(
        &self,
        sandbox: hyper::upgrade::OnUpgrade,
        upstream: hyper::upgrade::OnUpgrade,
        underway: Arc<Underway>,
    ) {
        let conversation = self.conversation.clone();
        tokio::spawn(async move {
            let mut policy = conversation.member.watch();
            let passing = async {
                let (sandbox, upstream) = tokio::try_join!(sandbox, upstream)?;
                let sent = |bytes: &[u8]| underway.sent(bytes.len());
                let received = |bytes: &[u8]| underway.received(bytes.len());
                let mut sandbox = InspectReader::new(TokioIo::new(sandbox), sent);
                let mut upstream = InspectReader::new(TokioIo::new(upstream), received);
                tokio::io::copy_bidirectional(&mut sandbox, &mut upstream).await?;
                Ok::<_, Failure>(())
            };
            tokio::select! {
                biased;
                _ = policy.wait_for(|policy| !conversation.allowed_by(policy)) => {}
                // However it ended.
                _ = passing => {}
            }
        });
    }
}

/// Sets headers; tells what is secret in them.
fn inject(headers: &mut HeaderMap, injections: Vec<Injection>) -> Option<Needles> {
    let mut needles = Needles::default();
    for Injection { name, value, placeholder } in injections {
        match placeholder {
            None => {
                needles.add(&value);
                headers.insert(name, value);
            }
            Some(placeholder) => {
                let Some(sent) = headers.get(&name) else { continue };
                if let Some(swapped) = scrub::swap(sent, &placeholder, &value) {
                    needles.add(&value);
                    needles.add(&swapped);
                    headers.insert(name, swapped);
                }
            }
        }
    }
    (!needles.is_empty()).then_some(needles)
}

/// The answer of a rule.
fn respond(rule: &DirectResponse, underway: &Arc<Underway>) -> Response<Body> {
    underway.amend(|line| line.status = Some(rule.status));
    let text = Bytes::from(rule.body.clone().unwrap_or_default());
    let mut response = Response::new(body::full(text, Some(underway.clone())));
    // All were checked with the policy.
    *response.status_mut() = StatusCode::from_u16(rule.status).unwrap_or(StatusCode::OK);
    let kind = rule.content_type.iter().map(|kind| ("content-type", kind));
    let headers = rule.headers.iter().map(|(name, value)| (name.as_str(), value));
    for (name, value) in headers.chain(kind) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests;
