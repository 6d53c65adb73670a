//! Walks over trees that a sandbox wrote.
//!
//! Such a tree is hostile: its links lead anywhere and it may be deeper than
//! any path is long, any stack is high or any process has descriptors. So
//! nothing here follows a symbolic link, builds a path or recurses: a walk
//! holds one directory (two where it compares), goes down by name and up by
//! `..`. That is safe because a tree is only walked while nobody writes it.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat, unlinkat};
use rustix::io::Errno;

/// Opens the directory `name` below `dir`, never through a link.
pub(super) fn open_dir(dir: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Opens the directory that a path of ours names.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Status of a name itself; `None` where there is nothing.
pub(super) fn status(dir: impl AsFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What kind of thing a status tells of.
pub(super) fn kind(status: &Stat) -> FileType {
    FileType::from_raw_mode(status.st_mode)
}

/// Names in a directory, without itself and its parent.
pub(super) fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Sum of the bytes allocated below `root`; a file with several names counts
/// once.
pub(super) fn size(root: &Path) -> io::Result<u64> {
    let mut here = open_root(root)?;
    let mut sum = 0;
    let mut linked = HashSet::new();
    // For each directory on the way down: those of its own not yet entered.
    let mut pending: Vec<Vec<CString>> = Vec::new();
    loop {
        let mut dirs = Vec::new();
        for name in names(&here)? {
            let Some(found) = status(&here, &name)? else { continue };
            let is_dir = kind(&found) == FileType::Directory;
            if is_dir || found.st_nlink == 1 || linked.insert(found.st_ino) {
                sum += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
            }
            if is_dir {
                dirs.push(name);
            }
        }
        pending.push(dirs);
        loop {
            let Some(dirs) = pending.last_mut() else { return Ok(sum) };
            if let Some(name) = dirs.pop() {
                here = open_dir(&here, &name)?;
                break;
            }
            pending.pop();
            if !pending.is_empty() {
                here = open_dir(&here, c"..")?;
            }
        }
    }
}

/// Removes `name` below `parent` with everything in it. Nothing there is
/// success.
pub(super) fn remove(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    if unlinked(&parent, name)? {
        return Ok(());
    }
    let mut here = open_dir(&parent, name)?;
    let mut way = vec![name.to_owned()];
    while let Some(name) = way.last() {
        match first_full_directory(&here)? {
            Some(child) => {
                here = open_dir(&here, &child)?;
                way.push(child);
            }
            None if way.len() == 1 => {
                unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
                way.pop();
            }
            None => {
                here = open_dir(&here, c"..")?;
                unlinkat(&here, name, AtFlags::REMOVEDIR)?;
                way.pop();
            }
        }
    }
    Ok(())
}

/// Removes what can be removed from `dir` at once, up to a directory that has
/// something in it.
fn first_full_directory(dir: &OwnedFd) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." && !unlinked(dir, name)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Removes a name unless it is a directory with something in it.
fn unlinked(dir: impl AsFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(&dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A chain of directories that no path can name, with a file at its end.
    pub(in crate::storage) fn dig(root: &Path, depth: usize) {
        let mut here = open_root(root).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&here, c"d", Mode::RWXU).unwrap();
            here = open_dir(&here, c"d").unwrap();
        }
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let file = openat(&here, c"end", flags, Mode::RUSR | Mode::WUSR).unwrap();
        rustix::io::write(&file, &[7; 8192]).unwrap();
    }

    /// Whether the chain's file is there.
    pub(in crate::storage) fn reaches(root: &Path, depth: usize) -> bool {
        let mut here = open_root(root).unwrap();
        for _ in 0..depth {
            here = open_dir(&here, c"d").unwrap();
        }
        status(&here, c"end").unwrap().is_some()
    }

    #[test]
    fn deep_trees_are_sized_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        dig(&top, 5000);
        std::fs::write(top.join("a"), [1; 4096]).unwrap();
        std::fs::hard_link(top.join("a"), top.join("b")).unwrap();
        std::os::unix::fs::symlink("/etc", top.join("link")).unwrap();
        let size = size(&top).unwrap();
        assert!(size >= 8192 + 4096, "{size}");
        remove(open_root(dir.path()).unwrap(), c"top").unwrap();
        assert!(!top.exists());
        assert!(Path::new("/etc/passwd").exists());
        remove(open_root(dir.path()).unwrap(), c"top").unwrap();
    }
}
