//! Talking to the agent of one run: one connection per operation.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_agent_protocol::{Decoder, Errno, Frame, GENERATION, Hello, OLDEST_GENERATION, Reply, Request};
use dormouse_provider::ProviderError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// How long an agent may take to answer where it has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Nobody listens: the run has ended.
    #[error("the agent is gone")]
    Gone(#[source] io::Error),
    /// The connection broke in the middle.
    #[error("connection to the agent")]
    Broken(#[source] io::Error),
    /// The other side does not speak the protocol, or not any more.
    #[error("the agent does not keep to the protocol: {0}")]
    Protocol(String),
    /// The agent answered with an error.
    #[error("{}", .0.message)]
    Refused(Errno),
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
}

impl From<AgentError> for ProviderError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Gone(_) => Self::Stopped,
            AgentError::Refused(Errno { errno, message }) => match errno {
                libc::ESHUTDOWN => Self::Stopping,
                libc::ENOENT | libc::ESRCH => Self::NotFound(message),
                libc::EINVAL => Self::Invalid(message),
                _ => Self::Refused { errno, message },
            },
            // A sandbox that breaks its own agent's connection harms itself only.
            other => Self::internal("talk to the agent", other),
        }
    }
}

/// Where an agent listens.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// The agent whose socket lies in `dir`.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { socket: dir.join("agent.sock") }
    }

    async fn connect(&self) -> Result<UnixStream, AgentError> {
        // A socket address holds 107 bytes, a data directory's path may be
        // longer: go through the descriptor of the directory.
        let dir = self.socket.parent().map(std::fs::File::open).transpose();
        let dir = dir.map_err(AgentError::Gone)?;
        let dir = dir.ok_or_else(|| AgentError::Gone(io::ErrorKind::NotFound.into()))?;
        let path = format!("/proc/self/fd/{}/agent.sock", dir.as_raw_fd());
        UnixStream::connect(path).await.map_err(AgentError::Gone)
    }

    /// Opens a connection and sends the request.
    pub(crate) async fn open(&self, request: Request) -> Result<Dialogue, AgentError> {
        let mut stream = self.connect().await?;
        let mut bytes = Frame::Hello(Hello { generation: GENERATION, oldest: OLDEST_GENERATION }).to_bytes();
        Frame::Request(request).encode(&mut bytes);
        stream.write_all(&bytes).await.map_err(AgentError::Broken)?;
        let mut dialogue = Dialogue { stream, decoder: Decoder::default() };
        let hello =
            tokio::time::timeout(PATIENCE, dialogue.next()).await.map_err(|_| AgentError::Silent)??;
        match hello {
            Some(Frame::Hello(hello))
                if hello.oldest <= GENERATION && hello.generation >= OLDEST_GENERATION =>
            {
                Ok(dialogue)
            }
            Some(Frame::Hello(hello)) => {
                Err(AgentError::Protocol(format!("it speaks generation {}", hello.generation)))
            }
            Some(_) => Err(AgentError::Protocol("it did not say hello".to_owned())),
            None => Err(AgentError::Gone(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// One request, one structured answer, within a bound.
    pub(crate) async fn call(&self, request: Request) -> Result<Reply, AgentError> {
        self.call_within(request, PATIENCE).await
    }

    /// [`Agent::call`] with a bound of its own.
    pub(crate) async fn call_within(&self, request: Request, limit: Duration) -> Result<Reply, AgentError> {
        let talk = async {
            let mut dialogue = self.open(request).await?;
            match dialogue.expect().await? {
                Frame::Reply(reply) => Ok(reply),
                other => Err(AgentError::Protocol(format!("unexpected frame {other:?}"))),
            }
        };
        tokio::time::timeout(limit, talk).await.map_err(|_| AgentError::Silent)?
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Dialogue {
    stream: UnixStream,
    decoder: Decoder,
}

impl Dialogue {
    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, AgentError> {
        let mut buffer = [0; 32 << 10];
        loop {
            let frame = self.decoder.next_frame().map_err(|e| AgentError::Protocol(e.to_string()))?;
            if frame.is_some() {
                return Ok(frame);
            }
            match self.stream.read(&mut buffer).await.map_err(AgentError::Broken)? {
                0 => return Ok(None),
                read => self.decoder.push(&buffer[..read]),
            }
        }
    }

    /// The next frame; an error frame or the end is an error.
    pub(crate) async fn expect(&mut self) -> Result<Frame, AgentError> {
        match self.next().await? {
            Some(Frame::Error(errno)) => Err(AgentError::Refused(errno)),
            Some(frame) => Ok(frame),
            None => Err(AgentError::Gone(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Sends one frame.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<(), AgentError> {
        self.stream.write_all(&frame.to_bytes()).await.map_err(AgentError::Broken)
    }
}
