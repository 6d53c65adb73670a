//! Room that the database keeps for itself, so that it can go on when its disk
//! is full: blocks beyond the end of its two files, which nobody else can take.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// What each of the files gets, in bytes. A transaction writes some pages of
/// 4 KiB; the log begins anew every 4 MiB.
const ROOM: u64 = 16 << 20;

/// Room of one database.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    /// Never closed while there are connections: closing any descriptor of a
    /// file gives up all locks that the process has on it (`fcntl_locking(2)`),
    /// those of SQLite included.
    main: File,
    log: PathBuf,
}

impl Room {
    pub(crate) fn new(path: &Path, log: PathBuf) -> io::Result<Self> {
        let main = OpenOptions::new().write(true).open(path)?;
        Ok(Self { path: path.to_owned(), main, log })
    }

    /// Takes what is missing; whether all of it is there then. A file system
    /// that cannot reserve room has all that it can.
    ///
    /// # Errors
    /// Others than a full disk.
    pub(crate) fn keep(&self) -> io::Result<bool> {
        let main = keep(&self.main, &fs::metadata(&self.path)?)?;
        // SQLite locks other files than the log.
        let log = match OpenOptions::new().write(true).open(&self.log) {
            Ok(file) => keep(&file, &file.metadata()?)?,
            // It comes with the first write.
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        Ok(main && log)
    }
}

fn keep(file: &File, found: &fs::Metadata) -> io::Result<bool> {
    let taken = found.blocks() * 512;
    if taken >= found.len() + ROOM / 2 {
        return Ok(true);
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, found.len(), ROOM) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(true),
        Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
