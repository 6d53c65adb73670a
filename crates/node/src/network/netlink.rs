//! The few routing-netlink messages that a sandbox's network takes
//! (`rtnetlink(7)`), batched: one send and one round of answers for the router's
//! side, one for the inside.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

const REQUEST_ACK: u16 = 0x5;
const CREATE_EXCLUSIVE: u16 = 0x600;
const CREATE_REPLACE: u16 = 0x500;

/// Most requests of a batch.
const MOST: u32 = 16;

/// The next batch's numbers: no two batches share one, so an answer that nobody waited for
/// is not taken for another's.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A batch of requests.
struct Batch {
    bytes: Vec<u8>,
    start: usize,
    first: u32,
    count: u32,
}

impl Batch {
    fn new() -> Self {
        let first = NEXT.fetch_add(MOST, Ordering::Relaxed);
        Self { bytes: Vec::new(), start: 0, first, count: 0 }
    }

    fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        debug_assert!(self.count < MOST, "a batch has {MOST} numbers");
        self.start = self.bytes.len();
        let number = self.first.wrapping_add(self.count);
        self.count += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&number.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.end();
    }

    /// Fixes the length of the message that is being written.
    fn end(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(0);
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(at);
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(0);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.end();
    }

    /// Sends the batch and waits for every answer: the kernel goes on after a request that
    /// failed. The first failure counts.
    fn run(self, socket: &OwnedFd) -> io::Result<()> {
        sys::send(socket, &self.bytes)?;
        let mut answered = 0;
        let mut outcome = Ok(());
        let mut buffer = [0_u8; 16 << 10];
        while answered < self.count {
            let read = sys::receive(socket, &mut buffer)?;
            let mut rest = &buffer[..read];
            while let Some(header) = rest.first_chunk::<20>() {
                let word = |at: usize| {
                    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                };
                let length = word(0) as usize;
                let ours = word(8).wrapping_sub(self.first) < self.count;
                // NLMSG_ERROR, which also carries success.
                if ours && u16::from_ne_bytes([header[4], header[5]]) == 2 {
                    let code = i32::from_ne_bytes([header[16], header[17], header[18], header[19]]);
                    if code != 0 && outcome.is_ok() {
                        outcome = Err(io::Error::from_raw_os_error(-code));
                    }
                    answered += 1;
                }
                rest = rest.get(length.next_multiple_of(4).max(20)..).unwrap_or(&[]);
            }
        }
        outcome
    }
}

