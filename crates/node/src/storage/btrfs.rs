//! The driver over btrfs: a volume is a subvolume, a snapshot a read-only copy
//! of one; neither takes longer for more files.
//!
//! ```text
//!  2/1  cap of the pool
//!   ├─ 1/SANDBOX   limit of one sandbox: everything that its volumes wrote and
//!   │   └─ 0/…     that anybody still holds, those included that are gone
//!   └─ 0/…         images, snapshots, and one with a limit of its own: logs of commands
//! ```
//!
//! The quota group of a sandbox outlives each of its volumes, so a rollback
//! does not begin a new account.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{PoisonError, RwLock, TryLockError};

use dormouse_types::SandboxId;
use sha2::{Digest as _, Sha256};

use crate::sys::btrfs::{self, Group};

/// Group of everything in the pool.
const ALL: Group = Group::new(2, 1);

/// Group of a sandbox. 48 bits of a digest: two sandboxes of one pool that
/// shared a group would share their limit too, which takes millions of them.
fn group_of(sandbox: &SandboxId) -> Group {
    let digest = Sha256::digest(sandbox.as_str());
    let number = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Group::new(1, number)
}

/// Success too where it is there already.
fn idempotent(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[derive(Debug, Default)]
pub(super) struct Driver {
    /// Read by whoever makes a group and its member, written by whoever removes
    /// groups: one that has no member yet is not one that has none any more.
    groups: RwLock<()>,
}

impl Driver {
    /// Makes the group of everything, which `root` is the file system of.
    pub(super) fn prepare(&self, root: &File) -> io::Result<()> {
        idempotent(btrfs::create_group(root, ALL))
    }

    /// Makes the subvolume `name` below `parent`, which counts for the pool
    /// alone.
    pub(super) fn create(&self, parent: &Path, name: &str) -> io::Result<()> {
        btrfs::create(&File::open(parent)?, name, Some(ALL))
    }

    /// Limits what the subvolume at `path` may hold, in bytes.
    pub(super) fn limit_one(&self, path: &Path, limit: u64) -> io::Result<()> {
        let subvolume = File::open(path)?;
        btrfs::limit(&subvolume, btrfs::own_group(&subvolume)?, Some(limit))
    }

    /// Makes the empty volume `name` of a sandbox.
    pub(super) fn create_volume(
        &self,
        volumes: &Path,
        name: &str,
        sandbox: &SandboxId,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let parent = File::open(volumes)?;
        self.with_group(&parent, sandbox, limit, |group| btrfs::create(&parent, name, Some(group)))?;
        let path = volumes.join(name);
        // Only the launcher walks in here, as the host's root.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        for part in ["u", "w"] {
            fs::create_dir(path.join(part))?;
        }
        // The root directory of the sandbox.
        fs::set_permissions(path.join("u"), fs::Permissions::from_mode(0o755))
    }

    /// Makes the volume `name` of a sandbox a copy of `from`, which is on disk
    /// when this returns.
    pub(super) fn copy_volume(
        &self,
        from: &Path,
        volumes: &Path,
        name: &str,
        sandbox: &SandboxId,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let (source, parent) = (File::open(from)?, File::open(volumes)?);
        self.with_group(&parent, sandbox, limit, |group| {
            btrfs::snapshot(&source, &parent, name, false, Some(group))
        })
    }

    /// Makes a copy `name` of `from` that counts for the pool alone.
    pub(super) fn copy_counted(&self, from: &Path, parent: &Path, name: &str) -> io::Result<()> {
        btrfs::snapshot(&File::open(from)?, &File::open(parent)?, name, false, Some(ALL))
    }

    /// Makes a copy `name` of `from` that counts for nobody, until somebody gets it.
    pub(super) fn copy_ahead(&self, from: &Path, parent: &Path, name: &str) -> io::Result<()> {
        btrfs::snapshot(&File::open(from)?, &File::open(parent)?, name, false, None)
    }

    /// Gives such a copy to a sandbox, as its volume `name`.
    pub(super) fn hand_over(
        &self,
        copy: &Path,
        volumes: &Path,
        name: &str,
        sandbox: &SandboxId,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let own = btrfs::own_group(&File::open(copy)?)?;
        let parent = File::open(volumes)?;
        self.with_group(&parent, sandbox, limit, |group| {
            btrfs::assign(&parent, own, group)?;
            fs::rename(copy, volumes.join(name))
        })
    }

    /// Limits what counts for a sandbox, in bytes. Harmless where it has no
    /// group.
    pub(super) fn set_limit(&self, root: &Path, sandbox: &SandboxId, limit: Option<u64>) -> io::Result<()> {
        match btrfs::limit(&File::open(root)?, group_of(sandbox), limit) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn with_group(
        &self,
        fs: &File,
        sandbox: &SandboxId,
        limit: Option<u64>,
        make: impl FnOnce(Group) -> io::Result<()>,
    ) -> io::Result<()> {
        let group = group_of(sandbox);
        let _nobody_tidies = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        idempotent(btrfs::create_group(fs, group))?;
        idempotent(btrfs::assign(fs, group, ALL))?;
        btrfs::limit(fs, group, limit)?;
        make(group)
    }

    /// Makes a read-only copy `name` of the volume at `volume`, as it is now.
    pub(super) fn snapshot(&self, volume: &Path, snapshots: &Path, name: &str) -> io::Result<()> {
        btrfs::snapshot(&File::open(volume)?, &File::open(snapshots)?, name, true, Some(ALL))
    }

    /// Returns when everything that was written to the volume at `volume`
    /// survives the death of the host.
    ///
    /// By a read-only copy that goes at once: it writes the data of this volume
    /// alone, where `syncfs(2)` would write everybody's.
    pub(super) fn seal(&self, volume: &Path, scratch: &Path, name: &str) -> io::Result<()> {
        // What an interrupted seal left is not what the files are now.
        self.delete(scratch, name)?;
        self.snapshot(volume, scratch, name)?;
        self.delete(scratch, name)
    }

    /// Like [`Driver::seal`], where a copy follows at once: what the copy for this
    /// held goes when that one is committed.
    pub(super) fn write_back(&self, volume: &Path, scratch: &Path, name: &str) -> io::Result<()> {
        self.delete(scratch, name)?;
        self.snapshot(volume, scratch, name)?;
        btrfs::delete(&File::open(scratch)?, name)
    }

    /// Deletes the subvolume `name` below `parent`, if it is there. What it
    /// alone holds is free some milliseconds later, or, where a process that is
    /// on its way out still has files of it open, after
    /// [`Driver::free_deleted`].
    pub(super) fn delete(&self, parent: &Path, name: &str) -> io::Result<()> {
        let parent = File::open(parent)?;
        match btrfs::delete(&parent, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => btrfs::begin_commit(&parent).map(drop),
        }
    }

    /// Has the kernel free what was deleted: subvolumes and, with `files`, files
    /// as well. Either takes a commit, which else may be half a minute away.
    pub(super) fn free_deleted(&self, root: &Path, files: bool) -> io::Result<()> {
        let root = File::open(root)?;
        if btrfs::being_deleted(&root)? > 0 {
            btrfs::free_deleted(&root)
        } else if files {
            btrfs::begin_commit(&root).map(drop)
        } else {
            Ok(())
        }
    }

    /// Bytes that count for a sandbox.
    pub(super) fn used(&self, root: &Path, sandbox: &SandboxId) -> io::Result<u64> {
        btrfs::group_used(&File::open(root)?, group_of(sandbox))
    }

    /// Bytes that the subvolume at `path` wrote and that are still there.
    pub(super) fn written(&self, path: &Path) -> io::Result<u64> {
        let subvolume = File::open(path)?;
        btrfs::group_used(&subvolume, Group::of_subvolume(btrfs::subvolume_id(&subvolume)?))
    }

    /// Bytes that everything in the pool uses; with `exactly`, after a commit.
    pub(super) fn all_used(&self, root: &Path, exactly: bool) -> io::Result<u64> {
        let root = File::open(root)?;
        if exactly {
            btrfs::commit(&root)?;
        }
        btrfs::group_used(&root, ALL)
    }

    /// Limits what everything in the pool may use.
    pub(super) fn set_cap(&self, root: &Path, bytes: u64) -> io::Result<()> {
        btrfs::limit(&File::open(root)?, ALL, Some(bytes))
    }

    /// Removes groups that nothing counts for any more; how many. The kernel
    /// keeps the group of a deleted subvolume while others hold its extents.
    pub(super) fn tidy_groups(&self, root: &Path) -> io::Result<usize> {
        let root = File::open(root)?;
        // Nobody waits for tidying: the next round finds what is left.
        let _nobody_makes = match self.groups.try_write() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(0),
        };
        let groups = btrfs::groups(&root)?;
        let there = btrfs::subvolumes(&root)?;
        let mut gone = std::collections::BTreeSet::new();
        for (group, used) in &groups.used {
            let idle = *used == 0
                && match group.level() {
                    // 5 is the file system's own root.
                    0 => group.number() >= 256 && !there.contains(&group.number()),
                    1 => groups.members.get(group).is_none_or(|members| members.is_subset(&gone)),
                    _ => false,
                };
            if idle {
                match btrfs::remove_group(&root, *group) {
                    Ok(()) => drop(gone.insert(*group)),
                    // Something was written meanwhile, or the kernel did it.
                    Err(error)
                        if matches!(
                            error.raw_os_error(),
                            Some(libc::EBUSY | libc::ENOENT | libc::EINVAL)
                        ) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(gone.len())
    }
}
