//! `dormouse-launcher`: makes one shell and its root file system, starts the
//! agent in it as PID 1, says so on standard output and exits.
//!
//! This is the most dangerous code in the house, so it is small, synchronous,
//! single-threaded, and needs nothing but libc. Two processes take part:
//!
//! ```text
//!  launcher (host root)                    child (PID 1 of the new namespaces)
//!  read the spec, open agent, sockets, files
//!  join the network namespace
//!  take the uid that the namespace counts for
//!  clone3 ───────────────────────────────► waits
//!  the host's root again
//!  write uid_map, gid_map; join cgroups ─► becomes root of the namespace,
//!  id-map image, volume, drives;           mounts /proc /dev /sys
//!  make the overlay
//!  send its descriptor ──────────────────► attaches it, moves those into it,
//!                                          mounts /run and drives,
//!                                          pivots, drops capabilities,
//!                                          loads the seccomp filter,
//!  end of file on the error pipe ◄──────── execs the agent
//!  print "ok PID START_TIME MICROSECONDS"
//! ```
//!
//! Paths of the image are resolved only by the child, inside the new user
//! namespace, below the image's root and without following symbolic links.
//! The overlay is made with the file-system ids of the sandbox's shifted root,
//! over id-mapped trees, so nothing on disk is ever chowned. The user namespace
//! is made under the same id: what the kernel counts by user (inotify, signals,
//! queues) it adds up for the creator, and root's account is the host's own.
//!
//! What does not live here: cgroup limits, network links, images and volumes
//! (the engine makes them before and removes them after), and any retry.

#![expect(unsafe_code, reason = "this crate is the boundary to the kernel")]

mod child;
mod error;
mod limits;
mod overlay;
mod proc;
mod spec;
mod starter;
mod sys;

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use error::{Context as _, Error};
use spec::Spec;

fn main() -> ExitCode {
    let started = Instant::now();
    let result = Spec::from_args(std::env::args().skip(1)).and_then(|spec| launch(&spec));
    let mut out = std::io::stdout();
    let (line, code) = match result {
        Ok((pid, start_time)) => {
            (format!("ok {pid} {start_time} {}\n", started.elapsed().as_micros()), ExitCode::SUCCESS)
        }
        Err(error) => (format!("{}\n", error.to_report()), ExitCode::FAILURE),
    };
    // The engine reads a missing line as a failed launch.
    let _ = out.write_all(line.as_bytes());
    code
}

/// Makes the sandbox that `spec` describes. Returns the host's pid of its
/// PID 1 and that process's start time (clock ticks since boot, `proc(5)`).
fn launch(spec: &Spec) -> Result<(i32, u64), Error> {
    // A launcher whose server died would finish a sandbox that nobody knows.
    sys::die_with_parent().context("prctl(PR_SET_PDEATHSIG)")?;
    starter::forget_starter(&spec.account).context("undo what the server's starter has set")?;
    let agent = sys::open_exec(&spec.agent).context_with(|| format!("open agent {}", spec.agent))?;
    let listen = |name: &str| {
        sys::listen_in(&spec.socket_dir, name)
            .context_with(|| format!("listen on {name} in {}", spec.socket_dir))
    };
    let (output, events) = (&spec.output, &spec.memory_events);
    let inherited = child::Inherited {
        listener: listen("agent.sock")?,
        control: listen("control.sock")?,
        output: sys::open_path(output).context_with(|| format!("open {output}"))?,
        memory_events: sys::open_path(events).context_with(|| format!("open {events}"))?,
    };
    let filter =
        std::fs::read(&spec.seccomp).context_with(|| format!("read seccomp filter {}", spec.seccomp))?;
    child::check_host_devices()?;
    if let Some(netns) = &spec.netns {
        let ns = sys::open_path(netns).context_with(|| format!("open netns {netns}"))?;
        sys::setns_net(&ns).context_with(|| format!("join netns {netns}"))?;
    }
    let (here, there) = sys::socket_pair().context("socketpair")?;
    let (error_read, error_write) = sys::pipe().context("pipe")?;
    let unified = match &spec.cgroup2 {
        Some(path) => Some(sys::open_path(path).context_with(|| format!("open cgroup {path}"))?),
        None => None,
    };

    sys::become_creator(spec.uid_base).context("become the creator of the user namespace")?;
    let pid = sys::clone_into_namespaces(unified.as_ref()).context("clone3")?;
    let Some(pid) = pid else {
        drop(here);
        drop(error_read);
        child::run(spec, &there, error_write, &agent, &inherited, &filter);
    };
    drop(there);
    drop(error_write);

    let prepared =
        sys::open_path(&format!("/proc/{pid}/ns/user")).context("open user namespace").and_then(|userns| {
            sys::restore_creator().context("become the host's root again")?;
            equip(spec, pid, &userns, &here)
        });
    drop(here);
    let outcome = match prepared {
        Ok(()) => sys::read_to_end(&error_read).context("read the child's report"),
        Err(error) => Err(error),
    };
    let failure = match outcome {
        Ok(report) if report.is_empty() => match sys::start_time(pid) {
            Ok(start_time) => return Ok((pid, start_time)),
            Err(error) => Error::new(format!("read start time of {pid}"), error),
        },
        Ok(report) => Error::from_report(&String::from_utf8_lossy(&report)),
        Err(error) => error,
    };
    sys::kill_and_reap(pid);
    Err(failure)
}

/// What only the host's root can do for the child: ids, cgroups, root.
fn equip(spec: &Spec, pid: i32, userns: &OwnedFd, channel: &OwnedFd) -> Result<(), Error> {
    let map = format!("0 {} {}\n", spec.uid_base, spec::IDS);
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), &map)
            .context_with(|| format!("write {file} of {pid}"))?;
    }
    for group in &spec.cgroups {
        std::fs::write(format!("{group}/cgroup.procs"), pid.to_string())
            .context_with(|| format!("join cgroup {group}"))?;
    }
    sys::send_word(channel).context("let the child go on")?;
    let root = overlay::mount(spec, userns)?;
    sys::send_fd(channel, root.as_raw_fd()).context("send root file system to the child")?;
    for drive in &spec.drives {
        let tree = overlay::drive(drive, userns)?;
        sys::send_fd(channel, tree.as_raw_fd())
            .context_with(|| format!("send {} to the child", drive.files))?;
    }
    Ok(())
}
