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

/// A new network namespace, in which this thread stays. Only for a thread that does
/// nothing else.
pub(crate) fn unshare_netns() -> io::Result<OwnedFd> {
    // SAFETY: plain integers; concerns this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }.into())?;
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

/// A TUN device (`Documentation/networking/tuntap.rst`) for whole IP packets, in this
/// thread's network namespace, for as long as the descriptor is open. Not blocking.
pub(crate) fn tun(name: &str) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let device = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: `request` outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.into())?;
    Ok(device.into())
}

/// Index of an interface of this thread's network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<i32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: live C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { i32::try_from(index).map_err(io::Error::other) }
}

/// A listener in this thread's network namespace that accepts connections to any
/// address that is routed to it (`ip(7)`, `IP_TRANSPARENT`). Not blocking.
pub(crate) fn transparent_listener() -> io::Result<std::net::TcpListener> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain integers.
    let socket = owned(unsafe { libc::socket(libc::AF_INET, kind, 0) }.into())?;
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let (fd, level) = (socket.as_raw_fd(), libc::SOL_IP);
    // SAFETY: pointer and size of one integer.
    let set = unsafe { libc::setsockopt(fd, level, libc::IP_TRANSPARENT, (&raw const on).cast(), size) };
    check(set.into())?;
    rustix::net::bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket.into())
}

/// A descriptor that the runtime waits for.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }?)
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
