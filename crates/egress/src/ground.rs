//! Which addresses may be dialled for a sandbox at all, whatever its policy says:
//! public ones, and private ones that the operator listed. Every address passes
//! here right before it is dialled, so a name that resolves to a private one leads
//! nowhere.

use std::net::{IpAddr, Ipv4Addr};

use dormouse_types::Cidr;

use crate::reason::Reason;

/// Metadata services of clouds that have an address of their own: whoever reaches
/// them is the host.
const METADATA: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    // Amazon, for tasks of ECS.
    Ipv4Addr::new(169, 254, 170, 2),
    // Alibaba.
    Ipv4Addr::new(100, 100, 100, 200),
    // Azure, a public address.
    Ipv4Addr::new(168, 63, 129, 16),
    // Oracle.
    Ipv4Addr::new(192, 0, 0, 192),
];

/// What the operator decides beyond the built-in list.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// Private, link-local and documentation networks that sandboxes may reach.
    pub allow_private: Vec<Cidr>,
    /// Networks that they may not reach, public or not.
    pub deny: Vec<Cidr>,
}

impl Ground {
    /// Whether `address` may be dialled.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, address: Ipv4Addr) -> Result<(), Reason> {
        let listed = |networks: &[Cidr]| networks.iter().any(|network| network.contains(IpAddr::V4(address)));
        if METADATA.contains(&address) {
            return Err(Reason::Metadata);
        }
        if kind(address) == Kind::Nowhere {
            return Err(Reason::NoUnicast);
        }
        if address.is_loopback() || is_own(address) {
            return Err(Reason::Host);
        }
        match kind(address) {
            Kind::Private if !listed(&self.allow_private) => return Err(Reason::Private),
            Kind::Private | Kind::Public | Kind::Nowhere => {}
        }
        if listed(&self.deny) { Err(Reason::Operator) } else { Ok(()) }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Public,
    /// Somebody's own network.
    Private,
    /// Nobody can be there.
    Nowhere,
}

/// By the IANA special-purpose registry (RFC 6890 and successors).
fn kind(address: Ipv4Addr) -> Kind {
    let [a, b, c, _] = address.octets();
    if a == 0 || address.is_multicast() || a >= 240 {
        return Kind::Nowhere;
    }
    let private = address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19));
    if private { Kind::Private } else { Kind::Public }
}

/// Whether the address is one of this host's: only those can be bound. Where that cannot
/// be tried, it may be.
fn is_own(address: Ipv4Addr) -> bool {
    match std::net::UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != std::io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ground: &Ground, address: &str) -> Result<(), Reason> {
        ground.check(address.parse().unwrap())
    }

    #[test]
    fn only_public_addresses_are_reached() {
        let ground = Ground::default();
        for (address, reason) in [
            ("0.0.0.0", Reason::NoUnicast),
            ("10.0.0.1", Reason::Private),
            ("100.64.0.1", Reason::Private),
            ("100.100.100.200", Reason::Metadata),
            ("127.0.0.1", Reason::Host),
            ("127.9.9.9", Reason::Host),
            ("168.63.129.16", Reason::Metadata),
            ("169.254.169.254", Reason::Metadata),
            ("169.254.170.2", Reason::Metadata),
            ("169.254.1.1", Reason::Private),
            ("172.16.0.1", Reason::Private),
            ("172.31.255.255", Reason::Private),
            ("192.0.0.1", Reason::Private),
            ("192.0.2.200", Reason::Private),
            ("192.88.99.1", Reason::Private),
            ("192.168.1.1", Reason::Private),
            ("198.18.0.1", Reason::Private),
            ("198.51.100.1", Reason::Private),
            ("203.0.113.1", Reason::Private),
            ("224.0.0.1", Reason::NoUnicast),
            ("240.0.0.1", Reason::NoUnicast),
            ("255.255.255.255", Reason::NoUnicast),
        ] {
            assert_eq!(check(&ground, address), Err(reason), "{address}");
        }
        for address in ["1.1.1.1", "140.82.112.3", "100.128.0.1", "172.32.0.1", "198.20.0.1"] {
            assert_eq!(check(&ground, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn the_operator_opens_private_networks_and_closes_others() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let everything = Ground {
            allow_private: networks(&["0.0.0.0/0"]),
            deny: networks(&["1.1.1.0/24", "10.9.0.0/16"]),
        };
        assert_eq!(check(&everything, "10.0.0.1"), Ok(()));
        assert_eq!(check(&everything, "203.0.113.1"), Ok(()));
        assert_eq!(check(&everything, "10.9.0.1"), Err(Reason::Operator));
        assert_eq!(check(&everything, "1.1.1.1"), Err(Reason::Operator));
        // What is never.
        assert_eq!(check(&everything, "127.0.0.1"), Err(Reason::Host));
        assert_eq!(check(&everything, "169.254.169.254"), Err(Reason::Metadata));
        assert_eq!(check(&everything, "224.0.0.1"), Err(Reason::NoUnicast));
    }
}
