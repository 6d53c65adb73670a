//! System calls as safe functions: each returns the kernel's answer as an
//! `io::Result`. No decision is taken here.
//!
//! Longer than most modules because every call has its own block and reason.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

pub(crate) const ATTR_RDONLY: u64 = 0x1;
pub(crate) const ATTR_NOSUID: u64 = 0x2;
pub(crate) const ATTR_NODEV: u64 = 0x4;
pub(crate) const ATTR_NOEXEC: u64 = 0x8;
/// Of what holds no program and no device.
pub(crate) const ATTR_INERT: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
const ATTR_IDMAP: u64 = 0x0010_0000;

const OPEN_TREE_CLONE: c_uint = 1;
const OPEN_TREE_CLOEXEC: c_uint = libc::O_CLOEXEC as c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_SET_FD: c_uint = 5;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// The first descriptor that the agent finds (`agent-protocol`: its listener, the image's
/// `/run`, the directory for output, the listener for control, the kernel's count).
const FIRST_KEPT: RawFd = 3;
/// How many they are.
pub(crate) const KEPT: usize = 5;
/// Descriptor that holds the agent's binary until the exec.
const AGENT: RawFd = 8;

pub(crate) fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &str) -> io::Result<CString> {
    CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into()).map(drop)
}

fn open(path: &str, flags: c_int) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: `path` is a live C string.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) }.into())
}

pub(crate) fn open_path(path: &str) -> io::Result<OwnedFd> {
    open(path, libc::O_RDONLY)
}

pub(crate) fn open_exec(path: &str) -> io::Result<OwnedFd> {
    open(path, libc::O_PATH)
}

/// Type and numbers of a device node; `None` where it is something else.
pub(crate) fn device_numbers(path: &str) -> io::Result<Option<(u32, u32)>> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let metadata = std::fs::symlink_metadata(path)?;
    Ok(metadata
        .file_type()
        .is_char_device()
        .then(|| (libc::major(metadata.rdev()), libc::minor(metadata.rdev()))))
}

/// A listening Unix socket at `dir`/agent.sock. It is bound through the
/// directory's descriptor, so the length of `dir` does not matter.
pub(crate) fn listen_in(dir: &str, name: &str) -> io::Result<OwnedFd> {
    let dir = open(dir, libc::O_PATH | libc::O_DIRECTORY)?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    // SAFETY: plain integers.
    let socket = owned(
        unsafe {
            libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        }
        .into(),
    )?;
    // SAFETY: an all-zero sockaddr_un is valid.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as c_char;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` outlives the call and `length` is its size.
    check(unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length) }.into())?;
    // SAFETY: plain integers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 128) }.into())?;
    Ok(socket)
}

pub(crate) fn setns_net(ns: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }.into()).map(drop)
}

pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    Ok((owned(fds[0].into())?, owned(fds[1].into())?))
}

pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    Ok((owned(fds[0].into())?, owned(fds[1].into())?))
}

/// Takes `id` as effective uid, under which a user namespace that is made now
/// has its accounts (`user_namespaces(7)`: the creator owns it), and keeps every
/// capability: the real and the saved uid stay root's.
pub(crate) fn become_creator(id: u32) -> io::Result<()> {
    // SAFETY: plain integers; -1 leaves an id as it is.
    unsafe {
        check(libc::setresuid(u32::MAX, id, u32::MAX).into())?;
        raise_capabilities()?;
        // The change has taken it away, and with it the way to the child's namespace.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0).into()).map(drop)
    }
}

/// The host's root again, after [`become_creator`].
pub(crate) fn restore_creator() -> io::Result<()> {
    // SAFETY: plain integers.
    unsafe { check(libc::setresuid(u32::MAX, 0, u32::MAX).into())? };
    // A change of the effective uid has taken this away (`prctl(2)`).
    die_with_parent()
}

/// Clones into new user, mount, pid, ipc and uts namespaces, born in the
/// cgroup v2 directory `cgroup` if there is one. `None` in the child.
pub(crate) fn clone_into_namespaces(cgroup: Option<&OwnedFd>) -> io::Result<Option<i32>> {
    // SAFETY: an all-zero clone_args is valid.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = (libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork of a process with one thread, so
    // no lock can be held by a thread that does not exist in the child.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid != 0))
}

pub(crate) fn send_fd(channel: &OwnedFd, fd: RawFd) -> io::Result<()> {
    let mut byte = [1_u8];
    let mut control = [0_u8; 64];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE is arithmetic; the header that CMSG_FIRSTHDR returns
    // lies in `control`, which has room for one descriptor (64 > 24 bytes).
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as c_uint) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as c_uint) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<RawFd>(), fd);
    }
    // SAFETY: everything that `message` points to is alive.
    check(unsafe { libc::sendmsg(channel.as_raw_fd(), &raw const message, 0) } as i64).map(drop)
}

