//! The root file system: an overlay of exactly two id-mapped trees, the image
//! and the sandbox's volume, made with the new mount API so that no host path
//! shows in the sandbox's mountinfo.
//!
//! The key step is `FSCONFIG_CMD_CREATE` under the sandbox's shifted root as
//! file-system id with the capabilities raised again (the kernel drops some of
//! them when the fsuid leaves 0): overlayfs keeps the mounter's credentials,
//! and only ids that the trees' mapping knows can write through it.
//!
//! Since 6.15 the kernel takes detached trees by descriptor. Before, a tree
//! must be attached in the mounter's own mount namespace and be named by path:
//! then the launcher takes a namespace of its own, which ends with it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::error::{Context as _, Error};
use crate::spec::{Drive, Spec};
use crate::sys;

/// Every tree stays open until the overlay is created: closing a detached tree
/// dissolves it.
struct Trees {
    lower: OwnedFd,
    volume: OwnedFd,
    upper_dir: OwnedFd,
    work_dir: OwnedFd,
}

/// How the kernel is told of a directory.
type Naming = fn(&OwnedFd, &CStr, BorrowedFd<'_>) -> io::Result<()>;

/// The detached overlay mount of `spec`, mapped for `userns`.
pub(crate) fn mount(spec: &Spec, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    let lower = mapped(&spec.lower, userns)?;
    let volume = mapped(&spec.volume, userns)?;
    let upper_dir = sys::open_at(&volume, c"u").context("open upper")?;
    let work_dir = sys::open_at(&volume, c"w").context("open work")?;
    let trees = Trees { lower, volume, upper_dir, work_dir };

    let fs = options()?;
    let fs = match create(&fs, &trees, spec.uid_base, sys::fsconfig_fd) {
        Ok(()) => fs,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL)) => {
            attach(&trees)?;
            let fs = options()?;
            create(&fs, &trees, spec.uid_base, sys::fsconfig_fd_path).context_with(|| described(&fs))?;
            fs
        }
        // More often it comes up without writes: see below.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EDQUOT | libc::ENOSPC)) => {
            return Err(Error::no_room(format!("the overlay is not made: {error}")));
        }
        Err(error) => return Err(Error::new(described(&fs), error)),
    };
    let root = sys::fsmount(&fs, sys::ATTR_NODEV).context("fsmount overlay")?;
    // Where it cannot make its work directory, overlayfs comes up without
    // writes and says so in the kernel's log alone.
    if sys::is_read_only(&root).context("look at the overlay")? {
        return Err(Error::no_room("the overlay takes no writes: no room for its work directory"));
    }
    Ok(root)
}

fn described(fs: &OwnedFd) -> String {
    format!("create overlay ({})", sys::fs_log(fs))
}

/// Redirects, so that directories of the image can be renamed; one space of
/// inode numbers for both trees, so that no two files have the same. No
/// indexes and metadata-only copies: both would tie a volume to the very
/// directory that it was first mounted from, and a snapshot is another one.
const OPTIONS: [(&CStr, &CStr); 4] =
    [(c"redirect_dir", c"on"), (c"xino", c"on"), (c"index", c"off"), (c"metacopy", c"off")];

fn options() -> Result<OwnedFd, Error> {
    let fs = sys::fsopen(c"overlay").context("fsopen overlay")?;
    for (key, value) in OPTIONS {
        sys::fsconfig_string(&fs, key, value).context("fsconfig overlay option")?;
    }
    Ok(fs)
}

fn create(fs: &OwnedFd, trees: &Trees, owner: u32, name: Naming) -> io::Result<()> {
    sys::become_fs_owner(owner)?;
    let created = (|| {
        name(fs, c"lowerdir+", trees.lower.as_fd())?;
        name(fs, c"upperdir", trees.upper_dir.as_fd())?;
        name(fs, c"workdir", trees.work_dir.as_fd())?;
        sys::fsconfig_create(fs)
    })();
    sys::restore_fs_owner();
    created
}

/// Attaches the trees in a mount namespace of the launcher's own. The child,
/// cloned before, sees none of it.
fn attach(trees: &Trees) -> Result<(), Error> {
    sys::unshare_mounts().context("unshare mount namespace")?;
    sys::make_private().context("make the launcher's mounts private")?;
    let stage = sys::fsopen(c"tmpfs").context("fsopen tmpfs for trees")?;
    sys::fsconfig_create(&stage).context("create tmpfs for trees")?;
    let stage = sys::fsmount(&stage, 0).context("fsmount tmpfs for trees")?;
    sys::attach_at_path(&stage, c"/tmp").context("attach tmpfs for trees")?;
    for (name, tree) in [(c"lower", &trees.lower), (c"volume", &trees.volume)] {
        let shown = || format!("attach {}", name.to_string_lossy());
        sys::mkdir_at(&stage, name, 0o755).context_with(shown)?;
        let place = sys::open_dir_strict(&stage, name).context_with(shown)?;
        sys::attach(tree, place.as_fd()).context_with(shown)?;
    }
    Ok(())
}

/// The files of a drive as a detached mount, mapped for `userns`.
pub(crate) fn drive(drive: &Drive, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    let tree = mapped(&drive.files, userns)?;
    let read_only = if drive.writable { 0 } else { sys::ATTR_RDONLY };
    sys::set_attributes(&tree, sys::ATTR_NOSUID | sys::ATTR_NODEV | read_only)
        .context_with(|| format!("protect {}", drive.files))?;
    Ok(tree)
}

fn mapped(path: &str, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    let tree = sys::open_tree_clone(path).context_with(|| format!("open_tree {path}"))?;
    sys::set_idmap(&tree, userns).context_with(|| format!("id-map {path}"))?;
    Ok(tree)
}
