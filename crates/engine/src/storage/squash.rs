//! Merging overlayfs layers into one with the same meaning.
//!
//! Both sides are layers as overlayfs writes them (kernel documentation,
//! "overlayfs", whiteouts and opaque directories): a character device 0:0 hides
//! a name, `trusted.overlay.opaque` hides what a directory held below. What is
//! hidden stays marked, since more layers lie under the merged one.
//!
//! Layers are hostile data (a sandbox wrote them): see [`super::tree`] for how
//! they are walked. Nothing is opened but directories and regular files.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, ioctl_ficlone, linkat, mkdirat, mknodat,
    openat, readlinkat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::tree;

const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Largest extended attribute, and largest list of their names, in bytes
/// (`xattr(7)`).
const XATTR_MAX: usize = 64 << 10;

/// Puts `upper` on top of `lower`, in place. `hub` is an empty directory on the
/// same file system, which is left with names that the caller removes.
pub(super) fn apply(upper: &Path, lower: &Path, hub: &Path) -> io::Result<()> {
    let mut merge = Merge {
        from: tree::open_root(upper)?,
        to: tree::open_root(lower)?,
        hub: tree::open_root(hub)?,
        linked: HashSet::new(),
    };
    merge.run()
}

/// A merge that stands in one directory of each side.
struct Merge {
    from: OwnedFd,
    to: OwnedFd,
    /// Where files with several names get one that stays in reach.
    hub: OwnedFd,
    linked: HashSet<u64>,
}

