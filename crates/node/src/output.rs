//! Logs of commands that somebody follows. However many do, the agent is asked once: it says
//! how much there is and hands over the file (`agent_protocol::record`), which everybody here
//! reads at their own pace. So a slow reader holds up nobody, and what is being read stays,
//! whatever the agent forgets meanwhile.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use dormouse_agent_protocol::record::{self, HEADER, Kind};
use dormouse_agent_protocol::{CommandStatus, Frame, MAX_DATA, Reply, Request};
use dormouse_provider::{ProviderError, Result};
use dormouse_types::CommandId;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::{Agent, AgentError, Dialogue};
use crate::calls::{cut_off, unexpected};

/// Bytes that are read of a log at once: any record fits.
const PART: u64 = 2 * MAX_DATA as u64;

/// What is known of a log.
#[derive(Debug, Clone, Default)]
struct Seen {
    file: Option<Arc<File>>,
    /// Reading it never waits for a disk.
    in_memory: bool,
    length: u64,
    /// `None`: nothing was said yet.
    status: Option<CommandStatus>,
    /// Why nothing more will be said.
    failed: Option<Arc<ProviderError>>,
}

impl Seen {
    fn exit(&self) -> Option<&CommandStatus> {
        self.status.as_ref().filter(|status| status.exit_code.is_some())
    }
}

/// One dialogue with the agent about one log, for as long as somebody follows.
#[derive(Debug)]
struct Hub {
    seen: watch::Receiver<Seen>,
    _asking: AbortOnDropHandle<()>,
}

/// The logs of one run.
#[derive(Debug, Default)]
pub(crate) struct Outputs(Mutex<HashMap<CommandId, Weak<Hub>>>);

impl Outputs {
    /// Follows the log of a command from its first byte.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] for a command that the agent does not know.
    pub(crate) async fn follow(&self, agent: &Agent, id: &CommandId) -> Result<Output> {
        let known = self.lock().get(id).and_then(Weak::upgrade);
        let hub = match known {
            Some(hub) => hub,
            None => {
                let request = Request::Follow { id: id.to_string(), output: true, log: true };
                let dialogue = agent.open(request).await?;
                // Somebody may have been faster; one dialogue too many ends by itself.
                self.add(id, dialogue)
            }
        };
        let mut output = Output::new(hub);
        output.begin().await?;
        Ok(output)
    }

    /// Follows the command that was just started by `dialogue`.
    pub(crate) fn take(&self, id: &CommandId, dialogue: Dialogue) -> Output {
        Output::new(self.add(id, dialogue))
    }

