//! Putting a file in place, whole or not at all: as `cp` leaves a file that is there (its
//! mode, owner, links, and what is no regular file), but never half of it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::sys;

/// The mode that packers of archives write where nobody asked for one. It changes nothing of
/// a file that is there.
pub(crate) const NOT_ASKED: u32 = 0o644;

/// Writes `content` to `path`, which gets `mode`.
///
/// # Errors
/// Those of the system calls. Then what was there is as it was, except where it could only be
/// written in place and the disk was full.
pub(crate) fn file(path: &Path, content: &mut impl Read, mode: u32) -> io::Result<()> {
    // A link leads to what is meant. One that leads nowhere is written through, as open(2) does.
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(_) => through_dangling(path)?,
    };
    let there = match fs::metadata(&target) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let Some(there) = there else {
        return beside(&target, content, mode);
    };
    if there.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    // Who may not write the file may not replace it either.
    let mut writable = OpenOptions::new();
    writable.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let existing = writable.open(&target)?;
    let mode = if mode == NOT_ASKED { there.mode() & 0o7777 } else { mode };
    if there.file_type().is_file() && there.nlink() == 1 && there.uid() == sys::effective_uid() {
        match beside(&target, content, mode) {
            // Nothing was read yet: a directory that takes no new files.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS)) => {}
            other => return other,
        }
    }
    in_place(existing, &there, content, mode)
}

/// Where a path leads that names nothing yet.
fn through_dangling(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As often as the kernel follows links (`path_resolution(7)`).
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Makes the file under no name, and gives it its own once it is whole.
fn beside(target: &Path, content: &mut impl Read, mode: u32) -> io::Result<()> {
    let (dir, name) = (target.parent().unwrap_or(Path::new("/")), target.file_name().unwrap_or_default());
    let mut file = unnamed(dir)?;
    io::copy(content, &mut file)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    let (pid, mut number) = (std::process::id(), 0);
    let temporary = loop {
        let mut candidate = std::ffi::OsString::from(format!(".dormouse-{pid}-{number}-"));
        // Names have an end (`NAME_MAX`).
        candidate.push(name.to_string_lossy().chars().take(40).collect::<String>());
        let candidate = dir.join(candidate);
        match sys::link_unnamed(&file, &candidate) {
            Ok(()) => break candidate,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    };
    fs::rename(&temporary, target).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn unnamed(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)
}

/// Overwrites what cannot be replaced (it has other names, another owner, or is no regular
/// file) once all of the content is here.
fn in_place(mut existing: File, there: &fs::Metadata, content: &mut impl Read, mode: u32) -> io::Result<()> {
    let mut whole = unnamed(&std::env::temp_dir()).or_else(|_| unnamed(Path::new("/dev/shm")))?;
    let length = io::copy(content, &mut whole)?;
    whole.rewind()?;
    if !there.file_type().is_file() {
        sys::set_nonblocking(&existing, false)?;
        io::copy(&mut whole, &mut existing)?;
        return if there.file_type().is_fifo() { Ok(()) } else { existing.flush() };
    }
    // Room first: then the old content goes only where the new one fits.
    sys::reserve(&existing, length)?;
    io::copy(&mut whole, &mut existing)?;
    existing.set_len(length)?;
    // Only its owner may; who may not leaves it, as cp does.
    if there.mode() & 0o7777 != mode {
        let _ = existing.set_permissions(Permissions::from_mode(mode));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Breaks<'a>(&'a [u8]);

    impl Read for Breaks<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok(read),
            }
        }
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = std::env::temp_dir().join(format!("dormouse-place-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (path, link, hard) = (dir.join("file"), dir.join("link"), dir.join("hard"));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        file(&path, &mut &b"one"[..], 0o600).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"one".to_vec(), 0o600));

        // An upload that breaks off leaves what was there, and nothing beside it.
        assert_eq!(file(&path, &mut Breaks(b"two"), 0o644).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!((fs::read(&path).unwrap(), fs::read_dir(&dir).unwrap().count()), (b"one".to_vec(), 1));

        // The usual mode keeps that of the file, another one is meant.
        file(&path, &mut &b"two"[..], NOT_ASKED).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"two".to_vec(), 0o600));
        file(&path, &mut &b"2"[..], 0o755).unwrap();
        assert_eq!(mode(&path), 0o755);

        // Links lead to what is meant, and stay.
        std::os::unix::fs::symlink("file", &link).unwrap();
        file(&link, &mut &b"three"[..], NOT_ASKED).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"three");
        fs::hard_link(&path, &hard).unwrap();
        file(&path, &mut &b"4"[..], NOT_ASKED).unwrap();
        assert_eq!((fs::read(&hard).unwrap(), fs::metadata(&hard).unwrap().nlink()), (b"4".to_vec(), 2));
        assert_eq!(mode(&hard), 0o755);
        let nowhere = dir.join("nowhere");
        std::os::unix::fs::symlink("made", &nowhere).unwrap();
        file(&nowhere, &mut &b"5"[..], 0o644).unwrap();
        assert_eq!(fs::read(dir.join("made")).unwrap(), b"5");

        assert_eq!(file(&dir, &mut &b""[..], 0o644).unwrap_err().raw_os_error(), Some(libc::EISDIR));
        file(Path::new("/dev/null"), &mut &b"gone"[..], 0o644).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }
}
