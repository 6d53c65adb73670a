//! The btrfs file system of the pool: made, mounted, grown, taken away. It lies
//! in an image file in the data directory, on a block device that the operator
//! names, or is one that the operator has mounted at the pool's place.
//!
//! The image is allocated, never sparse: what the file system takes for free
//! is there. So nothing may punch holes into it (no discards), and it grows in
//! steps (`room`) until it is as large as the configuration allows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use rustix::fs::IFlags;

use super::room::{Policy, Sight};
use crate::sys::{self, btrfs, loop_device, mount};

/// Where the pool's file system lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Backing {
    /// An image file of ours.
    Image(PathBuf),
    /// A block device.
    Device(PathBuf),
    /// Mounted by the operator, who also unmounts it.
    Operator,
}

impl Backing {
    /// Word of the marker.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Device(_) => "device",
            Self::Operator => "mounted",
        }
    }
}

/// How the pool is mounted: what a sandbox writes is no program of the host's
/// root, and no device.
const POOL_ATTRIBUTES: u32 = mount::NOATIME | mount::NOSUID | mount::NODEV;

/// The pool's file system.
#[derive(Debug)]
pub(super) struct Pool {
    root: PathBuf,
    pub(super) backing: Backing,
    /// Says that a pool was made, and where: it must not be made anew, and
    /// empty, because it is missing.
    marker: PathBuf,
    /// What a repair unmounted that the operator had mounted; and its device,
    /// which may be a loop that goes with its last user.
    was: Mutex<Option<(mount::Mounted, Option<File>)>>,
}

impl Pool {
    /// The pool at `root` of the data directory, over `device` if one is named.
    ///
    /// # Errors
    /// A pool of another kind was made here before.
    pub(super) fn find(root: &Path, data_dir: &Path, device: Option<&Path>) -> io::Result<Self> {
        let (image, marker) = (data_dir.join("pool.img"), data_dir.join("pool.made"));
        let made = match fs::read_to_string(&marker) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let backing = match (device, made.as_deref().map(str::trim)) {
            (Some(device), _) => Backing::Device(device.to_owned()),
            (None, Some("mounted")) => Backing::Operator,
            (None, None) if !image.exists() && mounted_at(root)?.is_some() => Backing::Operator,
            (None, _) => Backing::Image(image),
        };
        match made {
            Some(made) if made.trim() != backing.as_str() => Err(io::Error::other(format!(
                "the pool of this data directory is another one ({}): it was made as {}, and the \
                 configuration asks for {}",
                marker.display(),
                made.trim(),
                backing.as_str()
            ))),
            _ => Ok(Self { root: root.to_owned(), backing, marker, was: Mutex::default() }),
        }
    }

    /// Whether a pool was made here at any time.
    pub(super) fn was_made(&self) -> bool {
        self.marker.exists()
    }

    /// Remembers that it was made.
    pub(super) fn note_made(&self) -> io::Result<()> {
        if self.was_made() { Ok(()) } else { sys::write_durably(&self.marker, self.backing.as_str()) }
    }

