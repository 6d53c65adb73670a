//! One connection: one operation of the engine, as a small state machine.
//!
//! ```text
//!  Greeting ──hello, request──► Following   output until the command exits
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
    Following { id: String, offset: u64, output: bool },
    Feeding { id: String, waiting: Vec<u8>, ended: bool },
    Terminal { id: String, waiting: Vec<u8> },
    Ending,
    Draining,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) decoder: Decoder,
    pub(crate) state: State,
    pub(crate) greeted: bool,
    out: Vec<u8>,
    sent: usize,
    pub(crate) closed: bool,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
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
            State::Feeding { waiting, .. } | State::Terminal { waiting, .. } => waiting.is_empty(),
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
