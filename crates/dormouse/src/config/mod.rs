//! Configuration: defaults, then a TOML file, then `DORMOUSE_…` (a double
//! underscore goes one level down), then flags. Unknown keys are refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dormouse_control::{ControlConfig, Limits, Quotas};
use dormouse_egress::{AuthoritySecret, EgressConfig, Ground, Signer};
use dormouse_node::{INSTANCES, KernelLimits, NodeConfig, Recipe, StorageConfig, StorageKind};
use dormouse_provider::Resources;
use dormouse_store::Address;
use dormouse_types::{AccountId, Cidr, HostId, OrgId, Quota, format_duration, parse_duration};
use dormouse_vault::Vault;
use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::cli::{DataArgs, LogFormat, ServeArgs};

mod data_dir;
mod network;

pub(crate) use data_dir::prepare_data_dir;
use network::{Git, Github, Network};

/// Variables of the command line, not of the configuration.
const NOT_CONFIGURATION: [&str; 8] =
    ["server", "key", "team", "project", "log", "log_format", "config", "secret_key"];

/// Variable that holds the secret key, instead of a file in the data directory.
const SECRET_KEY: &str = "DORMOUSE_SECRET_KEY";

/// The configuration in force.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
    /// `postgres://…`, a database that several servers may share; absent: a
    /// SQLite file in the data directory. Better given as
    /// `DORMOUSE_DATABASE_URL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database_url: Option<String>,
    /// Where to listen.
    pub(crate) listen: String,
    /// What the server shows whoever speaks HTTPS to it; absent: HTTP only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsFiles>,
    /// Where other servers of the same database tell callers to reach this one;
    /// absent: `http://` and `listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_url: Option<String>,
    /// Which of the instances that share this host: 0 to 15. It decides
    /// address ranges, link names and id ranges.
    pub(crate) instance: u8,
    /// Who runs the sandboxes of sessions.
    pub(crate) provider: ProviderKind,
    /// Used when the provider is `vercel`.
    pub(crate) vercel: VercelAccount,
    pub(crate) storage: Storage,
    pub(crate) sandbox: Sandbox,
    pub(crate) quotas: QuotaTables,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) session: Session,
    pub(crate) network: Network,
    pub(crate) ports: Ports,
    pub(crate) api: Api,
    pub(crate) git: Git,
    pub(crate) github: Github,
    pub(crate) org_snapshots: OrgSnapshots,
    pub(crate) images: Images,
    /// Foreign tokens; absent: none are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jwt: Option<Jwt>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The database's URL may hold a password.
        f.debug_struct("Config").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// Who runs the sandboxes of sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProviderKind {
    /// This host.
    #[default]
    Engine,
    /// A server of the Vercel Sandbox protocol.
    Vercel,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VercelAccount {
    /// What the protocol's paths are below.
    pub(crate) base_url: String,
    /// Access token. Better given as `DORMOUSE_VERCEL__TOKEN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Team, by id or slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) team: Option<String>,
    /// Project, by id or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<String>,
    /// Runtime of sandboxes; empty: the service's default image.
    pub(crate) runtime: String,
}

impl Default for VercelAccount {
    fn default() -> Self {
        Self {
            base_url: dormouse_provider_vercel::VERCEL.to_owned(),
            token: None,
            team: None,
            project: None,
            runtime: "node24".to_owned(),
        }
    }
}

impl std::fmt::Debug for VercelAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token stays out.
        write!(f, "VercelAccount({})", self.base_url)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Storage {
    /// `btrfs` (limits are enforced) or `plain` (disk limits are refused).
    pub(crate) driver: StorageKind,
    /// Block device of the btrfs pool; absent: an image file in the data
    /// directory, or the btrfs file system that is mounted at its `pool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<PathBuf>,
    /// Most GiB that the image of the btrfs pool grows to.
    pub(crate) pool_gib: u64,
    /// MiB of the data directory's disk that the pool leaves free; absent: a
    /// twentieth, from 256 MiB to 4 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_free_mib: Option<u64>,
    /// Writable copies of a snapshot that is started from often, made ahead of who
    /// starts from it next; at most this many.
    pub(crate) ready_copies: usize,
}

