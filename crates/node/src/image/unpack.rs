//! Unpacking an archive into a directory, contained.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::EntryType;

use crate::storage::copy_file;
use crate::sys;
use dormouse_control::{DEFAULT_CWD, DEFAULT_USER};

/// OCI image specification, "Whiteouts": hides a name of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all names of the layers below in this directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bytes of further names of a file that become files of their own, at most.
/// In a sandbox they would become so at the first write anyway; and numbers of
/// an image's inodes are too large for JavaScript, whose archivers take two
/// files with several names each for one where their numbers are close.
const MOST_COPIED: u64 = 256 << 20;

/// Entries between two words of progress.
const PROGRESS_STEP: u64 = 2000;

/// Unpacks `archive` on top of what lies in `target`.
pub(super) fn unpack(archive: impl Read, target: &Path, progress: &dyn Fn(&str)) -> io::Result<()> {
    let root = OwnedFd::from(File::open(target)?);
    let mut archive = tar::Archive::new(archive);
    let mut directories = Vec::new();
    let (mut count, mut copied) = (0_u64, 0_u64);
    for entry in archive.entries()? {
        let mut entry = entry?;
        count += 1;
        if count.is_multiple_of(PROGRESS_STEP) {
            progress(&format!("unpacking: {count} files"));
        }
        let name = relative(&entry.path()?);
        let placed = place(&root, &mut entry, &name, &mut copied)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", name.display())))?;
        directories.extend(placed.map(|modified| (name, modified)));
    }
    for (name, modified) in directories {
        let dir = open_dir(&root, &name)?;
        File::open(format!("/proc/self/fd/{}", dir.as_raw_fd()))?.set_modified(modified)?;
    }
    Ok(())
}

/// Puts one entry in its place. Returns a directory's time, which is set when
/// nothing more is put into it.
fn place(
    root: &OwnedFd,
    entry: &mut tar::Entry<'_, impl Read>,
    name: &Path,
    copied: &mut u64,
) -> io::Result<Option<SystemTime>> {
    let (Some(parent), Some(file)) = (name.parent(), name.file_name()) else {
        return Ok(None);
    };
    let parent = open_dir(root, parent)?;
    if file.as_bytes() == OPAQUE {
        clear(&parent)?;
        return Ok(None);
    }
    if let Some(hidden) = file.as_bytes().strip_prefix(WHITEOUT) {
        remove(&below(&parent, OsStr::from_bytes(hidden)))?;
        return Ok(None);
    }
    let path = below(&parent, file);
    let header = entry.header().clone();
    let (uid, gid) = (narrow(header.uid()?)?, narrow(header.gid()?)?);
    let mode = header.mode()? & 0o7777;
    let extensions = Extensions::read(entry)?;
    let modified = extensions
        .modified
        .unwrap_or_else(|| SystemTime::UNIX_EPOCH + Duration::from_secs(header.mtime().unwrap_or(0)));
    match header.entry_type() {
        EntryType::Directory => {
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                remove(&path)?;
                fs::create_dir(&path)?;
            }
            lchown(&path, Some(uid), Some(gid))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            extensions.apply(&File::open(&path)?)?;
            return Ok(Some(modified));
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            remove(&path)?;
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let mut file = options.open(&path)?;
            io::copy(entry, &mut file)?;
            lchown(&path, Some(uid), Some(gid))?;
            // After the owner: chown takes set-id bits away.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            extensions.apply(&file)?;
            file.set_modified(modified)?;
        }
        EntryType::Symlink => {
            remove(&path)?;
            symlink(entry.link_name()?.unwrap_or_default(), &path)?;
            lchown(&path, Some(uid), Some(gid))?;
            set_modified(&path, modified)?;
        }
        EntryType::Fifo => {
            remove(&path)?;
            let mode = rustix::fs::Mode::from_raw_mode(mode);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)?;
            lchown(&path, Some(uid), Some(gid))?;
            rustix::fs::chmodat(rustix::fs::CWD, &path, mode, rustix::fs::AtFlags::empty())?;
            set_modified(&path, modified)?;
        }
        EntryType::Link => {
            let link = relative(&entry.link_name()?.unwrap_or_default());
            let (Some(dir), Some(name)) = (link.parent(), link.file_name()) else {
                return Ok(None);
            };
            let source = open_dir(root, dir)?;
            let source = below(&source, name);
            remove(&path)?;
            let found = fs::symlink_metadata(&source)?;
            if found.is_file() && *copied + found.len() <= MOST_COPIED {
                *copied += found.len();
                let from = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&source)?;
                let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                copy_file(&from.into(), &to.into())?;
            } else {
                fs::hard_link(source, &path)?;
            }
        }
        // Devices: /dev is fresh in every sandbox.
        _ => {}
    }
    Ok(None)
}