    fn add(&self, id: &CommandId, dialogue: Dialogue) -> Arc<Hub> {
        let (say, seen) = watch::channel(Seen::default());
        let asking = AbortOnDropHandle::new(tokio::spawn(ask(dialogue, say)));
        let hub = Arc::new(Hub { seen, _asking: asking });
        let mut hubs = self.lock();
        hubs.retain(|_, hub| hub.strong_count() > 0);
        hubs.insert(id.clone(), Arc::downgrade(&hub));
        hub
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<CommandId, Weak<Hub>>> {
        // A map of weak references: a panic elsewhere cannot tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes what the agent says, until the command has ended.
async fn ask(mut dialogue: Dialogue, say: watch::Sender<Seen>) {
    let mut old = OldLog::default();
    loop {
        let heard = match dialogue.expect().await {
            Ok(Frame::Reply(Reply::Log { length, status })) => {
                let file = dialogue.descriptor().map(|file| Arc::new(File::from(file)));
                Ok((file, length, Some(status)))
            }
            Ok(Frame::Reply(Reply::Started(status) | Reply::Exited(status))) => {
                Ok((None, old.length, Some(status)))
            }
            Ok(Frame::Stdout(data)) => old.append(Kind::Stdout, &data).map(|file| (file, old.length, None)),
            Ok(Frame::Stderr(data)) => old.append(Kind::Stderr, &data).map(|file| (file, old.length, None)),
            Ok(other) => Err(unexpected(&other)),
            Err(error @ AgentError::Refused(_)) => Err(error.into()),
            Err(error) => Err(cut_off(error)),
        };
        let mut over = false;
        say.send_modify(|seen| {
            match heard {
                Ok((file, length, status)) => {
                    if let Some(file) = file {
                        seen.in_memory = is_in_memory(&file);
                        seen.file = Some(file);
                    }
                    seen.length = length;
                    seen.status = status.or(seen.status.take());
                }
                Err(error) => seen.failed = Some(Arc::new(error)),
            }
            over = seen.failed.is_some() || seen.exit().is_some();
        });
        if over {
            return;
        }
    }
}

fn is_in_memory(file: &File) -> bool {
    // `statfs(2)`, TMPFS_MAGIC.
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == 0x0102_1994)
}

/// The log of a command whose agent sends its output: one of before. It is no longer than the
/// agent's own.
#[derive(Debug, Default)]
struct OldLog {
    file: Option<Arc<File>>,
    length: u64,
}

impl OldLog {
    /// Adds output; the file, where it is new.
    fn append(&mut self, kind: Kind, data: &[u8]) -> Result<Option<Arc<File>>> {
        let failed = |error: io::Error| ProviderError::internal("keep the output of a command", error);
        let (file, new) = match &self.file {
            Some(file) => (file.clone(), None),
            None => {
                let flags = rustix::fs::MemfdFlags::CLOEXEC;
                let made = rustix::fs::memfd_create("log", flags).map_err(|error| failed(error.into()))?;
                let made = Arc::new(File::from(made));
                self.file = Some(made.clone());
                (made.clone(), Some(made))
            }
        };
        let mut bytes = record::header(kind, u32::try_from(data.len()).unwrap_or(0)).to_vec();
        bytes.extend_from_slice(data);
        file.write_all_at(&bytes, self.length).map_err(failed)?;
        self.length += bytes.len() as u64;
        Ok(new)
    }
}

/// A piece of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Stdout(Bytes),
    Stderr(Bytes),
    /// As many bytes were lost here.
    Lost(u64),
    /// Nothing comes after.
    Exited(CommandStatus),
}

/// A log, read from its first byte.
#[derive(Debug)]
pub(crate) struct Output {
    _hub: Arc<Hub>,
    seen: watch::Receiver<Seen>,
    offset: u64,
    read: VecDeque<Piece>,
    /// Lost bytes that were told.
    lost: u64,
}

impl Output {
    fn new(hub: Arc<Hub>) -> Self {
        let seen = hub.seen.clone();
        Self { _hub: hub, seen, offset: 0, read: VecDeque::new(), lost: 0 }
    }

    /// Waits until something is known of the command.
    async fn begin(&mut self) -> Result<()> {
        let known =
            self.seen.wait_for(|seen| seen.status.is_some() || seen.failed.is_some() || seen.length > 0);
        let failed = known.await.map_err(|_| ProviderError::Stopped)?.failed.clone();
        failed.map_or(Ok(()), |error| Err(error.repeated()))
    }

    /// Waits until the command has ended.
    pub(crate) async fn exit(mut self) -> Result<CommandStatus> {
        let known = self.seen.wait_for(|seen| seen.exit().is_some() || seen.failed.is_some());
        let seen = known.await.map_err(|_| ProviderError::Stopped)?;
        match (seen.exit(), &seen.failed) {
            (Some(status), _) => Ok(status.clone()),
            (None, Some(error)) => Err(error.repeated()),
            (None, None) => Err(ProviderError::Stopped),
        }
    }