/// Disk limit of sandboxes where none is configured, in MiB.
const DEFAULT_DISK_MIB: u64 = 10 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sandbox {
    /// Base image of sandboxes.
    pub(crate) image: String,
    /// CPUs' worth of time.
    pub(crate) vcpus: u32,
    /// Most that may be asked for.
    pub(crate) max_vcpus: u32,
    /// MiB of memory.
    pub(crate) memory_mib: u64,
    /// Processes and threads.
    pub(crate) pids: u64,
    /// MiB of disk on top of the image; 0: not limited. Without it, 10 GiB
    /// where the storage driver can limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_mib: Option<u64>,
    /// Time between SIGTERM and SIGKILL.
    pub(crate) stop_grace: String,
    /// What a sandbox may have of the kernel.
    pub(crate) kernel: KernelLimits,
    /// MiB of the host's memory that are kept free of new runs; absent: a sixteenth,
    /// from 256 MiB to 2 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_memory_mib: Option<u64>,
    /// Where lxcfs is mounted, which has `/proc` of a sandbox tell what it uses of
    /// its limits; without it the limits alone are told.
    pub(crate) lxcfs: PathBuf,
}

/// What owners may have. A kind that is not named is not limited.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct QuotaTables {
    /// Each account.
    pub(crate) account: Quota,
    /// Each organization.
    pub(crate) organization: Quota,
    /// One account or organization, by id: what it names counts instead.
    pub(crate) owners: BTreeMap<String, Quota>,
}

impl Default for QuotaTables {
    /// More than one host has, less than what would hurt a database.
    fn default() -> Self {
        let usual = Quota {
            running: Some(1000),
            creations_per_minute: Some(6000),
            snapshots: Some(100_000),
            ..Quota::default()
        };
        Self { account: usual, organization: usual, owners: BTreeMap::new() }
    }
}

impl QuotaTables {
    fn rules(&self) -> anyhow::Result<Quotas> {
        for owner in self.owners.keys() {
            anyhow::ensure!(
                owner.parse::<AccountId>().is_ok() || owner.parse::<OrgId>().is_ok(),
                "quotas.owners: {owner:?} is the id of no account and no organization (acc_…, org_…)"
            );
        }
        let (account, organization, owners) = (self.account, self.organization, self.owners.clone());
        Ok(Quotas { account, organization, owners })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Lifecycle {
    /// A sandbox that nobody used for this long is put to sleep.
    pub(crate) idle_timeout: String,
    /// Hard lifetime between two sleeps.
    pub(crate) max_lifetime: String,
    /// For how long after a client's last word what a sandbox sends it over a port
    /// or a terminal counts as use.
    pub(crate) unattended: String,
    /// A clone may take this long.
    pub(crate) clone_timeout: String,
    /// How long records stay of runs that a newer one followed, of snapshots that
    /// were deleted, and of jobs that ended.
    pub(crate) history: String,
}

/// Sandboxes of sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Session {
    /// Ports that each of them publishes from the start: where development servers listen.
    pub(crate) ports: Vec<u16>,
}

impl Default for Session {
    fn default() -> Self {
        Self { ports: vec![3000, 5173, 4321, 8000] }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ports {
    /// What comes after the name of a published port; absent: `localhost` and
    /// the port of `listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    /// `http`, or `https` behind something that speaks TLS.
    pub(crate) scheme: String,
    /// Start a stopped persistent sandbox for a request to one of its ports.
    pub(crate) wake_on_traffic: bool,
    /// Networks from which `x-forwarded-host` counts.
    pub(crate) trusted_proxies: Vec<Cidr>,
}

impl Default for Ports {
    fn default() -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self {
            domain: None,
            scheme: "http".to_owned(),
            wake_on_traffic: false,
            trusted_proxies: loopback.map(Cidr::from).to_vec(),
        }
    }
}

/// A certificate and its key, read when the server starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsFiles {
    /// PEM: the server's own certificate first, then those up to its root.
    pub(crate) certificate: PathBuf,
    /// PEM.
    pub(crate) key: PathBuf,
}

/// How many requests a caller may make of one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Api {
    /// Requests a second of one account.
    pub(crate) rate: NonZeroU32,
    /// Requests that it may make at once on top.
    pub(crate) burst: NonZeroU32,
    /// Requests a second of one address that fail to say who calls.
    pub(crate) strangers_rate: NonZeroU32,
}

