//! `dormouse-agent`: PID 1 inside a sandbox.
//!
//! One process, one thread, one `poll(2)` loop: it starts commands, keeps
//! their output, reaps whatever dies, and forks a short-lived helper with the
//! user's own rights for each file operation. It knows its protocol and
//! nothing else: no policy, no network, no host.
//!
//! The image and everything that runs in it is hostile. The agent cannot be
//! traced (its binary is not readable inside, so it is not dumpable), cannot be
//! killed (PID 1 of its namespace takes no signal from inside that it did not
//! ask for), and its socket has no name inside. What it reads from the sandbox
//! (`/etc/passwd`, files, output) is bounded.

#![expect(unsafe_code, reason = "fork, poll and signals")]

mod boot;
mod command;
mod connection;
mod dialogue;
mod files;
mod log;
mod memory;
mod place;
mod run_dirs;
mod server;
mod sys;
mod tree;
mod users;

fn main() {
    // PID 1 must not end while the sandbox lives, so a broken listener is the
    // only reason to return; the kernel then ends every other process.
    if let Err(error) = server::run() {
        // Standard error is /dev/null in a sandbox; this is for a run by hand.
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("dormouse-agent: {error}\n").as_bytes(),
        );
    }
}
