//! Output of one command: a file of records ([`dormouse_agent_protocol::record`]) that any
//! number of readers have open, the server among them.
//!
//! The file begins in memory, which a silent command takes none of, and moves to a directory
//! of the host's once it is long. It never lies on the sandbox's own disk: a command that
//! fills that must not lose what it says about it. Both places have bounds, for each command
//! and for all of a run ([`Room`]). What is over them is dropped, counted, and marked in the
//! log at the place where it was.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use dormouse_agent_protocol::record::{self, HEADER, Kind};
use dormouse_agent_protocol::{Frame, MAX_DATA, Stream};

use crate::sys;

/// Longest log of one command, in bytes.
pub(crate) const MAX_LOG: u64 = 64 << 20;

/// What of it lies in memory before it moves, in bytes.
const IN_MEMORY: u64 = 256 << 10;

/// The same where it cannot move, in bytes.
const IN_MEMORY_ONLY: u64 = 1 << 20;

/// What the logs of all commands may take of memory, in bytes. It is the sandbox's memory.
const ALL_IN_MEMORY: u64 = 8 << 20;

/// What they may take of the host's directory, in bytes.
const ALL_ON_DISK: u64 = 128 << 20;

/// Above this, logs of commands that ended are forgotten for the sake of new ones.
const TIGHT: u64 = ALL_ON_DISK - (16 << 20);

/// Room for the logs of all commands of the run.
#[derive(Debug)]
pub(crate) struct Room {
    /// `None`: a launcher of before left none.
    directory: Option<OwnedFd>,
    in_memory: Cell<u64>,
    on_disk: Cell<u64>,
}

impl Room {
    pub(crate) fn new(directory: Option<OwnedFd>) -> Rc<Self> {
        Rc::new(Self { directory, in_memory: Cell::new(0), on_disk: Cell::new(0) })
    }

    /// Whether there will soon be none.
    pub(crate) fn is_tight(&self) -> bool {
        self.on_disk.get() > TIGHT
    }

    fn used(&self, place: Place) -> (&Cell<u64>, u64) {
        match place {
            Place::Memory => (&self.in_memory, ALL_IN_MEMORY),
            Place::Disk => (&self.on_disk, ALL_ON_DISK),
        }
    }

    fn take(&self, place: Place, bytes: u64) -> io::Result<()> {
        let (used, most) = self.used(place);
        if used.get() + bytes > most {
            return Err(io::ErrorKind::StorageFull.into());
        }
        used.set(used.get() + bytes);
        Ok(())
    }

    fn give_back(&self, place: Place, bytes: u64) {
        let (used, _) = self.used(place);
        used.set(used.get().saturating_sub(bytes));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    Disk,
}

#[derive(Debug)]
pub(crate) struct Log {
    room: Rc<Room>,
    file: Option<(File, Place)>,
    /// How often the file was another.
    moves: u32,
    length: u64,
    /// It has reached its bound: nothing comes any more, so that what is there has no holes
    /// but those that a lack of room made.
    full: bool,
    /// Lost since the last record.
    gap: u64,
    lost: u64,
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some((_, place)) = self.file {
            self.room.give_back(place, self.length);
        }
    }
}

impl Log {
    pub(crate) fn new(room: &Rc<Room>) -> Self {
        Self { room: room.clone(), file: None, moves: 0, length: 0, full: false, gap: 0, lost: 0 }
    }

    /// Bytes of output that were dropped.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Bytes of records so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The file, and which of them it is.
    pub(crate) fn file(&self) -> Option<(&File, u32)> {
        self.file.as_ref().map(|(file, _)| (file, self.moves))
    }

    /// Adds output. Never fails: what cannot be kept is counted as lost.
    pub(crate) fn append(&mut self, stream: Stream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let kind = match stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        let mut records = Vec::with_capacity(2 * HEADER + 8 + data.len());
        if self.gap > 0 {
            put(&mut records, Kind::Lost, &self.gap.to_le_bytes());
        }
        // Callers pass at most MAX_DATA bytes.
        put(&mut records, kind, data);
        if self.store(&records).is_ok() {
            self.gap = 0;
        } else {
            self.gap += data.len() as u64;
            self.lost += data.len() as u64;
        }
    }

    fn store(&mut self, records: &[u8]) -> io::Result<()> {
        let more = records.len() as u64;
        let length = self.length + more;
        self.full |= length > MAX_LOG;
        if self.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.file.is_none() {
            self.file = Some((sys::memory_file()?.into(), Place::Memory));
            self.moves += 1;
        }
        // A failure to move is one only where memory does not do either.
        let moved = if self.is_in_memory() && (length > IN_MEMORY || self.room.is_full_of_memory(more)) {
            self.move_to_disk()
        } else {
            Ok(())
        };
        let Some((file, place)) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        if *place == Place::Memory && length > IN_MEMORY_ONLY {
            moved?;
        }
        self.room.take(*place, more)?;
        let written = file.write_all_at(records, self.length);
        if written.is_err() {
            self.room.give_back(*place, more);
        }
        written?;
        self.length = length;
        Ok(())
    }

    fn is_in_memory(&self) -> bool {
        matches!(self.file, Some((_, Place::Memory)))
    }

    fn move_to_disk(&mut self) -> io::Result<()> {
        let (Some((old, _)), Some(directory)) = (&self.file, &self.room.directory) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let new = File::from(sys::unnamed_file(directory)?);
        self.room.take(Place::Disk, self.length)?;
        let copied = copy(old, &new, self.length);
        if copied.is_err() {
            self.room.give_back(Place::Disk, self.length);
            return copied;
        }
        self.room.give_back(Place::Memory, self.length);
        self.file = Some((new, Place::Disk));
        self.moves += 1;
        Ok(())
    }

