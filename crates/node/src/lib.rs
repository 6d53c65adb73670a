//! What runs on this host. With `dormouse-control`, which records and gives the
//! orders, it is the engine.
//!
//! A sandbox is made of parts that are each cheap: a network namespace from a
//! pool, a cgroup, one overlay mount of its volume over its image, an agent. The
//! modules are those parts; [`machine`] owns a sandbox, [`decide`] says what it
//! does, [`launch`] makes and removes a run, [`files`] keeps or drops what it
//! wrote, [`recovery`] makes the host agree with the database.
//!
//! What does not live here: what may be asked for and what callers see
//! (`dormouse-control`); accounts, sessions, HTTP.

#![expect(unsafe_code, reason = "only in `sys`, the boundary to the kernel")]

mod admission;
mod agent;
mod binaries;
mod calls;
mod cgroup;
mod config;
mod copies;
mod decide;
mod files;
mod host;
mod image;
mod kernel;
mod launch;
mod live;
mod machine;
mod network;
mod output;
mod ports;
mod recovery;
mod registry;
mod runner;
mod seccomp;
mod seen;
mod source;
mod storage;
mod sys;
mod terminal;
mod trust;

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_egress::Sums;
use dormouse_jobs::Clock;
use dormouse_provider::{Count, HealthCheck, HealthSource, HealthState, ProviderError, Result};
use dormouse_store::{Db, StoreError};
use dormouse_types::{HostId, SandboxId};
use tokio::sync::{oneshot, watch};

pub use cgroup::{CgroupVersion, detect as detect_cgroups};
pub use config::{KernelLimits, NodeConfig};
pub use image::{ImageError, ImageReference, ImageSource, Images, Recipe, UnknownRecipe};
pub use kernel::{LowLimit, crashes_go_to_a_socket, low_limits};
pub use network::{FilterError, INSTANCES, Numbering, RouterError, SLOTS, measure_networks};
pub use storage::{DiskUsage, StorageConfig, StorageKind, disk_usage, pool_trouble, probe_images};
pub use sys::write_durably;

use binaries::Binaries;
use cgroup::Cgroups;
use host::Host;
use live::{Command, Live};
use network::Network;
use registry::Registry;
use storage::{PoolHealth, Storage};

/// How often the sweeper looks for what nobody owns.
const SWEEP: Duration = Duration::from_secs(10);