    /// Refuses to make what was there before.
    fn may_make(&self, place: &Path) -> io::Result<()> {
        if !self.was_made() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "the pool that was at {} is gone; to begin with an empty one, remove {}",
                place.display(),
                self.marker.display()
            ),
        ))
    }

    /// Makes the file system where there was none ever, and mounts it where it
    /// is not. `policy` and `host` say how large a new image is.
    pub(super) fn bring_up(&self, policy: &Policy, host: Sight) -> io::Result<()> {
        if let Some(found) = mounted_at(&self.root)? {
            if found.kind != "btrfs" {
                let message =
                    format!("{} is mounted, but as {}, not as btrfs", self.root.display(), found.kind);
                return Err(io::Error::other(message));
            }
            return self.enable_quotas();
        }
        match &self.backing {
            Backing::Image(image) => {
                if !image.exists() {
                    self.may_make(image)?;
                    make_image(image, policy, host)?;
                }
                self.mount_image(image)?;
            }
            Backing::Device(device) => {
                if !has_btrfs(device)? {
                    self.may_make(device)?;
                    // Without force: a device with anything on it is refused.
                    make_file_system(device)?;
                }
                mount::mount(c"btrfs", device, &[], POOL_ATTRIBUTES, &self.root)
                    .map_err(|error| named(&error, "mount", device))?;
            }
            Backing::Operator => {
                let mut unmounted = self.was.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((was, _device)) = &*unmounted else {
                    let message = format!("nothing is mounted at {} any more", self.root.display());
                    return Err(io::Error::new(io::ErrorKind::NotFound, message));
                };
                mount::mount_again(was).map_err(|error| named(&error, "mount", &was.source))?;
                *unmounted = None;
            }
        }
        if let Err(error) = self.enable_quotas() {
            // Without quotas a limit would be accepted and not enforced.
            self.take_down()?;
            return Err(error);
        }
        Ok(())
    }

    fn mount_image(&self, image: &Path) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(image)?;
        if let Some(device) = loop_device::of_file(&file)? {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "{} is in use as {} and not mounted here: a server in another mount namespace has it",
                    image.display(),
                    device.display()
                ),
            ));
        }
        // Fills holes that somebody punched: without them the file system
        // would be promised room that is not there.
        allocate(&file, file.metadata()?.len())
            .map_err(|error| named(&error, "reserve the room of", image))?;
        let (device, open) =
            loop_device::attach(&file, false).map_err(|error| named(&error, "attach", image))?;
        loop_device::refuse_discards(&device).map_err(|error| named(&error, "protect", &device))?;
        let options = [mount::Setting::Flag(c"nodiscard")];
        mount::mount(c"btrfs", &device, &options, POOL_ATTRIBUTES, &self.root)
            .map_err(|error| named(&error, "mount", image))?;
        // From here on the mount holds it.
        drop(open);
        // Its size may be newer than the file system's, after a crash.
        let root = File::open(&self.root)?;
        btrfs::grow_to_device(&root)?;
        if is_new(&self.root)? {
            btrfs::keep_one_copy_of_metadata(&root).map_err(|error| named(&error, "prepare", image))?;
        }
        Ok(())
    }

    fn enable_quotas(&self) -> io::Result<()> {
        let root = File::open(&self.root)?;
        btrfs::enable_simple_quotas(&root).map_err(|error| {
            let message = format!(
                "turn on simple quotas of {}: {error} (Linux 6.7 or newer, and no classic quotas there)",
                self.root.display()
            );
            io::Error::new(error.kind(), message)
        })
    }

    /// Unmounts what was not mounted by the operator.
    pub(super) fn take_down(&self) -> io::Result<()> {
        if self.backing == Backing::Operator || mounted_at(&self.root)?.is_none() {
            return Ok(());
        }
        mount::unmount(&self.root, false)
    }

    /// Unmounts whatever is there, so that it can be mounted anew: btrfs takes
    /// no writes after an error until then. What the operator mounted is
    /// mounted as it was.
    pub(super) fn take_down_for_repair(&self) -> io::Result<()> {
        if self.backing != Backing::Operator {
            return self.take_down();
        }
        let Some(found) = mounted_at(&self.root)? else { return Ok(()) };
        let device = File::open(&found.source).ok();
        *self.was.lock().unwrap_or_else(PoisonError::into_inner) = Some((found, device));
        mount::unmount(&self.root, false)
    }

    /// Whether the file system is mounted and takes writes.
    pub(super) fn is_writable(&self) -> io::Result<bool> {
        let found = mounted_at(&self.root)?;
        Ok(found.is_some_and(|found| !found.read_only) && !sys::file_system(&self.root)?.read_only)
    }

    /// Size of the image, where there is one.
    pub(super) fn image_size(&self) -> io::Result<Option<u64>> {
        match &self.backing {
            Backing::Image(image) => Ok(Some(fs::metadata(image)?.len())),
            _ => Ok(None),
        }
    }

    /// Reserves the room of holes that somebody punched into the image; whether
    /// it has none then.
    pub(super) fn fill_holes(&self) -> io::Result<bool> {
        let Backing::Image(image) = &self.backing else { return Ok(true) };
        let found = fs::metadata(image)?;
        if found.blocks() * 512 >= found.len() {
            return Ok(true);
        }
        match sys::allocate(&OpenOptions::new().write(true).open(image)?, found.len()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(false),
            // It was written with zeros, and its file system counts otherwise.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(true),
            Err(error) => Err(named(&error, "reserve the room of", image)),
        }
    }

    /// Makes the image `size` bytes large, and the file system with it. Only
    /// one process grows it at a time; `false`: another one is at it.
    pub(super) fn grow(&self, size: u64) -> io::Result<bool> {
        let Backing::Image(image) = &self.backing else { return Ok(false) };
        let file = OpenOptions::new().read(true).write(true).open(image)?;
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        if file.metadata()?.len() < size {
            allocate(&file, size).map_err(|error| named(&error, "grow", image))?;
            file.sync_all()?;
        }
        let mounted = mounted_at(&self.root)?;
        let device = mounted.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.source;
        loop_device::take_size(&device).map_err(|error| named(&error, "grow", &device))?;
        btrfs::grow_to_device(&File::open(&self.root)?).map_err(|error| named(&error, "grow", &self.root))?;
        Ok(true)
    }
}

