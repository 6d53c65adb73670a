//! System calls as safe functions. No decision is taken here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

pub(crate) fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i32) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The listener that the launcher left for us.
pub(crate) fn inherited_listener(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; marks the inherited descriptor close-on-exec.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the launcher made this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Blocks SIGCHLD and returns a descriptor that tells of it; ignores SIGPIPE.
pub(crate) fn child_signal() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()))?;
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        owned(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

pub(crate) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null address: the peer's name is of no interest.
    owned(unsafe { libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) })
}

/// A pipe; the reading or the writing end is non-blocking.
pub(crate) fn pipe(nonblocking_read: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let (read, write) = (owned(fds[0])?, owned(fds[1])?);
    set_nonblocking(if nonblocking_read { &read } else { &write }, true)?;
    Ok((read, write))
}

pub(crate) fn set_nonblocking(fd: &impl AsRawFd, on: bool) -> io::Result<()> {
    // SAFETY: plain integers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

pub(crate) fn read(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length of one slice.
    let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn write(fd: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length of one slice.
    let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// An unnamed file on the sandbox's own disk: its size counts against the
/// sandbox, nothing inside can open it, and it is gone with the run.
pub(crate) fn unnamed_file() -> io::Result<OwnedFd> {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: live C string.
    let on_disk = owned(unsafe { libc::open(c"/".as_ptr(), flags, 0o600) });
    match on_disk {
        Ok(file) => Ok(file),
        // A full disk or a file system without O_TMPFILE: memory instead,
        // which counts against the sandbox just the same.
        // SAFETY: live C string.
        Err(_) => owned(unsafe { libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC) }),
    }
}

/// Forks. `None` in the child. Safe to run anything in the child, since this
/// process never has more than one thread.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: single-threaded, see above.
    let pid = check(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends this process only.
    unsafe { libc::_exit(code) }
}

/// A child of ours that ended, and its exit code (128+n for signal n).
pub(crate) enum Reaped {
    Child {
        pid: i32,
        code: i32,
    },
    /// Children exist, none has ended.
    NoneYet,
    /// No process but us is left.
    NoChildren,
}

pub(crate) fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Reaped::NoneYet,
        pid if pid > 0 => {
            let code = if libc::WIFSIGNALED(status) {
                128 + libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            };
            Reaped::Child { pid, code }
        }
        _ => Reaped::NoChildren,
    }
}

pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers. As PID 1, -1 means everybody else.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub(crate) fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<()> {
    // SAFETY: pointer and length of one slice.
    check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) }).map(drop)
}

/// Milliseconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "the agent has no other clock than the sandbox's")]
pub(crate) fn wall_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Takes on a user's rights for good.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length of one slice; plain integers.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid)).map(drop)
    }
}

/// In a fresh child: own session, default signals, `stdio` as streams 0 to 2,
/// every other descriptor closed.
pub(crate) fn isolate_child(stdio: [RawFd; 3]) -> io::Result<()> {
    // SAFETY: plain integers and an initialised set. The copies go above 1000
    // first, so that no dup2 overwrites a source.
    unsafe {
        libc::setsid();
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut high = [0; 3];
        for (to, from) in high.iter_mut().zip(stdio) {
            *to = check(libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 1000))?;
        }
        for (to, from) in high.iter().enumerate() {
            check(libc::dup2(*from, i32::try_from(to).unwrap_or(0)))?;
        }
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
    Ok(())
}

/// In a fresh child: `fd` becomes descriptor 3, everything above is closed.
pub(crate) fn keep_only(fd: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; descriptor 3 (the listener) is replaced.
    unsafe {
        let copy = check(libc::dup2(fd.as_raw_fd(), 3))?;
        libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 0);
        Ok(OwnedFd::from_raw_fd(copy))
    }
}

/// `execve(2)`; returns only on failure.
pub(crate) fn exec(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with null and point to live C strings.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}