/// Sets the time of a name itself.
fn set_modified(path: &Path, modified: SystemTime) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = Timespec {
        tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(since.subsec_nanos()),
    };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What an archive says beside a header (pax, "extended headers").
#[derive(Default)]
struct Extensions {
    modified: Option<SystemTime>,
    attributes: Vec<(String, Vec<u8>)>,
}

/// How archives spell an extended attribute.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// Attributes that an image may bring: capabilities of files, access lists,
/// and the user's own. Others (`trusted.overlay.…`) would speak for the host.
fn is_welcome(attribute: &str) -> bool {
    attribute.starts_with("user.")
        || matches!(attribute, "security.capability" | "system.posix_acl_access" | "system.posix_acl_default")
}

impl Extensions {
    fn read(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Self> {
        let mut found = Self::default();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            // Keys that are no text are not ours.
            let Ok(key) = extension.key() else { continue };
            if key == "mtime" {
                found.modified = extension.value().ok().and_then(seconds);
            } else if let Some(name) = key.strip_prefix(ATTRIBUTE).filter(|name| is_welcome(name)) {
                found.attributes.push((name.to_owned(), extension.value_bytes().to_vec()));
            }
        }
        Ok(found)
    }

    fn apply(&self, file: &File) -> io::Result<()> {
        for (name, value) in &self.attributes {
            rustix::fs::fsetxattr(file, name.as_str(), value, rustix::fs::XattrFlags::empty()).map_err(
                |error| io::Error::new(io::Error::from(error).kind(), format!("set {name}: {error}")),
            )?;
        }
        Ok(())
    }
}

/// An instant as pax writes it: seconds, and perhaps a fraction.
fn seconds(text: &str) -> Option<SystemTime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let since = Duration::new(whole.parse().ok()?, digits.parse().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn narrow(id: u64) -> io::Result<u32> {
    u32::try_from(id).ok().filter(|id| *id < 65_536).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("owner {id} is outside of 0 to 65535"))
    })
}

/// The name without a leading slash; `..` goes no higher than the root.
fn relative(name: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// The directory `path` below `root`, made where it is missing. Links in it
/// are followed as if `root` were the root.
fn open_dir(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let mut dir = sys::open_in_root(root, c".")?;
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        let name = CString::new(so_far.as_os_str().as_bytes())?;
        dir = match sys::open_in_root(root, &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Nothing there, or a link to nothing: a directory takes its place.
                let missing = below(&dir, part.as_os_str());
                remove(&missing)?;
                fs::create_dir(missing)?;
                sys::open_in_root(root, &name)?
            }
            other => other?,
        };
    }
    Ok(dir)
}

fn below(dir: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn clear(dir: &OwnedFd) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/self/fd/{}/", dir.as_raw_fd()))? {
        remove(&below(dir, &entry?.file_name()))?;
    }
    Ok(())
}

