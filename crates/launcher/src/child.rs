//! The child's half: everything that happens inside the new namespaces, from
//! the root file system's arrival to the exec of the agent.
//!
//! Order matters. Mounts come first, while this process still has every
//! capability over its own user namespace; a fresh tmpfs covers `/dev` before
//! anything below it is touched; the bounding set is cut, the filter loaded
//! (without `no_new_privs`, since `sudo` must work inside, which needs
//! `CAP_SYS_ADMIN` over the namespace for a moment more), and last the
//! remaining sets are reduced.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::error::{Context as _, Error};
use crate::spec::Spec;
use crate::sys;

/// Character devices that a sandbox sees, with their numbers.
const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// Capabilities that `sudo`, `useradd` and `apt-get` need, and no more
/// (`capabilities(7)` numbers): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
/// SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP.
const KEPT_CAPABILITIES: [u32; 11] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31];

/// What the agent gets from the host.
pub(crate) struct Inherited {
    /// Where it is called.
    pub(crate) listener: OwnedFd,
    /// Where it is told the end of the run.
    pub(crate) control: OwnedFd,
    /// Directory for logs of commands.
    pub(crate) output: OwnedFd,
    /// What the kernel killed for lack of memory.
    pub(crate) memory_events: OwnedFd,
}

/// Directories of a host's `/sys` that programs look into (`lscpu`, `nproc`, the virtual
/// machines of languages, browsers): shown as they are, read-only.
const SHOWN_OF_SYS: [&CStr; 3] =
    [c"devices/system/cpu", c"devices/system/node", c"kernel/mm/transparent_hugepage"];

/// Directories of `/sys` in which there is nothing in a sandbox: it has no block device and
/// no bus.
const EMPTY_IN_SYS: [&CStr; 13] = [
    c"block",
    c"bus",
    c"bus/pci",
    c"bus/pci/devices",
    c"bus/usb",
    c"bus/usb/devices",
    c"class",
    c"class/block",
    c"class/net",
    c"dev",
    c"dev/block",
    c"dev/char",
    c"fs",
];

/// Refuses a host whose /dev does not hold the real devices.
pub(crate) fn check_host_devices() -> Result<(), Error> {
    for (name, major, minor) in DEVICES {
        let name = name.to_string_lossy();
        let found = sys::device_numbers(&format!("/dev/{name}"))
            .context_with(|| format!("look at the host's /dev/{name}"))?;
        if found != Some((major, minor)) {
            return Err(Error::reported(format!("the host's /dev/{name} is not device {major}:{minor}")));
        }
    }
    Ok(())
}

/// Runs the child; returns only by exec or exit.
pub(crate) fn run(
    spec: &Spec,
    channel: &OwnedFd,
    error_pipe: OwnedFd,
    agent: &OwnedFd,
    inherited: &Inherited,
    filter: &[u8],
) -> ! {
    let Err(error) = enter(spec, channel, agent, inherited, filter);
    // Nobody else to tell: the launcher reads this pipe, then reaps us.
    let _ = sys::write_all(&error_pipe, error.to_report().as_bytes());
    sys::exit_now(70)
}

fn enter(
    spec: &Spec,
    channel: &OwnedFd,
    agent: &OwnedFd,
    inherited: &Inherited,
    filter: &[u8],
) -> Result<std::convert::Infallible, Error> {
    sys::receive_word(channel).context("wait for ids and cgroups")?;
    sys::become_root().context("become root of the user namespace")?;
    sys::unshare_cgroup().context("unshare cgroup namespace")?;
    sys::set_hostname(&spec.hostname).context("set host name")?;
    sys::make_private().context("make mounts private")?;
    // What every root has is made while the host makes this one. /tmp is only a place
    // to hang things until the pivot; every host has it and every uid may walk to it.
    let stage = tmpfs(Some(64 << 10), c"755", 0)?;
    sys::attach_at_path(&stage, c"/tmp").context("attach a place to work in")?;
    let ready = [
        (c"dev", mount_dev(&stage, spec)?),
        (c"proc", crate::proc::mount(&stage, spec)?),
        (c"sys", mount_sys(&stage, spec)?),
    ];

    let root = sys::receive_fd(channel).context("receive the root file system")?;
    let drives = spec.drives.iter().map(|_| sys::receive_fd(channel)).collect::<std::io::Result<Vec<_>>>();
    let drives = drives.context("receive the drives")?;
    sys::attach(&root, directory(&stage, c"root")?.as_fd()).context("attach the root file system")?;
    sys::fchdir(&root).context("enter the root file system")?;
    for (name, mount) in &ready {
        let moved = sys::attach(mount, directory(&root, name)?.as_fd());
        moved.context_with(|| format!("move /{} to its place", name.to_string_lossy()))?;
    }
    let image_run = mount_run(&root, spec)?;
    for (drive, mount) in spec.drives.iter().zip(&drives) {
        sys::attach(mount, place_of(&root, &drive.place)?.as_fd())
            .context_with(|| format!("mount a drive at {}", drive.place))?;
    }

    sys::pivot_into_cwd().context("pivot_root")?;
    limit_privileges(filter)?;
    let Inherited { listener, control, output, memory_events } = inherited;
    let kept = [listener, &image_run, output, control, memory_events];
    sys::prepare_process(kept, agent).context("arrange descriptors")?;
    sys::exec_agent().context("exec the agent")
}

