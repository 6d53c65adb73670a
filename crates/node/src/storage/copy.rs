//! A faithful copy of a tree that a sandbox wrote, for the driver that has no
//! snapshots: every name, link, attribute, hole and mark of the overlay.
//!
//! The tree is hostile data: see [`super::tree`] for how it is walked. Nothing
//! is opened but directories and regular files. Blocks are shared where the
//! file system can; either way it takes as long as there are files.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, ioctl_ficlone, lgetxattr, linkat, llistxattr,
    lsetxattr, mkdirat, mknodat, openat, readlinkat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::tree;

/// Largest extended attribute, and largest list of their names, in bytes
/// (`xattr(7)`).
const XATTR_MAX: usize = 64 << 10;

/// Copies the content and attributes of the directory `from` to the empty
/// directory `to`. `hub` is another empty directory on the same file system,
/// which is left with names that the caller removes.
pub(super) fn copy(from: &Path, to: &Path, hub: &Path) -> io::Result<()> {
    let mut copy = Copy {
        from: tree::open_root(from)?,
        to: tree::open_root(to)?,
        hub: tree::open_root(hub)?,
        linked: HashSet::new(),
    };
    copy.run()
}

/// A copy that stands in one directory of each side.
struct Copy {
    from: OwnedFd,
    to: OwnedFd,
    /// Where files with several names get one that stays in reach.
    hub: OwnedFd,
    linked: HashSet<u64>,
}

impl Copy {
    fn run(&mut self) -> io::Result<()> {
        // For each directory on the way down: those of its own not yet entered.
        let mut pending = vec![self.leaves()?];
        while let Some(dirs) = pending.last_mut() {
            if let Some(name) = dirs.pop() {
                mkdirat(&self.to, &name, Mode::RWXU)?;
                self.from = tree::open_dir(&self.from, &name)?;
                self.to = tree::open_dir(&self.to, &name)?;
                pending.push(self.leaves()?);
                continue;
            }
            pending.pop();
            let found = rustix::fs::fstat(&self.from)?;
            copy_metadata(&self.from, &self.to, &found)?;
            if !pending.is_empty() {
                self.from = tree::open_dir(&self.from, c"..")?;
                self.to = tree::open_dir(&self.to, c"..")?;
            }
        }
        Ok(())
    }

    /// Copies everything here but directories, whose names are returned.
    fn leaves(&mut self) -> io::Result<Vec<CString>> {
        let mut dirs = Vec::new();
        for name in tree::names(&self.from)? {
            let Some(found) = tree::status(&self.from, &name)? else { continue };
            if tree::kind(&found) == FileType::Directory {
                dirs.push(name);
            } else {
                self.leaf(&name, &found)?;
            }
        }
        Ok(dirs)
    }