impl Merge {
    fn run(&mut self) -> io::Result<()> {
        // For each directory on the way down: those of its own not yet entered.
        let mut pending = vec![self.leaves()?];
        while let Some(dirs) = pending.last_mut() {
            if let Some(name) = dirs.pop() {
                self.enter(&name)?;
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

    /// Merges everything here but directories, whose names are returned.
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

    /// Goes into the directory `name` of both sides; makes the lower one.
    fn enter(&mut self, name: &CStr) -> io::Result<()> {
        let from = tree::open_dir(&self.from, name)?;
        let opaque = xattr_get(&from, OPAQUE)?.is_some_and(|value| value == b"y");
        let below = tree::status(&self.to, name)?;
        let merges = !opaque && below.as_ref().is_none_or(|found| tree::kind(found) == FileType::Directory);
        if merges && below.is_some() {
            self.to = tree::open_dir(&self.to, name)?;
        } else {
            tree::remove(&self.to, name)?;
            mkdirat(&self.to, name, Mode::RWXU)?;
            self.to = tree::open_dir(&self.to, name)?;
            if !merges {
                // Over a whiteout, a file or a hidden directory: what lies
                // further below must stay hidden.
                fsetxattr(&self.to, OPAQUE, b"y", XattrFlags::empty())?;
            }
        }
        self.from = from;
        Ok(())
    }

    fn leaf(&mut self, name: &CStr, found: &Stat) -> io::Result<()> {
        tree::remove(&self.to, name)?;
        let number = CString::new(found.st_ino.to_string())?;
        if found.st_nlink > 1 && self.linked.contains(&found.st_ino) {
            return Ok(linkat(&self.hub, &number, &self.to, name, AtFlags::empty())?);
        }
        match tree::kind(found) {
            FileType::RegularFile => self.file(name, found)?,
            FileType::Symlink => {
                symlinkat(readlinkat(&self.from, name, Vec::new())?, &self.to, name)?;
                let (user, group) = owner(found);
                chownat(&self.to, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
                utimensat(&self.to, name, &times(found), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::CharacterDevice if found.st_rdev == 0 => {
                mknodat(&self.to, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
            kind @ (FileType::Fifo | FileType::Socket) => {
                mknodat(&self.to, name, kind, Mode::empty(), 0)?;
                let (user, group) = owner(found);
                chownat(&self.to, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
                chmodat(&self.to, name, Mode::from_raw_mode(found.st_mode), AtFlags::empty())?;
                utimensat(&self.to, name, &times(found), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // Sandboxes cannot make device nodes; a foreign one is dropped.
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

    fn file(&self, name: &CStr, found: &Stat) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = openat(&self.from, name, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = openat(&self.to, name, flags, Mode::RUSR | Mode::WUSR)?;
        // Sharing blocks costs nothing; where the file system cannot, copy.
        if ioctl_ficlone(&to, &from).is_err() {
            copy_data(&mut File::from(from.try_clone()?), &mut File::from(to.try_clone()?), found)?;
        }
        copy_metadata(&from, &to, found)
    }
}

/// Copies what is there and leaves holes as holes: a sparse file must not fill
/// the pool.
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
    for name in xattr_list(from)? {
        // Overlay's own marks are made where they are due.
        if !name.to_bytes().starts_with(b"trusted.overlay.")
            && let Some(value) = xattr_get(from, &name)?
        {
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

fn xattr_list(fd: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = vec![0; XATTR_MAX];
    let length = flistxattr(fd, &mut names[..])?;
    Ok(names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| CString::new(name).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn whiteout(path: &Path) {
        mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    fn is_whiteout(path: &Path) -> bool {
        let found = fs::symlink_metadata(path).unwrap();
        found.file_type().is_char_device() && found.rdev() == 0
    }

    fn mark_opaque(path: &Path) {
        fsetxattr(File::open(path).unwrap(), OPAQUE, b"y", XattrFlags::empty()).unwrap();
    }

    fn is_opaque(path: &Path) -> bool {
        xattr_get(File::open(path).unwrap(), OPAQUE).unwrap().is_some_and(|value| value == b"y")
    }

    /// Needs root for whiteouts and `trusted.*`; CI runs as root.
    #[test]
    fn hidden_names_stay_hidden_and_new_ones_win() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("l"), dir.path().join("u"));
        for path in
            ["l/kept", "l/gone", "l/opaque/old", "u/opaque/new", "u/kept", "l/over", "u/whited", "hub"]
        {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        whiteout(&lower.join("whited"));
        fs::write(lower.join("kept/a"), "1").unwrap();
        fs::write(upper.join("kept/b"), "2").unwrap();
        fs::hard_link(upper.join("kept/b"), upper.join("kept/c")).unwrap();
        fs::hard_link(upper.join("kept/b"), upper.join("d")).unwrap();
        fs::write(upper.join("whited/c"), "3").unwrap();
        fs::write(upper.join("over"), "a file over a directory").unwrap();
        whiteout(&upper.join("gone"));
        mark_opaque(&upper.join("opaque"));
        symlink("/etc/passwd", upper.join("link")).unwrap();
        fs::set_permissions(upper.join("kept"), fs::Permissions::from_mode(0o2750)).unwrap();

        apply(&upper, &lower, &dir.path().join("hub")).unwrap();
        fs::remove_dir_all(dir.path().join("hub")).unwrap();

        assert_eq!(fs::read_to_string(lower.join("kept/a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(lower.join("kept/b")).unwrap(), "2");
        assert_eq!(fs::metadata(lower.join("d")).unwrap().nlink(), 3, "three names, one file");
        assert!(is_whiteout(&lower.join("gone")));
        assert!(!lower.join("opaque/old").exists() && lower.join("opaque/new").exists());
        assert!(is_opaque(&lower.join("opaque")));
        assert!(is_opaque(&lower.join("whited")));
        assert!(!is_opaque(&lower.join("kept")));
        assert_eq!(fs::read_to_string(lower.join("over")).unwrap(), "a file over a directory");
        assert_eq!(fs::read_link(lower.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::metadata(lower.join("kept")).unwrap().mode() & 0o7777, 0o2750);
    }

    #[test]
    fn deep_and_sparse_trees_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let [lower, upper, hub] = ["l", "u", "hub"].map(|name| dir.path().join(name));
        for path in [&lower, &upper, &hub] {
            fs::create_dir(path).unwrap();
        }
        tree::tests::dig(&upper, 3000);
        let sparse = File::create(upper.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"end", (1 << 40) - 3).unwrap();
        apply(&upper, &lower, &hub).unwrap();
        assert!(tree::tests::reaches(&lower, 3000));
        let copied = fs::metadata(lower.join("sparse")).unwrap();
        assert_eq!(copied.len(), 1 << 40);
        assert!(copied.blocks() < 1 << 12, "{}", copied.blocks());
        // What tempfile uses to clean up recurses.
        for name in [c"l", c"u"] {
            tree::remove(tree::open_root(dir.path()).unwrap(), name).unwrap();
        }
    }
}