/// Tells the other side that it may go on.
pub(crate) fn send_word(channel: &OwnedFd) -> io::Result<()> {
    write_all(channel, &[1])
}

/// Waits for [`send_word`].
///
/// # Errors
/// `EPIPE` when the other side has gone instead.
pub(crate) fn receive_word(channel: &OwnedFd) -> io::Result<()> {
    let mut word = [0];
    match io::Read::read(&mut std::fs::File::from(channel.try_clone()?), &mut word)? {
        1 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPIPE)),
    }
}

pub(crate) fn receive_fd(channel: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0_u8];
    let mut control = [0_u8; 64];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len();
    // SAFETY: everything that `message` points to is alive and writable.
    let received = check(unsafe {
        libc::recvmsg(channel.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC)
    } as i64)?;
    // SAFETY: the kernel filled `control` up to msg_controllen.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if received != 1 || header.is_null() {
        return Err(io::Error::from_raw_os_error(libc::EPIPE));
    }
    // SAFETY: one SCM_RIGHTS header carries one descriptor, as sent above.
    owned(i64::from(unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<RawFd>()) }))
}

pub(crate) fn read_to_end(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut report = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(fd.try_clone()?), &mut report)?;
    Ok(report)
}

pub(crate) fn write_all(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut std::fs::File::from(fd.try_clone()?), bytes)
}

/// Field 22 of `/proc/PID/stat`: with the pid it names a process for good.
pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(crate) fn kill_and_reap(pid: i32) {
    // SAFETY: plain integers; `pid` is our own unreaped child.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, ptr::null_mut(), 0);
    }
}

pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: ends the process without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

pub(crate) fn open_tree_clone(path: &str) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: `path` is a live C string.
    owned(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    })
}

pub(crate) fn clone_tree_at(dir: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a live C string.
    owned(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            dir.as_raw_fd(),
            name.as_ptr(),
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as c_uint,
        )
    })
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn mount_setattr(tree: &OwnedFd, attr: &MountAttr) -> io::Result<()> {
    // SAFETY: `attr` has the layout of struct mount_attr (version 0).
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

pub(crate) fn set_idmap(tree: &OwnedFd, userns: &OwnedFd) -> io::Result<()> {
    let userns_fd = userns.as_raw_fd() as u64;
    mount_setattr(tree, &MountAttr { set: ATTR_IDMAP, clear: 0, propagation: 0, userns_fd })
}

pub(crate) fn set_attributes(tree: &OwnedFd, set: u64) -> io::Result<()> {
    mount_setattr(tree, &MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 })
}

pub(crate) fn fsopen(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a live C string.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })
}

fn fsconfig(
    fs: &OwnedFd,
    command: c_uint,
    key: *const c_char,
    value: *const c_void,
    aux: c_int,
) -> io::Result<()> {
    // SAFETY: the callers below pass live C strings or null.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, aux) }).map(drop)
}

pub(crate) fn fsconfig_string(fs: &OwnedFd, key: &CStr, value: &CStr) -> io::Result<()> {
    fsconfig(fs, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr().cast(), 0)
}

pub(crate) fn fsconfig_fd(fs: &OwnedFd, key: &CStr, fd: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(fs, FSCONFIG_SET_FD, key.as_ptr(), ptr::null(), fd.as_raw_fd())
}

/// Names a directory by the path that stands for its descriptor.
pub(crate) fn fsconfig_fd_path(fs: &OwnedFd, key: &CStr, fd: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig_string(fs, key, &c_path(&format!("/proc/self/fd/{}", fd.as_raw_fd()))?)
}

pub(crate) fn fsconfig_create(fs: &OwnedFd) -> io::Result<()> {
    fsconfig(fs, FSCONFIG_CMD_CREATE, ptr::null(), ptr::null(), 0)
}

/// What the kernel wrote into the file-system context about a failure.
pub(crate) fn fs_log(fs: &OwnedFd) -> String {
    let mut log = Vec::new();
    let mut line = [0_u8; 256];
    loop {
        // SAFETY: `line` has room for its length.
        let read = unsafe { libc::read(fs.as_raw_fd(), line.as_mut_ptr().cast(), line.len()) };
        match usize::try_from(read) {
            Ok(read @ 1..) => log.extend_from_slice(&line[..read]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&log).trim().replace('\n', "; ")
}

pub(crate) fn fsmount(fs: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as c_uint) })
}

