//! What a host is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_control::Limits;
use dormouse_types::HostId;

use crate::storage::StorageConfig;

/// Options of a host.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Which host it is ([`crate::host_id`]).
    pub host: HostId,
    /// Which of the instances that share this machine: 0 to 15.
    pub instance: u8,
    /// Where everything lies.
    pub storage: StorageConfig,
    /// What may be asked for.
    pub limits: Limits,
    /// What a new sandbox's source (a clone, an archive) may take.
    pub source_timeout: Duration,
    /// Time between SIGTERM and SIGKILL when a run is stopped.
    pub stop_grace: Duration,
    /// What a sandbox may have of the kernel.
    pub kernel: KernelLimits,
    /// Where lxcfs is mounted. `None`, or where nothing answers at start: sandboxes
    /// are told their limits, and not what they use of them.
    pub lxcfs: Option<PathBuf>,
    /// Bytes of the host's memory that are kept free of new runs; `None`: a
    /// sixteenth, from 256 MiB to 2 GiB.
    pub keep_memory: Option<u64>,
    /// Networks kept ready.
    pub network_pool: usize,
    /// What leaves sandboxes, and how.
    pub egress: dormouse_egress::EgressConfig,
}

/// What a sandbox may have of things that the kernel counts, whatever its memory
/// and its number of processes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelLimits {
    /// inotify instances. The host's own limit holds for each sandbox by itself,
    /// and is raised to this where it is lower.
    pub inotify_instances: u64,
    /// Files and directories that are watched by inotify; likewise.
    pub inotify_watches: u64,
    /// Pending signals and POSIX timers.
    pub pending_signals: u64,
    /// Bytes of POSIX message queues.
    pub queue_bytes: u64,
    /// Terminals that are open at once.
    pub terminals: u64,
    /// Programs may load system call filters of their own, as browsers and agents do.
    /// The kernel has room for a number of bytes of them, for all of the host together:
    /// one sandbox cannot fill it, some of them can.
    pub own_filters: bool,
}

impl Default for KernelLimits {
    fn default() -> Self {
        Self {
            inotify_instances: 1024,
            inotify_watches: 524_288,
            pending_signals: 32_768,
            queue_bytes: 819_200,
            terminals: 256,
            own_filters: true,
        }
    }
}

impl NodeConfig {
    /// The data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.storage.data_dir
    }
}
