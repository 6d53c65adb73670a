//! The router: a network namespace per instance between sandboxes and the world.
//!
//! All links of sandboxes end in it, and nothing leads out of it but the gate, a TUN
//! device of this process, and a transparent listener (`ip(7)`, `IP_TRANSPARENT`)
//! that answers for every address. So no packet of a sandbox ever reaches the host's
//! own rules, routes and tables of connections, and without this process a sandbox
//! reaches nothing.
//!
//! ```text
//! sandbox eth0 -- veth -- [router] -- gate (SYN, UDP, ICMP)  --> this process
//!                            |
//!                            +------- listener (TCP, established) --> this process
//! ```
//!
//! The namespace is bound to a name (`ip netns exec dormouse0 …` shows it), since
//! links of running sandboxes outlive a server; `evacuate` removes it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use dormouse_egress::Entrance;

use super::{FilterError, Numbering, filter, netlink};
use crate::sys;

/// Name of the TUN device.
pub(super) const GATE: &str = "gate";

/// Marks of packets in the router: for the listener, and for the gate.
pub(super) const TO_LISTENER: u32 = 1;
pub(super) const TO_GATE: u32 = 2;

/// The listener's tables of routes, by mark.
const LISTENER_TABLE: u8 = 101;
const GATE_TABLE: u8 = 102;

/// Packets that wait in the gate at most: a burst of connections of all sandboxes.
const GATE_QUEUE: u32 = 4096;

/// What a namespace of the router is set to. No packet is judged by where it came
/// from but by the rules of [`filter`], which know every link.
const SYSCTLS: [(&str, &str); 8] = [
    ("ipv4/ip_forward", "1"),
    // A SYN for a connection that was there a moment ago would be taken for a packet of
    // its old socket, and not be forwarded to the gate.
    ("ipv4/ip_early_demux", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Why there is no router.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The kernel refused a step.
    #[error("{operation} of the sandboxes' router")]
    Step {
        /// Which.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The packet filter could not be loaded.
    #[error("load the packet filter")]
    Filter(#[from] FilterError),
}

fn step(operation: &'static str) -> impl FnOnce(io::Error) -> RouterError {
    move |source| RouterError::Step { operation, source }
}

/// A router that is set up.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) namespace: OwnedFd,
    pub(crate) entrance: Entrance,
}

fn name(numbering: Numbering) -> PathBuf {
    // Where `ip-netns(8)` looks.
    PathBuf::from(format!("/run/netns/{}", numbering.table()))
}

impl Router {
    /// Sets the instance's router up, or takes over the one that another server left.
    /// Called in a runtime, since the gate is read by it.
    pub(crate) fn open(numbering: Numbering) -> Result<Self, RouterError> {
        // A thread of its own, which goes with its namespace.
        let made = std::thread::spawn(move || Self::set_up(numbering)).join();
        let (namespace, gate, listener) =
            made.unwrap_or_else(|_| Err(step("make the namespace")(io::Error::other("its thread ended"))))?;
        let gate = sys::watch(gate).map_err(step("read the gate"))?;
        Ok(Self { namespace, entrance: Entrance { gate, listener, address: numbering.listener() } })
    }

    /// Makes it, from a thread that stays in its namespace.
    pub(super) fn set_up(
        numbering: Numbering,
    ) -> Result<(OwnedFd, OwnedFd, std::net::TcpListener), RouterError> {
        let namespace = enter(numbering).map_err(step("make the namespace"))?;
        for (key, value) in SYSCTLS {
            let path = format!("/proc/sys/net/{key}");
            match fs::write(path, value) {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(step("write the settings"))?,
            }
        }
        let gate = sys::tun(GATE).map_err(step("make the gate"))?;
        let socket = sys::netlink_socket().map_err(step("talk to the kernel"))?;
        let index = sys::interface_index(GATE).map_err(step("find the gate"))?;
        netlink::set_up_router(
            &socket,
            index,
            GATE_QUEUE,
            [(TO_LISTENER, LISTENER_TABLE), (TO_GATE, GATE_TABLE)],
        )
        .map_err(step("set the routes"))?;
        let listener = sys::transparent_listener().map_err(step("make the listener"))?;
        let port = listener.local_addr().map_err(step("make the listener"))?.port();
        filter::load(numbering, port)?;
        Ok((namespace, gate, listener))
    }

    /// Removes the router: no sandbox is left. Harmless where there is none.
    pub(crate) fn remove(numbering: Numbering) -> io::Result<()> {
        let name = name(numbering);
        // Whoever still holds it open lets go in a moment. Two servers that died while they
        // made it may have left one mount on the other.
        loop {
            match sys::mount::unmount(&name, true) {
                Ok(()) => {}
                // It is no mount, or was never there.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => break,
                Err(error) => return Err(error),
            }
        }
        match fs::remove_file(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// Moves this thread into the router's namespace, which is made if there is none.
fn enter(numbering: Numbering) -> io::Result<OwnedFd> {
    let name = name(numbering);
    if let Some(dir) = name.parent() {
        fs::create_dir_all(dir)?;
        // Else the first `ip netns add` on this host mounts the directory over our mount in it,
        // which nobody can then take away.
        sys::mount::share(dir)?;
    }
    if let Ok(left) = File::open(&name).map(OwnedFd::from)
        && sys::setns(&left).is_ok()
    {
        return Ok(left);
    }
    // What a server left that died in the middle is a file without a namespace.
    Router::remove(numbering)?;
    File::create(&name)?;
    let namespace = sys::unshare_netns()?;
    sys::mount::bind(std::path::Path::new("/proc/thread-self/ns/net"), &name)?;
    Ok(namespace)
}