pub(crate) fn attach(mount: &OwnedFd, place: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are the empty string: the descriptors say it all.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            place.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// [`attach`] at an entry of a directory; `false`: there is none.
pub(crate) fn attach_at(mount: &OwnedFd, dir: &OwnedFd, name: &CStr) -> io::Result<bool> {
    // SAFETY: live C strings.
    let attached = check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    });
    match attached {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => other.map(|_| true),
    }
}

pub(crate) fn attach_at_path(mount: &OwnedFd, path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is a live C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

pub(crate) fn make_private() -> io::Result<()> {
    // SAFETY: live C string and nulls.
    check(
        unsafe {
            libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_PRIVATE, ptr::null())
        }
        .into(),
    )
    .map(drop)
}

pub(crate) fn fchdir(dir: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::fchdir(dir.as_raw_fd()) }.into()).map(drop)
}

/// Makes the working directory the root and lets go of the old one
/// (`pivot_root(2)`, "pivot_root(".", ".")").
pub(crate) fn pivot_into_cwd() -> io::Result<()> {
    let dot = c".".as_ptr();
    // SAFETY: live C strings.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, dot, dot))?;
        check(libc::umount2(dot, libc::MNT_DETACH).into())?;
        check(libc::chdir(c"/".as_ptr()).into())?;
    }
    Ok(())
}

fn openat2(dir: &OwnedFd, name: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero open_how is valid.
    let mut how: libc::open_how = unsafe { zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    // SAFETY: live C string, and the size is that of `how`.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut how,
            size_of::<libc::open_how>(),
        )
    })
}

pub(crate) fn open_at(dir: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    openat2(dir, name, libc::O_PATH)
}

pub(crate) fn open_dir_strict(dir: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    openat2(dir, name, libc::O_PATH | libc::O_DIRECTORY)
}

/// Whether the file system of a descriptor takes no writes.
pub(crate) fn is_read_only(fd: &OwnedFd) -> io::Result<bool> {
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the buffer is a `struct statvfs`, of which all zeros are one.
    let (result, found) =
        unsafe { (libc::fstatvfs(fd.as_raw_fd(), found.as_mut_ptr()), found.assume_init()) };
    check(result.into())?;
    Ok(found.f_flag & libc::ST_RDONLY != 0)
}

/// A directory that was opened by path alone, so that it can be read.
pub(crate) fn open_readable_dir(dir: &OwnedFd) -> io::Result<OwnedFd> {
    openat2(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Names in a directory that was opened by path alone, without `.` and `..`.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    use std::os::fd::IntoRawFd as _;
    let readable = open_readable_dir(dir)?;
    let mut names = Vec::new();
    // SAFETY: the stream takes the descriptor over; an entry lives until the next
    // call, and its name, which ends with a NUL, is copied before that.
    unsafe {
        let stream = libc::fdopendir(readable.into_raw_fd());
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr());
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        libc::closedir(stream);
    }
    Ok(names)
}

/// Type and mode of a directory's entry; of a link, its own.
pub(crate) fn mode_at(dir: &OwnedFd, name: &CStr) -> io::Result<libc::mode_t> {
    let mut found = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: live C string; the buffer is a `struct stat`, of which all zeros are one.
    let (result, found) = unsafe {
        (libc::fstatat(dir.as_raw_fd(), name.as_ptr(), found.as_mut_ptr(), flags), found.assume_init())
    };
    check(result.into())?;
    Ok(found.st_mode)
}

/// The first bytes of a small file.
pub(crate) fn read_at(dir: &OwnedFd, name: &CStr) -> io::Result<String> {
    let file = std::fs::File::from(openat2(dir, name, libc::O_RDONLY)?);
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, 64), &mut text)?;
    Ok(text)
}

pub(crate) fn write_at(dir: &OwnedFd, name: &CStr, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut std::fs::File::from(openat2(dir, name, libc::O_WRONLY)?), bytes)
}

pub(crate) fn unlink_at(dir: &OwnedFd, name: &CStr) -> io::Result<()> {
    // SAFETY: a live C string.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }.into()).map(drop)
}

pub(crate) fn mkdir_at(dir: &OwnedFd, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: live C string.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }.into()).map(drop)
}

/// A new empty file to mount over.
pub(crate) fn create_file_at(dir: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: live C string.
    drop(owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o666) }.into())?);
    open_at(dir, name)
}

