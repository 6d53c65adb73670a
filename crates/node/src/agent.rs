//! Talking to the agent of one run: one connection per operation.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_agent_protocol::{Decoder, Errno, Frame, GENERATION, Hello, OLDEST_GENERATION, Reply, Request};
use dormouse_provider::ProviderError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long an agent may take to answer where it has nothing to wait for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Calls at once on one run. The agent has a descriptor for each, and some more.
const PLACES: usize = 768;

/// How long a call waits for a place.
const PLACE_PATIENCE: Duration = Duration::from_secs(5);

/// How long it waits until an agent with a full backlog is tried again.
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

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
    /// All places are taken, or the agent's backlog stays full.
    #[error("the sandbox has {PLACES} calls at once, its limit; try again")]
    Busy,
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
}

impl From<AgentError> for ProviderError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Gone(_) => Self::Stopped,
            busy @ AgentError::Busy => Self::Busy(busy.to_string()),
            AgentError::Refused(Errno { errno, message }) => match errno {
                libc::ESHUTDOWN => Self::Stopping,
                libc::ESRCH => Self::NotFound(message),
                libc::ENOENT => Self::NotFound(subject(&message).to_owned()),
                libc::EINVAL => Self::Invalid(message),
                _ => Self::Refused { errno, message },
            },
            // A sandbox that breaks its own agent's connection harms itself only.
            other => Self::internal("talk to the agent", other),
        }
    }
}

/// What a message is about that has operation, subject and reason.
fn subject(message: &str) -> &str {
    let subject = message.split_once(' ').map_or(message, |(_, rest)| rest);
    subject.rsplit_once(": ").map_or(subject, |(subject, _)| subject)
}

/// Where an agent listens.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    dir: PathBuf,
    places: Arc<Semaphore>,
}

/// Its two sockets.
#[derive(Debug, Clone, Copy)]
enum Door {
    /// For calls.
    Calls,
    /// For boot, health and the end of the run, which wait behind no call.
    Control,
}

impl Agent {
    /// The agent whose sockets lie in `dir`.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), places: Arc::new(Semaphore::new(PLACES)) }
    }

    async fn connect(&self, door: Door) -> Result<UnixStream, AgentError> {
        // A socket address holds 107 bytes, a data directory's path may be
        // longer: go through the descriptor of the directory.
        let dir = std::fs::File::open(&self.dir).map_err(AgentError::Gone)?;
        let path = |name: &str| format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        let begun = tokio::time::Instant::now();
        let mut name = match door {
            Door::Calls => "agent.sock",
            Door::Control => "control.sock",
        };
        loop {
            match UnixStream::connect(path(name)).await {
                Ok(stream) => return Ok(stream),
                // A full backlog (`unix(7)`): it is busy, not dead.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if begun.elapsed() >= PATIENCE {
                        return Err(AgentError::Busy);
                    }
                    tokio::time::sleep(BACKLOG_PAUSE).await;
                }
                // A run of before has one socket for everything.
                Err(error) if error.kind() == io::ErrorKind::NotFound && name == "control.sock" => {
                    name = "agent.sock";
                }
                Err(error) => return Err(AgentError::Gone(error)),
            }
        }
    }

    /// Opens a connection and sends the request.
    pub(crate) async fn open(&self, request: Request) -> Result<Dialogue, AgentError> {
        let place = tokio::time::timeout(PLACE_PATIENCE, self.places.clone().acquire_owned()).await;
        // The semaphore is never closed.
        let place = place.map_err(|_| AgentError::Busy)?.map_err(|_| AgentError::Busy)?;
        self.open_by(Door::Calls, Some(place), request).await
    }

    async fn open_by(
        &self,
        door: Door,
        place: Option<OwnedSemaphorePermit>,
        request: Request,
    ) -> Result<Dialogue, AgentError> {
        let mut stream = self.connect(door).await?;
        let mut bytes = Frame::Hello(Hello { generation: GENERATION, oldest: OLDEST_GENERATION }).to_bytes();
        Frame::Request(request).encode(&mut bytes);
        stream.write_all(&bytes).await.map_err(AgentError::Broken)?;
        let (generation, decoder) = (OLDEST_GENERATION, Decoder::default());
        let mut dialogue = Dialogue { stream, decoder, generation, descriptor: None, place };
        let hello =
            tokio::time::timeout(PATIENCE, dialogue.next()).await.map_err(|_| AgentError::Silent)??;
        match hello {
            Some(Frame::Hello(hello))
                if hello.oldest <= GENERATION && hello.generation >= OLDEST_GENERATION =>
            {
                dialogue.generation = hello.generation.min(GENERATION);
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
        within(PATIENCE, self.open(request)).await
    }

    /// The same about the run itself: it waits behind no call.
    pub(crate) async fn control(&self, request: Request, limit: Duration) -> Result<Reply, AgentError> {
        within(limit, self.open_by(Door::Control, None, request)).await
    }

    /// [`Agent::open`] for what came with a generation after the first. A run
    /// that began before an upgrade of the server has an agent without it.
    pub(crate) async fn open_new(&self, generation: u32, request: Request) -> Result<Dialogue, AgentError> {
        let dialogue = self.open(request).await?;
        dialogue.needs(generation)?;
        Ok(dialogue)
    }

    /// Has the run end by itself in case nobody ends it before.
    pub(crate) async fn end_after(&self, left: Duration, grace: Duration) -> Result<(), AgentError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Lifetime { left_ms: millis(left), grace_ms: millis(grace) };
        let open = async {
            let dialogue = self.open_by(Door::Control, None, request).await?;
            dialogue.needs(3)?;
            Ok(dialogue)
        };
        match within(PATIENCE, open).await? {
            Reply::Noted => Ok(()),
            other => Err(AgentError::Protocol(format!("unexpected reply {other:?}"))),
        }
    }

    /// A connection to a TCP port of the sandbox's loopback.
    pub(crate) async fn dial(&self, port: u16) -> Result<TcpStream, AgentError> {
        let talk = async {
            let mut dialogue = self.open_new(2, Request::Dial { port }).await?;
            match dialogue.expect().await? {
                Frame::Reply(Reply::Dialed) => {}
                other => return Err(AgentError::Protocol(format!("unexpected frame {other:?}"))),
            }
            let missing = || AgentError::Protocol("it sent no socket".to_owned());
            let socket = dialogue.descriptor().ok_or_else(missing)?;
            // The agent is ours; that it sent what it should costs little to see.
            let kind = rustix::net::sockopt::socket_type(&socket);
            let family = rustix::net::sockopt::socket_domain(&socket);
            let inet = [rustix::net::AddressFamily::INET, rustix::net::AddressFamily::INET6];
            match (kind, family) {
                (Ok(rustix::net::SocketType::STREAM), Ok(family)) if inet.contains(&family) => {}
                _ => return Err(AgentError::Protocol("it sent something else than a TCP socket".to_owned())),
            }
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true).map_err(AgentError::Broken)?;
            TcpStream::from_std(socket).map_err(AgentError::Broken)
        };
        tokio::time::timeout(PATIENCE, talk).await.map_err(|_| AgentError::Silent)?
    }
}