impl Default for Api {
    fn default() -> Self {
        // The compiler evaluates these, and they are not zero.
        const RATE: NonZeroU32 = NonZeroU32::new(1000).unwrap();
        const BURST: NonZeroU32 = NonZeroU32::new(5000).unwrap();
        const STRANGERS: NonZeroU32 = NonZeroU32::new(100).unwrap();
        Self { rate: RATE, burst: BURST, strangers_rate: STRANGERS }
    }
}

/// Snapshots with a repository in them, from which sandboxes of it start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OrgSnapshots {
    /// Start new sandboxes from org snapshots.
    pub(crate) enabled: bool,
    /// GitHub owners to build them for; empty: all.
    pub(crate) owners: Vec<String>,
    /// Ask a remote for its tip at most this often.
    pub(crate) tip_interval: String,
    /// Delete an org snapshot that was unused for this long.
    pub(crate) unused_for: String,
    /// Run a repository's set-up: its `.dormouse/setup`, or commands of its
    /// `devcontainer.json`.
    pub(crate) set_up: bool,
    /// Time limit of the set-up.
    pub(crate) set_up_timeout: String,
}

impl Default for OrgSnapshots {
    fn default() -> Self {
        Self {
            enabled: true,
            owners: Vec::new(),
            tip_interval: "10s".to_owned(),
            unused_for: "30d".to_owned(),
            set_up: true,
            set_up_timeout: "10m".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    /// Where built root file systems are kept; absent: in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<PathBuf>,
    /// Where Debian's packages come from: a file of apt's; absent: from where this host's do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) apt_sources: Option<PathBuf>,
    /// Have a server without its base image build it, from the recipe of this release.
    pub(crate) build_missing: bool,
}

impl Default for Images {
    fn default() -> Self {
        Self { cache: None, apt_sources: None, build_missing: true }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jwt {
    /// Where the issuer publishes its keys.
    pub(crate) jwks_url: String,
    /// `iss`.
    pub(crate) issuer: String,
    /// `aud`: one of these.
    pub(crate) audience: Vec<String>,
    /// `alg`: one of these.
    #[serde(default = "default_algorithms")]
    pub(crate) algorithms: Vec<String>,
    /// Make an account for an unknown subject.
    #[serde(default)]
    pub(crate) create_accounts: bool,
}

fn default_algorithms() -> Vec<String> {
    vec!["RS256".to_owned(), "ES256".to_owned(), "EdDSA".to_owned()]
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/dormouse"),
            database_url: None,
            listen: "127.0.0.1:7700".to_owned(),
            tls: None,
            public_url: None,
            instance: 0,
            provider: ProviderKind::default(),
            vercel: VercelAccount::default(),
            storage: Storage::default(),
            sandbox: Sandbox::default(),
            quotas: QuotaTables::default(),
            lifecycle: Lifecycle::default(),
            session: Session::default(),
            network: Network::default(),
            ports: Ports::default(),
            api: Api::default(),
            git: Git::default(),
            github: Github::default(),
            org_snapshots: OrgSnapshots::default(),
            images: Images::default(),
            jwt: None,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self { driver: StorageKind::Btrfs, device: None, pool_gib: 64, keep_free_mib: None, ready_copies: 8 }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            image: "default".to_owned(),
            vcpus: 2,
            max_vcpus: 8,
            memory_mib: 4096,
            pids: 2048,
            disk_mib: None,
            stop_grace: "3s".to_owned(),
            kernel: KernelLimits::default(),
            keep_memory_mib: None,
            lxcfs: PathBuf::from("/var/lib/lxcfs"),
        }
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            idle_timeout: "30m".to_owned(),
            max_lifetime: "5h".to_owned(),
            unattended: "15m".to_owned(),
            clone_timeout: "10m".to_owned(),
            history: "30d".to_owned(),
        }
    }
}

impl Config {
    /// Reads and checks everything.
    pub(crate) fn load(args: &ServeArgs) -> anyhow::Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = &args.data.config {
            anyhow::ensure!(path.is_file(), "there is no configuration file {}", path.display());
            figment = figment.merge(Toml::file_exact(path));
        }
        figment = figment.merge(Env::prefixed("DORMOUSE_").ignore(&NOT_CONFIGURATION).split("__"));
        let mut config: Self = figment.extract().context("read the configuration")?;
        if let Some(dir) = &args.data.data_dir {
            config.data_dir.clone_from(dir);
        }
        if let Some(listen) = &args.listen {
            config.listen.clone_from(listen);
        }
        config.data_dir = std::path::absolute(&config.data_dir).context("find the data directory")?;
        config.check()?;
        Ok(config)
    }