/// Gives an image that has none the default user and the working directory,
/// which belongs to `user` where the image names one.
pub(super) fn ensure_user(target: &Path, user: Option<&str>) -> io::Result<()> {
    let root = OwnedFd::from(File::open(target)?);
    let etc = open_dir(&root, Path::new("etc"))?;
    let passwd = read(&below(&etc, OsStr::new("passwd")))?;
    if !passwd.lines().any(|line| line.starts_with(&format!("{DEFAULT_USER}:"))) {
        let home = format!("/home/{DEFAULT_USER}");
        let shell = if sys::open_in_root(&root, c"bin/bash").is_ok() { "/bin/bash" } else { "/bin/sh" };
        append(&etc, "passwd", &format!("{DEFAULT_USER}:x:1000:1000::{home}:{shell}\n"))?;
        append(&etc, "group", &format!("{DEFAULT_USER}:x:1000:\n"))?;
        append(&etc, "shadow", &format!("{DEFAULT_USER}:!:19000:0:99999:7:::\n"))?;
        owned(&open_dir(&root, Path::new(&home[1..]))?, (1000, 1000))?;
    }
    let owner = match user {
        Some(user) => ids(user, &read(&below(&etc, OsStr::new("passwd")))?)?,
        None => (1000, 1000),
    };
    if sys::open_in_root(&root, c"usr/bin/sudo").is_ok() {
        let sudoers = open_dir(&root, Path::new("etc/sudoers.d"))?;
        let path = below(&sudoers, OsStr::new("dormouse"));
        if fs::symlink_metadata(&path).is_err() {
            // With a terminal of its own sudo sometimes misses the end of its
            // command and waits for a key. It is meant against typing into the
            // caller's input, which no call inside can do (`seccomp`).
            let rules = format!("Defaults !use_pty\n{DEFAULT_USER} ALL=(ALL:ALL) NOPASSWD:ALL\n");
            fs::write(&path, rules)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o440))?;
        }
    }
    owned(&open_dir(&root, Path::new(&DEFAULT_CWD[1..]))?, owner)
}

/// User and group of `user`: a name or a number, and perhaps a group's number.
fn ids(user: &str, passwd: &str) -> io::Result<(u32, u32)> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let known: Option<(u32, u32)> = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.first() == Some(&name) || fields.get(2) == Some(&name);
        found.then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
    });
    let known = known.or_else(|| Some((name.parse().ok()?, 0)));
    let (uid, gid) = known.ok_or_else(|| {
        let message =
            format!("the image says that commands run as {user:?}, whom its /etc/passwd does not know");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })?;
    let gid = group.and_then(|group| group.parse().ok()).unwrap_or(gid);
    Ok((narrow(uid.into())?, narrow(u64::from(gid))?))
}

fn owned(dir: &OwnedFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    std::os::unix::fs::chown(format!("/proc/self/fd/{}", dir.as_raw_fd()), Some(uid), Some(gid))
}

