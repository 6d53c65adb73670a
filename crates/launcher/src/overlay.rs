//! The root file system: id-mapped layers under one overlay mount, made with
//! the new mount API so that no host path shows in the sandbox's mountinfo.
//!
//! The key step is `FSCONFIG_CMD_CREATE` under the sandbox's shifted root as
//! file-system id with the capabilities raised again (the kernel drops some of
//! them when the fsuid leaves 0): overlayfs keeps the mounter's credentials,
//! and only ids that the layers' mapping knows can write through it.
//!
//! Since 6.15 the kernel takes detached trees by descriptor. Before, a layer
//! must be attached in the mounter's own mount namespace and be named by path:
//! then the launcher takes a namespace of its own, which ends with it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::error::{Context as _, Error};
use crate::spec::Spec;
use crate::sys;

/// Every tree stays open until the overlay is created: closing a detached tree
/// dissolves it.
struct Trees {
    lowers: Vec<OwnedFd>,
    upper: OwnedFd,
    upper_dir: OwnedFd,
    work_dir: OwnedFd,
}

/// How the kernel is told of a directory.
type Naming = fn(&OwnedFd, &CStr, BorrowedFd<'_>) -> io::Result<()>;

/// The detached overlay mount of `spec`, mapped for `userns`.
pub(crate) fn mount(spec: &Spec, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    let mut lowers = Vec::with_capacity(spec.lowers.len());
    for path in &spec.lowers {
        lowers.push(mapped(path, userns)?);
    }
    let upper = mapped(&spec.upper, userns)?;
    let upper_dir = sys::open_at(&upper, c"u").context("open upper")?;
    let work_dir = sys::open_at(&upper, c"w").context("open work")?;
    let trees = Trees { lowers, upper, upper_dir, work_dir };

    let fs = options()?;
    let fs = match create(&fs, &trees, spec.uid_base, sys::fsconfig_fd) {
        Ok(()) => fs,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL)) => {
            attach(&trees)?;
            let fs = options()?;
            create(&fs, &trees, spec.uid_base, sys::fsconfig_fd_path)
                .context_with(|| described(spec, &fs))?;
            fs
        }
        Err(error) => return Err(Error::new(described(spec, &fs), error)),
    };
    sys::fsmount(&fs, sys::ATTR_NODEV).context("fsmount overlay")
}

fn described(spec: &Spec, fs: &OwnedFd) -> String {
    format!("create overlay of {} layers ({})", spec.lowers.len(), sys::fs_log(fs))
}

fn options() -> Result<OwnedFd, Error> {
    let fs = sys::fsopen(c"overlay").context("fsopen overlay")?;
    // Redirects, indexes and metadata-only copies would tie a frozen upper
    // directory to the stack that it was written over.
    for (key, value) in
        [(c"redirect_dir", c"off"), (c"index", c"off"), (c"metacopy", c"off"), (c"xino", c"off")]
    {
        sys::fsconfig_string(&fs, key, value).context("fsconfig overlay option")?;
    }
    Ok(fs)
}

fn create(fs: &OwnedFd, trees: &Trees, owner: u32, name: Naming) -> io::Result<()> {
    sys::become_fs_owner(owner)?;
    let created = (|| {
        for lower in &trees.lowers {
            name(fs, c"lowerdir+", lower.as_fd())?;
        }
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
    let stage = sys::fsopen(c"tmpfs").context("fsopen tmpfs for layers")?;
    sys::fsconfig_create(&stage).context("create tmpfs for layers")?;
    let stage = sys::fsmount(&stage, 0).context("fsmount tmpfs for layers")?;
    sys::attach_at_path(&stage, c"/tmp").context("attach tmpfs for layers")?;
    for (number, tree) in trees.lowers.iter().chain([&trees.upper]).enumerate() {
        let shown = || format!("attach layer {number}");
        let name = CString::new(number.to_string()).unwrap_or_default();
        sys::mkdir_at(&stage, &name, 0o755).context_with(shown)?;
        let place = sys::open_dir_strict(&stage, &name).context_with(shown)?;
        sys::attach(tree, place.as_fd()).context_with(shown)?;
    }
    Ok(())
}

fn mapped(path: &str, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    let tree = sys::open_tree_clone(path).context_with(|| format!("open_tree {path}"))?;
    sys::set_idmap(&tree, userns).context_with(|| format!("id-map {path}"))?;
    Ok(tree)
}