/// How long a call waits for start-up to finish.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Why sandboxes cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A part of the host could not be prepared.
    #[error("{operation}: {source}")]
    Host {
        /// What was prepared.
        operation: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A limit is configured that the storage driver cannot keep.
    #[error("the plain storage driver cannot limit disks: leave sandbox.disk_mib out, or use btrfs")]
    DiskLimit,
    /// Another server holds the lock.
    #[error("another server {0}")]
    Locked(String),
    /// Processes of a sandbox outlive SIGKILL.
    #[error(
        "processes of these sandboxes do not end, they wait in the kernel: {0}; nothing they stand on was \
         removed, run `dormouse evacuate` again once they have"
    )]
    StillThere(String),
    /// The router of the sandboxes' network could not be set up.
    #[error("set up the network of the sandboxes")]
    Router(#[from] RouterError),
    /// What leaves sandboxes could not be served.
    #[error("serve the network of the sandboxes")]
    Egress(#[from] dormouse_egress::EgressError),
    /// The database failed.
    #[error("read the database")]
    Store(#[from] StoreError),
}

fn host(operation: &str) -> impl FnOnce(std::io::Error) -> NodeError {
    let operation = operation.to_owned();
    move |source| NodeError::Host { operation, source }
}

/// Sandboxes on this host.
#[derive(Debug)]
pub struct Node {
    host: Arc<Host>,
    registry: Arc<Registry>,
    recovered: watch::Receiver<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Keep a second server off the data directory and the instance.
    _locks: [OwnedFd; 2],
    _egress: dormouse_egress::Egress,
}

impl Node {
    /// The images of this host, with what is built kept in `cache`.
    #[must_use]
    pub fn images(&self, cache: &Path) -> Images {
        let host = &self.host;
        Images::over(host.config.host.clone(), host.db.clone(), host.storage.clone(), cache)
    }

    /// Prepares the host and starts. Taking over what an earlier server left
    /// goes on in the background; calls wait for it.
    ///
    /// # Errors
    /// [`NodeError`] when this host lacks something, or another server runs.
    pub async fn start(mut config: NodeConfig, db: Db, clock: Clock) -> std::result::Result<Self, NodeError> {
        let locks = lock(config.data_dir(), config.instance)?;
        sys::become_subreaper().map_err(host("become the parent of runs"))?;
        sys::raise_descriptor_limit().map_err(host("raise the limit of open files"))?;
        kernel::raise_limits(&config.kernel);
        kernel::die_last();
        if let Some(place) = &config.lxcfs
            && !kernel::has_lxcfs(place).await
        {
            config.lxcfs = None;
        }
        let numbering = Numbering::new(config.instance);
        let storage = Storage::open(config.storage.clone()).map_err(host("open the storage pool"))?;
        if config.limits.default_resources.disk_mib.is_some() && !storage.enforces_limits() {
            return Err(NodeError::DiskLimit);
        }
        let cgroups = Cgroups::open(config.instance).map_err(host("prepare cgroups"))?;
        let binaries = Binaries::install(&config.data_dir().join("bin"), config.kernel.own_filters)
            .map_err(host("install the agent"))?;
        let sockets = host::sockets(config.instance);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(sockets);
        made.map_err(host("make the socket directory"))?;

        let router = network::Router::open(numbering)?;
        let egress = dormouse_egress::Egress::start(config.egress.clone(), router.entrance)?;
        let taken = db
            .live_runs(&config.host)
            .await?
            .iter()
            .filter_map(|run| run.process.as_ref().map(|p| p.slot))
            .collect();
        let network = Network::start(numbering, router.namespace, config.network_pool, &taken)
            .map_err(host("start the network pool"))?;

        let host = Arc::new(Host {
            boot_id: host::boot_id().map_err(host("read the boot id"))?,
            admission: admission::Admission::new(config.keep_memory),
            config,
            db,
            clock,
            storage: Arc::new(storage),
            cgroups: Arc::new(cgroups),
            network,
            numbering,
            sandboxes: egress.sandboxes(),
            binaries,
            git_config: git_config(egress.mirrored_hosts()),
            disk_full: AtomicBool::new(false),
            untidy: Arc::default(),
            // What the server before this one made last, it may not have saved.
            unsaved: std::sync::Mutex::new(Some(std::time::Instant::now())),
        });
        let registry = Arc::new(Registry::default());
        let (done, recovered) = watch::channel(false);
        let (background, published) = (host.clone(), registry.clone());
        let sweeping = tokio::spawn(async move {
            recovery::wait_for_pool(&background).await;
            recovery::recover(&background, &published).await;
            // Nobody waiting is fine.
            let _ = done.send(true);
            let wake = background.untidy.clone();
            dormouse_jobs::reconcile(SWEEP, wake, || recovery::sweep(&background, &published)).await;
        });
        let watching = tokio::spawn(recovery::look_after_pool(host.clone()));
        Ok(Self {
            host,
            registry,
            recovered,
            tasks: vec![sweeping, watching],
            _locks: locks,
            _egress: egress,
        })
    }

    /// Live runs on this host.
    #[must_use]
    pub fn live_runs(&self) -> usize {
        self.registry.live_count()
    }

    /// Lets go of the host without ending a sandbox.
    pub async fn detach(&self) {
        recovery::save_transfers(&self.host, &self.registry).await;
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.registry.close();
        // Nobody waits for the copy that one stands still for.
        for run in self.host.cgroups.runs() {
            self.host.cgroups.thaw(&run);
        }
        self.host.network.close();
    }

    /// Ends every run (persistent ones keep their files) and takes everything
    /// off the host: mounts, cgroups, packet filter, addresses.
    ///
    /// # Errors
    /// [`NodeError`] for what could not be removed; [`NodeError::StillThere`] where
    /// a run did not end, which keeps what it stands on.
    pub async fn evacuate(self) -> std::result::Result<(), NodeError> {
        self.wait_until_recovered().await.ok();
        let mut left = Vec::new();
        for run in self.host.db.live_runs(&self.host.config.host).await? {
            let stop =
                |reply| Command::Stop { run: None, reason: dormouse_provider::StopReason::Requested, reply };
            if let Err(error) = self.command(&run.sandbox_id, stop).await {
                tracing::error!(run = %run.id, error = %error.detail(), "stop");
                left.push(run);
            }
        }
        recovery::settle(&self.registry).await;
        self.detach().await;
        left.retain(|run| self.host.has_process(run));
        if !left.is_empty() {
            let names: Vec<_> = left.iter().map(|run| run.sandbox_name.to_string()).collect();
            return Err(NodeError::StillThere(names.join(", ")));
        }
        match std::fs::remove_dir(self.host.sockets()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "remove the socket directory");
            }
            _ => {}
        }
        match std::fs::remove_dir_all(seen::dir(self.host.config.instance)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "remove the files that show limits");
            }
            _ => {}
        }
        let (storage, numbering) = (self.host.storage.clone(), self.host.numbering);
        self.host.cgroups.close();
        drop(self);
        network::Router::remove(numbering).map_err(host("remove the router"))?;
        // The last overlay mounts may still be on their way out.
        let mut tries = 0;
        loop {
            match storage.close() {
                Err(_) if tries < 40 => tokio::time::sleep(Duration::from_millis(100)).await,
                other => return other.map_err(host("unmount the pool")),
            }
            tries += 1;
        }
    }

    async fn wait_until_recovered(&self) -> Result<()> {
        let mut recovered = self.recovered.clone();
        if !*recovered.borrow() {
            // It would wait in vain.
            self.host.usable()?;
        }
        let waited = tokio::time::timeout(START_PATIENCE, recovered.wait_for(|done| *done)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ProviderError::Capacity("the server is still starting".to_owned())),
        }
    }

    /// Has the sandbox's task obey, and waits for the outcome.
    async fn command<T>(
        &self,
        sandbox: &SandboxId,
        mut command: impl FnMut(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        self.wait_until_recovered().await?;
        for _ in 0..3 {
            let (reply, outcome) = oneshot::channel();
            let Some(queue) = recovery::task_queue(&self.host, &self.registry, sandbox) else {
                return Err(ProviderError::Capacity("the server is going down".to_owned()));
            };
            if queue.send(command(reply)).await.is_ok()
                && let Ok(outcome) = outcome.await
            {
                return outcome;
            }
            // The task retired in this very moment: ask for its successor.
        }
        Err(ProviderError::internal(format!("command {sandbox}"), "its task does not answer"))
    }
}

