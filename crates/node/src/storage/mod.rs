//! Where images and the files of sandboxes lie on disk.
//!
//! ```text
//!                     ┌──────────────── a sandbox's root directory ───────────────┐
//!                     │ overlay: upper and work directory │ over the lower one    │
//!                     └───────────┬───────────────────────┴───────────┬───────────┘
//!  data/                          │                                   │
//!   pool/volumes/VOLUME/{u,w} ────┘   one sandbox's, as long as it     │
//!   pool/snapshots/SNAPSHOT/{u,w}     read-only copy of a volume       │
//!   pool/drives/DRIVE                 a volume of its own, mounted into sandboxes
//!   pool/views/RUN-N                  read-only copy of a drive, as long as a run has it
//!   pool/images/DIGEST.erofs ──► images/DIGEST  (one mount, all sandboxes)
//!   pool/output/                      long logs of commands, as files without a name: they
//!                                     go with the run
//!   pool/scratch/…                    what is being made; nobody's after a crash
//!   pool.img                          the file system `pool/`, unless it is a device
//! ```
//!
//! A volume is mounted again by every run: a stop syncs it, a resume makes
//! nothing, and files keep their inode numbers, names and links. A snapshot is
//! a copy that nobody writes, a fork or a rollback a copy that a sandbox does.
//! There are exactly two trees under every overlay, whatever happened before.
//!
//! Two drivers differ in what a copy is. `btrfs`: a subvolume's snapshot, in
//! constant time, with limits. `plain`: any file system, as long as there are
//! files, and without limits, which it refuses.
//!
//! What does not live here: which copies are made, and when they go. Rows say
//! so (`dormouse-store`).

mod btrfs;
mod copy;
mod drives;
mod images;
mod pool;
mod ready;
mod room;
mod scratch;
mod tree;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use dormouse_store::{Garbage, GarbageKind};
use dormouse_types::{SandboxId, SnapshotId, VolumeId};

use crate::sys;
use pool::Pool;
use room::{Policy, Sight};

pub(crate) use copy::copy_file;
pub use images::probe_images;
pub(crate) use images::{ImageFile, Scratch, digest};

/// Which driver keeps the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// A btrfs file system: limits are enforced.
    Btrfs,
    /// Any file system: limits are refused.
    Plain,
}

/// Where the pool lies and how large it gets.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// Driver.
    pub kind: StorageKind,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Block device of the btrfs pool; `None`: an image file in the data
    /// directory, or what is mounted there already.
    pub device: Option<PathBuf>,
    /// Largest size of the pool's image, in bytes.
    pub pool_size: u64,
    /// Bytes of the data directory's file system that the pool leaves free;
    /// `None`: a twentieth, from 256 MiB to 4 GiB.
    pub keep_free: Option<u64>,
    /// Writable copies of a snapshot that wait for who starts from it next, at most.
    pub ready_copies: usize,
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy)]
pub struct DiskUsage {
    /// Its size.
    pub total_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
}

/// Bytes of the file system that `path` lies on.
///
/// # Errors
/// What `statvfs(3)` says.
pub fn disk_usage(path: &Path) -> io::Result<DiskUsage> {
    let found = sys::file_system(path)?;
    Ok(DiskUsage { total_bytes: found.total, free_bytes: found.free })
}

/// How the pool is.
///
/// ```text
///  ─► Fine ◄──────────► Low (new sandboxes are refused)
///      │  ▲              │
///      │  └─── repaired ─┴─────────┐
///      ▼   no writes, no mount     │
///    Broken (nothing works) ───────┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PoolHealth {
    /// All is well.
    Fine,
    /// There is hardly any room left; the sentence says where.
    Low(String),
    /// It cannot be written; the sentence says why.
    Broken(String),
}