pub(crate) fn symlink_at(target: &CStr, dir: &OwnedFd, name: &CStr) -> io::Result<()> {
    // SAFETY: live C strings.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }.into()).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn capset(data: [CapData; 2]) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // SAFETY: version 3 takes two data elements.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

fn capget() -> io::Result<[CapData; 2]> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 fills two data elements.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(data)
}

/// Takes `id` as file-system uid and gid and raises the capabilities that the
/// kernel lowers with that.
pub(crate) fn become_fs_owner(id: u32) -> io::Result<()> {
    // SAFETY: plain integers; setfsuid concerns this thread, the only one.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
    raise_capabilities()
}

/// Makes every permitted capability effective.
fn raise_capabilities() -> io::Result<()> {
    let mut data = capget()?;
    for half in &mut data {
        half.effective = half.permitted;
    }
    capset(data)
}

pub(crate) fn restore_fs_owner() {
    // SAFETY: plain integers.
    unsafe {
        libc::setfsuid(0);
        libc::setfsgid(0);
    }
}

/// Ids 0 of the user namespace, no other group, a session of its own.
pub(crate) fn become_root() -> io::Result<()> {
    // SAFETY: plain integers and an empty list.
    unsafe {
        check(libc::setgroups(0, ptr::null()).into())?;
        check(libc::setresgid(0, 0, 0).into())?;
        check(libc::setresuid(0, 0, 0).into())?;
        check(libc::setsid().into())?;
        // Modes above are meant as written.
        libc::umask(0);
    }
    Ok(())
}

pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into()).map(drop)
}

pub(crate) fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into()).map(drop)
}

pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of one slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Removes every capability outside `kept` from the bounding set.
pub(crate) fn cut_bounding_set(kept: u64) -> io::Result<()> {
    for capability in 0..64_u64 {
        // SAFETY: plain integers.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        if known < 0 {
            // The first number that this kernel does not know ends the list.
            return Ok(());
        }
        if kept >> capability & 1 == 0 {
            // SAFETY: plain integers.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into())?;
        }
    }
    Ok(())
}

/// Loads a compiled filter: `struct sock_filter` after `struct sock_filter`.
pub(crate) fn load_filter(bytes: &[u8]) -> io::Result<()> {
    let count = bytes.len() / size_of::<libc::sock_filter>();
    let length = u16::try_from(count).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
    // SAFETY: `filter` has room for `count` elements, which are plain data.
    unsafe {
        ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            filter.as_mut_ptr().cast::<u8>(),
            count * size_of::<libc::sock_filter>(),
        );
    }
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to `length` instructions.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    let half = |part: u64| {
        let bits = (part & 0xffff_ffff) as u32;
        CapData { effective: bits, permitted: bits, inheritable: 0 }
    };
    capset([half(mask), half(mask >> 32)])
}

/// Standard streams to /dev/null, what is kept at its place from [`FIRST_KEPT`] on, nothing
/// else; and the mask of file modes.
pub(crate) fn prepare_process(kept: [&OwnedFd; KEPT], agent: &OwnedFd) -> io::Result<()> {
    let null = open("/dev/null", libc::O_RDWR)?;
    // Copies out of the way first, so that no dup2 closes what a later needs.
    let high = |fd: BorrowedFd<'_>| -> io::Result<OwnedFd> {
        // SAFETY: plain integers.
        owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) }.into())
    };
    let (null, agent) = (high(null.as_fd())?, high(agent.as_fd())?);
    let kept = kept.into_iter().map(|fd| high(fd.as_fd())).collect::<io::Result<Vec<_>>>()?;
    // SAFETY: plain integers; descriptors above AGENT become close-on-exec.
    unsafe {
        for fd in 0..3 {
            check(libc::dup2(null.as_raw_fd(), fd).into())?;
        }
        for (place, fd) in (FIRST_KEPT..).zip(&kept) {
            check(libc::dup2(fd.as_raw_fd(), place).into())?;
        }
        check(libc::dup3(agent.as_raw_fd(), AGENT, libc::O_CLOEXEC).into())?;
        check(libc::syscall(libc::SYS_close_range, AGENT + 1, c_uint::MAX, 4 /* CLOEXEC */))?;
        libc::umask(0o022);
        check(libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0).into())?;
    }
    Ok(())
}

/// Replaces this process by the agent. Returns only on failure.
pub(crate) fn exec_agent() -> io::Result<std::convert::Infallible> {
    let argv = [c"dormouse-agent".as_ptr(), ptr::null()];
    let env = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), ptr::null()];
    // SAFETY: both arrays end with a null pointer and hold live C strings.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            AGENT,
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Err(io::Error::last_os_error())
}
