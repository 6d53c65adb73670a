//! What the host asks for before the first command: small system files, the
//! working directory, the directories of `/run`. Done as root, inside the
//! sandbox's own root, so the worst that a hostile image can do with a link is
//! to harm itself.
//!
//! Nothing here keeps a sandbox from starting: what cannot be done is a
//! warning. Whoever broke a file wants in to mend it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::Path;

use dormouse_agent_protocol::{BootFile, Placing};

use crate::{run_dirs, users};

/// First and last line of our block in a file that is the sandbox's otherwise.
const BLOCK: (&str, &str) = ("# dormouse: begin (written at every start)", "# dormouse: end");

/// Largest file that a block is put into, in bytes: a list of all public certificate
/// authorities has 220,000.
const MAX_FILE: u64 = 1 << 20;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) warnings: Vec<String>,
    pub(crate) workdir: Workdir,
}

/// The directory of commands that name none.
#[derive(Debug, Clone)]
pub(crate) struct Workdir {
    asked: String,
    user: String,
}

impl Workdir {
    /// The directory in which a command starts that asks for `cwd`. The default
    /// one is made again where it has gone, and `/` stands for it where it
    /// cannot be.
    pub(crate) fn resolve<'a>(&self, cwd: &'a str) -> Start<'a> {
        let is_default = cwd == self.asked;
        Start { dir: if is_default && self.ensure().is_err() { "/" } else { cwd }, is_default }
    }

    fn ensure(&self) -> io::Result<()> {
        if Path::new(&self.asked).is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.asked)?;
        let user = users::find(&self.user);
        chown(&self.asked, Some(user.uid), Some(user.gid))
    }
}

/// Where a command starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) dir: &'a str,
    /// Nobody asked for this one, so `/` does where the user may not enter it.
    pub(crate) is_default: bool,
}

/// Does everything that can be done.
pub(crate) fn prepare(files: &[BootFile], workdir: &str, user: &str, image_run: Option<OwnedFd>) -> Booted {
    let mut warnings = Vec::new();
    for file in files {
        if let Err(error) = place(file) {
            warnings.push(format!("{} could not be written: {error}", file.path));
        }
    }
    if let Err(error) = run_dirs::make(image_run) {
        warnings.push(format!("/run lacks directories: {error}"));
    }
    if !users::exists(user) {
        warnings.push(format!("the sandbox has no user {user:?}; commands run as uid 1000"));
    }
    let workdir = Workdir { asked: workdir.to_owned(), user: user.to_owned() };
    if let Err(error) = workdir.ensure() {
        warnings.push(format!(
            "the working directory {} cannot be made: {error}; / stands for it",
            workdir.asked
        ));
    }
    Booted { warnings, workdir }
}

fn place(file: &BootFile) -> io::Result<()> {
    let path = Path::new(&file.path);
    if let Some(parent) = path.parent().filter(|_| file.placing != Placing::BlockIfThere) {
        fs::create_dir_all(parent)?;
    }
    let found = match file.placing {
        Placing::LinkToFirst => return link_to_first(path, &file.content),
        Placing::Whole => None,
        Placing::Block | Placing::Absent | Placing::BlockIfThere => read(path)?,
    };
    match (file.placing, found) {
        (Placing::Whole, _) => write(path, &file.content),
        (Placing::Absent, Some(text)) if !text.trim().is_empty() => Ok(()),
        (Placing::Absent, _) => write(path, &file.content),
        (Placing::BlockIfThere, None) | (Placing::LinkToFirst, _) => Ok(()),
        (Placing::Block | Placing::BlockIfThere, found) => {
            let text = with_block(found.as_deref().unwrap_or_default(), &file.content);
            match found {
                Some(found) if found == text => Ok(()),
                // In place: owner, mode and other names of it stay. Over the old
                // text, not after it was cut off: on a full disk that is all
                // there would be.
                Some(_) => {
                    let file = OpenOptions::new().write(true).open(path)?;
                    file.write_all_at(text.as_bytes(), 0)?;
                    file.set_len(text.len() as u64)
                }
                None => write(path, &text),
            }
        }
    }
}

fn link_to_first(path: &Path, candidates: &str) -> io::Result<()> {
    let there = candidates.lines().find(|candidate| Path::new(candidate).exists());
    let Some(target) = there.or_else(|| candidates.lines().next()) else { return Ok(()) };
    if fs::read_link(path).is_ok_and(|found| found == Path::new(target)) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, path)
}

