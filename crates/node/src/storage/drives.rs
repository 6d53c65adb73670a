//! Drives in the pool: a subvolume each, which the sandbox sees without an overlay, and
//! read-only copies of them for runs that see a moment of theirs.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use dormouse_types::DriveId;

use super::{Driver, Storage, btrfs};

impl Storage {
    /// The driver, if it has drives.
    fn has_drives(&self) -> io::Result<&btrfs::Driver> {
        match &self.driver {
            Driver::Btrfs { driver, .. } => Ok(driver),
            Driver::Plain => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Directory of a drive's files.
    pub(crate) fn drive_path(&self, drive: &DriveId) -> PathBuf {
        self.root.join("drives").join(drive.as_str())
    }

    /// Has a drive, which may hold `limit` bytes. Harmless where it is there.
    ///
    /// # Errors
    /// `Unsupported` with a driver that has no drives.
    pub(crate) fn have_drive(&self, drive: &DriveId, limit: u64) -> io::Result<()> {
        let _open = self.access()?;
        let driver = self.has_drives()?;
        let path = self.drive_path(drive);
        if !path.exists() {
            // Under its name it is whole, wherever the server died before.
            let scratch = self.root.join("scratch");
            let new = scratch.join(drive.as_str());
            driver.delete(&scratch, drive.as_str())?;
            driver.create(&scratch, drive.as_str())?;
            // Its owner inside: the default user.
            std::os::unix::fs::chown(&new, Some(1000), Some(1000))?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
            fs::rename(&new, &path)?;
        }
        driver.limit_one(&path, limit)
    }

    /// Makes a drive a copy of another, as it is now.
    pub(crate) fn copy_drive(&self, from: &DriveId, to: &DriveId, limit: u64) -> io::Result<()> {
        let _open = self.access()?;
        let driver = self.has_drives()?;
        driver.copy_counted(&self.drive_path(from), &self.root.join("drives"), to.as_str())?;
        driver.limit_one(&self.drive_path(to), limit)
    }

    /// Makes a read-only copy of a drive as it is now, for a run; where that is.
    ///
    /// # Errors
    /// `NotFound` for a drive that nothing was ever written to.
    pub(crate) fn view_drive(&self, drive: &DriveId, name: &str) -> io::Result<PathBuf> {
        let _open = self.access()?;
        let driver = self.has_drives()?;
        let views = self.root.join("views");
        driver.delete(&views, name)?;
        driver.snapshot(&self.drive_path(drive), &views, name)?;
        Ok(views.join(name))
    }

    /// Returns when everything that was written to a drive survives the death of the host.
    pub(crate) fn seal_drive(&self, drive: &DriveId) -> io::Result<()> {
        self.sync(&self.drive_path(drive), drive.as_str(), btrfs::Driver::seal)
    }

    /// Removes what a run saw of drives.
    pub(crate) fn drop_views(&self, run: &str) -> io::Result<()> {
        let prefix = format!("{run}-");
        for name in self.names("views")?.into_iter().filter(|name| name.starts_with(&prefix)) {
            let _open = self.access()?;
            self.delete_tree("views", &name)?;
        }
        Ok(())
    }
}