/// `struct ifinfomsg`.
fn link_header(index: i32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct ifaddrmsg` for one IPv4 address.
fn address_header(prefix: u8, index: i32) -> [u8; 8] {
    let mut header = [INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;
const UP: u32 = 1;

/// `AF_INET` as headers have it.
const INET: u8 = libc::AF_INET as u8;

/// One end of a link: its address, and the address of its hardware.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) address: Ipv4Addr,
    pub(super) hardware: [u8; 6],
}

/// The other end of the link `index` is where it is for good. The host has one table
/// of neighbours for all namespaces (`arp(7)`, `gc_thresh3`), of which entries that
/// never change take nothing.
fn add_neighbour(batch: &mut Batch, index: i32, other: End) {
    // struct ndmsg: state permanent (0x80).
    let mut header = [INET, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.begin(NEW_NEIGHBOUR, CREATE_REPLACE, &header);
    batch.attribute(1, &other.address.octets());
    batch.attribute(2, &other.hardware);
}

fn add_address(batch: &mut Batch, index: i32, address: Ipv4Addr, prefix: u8, flags: u16) {
    batch.begin(NEW_ADDRESS, flags, &address_header(prefix, index));
    batch.attribute(1, &address.octets());
    batch.attribute(2, &address.octets());
}

/// Router's side: a veth pair whose other end, `eth0`, lies in `inside`; the
/// address; up. `index` must be free in the router.
pub(super) fn add_link(
    socket: &OwnedFd,
    name: &str,
    index: i32,
    inside: &OwnedFd,
    [here, there]: [End; 2],
) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.begin(NEW_LINK, CREATE_EXCLUSIVE, &link_header(index, 0, 0));
    batch.attribute(1, &here.hardware);
    batch.attribute(3, &[name.as_bytes(), &[0]].concat());
    let info = batch.open(18);
    batch.attribute(1, b"veth\0");
    let data = batch.open(2);
    let peer = batch.open(1);
    batch.bytes.extend_from_slice(&link_header(INSIDE_INDEX, 0, 0));
    batch.attribute(1, &there.hardware);
    batch.attribute(3, b"eth0\0");
    batch.attribute(28, &inside.as_raw_fd().to_ne_bytes());
    batch.close(peer);
    batch.close(data);
    batch.close(info);
    add_address(&mut batch, index, here.address, 30, CREATE_EXCLUSIVE);
    batch.begin(NEW_LINK, 0, &link_header(index, UP, UP));
    add_neighbour(&mut batch, index, there);
    batch.run(socket)
}

/// Index of `eth0` inside.
const INSIDE_INDEX: i32 = 2;

/// Inside: loopback up, the address, up, the routes.
///
/// Whatever a program asks for, the only neighbour that it can keep is the gateway.
/// Without the last route the kernel takes every address for one on the link that is sent
/// to past the gateway (`SO_DONTROUTE` with `SO_BINDTODEVICE`, `socket(7)`), and each for
/// a neighbour of its own: of those the host has one small table for all namespaces, and
/// a full one cuts off everybody. With it such packets are the sandbox's own. Groups of
/// multicast are neighbours, too, of the kind that gives way to any other.
pub(super) fn set_up_inside(socket: &OwnedFd, [here, gateway]: [End; 2]) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.begin(NEW_LINK, 0, &link_header(1, UP, UP));
    add_address(&mut batch, INSIDE_INDEX, here.address, 30, CREATE_EXCLUSIVE);
    batch.begin(NEW_LINK, 0, &link_header(INSIDE_INDEX, UP, UP));
    add_neighbour(&mut batch, INSIDE_INDEX, gateway);
    // struct rtmsg: table main (254), protocol static (4), universe, unicast.
    batch.begin(NEW_ROUTE, CREATE_EXCLUSIVE, &[INET, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
    batch.attribute(5, &gateway.address.octets());
    // Everything, type local (2), scope host (254), in the table that comes after main (253):
    // `ip route` does not show it, whose lines with "default" scripts take for the gateway's.
    batch.begin(NEW_ROUTE, CREATE_EXCLUSIVE, &[INET, 0, 0, 0, 253, 4, 254, 2, 0, 0, 0, 0]);
    batch.attribute(4, &INSIDE_INDEX.to_ne_bytes());
    batch.attribute(7, &here.address.octets());
    batch.run(socket)
}

const NEW_RULE: u16 = 32;

/// The router: loopback and gate up, with room for `queue` packets; of each mark's
/// table, the first leads to ourselves, the second to the gate. What is there
/// already stays.
pub(super) fn set_up_router(
    socket: &OwnedFd,
    gate: i32,
    queue: u32,
    [(listener_mark, listener_table), (gate_mark, gate_table)]: [(u32, u8); 2],
) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.begin(NEW_LINK, 0, &link_header(1, UP, UP));
    batch.begin(NEW_LINK, 0, &link_header(gate, UP, UP));
    batch.attribute(13, &queue.to_ne_bytes());
    // struct rtmsg: protocol static (4); scope host (254) and type local (2), scope
    // link (253) and type unicast (1).
    batch.begin(NEW_ROUTE, CREATE_REPLACE, &[INET, 0, 0, 0, listener_table, 4, 254, 2, 0, 0, 0, 0]);
    batch.attribute(4, &1_i32.to_ne_bytes());
    batch.begin(NEW_ROUTE, CREATE_REPLACE, &[INET, 0, 0, 0, gate_table, 4, 253, 1, 0, 0, 0, 0]);
    batch.attribute(4, &gate.to_ne_bytes());
    // Without the gate, to the filter, which refuses at once: where there is no route
    // the kernel answers once a second.
    batch.begin(NEW_ROUTE, CREATE_REPLACE, &[INET, 0, 0, 0, gate_table, 4, 254, 2, 0, 0, 0, 0]);
    batch.attribute(4, &1_i32.to_ne_bytes());
    batch.attribute(6, &1000_u32.to_ne_bytes());
    batch.run(socket)?;
    for (mark, table) in [(listener_mark, listener_table), (gate_mark, gate_table)] {
        let mut batch = Batch::new();
        // struct fib_rule_hdr: action "to table" (1).
        batch.begin(NEW_RULE, CREATE_EXCLUSIVE, &[INET, 0, 0, 0, table, 0, 0, 1, 0, 0, 0, 0]);
        batch.attribute(6, &u32::from(table).to_ne_bytes());
        batch.attribute(10, &mark.to_ne_bytes());
        match batch.run(socket) {
            // From the server before this one.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers to what came after a request that failed are not the next batch's.
    #[test]
    fn a_failure_is_of_its_own_batch() {
        // A thread of its own, which goes with its namespaces.
        let tried = std::thread::spawn(|| {
            let host: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
            let router = sys::new_netns(&host).unwrap();
            sys::setns(&router).unwrap();
            let socket = sys::netlink_socket().unwrap();
            let inside: Vec<_> = (0..4).map(|_| sys::new_netns(&router).unwrap()).collect();
            let add = |name, index, at: usize, address: Ipv4Addr| {
                let end = |last| End { address, hardware: [2, 0, 0, 0, 0, last] };
                add_link(&socket, name, index, &inside[at], [end(1), end(2)])
            };
            add("one", 1000, 0, Ipv4Addr::new(10, 0, 0, 1)).unwrap();
            for _ in 0..2 {
                let again = add("one", 1000, 1, Ipv4Addr::new(10, 0, 0, 1)).unwrap_err();
                assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
            }
            add("two", 1001, 2, Ipv4Addr::new(10, 0, 0, 5)).unwrap();
            // Its address is there, and so it was up when it answered.
            let routes = std::fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap();
            assert!(routes.contains("10.0.0.5"), "{routes}");
            let again = add("two", 1001, 3, Ipv4Addr::new(10, 0, 0, 5)).unwrap_err();
            assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        });
        tried.join().unwrap();
    }
}
