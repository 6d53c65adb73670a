//! Files of base images: EROFS, immutable, named by their digest, and mounted
//! once per host, so that all sandboxes of an image share its page cache.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use dormouse_types::hex;
use sha2::{Digest as _, Sha256};

use crate::sys::{self, loop_device, mount};

/// How the name of an image file ends, and of one that is being made.
const FINISHED: &str = "erofs";
const PARTIAL: &str = "partial";

/// Characters of a digest that name a mount's place.
const SHORT: usize = 32;

/// A directory tree that becomes an image.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(super) name: String,
    /// The tree.
    pub(crate) path: PathBuf,
    /// Held while it is filled: whoever finds the directory knows whether its
    /// maker lives.
    pub(super) _lock: OwnedFd,
}

/// A finished image file.
#[derive(Debug)]
pub(crate) struct ImageFile {
    /// SHA-256, in hex.
    pub(crate) digest: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// Until it has a row, nobody else removes it.
    _lock: OwnedFd,
}

#[derive(Debug)]
pub(super) struct ImageStore {
    /// Where the files lie.
    files: PathBuf,
    /// Where they are mounted: outside of the pool, which could not be
    /// unmounted otherwise.
    places: PathBuf,
    mounted: Mutex<HashSet<String>>,
}

impl ImageStore {
    pub(super) fn new(files: PathBuf, places: PathBuf) -> Self {
        Self { files, places, mounted: Mutex::default() }
    }

    fn file(&self, digest: &str) -> PathBuf {
        self.files.join(format!("{digest}.{FINISHED}"))
    }

    fn place(&self, digest: &str) -> PathBuf {
        self.places.join(digest.get(..SHORT).unwrap_or(digest))
    }

    /// Makes an image file of the tree at `tree`.
    pub(super) fn make(&self, tree: &Path, progress: &dyn Fn(&str)) -> io::Result<ImageFile> {
        progress("making the image file");
        let partial = self.files.join(format!("{}.{PARTIAL}", uuid::Uuid::now_v7().simple()));
        let lock = sys::lock(&partial)?;
        let made = make_erofs(&partial, tree).and_then(|()| {
            progress("digesting the image file");
            let file = File::open(&partial)?;
            let digest = digest(&file)?;
            file.sync_all()?;
            fs::rename(&partial, self.file(&digest))?;
            File::open(&self.files)?.sync_all()?;
            Ok(ImageFile { digest, bytes: file.metadata()?.len(), _lock: lock })
        });
        if made.is_err() {
            // The failure is what the caller wants to hear about.
            let _ = fs::remove_file(&partial);
        }
        made
    }

