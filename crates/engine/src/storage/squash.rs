//! Merging overlayfs layers into one with the same meaning.
//!
//! Both sides are layers as overlayfs writes them (kernel documentation,
//! "overlayfs", whiteouts and opaque directories): a character device 0:0 hides
//! a name, `trusted.overlay.opaque` hides what a directory held below. What is
//! hidden stays marked, since more layers lie under the merged one.
//!
//! Layers are hostile data (a sandbox wrote them), so nothing here follows a
//! symbolic link and nothing is opened but regular files.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown, symlink,
};
use std::path::{Path, PathBuf};

use crate::sys;

const OPAQUE: &str = "trusted.overlay.opaque";

/// Puts `upper` on top of `lower`, in place.
pub(super) fn apply(upper: &Path, lower: &Path) -> io::Result<()> {
    let mut links = HashMap::new();
    merge_dir(upper, lower, &mut links)
}

fn merge_dir(upper: &Path, lower: &Path, links: &mut HashMap<u64, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(upper)? {
        let entry = entry?;
        let (from, to) = (entry.path(), lower.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&from)?;
        let kind = metadata.file_type();
        let below = fs::symlink_metadata(&to).ok();
        if kind.is_dir() {
            let opaque = xattr_get(&from, OPAQUE)?.is_some_and(|value| value == b"y");
            match &below {
                Some(found) if found.is_dir() && !opaque => {}
                Some(found) => {
                    // A directory over a whiteout, a file, or a hidden one: what lay
                    // further below must stay hidden.
                    let hides = opaque || is_whiteout(found) || !found.is_dir();
                    remove(&to, found)?;
                    fs::create_dir(&to)?;
                    if hides {
                        xattr_set(&to, OPAQUE, b"y")?;
                    }
                }
                None => {
                    fs::create_dir(&to)?;
                    if opaque {
                        xattr_set(&to, OPAQUE, b"y")?;
                    }
                }
            }
            merge_dir(&from, &to, links)?;
            copy_metadata(&from, &to, &metadata)?;
            continue;
        }
        if let Some(found) = &below {
            remove(&to, found)?;
        }
        if metadata.nlink() > 1 {
            if let Some(first) = links.get(&metadata.ino()) {
                fs::hard_link(first, &to)?;
                continue;
            }
            links.insert(metadata.ino(), to.clone());
        }
        if is_whiteout(&metadata) {
            sys::make_whiteout(&to)?;
            continue;
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            lchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
            continue;
        }
        if kind.is_file() {
            copy_file(&from, &to)?;
        } else if kind.is_fifo() || kind.is_socket() {
            make_special(&to, &metadata)?;
        } else {
            // Sandboxes cannot make device nodes; a foreign one is dropped.
            continue;
        }
        copy_metadata(&from, &to, &metadata)?;
    }
    Ok(())
}

fn is_whiteout(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn remove(path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(from)?;
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    // Sharing blocks costs nothing; where the file system cannot, copy.
    if sys::reflink(&source, &target).is_err() {
        io::copy(&mut source, &mut target)?;
    }
    Ok(())
}

fn make_special(path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.file_type().is_fifo() {
        let status = std::process::Command::new("mkfifo").arg(path).status()?;
        return if status.success() { Ok(()) } else { Err(io::Error::other("mkfifo failed")) };
    }
    // A socket is of no use without its process, but its name may be.
    std::os::unix::net::UnixListener::bind(path).map(drop).or(Ok(()))
}

fn copy_metadata(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    for name in xattr_list(from)? {
        // Overlay's own marks were dealt with above.
        if !name.starts_with("trusted.overlay.")
            && let Some(value) = xattr_get(from, &name)?
        {
            xattr_set(to, &name, &value)?;
        }
    }
    if let (Ok(modified), Ok(accessed)) = (metadata.modified(), metadata.accessed()) {
        let times = fs::FileTimes::new().set_modified(modified).set_accessed(accessed);
        // Directories open for reading, files too; FIFOs and sockets do not.
        if metadata.is_file() || metadata.is_dir() {
            File::open(to)?.set_times(times)?;
        }
    }
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn c_name(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn xattr_get(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64 << 10];
    match sys::lgetxattr(&c_path(path)?, &c_name(name)?, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn xattr_set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    sys::lsetxattr(&c_path(path)?, &c_name(name)?, value)
}

fn xattr_list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = vec![0; 64 << 10];
    let length = sys::llistxattr(&c_path(path)?, &mut names)?;
    names.truncate(length);
    Ok(names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges two layers and compares what an overlay over a base would show.
    /// Needs root for whiteouts and `trusted.*`; CI runs as root.
    #[test]
    fn hidden_names_stay_hidden_and_new_ones_win() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("l"), dir.path().join("u"));
        for path in ["l/kept", "l/gone", "l/opaque/old", "u/opaque/new", "u/kept", "l/whited", "u/whited"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::remove_dir(lower.join("whited")).unwrap();
        sys::make_whiteout(&lower.join("whited")).unwrap();
        fs::write(lower.join("kept/a"), "1").unwrap();
        fs::write(upper.join("kept/b"), "2").unwrap();
        fs::write(upper.join("whited/c"), "3").unwrap();
        sys::make_whiteout(&upper.join("gone")).unwrap();
        xattr_set(&upper.join("opaque"), OPAQUE, b"y").unwrap();
        symlink("/etc/passwd", upper.join("link")).unwrap();
        fs::set_permissions(upper.join("kept"), fs::Permissions::from_mode(0o2750)).unwrap();

        apply(&upper, &lower).unwrap();

        assert_eq!(fs::read_to_string(lower.join("kept/a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(lower.join("kept/b")).unwrap(), "2");
        assert!(is_whiteout(&fs::symlink_metadata(lower.join("gone")).unwrap()));
        assert!(!lower.join("opaque/old").exists() && lower.join("opaque/new").exists());
        assert_eq!(xattr_get(&lower.join("opaque"), OPAQUE).unwrap().unwrap(), b"y");
        assert_eq!(xattr_get(&lower.join("whited"), OPAQUE).unwrap().unwrap(), b"y");
        assert_eq!(fs::read_link(lower.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::metadata(lower.join("kept")).unwrap().mode() & 0o7777, 0o2750);
    }
}