/// The directory at an absolute path, made where it is missing. No part of it is followed
/// out of what the sandbox has there: a symbolic link or a file in its way is refused.
fn place_of(root: &OwnedFd, path: &str) -> Result<OwnedFd, Error> {
    let mut dir = root.try_clone().context("copy a descriptor")?;
    for part in path.split('/').skip(1) {
        let name = std::ffi::CString::new(part).map_err(|_| Error::place(format!("{path}: it has a NUL")))?;
        match sys::mkdir_at(&dir, &name, 0o755) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(Error::place(format!("{path}: make {part}: {error}")));
            }
            _ => {}
        }
        dir = sys::open_dir_strict(&dir, &name)
            .map_err(|_| Error::place(format!("{path}: {part} is a symbolic link or no directory")))?;
    }
    Ok(dir)
}

/// A fresh `/run`, as on every Linux. Returns the image's own directory, whose
/// subdirectories the agent makes anew in the fresh one.
fn mount_run(root: &OwnedFd, spec: &Spec) -> Result<OwnedFd, Error> {
    let below = directory(root, c"run")?;
    let image_run = sys::open_readable_dir(&below).context("open the image's /run")?;
    let fs = tmpfs_of(Some(spec.run_bytes), c"755", sys::ATTR_NOSUID | sys::ATTR_NODEV)?;
    sys::attach(&fs, below.as_fd()).context("mount /run")?;
    Ok(image_run)
}

/// The real directory `name` in the sandbox's root, made if it is missing. A
/// file or a symbolic link of the image there gives way, and is never followed:
/// what is mounted would hide it anyway.
pub(crate) fn directory(root: &OwnedFd, name: &CStr) -> Result<OwnedFd, Error> {
    let shown = |what: &str| format!("{what} /{}", name.to_string_lossy());
    match sys::open_dir_strict(root, name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
            sys::unlink_at(root, name).context_with(|| shown("remove what is no directory at"))?;
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other.context_with(|| shown("open")),
    }
    sys::mkdir_at(root, name, 0o755).context_with(|| shown("make"))?;
    sys::open_dir_strict(root, name).context_with(|| shown("open"))
}

/// A number as an option of a mount.
pub(crate) fn number(value: u64) -> std::ffi::CString {
    // Digits have no NUL.
    std::ffi::CString::new(value.to_string()).unwrap_or_default()
}

pub(crate) fn tmpfs(size: Option<u64>, mode: &CStr, attributes: u64) -> Result<OwnedFd, Error> {
    tmpfs_of(size, mode, sys::ATTR_INERT | attributes)
}

/// Bytes of a tmpfs for which it may hold a file. A file takes the kernel a kilobyte and
/// a half that the size of the tmpfs does not count, and by default there may be one for
/// every other page of the host's memory (`tmpfs(5)`, `nr_inodes`).
const BYTES_A_FILE: u64 = 16 << 10;

/// Files that any tmpfs may hold: as many as one of ours needs.
const FEWEST_FILES: u64 = 512;

/// A tmpfs of `size` bytes, or of the kernel's default size.
fn tmpfs_of(size: Option<u64>, mode: &CStr, attributes: u64) -> Result<OwnedFd, Error> {
    let fs = sys::fsopen(c"tmpfs").context("fsopen tmpfs")?;
    sys::fsconfig_string(&fs, c"mode", mode).context("tmpfs mode")?;
    if let Some(size) = size {
        sys::fsconfig_string(&fs, c"size", &number(size)).context("tmpfs size")?;
        let files = (size / BYTES_A_FILE).max(FEWEST_FILES);
        sys::fsconfig_string(&fs, c"nr_inodes", &number(files)).context("tmpfs files")?;
    }
    sys::fsconfig_create(&fs).context("create tmpfs")?;
    sys::fsmount(&fs, attributes).context("fsmount tmpfs")
}

