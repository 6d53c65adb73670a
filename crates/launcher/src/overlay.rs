//! The root file system: id-mapped layers under one overlay mount, made with
//! the new mount API so that no host path shows in the sandbox's mountinfo.
//!
//! The key step is `FSCONFIG_CMD_CREATE` under the sandbox's shifted root as
//! file-system id with the capabilities raised again (the kernel drops some of
//! them when the fsuid leaves 0): overlayfs keeps the mounter's credentials,
//! and only ids that the layers' mapping knows can write through it.

use std::os::fd::{AsFd as _, OwnedFd};

use crate::error::{Context as _, Error};
use crate::spec::Spec;
use crate::sys;

/// The detached overlay mount of `spec`, mapped for `userns`.
pub(crate) fn mount(spec: &Spec, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    // Every tree stays open until the overlay is created: closing a detached
    // tree dissolves it.
    let mut lowers = Vec::with_capacity(spec.lowers.len());
    for path in &spec.lowers {
        lowers.push(mapped(path, userns)?);
    }
    let upper = mapped(&spec.upper, userns)?;
    let upper_dir = sys::open_at(&upper, c"u").context("open upper")?;
    let work_dir = sys::open_at(&upper, c"w").context("open work")?;

    let fs = sys::fsopen(c"overlay").context("fsopen overlay")?;
    // Redirects, indexes and metadata-only copies would tie a frozen upper
    // directory to the stack that it was written over.
    for (key, value) in
        [(c"redirect_dir", c"off"), (c"index", c"off"), (c"metacopy", c"off"), (c"xino", c"off")]
    {
        sys::fsconfig_string(&fs, key, value).context("fsconfig overlay option")?;
    }
    sys::become_fs_owner(spec.uid_base).context("take the sandbox's file-system id")?;
    let created = (|| {
        for lower in &lowers {
            sys::fsconfig_fd(&fs, c"lowerdir+", lower.as_fd())?;
        }
        sys::fsconfig_fd(&fs, c"upperdir", upper_dir.as_fd())?;
        sys::fsconfig_fd(&fs, c"workdir", work_dir.as_fd())?;
        sys::fsconfig_create(&fs)
    })();
    sys::restore_fs_owner();
    created
        .context_with(|| format!("create overlay of {} layers: {}", spec.lowers.len(), sys::fs_log(&fs)))?;
    sys::fsmount(&fs, sys::ATTR_NODEV).context("fsmount overlay")
}

fn mapped(path: &str, userns: &OwnedFd) -> Result<OwnedFd, Error> {
    let tree = sys::open_tree_clone(path).context_with(|| format!("open_tree {path}"))?;
    sys::set_idmap(&tree, userns).context_with(|| format!("id-map {path}"))?;
    Ok(tree)
}