    /// [`Config::load`] for commands that do not listen.
    pub(crate) fn load_data(data: &DataArgs) -> anyhow::Result<Self> {
        Self::load(&ServeArgs { data: data.clone(), listen: None, log_format: LogFormat::Text })
    }

    fn check(&self) -> anyhow::Result<()> {
        self.listen.parse::<SocketAddr>().map_err(|_| {
            anyhow::anyhow!("listen: {:?} is not ADDR:PORT, such as 127.0.0.1:7700", self.listen)
        })?;
        anyhow::ensure!(self.instance < INSTANCES, "instance: must be below {INSTANCES}");
        anyhow::ensure!(self.storage.pool_gib >= 1, "storage.pool_gib: must be at least 1");
        let terminals = self.sandbox.kernel.terminals;
        anyhow::ensure!(terminals >= 1, "sandbox.kernel.terminals: must be at least 1");
        anyhow::ensure!(
            self.storage.device.is_none() || self.storage.driver == StorageKind::Btrfs,
            "storage.device: only the btrfs storage driver takes a device"
        );
        anyhow::ensure!(
            self.sandbox.disk_mib.unwrap_or(0) == 0 || self.storage.driver == StorageKind::Btrfs,
            "sandbox.disk_mib: the plain storage driver cannot limit disks; use btrfs or 0"
        );
        self.lifecycle_durations()?;
        dormouse_control::check_ports(&self.session.ports)
            .map_err(|error| anyhow::anyhow!("session.{error}"))?;
        self.org_snapshots()?;
        self.history()?;
        self.database()?;
        if let Some(url) = &self.public_url {
            anyhow::ensure!(
                url.starts_with("https://") || url.starts_with("http://"),
                "public_url: {url:?} is no http or https URL"
            );
        }
        for mirror in self.git.mirrors() {
            mirror.check()?;
        }
        self.network.check()?;
        self.github.credentials()?;
        match self.provider {
            ProviderKind::Engine => {}
            ProviderKind::Vercel => {
                self.vercel()?;
                anyhow::ensure!(
                    self.git.mirrors.is_empty(),
                    "git.mirrors: only the engine serves mirrors to sandboxes"
                );
            }
        }
        self.jwt_config().map(drop)
    }

    /// The secret key: given as `DORMOUSE_SECRET_KEY`, or in the data directory, where it
    /// is made at the first start.
    pub(crate) fn vault(&self) -> anyhow::Result<Vault> {
        Ok(match std::env::var(SECRET_KEY) {
            Ok(text) => Vault::from_text(&text, SECRET_KEY)?,
            Err(_) => Vault::open_file(&self.data_dir.join("secret.key"))?,
        })
    }

    pub(crate) fn lifecycle_durations(&self) -> anyhow::Result<dormouse_sessions::LifecycleConfig> {
        let read = |key: &str, text: &str| -> anyhow::Result<Duration> {
            let duration = parse_duration(text).with_context(|| format!("lifecycle.{key}"))?;
            let (least, most) = (Duration::from_secs(1), Duration::from_secs(30 * 86_400));
            anyhow::ensure!(
                duration >= least && duration <= most,
                "lifecycle.{key}: must be from {} to {}",
                format_duration(least),
                format_duration(most)
            );
            Ok(duration)
        };
        Ok(dormouse_sessions::LifecycleConfig {
            idle_timeout: read("idle_timeout", &self.lifecycle.idle_timeout)?,
            max_lifetime: read("max_lifetime", &self.lifecycle.max_lifetime)?,
            clone_timeout: read("clone_timeout", &self.lifecycle.clone_timeout)?,
        })
    }

