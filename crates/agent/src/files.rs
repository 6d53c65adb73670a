//! File operations. Each runs in a forked helper that has taken on the user's
//! rights, so the kernel answers every question of permission, and a path that
//! leads out of the sandbox's root does not exist for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use dormouse_agent_protocol::{Decoder, Errno, Frame, MAX_DATA, Request};

use crate::command::OOM_ADJUSTMENT;
use crate::{place, sys, users};

/// Runs the operation on `socket` and exits.
pub(crate) fn serve(socket: &OwnedFd, decoder: Decoder, request: &Request) -> ! {
    let code = match sys::keep_only(socket) {
        Ok(socket) => {
            // An archive may say that a name has 300 MB: then this goes, not the agent.
            let _ = sys::adjust_oom_score(OOM_ADJUSTMENT);
            i32::from(operate(socket, decoder, request).is_err())
        }
        Err(_) => 1,
    };
    sys::exit_now(code)
}

fn operate(socket: OwnedFd, decoder: Decoder, request: &Request) -> io::Result<()> {
    sys::set_nonblocking(&socket, false)?;
    let mut socket = File::from(socket);
    let outcome = perform(&mut socket, decoder, request);
    let last = match outcome {
        Ok(()) => Frame::End,
        Err(error) => Frame::Error(errno(&error)),
    };
    socket.write_all(&last.to_bytes())
}

fn perform(socket: &mut File, decoder: Decoder, request: &Request) -> io::Result<()> {
    match request {
        Request::WriteTar { cwd, gzip, user } => {
            become_user(user)?;
            let data = DataReader { socket, decoder, rest: Vec::new(), at: 0, ended: false };
            if *gzip { unpack(flate2::read::MultiGzDecoder::new(data), cwd) } else { unpack(data, cwd) }
        }
        Request::ReadFile { path, cwd, user } => {
            become_user(user)?;
            send_file(socket, &Path::new(cwd).join(path))
        }
        Request::Mkdir { path, cwd, recursive, user } => {
            become_user(user)?;
            let path = Path::new(cwd).join(path);
            let made = fs::DirBuilder::new().recursive(*recursive).mode(0o755).create(&path);
            made.map_err(|error| about(&error, "mkdir", &path))
        }
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Makes the directory of an upload; a file in its place is `ENOTDIR`, as for a
/// plain `open`.
fn make_parent(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| {
        let is_file = error.kind() == io::ErrorKind::AlreadyExists && path.is_file();
        let error = if is_file { io::Error::from_raw_os_error(libc::ENOTDIR) } else { error };
        about(&error, "mkdir", path)
    })
}

fn become_user(name: &str) -> io::Result<()> {
    let user = users::find(name);
    sys::become_user(user.uid, user.gid, &user.groups)
}

/// The error as the caller sees it: errno kept, operation and path named.
fn about(error: &io::Error, verb: &str, path: &Path) -> io::Error {
    let code = code_of(error);
    io::Error::new(error.kind(), Named { code, message: format!("{verb} {}: {error}", path.display()) })
}

#[derive(Debug)]
struct Named {
    code: i32,
    message: String,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Named {}

pub(crate) fn errno(error: &io::Error) -> Errno {
    let named = error.get_ref().and_then(|inner| inner.downcast_ref::<Named>());
    let errno = named.map_or_else(|| code_of(error), |named| named.code);
    Errno { errno, message: error.to_string() }
}

/// The errno of an error, also where a library kept only its kind.
fn code_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::NotFound => libc::ENOENT,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::AlreadyExists => libc::EEXIST,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::NotADirectory => libc::ENOTDIR,
        io::ErrorKind::IsADirectory => libc::EISDIR,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other => libc::EINVAL,
        _ => libc::EIO,
    })
}