pub(super) fn named(error: &io::Error, verb: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{verb} {}: {error}", path.display()))
}

/// What is mounted at `root`, the last mount if there are several.
pub(super) fn mounted_at(root: &Path) -> io::Result<Option<mount::Mounted>> {
    let root = fs::canonicalize(root)?;
    Ok(mount::mounted()?.into_iter().rfind(|mounted| mounted.place == root))
}

fn make_image(image: &Path, policy: &Policy, host: Sight) -> io::Result<()> {
    let Some(size) = policy.first_size(host) else {
        let message = format!(
            "no room for the storage pool: {} MiB of {} are free, {} of which are kept back \
             (storage.keep_free_mib)",
            host.free >> 20,
            image.parent().unwrap_or(image).display(),
            policy.kept_back >> 20
        );
        return Err(io::Error::new(io::ErrorKind::StorageFull, message));
    };
    // Under another name first: a crash must not leave half a file system.
    let partial = image.with_extension("partial");
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&partial)?;
    // A host that copies on write would need room again for every write.
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
        // Where there is no such attribute, nothing copies on write.
        let _ = rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW);
    }
    allocate(&file, size).map_err(|error| named(&error, "reserve the room of", image))?;
    drop(file);
    make_file_system(&partial)?;
    fs::rename(&partial, image)
}

/// Reserves room, with zeros where the file system cannot do it otherwise.
fn allocate(file: &File, length: u64) -> io::Result<()> {
    match sys::allocate(file, length) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let mut end = file;
            let mut at = io::Seek::seek(&mut end, io::SeekFrom::End(0))?;
            let zeros = vec![0; 4 << 20];
            while at < length {
                let part = zeros.len().min(usize::try_from(length - at).unwrap_or(zeros.len()));
                end.write_all(&zeros[..part])?;
                at += part as u64;
            }
            file.sync_all()
        }
        other => other,
    }
}

/// Two copies of metadata to begin with: see
/// [`btrfs::keep_one_copy_of_metadata`].
fn make_file_system(place: &Path) -> io::Result<()> {
    let output = Command::new("mkfs.btrfs")
        .args(["--quiet", "--metadata", "dup", "--data", "single"])
        .arg(place)
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("run mkfs.btrfs (is btrfs-progs installed?): {error}"))
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("mkfs.btrfs {}: {text}", place.display())))
}

/// Whether a device has a btrfs file system on it: its magic number lies in
/// the first super block (btrfs on-disk format).
fn has_btrfs(device: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 8];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut magic, 0x1_0040));
    read.map_err(|error| named(&error, "look at", device))?;
    Ok(&magic == b"_BHRfS_M")
}

/// Whether nobody has put anything into the file system yet.
fn is_new(root: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(root)?.next().is_none())
}
