//! Where layers and runs lie on disk.
//!
//! ```text
//! pool/
//!   runs/RUN/{u,w}      upper and work directory of a live run
//!   layers/LAYER/u      an immutable layer
//!   trash/…             on its way out; emptied in the background
//! ```
//!
//! Freezing a run is a rename of its directory into `layers/`, whatever it
//! holds. Two drivers differ in what a directory is: `btrfs` makes each a
//! subvolume with a limit of its own and deletes it in constant time; `plain`
//! works on any file system, deletes in the background, and cannot limit, so it
//! refuses a sandbox that asks for a limit.

mod btrfs;
mod squash;
mod tree;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_types::{LayerId, RunId};

use crate::sys;

/// Which driver keeps the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// A btrfs file system: limits are enforced.
    Btrfs,
    /// Any file system: limits are refused.
    Plain,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct Storage {
    kind: StorageKind,
    root: PathBuf,
    runs: File,
    layers: File,
    counter: AtomicU64,
}

/// A layer that no row names yet.
#[derive(Debug)]
pub(crate) struct NewLayer {
    /// Its tree.
    pub(crate) path: PathBuf,
    /// Held while it is made: whoever finds the layer knows whether its maker
    /// lives.
    _lock: std::os::fd::OwnedFd,
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
/// What `statfs(2)` says.
pub fn disk_usage(path: &Path) -> io::Result<DiskUsage> {
    let (_, total_bytes, free_bytes) = sys::statfs(path)?;
    Ok(DiskUsage { total_bytes, free_bytes })
}

impl Storage {
    /// Opens the pool in `data_dir`/pool. With btrfs and no btrfs there, a
    /// sparse image of `size` bytes is made and mounted.
    pub(crate) fn open(kind: StorageKind, data_dir: &Path, size: u64) -> io::Result<Self> {
        let root = data_dir.join("pool");
        fs::create_dir_all(&root)?;
        if kind == StorageKind::Btrfs {
            btrfs::ensure_mounted(&root, &data_dir.join("pool.img"), size)?;
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        for part in ["runs", "layers", "trash"] {
            fs::create_dir_all(root.join(part))?;
        }
        let (runs, layers) = (File::open(root.join("runs"))?, File::open(root.join("layers"))?);
        Ok(Self { kind, root, runs, layers, counter: AtomicU64::new(0) })
    }

    /// Unmounts the pool. Nothing may live on it.
    pub(crate) fn close(kind: StorageKind, data_dir: &Path) -> io::Result<()> {
        match kind {
            StorageKind::Btrfs => btrfs::unmount(&data_dir.join("pool")),
            StorageKind::Plain => Ok(()),
        }
    }

    pub(crate) fn enforces_limits(&self) -> bool {
        self.kind == StorageKind::Btrfs
    }

    /// Bytes of the pool's file system.
    pub(crate) fn usage(&self) -> io::Result<DiskUsage> {
        disk_usage(&self.root)
    }

    /// Directory with the upper and work directory of a run.
    pub(crate) fn run_path(&self, run: &RunId) -> PathBuf {
        self.root.join("runs").join(run.as_str())
    }

    /// Directory tree of a layer.
    pub(crate) fn layer_path(&self, layer: &LayerId) -> PathBuf {
        self.root.join("layers").join(layer.as_str()).join("u")
    }

    /// Makes the directories of a run, which may hold `limit` bytes.
    pub(crate) fn create_run(&self, run: &RunId, limit: Option<u64>) -> io::Result<PathBuf> {
        let path = self.run_path(run);
        self.create(&self.runs, "runs", run.as_str(), limit)?;
        for part in ["u", "w"] {
            fs::create_dir(path.join(part))?;
        }
        // The root directory of the sandbox.
        fs::set_permissions(path.join("u"), fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn create(&self, parent: &File, part: &str, name: &str, limit: Option<u64>) -> io::Result<()> {
        let path = self.root.join(part).join(name);
        match self.kind {
            StorageKind::Btrfs => {
                sys::subvolume_create(parent, name)?;
                if let Some(limit) = limit {
                    sys::quota_limit(&File::open(&path)?, limit)?;
                }
            }
            StorageKind::Plain => fs::create_dir(&path)?,
        }
        // Only the launcher walks in here, as the host's root.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    }

    /// Freezes a run into the layer of the same number, and returns it. Doing
    /// it again after a crash is harmless; `None`: there is nothing to freeze.
    pub(crate) fn freeze(&self, run: &RunId) -> io::Result<Option<LayerId>> {
        let layer = layer_of(run);
        let to = self.root.join("layers").join(layer.as_str());
        match fs::rename(self.run_path(run), &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(to.is_dir().then_some(layer));
            }
            other => other?,
        }
        // The kernel's scratch directory is no part of a layer.
        tree::remove(tree::open_root(&to)?, c"w")?;
        Ok(Some(layer))
    }

    /// Bytes that a frozen run holds, in constant time; `None` where only
    /// counting tells. Exact after a sync.
    pub(crate) fn frozen_size(&self, layer: &LayerId) -> io::Result<Option<u64>> {
        match self.kind {
            StorageKind::Btrfs => {
                sys::quota_used(&File::open(self.root.join("layers").join(layer.as_str()))?).map(Some)
            }
            StorageKind::Plain => Ok(None),
        }
    }

    /// Moves a run's files out of the way and deletes them.
    pub(crate) fn discard_run(&self, run: &RunId) -> io::Result<()> {
        self.discard(&self.runs, "runs", run.as_str())
    }

    /// Deletes a layer that nothing refers to.
    pub(crate) fn discard_layer(&self, layer: &str) -> io::Result<()> {
        self.discard(&self.layers, "layers", layer)
    }

    fn discard(&self, parent: &File, part: &str, name: &str) -> io::Result<()> {
        let path = self.root.join(part).join(name);
        if !path.exists() {
            return Ok(());
        }
        match self.kind {
            StorageKind::Btrfs => sys::subvolume_delete(parent, name),
            StorageKind::Plain => {
                let place = self.counter.fetch_add(1, Ordering::Relaxed);
                let trash = self.root.join("trash").join(format!("{name}.{}.{place}", std::process::id()));
                fs::rename(path, trash)
            }
        }
    }

    /// Deletes what lies in the trash.
    pub(crate) fn empty_trash(&self) -> io::Result<()> {
        let trash = tree::open_root(&self.root.join("trash"))?;
        tree::names(&trash)?.iter().try_for_each(|name| tree::remove(&trash, name))
    }

    /// Starts a layer that is filled from outside (an image) or from others (a
    /// squash). It becomes real with the row that names it; until then it is
    /// kept for as long as the returned value lives.
    pub(crate) fn create_layer(&self, layer: &LayerId) -> io::Result<NewLayer> {
        self.create(&self.layers, "layers", layer.as_str(), None)?;
        let whole = self.root.join("layers").join(layer.as_str());
        let lock = sys::lock_dir(&whole)?;
        let path = self.layer_path(layer);
        // Fails when a server that starts just now took it for an orphan.
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(NewLayer { path, _lock: lock })
    }

    /// Deletes a layer that no row knows, unless somebody is making it.
    pub(crate) fn discard_orphan(&self, layer: &str) -> io::Result<()> {
        match sys::lock_dir(&self.root.join("layers").join(layer)) {
            Ok(_lock) => self.discard_layer(layer),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `layer` equivalent to the stack `sources`, bottom first.
    pub(crate) fn squash(&self, layer: &LayerId, sources: &[LayerId]) -> io::Result<NewLayer> {
        let made = self.create_layer(layer)?;
        let target = &made.path;
        let own = tree::open_root(&self.root.join("layers").join(layer.as_str()))?;
        for source in sources {
            let hub = target.with_file_name("hub");
            fs::create_dir(&hub)?;
            squash::apply(&self.layer_path(source), target, &hub)?;
            tree::remove(&own, c"hub")?;
        }
        self.sync()?;
        Ok(made)
    }

    /// Names in a part of the pool.
    pub(crate) fn names(&self, part: &str) -> io::Result<Vec<String>> {
        fs::read_dir(self.root.join(part))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Returns once the pool's content survives the death of the host.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sys::syncfs(&self.layers)
    }

    /// Bytes that a layer's files hold.
    pub(crate) fn layer_size(&self, layer: &LayerId) -> io::Result<u64> {
        tree::size(&self.layer_path(layer))
    }
}

/// The layer that a run becomes: same number, so that a crash between the
/// rename and the row is repaired by looking.
pub(crate) fn layer_of(run: &RunId) -> LayerId {
    let number = run.as_str().trim_start_matches("sbx_");
    // A run id with its prefix changed is a layer id.
    format!("lay_{number}").parse().unwrap_or_else(|_| LayerId::generate())
}
