//! What a host is told.

use std::path::Path;
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
    /// Networks kept ready.
    pub network_pool: usize,
    /// What leaves sandboxes, and how.
    pub egress: dormouse_egress::EgressConfig,
}

impl NodeConfig {
    /// The data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.storage.data_dir
    }
}
