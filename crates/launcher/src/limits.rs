//! What a sandbox sees of its limits, where programs look for those of a machine:
//! its own cgroup at `/sys/fs/cgroup`, and files of `/proc` that tell of its memory
//! and processors. All of it is read-only.
//!
//! Where the host has lxcfs those files are its, and tell what is in use as well.
//! Else they are made here, once: the limits in them are right, and what is in use
//! is not in them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};

use crate::child::{directory_of, tmpfs};
use crate::error::{Context as _, Error};
use crate::spec::Spec;
use crate::sys;

const READ_ONLY: u64 = sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC | sys::ATTR_RDONLY;

/// Files of `/proc` that lxcfs has.
const OF_LXCFS: [&CStr; 6] = [c"cpuinfo", c"loadavg", c"meminfo", c"stat", c"swaps", c"uptime"];

/// Covers files of the mounted `/proc`.
pub(crate) fn cover_proc(proc: &OwnedFd, spec: &Spec) -> Result<(), Error> {
    let host = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    let boot_id = format!("{}\n", spec.boot_id);
    let mut texts = vec![(c"sys/kernel/random/boot_id", c"boot_id", boot_id)];
    let of_lxcfs = match &spec.lxcfs {
        // One that has died since it was found is none.
        Some(lxcfs) => {
            OF_LXCFS.iter().map(|name| of_lxcfs(lxcfs, name)).collect::<std::io::Result<Vec<_>>>().ok()
        }
        None => None,
    };
    match of_lxcfs {
        Some(files) => {
            for (name, file) in OF_LXCFS.iter().zip(&files) {
                attach(proc, name, file)?;
            }
        }
        None => {
            texts.push((c"meminfo", c"meminfo", meminfo(&host("meminfo"), spec.memory_bytes)));
            texts.push((c"cpuinfo", c"cpuinfo", cpuinfo(&host("cpuinfo"), spec.vcpus)));
        }
    }
    let files = tmpfs(Some(1 << 20), c"555", 0)?;
    for (_, name, text) in &texts {
        let shown = || format!("make a file for /proc/{}", name.to_string_lossy());
        drop(sys::create_file_at(&files, name).context_with(shown)?);
        sys::write_at(&files, name, text.as_bytes()).context_with(shown)?;
    }
    sys::set_attributes(&files, READ_ONLY).context("make files of limits read-only")?;
    for (place, name, _) in &texts {
        let file = sys::clone_tree_at(&files, name)
            .context_with(|| format!("clone a file for /proc/{}", place.to_string_lossy()))?;
        attach(proc, place, &file)?;
    }
    Ok(())
}

fn of_lxcfs(place: &str, name: &CStr) -> std::io::Result<OwnedFd> {
    let file = sys::open_tree_clone(&format!("{place}/proc/{}", name.to_string_lossy()))?;
    sys::set_attributes(&file, READ_ONLY)?;
    Ok(file)
}

fn attach(proc: &OwnedFd, place: &CStr, file: &OwnedFd) -> Result<(), Error> {
    let shown = || format!("cover /proc/{}", place.to_string_lossy());
    let place = match sys::open_at(proc, place) {
        // A kernel without it, which nobody asks then.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        other => other.context_with(shown)?,
    };
    sys::attach(file, place.as_fd()).context_with(shown)
}

/// Shows the run's own groups below `fs/cgroup` of its `/sys`.
pub(crate) fn show_cgroups(sys_dir: &OwnedFd, spec: &Spec) -> Result<(), Error> {
    let of_controllers = spec.cgroups.iter().filter_map(|path| Some((path, controller(path)?)));
    let unified = spec.cgroup2.iter().map(|path| (path, "fs/cgroup".to_owned()));
    directory_of(sys_dir, "fs/cgroup")?;
    for (path, place) in of_controllers.map(|(path, name)| (path, format!("fs/cgroup/{name}"))).chain(unified)
    {
        let shown = |verb: &str| format!("{verb} {path}");
        let group = sys::open_tree_clone(path).context_with(|| shown("clone"))?;
        sys::set_attributes(&group, READ_ONLY).context_with(|| shown("protect"))?;
        let place = directory_of(sys_dir, &place)?;
        sys::attach(&group, place.as_fd()).context_with(|| shown("show"))?;
    }
    Ok(())
}

/// The controller of a group in a hierarchy of version 1, if it is one that limits.
fn controller(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/sys/fs/cgroup/")?.split('/').next()?;
    ["memory", "pids", "cpu"].contains(&name).then_some(name)
}

/// `/proc/meminfo` of a machine with so much memory (`proc_meminfo(5)`): all of it
/// is free, and there is no swap.
fn meminfo(host: &str, bytes: u64) -> String {
    let total = bytes >> 10;
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let of_host: u64 = value.split_whitespace().next()?.parse().ok()?;
        let shown = match name {
            "MemTotal" | "MemFree" | "MemAvailable" => total.min(of_host.max(1)),
            "Hugepagesize" => of_host,
            _ if name.starts_with("Vmalloc") => of_host,
            _ => 0,
        };
        let unit = if value.ends_with("kB") { " kB" } else { "" };
        // Two words in as many columns as the kernel has them.
        Some(format!("{:<16}{shown:>8}{unit}\n", format!("{name}:")))
    };
    host.lines().filter_map(line).collect()
}

/// `/proc/cpuinfo` with at most so many processors.
fn cpuinfo(host: &str, vcpus: usize) -> String {
    let blocks: Vec<&str> = host.split("\n\n").filter(|block| !block.trim().is_empty()).collect();
    blocks.into_iter().take(vcpus.max(1)).map(|block| format!("{}\n\n", block.trim_end())).collect()
}

/// The parts of a path, each with those before it.
pub(crate) fn prefixes(path: &str) -> impl Iterator<Item = CString> + '_ {
    let ends = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
    // No path of ours has a NUL.
    ends.chain([path.len()]).map(|end| CString::new(&path[..end]).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{controller, cpuinfo, meminfo};

    #[test]
    fn files_tell_the_limits() {
        let host = "MemTotal:       24684100 kB\nMemFree:          858708 kB\nCached:   12345608 kB\n\
                    HugePages_Total:       3\nHugepagesize:       2048 kB\n";
        let shown = meminfo(host, 1 << 30);
        let line = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(line("MemTotal:"), "MemTotal:        1048576 kB");
        assert_eq!(line("MemFree:"), "MemFree:          858708 kB", "no more than the host has");
        assert_eq!(line("Cached:"), "Cached:                0 kB");
        assert_eq!(line("HugePages_Total:"), "HugePages_Total:       0");
        assert_eq!(line("Hugepagesize:"), "Hugepagesize:       2048 kB");
        let host = "processor\t: 0\nflags\t: a\n\nprocessor\t: 1\nflags\t: a\n\n";
        assert_eq!(cpuinfo(host, 1), "processor\t: 0\nflags\t: a\n\n");
        assert_eq!(cpuinfo(host, 8), host);
        assert_eq!(controller("/sys/fs/cgroup/memory/dormouse-0/run"), Some("memory"));
        assert_eq!(controller("/sys/fs/cgroup/freezer/dormouse-0/run"), None);
    }
}
