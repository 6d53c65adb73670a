//! What the host's kernel, and lxcfs beside it, is set to and says. Limits that every
//! sandbox has for itself, or that all of them share, are raised where they are too low
//! for many sandboxes, and never lowered; what a single sandbox gets of them is the
//! launcher's. The server is ended last, and the log tells what was ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::KernelLimits;

/// A limit of the host that is lower than sandboxes need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowLimit {
    /// Its name, as `sysctl(8)` has it.
    pub name: String,
    /// What it is.
    pub found: u64,
    /// What it should be at least.
    pub wanted: u64,
}

/// Pages of memory that the host has. Where that cannot be read nothing is low.
fn pages() -> u64 {
    const PAGE: u64 = 4096;
    crate::admission::memory().unwrap_or(0) / PAGE
}

/// Whether buffers of sockets are counted for each group: an operator may have told the
/// kernel not to (`cgroup.memory=nosocket`).
fn counts_sockets() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| !line.contains("nosocket"))
}

/// The limits, below `/proc/sys`, and what each should be.
fn wanted(limits: &KernelLimits) -> Vec<(&'static str, u64)> {
    // Buffers of all sockets of the host, in pages: half of its memory, since those of a
    // sandbox are counted as its memory, or beside it (`cgroup`). The kernel's own bound
    // is less than one sandbox may have.
    let of_sockets = if counts_sockets() { pages() / 2 } else { 0 };
    vec![
        ("net/ipv4/tcp_mem", of_sockets),
        ("net/ipv4/udp_mem", of_sockets),
        // Bytes of the filters of all processes: all that the kernel has room for, which is
        // more than 2,048 processes (of a sandbox, by default) can hold.
        ("net/core/bpf_jit_limit", 1008 << 20),
        // Counted by the creator of a user namespace, so each sandbox has it.
        ("fs/inotify/max_user_instances", limits.inotify_instances),
        ("fs/inotify/max_user_watches", limits.inotify_watches),
        // Shared: as many as there can be (`proc_sys_kernel(5)`), since each sandbox
        // is bounded by its own number of processes and of terminals.
        ("kernel/pid_max", 4_194_304),
        ("kernel/threads-max", 262_144),
        ("kernel/pty/max", 65_536),
        // Sandboxes need an entry each, for their loopback; it is one table for all
        // namespaces (`arp(7)`).
        ("net/ipv4/neigh/default/gc_thresh2", 8192),
        ("net/ipv4/neigh/default/gc_thresh3", 16_384),
        // Connections that are closed and not yet over, of all namespaces: beyond it they are
        // cut, with what was on its way (`tcp(7)`). Their memory is their sandbox's.
        ("net/ipv4/tcp_max_orphans", 4_194_304),
    ]
}

impl LowLimit {
    /// What `sysctl(8)` is to be told.
    #[must_use]
    pub fn assignment(&self) -> String {
        format!("{}=\"{}\"", self.name, written(&self.name, self.wanted))
    }
}

/// Whether the host's `core_pattern` hands crashes to a socket. There is no limit by which
/// a process could be kept out of that (`core(5)`).
#[must_use]
pub fn crashes_go_to_a_socket() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/core_pattern").is_ok_and(|pattern| pattern.starts_with('@'))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

/// What to write for a limit: of memory there are three numbers, from where on the kernel
/// is sparing, and the most (`tcp(7)`, `tcp_mem`).
fn written(name: &str, value: u64) -> String {
    if name.ends_with("_mem") {
        format!("{} {} {value}", value / 2, value / 4 * 3)
    } else {
        value.to_string()
    }
}

/// What is too low now. A limit that this kernel does not have is not.
#[must_use]
pub fn low_limits(limits: &KernelLimits) -> Vec<LowLimit> {
    let low = |(name, wanted): (&str, u64)| {
        // The last number is the most.
        let found = std::fs::read_to_string(path(name)).ok()?.split_whitespace().last()?.parse().ok()?;
        (found < wanted).then(|| LowLimit { name: name.replace('/', "."), found, wanted })
    };
    wanted(limits).into_iter().filter_map(low).collect()
}

/// Where the host runs out of memory, the server goes last: it is what records
/// that anything else went (`proc_pid_oom_score_adj(5)`). Commands of sandboxes go
/// first, the largest of them.
pub(crate) fn die_last() {
    const LAST: i32 = -900;
    let path = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now > LAST)
        && let Err(error) = std::fs::write(path, LAST.to_string())
    {
        tracing::warn!(%error, "the server may be killed where the host runs out of memory");
    }
}

/// Whether the kernel's log says that it ended the process `pid` of this host for lack
/// of memory. Where the log cannot be read, nobody knows.
pub(crate) fn ended_for_memory(pid: i32) -> bool {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let Ok(mut log) = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return false;
    };
    // One record a read (`Documentation/ABI/testing/dev-kmsg`).
    let mut record = vec![0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => return false,
            Ok(read) if is_oom_kill(&String::from_utf8_lossy(&record[..read]), pid) => return true,
            Ok(_) => {}
            // Records that were overwritten meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return false,
        }
    }
}

fn is_oom_kill(record: &str, pid: i32) -> bool {
    record.contains("oom-kill:") && record.contains(&format!(",pid={pid},"))
}

/// How long lxcfs may take to say a word.
const LXCFS_PATIENCE: Duration = Duration::from_secs(2);

/// Whether lxcfs answers at `place`. One that hangs holds up a thread, not the
/// start.
pub(crate) async fn has_lxcfs(place: &Path) -> bool {
    let file = place.join("proc/meminfo");
    let read = tokio::task::spawn_blocking(move || std::fs::read(file).is_ok_and(|text| !text.is_empty()));
    matches!(tokio::time::timeout(LXCFS_PATIENCE, read).await, Ok(Ok(true)))
}

/// Raises what is too low. What cannot be raised is said in the log, and by `doctor`.
pub(crate) fn raise_limits(limits: &KernelLimits) {
    if crashes_go_to_a_socket() {
        tracing::warn!(
            "kernel.core_pattern is a socket: programs of this host see what crashes in sandboxes"
        );
    }
    for LowLimit { name, found, wanted } in low_limits(limits) {
        match std::fs::write(path(&name.replace('.', "/")), written(&name, wanted)) {
            Ok(()) => tracing::info!(limit = name, found, wanted, "raised a limit of the host"),
            Err(error) => tracing::warn!(limit = name, found, wanted, %error, "raise a limit of the host"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{is_oom_kill, pages, written};

    #[test]
    fn memory_of_sockets_is_three_numbers() {
        assert_eq!(written("net.ipv4.tcp_mem", 1000), "500 750 1000");
        assert_eq!(written("kernel.pid_max", 1000), "1000");
        // 64 MiB to 64 TiB.
        assert!((1 << 14..1 << 34).contains(&pages()), "{}", pages());
    }

    #[test]
    fn the_kernels_words_name_a_process() {
        let record = "6,1234,5678,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/a,task_memcg=/a,\
                      task=dormouse-agent,pid=417,uid=0";
        assert!(is_oom_kill(record, 417) && !is_oom_kill(record, 17) && !is_oom_kill(record, 4170));
        assert!(!is_oom_kill("6,1,2,-;,pid=417,", 417));
    }
}
