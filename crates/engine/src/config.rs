//! What the engine is told, and what it keeps with every sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_provider::{Expiration, NetworkPolicy, Resources, Retention};

use crate::storage::StorageKind;

/// Who commands run as unless they ask for root.
pub(crate) const DEFAULT_USER: &str = "ubuntu";

/// Default working directory (provider contract, section 11; session contract,
/// section 5).
pub(crate) const DEFAULT_CWD: &str = "/vercel/sandbox";

/// Options of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// Which of the instances that share this host: 0 to 15.
    pub instance: u8,
    /// Driver of the pool.
    pub storage: StorageKind,
    /// Size of the pool's image when one is made, in bytes. It is sparse.
    pub pool_size: u64,
    /// Base image of sandboxes that name none.
    pub default_image: String,
    /// Limits of sandboxes that name none.
    pub default_resources: Resources,
    /// Most CPUs that a sandbox may ask for.
    pub max_vcpus: u32,
    /// Hard lifetime of runs that name none.
    pub default_timeout: Duration,
    /// Longest hard lifetime.
    pub max_timeout: Duration,
    /// What a new sandbox's source (a clone, an archive) may take.
    pub source_timeout: Duration,
    /// Time between SIGTERM and SIGKILL when a run is stopped.
    pub stop_grace: Duration,
    /// Networks kept ready.
    pub network_pool: usize,
    /// Layers of a stack, from which on it is squashed.
    pub squash_depth: u32,
    /// Resolver that DNS questions go to; `None`: the host's own.
    pub dns_upstream: Option<std::net::SocketAddr>,
    /// URL prefixes that stand for others.
    pub mirrors: Vec<dormouse_egress::Mirror>,
}

/// Configuration of a sandbox, kept with it on the host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RunConfig {
    pub(crate) resources: Resources,
    pub(crate) image: String,
    pub(crate) cwd: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) timeout_ms: u64,
    pub(crate) network: NetworkPolicy,
    pub(crate) ephemeral: bool,
    #[serde(default)]
    pub(crate) runtime: Option<String>,
    #[serde(default)]
    pub(crate) ports: Vec<u16>,
    #[serde(default)]
    pub(crate) snapshot_expiration: Option<Expiration>,
    #[serde(default)]
    pub(crate) retention: Retention,
}