    /// `None`: there are to be none.
    pub(crate) fn org_snapshots(&self) -> anyhow::Result<Option<dormouse_sessions::OrgSnapshotConfig>> {
        let read = |key: &str, text: &str, least: Duration| -> anyhow::Result<Duration> {
            let duration = parse_duration(text).with_context(|| format!("org_snapshots.{key}"))?;
            let most = Duration::from_secs(365 * 86_400);
            anyhow::ensure!(
                duration >= least && duration <= most,
                "org_snapshots.{key}: must be from {} to {}",
                format_duration(least),
                format_duration(most)
            );
            Ok(duration)
        };
        let OrgSnapshots { enabled, owners, tip_interval, unused_for, set_up, set_up_timeout } =
            &self.org_snapshots;
        let set_up_timeout = read("set_up_timeout", set_up_timeout, Duration::from_secs(1))?;
        let config = dormouse_sessions::OrgSnapshotConfig {
            owners: owners.iter().map(|owner| owner.to_ascii_lowercase()).collect(),
            tip_interval: read("tip_interval", tip_interval, Duration::ZERO)?,
            unused_for: read("unused_for", unused_for, Duration::from_secs(3600))?,
            set_up_timeout: set_up.then_some(set_up_timeout),
            history: self.history()?,
        };
        Ok(enabled.then_some(config))
    }

    pub(crate) fn jwt_config(&self) -> anyhow::Result<Option<dormouse_http::JwtConfig>> {
        let Some(jwt) = &self.jwt else { return Ok(None) };
        let mut algorithms = Vec::new();
        for name in &jwt.algorithms {
            // Only signatures: with a shared secret our verifier could forge.
            anyhow::ensure!(
                !name.starts_with("HS"),
                "jwt.algorithms: {name} is not accepted, only signatures are"
            );
            algorithms.push(
                name.parse().map_err(|_| anyhow::anyhow!("jwt.algorithms: unknown algorithm {name:?}"))?,
            );
        }
        anyhow::ensure!(!jwt.audience.is_empty(), "jwt.audience: name at least one audience");
        Ok(Some(dormouse_http::JwtConfig {
            jwks_url: jwt.jwks_url.clone(),
            issuer: jwt.issuer.clone(),
            audience: jwt.audience.clone(),
            algorithms,
            create_accounts: jwt.create_accounts,
        }))
    }

    /// Where the database is.
    pub(crate) fn database(&self) -> anyhow::Result<Address> {
        match &self.database_url {
            Some(url) => url.parse().context("database_url"),
            None => Ok(Address::Sqlite(self.data_dir.join("dormouse.db"))),
        }
    }

    /// Where a server that listens on `address` is reached by callers of others.
    pub(crate) fn public_url(&self, address: SocketAddr) -> String {
        let given = self.public_url.as_deref().map(|url| url.trim_end_matches('/').to_owned());
        given.unwrap_or_else(|| format!("http://{address}"))
    }

    pub(crate) fn history(&self) -> anyhow::Result<Duration> {
        let history = parse_duration(&self.lifecycle.history).context("lifecycle.history")?;
        anyhow::ensure!(
            history >= Duration::from_secs(60),
            "lifecycle.history: must be at least {}",
            format_duration(Duration::from_secs(60))
        );
        Ok(history)
    }

    pub(crate) fn image_cache(&self) -> PathBuf {
        self.images.cache.clone().unwrap_or_else(|| self.data_dir.join("cache"))
    }

    /// Where images and files of sandboxes lie.
    pub(crate) fn pool(&self) -> StorageConfig {
        StorageConfig {
            kind: self.storage.driver,
            data_dir: self.data_dir.clone(),
            device: self.storage.device.clone(),
            pool_size: self.storage.pool_gib << 30,
            keep_free: self.storage.keep_free_mib.map(|mib| mib << 20),
            ready_copies: self.storage.ready_copies,
        }
    }

    /// How ports are published by a server that listens on `address`.
    pub(crate) fn ports(&self, address: SocketAddr) -> anyhow::Result<dormouse_http::PortsConfig> {
        let Ports { domain, scheme, wake_on_traffic, trusted_proxies } = self.ports.clone();
        anyhow::ensure!(["http", "https"].contains(&scheme.as_str()), "ports.scheme must be http or https");
        let domain = domain.unwrap_or_else(|| format!("localhost:{}", address.port()));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:".contains(&b);
        anyhow::ensure!(
            !domain.is_empty() && !domain.starts_with('.') && domain.bytes().all(plain),
            "ports.domain: {domain:?} is no domain"
        );
        let unattended = parse_duration(&self.lifecycle.unattended).context("lifecycle.unattended")?;
        Ok(dormouse_http::PortsConfig { domain, scheme, wake_on_traffic, unattended, trusted_proxies })
    }

