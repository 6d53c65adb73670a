//! Ports of sandboxes, for whoever publishes them. Not part of the protocol:
//! there the provider publishes them itself.

use dormouse_types::SandboxName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Namespace, ProviderError};

/// Bytes both ways.
pub trait PortStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PortStream for T {}

/// A connection to a port inside a sandbox. It ends with the run.
pub struct PortConnection {
    /// Whose sandbox.
    pub namespace: Namespace,
    /// Which one.
    pub sandbox: SandboxName,
    /// Port inside.
    pub port: u16,
    /// The connection.
    pub stream: Box<dyn PortStream>,
}

impl std::fmt::Debug for PortConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortConnection({}:{})", self.sandbox, self.port)
    }
}

/// Why a port was not reached.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// No sandbox has this name for a port.
    #[error("no sandbox is published under this name")]
    Unknown,
    /// The sandbox sleeps.
    #[error("the sandbox is stopped")]
    Stopped,
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
    /// Connects to the port that `subdomain` names. `wake`: start a stopped
    /// persistent sandbox for it.
    async fn connect(&self, subdomain: &str, wake: bool) -> Result<PortConnection, PortError>;
}