/// The one structured answer of a dialogue, within a bound.
async fn within(
    limit: Duration,
    open: impl Future<Output = Result<Dialogue, AgentError>>,
) -> Result<Reply, AgentError> {
    let talk = async {
        match open.await?.expect().await? {
            Frame::Reply(reply) => Ok(reply),
            other => Err(AgentError::Protocol(format!("unexpected frame {other:?}"))),
        }
    };
    tokio::time::timeout(limit, talk).await.map_err(|_| AgentError::Silent)?
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Dialogue {
    stream: UnixStream,
    decoder: Decoder,
    generation: u32,
    /// The last descriptor that came along.
    descriptor: Option<OwnedFd>,
    /// Given back with the dialogue.
    place: Option<OwnedSemaphorePermit>,
}

impl Dialogue {
    /// Whether the agent does what came with a generation.
    ///
    /// # Errors
    /// `ENOTSUP` where the run began before an upgrade of the server.
    pub(crate) fn needs(&self, generation: u32) -> Result<(), AgentError> {
        if self.generation >= generation {
            return Ok(());
        }
        Err(AgentError::Refused(Errno {
            errno: libc::ENOTSUP,
            message: "this run began before the server could do this; stop and resume the sandbox".to_owned(),
        }))
    }

    /// The descriptor that came with what was read last.
    pub(crate) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, AgentError> {
        // On the heap: each caller's future would be as large.
        let mut buffer = vec![0; 32 << 10];
        loop {
            let frame = self.decoder.next_frame().map_err(|e| AgentError::Protocol(e.to_string()))?;
            if frame.is_some() {
                return Ok(frame);
            }
            let (read, descriptor) = receive(&self.stream, &mut buffer).await.map_err(AgentError::Broken)?;
            self.descriptor = descriptor.or(self.descriptor.take());
            match read {
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

    /// The two directions, for two tasks.
    pub(crate) fn split(self) -> (DialogueReader, DialogueWriter) {
        let (reader, writer) = self.stream.into_split();
        let reader = DialogueReader { stream: reader, decoder: self.decoder, _place: self.place };
        (reader, DialogueWriter(writer))
    }

    /// Sends one frame.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<(), AgentError> {
        self.stream.write_all(&frame.to_bytes()).await.map_err(AgentError::Broken)
    }
}

/// Bytes, and the descriptor that came with them (`unix(7)`, `SCM_RIGHTS`).
async fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let received = stream.async_io(tokio::io::Interest::READABLE, || {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(buffer)];
        let message = rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok((message.bytes, descriptor))
    });
    received.await
}

/// What an agent says.
#[derive(Debug)]
pub(crate) struct DialogueReader {
    stream: OwnedReadHalf,
    decoder: Decoder,
    /// Given back with this.
    _place: Option<OwnedSemaphorePermit>,
}

impl DialogueReader {
    /// The next frame; an error frame or the end is an error.
    pub(crate) async fn expect(&mut self) -> Result<Frame, AgentError> {
        // On the heap: each caller's future would be as large.
        let mut buffer = vec![0; 32 << 10];
        loop {
            match self.decoder.next_frame().map_err(|e| AgentError::Protocol(e.to_string()))? {
                Some(Frame::Error(errno)) => return Err(AgentError::Refused(errno)),
                Some(frame) => return Ok(frame),
                None => {}
            }
            match self.stream.read(&mut buffer).await.map_err(AgentError::Broken)? {
                0 => return Err(AgentError::Gone(io::ErrorKind::UnexpectedEof.into())),
                read => self.decoder.push(&buffer[..read]),
            }
        }
    }
}

/// What an agent is told.
#[derive(Debug)]
pub(crate) struct DialogueWriter(OwnedWriteHalf);

impl DialogueWriter {
    /// Sends one frame.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<(), AgentError> {
        self.0.write_all(&frame.to_bytes()).await.map_err(AgentError::Broken)
    }
}
