//! Directories of the fresh `/run`, which programs expect there: those of the
//! image's own, and those that packages ask for, as `systemd-tmpfiles` makes
//! them at every boot of other machines (`tmpfiles.d(5)`).
//!
//! Of that format, lines of the types `d` and `D` below `/run` are read, and
//! nothing else: the rest of the disk is the sandbox's own, and stays.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Component, Path, PathBuf};

use crate::users;

/// Most directories that are made, and how deep they lie.
const MOST: (usize, usize) = (256, 4);

/// Where packages and administrators say what they need; later ones replace
/// files of the same name.
const RULES: [&str; 2] = ["/usr/lib/tmpfiles.d", "/etc/tmpfiles.d"];

/// Most rule files that are read, and most bytes of each.
const MOST_RULES: (usize, u64) = (256, 64 << 10);

/// Makes them all. `image_run`: the image's own `/run`, which the fresh one
/// hides.
pub(crate) fn make(image_run: Option<OwnedFd>) -> io::Result<()> {
    let of_image = image_run.map_or(Ok(()), |image_run| copy(&image_run));
    let (passwd, group) = users::databases();
    for rule in rules().iter().flat_map(|text| text.lines()).filter_map(Rule::parse).take(MOST.0) {
        let uid = users::user_id(rule.user, &passwd);
        let gid = users::group_id(rule.group, &group);
        // A rule of one package must not stand in the way of the others.
        if let (Some(uid), Some(gid)) = (uid, gid) {
            let _ = make_one(&rule.path, uid, gid, rule.mode);
        }
    }
    of_image
}

fn make_one(path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let handle = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    fchown(&handle, Some(uid), Some(gid))?;
    handle.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
}

fn copy(image_run: &OwnedFd) -> io::Result<()> {
    let (most, deepest) = MOST;
    let root = format!("/proc/self/fd/{}", image_run.as_raw_fd());
    let mut made = 0;
    let mut pending = vec![(PathBuf::new(), 0)];
    while let Some((dir, depth)) = pending.pop() {
        // Nothing else runs yet: what was looked at does not change.
        for entry in fs::read_dir(Path::new(&root).join(&dir))? {
            let entry = entry?;
            let found = entry.metadata()?;
            if !found.is_dir() || made == most {
                continue;
            }
            let inner = dir.join(entry.file_name());
            make_one(&Path::new("/run").join(&inner), found.uid(), found.gid(), found.mode())?;
            made += 1;
            if depth + 1 < deepest {
                pending.push((inner, depth + 1));
            }
        }
    }
    Ok(())
}

/// Texts of the rule files, in the order of their names.
fn rules() -> Vec<String> {
    let mut files = BTreeMap::new();
    for dir in RULES {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let named = |entry: &DirEntry| entry.path().extension().is_some_and(|end| end == "conf");
        files.extend(entries.filter(named).map(|entry| (entry.file_name(), entry.path())));
    }
    files.values().take(MOST_RULES.0).filter_map(|path| read(path).ok()).collect()
}

fn read(path: &Path) -> io::Result<String> {
    // Never a FIFO's open that waits.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    File::take(file, MOST_RULES.1).read_to_string(&mut text)?;
    Ok(text)
}

/// A directory that a package asks for.
#[derive(Debug, PartialEq, Eq)]
struct Rule<'a> {
    path: PathBuf,
    mode: u32,
    user: &'a str,
    group: &'a str,
}

impl<'a> Rule<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let mut field = |default| match fields.next() {
            None | Some("-") => default,
            Some(word) => word,
        };
        let (kind, path) = (field(""), field(""));
        let (mode, user, group) = (field("755"), field("root"), field("root"));
        if !matches!(kind.trim_end_matches(['!', '-', '+', '=', '~', '^', '$']), "d" | "D") {
            return None;
        }
        let below = path.strip_prefix("/var/run/").or_else(|| path.strip_prefix("/run/"))?;
        let plain = Path::new(below).components().all(|part| matches!(part, Component::Normal(_)));
        if below.is_empty() || !plain || below.contains('%') {
            return None;
        }
        let mode = u32::from_str_radix(mode.trim_start_matches(['~', ':']), 8).ok()?;
        Some(Self { path: Path::new("/run").join(below), mode, user, group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_below_run_are_read() {
        let rule = |path: &str, mode, user, group| Some(Rule { path: path.into(), mode, user, group });
        for (line, expected) in [
            (
                "d /run/postgresql 2775 postgres postgres - -",
                rule("/run/postgresql", 0o2775, "postgres", "postgres"),
            ),
            ("D! /var/run/a/b - redis", rule("/run/a/b", 0o755, "redis", "root")),
            ("d /run/x ~0700", rule("/run/x", 0o700, "root", "root")),
            ("d /var/lib/x 0755 root root", None),
            ("d /run/../etc 0755 root root", None),
            ("d /run/user/%U 0755 root root", None),
            ("d /run/ 0755", None),
            ("f /run/file 0644", None),
            ("L /run/link - - - - /etc", None),
            ("d /run/x mode", None),
            ("# d /run/x", None),
            ("", None),
        ] {
            assert_eq!(Rule::parse(line), expected, "{line}");
        }
    }
}
