//! A sandbox's network: a namespace with one routed veth pair, made ahead of
//! need and kept in a small pool.
//!
//! A **slot** is a number below [`SLOTS`] that stands for everything numbered
//! in a sandbox: its link name, its two addresses, its id range. So the packet
//! filter knows every slot from the start, and nothing about it changes when a
//! sandbox comes or goes.
//!
//! The other end of each pair is in the instance's router ([`router`]), where the
//! packet filter is. Nobody but the engine's descriptors and the sandbox's processes holds a
//! namespace, so the kernel removes it, with its links, when the last of them
//! is gone, also after a crash at any line.

mod filter;
mod netlink;
mod pool;
mod router;

use std::net::Ipv4Addr;

pub use filter::FilterError;
pub use pool::measure as measure_networks;
pub(crate) use pool::{Network, PreparedNet};
pub(crate) use router::Router;
pub use router::RouterError;

/// Sandboxes that one instance can run at once.
pub const SLOTS: u32 = 4096;

/// Instances that can share a host.
pub const INSTANCES: u8 = 16;

/// Addresses, names and ids of one instance.
#[derive(Debug, Clone, Copy)]
pub struct Numbering {
    instance: u8,
}

impl Numbering {
    /// The numbering of an instance below [`INSTANCES`].
    #[must_use]
    pub fn new(instance: u8) -> Self {
        Self { instance: instance % INSTANCES }
    }

    fn network(self) -> u32 {
        u32::from(Ipv4Addr::new(10, 200 + self.instance, 0, 0))
    }

    /// Router's end of a slot's link.
    #[must_use]
    pub fn gateway(self, slot: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network() + 4 * slot + 1)
    }

    /// Sandbox's end of a slot's link.
    #[must_use]
    pub fn address(self, slot: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network() + 4 * slot + 2)
    }

    /// The name server of sandboxes, and in whose name packets are refused. No host
    /// has this address.
    #[must_use]
    pub fn listener(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network() + 0xfffe)
    }

    /// Start of the names of the links in the router.
    pub(crate) fn link_prefix(self) -> String {
        format!("dm{}x", self.instance)
    }

    /// A slot's link in the router.
    pub(crate) fn link(self, slot: u32) -> String {
        format!("{}{slot}", self.link_prefix())
    }

    /// Name of the router and of its table in the packet filter.
    pub(crate) fn table(self) -> String {
        format!("dormouse{}", self.instance)
    }

    /// First host id of a slot's range: 65,536 ids each, above the ranges that
    /// distributions hand out to people (`subuid(5)`).
    #[must_use]
    pub fn uid_base(self, slot: u32) -> u32 {
        const FIRST: u32 = 16;
        const PER_INSTANCE: u32 = 2048;
        // Ranges of different instances overlap above 2,048 live sandboxes;
        // ranges of one instance never do.
        let index = (FIRST + u32::from(self.instance) * PER_INSTANCE + slot) % 65_000;
        index.max(1) * 65_536
    }
}

#[cfg(test)]
mod tests {
    use super::{Numbering, SLOTS};
    use std::collections::HashSet;

    #[test]
    fn slots_of_an_instance_share_nothing() {
        let numbering = Numbering::new(3);
        let mut seen = HashSet::new();
        for slot in 0..SLOTS {
            assert!(seen.insert(numbering.gateway(slot)) && seen.insert(numbering.address(slot)));
            assert!(numbering.uid_base(slot) >= 65_536);
            assert!(numbering.link(slot).len() < 16);
        }
        let ids: HashSet<u32> = (0..SLOTS).map(|slot| numbering.uid_base(slot)).collect();
        assert_eq!(ids.len(), SLOTS as usize);
        assert!(!seen.contains(&numbering.listener()));
    }
}
