//! The packets that the gate reads and writes: IPv4 (RFC 791) with TCP (RFC 9293),
//! UDP (RFC 768) and ICMP (RFC 792) inside. Pure; whatever is in a packet, reading
//! it ends in one of the kinds of [`Seen`].

use std::net::{Ipv4Addr, SocketAddrV4};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Header without options, in bytes.
const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    /// The sandbox's end.
    pub(crate) source: SocketAddrV4,
    /// The other.
    pub(crate) target: SocketAddrV4,
}

/// What came out of a sandbox.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    /// The first packet of a TCP connection.
    Syn(Flow),
    /// A datagram.
    Datagram(Flow, &'a [u8]),
    /// Something else that has a sender.
    Other {
        source: Ipv4Addr,
        target: Ipv4Addr,
        /// Number of the protocol (IANA).
        protocol: u8,
    },
    /// Nothing to answer: no IPv4, a fragment, an ICMP message that is no question.
    Nonsense,
}

/// Reads a packet.
pub(crate) fn read(packet: &[u8]) -> Seen<'_> {
    parse(packet).unwrap_or(Seen::Nonsense)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?))
}

fn parse(packet: &[u8]) -> Option<Seen<'_>> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    let length = usize::from(word(packet, 2)?);
    if first >> 4 != 4 || header < IP_HEADER || length < header {
        return None;
    }
    let (source, target) = (address(packet, 12)?, address(packet, 16)?);
    // More fragments, or an offset.
    if word(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let payload = packet.get(header..length)?;
    let flow = || {
        Some(Flow {
            source: SocketAddrV4::new(source, word(payload, 0)?),
            target: SocketAddrV4::new(target, word(payload, 2)?),
        })
    };
    match packet[9] {
        TCP => {
            payload.get(..TCP_HEADER)?;
            // SYN without ACK and RST.
            (payload[13] & 0x16 == 0x02).then(|| flow().map(Seen::Syn))?
        }
        UDP => {
            let length = usize::from(word(payload, 4)?);
            Some(Seen::Datagram(flow()?, payload.get(UDP_HEADER..length)?))
        }
        // Only a question is answered: an error for an error would never end
        // (RFC 1122, section 3.2.2).
        ICMP if payload.first() != Some(&8) => None,
        protocol => Some(Seen::Other { source, target, protocol }),
    }
}

/// The sum over 16-bit words that all three protocols use (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        // Only the last part may be of odd length.
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Below 2^16 by the loop.
    !(sum as u16)
}

