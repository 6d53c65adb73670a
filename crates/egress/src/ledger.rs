//! What each run did on the network: sums, and the last of what was allowed and
//! denied, with reasons and without a value of a header, a path or a query.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_provider::HostName;

use crate::reason::Reason;
use crate::wall_clock;

/// Lines that are kept of each run.
const KEPT: usize = 200;

/// Denials of one run that are logged a second; the rest is counted.
const LOGGED: u32 = 10;

/// How something reached the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A question to our resolver.
    Dns,
    /// Byte for byte to the address that was dialled.
    Direct,
    /// Byte for byte to the host that was named.
    Spliced,
    /// Request by request.
    Http,
    /// Not at all: another protocol.
    Packet,
}

impl Way {
    /// The word for logs and the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Direct => "direct",
            Self::Spliced => "spliced",
            Self::Http => "http",
            Self::Packet => "packet",
        }
    }
}

/// One line of the access log.
#[derive(Debug, Clone)]
pub struct Access {
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    /// How.
    pub way: Way,
    /// Host that was named.
    pub host: Option<HostName>,
    /// Address that the sandbox dialled.
    pub address: Option<SocketAddrV4>,
    /// Method of a request.
    pub method: Option<String>,
    /// Status of the response.
    pub status: Option<u16>,
    /// Why it was denied, or failed; absent: it was allowed.
    pub denied: Option<Reason>,
    /// Bytes that left the sandbox.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
}

impl Access {
    /// A line that begins now.
    pub(crate) fn now(way: Way) -> Self {
        let at = u64::try_from(wall_clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        Self {
            at,
            way,
            host: None,
            address: None,
            method: None,
            status: None,
            denied: None,
            sent: 0,
            received: 0,
        }
    }

    pub(crate) fn host(mut self, host: Option<&HostName>) -> Self {
        self.host = host.cloned();
        self
    }

    pub(crate) fn address(mut self, address: SocketAddrV4) -> Self {
        self.address = Some(address);
        self
    }

    pub(crate) fn denied(mut self, reason: Reason) -> Self {
        self.denied = Some(reason);
        self
    }
}

/// Sums of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Bytes that left the sandbox, in connections that were allowed.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
    /// Connections and requests that were allowed.
    pub allowed: u64,
    /// Those that were denied.
    pub denied: u64,
}

/// Sums of all runs since this server started.
#[derive(Debug, Default)]
pub struct Totals {
    sent: AtomicU64,
    received: AtomicU64,
    allowed: AtomicU64,
    denied: [AtomicU64; Reason::ALL.len()],
}

impl Totals {
    /// What went, came and was allowed.
    #[must_use]
    pub fn sums(&self) -> Sums {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Sums {
            sent: read(&self.sent),
            received: read(&self.received),
            allowed: read(&self.allowed),
            denied: self.denied.iter().map(read).sum(),
        }
    }

    /// How often each rule denied something.
    pub fn denied(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.denied.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// The ledger of a run.
#[derive(Debug)]
pub(crate) struct Ledger {
    sandbox: String,
    totals: Arc<Totals>,
    sent: AtomicU64,
    received: AtomicU64,
    allowed: AtomicU64,
    denied: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug)]
struct Recent {
    lines: VecDeque<Access>,
    second: Instant,
    logged: u32,
}

impl Ledger {
    /// `before`: what a server before this one counted as sent and received.
    pub(crate) fn new(sandbox: String, before: (u64, u64), totals: Arc<Totals>) -> Self {
        let recent = Recent { lines: VecDeque::new(), second: Instant::now(), logged: 0 };
        Self {
            sandbox,
            totals,
            sent: AtomicU64::new(before.0),
            received: AtomicU64::new(before.1),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            recent: Mutex::new(recent),
        }
    }

    pub(crate) fn sums(&self) -> Sums {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Sums {
            sent: read(&self.sent),
            received: read(&self.received),
            allowed: read(&self.allowed),
            denied: read(&self.denied),
        }
    }

    pub(crate) fn recent(&self) -> Vec<Access> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).lines.iter().cloned().collect()
    }

    /// Writes a line. The bytes in it were counted as they went.
    pub(crate) fn note(&self, line: Access) {
        let count = if line.denied.is_some() { &self.denied } else { &self.allowed };
        count.fetch_add(1, Ordering::Relaxed);
        let of_all = line.denied.map_or(&self.totals.allowed, |reason| &self.totals.denied[reason as usize]);
        of_all.fetch_add(1, Ordering::Relaxed);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.second.elapsed() >= Duration::from_secs(1) {
            (recent.second, recent.logged) = (Instant::now(), 0);
        }
        recent.logged += u32::from(line.denied.is_some());
        match line.denied {
            // What everybody asks all the time.
            Some(reason) if recent.logged <= LOGGED => tracing::info!(
                target: "access",
                sandbox = self.sandbox, way = line.way.word(), rule = %reason,
                host = line.host.as_ref().map(tracing::field::display),
                address = line.address.as_ref().map(tracing::field::display),
                method = line.method, "denied"
            ),
            Some(_) => {}
            None => tracing::debug!(
                target: "access",
                sandbox = self.sandbox, way = line.way.word(),
                host = line.host.as_ref().map(tracing::field::display),
                address = line.address.as_ref().map(tracing::field::display),
                method = line.method, status = line.status, sent = line.sent, received = line.received,
                "allowed"
            ),
        }
        if recent.lines.len() == KEPT {
            recent.lines.pop_front();
        }
        recent.lines.push_back(line);
    }
}

/// An access that is going on: its line is written when it ends, however that is.
#[derive(Debug)]
pub(crate) struct Underway {
    ledger: Arc<Ledger>,
    line: Mutex<Option<Access>>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Underway {
    pub(crate) fn new(ledger: Arc<Ledger>, line: Access) -> Self {
        let (sent, received) = (AtomicU64::new(line.sent), AtomicU64::new(line.received));
        Self { ledger, line: Mutex::new(Some(line)), sent, received }
    }

    /// Bytes left the sandbox.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.ledger.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.ledger.totals.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes came.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.ledger.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.ledger.totals.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Says more about it.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut Access)) {
        if let Some(line) = self.line.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(line);
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(mut line) = self.line.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            line.sent = *self.sent.get_mut();
            line.received = *self.received.get_mut();
            self.ledger.note(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_stay_and_all_are_counted() {
        let ledger = Arc::new(Ledger::new("sbx_1".to_owned(), (0, 0), Arc::default()));
        for _ in 0..KEPT {
            ledger.note(Access::now(Way::Direct));
        }
        ledger.note(Access::now(Way::Packet).denied(Reason::Protocol));
        let underway = Underway::new(ledger.clone(), Access::now(Way::Spliced));
        underway.sent(3);
        underway.received(4);
        underway.amend(|line| line.denied = Some(Reason::NotAllowed));
        assert_eq!(ledger.sums(), Sums { sent: 3, received: 4, allowed: 200, denied: 1 });
        drop(underway);
        assert_eq!(ledger.sums().denied, 2);
        let mut recent = ledger.recent();
        let last = recent.pop().unwrap();
        assert_eq!((last.sent, last.received, last.denied), (3, 4, Some(Reason::NotAllowed)));
        assert_eq!(recent.len(), KEPT - 1);
        assert_eq!(recent.last().unwrap().denied, Some(Reason::Protocol));
    }
}