    /// The next piece. Not to be called after [`Piece::Exited`] or an error.
    pub(crate) async fn next(&mut self) -> Result<Piece> {
        loop {
            if let Some(piece) = self.read.pop_front() {
                if let Piece::Lost(bytes) = piece {
                    self.lost += bytes;
                }
                return Ok(piece);
            }
            let seen = self.seen.borrow_and_update().clone();
            if self.offset < seen.length {
                self.read_more(&seen).await?;
                continue;
            }
            if let Some(status) = seen.exit() {
                // What was lost at the very end has no record after it.
                let untold = status.output_lost.saturating_sub(self.lost);
                if untold > 0 {
                    self.lost = status.output_lost;
                    return Ok(Piece::Lost(untold));
                }
                return Ok(Piece::Exited(status.clone()));
            }
            if let Some(error) = seen.failed {
                return Err(error.repeated());
            }
            if self.seen.changed().await.is_err() {
                return Err(ProviderError::Stopped);
            }
        }
    }

    async fn read_more(&mut self, seen: &Seen) -> Result<()> {
        let failed = |error: io::Error| ProviderError::internal("read the output of a command", error);
        let Some(file) = seen.file.clone() else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let (offset, length) = (self.offset, (seen.length - self.offset).min(PART));
        let read = move || {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        };
        let bytes = if seen.in_memory {
            read()
        } else {
            let reading = tokio::task::spawn_blocking(read).await;
            reading.map_err(io::Error::other).and_then(|read| read)
        };
        let bytes = Bytes::from(bytes.map_err(failed)?);
        let (pieces, used) = parse(&bytes).map_err(failed)?;
        self.read = pieces;
        self.offset += used as u64;
        Ok(())
    }
}

/// The whole records at the beginning of `bytes`, and how many bytes they are.
fn parse(bytes: &Bytes) -> io::Result<(VecDeque<Piece>, usize)> {
    let (mut pieces, mut at) = (VecDeque::new(), 0);
    while let Some(head) = bytes[at..].first_chunk::<HEADER>() {
        let (kind, length) = record::read_header(*head).ok_or(io::ErrorKind::InvalidData)?;
        let from = at + HEADER;
        let to = from + length as usize;
        if to > bytes.len() {
            break;
        }
        let data = bytes.slice(from..to);
        pieces.push_back(match kind {
            Kind::Stdout => Piece::Stdout(data),
            Kind::Stderr => Piece::Stderr(data),
            Kind::Lost => {
                let count = data.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                Piece::Lost(u64::from_le_bytes(*count))
            }
        });
        at = to;
    }
    // A record is never as long as a part.
    if at == 0 { Err(io::ErrorKind::InvalidData.into()) } else { Ok((pieces, at)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_pieces_and_half_a_one_waits() {
        let mut bytes = record::header(Kind::Stdout, 2).to_vec();
        bytes.extend(b"ab");
        bytes.extend(record::header(Kind::Lost, 8));
        bytes.extend(7_u64.to_le_bytes());
        let whole = bytes.len();
        bytes.extend(record::header(Kind::Stderr, 3));
        bytes.extend(b"x");
        let (pieces, used) = parse(&Bytes::from(bytes)).unwrap();
        assert_eq!(used, whole);
        assert_eq!(pieces, [Piece::Stdout(Bytes::from_static(b"ab")), Piece::Lost(7)]);
        assert!(parse(&Bytes::from_static(b"\x09aaaa")).is_err());
    }

    #[test]
    fn the_log_of_an_old_agent_is_written_in_the_same_form() {
        let mut log = OldLog::default();
        let file = log.append(Kind::Stderr, b"no").unwrap().unwrap();
        assert!(log.append(Kind::Stdout, b"yes").unwrap().is_none());
        let mut bytes = vec![0; usize::try_from(log.length).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (pieces, _) = parse(&Bytes::from(bytes)).unwrap();
        assert_eq!(
            pieces,
            [Piece::Stderr(Bytes::from_static(b"no")), Piece::Stdout(Bytes::from_static(b"yes"))]
        );
        assert!(is_in_memory(&file));
    }
}
