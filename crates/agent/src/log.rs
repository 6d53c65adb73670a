//! Output of one command: an append-only file of records that any number of
//! readers replay from the start.
//!
//! A record is one byte of stream (1 or 2), four bytes of length, the data.
//!
//! The file lies on the sandbox's disk. When that is full, the log goes on in
//! memory: the command that looks what is full must not lose its output.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use dormouse_agent_protocol::{Frame, MAX_DATA, Stream};

use crate::sys;

/// Output that is kept for one command, in bytes. What comes after is read
/// and dropped, and the command's status says so.
pub(crate) const MAX_LOG: u64 = 64 << 20;

/// The part of it that may lie in memory, in bytes.
const MAX_IN_MEMORY: u64 = 4 << 20;

const HEADER: usize = 5;

/// A file with the records from `start` on.
#[derive(Debug)]
struct Segment {
    file: File,
    start: u64,
}

impl Segment {
    fn write(&self, record: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(record, at - self.start)
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    /// A silent command costs no file.
    on_disk: Option<Segment>,
    in_memory: Option<Segment>,
    length: u64,
    truncated: bool,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { on_disk: None, in_memory: None, length: 0, truncated: false }
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
        let mut record = Vec::with_capacity(HEADER + data.len());
        record.push(match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        // Callers pass at most MAX_DATA bytes.
        record.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
        record.extend_from_slice(data);
        let full = self.length + record.len() as u64 > MAX_LOG;
        if full || self.store(&record).is_err() {
            self.truncated = true;
        } else {
            self.length += record.len() as u64;
        }
    }

    fn store(&mut self, record: &[u8]) -> io::Result<()> {
        if self.in_memory.is_none() && self.store_on_disk(record).is_ok() {
            return Ok(());
        }
        let start = self.length;
        let segment = match &self.in_memory {
            Some(segment) => segment,
            None => self.in_memory.insert(Segment { file: File::from(sys::memory_file()?), start }),
        };
        if self.length - segment.start + record.len() as u64 > MAX_IN_MEMORY {
            return Err(io::ErrorKind::StorageFull.into());
        }
        segment.write(record, self.length)
    }

    fn store_on_disk(&mut self, record: &[u8]) -> io::Result<()> {
        let segment = match &self.on_disk {
            Some(segment) => segment,
            None => self.on_disk.insert(Segment { file: File::from(sys::unnamed_file()?), start: 0 }),
        };
        segment.write(record, self.length)
    }

    /// The record at `offset` as a frame, and the offset after it.
    pub(crate) fn frame_at(&self, offset: u64) -> Option<(Frame, u64)> {
        if offset >= self.length {
            return None;
        }
        let in_memory = self.in_memory.as_ref().filter(|segment| segment.start <= offset);
        let segment = in_memory.or(self.on_disk.as_ref())?;
        let at = offset - segment.start;
        let mut header = [0; HEADER];
        segment.file.read_exact_at(&mut header, at).ok()?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut data = vec![0; length.min(MAX_DATA)];
        segment.file.read_exact_at(&mut data, at + HEADER as u64).ok()?;
        let next = offset + (HEADER + length) as u64;
        Some((if header[0] == 1 { Frame::Stdout(data) } else { Frame::Stderr(data) }, next))
    }
}

#[cfg(test)]
mod tests {
    use super::{Log, MAX_IN_MEMORY, MAX_LOG};
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
    fn goes_on_in_memory_when_the_disk_is_full() {
        let mut log = Log::new();
        log.append(Stream::Stdout, b"one");
        // Takes no writes.
        log.on_disk.as_mut().unwrap().file = std::fs::File::open("/dev/null").unwrap();
        let first = log.length();
        log.append(Stream::Stderr, b"two");
        log.append(Stream::Stdout, b"three");
        let (second, next) = log.frame_at(first).unwrap();
        let (third, end) = log.frame_at(next).unwrap();
        assert_eq!((second, third), (Frame::Stderr(b"two".to_vec()), Frame::Stdout(b"three".to_vec())));
        assert_eq!((end, log.truncated()), (log.length(), false));
        for _ in 0..100 {
            log.append(Stream::Stdout, &[b'x'; 60 << 10]);
        }
        assert!(log.truncated() && log.length() <= MAX_IN_MEMORY + first);
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