    /// Where the image is mounted, once it is.
    pub(super) fn mount(&self, digest: &str) -> io::Result<PathBuf> {
        let place = self.place(digest);
        // Held meanwhile: one image has one mount.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if mounted.contains(digest) {
            return Ok(place);
        }
        fs::create_dir_all(&place)?;
        if !self.mounts()?.contains(&place) {
            let file = self.file(digest);
            mount_erofs(&file, &place).map_err(|error| {
                io::Error::new(error.kind(), format!("mount image {}: {error}", file.display()))
            })?;
        }
        mounted.insert(digest.to_owned());
        Ok(place)
    }

    fn mounts(&self) -> io::Result<Vec<PathBuf>> {
        // What the kernel tells has no links in it.
        let places = fs::canonicalize(&self.places)?;
        let found = mount::mounted()?.into_iter().filter_map(|mounted| {
            let name = mounted.place.strip_prefix(&places).ok()?.to_owned();
            (!name.as_os_str().is_empty()).then(|| self.places.join(name))
        });
        Ok(found.collect())
    }

    /// Takes the mounts away. Sandboxes that use one keep it until they end.
    pub(super) fn unmount_all(&self) -> io::Result<()> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.clear();
        if !self.places.exists() {
            return Ok(());
        }
        for place in self.mounts()? {
            mount::unmount(&place, true)?;
        }
        for place in fs::read_dir(&self.places)?.flatten() {
            // Only empty directories of ours are in there.
            let _ = fs::remove_dir(place.path());
        }
        Ok(())
    }

    /// Deletes an image file that nothing stands on.
    pub(super) fn delete(&self, digest: &str) -> io::Result<()> {
        let place = self.place(digest);
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.remove(digest);
        if self.places.exists() && self.mounts()?.contains(&place) {
            mount::unmount(&place, true)?;
        }
        if let Err(error) = fs::remove_dir(&place)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(place = %place.display(), %error, "remove the place of an image");
        }
        match fs::remove_file(self.file(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Files whose name ends with `kind`, without those that somebody makes.
    fn left_of(&self, kind: &str) -> io::Result<Vec<(PathBuf, String)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.files)? {
            let path = entry?.path();
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.extension().is_some_and(|end| end == kind) {
                match sys::lock_existing(&path) {
                    Ok(_lock) => found.push((path, name)),
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    /// Digests of the files that are there. One that was made just now and has
    /// no row yet is its maker's.
    pub(super) fn left(&self) -> io::Result<Vec<String>> {
        Ok(self.left_of(FINISHED)?.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Removes files whose makers died over them.
    pub(super) fn clear_partial(&self) -> io::Result<()> {
        for (path, _) in self.left_of(PARTIAL)? {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn make_erofs(image: &Path, tree: &Path) -> io::Result<()> {
    let output = Command::new("mkfs.erofs")
        .args(["--quiet", "--preserve-mtime", "-U"])
        // Overlayfs remembers by it which image a file came from.
        .arg(uuid::Uuid::now_v7().hyphenated().to_string())
        .arg(image)
        .arg(tree)
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("run mkfs.erofs (is erofs-utils installed?): {error}"))
        })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("mkfs.erofs: {} {words}", output.status)))
}

/// SHA-256 of what is in a file, in hexadecimal.
pub(crate) fn digest(mut file: &File) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hex(&hash.finalize()))
}

/// By file, past the page cache of the file's own file system, so that a page
/// is cached once. Where the kernel cannot do both, over a loop device, which
/// can.
fn mount_erofs(file: &Path, place: &Path) -> io::Result<()> {
    let attributes = mount::READ_ONLY | mount::NODEV;
    let directly = mount::mount(c"erofs", file, &[mount::Setting::Flag(c"directio")], attributes, place);
    if directly.is_ok() {
        return directly;
    }
    let (device, open) = loop_device::attach(&File::open(file)?, true)?;
    let mounted = mount::mount(c"erofs", &device, &[], attributes, place);
    // The mount holds it, or nobody does.
    drop(open);
    mounted
}

/// Whether this host can mount images, and how; for `doctor`.
///
/// # Errors
/// What the kernel says.
pub fn probe_images(file: &Path, place: &Path) -> io::Result<&'static str> {
    let attributes = mount::READ_ONLY | mount::NODEV;
    let by_file = mount::mount(c"erofs", file, &[mount::Setting::Flag(c"directio")], attributes, place);
    let how = match by_file {
        Ok(()) => "by file",
        Err(_) => {
            mount_erofs(file, place)?;
            "over loop devices"
        }
    };
    mount::unmount(place, false)?;
    Ok(how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_mounts_are_named_by_the_digest() {
        let store = ImageStore::new("/f".into(), "/p".into());
        let digest = "a".repeat(64);
        assert_eq!(store.place(&digest), Path::new("/p").join("a".repeat(32)));
        assert_eq!(store.file(&digest), Path::new("/f").join(format!("{digest}.erofs")));
    }

    #[test]
    fn what_somebody_makes_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path().to_owned(), dir.path().join("places"));
        let at = |name: &str| dir.path().join(name);
        for name in ["dead.partial", "done.erofs"] {
            fs::write(at(name), "").unwrap();
        }
        let (making, made) =
            (sys::lock(&at("live.partial")).unwrap(), sys::lock(&at("rowless.partial")).unwrap());
        // A lock goes with the file to its new name.
        fs::rename(at("rowless.partial"), at("rowless.erofs")).unwrap();
        store.clear_partial().unwrap();
        assert!(!at("dead.partial").exists() && at("live.partial").exists());
        assert_eq!(store.left().unwrap(), ["done"]);
        drop((making, made));
        store.clear_partial().unwrap();
        assert!(!at("live.partial").exists());
        let mut left = store.left().unwrap();
        left.sort();
        assert_eq!(left, ["done", "rowless"]);
    }
}