fn send_file(socket: &mut File, path: &Path) -> io::Result<()> {
    // O_NONBLOCK: opening a FIFO must not hang the helper for ever.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let mut file = options.open(path).map_err(|error| about(&error, "open", path))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let code = if metadata.is_dir() { libc::EISDIR } else { libc::EINVAL };
        return Err(about(&io::Error::from_raw_os_error(code), "read", path));
    }
    let mut buffer = vec![0; MAX_DATA];
    loop {
        match file.read(&mut buffer).map_err(|error| about(&error, "read", path))? {
            0 => return Ok(()),
            read => socket.write_all(&Frame::Data(buffer[..read].to_vec()).to_bytes())?,
        }
    }
}

fn unpack(archive: impl Read, cwd: &str) -> io::Result<()> {
    let root = Path::new(cwd);
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_unpack_xattrs(false);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = contained(&entry.path()?)?;
        let kind = entry.header().entry_type();
        let path = root.join(&name);
        use tar::EntryType::{Continuous, Directory, GNUSparse, Link, Regular, Symlink};
        if !matches!(kind, Regular | Continuous | GNUSparse | Directory | Symlink | Link) {
            let error = io::Error::from_raw_os_error(libc::EPERM);
            return Err(about(&error, "unpack special file", &path));
        }
        if name.as_os_str().is_empty() {
            continue;
        }
        if let Some(parent) = path.parent() {
            make_parent(parent)?;
        }
        if kind == Link {
            // Names in the archive are relative to `cwd`, link targets too.
            let target = entry.link_name()?.unwrap_or_default();
            let target = root.join(contained(&target)?);
            let _ = fs::remove_file(&path);
            fs::hard_link(&target, &path).map_err(|error| about(&error, "link", &path))?;
            continue;
        }
        if kind == Symlink || kind == Directory || kind == GNUSparse {
            entry.unpack(&path).map_err(|error| about(&error, "unpack", &path))?;
            continue;
        }
        let mode = entry.header().mode().unwrap_or(place::NOT_ASKED) & 0o7777;
        let mut content = Whole { left: entry.size(), entry };
        place::file(&path, &mut content, mode).map_err(|error| about(&error, "write", &path))?;
    }
    Ok(())
}

/// The content of an entry: an archive that ends before it does is an error, and not a
/// shorter file.
struct Whole<R> {
    entry: R,
    left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.entry.read(out)?;
        if read == 0 && self.left > 0 && !out.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

/// The entry's name with leading slashes and dots taken off.
fn contained(name: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                return Err(about(
                    &io::Error::from_raw_os_error(libc::EINVAL),
                    "unpack a name with ..",
                    name,
                ));
            }
        }
    }
    Ok(clean)
}

/// The data frames of a connection as one stream.
struct DataReader<'a> {
    socket: &'a mut File,
    decoder: Decoder,
    rest: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for DataReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() && !self.ended {
            match self.decoder.next_frame().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
                Some(Frame::Data(data)) => (self.rest, self.at) = (data, 0),
                Some(Frame::End) => self.ended = true,
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => {
                    let mut buffer = [0; 16 << 10];
                    let read = self.socket.read(&mut buffer)?;
                    if read == 0 {
                        // The sender went away in the middle.
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.decoder.push(&buffer[..read]);
                }
            }
        }
        let count = out.len().min(self.rest.len() - self.at);
        out[..count].copy_from_slice(&self.rest[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::{Whole, contained};
    use std::io::Read as _;
    use std::path::{Path, PathBuf};

    #[test]
    fn half_a_file_is_an_error() {
        let mut text = String::new();
        Whole { entry: &b"whole"[..], left: 5 }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
        let cut = Whole { entry: &b"who"[..], left: 5 }.read_to_string(&mut text);
        assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn names_stay_below_the_working_directory() {
        assert_eq!(contained(Path::new("/etc/./passwd")).unwrap(), PathBuf::from("etc/passwd"));
        assert!(contained(Path::new("a/../../b")).is_err());
        assert!(contained(Path::new("..")).is_err());
    }
}