/// What a new volume holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// Nothing: the image alone.
    Nothing,
    /// The files of a snapshot.
    Snapshot(&'a SnapshotId),
    /// The same, by a copy that was made ahead, if one waits.
    Ahead(&'a SnapshotId),
    /// The files of another volume, as they are now.
    Volume(&'a VolumeId),
}

#[derive(Debug)]
enum Driver {
    Btrfs { pool: Box<Pool>, driver: btrfs::Driver },
    Plain,
}

/// Whether the pool is mounted.
#[derive(Debug)]
struct Open(bool);

/// The pool.
#[derive(Debug)]
pub(crate) struct Storage {
    driver: Driver,
    config: StorageConfig,
    root: PathBuf,
    images: images::ImageStore,
    policy: Policy,
    /// Read by whoever works in the pool, written by whoever mounts it: nobody
    /// may put a file where the pool is not.
    open: RwLock<Open>,
    health: Mutex<PoolHealth>,
    /// The last look failed.
    blind: AtomicBool,
    looks: AtomicU64,
    counter: AtomicU64,
    ready: ready::Ready,
}

/// One in so many looks at the pool has the kernel free what was deleted.
const LOOKS_PER_COMMIT: u64 = 4;

const NOT_MOUNTED: &str = "the storage pool is not mounted";

/// Directories of the pool.
const PARTS: [&str; 7] = ["volumes", "snapshots", "images", "scratch", "output", "drives", "views"];

/// Which part of the pool the logs of all sandboxes may take together.
const OUTPUT_PART: u64 = 8;

fn broken(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, message.into())
}

/// What is wrong with the pool of a data directory, as far as it shows from
/// outside of its server; for `doctor`.
///
/// # Errors
/// What `/proc/self/mountinfo` or `statvfs(3)` says.
pub fn pool_trouble(data_dir: &Path) -> io::Result<Option<String>> {
    let root = data_dir.join("pool");
    if !root.exists() {
        return Ok(None);
    }
    Ok(match pool::mounted_at(&root)? {
        Some(found) if found.read_only => Some(format!("{} takes no writes", root.display())),
        Some(_) => {
            let found = sys::file_system(&root)?;
            let left = room::left(Sight { total: found.total, free: found.free });
            (!room::admits(left)).then(|| format!("only {} MiB are left for sandboxes", left >> 20))
        }
        None => None,
    })
}

impl Storage {
    /// Opens the pool, and makes it where there is none.
    ///
    /// # Errors
    /// Only where no pool was ever made here: one that was and cannot be
    /// mounted now is [`PoolHealth::Broken`], until [`Storage::repair`].
    pub(crate) fn open(config: StorageConfig) -> io::Result<Self> {
        let root = config.data_dir.join("pool");
        fs::create_dir_all(&root)?;
        let host = sys::file_system(&config.data_dir)?;
        let driver = match config.kind {
            StorageKind::Btrfs => Driver::Btrfs {
                pool: Box::new(Pool::find(&root, &config.data_dir, config.device.as_deref())?),
                driver: btrfs::Driver::default(),
            },
            StorageKind::Plain => Driver::Plain,
        };
        let storage = Self {
            driver,
            images: images::ImageStore::new(root.join("images"), config.data_dir.join("images")),
            policy: Policy::new(config.pool_size, config.keep_free, host.total),
            open: RwLock::new(Open(false)),
            health: Mutex::new(PoolHealth::Fine),
            blind: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            counter: AtomicU64::new(0),
            ready: ready::Ready::new(config.ready_copies),
            root,
            config,
        };
        let known = match &storage.driver {
            Driver::Btrfs { pool, .. } => pool.was_made(),
            Driver::Plain => false,
        };
        match storage.bring_up() {
            Ok(()) => {}
            Err(error) if known => storage.note(PoolHealth::Broken(error.to_string())),
            Err(error) => return Err(error),
        }
        Ok(storage)
    }

    fn host(&self) -> io::Result<Sight> {
        let found = sys::file_system(&self.config.data_dir)?;
        Ok(Sight { total: found.total, free: found.free })
    }

    fn bring_up(&self) -> io::Result<()> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // A server and `image build` may both find it unmounted; a file system
        // that is mounted twice is lost.
        let _alone = sys::wait_for_lock(&self.config.data_dir.join("pool.lock"))?;
        if let Driver::Btrfs { pool, .. } = &self.driver {
            pool.bring_up(&self.policy, self.host()?)?;
            if !pool.is_writable()? {
                return Err(broken("its file system takes no writes"));
            }
        }
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))?;
        if let Driver::Btrfs { driver, .. } = &self.driver {
            driver
                .prepare(&File::open(&self.root)?)
                .map_err(|error| pool::named(&error, "prepare", &self.root))?;
        }
        // What follows writes, and the cap may be below what is used.
        self.lift_cap()?;
        let made = PARTS.iter().try_for_each(|part| {
            let path = self.root.join(part);
            self.make_part(part, &path).map_err(|error| pool::named(&error, "make", &path))
        });
        // A cap that stays lifted is one that nobody enforces.
        self.set_cap(true)?;
        made?;
        if let Driver::Btrfs { pool, .. } = &self.driver {
            pool.note_made()?;
        }
        open.0 = true;
        drop(open);
        self.note(PoolHealth::Fine);
        Ok(())
    }

    /// Makes a directory of the pool, where it is not there yet.
    fn make_part(&self, part: &str, path: &Path) -> io::Result<()> {
        match &self.driver {
            // A subvolume of its own, so that what is in it counts.
            Driver::Btrfs { driver, .. } if ["images", "output"].contains(&part) && !path.exists() => {
                driver.create(&self.root, part)?;
            }
            _ => fs::create_dir_all(path)?,
        }
        if part == "output" {
            // Agents make files in it, whose ids are none of the host's, and see no other's.
            fs::set_permissions(path, fs::Permissions::from_mode(0o1733))?;
            if let Driver::Btrfs { driver, .. } = &self.driver {
                driver.limit_one(path, self.config.pool_size / OUTPUT_PART)?;
            }
        }
        Ok(())
    }

    /// Lets a few blocks more into the pool than its cap does, until the next
    /// [`Storage::set_cap`].
    fn lift_cap(&self) -> io::Result<()> {
        if let Driver::Btrfs { driver, .. } = &self.driver {
            let used = driver.all_used(&self.root, true)?;
            driver.set_cap(&self.root, room::cap(self.sight()?, used).max(used) + room::LIFT)?;
        }
        Ok(())
    }

    fn set_cap(&self, exactly: bool) -> io::Result<()> {
        if let Driver::Btrfs { driver, .. } = &self.driver {
            let used = driver.all_used(&self.root, exactly)?;
            driver.set_cap(&self.root, room::cap(self.sight()?, used))?;
        }
        Ok(())
    }

    fn sight(&self) -> io::Result<Sight> {
        let found = sys::file_system(&self.root)?;
        Ok(Sight { total: found.total, free: found.free })
    }

    /// Unmounts everything that we mounted. Nothing may live on it.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.take_down(Pool::take_down)
    }

    fn take_down(&self, pool_down: fn(&Pool) -> io::Result<()>) -> io::Result<()> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        self.images.unmount_all()?;
        if let Driver::Btrfs { pool, .. } = &self.driver {
            pool_down(pool)?;
        }
        open.0 = false;
        Ok(())
    }

    /// The directory for logs of commands.
    pub(crate) fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    pub(crate) fn enforces_limits(&self) -> bool {
        matches!(self.driver, Driver::Btrfs { .. })
    }

    /// How the pool is, as of the last look.
    pub(crate) fn health(&self) -> PoolHealth {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, health: PoolHealth) {
        let mut known = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        // The numbers in a sentence change at every look.
        if std::mem::discriminant(&*known) != std::mem::discriminant(&health) {
            match &health {
                PoolHealth::Fine => tracing::info!("the storage pool is fine"),
                PoolHealth::Low(why) => tracing::warn!("the storage pool is nearly full: {why}"),
                PoolHealth::Broken(why) => tracing::error!("the storage pool is broken: {why}"),
            }
        }
        *known = health;
    }

    fn access(&self) -> io::Result<RwLockReadGuard<'_, Open>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if open.0 { Ok(open) } else { Err(broken(NOT_MOUNTED)) }
    }

    /// Looks at the pool and does what its room asks for: grows it, moves its
    /// cap. Returns how it is then. A look that fails (for want of descriptors,
    /// say) tells nothing, least of all that everything on it has to end.
    pub(crate) fn look_after(&self) -> PoolHealth {
        match self.try_look_after() {
            Ok(health) => {
                self.blind.store(false, Ordering::Relaxed);
                self.note(health.clone());
                health
            }
            Err(error) => {
                if !self.blind.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "look at the storage pool");
                }
                self.health()
            }
        }
    }

    fn try_look_after(&self) -> io::Result<PoolHealth> {
        let Ok(_open) = self.access() else {
            return Ok(PoolHealth::Broken(NOT_MOUNTED.to_owned()));
        };
        self.drop_copies(self.ready.surplus(Instant::now()));
        let host = self.host()?;
        let sight = match &self.driver {
            Driver::Btrfs { pool, driver } => {
                if !pool.is_writable()? {
                    return Ok(PoolHealth::Broken("its file system takes no writes any more".to_owned()));
                }
                if !pool.fill_holes()? {
                    return Ok(PoolHealth::Low(
                        "its image has holes, and the disk that it lies on has no room to fill them"
                            .to_owned(),
                    ));
                }
                let mut sight = self.sight()?;
                if let Some(size) = pool.image_size()?
                    && let Some(next) = self.policy.growth(size, sight, host)
                {
                    match pool.grow(next) {
                        Ok(true) => {
                            tracing::info!(mib = next >> 20, "the storage pool has grown");
                            self.set_cap(true)?;
                        }
                        Ok(false) => {}
                        // What is there goes on; what is missing shows below.
                        Err(error) => tracing::warn!(%error, "grow the storage pool"),
                    }
                    sight = self.sight()?;
                }
                if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKS_PER_COMMIT) {
                    driver.free_deleted(&self.root, !room::admits(room::left(sight)))?;
                }
                // The kernel took more than its headroom: bound the rest anew.
                if sight.free < room::headroom(sight.total) / 2 {
                    let used = driver.all_used(&self.root, true)?;
                    driver.set_cap(&self.root, room::cap(self.sight()?, used))?;
                }
                sight
            }
            Driver::Plain => self.sight()?,
        };
        let left = room::left(sight);
        if room::admits(left) {
            return Ok(PoolHealth::Fine);
        }
        let data = self.config.data_dir.display();
        Ok(PoolHealth::Low(match &self.driver {
            Driver::Btrfs { pool, .. } if pool.image_size()?.is_some() => format!(
                "{} MiB of {} are left for sandboxes, and it cannot grow: {} MiB are free on the disk of \
                 {data}, {} of which are kept back, and it may have {} MiB",
                left >> 20,
                sight.total >> 20,
                host.free >> 20,
                self.policy.kept_back >> 20,
                self.policy.most >> 20
            ),
            _ => format!(
                "{} MiB of {} are left for sandboxes on the disk of {data}",
                left >> 20,
                sight.total >> 20
            ),
        }))
    }

    /// Whether the data directory's file system is full, as of now.
    ///
    /// # Errors
    /// What `statvfs(3)` says.
    pub(crate) fn host_is_full(&self) -> io::Result<bool> {
        Ok(room::host_is_full(self.host()?.free))
    }

    /// Mounts a broken pool anew. Nothing may live on it: the caller has ended
    /// what did.
    ///
    /// # Errors
    /// Why it is still broken.
    pub(crate) fn repair(&self) -> io::Result<()> {
        // Nobody may take its files for gone meanwhile.
        self.note(PoolHealth::Broken("it is being repaired".to_owned()));
        let mended = self.take_down(Pool::take_down_for_repair).and_then(|()| self.bring_up());
        if let Err(error) = &mended {
            self.note(PoolHealth::Broken(error.to_string()));
        }
        mended
    }

    /// Directory with the upper and work directory of a volume.
    pub(crate) fn volume_path(&self, volume: &VolumeId) -> PathBuf {
        self.root.join("volumes").join(volume.as_str())
    }

    fn snapshot_path(&self, snapshot: &SnapshotId) -> PathBuf {
        self.root.join("snapshots").join(snapshot.as_str())
    }

    /// Whether a volume is there, whole: a host that died while it was made may
    /// have left half of it.
    ///
    /// # Errors
    /// What keeps it from being known.
    pub(crate) fn has_volume(&self, volume: &VolumeId) -> io::Result<bool> {
        let _open = self.access()?;
        // Another file system's directory would have none of them.
        fs::metadata(self.root.join("volumes"))?;
        let path = self.volume_path(volume);
        Ok(path.join("u").try_exists()? && path.join("w").try_exists()?)
    }

    /// Makes a volume of `sandbox`, whose volumes together may hold `limit`
    /// bytes. A copy of another volume has everything that was written to that
    /// one before this call.
    ///
    /// # Errors
    /// `NotFound` where what it is to be copied from is gone.
    pub(crate) fn create_volume(
        &self,
        volume: &VolumeId,
        origin: Origin<'_>,
        sandbox: &SandboxId,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let _open = self.access()?;
        let volumes = self.root.join("volumes");
        let from = match origin {
            Origin::Nothing => None,
            Origin::Snapshot(id) | Origin::Ahead(id) => Some(self.snapshot_path(id)),
            Origin::Volume(id) => Some(self.volume_path(id)),
        };
        match (&self.driver, from) {
            (Driver::Btrfs { driver, .. }, None) => {
                driver.create_volume(&volumes, volume.as_str(), sandbox, limit)
            }
            (Driver::Btrfs { driver, .. }, Some(from)) => {
                if let Origin::Ahead(id) = origin
                    && let Some(copy) = self.ready.take(id, Instant::now())
                {
                    let path = self.root.join("scratch").join(&copy);
                    match driver.hand_over(&path, &volumes, volume.as_str(), sandbox, limit) {
                        Ok(()) => return Ok(()),
                        // The usual way is still there.
                        Err(error) => {
                            tracing::warn!(%error, copy, "use a copy that was made ahead");
                            self.drop_copies(vec![copy]);
                        }
                    }
                }
                driver.copy_volume(&from, &volumes, volume.as_str(), sandbox, limit)
            }
            (Driver::Plain, None) => {
                let path = volumes.join(volume.as_str());
                make_tree(&path)
            }
            (Driver::Plain, Some(from)) => self.copy_tree(&from, &volumes.join(volume.as_str())),
        }
    }

    /// Copies the tree of a volume or snapshot file by file; it appears whole.
    fn copy_tree(&self, from: &Path, to: &Path) -> io::Result<()> {
        let name = format!("copy-{}-{}", std::process::id(), self.counter.fetch_add(1, Ordering::Relaxed));
        let scratch = self.root.join("scratch");
        let partial = scratch.join(&name);
        let copied = make_tree(&partial).and_then(|()| {
            let hub = partial.join("hub");
            fs::create_dir(&hub)?;
            copy::copy(&from.join("u"), &partial.join("u"), &hub)?;
            tree::remove(tree::open_root(&partial)?, c"hub")?;
            sys::syncfs(&File::open(&partial)?)?;
            fs::rename(&partial, to)?;
            // The name too survives the death of the host.
            let parent = to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all());
            parent.and_then(|()| File::open(&scratch)?.sync_all())
        });
        if copied.is_err() {
            // The failure is what the caller wants to hear about.
            let _ = remove_tree(&scratch, &name);
        }
        copied
    }

    /// Gives a full sandbox, in a pool that may be full too, room for the little
    /// that a start writes, until [`Storage::settle`].
    pub(crate) fn lift(&self, sandbox: &SandboxId, limit: Option<u64>) -> io::Result<()> {
        let _open = self.access()?;
        match &self.driver {
            Driver::Btrfs { driver, .. } => {
                driver.set_limit(&self.root, sandbox, limit.map(|limit| limit + room::LIFT))?;
                self.lift_cap()
            }
            Driver::Plain => Ok(()),
        }
    }

    /// Puts a sandbox's limit, and the pool's, in force again.
    pub(crate) fn settle(&self, sandbox: &SandboxId, limit: Option<u64>) -> io::Result<()> {
        self.set_limit(sandbox, limit)?;
        self.set_cap(true)
    }

    /// Limits what counts for a sandbox, in bytes.
    pub(crate) fn set_limit(&self, sandbox: &SandboxId, limit: Option<u64>) -> io::Result<()> {
        let _open = self.access()?;
        match &self.driver {
            Driver::Btrfs { driver, .. } => driver.set_limit(&self.root, sandbox, limit),
            Driver::Plain => Ok(()),
        }
    }

    /// Returns when everything that was written to a volume survives the death
    /// of the host.
    pub(crate) fn seal(&self, volume: &VolumeId) -> io::Result<()> {
        self.sync(&self.volume_path(volume), volume.as_str(), btrfs::Driver::seal)
    }

    /// Writes to disk what a volume was given until now, so that the copy which
    /// follows has little left to write.
    pub(crate) fn write_back(&self, volume: &VolumeId) -> io::Result<()> {
        self.sync(&self.volume_path(volume), volume.as_str(), btrfs::Driver::write_back)
    }

    fn sync(
        &self,
        path: &Path,
        name: &str,
        by_copy: fn(&btrfs::Driver, &Path, &Path, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        let _open = self.access()?;
        if let Driver::Btrfs { driver, .. } = &self.driver {
            match by_copy(driver, path, &self.root.join("scratch"), &format!("seal-{name}")) {
                // On a full disk by the long way, which takes no room.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
                other => return other,
            }
        }
        sys::syncfs(&File::open(path)?)
    }

    /// Returns when all volumes that were made survive the death of the host:
    /// that they are there, not what was written to them.
    pub(crate) fn save_volumes(&self) -> io::Result<()> {
        let _open = self.access()?;
        let root = File::open(&self.root)?;
        match &self.driver {
            Driver::Btrfs { .. } => sys::btrfs::commit(&root),
            Driver::Plain => sys::syncfs(&root),
        }
    }

    /// Makes a snapshot of a volume, as it is now; it, and the volume until
    /// now, survive the death of the host from then on. Harmless where it is
    /// there already.
    pub(crate) fn snapshot(&self, volume: &VolumeId, snapshot: &SnapshotId) -> io::Result<()> {
        let _open = self.access()?;
        let (from, to) = (self.volume_path(volume), self.snapshot_path(snapshot));
        if to.exists() {
            return Ok(());
        }
        match &self.driver {
            Driver::Btrfs { driver, .. } => {
                driver.snapshot(&from, &self.root.join("snapshots"), snapshot.as_str())
            }
            Driver::Plain => self.copy_tree(&from, &to),
        }
    }

    /// Bytes that a volume holds above what it was copied from. With btrfs in
    /// constant time, and exact after [`Storage::seal`] or
    /// [`Storage::snapshot`].
    pub(crate) fn volume_bytes(&self, volume: &VolumeId) -> io::Result<u64> {
        let _open = self.access()?;
        let path = self.volume_path(volume);
        match &self.driver {
            Driver::Btrfs { driver, .. } => driver.written(&path),
            Driver::Plain => tree::size(&path.join("u")),
        }
    }

    /// Bytes that count against the limit of a sandbox; `None`: this driver
    /// does not count. What was written in the last seconds may be missing.
    pub(crate) fn used(&self, sandbox: &SandboxId) -> io::Result<Option<u64>> {
        let _open = self.access()?;
        match &self.driver {
            Driver::Btrfs { driver, .. } => match driver.used(&self.root, sandbox) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(0)),
                other => other.map(Some),
            },
            Driver::Plain => Ok(None),
        }
    }

    /// Deletes files that nothing refers to. Harmless where they are gone.
    pub(crate) fn delete(&self, garbage: &Garbage) -> io::Result<()> {
        let _open = self.access()?;
        let part = match garbage.kind {
            GarbageKind::Image => return self.images.delete(&garbage.name),
            GarbageKind::Volume => "volumes",
            GarbageKind::Drive => "drives",
            GarbageKind::View => "views",
            GarbageKind::Snapshot => {
                if let Ok(id) = garbage.name.parse() {
                    self.drop_copies(self.ready.forget(&id));
                }
                "snapshots"
            }
        };
        self.delete_tree(part, &garbage.name)
    }

    fn delete_tree(&self, part: &str, name: &str) -> io::Result<()> {
        let parent = self.root.join(part);
        match &self.driver {
            Driver::Btrfs { driver, .. } => driver.delete(&parent, name),
            Driver::Plain => {
                // Out of sight first: half a volume must not be found.
                let place = format!("gone-{name}-{}", self.counter.fetch_add(1, Ordering::Relaxed));
                let scratch = self.root.join("scratch");
                match fs::rename(parent.join(name), scratch.join(&place)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                    Ok(()) => remove_tree(&scratch, &place),
                }
            }
        }
    }

    /// Removes quota groups that nothing counts for any more; how many.
    pub(crate) fn tidy_groups(&self) -> io::Result<usize> {
        let _open = self.access()?;
        match &self.driver {
            Driver::Btrfs { driver, .. } => driver.tidy_groups(&self.root),
            Driver::Plain => Ok(0),
        }
    }

    /// Names in a part of the pool.
    fn names(&self, part: &str) -> io::Result<Vec<String>> {
        fs::read_dir(self.root.join(part))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Everything on disk that a row should own.
    pub(crate) fn inventory(&self) -> io::Result<Vec<Garbage>> {
        let _open = self.access()?;
        let of = |kind| move |name| Garbage { kind, name };
        let mut all: Vec<_> = self.names("volumes")?.into_iter().map(of(GarbageKind::Volume)).collect();
        all.extend(self.names("snapshots")?.into_iter().map(of(GarbageKind::Snapshot)));
        all.extend(self.names("drives")?.into_iter().map(of(GarbageKind::Drive)));
        all.extend(self.names("views")?.into_iter().map(of(GarbageKind::View)));
        all.extend(self.images.left()?.into_iter().map(of(GarbageKind::Image)));
        Ok(all)
    }
}

/// An empty volume as plain directories.
fn make_tree(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    for part in ["u", "w"] {
        fs::create_dir(path.join(part))?;
    }
    fs::set_permissions(path.join("u"), fs::Permissions::from_mode(0o755))
}

fn remove_tree(parent: &Path, name: &str) -> io::Result<()> {
    tree::remove(tree::open_root(parent)?, &std::ffi::CString::new(name)?)
}
