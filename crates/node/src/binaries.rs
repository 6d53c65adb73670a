//! The embedded agent and launcher, and their place on disk.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use dormouse_types::hex;
use sha2::{Digest as _, Sha256};

use crate::seccomp;

const AGENT: &[u8] = include_bytes!(env!("DORMOUSE_AGENT"));
const LAUNCHER: &[u8] = include_bytes!(env!("DORMOUSE_LAUNCHER"));

/// Where the parts of a launch lie on this host.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) agent: PathBuf,
    pub(crate) launcher: PathBuf,
    pub(crate) seccomp: PathBuf,
}

impl Binaries {
    /// Writes what is not there yet. Names carry a digest, so a newer server
    /// never replaces a file that a running sandbox executes. `own_filters` as
    /// [`crate::config::KernelLimits`] has it.
    pub(crate) fn install(dir: &Path, own_filters: bool) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            // Executable but not readable for other ids: the kernel then makes
            // PID 1 undumpable, so nothing inside can trace or read it.
            agent: place(dir, "agent", AGENT, 0o711)?,
            launcher: place(dir, "launcher", LAUNCHER, 0o700)?,
            seccomp: place(dir, "seccomp", &seccomp::compile(own_filters), 0o600)?,
        })
    }
}

fn place(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let digest = Sha256::digest(bytes);
    let suffix = hex(&digest[..8]);
    let path = dir.join(format!("{name}-{suffix}"));
    if fs::read(&path).is_ok_and(|found| found == bytes) {
        return Ok(path);
    }
    let partial = dir.join(format!("{name}-{suffix}.{}", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::set_permissions(&partial, fs::Permissions::from_mode(mode))?;
    fs::rename(&partial, &path)?;
    Ok(path)
}
