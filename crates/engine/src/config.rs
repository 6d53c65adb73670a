//! What the engine is told, and what it keeps with every sandbox.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dormouse_provider::{Expiration, NetworkPolicy, ProviderError, Resources, Result, Retention};

use crate::storage::StorageConfig;

/// Who commands run as unless they ask for root.
pub(crate) const DEFAULT_USER: &str = "ubuntu";

/// Default working directory (provider contract, section 11; session contract,
/// section 5).
pub(crate) const DEFAULT_CWD: &str = "/vercel/sandbox";

/// Options of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Which of the instances that share this host: 0 to 15.
    pub instance: u8,
    /// Where everything lies.
    pub storage: StorageConfig,
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
    /// Resolver that DNS questions go to; `None`: the host's own.
    pub dns_upstream: Option<std::net::SocketAddr>,
    /// URL prefixes that stand for others.
    pub mirrors: Vec<dormouse_egress::Mirror>,
}

impl EngineConfig {
    /// The data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.storage.data_dir
    }
}

/// What a base image says of the commands that run in it (OCI image
/// specification, "Image Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    pub(crate) env: BTreeMap<String, String>,
    /// Absolute; `None`: the usual one.
    pub(crate) workdir: Option<String>,
    /// Name or number, perhaps with a group's number; `None`: the usual one.
    pub(crate) user: Option<String>,
}

/// Configuration of a sandbox, kept with it on the host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RunConfig {
    pub(crate) resources: Resources,
    pub(crate) image: String,
    pub(crate) cwd: String,
    /// Who commands run as unless they ask for root.
    pub(crate) user: String,
    /// The image's environment, below `env`.
    pub(crate) image_env: BTreeMap<String, String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) timeout_ms: u64,
    pub(crate) network: NetworkPolicy,
    pub(crate) ephemeral: bool,
    pub(crate) runtime: Option<String>,
    pub(crate) ports: Vec<u16>,
    pub(crate) snapshot_expiration: Option<Expiration>,
    pub(crate) retention: Retention,
}

pub(crate) fn write(config: &RunConfig) -> Result<String> {
    serde_json::to_string(config).map_err(|error| ProviderError::internal("write configuration", error))
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(config: &str) -> Result<T> {
    serde_json::from_str(config).map_err(|error| ProviderError::internal("read stored configuration", error))
}
