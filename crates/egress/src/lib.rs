//! What a sandbox's traffic must pass: a resolver and a TCP relay on the host,
//! to which the packet filter sends everything that a sandbox says.
//!
//! The relay passes what is public and what the sandbox's policy allows, and
//! refuses private, link-local and host addresses (the packet filter does too;
//! this is the second door). Rules for domains and credentials join here.
//! Mirrored hosts (`git.mirrors`) resolve to an address of ours, where [`mirror`]
//! answers in their name.
//!
//! What does not live here: which sandbox may do what, and the packet filter.

#![expect(unsafe_code, reason = "SO_ORIGINAL_DST has no safe wrapper")]

mod dns;
mod mirror;
mod places;
mod policy;
mod relay;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

pub use mirror::{Mirror, MirrorError, mirrored};
pub use policy::{EgressPolicy, Policies};

/// Where to listen and what to stand in for.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    /// Address of the listeners; only sandboxes' redirected packets reach it.
    pub address: Ipv4Addr,
    /// What mirrored hosts resolve to.
    pub mirror_address: Ipv4Addr,
    /// Resolver to ask; `None`: the first of `/etc/resolv.conf`.
    pub upstream: Option<SocketAddr>,
    /// URL prefixes that stand for others.
    pub mirrors: Vec<Mirror>,
    /// Where our certificate authority is kept.
    pub state_dir: PathBuf,
}

/// Why the listeners could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// An address could not be bound.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A mirror cannot be served.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// The running listeners; they end when this is dropped.
#[derive(Debug)]
pub struct Egress {
    dns_port: u16,
    tcp_port: u16,
    mirrors: Option<Arc<mirror::Gateway>>,
    policies: Arc<Policies>,
    tasks: Vec<JoinHandle<()>>,
}

impl Egress {
    /// Binds and serves.
    ///
    /// # Errors
    /// [`EgressError`] when an address cannot be bound or a mirror is wrong.
    pub async fn start(config: EgressConfig) -> Result<Self, EgressError> {
        let at = |port| SocketAddr::from((config.address, port));
        let listen = |address| move |source| EgressError::Listen { address, source };
        let mirrors = if config.mirrors.is_empty() {
            None
        } else {
            Some(Arc::new(mirror::Gateway::new(config.mirrors.clone(), &config.state_dir)?))
        };
        let relay = TcpListener::bind(at(0)).await.map_err(listen(at(0)))?;
        let dns_tcp = TcpListener::bind(at(0)).await.map_err(listen(at(0)))?;
        let dns_port = dns_tcp.local_addr().map_err(listen(at(0)))?.port();
        let dns_udp = UdpSocket::bind(at(dns_port)).await.map_err(listen(at(dns_port)))?;
        let tcp_port = relay.local_addr().map_err(listen(at(0)))?.port();

        let policies = Arc::new(Policies::default());
        let resolver = Arc::new(dns::Resolver {
            policies: policies.clone(),
            upstream: config.upstream.or_else(dns::host_resolver),
            mirror_address: config.mirror_address,
            mirrored: mirrors.as_ref().map(|gateway| gateway.hosts()).unwrap_or_default(),
        });
        let tasks = vec![
            tokio::spawn(dns::serve_udp(resolver.clone(), Arc::new(dns_udp))),
            tokio::spawn(dns::serve_tcp(resolver, dns_tcp)),
            tokio::spawn(relay::serve(relay, config.mirror_address, mirrors.clone(), policies.clone())),
        ];
        Ok(Self { dns_port, tcp_port, mirrors, policies, tasks })
    }

    /// Port of the resolver, UDP and TCP.
    #[must_use]
    pub fn dns_port(&self) -> u16 {
        self.dns_port
    }

    /// Port of the relay.
    #[must_use]
    pub fn tcp_port(&self) -> u16 {
        self.tcp_port
    }

    /// What each sandbox may reach.
    #[must_use]
    pub fn policies(&self) -> Arc<Policies> {
        self.policies.clone()
    }

    /// Certificate of our authority in PEM, when hosts are mirrored.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.mirrors.as_ref().map(|gateway| gateway.certificate())
    }

    /// Hosts that are mirrored.
    #[must_use]
    pub fn mirrored_hosts(&self) -> Vec<String> {
        self.mirrors.as_ref().map(|gateway| gateway.hosts()).unwrap_or_default()
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
