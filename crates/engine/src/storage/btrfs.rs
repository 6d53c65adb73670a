//! The pool's file system: found, or made in a sparse image and mounted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;

use crate::sys;

/// `BTRFS_SUPER_MAGIC` (`statfs(2)`).
const MAGIC: i64 = 0x9123_683E;

/// Makes sure that `root` is a btrfs file system of its own with quotas on.
pub(super) fn ensure_mounted(root: &Path, image: &Path, size: u64) -> io::Result<()> {
    if is_mount_point(root)? {
        return if sys::statfs(root)?.0 == MAGIC {
            Ok(())
        } else {
            Err(io::Error::other(format!("{} is mounted, but not as btrfs", root.display())))
        };
    }
    if !image.exists() {
        // Under another name first: a crash must not leave half a file system.
        let partial = image.with_extension("partial");
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&partial)?;
        file.set_len(size)?;
        drop(file);
        command("mkfs.btrfs", |c| {
            c.args(["--quiet", "--metadata", "single", "--data", "single"]).arg(&partial)
        })?;
        fs::rename(&partial, image)?;
    }
    command("mount", |c| c.args(["-t", "btrfs", "-o", "loop,noatime,discard=async"]).arg(image).arg(root))?;
    let quotas = File::open(root).and_then(|dir| sys::quota_enable(&dir));
    if let Err(error) = quotas {
        // Without quotas a limit would be accepted and not enforced.
        unmount(root)?;
        return Err(io::Error::new(error.kind(), format!("turn on btrfs quotas: {error}")));
    }
    Ok(())
}

pub(super) fn unmount(root: &Path) -> io::Result<()> {
    if root.exists() && is_mount_point(root)? { command("umount", |c| c.arg(root)) } else { Ok(()) }
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

fn command(program: &str, args: impl FnOnce(&mut Command) -> &mut Command) -> io::Result<()> {
    let mut command = Command::new(program);
    args(&mut command);
    let output = command.output().map_err(|error| {
        io::Error::new(error.kind(), format!("run {program} (is btrfs-progs installed?): {error}"))
    })?;
    if output.status.success() {
        Ok(())
    } else {
        let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Err(io::Error::other(format!("{program}: {text}")))
    }
}
