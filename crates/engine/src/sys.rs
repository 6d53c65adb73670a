//! The engine's own system calls as safe functions: btrfs, pidfds, network
//! namespaces, netlink. No decision is taken here.

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use tokio::io::unix::AsyncFd;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(check(result)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const fn ioc(direction: c_ulong, number: c_ulong, size: usize) -> c_ulong {
    direction << 30 | (size as c_ulong) << 16 | 0x94 << 8 | number
}

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

fn subvolume(parent: &impl AsRawFd, name: &str, request: c_ulong) -> io::Result<()> {
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    let bytes = name.as_bytes();
    // The last byte stays zero, as the kernel wants.
    let target = args.name[..4087].get_mut(..bytes.len());
    target.ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?.copy_from_slice(bytes);
    // SAFETY: `args` has the layout of struct btrfs_ioctl_vol_args.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), request, &raw const args) }.into()).map(drop)
}

/// Makes the btrfs subvolume `name` in the directory `parent`.
pub(crate) fn subvolume_create(parent: &impl AsRawFd, name: &str) -> io::Result<()> {
    subvolume(parent, name, ioc(1, 14, size_of::<VolArgs>()))
}

/// Deletes the btrfs subvolume `name` in the directory `parent`; the kernel
/// frees its space in the background.
pub(crate) fn subvolume_delete(parent: &impl AsRawFd, name: &str) -> io::Result<()> {
    subvolume(parent, name, ioc(1, 15, size_of::<VolArgs>()))
}

#[repr(C)]
struct QuotaCtl {
    command: u64,
    status: u64,
}

/// Turns on simple quotas (kernel 6.7), or classic ones on older kernels.
pub(crate) fn quota_enable(fs: &impl AsRawFd) -> io::Result<()> {
    const ENABLE: u64 = 1;
    const ENABLE_SIMPLE: u64 = 4;
    let request = ioc(3, 40, size_of::<QuotaCtl>());
    let enable = |command| {
        let mut args = QuotaCtl { command, status: 0 };
        // SAFETY: `args` has the layout of struct btrfs_ioctl_quota_ctl_args.
        check(unsafe { libc::ioctl(fs.as_raw_fd(), request, &raw mut args) }.into()).map(drop)
    };
    enable(ENABLE_SIMPLE).or_else(|_| enable(ENABLE))
}

#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

/// Limits what the subvolume may hold, in bytes.
pub(crate) fn quota_limit(subvolume: &impl AsRawFd, bytes: u64) -> io::Result<()> {
    const LIMIT_REFERENCED: u64 = 1;
    // Group 0 means: the group of this subvolume.
    let args = QgroupLimit {
        qgroup: 0,
        flags: LIMIT_REFERENCED,
        max_referenced: bytes,
        max_exclusive: 0,
        reserved: [0; 2],
    };
    let request = ioc(2, 43, size_of::<QgroupLimit>());
    // SAFETY: `args` has the layout of struct btrfs_ioctl_qgroup_limit_args.
    check(unsafe { libc::ioctl(subvolume.as_raw_fd(), request, &raw const args) }.into()).map(drop)
}

/// Bytes that the subvolume holds, by its quota group. Exact after a sync.
pub(crate) fn quota_used(subvolume: &impl AsRawFd) -> io::Result<u64> {
    const QUOTA_TREE: u64 = 8;
    const QGROUP_INFO: u32 = 242;
    const FIRST_FREE_OBJECTID: u64 = 256;
    #[repr(C)]
    struct InoLookup {
        tree: u64,
        object: u64,
        name: [u8; 4080],
    }
    #[repr(C)]
    struct Search {
        tree: u64,
        objects: [u64; 2],
        offsets: [u64; 2],
        transactions: [u64; 2],
        types: [u32; 2],
        items: u32,
        unused: [u32; 9],
        found: [u8; 3992],
    }
    let mut lookup = InoLookup { tree: 0, object: FIRST_FREE_OBJECTID, name: [0; 4080] };
    let request = ioc(3, 18, size_of::<InoLookup>());
    // SAFETY: `lookup` has the layout of struct btrfs_ioctl_ino_lookup_args.
    check(unsafe { libc::ioctl(subvolume.as_raw_fd(), request, &raw mut lookup) }.into())?;
    let mut search = Search {
        tree: QUOTA_TREE,
        objects: [0, 0],
        offsets: [lookup.tree, lookup.tree],
        transactions: [0, u64::MAX],
        types: [QGROUP_INFO, QGROUP_INFO],
        items: 1,
        unused: [0; 9],
        found: [0; 3992],
    };
    let request = ioc(3, 17, size_of::<Search>());
    // SAFETY: `search` has the layout of struct btrfs_ioctl_search_args.
    check(unsafe { libc::ioctl(subvolume.as_raw_fd(), request, &raw mut search) }.into())?;
    if search.items == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENODATA));
    }
    // A header of 32 bytes, then generation and referenced bytes, little endian.
    let mut referenced = [0; 8];
    referenced.copy_from_slice(&search.found[40..48]);
    Ok(u64::from_le_bytes(referenced))
}

/// Type of the file system that `path` lies on (`statfs(2)`, `f_type`), and its
/// total and free bytes.
pub(crate) fn statfs(path: &std::path::Path) -> io::Result<(i64, u64, u64)> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: an all-zero statfs is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: live C string and a struct to fill.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut found) }.into())?;
    let block = u64::try_from(found.f_bsize).unwrap_or(0);
    Ok((found.f_type, found.f_blocks * block, found.f_bavail * block))
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

/// Takes the lock of the directory `path`, which stays locked until the
/// descriptor closes. `WouldBlock`: somebody else has it.
pub(crate) fn lock_dir(path: &std::path::Path) -> io::Result<OwnedFd> {
    let dir = std::fs::File::open(path)?;
    // SAFETY: plain integers.
    check(unsafe { libc::flock(dir.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }.into())?;
    Ok(dir.into())
}

/// Takes the lock file `path`, which stays locked until the descriptor closes.
pub(crate) fn lock(path: &std::path::Path) -> io::Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    // SAFETY: plain integers.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }.into())?;
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