impl HealthSource for Node {
    fn counts(&self) -> Vec<Count> {
        let totals = self.host.sandboxes.totals();
        let Sums { sent, received, allowed, .. } = totals.sums();
        let plain = |name, help, value| Count { name, help, label: None, value };
        let mut counts = vec![
            plain("dormouse_network_sent_bytes_total", "Bytes that left sandboxes.", sent),
            plain("dormouse_network_received_bytes_total", "Bytes that came to sandboxes.", received),
            plain("dormouse_network_allowed_total", "Connections, requests and questions allowed.", allowed),
        ];
        counts.extend(totals.denied().map(|(reason, value)| Count {
            name: "dormouse_network_denied_total",
            help: "Connections, requests and questions denied, by rule.",
            label: Some(("rule", reason.word().to_owned())),
            value,
        }));
        let live = self.registry.all_live();
        let of_each = |name, help, count: fn((i64, i64)) -> i64| {
            let of = move |live: &Arc<Live>| Count {
                name,
                help,
                label: Some(("sandbox", live.sandbox.to_string())),
                value: u64::try_from(count(live.transferred().unwrap_or_default())).unwrap_or(0),
            };
            live.iter().map(of).collect::<Vec<_>>()
        };
        counts.extend(of_each(
            "dormouse_sandbox_sent_bytes_total",
            "Bytes that left a sandbox in its present run.",
            |(sent, _)| sent,
        ));
        counts.extend(of_each(
            "dormouse_sandbox_received_bytes_total",
            "Bytes that came to a sandbox in its present run.",
            |(_, received)| received,
        ));
        counts
    }

    fn health(&self) -> Vec<HealthCheck> {
        let (state, detail) = match self.host.storage.health() {
            PoolHealth::Fine => (HealthState::Ok, None),
            PoolHealth::Low(why) => (HealthState::Degraded, Some(why)),
            PoolHealth::Broken(why) => (HealthState::Failing, Some(why)),
        };
        let storage = HealthCheck { name: "storage", state, detail };
        let full = self.host.disk_full.load(Ordering::Relaxed);
        let disk = HealthCheck {
            name: "disk",
            state: if full { HealthState::Degraded } else { HealthState::Ok },
            detail: full.then(|| "the disk of the data directory is full".to_owned()),
        };
        vec![storage, disk]
    }
}

/// Which host the data directory belongs to: an id that was made with it.
///
/// # Errors
/// What the file system says; a file that holds something else.
pub fn host_id(data_dir: &Path) -> std::io::Result<HostId> {
    let path = data_dir.join("host");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(std::io::Error::other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = HostId::generate();
            sys::write_durably(&path, &format!("{id}\n"))?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

/// Keeps a second server off a data directory, for as long as it is held. A
/// [`Node`] does so by itself.
///
/// # Errors
/// [`NodeError::Locked`] when there is one.
pub fn lock_data_dir(data_dir: &Path) -> std::result::Result<OwnedFd, NodeError> {
    take_lock(&data_dir.join("lock"), || format!("uses {}", data_dir.display()))
}

fn take_lock(path: &Path, what: impl FnOnce() -> String) -> std::result::Result<OwnedFd, NodeError> {
    sys::lock(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => NodeError::Locked(what()),
        _ => NodeError::Host { operation: format!("lock {}", path.display()), source: error },
    })
}

fn lock(data_dir: &Path, instance: u8) -> std::result::Result<[OwnedFd; 2], NodeError> {
    std::fs::create_dir_all(data_dir).map_err(host("make the data directory"))?;
    let of_instance = format!("/run/dormouse-{instance}.lock");
    let what = || format!("is instance {instance} of this host; set `instance`");
    Ok([lock_data_dir(data_dir)?, take_lock(Path::new(&of_instance), what)?])
}

/// System-wide git configuration inside: mirrored hosts are served with a
/// certificate of the sandbox's own authority.
fn git_config(hosts: &[String]) -> String {
    let authority = trust::AUTHORITY;
    hosts
        .iter()
        .map(|host| {
            // The proxy always answers for them. Without a path of its own libcurl reads
            // every certificate of the system, which takes longer than the rest of the
            // handshake.
            format!("[http \"https://{host}/\"]\n\tsslCAInfo = {authority}\n\tsslCAPath = /etc/dormouse\n")
        })
        .collect()
}
