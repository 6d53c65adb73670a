//! Dialling for a sandbox: the one place where a connection to the outside is made.
//! Names are resolved here, never taken from what the sandbox says an address is;
//! addresses pass the operator's rules and the policy's denied networks; with
//! `network.proxy` the connection goes through that.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use dormouse_provider::HostName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use crate::ground::Ground;
use crate::names::{Names, Unresolved};
use crate::policy::Ruleset;
use crate::reason::Reason;

/// How long one address may take to answer, and all of a name's.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_WITH_ALL: Duration = Duration::from_secs(20);

/// Addresses of a name that are tried.
const TRIED: usize = 4;

/// Largest answer of an HTTP proxy to `CONNECT`, in bytes.
const MAX_ANSWER: usize = 8 << 10;

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialError {
    /// By a rule.
    Refused(Reason),
    /// Nobody listens there.
    Closed,
    /// No answer, or no way there.
    Unreachable,
}

impl DialError {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Refused(reason) => reason,
            Self::Closed | Self::Unreachable => Reason::Unreachable,
        }
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Unreachable,
        }
    }
}

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) ground: Ground,
    pub(crate) names: Names,
    pub(crate) proxy: Option<Proxy>,
}

/// An HTTP proxy that the host itself goes through.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    authority: String,
    authorization: Option<String>,
}

impl Proxy {
    pub(crate) fn new(url: &Url) -> Option<Self> {
        use base64::Engine as _;
        let host = url.host_str().filter(|_| url.scheme() == "http")?;
        let authority = format!("{host}:{}", url.port_or_known_default()?);
        let authorization = url.password().map(|password| {
            let pair = format!("{}:{password}", url.username());
            format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair))
        });
        Some(Self { authority, authorization })
    }

    async fn connect(&self, target: &str) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.authority).await?;
        let authorization = self.authorization.as_ref();
        let authorization =
            authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // Byte by byte: what comes behind the head is the destination's.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == MAX_ANSWER {
                return Err(io::ErrorKind::InvalidData.into());
            }
            answer.push(stream.read_u8().await?);
        }
        let status = answer.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        match status {
            [b'2', _, _] => Ok(stream),
            _ => {
                tracing::debug!(target, status = %String::from_utf8_lossy(status), "the HTTP proxy refuses");
                Err(io::ErrorKind::ConnectionRefused.into())
            }
        }
    }
}

impl Dialer {
    fn check(&self, address: Ipv4Addr, policy: Option<&Ruleset>) -> Result<(), DialError> {
        self.ground.check(address).map_err(DialError::Refused)?;
        if policy.is_some_and(|policy| policy.denies(address)) {
            return Err(DialError::Refused(Reason::DeniedNetwork));
        }
        Ok(())
    }

    /// Connects to an address that the policy allows.
    pub(crate) async fn address(&self, target: SocketAddrV4) -> Result<TcpStream, DialError> {
        self.check(*target.ip(), None)?;
        self.connect(target).await
    }

    async fn connect(&self, target: SocketAddrV4) -> Result<TcpStream, DialError> {
        let connecting = async {
            match &self.proxy {
                Some(proxy) => proxy.connect(&target.to_string()).await,
                None => TcpStream::connect(SocketAddr::V4(target)).await,
            }
        };
        let stream = tokio::time::timeout(PATIENCE, connecting).await;
        ready(stream.map_err(|_| DialError::Unreachable)??)
    }

    /// Connects to a host by its name, at none of the networks that `policy`
    /// denies.
    pub(crate) async fn host(
        &self,
        host: &HostName,
        port: u16,
        policy: Option<&Ruleset>,
    ) -> Result<TcpStream, DialError> {
        if let Some(proxy) = &self.proxy {
            // It resolves names, where this host cannot.
            let target = format!("{host}:{port}");
            let connecting = proxy.connect(&target);
            let stream = tokio::time::timeout(PATIENCE, connecting).await;
            return ready(stream.map_err(|_| DialError::Unreachable)??);
        }
        let addresses = self.addresses(host).await?;
        let trying = async {
            let mut last = DialError::Refused(Reason::NoAddress);
            for address in addresses.iter().take(TRIED) {
                let connected = match self.check(*address, policy) {
                    Ok(()) => self.connect(SocketAddrV4::new(*address, port)).await,
                    Err(refused) => Err(refused),
                };
                match connected {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        tokio::time::timeout(PATIENCE_WITH_ALL, trying).await.map_err(|_| DialError::Unreachable)?
    }

    /// Addresses of a host.
    pub(crate) async fn addresses(&self, host: &HostName) -> Result<Vec<Ipv4Addr>, DialError> {
        match self.names.addresses(host).await {
            Ok(found) => Ok(found.addresses),
            Err(Unresolved::None { .. }) => Err(DialError::Refused(Reason::NoAddress)),
            Err(Unresolved::Failed) => Err(DialError::Unreachable),
        }
    }

    /// Whether a host can be reached by its name only: its addresses are the
    /// proxy's business.
    pub(crate) fn by_name_only(&self) -> bool {
        self.proxy.is_some()
    }
}

fn ready(stream: TcpStream) -> Result<TcpStream, DialError> {
    // What one side sends is passed on at once; batching is that side's choice.
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}

/// A peer that is gone is noticed though nobody says anything for long.
pub(crate) fn keep_alive(stream: &TcpStream) {
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(120))
        .with_interval(Duration::from_secs(30))
        .with_retries(4);
    // Without it the connection works as well.
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&probes);
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_proxy_is_asked_for_a_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://user:p%40ss@{}", listener.local_addr().unwrap()).parse().unwrap();
        let proxy = Proxy::new(&url).unwrap();
        let serving = tokio::spawn(async move {
            for answer in ["HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello", "HTTP/1.1 403 no\r\n\r\n"] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = tokio::io::BufStream::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    stream.read_line(&mut head).await.unwrap();
                }
                assert!(head.starts_with("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n"), "{head}");
                assert!(head.contains("Proxy-Authorization: Basic "), "{head}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        let mut stream = proxy.connect("a.test:443").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let refused = proxy.connect("a.test:443").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        serving.await.unwrap();
    }
}
