//! Ports of sandboxes, for whoever publishes them. Not part of the protocol:
//! there the provider publishes them itself.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{ProviderError, SandboxKey};

/// Bytes both ways.
pub trait PortStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PortStream for T {}

/// A connection to a port inside a sandbox. It ends with the run.
pub struct PortConnection {
    /// Whose sandbox, and which one.
    pub key: SandboxKey,
    /// Port inside.
    pub port: u16,
    /// The connection.
    pub stream: Box<dyn PortStream>,
}

impl std::fmt::Debug for PortConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortConnection({}:{})", self.key.name, self.port)
    }
}

/// Why a port was not reached.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// No sandbox has this name for a port.
    #[error("no sandbox is published under this name")]
    Unknown,
    /// The sandbox sleeps. It is named if it can be woken.
    #[error("the sandbox is stopped")]
    Stopped(Option<SandboxKey>),
    /// Nothing listens on the port.
    #[error("nothing listens on port {0} of the sandbox")]
    NotListening(u16),
    /// Everything else.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Reaches ports inside sandboxes.
#[async_trait::async_trait]
pub trait PortGateway: Send + Sync + std::fmt::Debug + 'static {
    /// Connects to the port that `subdomain` names.
    async fn connect(&self, subdomain: &str) -> Result<PortConnection, PortError>;
}
