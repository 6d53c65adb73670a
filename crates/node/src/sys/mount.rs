//! Mounts by the new mount API (`fsopen(2)`, `move_mount(2)`), and what is
//! mounted where.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::{check, owned};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Attributes of a mount (`mount_setattr(2)`).
pub(crate) const READ_ONLY: u32 = 1;
pub(crate) const NOSUID: u32 = 2;
pub(crate) const NODEV: u32 = 4;
pub(crate) const NOATIME: u32 = 0x10;

/// An option of a file system.
#[derive(Debug, Clone)]
pub(crate) enum Setting<'a> {
    Flag(&'static CStr),
    Text(&'static CStr, &'a CStr),
}

fn configure(fs: &OwnedFd, command: libc::c_uint, setting: Option<&Setting<'_>>) -> io::Result<()> {
    let null = std::ptr::null();
    let (key, value) = match setting {
        None => (null, null),
        Some(Setting::Flag(key)) => (key.as_ptr(), null),
        Some(Setting::Text(key, value)) => (key.as_ptr(), value.as_ptr()),
    };
    // SAFETY: live C strings, or null where the command takes none.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, 0) };
    check(done).map(drop)
}

/// The kernel's own words about a failure, if it has any.
fn explain(fs: &OwnedFd, error: io::Error) -> io::Error {
    let mut words = Vec::new();
    let mut line = [0_u8; 256];
    loop {
        // SAFETY: `line` has room for its length.
        let read = unsafe { libc::read(fs.as_raw_fd(), line.as_mut_ptr().cast(), line.len()) };
        match usize::try_from(read) {
            Ok(read @ 1..) => words.push(String::from_utf8_lossy(&line[..read]).trim().to_owned()),
            _ => break,
        }
    }
    if words.is_empty() {
        error
    } else {
        io::Error::new(error.kind(), format!("{error} ({})", words.join("; ")))
    }
}

/// Mounts a new file system of `kind` nowhere: it is there as long as the
/// descriptor is open.
pub(crate) fn mount_detached(
    kind: &CStr,
    source: &Path,
    settings: &[Setting<'_>],
    attributes: u32,
) -> io::Result<OwnedFd> {
    let source = CString::new(source.as_os_str().as_bytes())?;
    // SAFETY: live C string.
    let fs = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let made = (|| {
        configure(&fs, FSCONFIG_SET_STRING, Some(&Setting::Text(c"source", &source)))?;
        for setting in settings {
            let command = match setting {
                Setting::Flag(_) => FSCONFIG_SET_FLAG,
                Setting::Text(..) => FSCONFIG_SET_STRING,
            };
            configure(&fs, command, Some(setting))?;
        }
        configure(&fs, FSCONFIG_CMD_CREATE, None)?;
        // SAFETY: plain integers.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    })();
    made.map_err(|error| explain(&fs, error))
}

/// Mounts a new file system of `kind` on the directory `place`.
pub(crate) fn mount(
    kind: &CStr,
    source: &Path,
    settings: &[Setting<'_>],
    attributes: u32,
    place: &Path,
) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let mount = mount_detached(kind, source, settings, attributes)?;
    // SAFETY: live C strings; the descriptor names the mount.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            place.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Mounts the file `what` on the file `place` too (`mount(2)`, `MS_BIND`).
pub(crate) fn bind(what: &Path, place: &Path) -> io::Result<()> {
    let what = CString::new(what.as_os_str().as_bytes())?;
    let place = CString::new(place.as_os_str().as_bytes())?;
    let null = std::ptr::null();
    // SAFETY: live C strings; a bind mount takes neither kind nor options.
    let done = unsafe { libc::mount(what.as_ptr(), place.as_ptr(), null, libc::MS_BIND, null.cast()) };
    check(done.into()).map(drop)
}

/// Makes `place`, and all below it, a mount of its own whose changes everybody sees who sees
/// it: what `ip netns add` does to `/run/netns` before it adds to it (`ip-netns(8)`). Where that
/// was done, nothing changes.
pub(crate) fn share(place: &Path) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let null = std::ptr::null();
    let share = || {
        // SAFETY: live C string; a change of propagation takes neither source nor options.
        let done =
            unsafe { libc::mount(null, place.as_ptr(), null, libc::MS_SHARED | libc::MS_REC, null.cast()) };
        check(done.into()).map(drop)
    };
    match share() {
        // It is no mount yet.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // SAFETY: live C strings; a bind mount takes neither kind nor options.
            let done = unsafe {
                libc::mount(place.as_ptr(), place.as_ptr(), null, libc::MS_BIND | libc::MS_REC, null.cast())
            };
            check(done.into())?;
            share()
        }
        done => done,
    }
}

/// Unmounts what is mounted on `place`. `lazily`: for nobody new at once, for
/// good when its last user is gone.
pub(crate) fn unmount(place: &Path, lazily: bool) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: live C string.
    check(unsafe { libc::umount2(place.as_ptr(), if lazily { libc::MNT_DETACH } else { 0 }) }.into())
        .map(drop)
}

/// One line of `/proc/self/mountinfo` (`proc(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) place: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    /// The whole file system takes no writes.
    pub(crate) read_only: bool,
    /// Options of the mount, such as `noatime`.
    attributes: String,
    /// Options of the file system, `rw` and `ro` aside.
    options: String,
}

/// What is mounted, later mounts last.
pub(crate) fn mounted() -> io::Result<Vec<Mounted>> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(4);
    let (place, attributes) = (unescape(left.next()?), left.next()?.to_owned());
    let mut right = right.split(' ');
    let (kind, source) = (right.next()?.to_owned(), unescape(right.next()?));
    let options = right.next()?;
    let read_only = options.split(',').any(|option| option == "ro");
    let others: Vec<_> = options.split(',').filter(|option| !matches!(*option, "ro" | "rw")).collect();
    Some(Mounted { place, kind, source, read_only, attributes, options: others.join(",") })
}

/// Mounts again, for writing, what was mounted so before (`mount(2)`).
pub(crate) fn mount_again(was: &Mounted) -> io::Result<()> {
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let (source, place) =
        (c_string(was.source.as_os_str().as_bytes())?, c_string(was.place.as_os_str().as_bytes())?);
    let (kind, options) = (c_string(was.kind.as_bytes())?, c_string(&unescape_bytes(&was.options))?);
    let flags = was.attributes.split(',').fold(0, |flags, word| {
        flags
            | match word {
                "nosuid" => libc::MS_NOSUID,
                "nodev" => libc::MS_NODEV,
                "noexec" => libc::MS_NOEXEC,
                "noatime" => libc::MS_NOATIME,
                "nodiratime" => libc::MS_NODIRATIME,
                "relatime" => libc::MS_RELATIME,
                _ => 0,
            }
    });
    // SAFETY: live C strings; btrfs takes its options as one.
    let done = unsafe {
        libc::mount(source.as_ptr(), place.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    check(done.into()).map(drop)
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    std::ffi::OsString::from_vec(unescape_bytes(text)).into()
}

fn unescape_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let line = r"36 35 98:0 / /mnt/a\040b rw,noatime shared:1 - btrfs /dev/loop0 ro,subvolid=5";
        let expected = Mounted {
            place: "/mnt/a b".into(),
            kind: "btrfs".into(),
            source: "/dev/loop0".into(),
            read_only: true,
            attributes: "rw,noatime".to_owned(),
            options: "subvolid=5".to_owned(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("nonsense"), None);
        assert_eq!(unescape(r"a\\b\134"), PathBuf::from(r"a\\b\"));
    }
}
