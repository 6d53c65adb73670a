//! Connections to ports inside sandboxes. The agent makes them, so that what
//! listens on the sandbox's loopback alone is reached too, and hands the socket
//! over, so that it carries no byte itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use dormouse_provider::{Namespace, PortConnection, PortError, PortGateway, ProviderError, RunStatus};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::Engine;
use crate::agent::AgentError;
use crate::host::internal;
use crate::machine::Order;

#[async_trait]
impl PortGateway for Engine {
    async fn connect(&self, subdomain: &str, wake: bool) -> Result<PortConnection, PortError> {
        self.wait_until_recovered().await?;
        let found = self.host.db.route(subdomain).await.map_err(internal("read route"))?;
        let (sandbox, port) = found.ok_or(PortError::Unknown)?;
        let row = self.host.db.sandbox_by_id(&sandbox).await.map_err(internal("read sandbox"))?;
        let row = row.ok_or(PortError::Unknown)?;
        let mut run = self.host.db.newest_run(&row.id).await.map_err(internal("read newest run"))?;
        let ended = |status: &str| RunStatus::from_word(status).is_none_or(RunStatus::is_ended);
        if run.as_ref().is_none_or(|run| ended(&run.status)) {
            if !wake || !row.persistent {
                return Err(PortError::Stopped);
            }
            self.order(&row.id, |reply| Order::Resume { reply }).await?;
            run = self.host.db.newest_run(&row.id).await.map_err(internal("read newest run"))?;
        }
        let live = run.and_then(|run| self.registry.live(&run.id)).ok_or(PortError::Stopped)?;
        let stream = match live.agent.dial(port).await {
            Ok(stream) => stream,
            Err(AgentError::Refused(refused)) if refused.errno == libc::ECONNREFUSED => {
                return Err(PortError::NotListening(port));
            }
            Err(AgentError::Gone(_)) => return Err(PortError::Stopped),
            Err(error) => return Err(ProviderError::from(error).into()),
        };
        Ok(PortConnection {
            namespace: Namespace(row.namespace),
            sandbox: row.name,
            port,
            stream: Box::new(Tied::new(stream, &live.ended)),
        })
    }
}

/// A connection that ends with the run: the sandbox's network is there as long
/// as one of its sockets is.
struct Tied {
    stream: Option<TcpStream>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Tied {
    fn new(stream: TcpStream, ended: &CancellationToken) -> Self {
        Self { stream: Some(stream), ended: Box::pin(ended.clone().cancelled_owned()) }
    }

    /// The connection, unless the run has ended.
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        if self.stream.is_some() && self.ended.as_mut().poll(context).is_ready() {
            self.stream = None;
        }
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
    }
}

impl AsyncRead for Tied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Tied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.alive(context)?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(context)?.poll_shutdown(context)
    }
}
