//! Output of one command: an append-only file of records that any number of
//! readers replay from the start.
//!
//! A record is one byte of stream (1 or 2), four bytes of length, the data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use dormouse_agent_protocol::{Frame, MAX_DATA, Stream};

use crate::sys;

/// Output that is kept for one command, in bytes. What comes after is read
/// and dropped, and the command's status says so.
pub(crate) const MAX_LOG: u64 = 64 << 20;

const HEADER: usize = 5;

#[derive(Debug)]
pub(crate) struct Log {
    file: Option<File>,
    length: u64,
    truncated: bool,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { file: None, length: 0, truncated: false }
    }

    pub(crate) fn truncated(&self) -> bool {
        self.truncated
    }

    /// Bytes of records so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Adds output. Never fails: what cannot be kept is counted as truncated.
    pub(crate) fn append(&mut self, stream: Stream, data: &[u8]) {
        if data.is_empty() || self.truncated {
            return;
        }
        if self.length + data.len() as u64 > MAX_LOG || self.store(stream, data).is_err() {
            self.truncated = true;
        }
    }

    fn store(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        // A silent command costs no file.
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(File::from(sys::unnamed_file()?)),
        };
        let mut record = Vec::with_capacity(HEADER + data.len());
        record.push(match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        // Callers pass at most MAX_DATA bytes.
        record.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
        record.extend_from_slice(data);
        file.write_all_at(&record, self.length)?;
        self.length += record.len() as u64;
        Ok(())
    }

    /// The record at `offset` as a frame, and the offset after it.
    pub(crate) fn frame_at(&self, offset: u64) -> Option<(Frame, u64)> {
        let file = self.file.as_ref().filter(|_| offset < self.length)?;
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, offset).ok()?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut data = vec![0; length.min(MAX_DATA)];
        file.read_exact_at(&mut data, offset + HEADER as u64).ok()?;
        let next = offset + (HEADER + length) as u64;
        Some((if header[0] == 1 { Frame::Stdout(data) } else { Frame::Stderr(data) }, next))
    }
}

#[cfg(test)]
mod tests {
    use super::{Log, MAX_LOG};
    use dormouse_agent_protocol::{Frame, Stream};

    #[test]
    fn replays_in_order_from_the_start() {
        let mut log = Log::new();
        assert!(log.frame_at(0).is_none());
        log.append(Stream::Stdout, b"one");
        log.append(Stream::Stderr, b"two");
        let (first, next) = log.frame_at(0).unwrap();
        let (second, end) = log.frame_at(next).unwrap();
        assert_eq!((first, second), (Frame::Stdout(b"one".to_vec()), Frame::Stderr(b"two".to_vec())));
        assert_eq!(end, log.length());
        assert!(log.frame_at(end).is_none());
    }

    #[test]
    fn a_flood_is_cut_and_said() {
        let mut log = Log::new();
        let chunk = vec![b'x'; 60 << 10];
        for _ in 0..=(MAX_LOG / chunk.len() as u64) {
            log.append(Stream::Stdout, &chunk);
        }
        assert!(log.truncated());
        assert!(log.length() <= MAX_LOG + (1 << 20));
    }
}