fn read(path: &Path) -> io::Result<String> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => {
            let mut text = String::new();
            file.take(1 << 20).read_to_string(&mut text)?;
            Ok(text)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn append(etc: &OwnedFd, file: &str, line: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(below(etc, OsStr::new(file)))?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            // Names that the builder itself would refuse.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_leaves_the_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (target, canary) = (dir.path().join("layer"), dir.path().join("canary"));
        fs::create_dir(&target).unwrap();
        fs::write(&canary, "untouched").unwrap();
        let out = canary.to_str().unwrap();
        let tar = archive(&[
            ("../canary", EntryType::Regular, "1"),
            ("/../../canary", EntryType::Regular, "2"),
            ("link", EntryType::Symlink, dir.path().to_str().unwrap()),
            ("link/canary", EntryType::Regular, "3"),
            ("up", EntryType::Symlink, "../../../../../../../.."),
            ("up/etc/dormouse-canary", EntryType::Regular, "4"),
            ("direct", EntryType::Symlink, out),
            ("direct", EntryType::Regular, "5"),
        ]);
        unpack(tar.as_slice(), &target, &|_| {}).unwrap();
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
        assert!(!Path::new("/etc/dormouse-canary").exists());
        assert_eq!(fs::read_to_string(target.join("canary")).unwrap(), "2");
        assert_eq!(fs::read_to_string(target.join("direct")).unwrap(), "5");

        let stolen = archive(&[("stolen", EntryType::Link, out)]);
        assert!(unpack(stolen.as_slice(), &target, &|_| {}).is_err(), "a link out of the layer");
    }

    #[test]
    fn further_names_become_files_of_their_own() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let tar = archive(&[
            ("one", EntryType::Regular, "bytes"),
            ("other", EntryType::Link, "one"),
            ("soft", EntryType::Symlink, "one"),
            ("name-of-soft", EntryType::Link, "soft"),
        ]);
        unpack(tar.as_slice(), dir.path(), &|_| {}).unwrap();
        let found = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("other")).unwrap(), "bytes");
        assert_eq!((found("one").nlink(), found("other").nlink(), found("soft").nlink()), (1, 1, 2));
        assert_eq!(
            (found("one").mode(), found("one").mtime()),
            (found("other").mode(), found("other").mtime())
        );
    }

    #[test]
    fn whiteouts_hide_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let first = archive(&[
            ("a/x", EntryType::Regular, "1"),
            ("a/y", EntryType::Regular, "1"),
            ("b/z", EntryType::Regular, "1"),
        ]);
        let second =
            archive(&[("a/.wh.x", EntryType::Regular, ""), ("b/.wh..wh..opq", EntryType::Regular, "")]);
        unpack(first.as_slice(), dir.path(), &|_| {}).unwrap();
        unpack(second.as_slice(), dir.path(), &|_| {}).unwrap();
        assert!(!dir.path().join("a/x").exists() && dir.path().join("a/y").exists());
        assert!(dir.path().join("b").exists() && !dir.path().join("b/z").exists());
    }

    #[test]
    fn any_image_gets_the_default_user() {
        let dir = tempfile::tempdir().unwrap();
        ensure_user(dir.path(), None).unwrap();
        ensure_user(dir.path(), Some("ubuntu")).unwrap();
        let passwd = fs::read_to_string(dir.path().join("etc/passwd")).unwrap();
        assert_eq!(passwd.matches("ubuntu:x:1000:1000").count(), 1);
        assert!(dir.path().join("vercel/sandbox").is_dir());
        assert!(ensure_user(dir.path(), Some("nobody-knows")).is_err());
    }

    #[test]
    fn users_are_found_by_name_or_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnode:x:1001:1002::/home/node:/bin/sh\n";
        assert_eq!(ids("node", passwd).unwrap(), (1001, 1002));
        assert_eq!(ids("1001:5", passwd).unwrap(), (1001, 5));
        assert_eq!(ids("4000", passwd).unwrap(), (4000, 0));
        assert!(ids("70000", passwd).is_err() && ids("other", passwd).is_err());
    }

    #[test]
    fn an_owner_out_of_range_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_uid(70_000);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(0o644);
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header, "opt/data", io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        let error = unpack(archive.as_slice(), dir.path(), &|_| {}).unwrap_err().to_string();
        assert!(error.contains("opt/data") && error.contains("70000"), "{error}");
    }

    #[test]
    fn attributes_come_along_unless_they_speak_for_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let pairs: [(&str, &[u8]); 3] = [
            ("SCHILY.xattr.user.note", b"kept"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("mtime", b"1000000000.25"),
        ];
        builder.append_pax_extensions(pairs).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        unpack(archive.as_slice(), dir.path(), &|_| {}).unwrap();
        let file = File::open(dir.path().join("file")).unwrap();
        let mut value = [0; 16];
        assert_eq!(rustix::fs::fgetxattr(&file, c"user.note", &mut value[..]), Ok(4));
        let refused = rustix::fs::fgetxattr(&file, c"trusted.overlay.redirect", &mut value[..]);
        assert_eq!(refused, Err(rustix::io::Errno::NODATA));
        let modified = file.metadata().unwrap().modified().unwrap();
        assert_eq!(modified, SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_250));
    }
}