/// A `/sys` of what concerns a sandbox. A sysfs of its own it cannot have: that belongs to
/// who owns the network namespace.
fn mount_sys(root: &OwnedFd, spec: &Spec) -> Result<OwnedFd, Error> {
    let fs = tmpfs(Some(64 << 10), c"555", 0)?;
    sys::attach(&fs, directory(root, c"sys")?.as_fd()).context("mount /sys")?;
    let shown = |what: &str, name: &CStr| format!("{what} /sys/{}", name.to_string_lossy());
    for name in EMPTY_IN_SYS {
        sys::mkdir_at(&fs, name, 0o755).context_with(|| shown("make", name))?;
    }
    let attributes = sys::ATTR_INERT | sys::ATTR_RDONLY;
    for name in SHOWN_OF_SYS {
        let path = name.to_string_lossy();
        let host = match sys::open_tree_clone(&format!("/sys/{path}")) {
            // A kernel without NUMA, or without huge pages.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other.context_with(|| shown("clone", name))?,
        };
        sys::set_attributes(&host, attributes).context_with(|| shown("protect", name))?;
        let place = directory_of(&fs, &path)?;
        sys::attach(&host, place.as_fd()).context_with(|| shown("mount", name))?;
    }
    crate::limits::show_cgroups(&fs, spec)?;
    sys::set_attributes(&fs, attributes).context("make /sys read-only")?;
    Ok(fs)
}

/// The directory at a path below our own `/sys`, made where it is missing.
pub(crate) fn directory_of(sys_dir: &OwnedFd, path: &str) -> Result<OwnedFd, Error> {
    let mut whole = std::ffi::CString::default();
    let ends = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        // No path of ours has a NUL.
        let part = std::ffi::CString::new(&path[..end]).unwrap_or_default();
        match sys::mkdir_at(sys_dir, &part, 0o755) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(error).context_with(|| format!("make /sys/{}", part.to_string_lossy()));
            }
            _ => whole = part,
        }
    }
    sys::open_dir_strict(sys_dir, &whole).context_with(|| format!("open /sys/{path}"))
}

fn mount_dev(root: &OwnedFd, spec: &Spec) -> Result<OwnedFd, Error> {
    let dev = tmpfs_of(Some(64 << 10), c"755", sys::ATTR_NOSUID | sys::ATTR_NOEXEC)?;
    sys::attach(&dev, directory(root, c"dev")?.as_fd()).context("mount /dev")?;
    for (name, ..) in DEVICES {
        let shown = || format!("/dev/{}", name.to_string_lossy());
        let host = sys::open_tree_clone(&shown()).context_with(shown)?;
        let place = sys::create_file_at(&dev, name).context_with(shown)?;
        sys::attach(&host, place.as_fd()).context_with(shown)?;
    }
    for (link, target) in [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"ptmx", c"pts/ptmx"),
    ] {
        sys::symlink_at(target, &dev, link).context_with(|| format!("link /dev/{link:?}"))?;
    }
    sys::mkdir_at(&dev, c"pts", 0o755).context("make /dev/pts")?;
    let pts = sys::fsopen(c"devpts").context("fsopen devpts")?;
    let terminals = number(spec.account.terminals);
    for (key, value) in
        [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5"), (c"max", terminals.as_c_str())]
    {
        sys::fsconfig_string(&pts, key, value).context("devpts option")?;
    }
    sys::fsconfig_create(&pts).context("create devpts")?;
    let pts = sys::fsmount(&pts, sys::ATTR_NOSUID | sys::ATTR_NOEXEC).context("fsmount devpts")?;
    sys::attach(&pts, sys::open_dir_strict(&dev, c"pts").context("open /dev/pts")?.as_fd())
        .context("mount /dev/pts")?;
    sys::mkdir_at(&dev, c"shm", 0o1777).context("make /dev/shm")?;
    let shm = tmpfs_of(Some(spec.shm_bytes), c"1777", sys::ATTR_NOSUID | sys::ATTR_NODEV)?;
    sys::attach(&shm, sys::open_dir_strict(&dev, c"shm").context("open /dev/shm")?.as_fd())
        .context("mount /dev/shm")?;
    Ok(dev)
}

fn limit_privileges(filter: &[u8]) -> Result<(), Error> {
    let kept = KEPT_CAPABILITIES.iter().fold(0_u64, |mask, number| mask | 1 << number);
    sys::cut_bounding_set(kept).context("cut the bounding set")?;
    sys::load_filter(filter).context("load the seccomp filter")?;
    sys::set_capabilities(kept).context("reduce capabilities")
}
