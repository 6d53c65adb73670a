//! The engine's own system calls as safe functions: pidfds, network namespaces,
//! netlink, locks; below, btrfs, loop devices and mounts. No decision is taken
//! here.

pub(crate) mod btrfs;
pub(crate) mod loop_device;
pub(crate) mod mount;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use rustix::fs::{FlockOperation, flock};
use tokio::io::unix::AsyncFd;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(check(result)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A file system (`statvfs(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileSystem {
    /// Its size in bytes.
    pub(crate) total: u64,
    /// Bytes that are free for anybody.
    pub(crate) free: u64,
    /// It takes no writes.
    pub(crate) read_only: bool,
}

/// The file system that `path` lies on.
pub(crate) fn file_system(path: &std::path::Path) -> io::Result<FileSystem> {
    let found = rustix::fs::statvfs(path)?;
    Ok(FileSystem {
        total: found.f_blocks * found.f_frsize,
        free: found.f_bavail * found.f_frsize,
        read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// Reserves the first `length` bytes of `file` on its file system, holes
/// included (`fallocate(2)`, mode 0). The file grows if it is shorter.
pub(crate) fn allocate(file: &impl AsRawFd, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: plain integers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) }.into()).map(drop)
}

/// Puts a small file in place, whole or not at all, also where the host dies in
/// the middle. Once this returns it stays.
///
/// # Errors
/// What the file system says.
pub fn write_durably(path: &std::path::Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    // The name too.
    std::fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// Writes everything of the file system that `fd` lies on to its device.
pub(crate) fn syncfs(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) }.into()).map(drop)
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn watch_process(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: plain integers.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE) }?)
}

pub(crate) fn pidfd_kill(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: null siginfo: as kill(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<()>(),
            0,
        )
    })
    .map(drop)
}

/// Makes this process the parent of the runs, whose launchers end: what nobody
/// else reaps on a host without an init (a container) is ours to reap.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }.into()).map(drop)
}

/// Lets this process open as many files as it may: a connection of a sandbox
/// takes two descriptors, and the usual 1,024 are soon gone.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }.into())?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }.into()).map(drop)
}

/// Reaps a dead child. Harmless where it is no child of ours, or not dead.
pub(crate) fn reap(pid: i32) {
    // SAFETY: plain integers and a null status.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Kills one process by number. For processes found in a cgroup of ours.
pub(crate) fn kill(pid: i32) {
    // SAFETY: plain integers.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// A new network namespace, made by this thread, which stays in its own.
/// Only for a thread that does nothing else.
pub(crate) fn new_netns(home: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; concerns this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }.into())?;
    let made = std::fs::File::open("/proc/thread-self/ns/net");
    setns(home)?;
    Ok(made?.into())
}

/// Moves this thread into a network namespace.
pub(crate) fn setns(ns: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers; concerns this thread only.
    check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }.into()).map(drop)
}

/// A routing netlink socket of this thread's network namespace.
pub(crate) fn netlink_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let socket =
        owned(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }.into())?;
    let patience = libc::timeval { tv_sec: 5, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    let (fd, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
    // SAFETY: pointer and size of one struct.
    let set = unsafe { libc::setsockopt(fd, level, libc::SO_RCVTIMEO, (&raw const patience).cast(), size) };
    check(set.into())?;
    Ok(socket)
}

pub(crate) fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length of one slice.
    check(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) } as i64).map(drop)
}

pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length of one slice.
    let read =
        check(unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) } as i64)?;
    Ok(usize::try_from(read).unwrap_or(0))
}

/// Takes the lock of the directory or file at `path`, which stays locked until
/// the descriptor closes, under another name too. `WouldBlock`: somebody else
/// has it.
pub(crate) fn lock_existing(path: &std::path::Path) -> io::Result<OwnedFd> {
    locked(std::fs::File::open(path)?, FlockOperation::NonBlockingLockExclusive)
}

/// Takes the lock file `path`, which stays locked until the descriptor closes.
pub(crate) fn lock(path: &std::path::Path) -> io::Result<OwnedFd> {
    locked(lock_file(path)?, FlockOperation::NonBlockingLockExclusive)
}

/// [`lock`], once whoever has it lets go.
pub(crate) fn wait_for_lock(path: &std::path::Path) -> io::Result<OwnedFd> {
    locked(lock_file(path)?, FlockOperation::LockExclusive)
}

fn lock_file(path: &std::path::Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

fn locked(file: std::fs::File, how: FlockOperation) -> io::Result<OwnedFd> {
    flock(&file, how)?;
    Ok(file.into())
}

/// A directory or file below `root`, with links followed as if `root` were the
/// root (`openat2(2)`, `RESOLVE_IN_ROOT`).
pub(crate) fn open_in_root(root: &OwnedFd, path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    const IN_ROOT: u64 = 0x10;
    const NO_MAGICLINKS: u64 = 0x02;
    // SAFETY: an all-zero open_how is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::try_from(libc::O_PATH | libc::O_CLOEXEC).unwrap_or(0);
    how.resolve = IN_ROOT | NO_MAGICLINKS;
    // SAFETY: live C string, and the size is that of `how`.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw mut how,
            size_of::<libc::open_how>(),
        )
    })
}