    /// The record at `offset` as a frame, for a server of before, and the offset after it.
    /// Such a server is not told where output was lost.
    pub(crate) fn frame_at(&self, mut offset: u64) -> Option<(Frame, u64)> {
        let (file, _) = self.file.as_ref()?;
        while offset < self.length {
            let mut head = [0; HEADER];
            file.read_exact_at(&mut head, offset).ok()?;
            let (kind, length) = record::read_header(head)?;
            let mut data = vec![0; (length as usize).min(MAX_DATA)];
            file.read_exact_at(&mut data, offset + HEADER as u64).ok()?;
            offset += HEADER as u64 + u64::from(length);
            match kind {
                Kind::Stdout => return Some((Frame::Stdout(data), offset)),
                Kind::Stderr => return Some((Frame::Stderr(data), offset)),
                Kind::Lost => {}
            }
        }
        None
    }
}

impl Room {
    fn is_full_of_memory(&self, more: u64) -> bool {
        self.in_memory.get() + more > ALL_IN_MEMORY
    }
}

fn put(records: &mut Vec<u8>, kind: Kind, data: &[u8]) {
    records.extend_from_slice(&record::header(kind, u32::try_from(data.len()).unwrap_or(0)));
    records.extend_from_slice(data);
}

fn copy(from: &File, to: &File, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; MAX_DATA];
    let mut at = 0;
    while at < length {
        let part = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
        from.read_exact_at(&mut buffer[..part], at)?;
        to.write_all_at(&buffer[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Rc<Room> {
        Room::new(Some(File::open(std::env::temp_dir()).unwrap().into()))
    }

    /// What a reader of the file finds.
    fn records(log: &Log) -> Vec<(Kind, Vec<u8>)> {
        let Some((file, _)) = log.file() else { return Vec::new() };
        let (mut at, mut found) = (0, Vec::new());
        while at < log.length() {
            let mut head = [0; HEADER];
            file.read_exact_at(&mut head, at).unwrap();
            let (kind, length) = record::read_header(head).unwrap();
            let mut data = vec![0; length as usize];
            file.read_exact_at(&mut data, at + HEADER as u64).unwrap();
            at += HEADER as u64 + u64::from(length);
            found.push((kind, data));
        }
        assert_eq!(at, log.length());
        found
    }

    #[test]
    fn replays_in_order_from_the_start() {
        let mut log = Log::new(&room());
        assert!(log.frame_at(0).is_none() && log.file().is_none());
        log.append(Stream::Stdout, b"one");
        log.append(Stream::Stderr, b"two");
        assert_eq!(records(&log), [(Kind::Stdout, b"one".to_vec()), (Kind::Stderr, b"two".to_vec())]);
        let (first, next) = log.frame_at(0).unwrap();
        let (second, end) = log.frame_at(next).unwrap();
        assert_eq!((first, second), (Frame::Stdout(b"one".to_vec()), Frame::Stderr(b"two".to_vec())));
        assert_eq!(end, log.length());
        assert!(log.frame_at(end).is_none());
    }

    #[test]
    fn a_long_log_moves_and_stays_the_same() {
        let room = room();
        let mut log = Log::new(&room);
        let chunk = vec![b'x'; 60 << 10];
        for _ in 0..10 {
            log.append(Stream::Stdout, &chunk);
        }
        assert_eq!((log.is_in_memory(), log.moves), (false, 2));
        assert_eq!((room.in_memory.get(), room.on_disk.get()), (0, log.length()));
        assert!(records(&log).iter().all(|(kind, data)| *kind == Kind::Stdout && data == &chunk));
        drop(log);
        assert_eq!(room.on_disk.get(), 0);
    }

    #[test]
    fn a_flood_is_cut_and_how_much_is_said() {
        let mut log = Log::new(&room());
        let chunk = vec![b'x'; 60 << 10];
        for _ in 0..=(MAX_LOG / chunk.len() as u64) {
            log.append(Stream::Stdout, &chunk);
        }
        let kept: u64 = records(&log).iter().map(|(_, data)| data.len() as u64).sum();
        assert_eq!(kept + log.lost(), (MAX_LOG / chunk.len() as u64 + 1) * chunk.len() as u64);
        assert!(log.lost() > 0 && log.length() <= MAX_LOG);
    }

    #[test]
    fn what_is_lost_is_marked_where_it_was() {
        // Nowhere to move: memory alone takes a megabyte.
        let mut log = Log::new(&Room::new(None));
        let chunk = vec![b'x'; 60 << 10];
        for _ in 0..20 {
            log.append(Stream::Stdout, &chunk);
        }
        log.append(Stream::Stderr, b"still room for this");
        let found = records(&log);
        let (kind, data) = &found[found.len() - 2];
        assert_eq!((*kind, data.as_slice()), (Kind::Lost, log.lost().to_le_bytes().as_slice()));
        assert_eq!(found.last().unwrap().1, b"still room for this");
        assert_eq!(log.lost() % chunk.len() as u64, 0);
        // A server of before hears of the rest.
        let mut at = 0;
        while let Some((_, next)) = log.frame_at(at) {
            at = next;
        }
        assert_eq!(at, log.length());
    }

    #[test]
    fn all_logs_together_have_a_bound() {
        let room = room();
        let mut logs: Vec<Log> = Vec::new();
        for _ in 0..3 {
            let mut log = Log::new(&room);
            for _ in 0..1000 {
                log.append(Stream::Stdout, &[b'x'; 60 << 10]);
            }
            logs.push(log);
        }
        assert!(room.on_disk.get() <= ALL_ON_DISK && room.is_tight());
        assert!(logs[2].lost() > 0 && logs[0].lost() == 0);
    }
}
