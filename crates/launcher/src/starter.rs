//! What a process has from whoever started it, and a sandbox's must not: signals that
//! are ignored, limits, its place in the order of things.

use std::{io, ptr};

use crate::spec::Account;
use crate::sys::check;

/// Descriptors that a process in a sandbox may have, and how many if it asks for more: as on
/// a server, and not the most there can be, since some programs close all there might be.
const OPEN_FILES: [libc::rlim_t; 2] = [65_536, 1 << 20];

/// Limits of a sandbox's processes: soft, hard. What a sandbox may take of the
/// host is bounded by its cgroup and quota, so these are the usual ones, and two
/// that the kernel counts for the whole user namespace.
fn limits(account: &Account) -> [(libc::__rlimit_resource_t, [libc::rlim_t; 2]); 16] {
    [
        (libc::RLIMIT_AS, [libc::RLIM_INFINITY; 2]),
        // At 0 no file is written, but where the host's `core_pattern` is a program that is
        // run, by the host's root, on what a process of the sandbox had in memory (`core(5)`).
        // At 1 the kernel leaves that alone, too (`fs/coredump.c`).
        (libc::RLIMIT_CORE, [1; 2]),
        (libc::RLIMIT_CPU, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_DATA, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_FSIZE, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_LOCKS, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_MEMLOCK, [8 << 20; 2]),
        (libc::RLIMIT_MSGQUEUE, [account.queue_bytes; 2]),
        (libc::RLIMIT_NICE, [0; 2]),
        (libc::RLIMIT_NOFILE, OPEN_FILES),
        (libc::RLIMIT_NPROC, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_RSS, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_RTPRIO, [0; 2]),
        (libc::RLIMIT_RTTIME, [libc::RLIM_INFINITY; 2]),
        (libc::RLIMIT_SIGPENDING, [account.pending_signals; 2]),
        (libc::RLIMIT_STACK, [8 << 20, libc::RLIM_INFINITY]),
    ]
}

/// Takes back everything that whoever started the server may have set for its
/// children (`fork(2)`, `execve(2)`, "attributes preserved"): a shell ignores
/// SIGINT in what it starts in the background, a unit file may set `Nice=`. Only
/// the mask of file modes is left to [`crate::sys::prepare_process`]. A server without
/// `CAP_SYS_RESOURCE` cannot go above the hard limits that it was given, nor below
/// its `oom_score_adj`.
pub(crate) fn forget_starter(account: &Account) -> io::Result<()> {
    // `struct sigaction` of the kernel, of which all zero is the default action.
    let default = [0_u64; 4];
    let every_cpu = [u8::MAX; 1024];
    // SAFETY: arrays that outlive the calls, with their sizes; plain integers.
    unsafe {
        for signal in 1..=64 {
            // Not for SIGKILL and SIGSTOP, which are never anything else.
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<u8>(), 8);
        }
        let none = 0_u64;
        let how = libc::SIG_SETMASK;
        check(libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, ptr::null::<u8>(), 8))?;
        for (resource, [soft, hard]) in limits(account) {
            let mut limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            if libc::setrlimit(resource, &raw const limit) < 0 {
                check(libc::getrlimit(resource, &raw mut limit).into())?;
                limit.rlim_cur = limit.rlim_max.min(soft);
                check(libc::setrlimit(resource, &raw const limit).into())?;
            }
        }
        let scheduling = libc::sched_param { sched_priority: 0 };
        check(libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const scheduling).into())?;
        check(libc::setpriority(libc::PRIO_PROCESS, 0, 0).into())?;
        check(libc::syscall(libc::SYS_sched_setaffinity, 0, every_cpu.len(), every_cpu.as_ptr()))?;
        // `IOPRIO_WHO_PROCESS`, this one, no class.
        check(libc::syscall(libc::SYS_ioprio_set, 1, 0, 0))?;
        // Nanoseconds, as PID 1 of a host has.
        check(libc::prctl(libc::PR_SET_TIMERSLACK, 50_000, 0, 0, 0).into())?;
        check(libc::personality(0).into())?;
    }
    match std::fs::write("/proc/self/oom_score_adj", "0") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}
