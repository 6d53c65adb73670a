//! Trees in the pool that are nobody's yet: they are filled, become images, and go.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::{Driver, ImageFile, Scratch, Storage, remove_tree};
use crate::sys;

impl Storage {
    /// Removes what an earlier process left half-made, unless its maker lives.
    pub(crate) fn clear_scratch(&self) -> io::Result<()> {
        let _open = self.access()?;
        self.images.clear_partial()?;
        for name in self.names("scratch")? {
            match sys::lock_existing(&self.root.join("scratch").join(&name)) {
                Ok(_lock) => self.delete_scratch(&name)?,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn delete_scratch(&self, name: &str) -> io::Result<()> {
        let parent = self.root.join("scratch");
        match &self.driver {
            Driver::Btrfs { driver, .. } => driver.delete(&parent, name),
            Driver::Plain => remove_tree(&parent, name),
        }
    }

    /// An empty tree to be filled and made an image of.
    pub(crate) fn start_image(&self) -> io::Result<Scratch> {
        let _open = self.access()?;
        let name = format!("image-{}", uuid::Uuid::now_v7().simple());
        let parent = self.root.join("scratch");
        let whole = parent.join(&name);
        match &self.driver {
            Driver::Btrfs { driver, .. } => driver.create(&parent, &name)?,
            Driver::Plain => fs::create_dir(&whole)?,
        }
        let lock = sys::lock_existing(&whole)?;
        let path = whole.join("root");
        // Fails when a server that starts just now took it for left over.
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Scratch { name, path, _lock: lock })
    }

    /// Makes an image of a tree, which goes.
    pub(crate) fn finish_image(&self, scratch: Scratch, progress: &dyn Fn(&str)) -> io::Result<ImageFile> {
        let _open = self.access()?;
        let made = self.images.make(&scratch.path, progress);
        self.delete_scratch(&scratch.name)?;
        made
    }

    /// Gives up a tree.
    pub(crate) fn drop_image(&self, scratch: Scratch) -> io::Result<()> {
        let _open = self.access()?;
        self.delete_scratch(&scratch.name)
    }

    /// Where an image is mounted, once it is.
    pub(crate) fn mount_image(&self, digest: &str) -> io::Result<PathBuf> {
        let _open = self.access()?;
        self.images.mount(digest)
    }
}
