//! What a sandbox sees of its limits, where programs look for those of a machine:
//! its own cgroup at `/sys/fs/cgroup`, and files of `/proc` that tell of its memory
//! and processors. All of it is read-only.
//!
//! Where the host has lxcfs those files are its, and tell what is in use as well.
//! Else the server has made them, once: the limits in them are right, and what is
//! in use is not in them.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::child::directory_of;
use crate::error::{Context as _, Error};
use crate::spec::Spec;
use crate::sys;

const READ_ONLY: u64 = sys::ATTR_INERT | sys::ATTR_RDONLY;

/// Files of `/proc` that lxcfs has.
const OF_LXCFS: [&CStr; 6] = [c"cpuinfo", c"loadavg", c"meminfo", c"stat", c"swaps", c"uptime"];

/// Files that the server has made once, by where each is seen.
fn of_the_server(spec: &Spec) -> impl Iterator<Item = (&'static CStr, &String)> {
    [(c"meminfo", &spec.meminfo), (c"cpuinfo", &spec.cpuinfo)]
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?)))
}

/// Makes the files in `dir`.
pub(crate) fn make_files(dir: &OwnedFd, spec: &Spec) -> Result<(), Error> {
    let make = |name: &CStr, text: &str| {
        let shown = || format!("make a file for /proc/{}", name.to_string_lossy());
        drop(sys::create_file_at(dir, name).context_with(shown)?);
        sys::write_at(dir, name, text.as_bytes()).context_with(shown)
    };
    make(c"boot_id", &format!("{}\n", spec.boot_id))?;
    for (name, path) in of_the_server(spec) {
        make(name, &std::fs::read_to_string(path).context_with(|| format!("read {path}"))?)?;
    }
    Ok(())
}

/// Covers files of the mounted `/proc`, with those in `files` or lxcfs'.
pub(crate) fn cover(proc: &OwnedFd, files: &OwnedFd, spec: &Spec) -> Result<(), Error> {
    let put = |place: &CStr, file: &OwnedFd| {
        // A kernel without it has nobody who asks.
        let put = sys::attach_at(file, proc, place);
        put.map(drop).context_with(|| format!("cover /proc/{}", place.to_string_lossy()))
    };
    let own = |name: &CStr| {
        let file = sys::clone_tree_at(files, name);
        file.context_with(|| format!("clone a file for /proc/{}", name.to_string_lossy()))
    };
    put(c"sys/kernel/random/boot_id", &own(c"boot_id")?)?;
    // One that has died since it was found is none.
    let of_lxcfs = spec.lxcfs.as_ref().and_then(|lxcfs| {
        OF_LXCFS.iter().map(|name| of_lxcfs(lxcfs, name)).collect::<std::io::Result<Vec<_>>>().ok()
    });
    match of_lxcfs {
        Some(files) => OF_LXCFS.iter().zip(&files).try_for_each(|(name, file)| put(name, file)),
        None => of_the_server(spec).try_for_each(|(name, _)| put(name, &own(name)?)),
    }
}

fn of_lxcfs(place: &str, name: &CStr) -> std::io::Result<OwnedFd> {
    let file = sys::open_tree_clone(&format!("{place}/proc/{}", name.to_string_lossy()))?;
    sys::set_attributes(&file, READ_ONLY)?;
    Ok(file)
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

/// The controller of a group in a hierarchy of version 1, if it is one that programs
/// size themselves by.
fn controller(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/sys/fs/cgroup/")?.split('/').next()?;
    ["memory", "cpu", "cpuset", "cpuacct"].contains(&name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::controller;

    #[test]
    fn only_what_limits_is_shown() {
        assert_eq!(controller("/sys/fs/cgroup/memory/dormouse-0/run"), Some("memory"));
        assert_eq!(controller("/sys/fs/cgroup/freezer/dormouse-0/run"), None);
    }
}
