//! What a sandbox's traffic must pass on its way out: policy, resolver, relay and
//! proxy. Secrets are put on requests here, outside the sandbox.
//!
//! ```text
//!             sandbox
//!     DNS, SYN |    | bytes
//!           [gate] [relay]--------- splice ---------+
//!     policy   |    |  \                            |
//!     names ---+    |   TLS of its own authority    |
//!     ground        |    \                          |
//!                   |  [http] rules, secrets        |
//!                   +----- dial --------------------+--> destination
//! ```
//!
//! Whoever starts an [`Egress`] hands it a gate (a TUN device, on which the first
//! packet of each connection comes) and a transparent listener; both live in a
//! network namespace of their own, from which no packet reaches anything else. What
//! does not live here: how packets get there, and who may do what.

mod authority;
mod dial;
mod dns;
mod gate;
mod ground;
mod hello;
mod http;
mod identity;
mod io;
mod ledger;
mod mirror;
mod names;
mod packet;
mod places;
mod policy;
mod reason;
mod relay;
mod sandboxes;
mod splice;
mod wall_clock;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::Url;

pub use authority::AuthoritySecret;
pub use ground::Ground;
pub use identity::{Signer, SignerError, pem};
pub use ledger::{Access, Sums, Totals, Way};
pub use mirror::{Mirror, MirrorError, mirrored};
pub use policy::Ruleset;
pub use reason::Reason;
pub use sandboxes::{Occupant, Sandboxes};

/// What the operator decides of the network of sandboxes.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    /// Resolver to ask; `None`: those of the host.
    pub upstream: Option<SocketAddr>,
    /// HTTP proxy to go through: `http://[USER:PASSWORD@]HOST:PORT`.
    pub proxy: Option<Url>,
    /// Networks beyond the built-in list.
    pub ground: Ground,
    /// URL prefixes that stand for others.
    pub mirrors: Vec<Mirror>,
    /// PEM file of authorities that the proxy believes in beside the public ones
    /// and the host's.
    pub extra_roots: Option<PathBuf>,
    /// What the authorities of sandboxes follow from.
    pub secret: AuthoritySecret,
    /// Signs forwarded requests.
    pub signer: Option<Arc<Signer>>,
}

/// Where sandboxes' traffic comes in.
#[derive(Debug)]
pub struct Entrance {
    /// The TUN device, not blocking.
    pub gate: AsyncFd<OwnedFd>,
    /// The transparent listener, not blocking.
    pub listener: std::net::TcpListener,
    /// In whose name packets are refused.
    pub address: Ipv4Addr,
}

/// Why the network of sandboxes could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The listener cannot be used.
    #[error("take over the listener of the sandboxes' network")]
    Entrance(#[source] std::io::Error),
    /// A mirror cannot be served.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The resolver could not be set up.
    #[error("set up the resolver: {0}")]
    Resolver(String),
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// A file of authorities could not be read.
    #[error("read the certificate authorities in {path}: {message}")]
    Roots {
        /// Which.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The proxy's URL is none.
    #[error("network.proxy: must be http://[USER:PASSWORD@]HOST:PORT")]
    Proxy,
}

/// The running network; it ends when this is dropped.
#[derive(Debug)]
pub struct Egress {
    sandboxes: Arc<Sandboxes>,
    mirrored: Vec<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Egress {
    /// Serves what comes in.
    ///
    /// # Errors
    /// [`EgressError`] that says what cannot be served.
    pub fn start(config: EgressConfig, entrance: Entrance) -> Result<Self, EgressError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let proxy = config.proxy.as_ref().map(|url| dial::Proxy::new(url).ok_or(EgressError::Proxy));
        let names =
            names::Names::new(config.upstream).map_err(|error| EgressError::Resolver(error.to_string()))?;
        let dialer = Arc::new(dial::Dialer { ground: config.ground, names, proxy: proxy.transpose()? });
        let mirrors = Arc::new(mirror::Mirrors::new(config.mirrors)?);
        let resolver = Arc::new(dns::Resolver { dialer: dialer.clone(), mirrors: mirrors.clone() });
        let trust = sandboxes::Trust { secret: config.secret, provider: provider.clone() };
        let sandboxes = Arc::new(Sandboxes::new(trust));
        let tls = http::Tls::new(roots(config.extra_roots)?, provider)?;
        let gate = gate::Gate::new(entrance.gate, entrance.address, sandboxes.clone(), resolver.clone());
        let gate = Arc::new(gate);
        let listener = TcpListener::from_std(entrance.listener).map_err(EgressError::Entrance)?;
        let mirrored = mirrors.hosts().iter().map(ToString::to_string).collect();
        let proxy = Arc::new(http::Proxy { dialer, mirrors, resolver, tls, signer: config.signer });
        let relay = Arc::new(relay::Relay { gate: gate.clone(), proxy });
        let tasks = vec![tokio::spawn(gate.serve()), tokio::spawn(relay.serve(listener))];
        Ok(Self { sandboxes, mirrored, tasks })
    }

    /// Who is where, and may reach what.
    #[must_use]
    pub fn sandboxes(&self) -> Arc<Sandboxes> {
        self.sandboxes.clone()
    }

    /// Hosts that are mirrored.
    #[must_use]
    pub fn mirrored_hosts(&self) -> &[String] {
        &self.mirrored
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Public authorities, those of the host, and those of a file.
fn roots(extra: Option<PathBuf>) -> Result<RootCertStore, EgressError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let host = rustls_native_certs::load_native_certs();
    for error in host.errors {
        tracing::debug!(%error, "read the host's certificate authorities");
    }
    // Some of a host's may be of a form that nobody accepts any more.
    let _ = roots.add_parsable_certificates(host.certs);
    if let Some(path) = extra {
        let failed = |message: String| EgressError::Roots { path: path.clone(), message };
        let certificates = CertificateDer::pem_file_iter(&path).map_err(|error| failed(error.to_string()))?;
        let mut added = 0;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
            added += 1;
        }
        if added == 0 {
            return Err(failed("it holds no certificate".to_owned()));
        }
    }
    Ok(roots)
}
