//! The pool: one thread that makes networks ahead of need.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::netlink::{self, End};
use super::{Numbering, SLOTS};
use crate::sys;

/// How long a caller waits for a network before the host counts as full.
const PATIENCE: Duration = Duration::from_secs(10);

/// While the pool is at least half full it is only filled when nothing was
/// taken for so long: making a network takes a processor away from the sandbox
/// that has just been given one.
const QUIET: Duration = Duration::from_millis(250);

/// Link indexes are the slot plus this, plus 65,536 per instance: far from
/// what the kernel hands out.
const FIRST_INDEX: u32 = 1_000_000;

/// How long making the network of a sandbox takes, and how long after its end the slot
/// can be used again, `count` times on an instance that nobody else uses. For
/// measurements.
///
/// # Errors
/// [`RouterError`] where the router cannot be made; whatever the kernel refuses.
pub fn measure(instance: u8, count: usize) -> io::Result<Vec<(Duration, Duration)>> {
    let numbering = Numbering::new(instance);
    let other = |error: super::RouterError| io::Error::other(error);
    // Its thread goes to another namespace and does not come back.
    let measured = std::thread::spawn(move || {
        let (home, _gate, _listener) = super::Router::set_up(numbering).map_err(other)?;
        let socket = sys::netlink_socket()?;
        // Waits for a slot that is on its way out. The network, and when it was begun.
        let make = || {
            let since = Instant::now();
            loop {
                let began = Instant::now();
                match make_one(numbering, 0, &home, &socket) {
                    Ok(made) => return Ok((made, began)),
                    Err(_) if since.elapsed() < PATIENCE => std::thread::sleep(Duration::from_micros(200)),
                    Err(error) => return Err(error),
                }
            }
        };
        let mut times = Vec::new();
        for _ in 0..count {
            let (made, began) = make()?;
            let took = began.elapsed();
            drop(made);
            let gone = Instant::now();
            let (_, free) = make()?;
            times.push((took, free.duration_since(gone)));
        }
        Ok(times)
    });
    let times = measured.join().unwrap_or_else(|_| Err(io::Error::other("the measurement panicked")));
    super::Router::remove(numbering)?;
    times
}

/// A network that no sandbox lives in yet.
#[derive(Debug)]
pub(crate) struct PreparedNet {
    pub(crate) slot: u32,
    pub(crate) netns: OwnedFd,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<PreparedNet>,
    /// Oldest first, so that the kernel has time to remove a slot's old link.
    free: VecDeque<u32>,
    wanted: usize,
    last_taken: Option<Instant>,
    closed: bool,
}

impl State {
    /// How long to wait before the next network is made; `None`: until
    /// something changes.
    fn pause(&self, now: Instant) -> Option<Duration> {
        if self.ready.len() >= self.wanted || self.free.is_empty() {
            return None;
        }
        if self.ready.len() * 2 < self.wanted {
            return Some(Duration::ZERO);
        }
        let quiet_for = self.last_taken.map_or(QUIET, |taken| now.duration_since(taken));
        Some(QUIET.saturating_sub(quiet_for))
    }
}

/// Networks of one instance.
#[derive(Debug)]
pub(crate) struct Network {
    numbering: Numbering,
    state: Mutex<State>,
    changed: Condvar,
    available: tokio::sync::Notify,
}

