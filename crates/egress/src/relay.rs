//! The TCP relay: takes redirected connections, asks the kernel where they were
//! going, and passes bytes there if the address is public.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::mirror::Gateway;
use crate::places::Places;
use crate::policy::{EgressPolicy, Policies};

/// Connections of one sandbox at once.
const PER_SANDBOX: u32 = 512;

/// How long a connection may take to come up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) async fn serve(
    listener: TcpListener,
    mirror_address: Ipv4Addr,
    mirrors: Option<Arc<Gateway>>,
    policies: Arc<Policies>,
) {
    let places = Places::new(PER_SANDBOX, u32::MAX);
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: room comes when a connection ends.
                tracing::warn!(%error, "accept from a sandbox");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Unknown: refused, by closing.
        let Some(mut policy) = policies.of(source.ip()) else { continue };
        let Some(place) = places.take(source.ip()) else { continue };
        let mirrors = mirrors.clone();
        tokio::spawn(async move {
            let done = async {
                let target = original_destination(&stream)?;
                let is_mirror = *target.ip() == mirror_address;
                let allows = |policy: &EgressPolicy| {
                    if is_mirror { policy.allows_names() } else { policy.allows(*target.ip()) }
                };
                tokio::select! {
                    biased;
                    // A policy that forbids it, now or later, or the end of the sandbox.
                    _ = policy.wait_for(|policy| !allows(policy)) => {
                        Err(io::ErrorKind::PermissionDenied.into())
                    }
                    done = pass(stream, target, is_mirror, mirrors) => done,
                }
            }
            .await;
            if let Err(error) = done {
                tracing::debug!(%source, %error, "connection of a sandbox");
            }
            drop(place);
        });
    }
}

async fn pass(
    mut stream: TcpStream,
    target: SocketAddrV4,
    is_mirror: bool,
    mirrors: Option<Arc<Gateway>>,
) -> io::Result<()> {
    if is_mirror {
        return match mirrors {
            Some(gateway) if target.port() == 443 => gateway.serve(stream).await,
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        };
    }
    if !is_reachable(*target.ip()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let connect = TcpStream::connect(SocketAddr::V4(target));
    let mut upstream = tokio::time::timeout(CONNECT_PATIENCE, connect).await??;
    // What one side sends is passed on at once; batching is that side's choice.
    stream.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut stream, &mut upstream).await.map(drop)
}

/// Whether a sandbox may reach the address: public, and not this host's own.
pub(crate) fn is_reachable(address: Ipv4Addr) -> bool {
    is_public(address) && std::net::UdpSocket::bind((address, 0)).is_err()
}

/// Global unicast by the IANA special-purpose registry (RFC 6890).
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19));
    !special
}

/// Where the connection was going before the packet filter redirected it
/// (`SO_ORIGINAL_DST`, `netfilter_ipv4.h`).
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddrV4> {
    const SO_ORIGINAL_DST: libc::c_int = 80;
    // SAFETY: an all-zero sockaddr_in is valid.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: pointer and size of one struct to fill.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_IP,
            SO_ORIGINAL_DST,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
    Ok(SocketAddrV4::new(ip, u16::from_be(address.sin_port)))
}

#[cfg(test)]
mod tests {
    use super::{is_public, is_reachable};

    #[test]
    fn only_public_addresses_are_reachable() {
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
            assert!(!is_reachable(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "8.8.8.8", "140.82.112.3", "100.128.0.1", "172.32.0.1", "198.20.0.1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
