//! The packet filter: one static nftables table per instance, loaded once.
//!
//! From a sandbox: DNS (whatever server it names) and TCP go to our listeners;
//! private, link-local and host addresses, UDP, ICMP, IPv6 and everything else
//! go nowhere. The host's own traffic is not touched: every rule names our
//! links or our listener's address.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::{Numbering, SLOTS};

/// The packet filter could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// `nft` could not be run.
    #[error("run nft (is nftables installed?)")]
    Run(#[from] io::Error),
    /// `nft` refused the rules.
    #[error("nft: {0}")]
    Refused(String),
}

/// Addresses that are never reached from a sandbox: this host, private
/// networks, metadata services, multicast (RFC 6890 and successors).
pub(crate) const NEVER: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
    172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, \
    198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/4, 240.0.0.0/4";

/// Loads the instance's table in one transaction, over an older one too.
pub(super) fn load(numbering: Numbering, dns: u16, tcp: u16) -> Result<(), FilterError> {
    run(&rules(numbering, dns, tcp))
}

/// Removes the instance's table.
pub(super) fn unload(numbering: Numbering) -> Result<(), FilterError> {
    let table = numbering.table();
    run(&format!("add table inet {table}\ndelete table inet {table}\n"))
}

fn rules(numbering: Numbering, dns: u16, tcp: u16) -> String {
    let (table, links) = (numbering.table(), format!("{}*", numbering.link_prefix()));
    let (listener, mirror) = (numbering.listener(), numbering.mirror());
    let mut slots = String::new();
    for slot in 0..SLOTS {
        // Writing to a String cannot fail.
        let _ = write!(slots, "\"{}\" . {}, ", numbering.link(slot), numbering.address(slot));
    }
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
  set slots {{ type ifname . ipv4_addr; elements = {{ {slots} }} }}
  set never {{ type ipv4_addr; flags interval; elements = {{ {NEVER} }} }}
  chain from_sandbox {{ type filter hook prerouting priority raw; policy accept;
    iifname "{links}" meta nfproto ipv6 drop
    iifname "{links}" iifname . ip saddr != @slots drop
  }}
  chain to_listeners {{ type nat hook prerouting priority dstnat; policy accept;
    iifname "{links}" udp dport 53 dnat ip to {listener}:{dns}
    iifname "{links}" tcp dport 53 dnat ip to {listener}:{dns}
    iifname "{links}" ip daddr {mirror} meta l4proto tcp dnat ip to {listener}:{tcp}
    iifname "{links}" ip daddr @never return
    iifname "{links}" meta l4proto tcp dnat ip to {listener}:{tcp}
  }}
  chain to_host {{ type filter hook input priority filter; policy accept;
    iifname "{links}" ct state established,related accept
    iifname "{links}" ip daddr {listener} ct status dnat accept
    iifname "{links}" meta l4proto tcp reject with tcp reset
    iifname "{links}" drop
    iifname != "lo" iifname != "{links}" ip daddr {listener} drop
  }}
  chain routed {{ type filter hook forward priority filter; policy accept;
    iifname "{links}" meta l4proto tcp reject with tcp reset
    iifname "{links}" drop
    oifname "{links}" drop
  }}
}}
"#
    )
}

fn run(script: &str) -> Result<(), FilterError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(FilterError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
