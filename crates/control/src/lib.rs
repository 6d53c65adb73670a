//! The provider port over rows: what is *recorded* of sandboxes, their runs,
//! snapshots and images; who may ask for what; what callers see.
//!
//! ```text
//!  caller ──port──► Control ──order──► Runner (a host) ──records──► rows
//!                      └──────────────── reads ───────────────────────┘
//! ```
//!
//! A host is known by the orders that it takes ([`order`]) and by nothing else.
//! Every host has a `Control` of its own over the same rows: a sandbox lives on
//! the host that its current run names, and a call that needs that host and
//! reaches another one is told where to go.
//!
//! What does not live here: processes, files, networks (`dormouse-node`);
//! accounts, agent sessions, HTTP.

mod drives;
pub mod ending;
mod gateway;
mod ground;
mod history;
pub mod order;
mod port;
mod present;
mod quotas;
mod record;
mod rules;
mod sandboxes;
mod snapshots;
mod stored;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_provider::{ProviderError, Result, RunRef, SandboxKey};
use dormouse_store::{Db, RunRow, SandboxWithRun, StoreError};
use dormouse_types::HostId;
use tracing::Instrument as _;

pub use ground::{Files, Ground};
pub use record::{SandboxRecord, pending_run};
pub use rules::{Limits, Quotas, check_ports, new_routes};
pub use stored::{DEFAULT_CWD, DEFAULT_USER, ImageConfig, SandboxConfig, Stored};

use order::Runner;

/// What a control is told.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The host whose orders it gives.
    pub host: HostId,
    /// Base image of sandboxes that name none.
    pub default_image: String,
    /// Runtimes whose images can be built here; for advice.
    pub recipes: Vec<&'static str>,
    /// What may be asked for.
    pub limits: Limits,
    /// How long a creation may take: the source of a sandbox, and its start.
    pub creation_timeout: Duration,
    /// How long records stay of runs that a newer one followed, and of
    /// snapshots that were deleted.
    pub history: Duration,
}

/// The port over rows.
#[derive(Debug, Clone)]
pub struct Control {
    db: Db,
    clock: Clock,
    runner: Arc<dyn Runner>,
    config: Arc<ControlConfig>,
    /// What creations without an image wait for, in a sentence.
    waiting: Arc<Mutex<Option<String>>>,
    /// What owners have used of quotas.
    used: quotas::Used,
}

impl Control {
    /// The port over the rows of `db`, for the host that `runner` gives orders
    /// to.
    #[must_use]
    pub fn new(db: Db, clock: Clock, runner: Arc<dyn Runner>, config: ControlConfig) -> Self {
        Self {
            db,
            clock,
            runner,
            config: Arc::new(config),
            waiting: Arc::default(),
            used: quotas::Used::default(),
        }
    }

    /// Has creations without their base image say what they wait for.
    pub fn wait_for_image(&self, sentence: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = sentence;
    }

    fn waits_for(&self) -> Option<String> {
        // A sentence: a panic elsewhere cannot tear it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sandbox of this name, with its newest run.
    async fn find(&self, key: &SandboxKey) -> Result<SandboxWithRun> {
        let found = self.db.sandbox(&key.namespace, &key.name).await.map_err(internal("read sandbox"))?;
        found.ok_or_else(|| ProviderError::NotFound(format!("sandbox {}", key.name)))
    }

    /// The run, if the caller's namespace has it. Somebody else's is none.
    async fn find_run(&self, run: &RunRef) -> Result<RunRow> {
        let row = self.db.run(&run.id).await.map_err(internal("read run"))?;
        row.filter(|row| row.namespace == run.namespace)
            .ok_or_else(|| ProviderError::NotFound(format!("run {}", run.id)))
    }

    /// Refuses what needs another host.
    ///
    /// # Errors
    /// [`ProviderError::Elsewhere`] that says where to go.
    async fn here(&self, host: &HostId, subject: impl FnOnce() -> String) -> Result<()> {
        if host == &self.config.host {
            return Ok(());
        }
        let found = self.db.host(host).await.map_err(internal("read host"))?;
        let url = found.map_or_else(|| format!("{host}, which is unknown here"), |found| found.url);
        Err(ProviderError::Elsewhere { subject: subject(), url })
    }

    /// [`Control::find`], for a call that needs the sandbox's host.
    async fn find_here(&self, key: &SandboxKey) -> Result<SandboxWithRun> {
        let found = self.find(key).await?;
        self.here(&found.run.host_id, || format!("sandbox {}", key.name)).await?;
        self.runner.ready().await?;
        Ok(found)
    }
}

/// Turns errors of the database into those of the port.
fn internal(operation: &'static str) -> impl Fn(StoreError) -> ProviderError + Send + 'static {
    move |error| match error {
        StoreError::Conflict(subject) => ProviderError::Conflict(subject),
        StoreError::Quota(refused) => ProviderError::Quota(refused),
        other => ProviderError::internal(operation, other),
    }
}

/// Runs `work` to its end, also when whoever asked for it is gone.
async fn carry_through<T: Send + 'static>(
    operation: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work.in_current_span()).await.map_err(|error| ProviderError::internal(operation, error))?
}
