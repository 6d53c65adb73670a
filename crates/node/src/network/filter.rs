//! The packet filter of the router: one static nftables table, loaded once.
//!
//! From a sandbox: the first packet of a TCP connection and everything that is no
//! TCP goes to the gate, as much of it as one sandbox may send; the rest of TCP goes
//! to the sockets that the listener accepted. Whatever is forged goes nowhere. No
//! rule tracks connections, so no packet of a sandbox costs the host an entry.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::router::{GATE, TO_GATE, TO_LISTENER};
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

/// Loads the instance's table in one transaction, over an older one too, in this
/// thread's network namespace.
pub(super) fn load(numbering: Numbering, port: u16) -> Result<(), FilterError> {
    run(&rules(numbering, port))
}

fn rules(numbering: Numbering, port: u16) -> String {
    let (table, links) = (numbering.table(), format!("{}*", numbering.link_prefix()));
    let mut slots = String::new();
    for slot in 0..SLOTS {
        // Writing to a String cannot fail.
        let _ = write!(slots, "\"{}\" . {}, ", numbering.link(slot), numbering.address(slot));
    }
    // Connections: 10,000 short ones in a few seconds are a busy build, more is an
    // attack on who shares the gate. Other packets are questions, two for each connection
    // of a client that asks each time, and what is refused.
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
  set slots {{ type ifname . ipv4_addr; elements = {{ {slots} }} }}
  set connections {{ type ifname; size {SLOTS}; flags dynamic,timeout; timeout 1m; }}
  set packets {{ type ifname; size {SLOTS}; flags dynamic,timeout; timeout 1m; }}
  chain arriving {{ type filter hook prerouting priority mangle; policy drop;
    iifname "lo" accept
    iifname "{GATE}" tcp flags & (syn | ack) == syn tproxy ip to :{port} meta mark set {TO_LISTENER} accept
    iifname "{GATE}" accept
    meta nfproto ipv6 drop
    iifname . ip saddr != @slots drop
    tcp flags & (syn | ack) == syn goto connection
    meta l4proto tcp tproxy ip to :{port} meta mark set {TO_LISTENER} accept
    meta l4proto tcp drop
    update @packets {{ iifname limit rate over 1000/second burst 2000 packets }} drop
    meta mark set {TO_GATE} accept
  }}
  chain connection {{
    update @connections {{ iifname limit rate over 2000/second burst 4000 packets }} drop
    meta mark set {TO_GATE} accept
  }}
  chain for_router {{ type filter hook input priority filter; policy accept;
    iifname "{links}" meta mark != {TO_LISTENER} meta l4proto tcp reject with tcp reset
    iifname "{links}" meta mark != {TO_LISTENER} reject with icmpx type admin-prohibited
  }}
  chain passing {{ type filter hook forward priority filter; policy drop;
    iifname "{links}" oifname "{GATE}" accept
    iifname "{GATE}" oifname "{links}" accept
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
