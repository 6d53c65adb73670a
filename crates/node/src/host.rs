//! What every machine of this host shares.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_jobs::Clock;
use dormouse_provider::{ProviderError, Result};
use dormouse_store::{Db, RunProcess, RunRow};

use crate::admission::Admission;
use crate::binaries::Binaries;
use crate::cgroup::Cgroups;
use crate::config::NodeConfig;
use crate::network::{Network, Numbering};
use crate::storage::{PoolHealth, Storage};

/// The host's parts.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: NodeConfig,
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    pub(crate) storage: Arc<Storage>,
    pub(crate) cgroups: Arc<Cgroups>,
    pub(crate) network: Arc<Network>,
    pub(crate) numbering: Numbering,
    pub(crate) sandboxes: Arc<dormouse_egress::Sandboxes>,
    pub(crate) binaries: Binaries,
    pub(crate) admission: Admission,
    pub(crate) boot_id: String,
    /// System-wide configuration of git inside, for mirrored hosts.
    pub(crate) git_config: String,
    /// Whether the disk of the data directory was full at the last look.
    pub(crate) disk_full: AtomicBool,
    /// Told when there is garbage to be removed.
    pub(crate) untidy: Arc<tokio::sync::Notify>,
    /// Since when there are new sandboxes that a host without power forgets.
    pub(crate) unsaved: Mutex<Option<Instant>>,
}

/// New sandboxes are saved this long after the first of them: together, since
/// each would make all writers of the pool wait for a moment.
const SAVE_AFTER: Duration = Duration::from_secs(5);

impl Host {
    /// Refuses what needs the pool while that is broken. Details are for the
    /// operator (`/healthz`, the log).
    ///
    /// # Errors
    /// [`ProviderError::Capacity`] with the reason.
    pub(crate) fn usable(&self) -> Result<()> {
        match self.storage.health() {
            PoolHealth::Broken(_) => {
                Err(ProviderError::Capacity("the storage of this server is being repaired".to_owned()))
            }
            PoolHealth::Fine | PoolHealth::Low(_) => Ok(()),
        }
    }

    /// Refuses what would begin something new while there is hardly any room.
    ///
    /// # Errors
    /// [`ProviderError::Capacity`] with the reason.
    pub(crate) fn admits(&self) -> Result<()> {
        self.usable()?;
        match self.storage.health() {
            PoolHealth::Low(_) => Err(ProviderError::Capacity(
                "the disk of this server is nearly full, so nothing new is begun".to_owned(),
            )),
            PoolHealth::Fine | PoolHealth::Broken(_) => Ok(()),
        }
    }

    /// Returns once everything that was recorded survives the death of the host.
    ///
    /// # Errors
    /// [`ProviderError::Internal`] with what `fdatasync(2)` says.
    pub(crate) async fn sync_database(&self) -> Result<()> {
        self.db.sync().await.map_err(|error| ProviderError::internal("sync the database", error))
    }

    fn unsaved(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that there is a new sandbox; [`Host::save_new`] saves it.
    pub(crate) fn note_new(&self) {
        self.unsaved().get_or_insert_with(Instant::now);
    }

    /// Has new sandboxes survive the death of the host, a while after they were
    /// made: their volumes first, then their rows.
    pub(crate) async fn save_new(&self) {
        let due = self.unsaved().take_if(|since| since.elapsed() >= SAVE_AFTER);
        let Some(since) = due else { return };
        let storage = self.storage.clone();
        let saved = tokio::task::spawn_blocking(move || storage.save_volumes()).await;
        let saved = match saved {
            Ok(Ok(())) => self.db.sync().await,
            Ok(Err(error)) => Err(error),
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = saved {
            tracing::warn!(%error, "save new sandboxes; trying again");
            self.unsaved().get_or_insert(since);
        }
    }

    /// Whether PID 1 of a run lives, on its way out too.
    pub(crate) fn has_process(&self, run: &RunRow) -> bool {
        run.process.as_ref().is_some_and(|process| self.lives(process))
    }

    /// Whether a PID 1 lives, on its way out too.
    pub(crate) fn lives(&self, process: &RunProcess) -> bool {
        process.boot_id == self.boot_id
            && start_time(process.pid) == Some(process.start_time)
            && !is_zombie(process.pid)
    }

    pub(crate) fn sockets(&self) -> PathBuf {
        sockets(self.config.instance)
    }

    pub(crate) fn socket_dir(&self, run: &str) -> PathBuf {
        self.sockets().join(run)
    }
}

pub(crate) fn internal(
    operation: &'static str,
) -> impl Fn(dormouse_store::StoreError) -> ProviderError + Send + 'static {
    move |error| match error {
        dormouse_store::StoreError::Conflict(subject) => ProviderError::Conflict(subject),
        dormouse_store::StoreError::Quota(refused) => ProviderError::Quota(refused),
        other => ProviderError::internal(operation, other),
    }
}

/// Works in the pool, off the runtime's own threads. A failure is looked into:
/// a pool that is broken or full says so, in words for the caller.
pub(crate) async fn pool<T: Send + 'static>(
    host: &Arc<Host>,
    operation: &'static str,
    work: impl FnOnce(&Storage) -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let storage = host.storage.clone();
    let done = tokio::task::spawn_blocking(move || {
        work(&storage).inspect_err(|_| {
            storage.look_after();
        })
    });
    let done = done.await.map_err(|error| ProviderError::internal(operation, error))?;
    done.map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            tracing::warn!(%error, operation, "no room");
            ProviderError::Capacity("there is no room left on the disk of this server".to_owned())
        }
        _ => host.usable().err().unwrap_or_else(|| ProviderError::internal(operation, error)),
    })
}

/// Directory of the agents' sockets. Not in the data directory: whoever sleeps
/// wakes also where that one's disk has no free block.
pub(crate) fn sockets(instance: u8) -> PathBuf {
    PathBuf::from(format!("/run/dormouse-{instance}"))
}

/// Which boot of this host it is.
pub(crate) fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Start time of a process (`proc(5)`, field 22), `None` when there is none.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat_field(pid, 22)
}

/// Whether a process is on its way out (`PF_EXITING` in field 9): PID 1 of a
/// namespace ends only after all others in it.
pub(crate) fn is_exiting(pid: i32) -> bool {
    const EXITING: u64 = 4;
    stat_field(pid, 9).is_none_or(|flags| flags & EXITING != 0)
}

/// Whether a process has ended and waits for its parent to see it (state `Z`,
/// `X`). PID 1 of a namespace gets there after all others of it.
fn is_zombie(pid: i32) -> bool {
    stat_word(pid, 3).is_none_or(|state| matches!(state.as_str(), "Z" | "X"))
}

fn stat_field(pid: i32, field: usize) -> Option<u64> {
    stat_word(pid, field)?.parse().ok()
}

fn stat_word(pid: i32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the name, may hold anything; the third is the first behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(field - 3).map(str::to_owned)
}
