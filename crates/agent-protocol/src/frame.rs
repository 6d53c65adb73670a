//! Framing: lengths, kinds, and a decoder that never trusts a length.

use crate::message::{Errno, Hello, Reply, Request};

/// Largest payload that either side accepts, in bytes. A larger length is a
/// protocol error: it ends the connection, never the process.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Largest data payload that either side sends, in bytes.
pub const MAX_DATA: usize = 64 << 10;

/// One frame of the dialogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens the connection, both ways.
    Hello(Hello),
    /// Engine to agent: the operation of this connection.
    Request(Request),
    /// Agent to engine: a structured answer.
    Reply(Reply),
    /// A chunk of the command's standard output.
    Stdout(Vec<u8>),
    /// A chunk of the command's standard error.
    Stderr(Vec<u8>),
    /// A chunk of whatever the operation moves: standard input, a file, a tar.
    Data(Vec<u8>),
    /// The operation ended well, or the sender has no more data.
    End,
    /// The operation failed.
    Error(Errno),
}

/// A peer that does not speak this protocol.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced payload is larger than [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLarge(usize),
    /// A kind byte of no known generation.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A control payload that is not the JSON that its kind asks for.
    #[error("malformed control frame of kind {kind}")]
    Malformed {
        /// The frame's kind byte.
        kind: u8,
        /// What the JSON reader found.
        #[source]
        source: serde_json::Error,
    },
}

const HELLO: u8 = 0;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const DATA: u8 = 5;
const END: u8 = 6;
const ERROR: u8 = 7;

const HEADER: usize = 5;

impl Frame {
    /// Appends the encoded frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => control(out, HELLO, hello),
            Self::Request(request) => control(out, REQUEST, request),
            Self::Reply(reply) => control(out, REPLY, reply),
            Self::Error(error) => control(out, ERROR, error),
            Self::Stdout(data) => raw(out, STDOUT, data),
            Self::Stderr(data) => raw(out, STDERR, data),
            Self::Data(data) => raw(out, DATA, data),
            Self::End => raw(out, END, &[]),
        }
    }

    /// The encoded frame.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.encode(&mut out);
        out
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let malformed = |source| FrameError::Malformed { kind, source };
        Ok(match kind {
            HELLO => Self::Hello(serde_json::from_slice(payload).map_err(malformed)?),
            REQUEST => Self::Request(serde_json::from_slice(payload).map_err(malformed)?),
            REPLY => Self::Reply(serde_json::from_slice(payload).map_err(malformed)?),
            ERROR => Self::Error(serde_json::from_slice(payload).map_err(malformed)?),
            STDOUT => Self::Stdout(payload.to_vec()),
            STDERR => Self::Stderr(payload.to_vec()),
            DATA => Self::Data(payload.to_vec()),
            END => Self::End,
            other => return Err(FrameError::UnknownKind(other)),
        })
    }
}

fn raw(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    // Senders cut data at MAX_DATA, far below u32::MAX.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
}

fn control<T: serde::Serialize>(out: &mut Vec<u8>, kind: u8, message: &T) {
    // The message types hold strings and numbers only: their JSON cannot fail.
    let payload = serde_json::to_vec(message).unwrap_or_default();
    raw(out, kind, &payload);
}

/// Turns bytes as they arrive into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Takes in bytes from the peer.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.read > 0 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes came.
    ///
    /// # Errors
    /// [`FrameError`] where the peer does not speak the protocol; the
    /// connection is of no further use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let bytes = &self.buffer[self.read..];
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLarge(length));
        }
        let Some(payload) = bytes.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let frame = Frame::decode(header[4], payload)?;
        self.read += HEADER + length;
        Ok(Some(frame))
    }

    /// Bytes received and not yet returned as a frame.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a peer sends is a frame, an error or not yet whole; what is read is the same
    /// once it was written again.
    #[test]
    fn nothing_breaks_the_decoder() {
        dormouse_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/frames"), |bytes| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                let mut again = Decoder::default();
                again.push(&frame.to_bytes());
                assert_eq!(again.next_frame().unwrap(), Some(frame));
            }
            assert!(decoder.pending() <= bytes.len());
        });
    }
}
