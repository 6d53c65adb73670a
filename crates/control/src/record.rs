//! A sandbox's row with its configuration, read once.

use std::sync::Arc;

use dormouse_provider::{ProviderError, Result};
use dormouse_store::{RunRow, SandboxRow};
use dormouse_types::{HostId, RunId, RunStatus, Timestamp, VolumeId};

use crate::stored::{SandboxConfig, Stored as _};

/// What is recorded of a sandbox. A configuration that cannot be read keeps it
/// from running, not from being seen or deleted.
#[derive(Debug, Clone)]
pub struct SandboxRecord {
    /// The row.
    pub row: SandboxRow,
    config: Option<Arc<SandboxConfig>>,
}

impl SandboxRecord {
    /// Reads the configuration in a row.
    #[must_use]
    pub fn new(row: SandboxRow) -> Self {
        let config = SandboxConfig::read(&row.config);
        if let Err(error) = &config {
            tracing::error!(sandbox = %row.id, error = error.detail(), "read a sandbox");
        }
        Self { row, config: config.ok().map(Arc::new) }
    }

    /// Its configuration.
    ///
    /// # Errors
    /// [`ProviderError::Internal`] when it cannot be read.
    pub fn config(&self) -> Result<&Arc<SandboxConfig>> {
        let unreadable = || {
            ProviderError::internal(format!("read the configuration of {}", self.row.id), "see the log above")
        };
        self.config.as_ref().ok_or_else(unreadable)
    }

    /// Its configuration, where it can be read.
    #[must_use]
    pub fn known_config(&self) -> Option<&SandboxConfig> {
        self.config.as_deref()
    }

    /// The same sandbox with another row, whose configuration has not changed.
    #[must_use]
    pub fn with_row(&self, row: SandboxRow) -> Self {
        Self { row, config: self.config.clone() }
    }
}

/// A run that is about to be made.
///
/// # Errors
/// [`ProviderError::Internal`] for a policy that JSON cannot say.
pub fn pending_run(
    host: &HostId,
    sandbox: &SandboxRow,
    config: &SandboxConfig,
    (id, number): (RunId, i64),
    (volume_id, made_volume): (VolumeId, bool),
    now: Timestamp,
) -> Result<RunRow> {
    Ok(RunRow {
        id,
        sandbox_id: sandbox.id.clone(),
        host_id: host.clone(),
        namespace: sandbox.namespace.clone(),
        sandbox_name: sandbox.name.clone(),
        status: RunStatus::Pending,
        number,
        resources: config.resources,
        cwd: config.cwd.clone(),
        runtime: config.runtime.clone().unwrap_or_else(|| config.image.clone()),
        network: config.shown_network()?,
        source_snapshot: sandbox.current_snapshot.clone(),
        volume_id,
        made_volume,
        process: None,
        timeout_ms: i64::try_from(config.timeout_ms).unwrap_or(i64::MAX),
        expires_at: None,
        requested_at: now,
        started_at: None,
        stop_requested_at: None,
        stopped_at: None,
        stop_reason: None,
        ending: None,
        warnings: Vec::new(),
        sent_bytes: 0,
        received_bytes: 0,
        updated_at: now,
    })
}

/// Rows for tests of this crate.
#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use dormouse_provider::{NetworkPolicy, Resources, Retention};
    use dormouse_types::{ImageId, Namespace, SandboxId};

    use super::*;

    pub(crate) fn config() -> SandboxConfig {
        SandboxConfig {
            resources: Resources { vcpus: 1, memory_mib: 1, pids: 1, disk_mib: None },
            image: "default".to_owned(),
            cwd: "/".to_owned(),
            user: "ubuntu".to_owned(),
            image_env: BTreeMap::new(),
            env: BTreeMap::new(),
            tags: BTreeMap::new(),
            timeout_ms: 1,
            network: NetworkPolicy::default(),
            grant: None,
            ephemeral: false,
            runtime: None,
            ports: Vec::new(),
            snapshot_expiration: None,
            retention: Retention::Current,
            mounts: std::collections::BTreeMap::new(),
        }
    }

    pub(crate) fn sandbox(config: &SandboxConfig) -> SandboxRow {
        let now = Timestamp(1);
        SandboxRow {
            id: SandboxId::generate(),
            namespace: Namespace::default_of("a"),
            name: "one".parse().unwrap(),
            persistent: true,
            image_id: ImageId::generate(),
            config: config.write().unwrap(),
            current_run: RunId::generate(),
            current_snapshot: None,
            volume_id: Some(VolumeId::generate()),
            descends_from: None,
            base_bytes: 10,
            boots: 1,
            retry_key: None,
            created_at: now,
            updated_at: now,
            status_updated_at: now,
        }
    }

    pub(crate) fn run(sandbox: &SandboxRow) -> RunRow {
        let volume = sandbox.volume_id.clone().unwrap_or_else(VolumeId::generate);
        let (host, id) = ("host_one".parse().unwrap(), sandbox.current_run.clone());
        pending_run(&host, sandbox, &config(), (id, 1), (volume, false), Timestamp(2)).unwrap()
    }

    #[test]
    fn a_configuration_that_cannot_be_read_is_no_reason_to_hide_a_sandbox() {
        let row = SandboxRow { config: "{".to_owned(), ..sandbox(&config()) };
        let record = SandboxRecord::new(row);
        assert!(record.known_config().is_none() && record.config().is_err());
        let record = SandboxRecord::new(sandbox(&config()));
        assert_eq!(record.known_config(), Some(&config()));
    }
}
