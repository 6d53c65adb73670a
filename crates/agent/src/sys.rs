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

/// A descriptor that the launcher left for us.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
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

/// A pipe; the reading or the writing end is non-blocking. It is user `uid`'s, who can then
/// open it by name (`/dev/stdout`).
pub(crate) fn pipe(nonblocking_read: bool, uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let (read, write) = (owned(fds[0])?, owned(fds[1])?);
    set_nonblocking(if nonblocking_read { &read } else { &write }, true)?;
    // SAFETY: plain integers; both ends are one file, and the group stays.
    check(unsafe { libc::fchown(read.as_raw_fd(), uid, libc::gid_t::MAX) })?;
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

/// An unnamed file below `directory`: nothing else can open it, and it is gone with who has
/// it open.
pub(crate) fn unnamed_file(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: live C string.
    owned(unsafe { libc::openat(directory.as_raw_fd(), c".".as_ptr(), flags, 0o600) })
}

/// Gives a file that was made without a name one (`open(2)`, `O_TMPFILE`).
pub(crate) fn link_unnamed(file: &impl AsRawFd, path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    let here = libc::AT_FDCWD;
    // SAFETY: live C strings.
    check(unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) }).map(drop)
}

/// Has room for `length` bytes from the beginning of a file, which becomes no longer by it.
/// File systems that cannot promise that need not.
pub(crate) fn reserve(file: &impl AsRawFd, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let length = libc::off_t::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: plain integers.
    match check(unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, length) }) {
        Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: it has no argument and never fails.
    unsafe { libc::geteuid() }
}

/// A file in memory, which counts as memory of the sandbox.
pub(crate) fn memory_file() -> io::Result<OwnedFd> {
    // SAFETY: live C string.
    owned(unsafe { libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC) })
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

/// A saved user id that nobody else in the sandbox has. Who has the same real,
/// effective and saved ids as a process may change its limits (`prlimit(2)`), and
/// root inside could have this one run out of descriptors. It goes with the next
/// [`become_user`], and with an exec.
const OWN_SAVED_UID: u32 = 65_535;

/// Keeps [`OWN_SAVED_UID`], where this process is root.
pub(crate) fn guard_limits() {
    // SAFETY: plain integers; -1 leaves an id as it is. Not root, by hand: it is refused,
    // and there is nothing to guard.
    unsafe { libc::setresuid(u32::MAX, u32::MAX, OWN_SAVED_UID) };
}

/// Adds to the score by which the kernel chooses what to end when memory runs out
/// (`proc_pid_oom_score_adj(5)`), in a fresh child without descriptors of ours.
pub(crate) fn adjust_oom_score(by: &[u8]) -> io::Result<()> {
    // A process that cannot be dumped has its files in /proc belong to the host's
    // root. What it has in memory is a copy of what anybody's root inside may see.
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })?;
    let written = std::fs::write("/proc/self/oom_score_adj", by);
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    written
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

/// A new terminal: our side, non-blocking, and the side for a command of user
/// `uid` (`pty(7)`, `ioctl_tty(2)`).
pub(crate) fn open_terminal(uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    // Never a FIFO's open that waits, whatever the sandbox put there.
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: live C string.
    let ours = owned(unsafe { libc::open(c"/dev/ptmx".as_ptr(), flags) })?;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let peer = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value and returns a descriptor.
    let theirs = owned(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, peer) })?;
    // SAFETY: plain integers; the group stays.
    check(unsafe { libc::fchown(theirs.as_raw_fd(), uid, libc::gid_t::MAX) })?;
    Ok((ours, theirs))
}

/// Tells a terminal the size of its window.
pub(crate) fn resize_terminal(terminal: &OwnedFd, cols: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// In a fresh child that leads its session: standard input is its terminal.
pub(crate) fn take_terminal() -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// How long a connection to our own loopback may take to come up, in
/// milliseconds: longer only where a listener's queue is full.
const DIAL_PATIENCE_MS: i32 = 20;

/// A connection to a port of this sandbox, on 127.0.0.1 or else ::1.
pub(crate) fn connect_local(port: u16) -> io::Result<OwnedFd> {
    let v4 = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    let v6 = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: port.to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: std::net::Ipv6Addr::LOCALHOST.octets() },
        sin6_scope_id: 0,
    };
    // SAFETY: each pointer is to a live address of the size that is given.
    unsafe {
        connect(libc::AF_INET, (&raw const v4).cast(), size_of_val(&v4)).or_else(|refused| {
            connect(libc::AF_INET6, (&raw const v6).cast(), size_of_val(&v6)).map_err(|_| refused)
        })
    }
}

/// # Safety
/// `address` points to `length` bytes of a socket address of `family`.
unsafe fn connect(family: i32, address: *const libc::sockaddr, length: usize) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain integers.
    let socket = owned(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: by the caller's promise.
    let begun = check(unsafe { libc::connect(socket.as_raw_fd(), address, length as libc::socklen_t) });
    match begun {
        Ok(_) => return Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut fds = [libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 }];
    poll(&mut fds, DIAL_PATIENCE_MS)?;
    let (mut error, mut size) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: room for one int, and its size.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut size,
        )
    })?;
    if error == 0 { Ok(socket) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Sends `bytes` (few) with a descriptor attached (`cmsg(3)`).
pub(crate) fn send_with(socket: &OwnedFd, bytes: &[u8], fd: &impl AsRawFd) -> io::Result<()> {
    // Room for one descriptor, aligned as a header must be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid; every pointer set in it is to a live
    // local; CMSG_SPACE of one int is far below 64 bytes, so the first header
    // and its data lie within `control`.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        let sent = libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL);
        match usize::try_from(sent) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
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
