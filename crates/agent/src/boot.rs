//! What the host asks for before the first command: small system files and
//! the working directory. Done as root, inside the sandbox's own root, so the
//! worst that a hostile image can do with a link is to harm itself.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::Path;

use dormouse_agent_protocol::BootFile;

use crate::users;

pub(crate) fn prepare(files: &[BootFile], workdir: &str, user: &str) -> io::Result<()> {
    for file in files {
        place(file).map_err(|error| named(&error, "write", &file.path))?;
    }
    if !Path::new(workdir).is_dir() {
        fs::create_dir_all(workdir).map_err(|error| named(&error, "make", workdir))?;
        let user = users::find(user)?;
        chown(workdir, Some(user.uid), Some(user.gid)).map_err(|error| named(&error, "chown", workdir))?;
    }
    Ok(())
}

fn place(file: &BootFile) -> io::Result<()> {
    let path = Path::new(&file.path);
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| !found.is_file());
    if !is_link && fs::read(path).is_ok_and(|found| found == file.content.as_bytes()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    options.open(path)?.write_all(file.content.as_bytes())
}

fn named(error: &io::Error, verb: &str, path: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{verb} {path} in the sandbox: {error}"))
}