impl Network {
    /// Starts the pool, which keeps `wanted` networks ready and leaves the
    /// slots in `taken` alone.
    pub(crate) fn start(
        numbering: Numbering,
        router: OwnedFd,
        wanted: usize,
        taken: &BTreeSet<u32>,
    ) -> io::Result<Arc<Self>> {
        let free = (0..SLOTS).filter(|slot| !taken.contains(slot)).collect();
        let state = State { ready: VecDeque::new(), free, wanted, last_taken: None, closed: false };
        let network = Arc::new(Self {
            numbering,
            state: Mutex::new(state),
            changed: Condvar::new(),
            available: tokio::sync::Notify::new(),
        });
        let maker = network.clone();
        std::thread::Builder::new().name("dormouse-net".to_owned()).spawn(move || maker.make(&router))?;
        Ok(network)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a few lists: a panic elsewhere cannot tear it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A network of its own for a run. `None`: all slots are in use.
    pub(crate) async fn take(&self) -> Option<PreparedNet> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let available = self.available.notified();
            {
                let mut state = self.lock();
                if let Some(net) = state.ready.pop_front() {
                    state.last_taken = Some(Instant::now());
                    self.changed.notify_all();
                    return Some(net);
                }
            }
            self.changed.notify_all();
            tokio::time::timeout_at(deadline, available).await.ok()?;
        }
    }

    /// The slot's sandbox is gone.
    pub(crate) fn release(&self, slot: u32) {
        self.lock().free.push_back(slot);
        self.changed.notify_all();
    }

    /// Ends the pool's thread; unused networks vanish with it.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.ready.clear();
        self.changed.notify_all();
    }

    /// `home`: the router, where this thread's end of each link is.
    fn make(&self, home: &OwnedFd) {
        let socket = match sys::setns(home).and_then(|()| sys::netlink_socket()) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "network pool cannot start");
                return;
            }
        };
        loop {
            let slot = {
                let mut state = self.lock();
                loop {
                    if state.closed {
                        return;
                    }
                    state = match state.pause(Instant::now()) {
                        Some(Duration::ZERO) => match state.free.pop_front() {
                            Some(slot) => break slot,
                            None => state,
                        },
                        Some(pause) => {
                            let waited = self.changed.wait_timeout(state, pause);
                            waited.unwrap_or_else(PoisonError::into_inner).0
                        }
                        None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                    };
                }
            };
            match make_one(self.numbering, slot, home, &socket) {
                Ok(netns) => {
                    self.lock().ready.push_back(PreparedNet { slot, netns });
                    self.available.notify_waiters();
                }
                Err(error) => {
                    // Most often the slot's old link is still on its way out.
                    tracing::debug!(slot, %error, "make network");
                    self.lock().free.push_back(slot);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

fn make_one(numbering: Numbering, slot: u32, home: &OwnedFd, socket: &OwnedFd) -> io::Result<OwnedFd> {
    let netns = sys::new_netns(home)?;
    let index = FIRST_INDEX + slot + (u32::from(numbering.instance) << 16);
    let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let end = |address: Ipv4Addr| {
        // One that nobody sells, and that no other end has (`IEEE 802`, locally administered).
        let [a, b, c, d] = address.octets();
        End { address, hardware: [2, 0, a, b, c, d] }
    };
    let (gateway, address) = (end(numbering.gateway(slot)), end(numbering.address(slot)));
    netlink::add_link(socket, &numbering.link(slot), index, &netns, [gateway, address])?;
    sys::setns(&netns)?;
    let inside = settle(address, gateway);
    sys::setns(home)?;
    inside?;
    Ok(netns)
}

/// What a sandbox's namespace is set to. It belongs to the host, so the sandbox's root has
/// no say in it.
const SETTINGS: [(&str, &str); 4] = [
    // All ports are free, and everybody may send an echo request (`ip-sysctl`).
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
    // The gate passes none. With it `eth0` had an address of its own in a network of
    // 2^64 others, each of which can be a neighbour of the kernel's small table.
    ("ipv6/conf/eth0/disable_ipv6", "1"),
    // Connections that were closed a moment ago: memory of the host that no limit of the
    // sandbox counts. Beyond it they are forgotten at once (`ip-sysctl`).
    ("ipv4/tcp_max_tw_buckets", "16384"),
];

/// Sets up the namespace that this thread is in.
fn settle(address: End, gateway: End) -> io::Result<()> {
    for (key, value) in SETTINGS {
        match std::fs::write(format!("/proc/sys/net/{key}"), value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    netlink::set_up_inside(&sys::netlink_socket()?, [address, gateway])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_at_once_when_low_and_in_quiet_otherwise() {
        let net = || PreparedNet { slot: 0, netns: std::fs::File::open("/dev/null").unwrap().into() };
        let state = |ready: usize, last_taken: Option<Instant>| State {
            ready: (0..ready).map(|_| net()).collect(),
            free: VecDeque::from([1]),
            wanted: 4,
            last_taken,
            closed: false,
        };
        let now = Instant::now();
        assert_eq!(state(0, Some(now)).pause(now), Some(Duration::ZERO));
        assert_eq!(state(1, Some(now)).pause(now), Some(Duration::ZERO));
        assert_eq!(state(2, Some(now)).pause(now), Some(QUIET));
        assert_eq!(state(3, Some(now)).pause(now + QUIET), Some(Duration::ZERO));
        assert_eq!(state(3, None).pause(now), Some(Duration::ZERO));
        assert_eq!(state(4, None).pause(now), None);
        assert_eq!(State { free: VecDeque::new(), ..state(0, None) }.pause(now), None);
    }
}
