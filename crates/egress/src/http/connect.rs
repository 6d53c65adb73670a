//! Connections to where requests go: dialled by the rules, with TLS verified for
//! the name that was asked for.

use std::error::Error as StdError;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use dormouse_provider::HostName;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Url;

use super::{Conversation, Failure, Proxy};
use crate::dial::DialError;
use crate::places::Place;
use crate::policy::{HTTP, HTTPS};
use crate::reason::Reason;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) enum Route {
    /// To its host.
    Host { host: HostName, secure: bool },
    /// To the address that the sandbox dialled, without TLS.
    Address(SocketAddrV4),
    /// To a URL of the policy.
    Forward { host: HostName, port: u16 },
    /// To a mirror, which the operator chose.
    Mirror(Url),
}

impl Route {
    /// The URI of a request on this way.
    pub(super) fn uri(&self, asked: &Uri, url: Option<&Url>) -> Result<Uri, http::Error> {
        let path = asked.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path } else { "/" };
        let (scheme, authority) = match self {
            Self::Host { host, secure } => (if *secure { "https" } else { "http" }, host.to_string()),
            Self::Address(target) => ("http", target.to_string()),
            Self::Forward { .. } => ("https", self.shown_authority()),
            Self::Mirror(url) => return url.as_str().parse().map_err(http::Error::from),
        };
        let path = url.map_or(path, Url::path);
        Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()
    }

    /// What `Host` says.
    pub(super) fn shown_authority(&self) -> String {
        match self {
            Self::Host { host, .. } => host.to_string(),
            Self::Address(target) if target.port() == HTTP => target.ip().to_string(),
            Self::Address(target) => target.to_string(),
            Self::Forward { host, port } if *port == HTTPS => host.to_string(),
            Self::Forward { host, port } => format!("{host}:{port}"),
            Self::Mirror(url) => {
                let host = url.host_str().unwrap_or_default();
                url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("dial: {0:?}")]
    Dial(DialError),
    #[error("TLS")]
    Tls(#[source] std::io::Error),
    #[error("no route for {0}")]
    Route(Uri),
}

impl From<DialError> for ConnectError {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

/// What a failed request failed by.
pub(super) fn reason(error: &(dyn StdError + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<ConnectError>() {
            Some(ConnectError::Dial(error)) => return error.reason(),
            Some(ConnectError::Tls(_)) => return Reason::Certificate,
            Some(ConnectError::Route(_)) => return Reason::Ambiguous,
            None => {}
        }
        cause = error.source();
    }
    Reason::Unreachable
}

/// How TLS is spoken to the other side.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    any: Arc<ClientConfig>,
    /// For what only HTTP/1.1 has.
    http1: Arc<ClientConfig>,
}

impl Tls {
    /// With these authorities.
    pub(crate) fn new(
        roots: rustls::RootCertStore,
        provider: Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut http1 = config.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { any: Arc::new(config), http1: Arc::new(http1) })
    }
}

/// What a connector is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Requests,
    /// What only HTTP/1.1 has.
    Upgrades,
    /// What the operator named, wherever that is: the rules for sandboxes do not
    /// hold, so nothing that a sandbox names goes this way.
    Mirrors,
}

/// Connects for one connection of a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    proxy: Arc<Proxy>,
    conversation: Arc<Conversation>,
    purpose: Purpose,
}

impl Connector {
    pub(super) fn new(proxy: Arc<Proxy>, conversation: Arc<Conversation>, purpose: Purpose) -> Self {
        Self { proxy, conversation, purpose }
    }

    async fn connect(self, uri: Uri) -> Result<Stream, ConnectError> {
        let wrong = || ConnectError::Route(uri.clone());
        let secure = uri.scheme_str() == Some("https");
        let name = uri.host().ok_or_else(wrong)?;
        let port = uri.port_u16().unwrap_or(if secure { HTTPS } else { HTTP });
        let Self { proxy, conversation, purpose } = self;
        let place = conversation.place_for_upstream()?;
        let tcp = if purpose == Purpose::Mirrors {
            let connecting = TcpStream::connect((name.trim_matches(['[', ']']), port));
            let stream = tokio::time::timeout(HANDSHAKE, connecting).await;
            let stream = stream.map_err(|_| DialError::Unreachable)?.map_err(DialError::from)?;
            stream.set_nodelay(true).map_err(DialError::from)?;
            stream
        } else {
            match name.parse::<HostName>() {
                Ok(host) => {
                    let made = conversation.upstream.lock().unwrap_or_else(PoisonError::into_inner).take();
                    // It leads to the address that was dialled, which is this host's if we
                    // resolved it so.
                    let usable = made.filter(|_| {
                        port == conversation.target.port()
                            && conversation.member.names_of(*conversation.target.ip()).contains(&host)
                    });
                    match usable {
                        Some(stream) => stream,
                        None => proxy.dialer.host(&host, port, Some(&conversation.member.policy())).await?,
                    }
                }
                Err(_) => {
                    let target: SocketAddrV4 = format!("{name}:{port}").parse().map_err(|_| wrong())?;
                    if target != conversation.target {
                        return Err(wrong());
                    }
                    proxy.dialer.address(target).await?
                }
            }
        };
        if let Ok(SocketAddr::V4(peer)) = tcp.peer_addr()
            && purpose != Purpose::Mirrors
            && !proxy.dialer.by_name_only()
        {
            conversation.reaches_address(*peer.ip());
        }
        if !secure {
            return Ok(Stream { io: Io::Plain(TokioIo::new(tcp)), _place: place });
        }
        let config = if purpose == Purpose::Upgrades { &proxy.tls.http1 } else { &proxy.tls.any };
        let server = ServerName::try_from(name.to_owned()).map_err(|_| wrong())?;
        let connecting = TlsConnector::from(config.clone()).connect(server, tcp);
        let stream = tokio::time::timeout(HANDSHAKE, connecting).await;
        let stream = stream.map_err(|_| DialError::Unreachable)?.map_err(ConnectError::Tls)?;
        Ok(Stream { io: Io::Tls(Box::new(TokioIo::new(stream))), _place: place })
    }
}

impl Conversation {
    /// Where a connection to the other side finds its place: the first in the one that the
    /// sandbox's connection has, each other in one more.
    fn place_for_upstream(&self) -> Result<Option<Place>, ConnectError> {
        if !std::mem::replace(&mut self.reached().connected, true) {
            return Ok(None);
        }
        let place = self.place.another().ok_or(DialError::Refused(Reason::Busy))?;
        Ok(Some(place))
    }

    fn reaches_address(&self, address: Ipv4Addr) {
        let addresses = &mut self.reached().addresses;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move { Ok(connecting.await?) })
    }
}

/// A connection, which has a place.
pub(super) struct Stream {
    io: Io,
    _place: Option<Place>,
}

/// With TLS or without.
enum Io {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match &self.io {
            Io::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Io::Plain(_) | Io::Tls(_) => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
