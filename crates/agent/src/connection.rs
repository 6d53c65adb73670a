//! One connection: one operation of the engine, as a small state machine.
//!
//! ```text
//!  Greeting ──hello, request──► Watching    how long the log is, until the command exits
//!                             ► Following   the same for a server of before: output itself
//!                             ► Feeding     data frames into standard input
//!                             ► Terminal    both ways, until either side hangs up
//!                             ► Ending      waits for a shutdown to finish
//!                             ► Draining    last bytes go out, then close
//!                             ► (a file operation leaves with its helper)
//! ```

use std::io;
use std::os::fd::OwnedFd;

use dormouse_agent_protocol::{Decoder, Errno, Frame, GENERATION, Hello, OLDEST_GENERATION};

use crate::sys;

/// Unsent bytes after which a connection gets no more output for now.
pub(crate) const HIGH_WATER: usize = 256 << 10;

#[derive(Debug)]
pub(crate) enum State {
    Greeting,
    Watching { id: String, told: Told },
    Following { id: String, offset: u64, output: bool },
    Feeding(Feeding),
    Terminal { id: String, waiting: Vec<u8> },
    Ending,
    Draining,
}

/// What the server knows of a log.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Bytes; `None`: nothing yet.
    pub(crate) length: Option<u64>,
    /// Which file it has ([`crate::log::Log::file`]).
    pub(crate) file: u32,
}

/// Standard input on its way to a command.
#[derive(Debug)]
pub(crate) struct Feeding {
    pub(crate) id: String,
    pub(crate) waiting: Vec<u8>,
    pub(crate) ended: bool,
    /// Where the next data stands in all that the command was sent; `None`: behind what was
    /// taken.
    pub(crate) offset: Option<u64>,
    /// Close standard input at the end.
    pub(crate) close: bool,
    /// Answer with how much was taken.
    pub(crate) counted: bool,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    /// Tells it from every other one.
    pub(crate) token: u64,
    /// It came by [`dormouse_agent_protocol::CONTROL_FD`].
    pub(crate) control: bool,
    /// The socket took nothing at the last try, though nothing is unsent.
    pub(crate) blocked: bool,
    pub(crate) decoder: Decoder,
    pub(crate) state: State,
    pub(crate) greeted: bool,
    out: Vec<u8>,
    sent: usize,
    pub(crate) closed: bool,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd, token: u64, control: bool) -> Self {
        Self {
            socket,
            token,
            control,
            blocked: false,
            decoder: Decoder::default(),
            state: State::Greeting,
            greeted: false,
            out: Vec::new(),
            sent: 0,
            closed: false,
        }
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    /// Sends the last frame; the connection closes once it is out.
    pub(crate) fn finish(&mut self, frame: &Frame) {
        self.send(frame);
        self.state = State::Draining;
    }

    pub(crate) fn fail(&mut self, errno: i32, message: impl Into<String>) {
        self.finish(&Frame::Error(Errno { errno, message: message.into() }));
    }

    /// Checks the peer's generation and answers with ours.
    pub(crate) fn greet(&mut self, hello: &Hello) {
        self.send(&Frame::Hello(Hello { generation: GENERATION, oldest: OLDEST_GENERATION }));
        self.greeted = true;
        if hello.oldest > GENERATION || hello.generation < OLDEST_GENERATION {
            self.fail(
                libc::EPROTONOSUPPORT,
                format!("agent speaks generations {OLDEST_GENERATION} to {GENERATION}"),
            );
        }
    }

    pub(crate) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Bytes from the engine. A feeding connection reads no more while the
    /// command does not take what it has.
    pub(crate) fn wants_read(&self) -> bool {
        match &self.state {
            State::Feeding(Feeding { waiting, .. }) | State::Terminal { waiting, .. } => waiting.is_empty(),
            _ => true,
        }
    }

    pub(crate) fn receive(&mut self) {
        let mut buffer = [0; 32 << 10];
        match sys::read(&self.socket, &mut buffer) {
            Ok(0) => self.closed = true,
            Ok(read) => self.decoder.push(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
    }

    /// Sends a frame with a descriptor, where nothing is unsent. `false`: the socket takes
    /// nothing now.
    pub(crate) fn send_with(&mut self, frame: &Frame, fd: &impl std::os::fd::AsRawFd) -> bool {
        match sys::send_with(&self.socket, &frame.to_bytes(), fd) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                false
            }
            Err(_) => {
                self.closed = true;
                false
            }
        }
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) {
        while self.unsent() > 0 {
            match sys::write(&self.socket, &self.out[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
        self.out.clear();
        self.sent = 0;
        if matches!(self.state, State::Draining) {
            self.closed = true;
        }
    }
}
