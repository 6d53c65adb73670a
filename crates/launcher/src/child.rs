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

/// Files of /proc that tell about the host: covered by /dev/null.
const MASKED_FILES: [&CStr; 12] = [
    c"kcore",
    c"keys",
    c"key-users",
    c"kmsg",
    c"kallsyms",
    c"timer_list",
    c"timer_stats",
    c"sched_debug",
    c"latency_stats",
    c"interrupts",
    c"iomem",
    c"ioports",
];

/// Directories of /proc that tell about the host: covered by an empty one.
const MASKED_DIRS: [&CStr; 3] = [c"acpi", c"scsi", c"asound"];

/// Parts of /proc through which the kernel is told things: read-only.
const READ_ONLY: [&CStr; 5] = [c"bus", c"fs", c"irq", c"sys", c"sysrq-trigger"];

/// Capabilities that `sudo`, `useradd` and `apt-get` need, and no more
/// (`capabilities(7)` numbers): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
/// SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP.
const KEPT_CAPABILITIES: [u32; 11] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31];

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
    listener: &OwnedFd,
    filter: &[u8],
) -> ! {
    let Err(error) = enter(spec, channel, agent, listener, filter);
    // Nobody else to tell: the launcher reads this pipe, then reaps us.
    let _ = sys::write_all(&error_pipe, error.to_string().as_bytes());
    sys::exit_now(70)
}

fn enter(
    spec: &Spec,
    channel: &OwnedFd,
    agent: &OwnedFd,
    listener: &OwnedFd,
    filter: &[u8],
) -> Result<std::convert::Infallible, Error> {
    let root = sys::receive_fd(channel).context("receive the root file system")?;
    sys::become_root().context("become root of the user namespace")?;
    sys::unshare_cgroup().context("unshare cgroup namespace")?;
    sys::set_hostname(&spec.hostname).context("set host name")?;
    sys::make_private().context("make mounts private")?;
    // /tmp is only a place to hang the new root until the pivot; every host
    // has it and every uid may walk to it.
    sys::attach_at_path(&root, c"/tmp").context("attach the root file system")?;
    sys::fchdir(&root).context("enter the root file system")?;

    let dev = mount_dev(&root, spec)?;
    mount_proc(&root, &dev)?;
    let sysfs = tmpfs(c"0", c"555", sys::ATTR_RDONLY)?;
    sys::attach(&sysfs, directory(&root, c"sys")?.as_fd()).context("mount /sys")?;

    sys::pivot_into_cwd().context("pivot_root")?;
    limit_privileges(filter)?;
    sys::prepare_descriptors(listener, agent).context("arrange descriptors")?;
    sys::exec_agent().context("exec the agent")
}

/// The real directory `name` in the image's root, made if it is missing.
/// A symbolic link there is refused, never followed.
fn directory(root: &OwnedFd, name: &CStr) -> Result<OwnedFd, Error> {
    let shown = || format!("the image's /{} is not a plain directory", name.to_string_lossy());
    match sys::open_dir_strict(root, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            sys::mkdir_at(root, name, 0o755)
                .context_with(|| format!("make /{} in the image", name.to_string_lossy()))?;
            sys::open_dir_strict(root, name).context_with(shown)
        }
        other => other.context_with(shown),
    }
}

fn tmpfs(size: &CStr, mode: &CStr, attributes: u64) -> Result<OwnedFd, Error> {
    let fs = sys::fsopen(c"tmpfs").context("fsopen tmpfs")?;
    sys::fsconfig_string(&fs, c"mode", mode).context("tmpfs mode")?;
    if size != c"0" {
        sys::fsconfig_string(&fs, c"size", size).context("tmpfs size")?;
    }
    sys::fsconfig_create(&fs).context("create tmpfs")?;
    sys::fsmount(&fs, sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC | attributes)
        .context("fsmount tmpfs")
}

fn mount_dev(root: &OwnedFd, spec: &Spec) -> Result<OwnedFd, Error> {
    let dev = {
        let fs = sys::fsopen(c"tmpfs").context("fsopen tmpfs for /dev")?;
        sys::fsconfig_string(&fs, c"mode", c"755").context("mode of /dev")?;
        sys::fsconfig_string(&fs, c"size", c"64k").context("size of /dev")?;
        sys::fsconfig_create(&fs).context("create /dev")?;
        sys::fsmount(&fs, sys::ATTR_NOSUID | sys::ATTR_NOEXEC).context("fsmount /dev")?
    };
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
    for (key, value) in [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")] {
        sys::fsconfig_string(&pts, key, value).context("devpts option")?;
    }
    sys::fsconfig_create(&pts).context("create devpts")?;
    let pts = sys::fsmount(&pts, sys::ATTR_NOSUID | sys::ATTR_NOEXEC).context("fsmount devpts")?;
    sys::attach(&pts, sys::open_dir_strict(&dev, c"pts").context("open /dev/pts")?.as_fd())
        .context("mount /dev/pts")?;
    sys::mkdir_at(&dev, c"shm", 0o1777).context("make /dev/shm")?;
    let size = std::ffi::CString::new(spec.shm_bytes.to_string()).unwrap_or_default();
    let shm = tmpfs(&size, c"1777", 0)?;
    sys::attach(&shm, sys::open_dir_strict(&dev, c"shm").context("open /dev/shm")?.as_fd())
        .context("mount /dev/shm")?;
    Ok(dev)
}

fn mount_proc(root: &OwnedFd, dev: &OwnedFd) -> Result<(), Error> {
    let attributes = sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    let fs = sys::fsopen(c"proc").context("fsopen proc")?;
    sys::fsconfig_create(&fs).context("create proc (is the host's own /proc partly covered?)")?;
    let proc = sys::fsmount(&fs, attributes).context("fsmount proc")?;
    sys::attach(&proc, directory(root, c"proc")?.as_fd()).context("mount /proc")?;

    for name in READ_ONLY {
        let shown = || format!("make /proc/{} read-only", name.to_string_lossy());
        let Some(place) = existing(&proc, name).context_with(shown)? else { continue };
        let copy = sys::clone_tree_at(&proc, name).context_with(shown)?;
        sys::set_attributes(&copy, attributes | sys::ATTR_RDONLY).context_with(shown)?;
        sys::attach(&copy, place.as_fd()).context_with(shown)?;
    }
    for name in MASKED_FILES {
        let shown = || format!("mask /proc/{}", name.to_string_lossy());
        let Some(place) = existing(&proc, name).context_with(shown)? else { continue };
        // Our own fresh /dev/null, which nothing in the image could replace.
        let null = sys::clone_tree_at(dev, c"null").context_with(shown)?;
        sys::attach(&null, place.as_fd()).context_with(shown)?;
    }
    for name in MASKED_DIRS {
        let shown = || format!("mask /proc/{}", name.to_string_lossy());
        let Some(place) = existing(&proc, name).context_with(shown)? else { continue };
        sys::attach(&tmpfs(c"0", c"555", sys::ATTR_RDONLY)?, place.as_fd()).context_with(shown)?;
    }
    Ok(())
}

fn existing(dir: &OwnedFd, name: &CStr) -> std::io::Result<Option<OwnedFd>> {
    match sys::open_at(dir, name) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn limit_privileges(filter: &[u8]) -> Result<(), Error> {
    let kept = KEPT_CAPABILITIES.iter().fold(0_u64, |mask, number| mask | 1 << number);
    sys::cut_bounding_set(kept).context("cut the bounding set")?;
    sys::load_filter(filter).context("load the seccomp filter")?;
    sys::set_capabilities(kept).context("reduce capabilities")
}