/// Text of a file, through links; `None` where there is nothing, or a link to
/// nothing.
fn read(path: &Path) -> io::Result<Option<String>> {
    // Never a FIFO's open that waits.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > MAX_FILE {
        return Err(io::Error::other("it is too large"));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// A new file of this content; a link in its place goes.
fn write(path: &Path, content: &str) -> io::Result<()> {
    let plain = fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_file() && found.nlink() == 1 && found.len() <= MAX_FILE);
    if plain && fs::read(path).is_ok_and(|found| found == content.as_bytes()) {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NOFOLLOW);
    if plain && let Ok(file) = options.open(path) {
        // In place: whoever knows the file by its number finds it.
        file.write_all_at(content.as_bytes(), 0)?;
        return file.set_len(content.len() as u64);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    options.create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    options.open(path)?.write_all(content.as_bytes())
}

/// `text` with our block in it: where it was, or before everything else.
fn with_block(text: &str, content: &str) -> String {
    let (begin, end) = BLOCK;
    let block = format!("{begin}\n{content}{end}\n");
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = lines.iter().position(|line| line.trim_end() == begin);
    let until = at.and_then(|at| {
        let after = lines[at..].iter().position(|line| line.trim_end() == end)?;
        Some(at + after + 1)
    });
    match (at, until) {
        (Some(at), Some(until)) => [lines[..at].concat(), block, lines[until..].concat()].concat(),
        _ => block + text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_lines_are_refreshed() {
        let first = with_block("", "127.0.0.1 localhost\n");
        let edited = format!("# mine\n{first}10.0.0.1 db\n");
        let again = with_block(&edited, "127.0.0.1 localhost other\n");
        assert!(again.starts_with("# mine\n") && again.ends_with("10.0.0.1 db\n"), "{again}");
        assert_eq!(again.matches("127.0.0.1").count(), 1);
        assert!(again.contains("localhost other"));
        assert_eq!(with_block(&again, "127.0.0.1 localhost other\n"), again);
        // Half a block is no block.
        let broken = again.replace(BLOCK.1, "");
        assert!(with_block(&broken, "x\n").ends_with(&broken));
    }

    #[test]
    fn what_is_there_is_treated_as_asked() {
        let dir = std::env::temp_dir().join(format!("boot-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, placing| BootFile {
            path: dir.join(name).to_str().unwrap().to_owned(),
            content: "ours\n".to_owned(),
            placing,
        };
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        fs::write(dir.join("name"), "theirs\n").unwrap();
        place(&file("name", Placing::Absent)).unwrap();
        assert_eq!(text("name"), "theirs\n");
        place(&file("name", Placing::Whole)).unwrap();
        assert_eq!(text("name"), "ours\n");
        std::os::unix::fs::symlink("/nowhere/at/all", dir.join("link")).unwrap();
        place(&file("link", Placing::Block)).unwrap();
        assert!(text("link").contains("ours"));
        fs::write(dir.join("real"), "theirs\n").unwrap();
        std::os::unix::fs::symlink("real", dir.join("other")).unwrap();
        place(&file("other", Placing::Block)).unwrap();
        assert!(text("real").contains("ours") && text("real").contains("theirs"));
        fs::create_dir(dir.join("dir")).unwrap();
        for placing in [Placing::Whole, Placing::Block, Placing::Absent, Placing::BlockIfThere] {
            assert!(place(&file("dir", placing)).is_err());
        }
        let link = |candidates: &[&str]| BootFile {
            content: candidates.iter().map(|name| dir.join(name).display().to_string() + "\n").collect(),
            ..file("first", Placing::LinkToFirst)
        };
        place(&link(&["gone", "real"])).unwrap();
        assert_eq!(fs::read_link(dir.join("first")).unwrap(), dir.join("real"));
        place(&link(&["gone", "away"])).unwrap();
        assert_eq!(fs::read_link(dir.join("first")).unwrap(), dir.join("gone"));
        place(&file("no/such", Placing::BlockIfThere)).unwrap();
        assert!(!dir.join("no").exists());
        fs::write(dir.join("list"), "theirs\n").unwrap();
        place(&file("list", Placing::BlockIfThere)).unwrap();
        assert!(text("list").contains("ours") && text("list").contains("theirs"));
        fs::remove_dir_all(dir).unwrap();
    }
}