fn ip(protocol: u8, source: Ipv4Addr, target: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(IP_HEADER + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&target.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

fn with_pseudo_header(
    protocol: u8,
    source: Ipv4Addr,
    target: Ipv4Addr,
    mut segment: Vec<u8>,
    at: usize,
) -> Vec<u8> {
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX).to_be_bytes();
    let sum = checksum(&[&source.octets(), &target.octets(), &[0, protocol, length[0], length[1]], &segment]);
    // No sum at all is what zero stands for in UDP.
    let sum = if sum == 0 { 0xffff } else { sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    ip(protocol, source, target, &segment)
}

/// The answer to a SYN that says that nobody listens: RST, so that `connect(2)`
/// fails with `ECONNREFUSED`. `None`: it is no SYN.
pub(crate) fn reset(syn: &[u8]) -> Option<Vec<u8>> {
    let Seen::Syn(flow) = read(syn) else { return None };
    let header = usize::from(syn[0] & 0xf) * 4;
    let sequence = u32::from_be_bytes(*syn.get(header + 4..)?.first_chunk::<4>()?);
    // A SYN counts as one byte; what it carries is not taken.
    let acknowledged = sequence.wrapping_add(1);
    let mut segment = Vec::with_capacity(TCP_HEADER);
    segment.extend_from_slice(&flow.target.port().to_be_bytes());
    segment.extend_from_slice(&flow.source.port().to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    segment.extend_from_slice(&acknowledged.to_be_bytes());
    // Five words of header; RST and ACK.
    segment.extend_from_slice(&[0x50, 0x14, 0, 0, 0, 0, 0, 0]);
    Some(with_pseudo_header(TCP, *flow.target.ip(), *flow.source.ip(), segment, 16))
}

/// Codes of "destination unreachable" (RFC 792, RFC 1812).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unreachable {
    /// `EHOSTUNREACH`.
    Host = 1,
    /// `EHOSTUNREACH` too; `ping` and `traceroute` say that it is filtered.
    Prohibited = 13,
}

/// Tells the sender of `packet`, in the name of `from`, that it does not arrive.
pub(crate) fn unreachable(packet: &[u8], from: Ipv4Addr, code: Unreachable) -> Option<Vec<u8>> {
    let sender = address(packet, 12)?;
    let header = usize::from(*packet.first()? & 0xf) * 4;
    let quoted = packet.get(..(header + 8).min(packet.len()))?;
    let mut message = vec![3, code as u8, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quoted);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(ip(ICMP, from, sender, &message))
}

/// A datagram that answers one.
pub(crate) fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX);
    let mut segment = Vec::with_capacity(usize::from(length));
    segment.extend_from_slice(&from.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&length.to_be_bytes());
    segment.extend_from_slice(&[0, 0]);
    segment.extend_from_slice(payload);
    with_pseudo_header(UDP, *from.ip(), *to.ip(), segment, 6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn syn(source: &str, target: &str, flags: u8) -> Vec<u8> {
        let (source, target) = (at(source), at(target));
        let mut segment = Vec::new();
        segment.extend_from_slice(&source.port().to_be_bytes());
        segment.extend_from_slice(&target.port().to_be_bytes());
        segment.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        with_pseudo_header(TCP, *source.ip(), *target.ip(), segment, 16)
    }

    #[test]
    fn a_syn_is_answered_with_a_reset() {
        let packet = syn("10.0.0.2:40000", "1.2.3.4:443", 0x02);
        let flow = Flow { source: at("10.0.0.2:40000"), target: at("1.2.3.4:443") };
        assert_eq!(read(&packet), Seen::Syn(flow));
        // ECN asks in a SYN too (RFC 3168).
        assert_eq!(read(&syn("10.0.0.2:40000", "1.2.3.4:443", 0xc2)), Seen::Syn(flow));
        let reset = reset(&packet).unwrap();
        assert_eq!(&reset[12..20], [1, 2, 3, 4, 10, 0, 0, 2]);
        assert_eq!(&reset[20..24], [1, 187, 0x9c, 0x40]);
        // 0xffffffff and one byte.
        assert_eq!(&reset[28..32], [0, 0, 0, 0]);
        assert_eq!(reset[33], 0x14);
        assert_eq!(checksum(&[&reset[..20]]), 0);
        assert_eq!(checksum(&[&reset[12..20], &[0, 6, 0, 20], &reset[20..]]), 0);
        for flags in [0x12, 0x10, 0x04, 0x06] {
            assert_eq!(read(&syn("10.0.0.2:1", "1.2.3.4:2", flags)), Seen::Nonsense);
        }
    }

    #[test]
    fn datagrams_are_read_as_they_are_written() {
        let (from, to) = (at("8.8.8.8:53"), at("10.0.0.2:5000"));
        for payload in [&b"odd"[..], b"even", b""] {
            let packet = datagram(from, to, payload);
            assert_eq!(read(&packet), Seen::Datagram(Flow { source: from, target: to }, payload));
            assert_eq!(checksum(&[&packet[..20]]), 0);
        }
        let refused =
            unreachable(&datagram(to, from, b"x"), Ipv4Addr::new(10, 0, 0, 1), Unreachable::Prohibited)
                .unwrap();
        assert_eq!(&refused[12..22], [10, 0, 0, 1, 10, 0, 0, 2, 3, 13]);
        assert_eq!(checksum(&[&refused[20..]]), 0);
        // And is not answered itself.
        assert_eq!(read(&refused), Seen::Nonsense);
    }

    #[test]
    fn other_protocols_have_a_sender() {
        let (source, target) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(1, 1, 1, 1));
        assert_eq!(
            read(&ip(ICMP, source, target, &[8, 0, 0, 0])),
            Seen::Other { source, target, protocol: 1 }
        );
        assert_eq!(read(&ip(132, source, target, &[])), Seen::Other { source, target, protocol: 132 });
        let mut fragment = ip(UDP, source, target, &[0; 8]);
        fragment[6] = 0x20;
        assert_eq!(read(&fragment), Seen::Nonsense);
        assert_eq!(read(&[0x60; 40]), Seen::Nonsense);
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..128), patch in any::<bool>()) {
            let mut bytes = bytes;
            if patch && bytes.len() >= 20 {
                bytes[0] = 0x45;
                let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                bytes[2..4].copy_from_slice(&length);
                bytes[6] = 0;
                bytes[7] = 0;
                bytes[9] = [1, 6, 17, 132][usize::from(bytes[9]) % 4];
            }
            let _ = read(&bytes);
            let _ = reset(&bytes);
            let _ = unreachable(&bytes, Ipv4Addr::LOCALHOST, Unreachable::Host);
        }
    }
}