    /// How many requests a caller may make.
    pub(crate) fn rates(&self) -> dormouse_http::RatesConfig {
        let Api { rate, burst, strangers_rate } = self.api;
        dormouse_http::RatesConfig { per_second: rate, burst, strangers_per_second: strangers_rate }
    }

    /// The client of the provider, when that is not the engine.
    pub(crate) fn vercel(&self) -> anyhow::Result<dormouse_provider_vercel::VercelConfig> {
        let VercelAccount { base_url, token, team, project, runtime } = self.vercel.clone();
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let token = given(token).context("vercel.token: it is missing; set DORMOUSE_VERCEL__TOKEN")?;
        anyhow::ensure!(
            base_url.starts_with("https://") || base_url.starts_with("http://"),
            "vercel.base_url: {base_url:?} is no http or https URL"
        );
        Ok(dormouse_provider_vercel::VercelConfig {
            team: given(team),
            project: given(project),
            runtime: given(Some(runtime)),
            ..dormouse_provider_vercel::VercelConfig::new(base_url, token)
        })
    }

    /// What may be asked for.
    fn limits(&self) -> anyhow::Result<Limits> {
        let lifecycle = self.lifecycle_durations()?;
        let disk = self.sandbox.disk_mib.unwrap_or(match self.storage.driver {
            StorageKind::Btrfs => DEFAULT_DISK_MIB,
            StorageKind::Plain => 0,
        });
        Ok(Limits {
            default_resources: Resources {
                vcpus: self.sandbox.vcpus,
                memory_mib: self.sandbox.memory_mib,
                pids: self.sandbox.pids,
                disk_mib: (disk > 0).then_some(disk),
            },
            max_vcpus: self.sandbox.max_vcpus,
            quotas: self.quotas.rules()?,
            default_timeout: lifecycle.max_lifetime,
            max_timeout: lifecycle.max_lifetime * 2,
        })
    }

    /// How long what a new sandbox is made from may take.
    fn source_timeout(&self) -> anyhow::Result<Duration> {
        // Clients of the provider API wait five minutes for an answer to begin.
        Ok(self.lifecycle_durations()?.clone_timeout.min(Duration::from_secs(280)))
    }

    /// What is recorded, of the host that is `host`.
    pub(crate) fn control(&self, host: HostId) -> anyhow::Result<ControlConfig> {
        Ok(ControlConfig {
            host,
            default_image: self.sandbox.image.clone(),
            recipes: Recipe::names(),
            limits: self.limits()?,
            creation_timeout: self.source_timeout()? + Duration::from_secs(60),
            history: self.history()?,
        })
    }

    /// What runs on the host that is `host`.
    pub(crate) fn node(
        &self,
        host: HostId,
        vault: &Vault,
        signer: Option<Arc<Signer>>,
    ) -> anyhow::Result<NodeConfig> {
        Ok(NodeConfig {
            host,
            instance: self.instance,
            storage: self.pool(),
            limits: self.limits()?,
            source_timeout: self.source_timeout()?,
            stop_grace: parse_duration(&self.sandbox.stop_grace).context("sandbox.stop_grace")?,
            kernel: self.sandbox.kernel.clone(),
            keep_memory: self.sandbox.keep_memory_mib.map(|mib| mib << 20),
            lxcfs: Some(self.sandbox.lxcfs.clone()),
            network_pool: self.network.pool,
            egress: EgressConfig {
                upstream: self.network.dns,
                proxy: self.network.proxy()?,
                ground: Ground {
                    allow_private: self.network.allow_private.clone(),
                    deny: self.network.deny.clone(),
                },
                mirrors: self.git.mirrors(),
                extra_roots: self.network.ca_file.clone(),
                secret: AuthoritySecret::new(vault.derive("authorities of sandboxes")?),
                signer,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn the_defaults_are_right() {
        Config::default().check().unwrap();
    }

    #[test]
    fn a_password_in_the_databases_url_is_not_shown() {
        let url = Some("postgres://me:s3cret@db/x".to_owned());
        let config = Config { database_url: url, ..Config::default() };
        config.check().unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
        let wrong = Config { database_url: Some("mysql://me:s3cret@db/x".to_owned()), ..Config::default() };
        let error = format!("{:#}", wrong.check().unwrap_err());
        assert!(error.starts_with("database_url:") && !error.contains("s3cret"), "{error}");
    }
}