    fn leaf(&mut self, name: &CStr, found: &Stat) -> io::Result<()> {
        let number = CString::new(found.st_ino.to_string())?;
        if found.st_nlink > 1 && self.linked.contains(&found.st_ino) {
            return Ok(linkat(&self.hub, &number, &self.to, name, AtFlags::empty())?);
        }
        match tree::kind(found) {
            FileType::RegularFile => self.file(name, found)?,
            FileType::Symlink => {
                symlinkat(readlinkat(&self.from, name, Vec::new())?, &self.to, name)?;
                self.metadata_of_name(name, found)?;
            }
            // Sandboxes cannot make device nodes: 0:0 is the overlay's whiteout.
            FileType::CharacterDevice if found.st_rdev == 0 => {
                mknodat(&self.to, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
            kind @ (FileType::Fifo | FileType::Socket) => {
                mknodat(&self.to, name, kind, Mode::empty(), 0)?;
                self.metadata_of_name(name, found)?;
            }
            _ => return Ok(()),
        }
        if found.st_nlink > 1 {
            match linkat(&self.to, name, &self.hub, &number, AtFlags::empty()) {
                Ok(()) => drop(self.linked.insert(found.st_ino)),
                // As many names as the file system allows: the next is a copy.
                Err(Errno::MLINK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// [`copy_metadata`] for what must not be opened.
    fn metadata_of_name(&self, name: &CStr, found: &Stat) -> io::Result<()> {
        let (user, group) = owner(found);
        chownat(&self.to, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        if tree::kind(found) != FileType::Symlink {
            chmodat(&self.to, name, Mode::from_raw_mode(found.st_mode), AtFlags::empty())?;
        }
        // The last part of the path is not followed.
        let below = |dir: &OwnedFd| -> io::Result<CString> {
            let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            path.extend_from_slice(name.to_bytes());
            Ok(CString::new(path)?)
        };
        let (from, to) = (below(&self.from)?, below(&self.to)?);
        let mut names = vec![0; XATTR_MAX];
        let length = llistxattr(&from, &mut names[..])?;
        for name in xattr_names(&names[..length]) {
            let mut value = vec![0; XATTR_MAX];
            let length = lgetxattr(&from, &name, &mut value[..])?;
            lsetxattr(&to, &name, &value[..length], XattrFlags::empty())?;
        }
        Ok(utimensat(&self.to, name, &times(found), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file(&self, name: &CStr, found: &Stat) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = openat(&self.from, name, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = openat(&self.to, name, flags, Mode::RUSR | Mode::WUSR)?;
        copy_contents(&from, &to, found)
    }
}

/// Makes the new file `to` what the file `from` is: bytes, holes, owner, mode,
/// extended attributes, times.
pub(crate) fn copy_file(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    copy_contents(from, to, &rustix::fs::fstat(from)?)
}

fn copy_contents(from: &OwnedFd, to: &OwnedFd, found: &Stat) -> io::Result<()> {
    // Sharing blocks costs nothing; where the file system cannot, copy.
    if ioctl_ficlone(to, from).is_err() {
        copy_data(&mut File::from(from.try_clone()?), &mut File::from(to.try_clone()?), found)?;
    }
    copy_metadata(from, to, found)
}

/// Copies what is there and leaves holes as holes: a sparse file must not fill
/// the disk.
fn copy_data(from: &mut File, to: &mut File, found: &Stat) -> io::Result<()> {
    let length = u64::try_from(found.st_size).unwrap_or(0);
    to.set_len(length)?;
    let mut place = 0;
    while place < length {
        let start = match rustix::fs::seek(&*from, rustix::fs::SeekFrom::Data(place)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*from, rustix::fs::SeekFrom::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        io::copy(&mut io::Read::take(&*from, end - start), to)?;
        place = end;
    }
    Ok(())
}

fn owner(found: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)))
}

fn times(found: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    }
}

/// Owner, mode, extended attributes and times of a file or directory. In this
/// order: a change of owner drops set-user-id bits and file capabilities.
fn copy_metadata(from: &OwnedFd, to: &OwnedFd, found: &Stat) -> io::Result<()> {
    let (user, group) = owner(found);
    fchown(to, user, group)?;
    fchmod(to, Mode::from_raw_mode(found.st_mode))?;
    let mut names = vec![0; XATTR_MAX];
    let length = flistxattr(from, &mut names[..])?;
    for name in xattr_names(&names[..length]) {
        if let Some(value) = xattr_get(from, &name)? {
            fsetxattr(to, &name, &value, XattrFlags::empty())?;
        }
    }
    Ok(futimens(to, &times(found))?)
}

fn xattr_get(fd: impl AsFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_MAX];
    match fgetxattr(fd, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn xattr_names(list: &[u8]) -> impl Iterator<Item = CString> {
    list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).filter_map(|name| CString::new(name).ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn sides(dir: &Path) -> [std::path::PathBuf; 3] {
        ["from", "to", "hub"].map(|name| {
            let path = dir.join(name);
            fs::create_dir(&path).unwrap();
            path
        })
    }

    /// Needs root for whiteouts and `trusted.*`; CI runs as root.
    #[test]
    fn everything_that_an_overlay_knows_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, hub] = sides(dir.path());
        fs::create_dir_all(from.join("dir/in")).unwrap();
        fs::write(from.join("dir/a"), "1").unwrap();
        fs::hard_link(from.join("dir/a"), from.join("dir/in/b")).unwrap();
        fs::hard_link(from.join("dir/a"), from.join("c")).unwrap();
        fs::set_permissions(from.join("dir"), fs::Permissions::from_mode(0o3770)).unwrap();
        fs::set_permissions(from.join("c"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let marks = [("dir", c"trusted.overlay.opaque"), ("dir/in", c"trusted.overlay.redirect")];
        for (path, mark) in marks {
            fsetxattr(File::open(from.join(path)).unwrap(), mark, b"y", XattrFlags::empty()).unwrap();
        }
        lsetxattr(from.join("link"), c"trusted.overlay.origin", b"o", XattrFlags::empty()).unwrap();
        for (name, kind) in [("gone", FileType::CharacterDevice), ("pipe", FileType::Fifo)] {
            mknodat(rustix::fs::CWD, from.join(name), kind, Mode::RUSR, 0).unwrap();
        }
        let then = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: then, last_modification: then };
        utimensat(rustix::fs::CWD, from.join("link"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        utimensat(rustix::fs::CWD, from.join("dir"), &times, AtFlags::empty()).unwrap();

        copy(&from, &to, &hub).unwrap();

        let status = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        let first = status("dir/a");
        assert_eq!(first.nlink() - 1, 3, "three names (and the hub's), one file");
        assert_eq!((status("dir/in/b").ino(), status("c").ino()), (first.ino(), first.ino()));
        assert_eq!((status("dir").mode() & 0o7777, status("c").mode() & 0o7777), (0o3770, 0o4711));
        assert_eq!((status("dir").mtime(), status("dir").mtime_nsec()), (then.tv_sec, then.tv_nsec));
        assert_eq!((status("link").mtime(), status("link").mtime_nsec()), (then.tv_sec, then.tv_nsec));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(status("gone").file_type().is_char_device() && status("gone").rdev() == 0);
        assert!(status("pipe").file_type().is_fifo());
        for (path, mark) in marks {
            assert_eq!(xattr_get(File::open(to.join(path)).unwrap(), mark).unwrap().unwrap(), b"y");
        }
        let mut value = [0; 8];
        assert_eq!(lgetxattr(to.join("link"), c"trusted.overlay.origin", &mut value[..]).unwrap(), 1);
    }

    #[test]
    fn deep_and_sparse_trees_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, hub] = sides(dir.path());
        tree::tests::dig(&from, 3000);
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"end", (1 << 40) - 3).unwrap();
        copy(&from, &to, &hub).unwrap();
        assert!(tree::tests::reaches(&to, 3000));
        let copied = fs::metadata(to.join("sparse")).unwrap();
        assert_eq!(copied.len(), 1 << 40);
        assert!(copied.blocks() < 1 << 12, "{}", copied.blocks());
        // What tempfile uses to clean up recurses.
        for name in [c"from", c"to"] {
            tree::remove(tree::open_root(dir.path()).unwrap(), name).unwrap();
        }
    }
}
