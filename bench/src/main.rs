//! Times the engine and the main job on this host and prints medians and 95th
//! percentiles in milliseconds: in process, over HTTP, and of peers in the
//! same run.
//!
//! It wants root, a repository in the current directory, `runc` and `podman`,
//! and the binaries `dormouse` and `git-http` beside itself. Words on its
//! command line choose sections ([`SECTIONS`]).

mod api;
mod files;
mod neighbour;
mod network;
mod peers;
mod rows;
mod timing;
mod warm;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dormouse_control::{Control, ControlConfig, Limits};
use dormouse_egress::{AuthoritySecret, EgressConfig, Ground, Mirror};
use dormouse_jobs::Clock;
use dormouse_node::{ImageSource, Images, Node, NodeConfig, Recipe, StorageConfig, StorageKind, host_id};
use dormouse_provider::{
    CommandSpec, CreateSandbox, LogEvent, Namespace, Resources, RunRef, SandboxKey, SandboxProvider,
    StopReason,
};
use dormouse_sessions::{LifecycleConfig, NewSession, Sessions};
use dormouse_store::{AccountRow, Db};
use dormouse_types::{AccountId, CommandId, GithubRepo, SandboxName};
use futures::StreamExt as _;
use timing::{ratio, show, timed, times};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Operations of each kind at each width.
const COUNT: usize = 64;

/// How many at once.
const WIDTHS: [usize; 3] = [1, 8, 32];

/// Idle sandboxes whose memory is weighed.
const IDLE: usize = 200;

/// What is measured, in this order; `peers` are others in the sections `engine`
/// and `operations`.
const SECTIONS: [&str; 12] = [
    "rows",
    "network",
    "warm",
    "peers",
    "speed",
    "engine",
    "job",
    "memory",
    "cache",
    "neighbour",
    "operations",
    "api",
];

/// Sections that were asked for; all where none was.
struct Chosen(Vec<String>);

impl Chosen {
    fn from_args() -> anyhow::Result<Self> {
        let words: Vec<_> = std::env::args().skip(1).collect();
        for word in &words {
            ensure!(SECTIONS.contains(&word.as_str()), "{word:?} is none of {}", SECTIONS.join(", "));
        }
        Ok(Self(words))
    }

    /// Nothing else was asked for.
    fn is_only(&self, section: &str) -> bool {
        self.0.iter().all(|word| word == section) && !self.0.is_empty()
    }

    fn has(&self, section: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|word| word == section)
    }
}

fn main() -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok().context("install TLS")?;
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let chosen = Chosen::from_args()?;
    let dir = PathBuf::from(format!("/tmp/dormouse-bench-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("git/dormouse"))?;
    let bare = dir.join("git/dormouse/dormouse.git");
    let cloned = Command::new("git").args(["clone", "--quiet", "--bare", "."]).arg(&bare).status()?;
    ensure!(cloned.success(), "clone this repository");
    if chosen.has("rows") {
        timing::head();
        rows::measure(&dir).await?;
        if chosen.is_only("rows") {
            return Ok(std::fs::remove_dir_all(&dir)?);
        }
    }
    let exe = std::env::current_exe()?;
    let url_file = dir.join("git.url");
    let mut git = Command::new(exe.with_file_name("git-http"))
        .arg(dir.join("git"))
        .env("GIT_HTTP_TOKEN", dormouse_tests::outside::SERVICE_TOKEN)
        .stdout(std::fs::File::create(&url_file)?)
        .spawn()
        .context("start git-http")?;
    let mut url = String::new();
    while url.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        url = std::fs::read_to_string(&url_file)?;
    }
    if chosen.has("network") {
        timing::head();
        let private = dir.join("git/private");
        std::fs::create_dir_all(&private)?;
        std::os::unix::fs::symlink(&bare, private.join("dormouse.git"))?;
        let measured = network::measure(&dir, url.trim()).await;
        if chosen.is_only("network") {
            git.kill()?;
            git.wait()?;
            std::fs::remove_dir_all(&dir)?;
            return measured;
        }
        measured?;
    }
    let launches = Launches::default();
    let filter = tracing_subscriber::filter::Targets::new()
        .with_target("dormouse_node::launch", tracing::Level::DEBUG);
    tracing_subscriber::registry().with(launches.clone().with_filter(filter)).init();
    let measured = measure(&dir, url.trim(), &launches, &chosen).await;
    git.kill()?;
    git.wait()?;
    std::fs::remove_dir_all(&dir)?;
    measured
}

async fn measure(dir: &Path, url: &str, launches: &Launches, chosen: &Chosen) -> anyhow::Result<()> {
    let data = dir.join("data");
    // Makes the data directory.
    api::text(&data, url, &["image", "list"])?;
    let db = Db::open_file(&data.join("dormouse.db")).await?;
    let clock = Clock::system();
    let cache = std::env::var("DORMOUSE_IMAGES__CACHE").map_or_else(|_| data.join("cache"), PathBuf::from);
    let images = Images::open(pool(&data), &cache, db.clone())?;
    images.build("default", ImageSource::Recipe(Recipe::DEFAULT), clock.now(), |_| {}).await?;
    // It holds the pool open.
    drop(images);
    let (host, limits) = (host_id(&data)?, limits());
    let node = config(&data, url, limits.clone())?;
    let node = Arc::new(Node::start(node, db.clone(), clock.clone()).await?);
    let recorded = ControlConfig {
        host: host.clone(),
        default_image: "default".to_owned(),
        recipes: Vec::new(),
        limits,
        creation_timeout: Duration::from_secs(120),
        history: Duration::from_secs(86_400),
    };
    let engine = Arc::new(Control::new(db.clone(), clock.clone(), node.clone(), recorded));
    timing::head();
    let done = async {
        let image = db.image(&host, "default").await?.context("image")?;
        let root = data.join("images").join(&image.digest[..32]);
        if chosen.has("speed") {
            // First: see `files.py` about removals.
            files::speed(&engine, dir).await?;
        }
        if chosen.has("engine") {
            let ours = engine_operations(&engine, launches).await?;
            if chosen.has("peers") {
                peers::measure(dir, &root, &ours).await?;
            }
        }
        if chosen.has("job") {
            main_job(&engine, &db, &clock, url, dir).await?;
        }
        if chosen.has("memory") {
            idle_memory(&engine).await?;
        }
        if chosen.has("cache") {
            files::page_cache(&engine).await?;
        }
        if chosen.has("neighbour") {
            neighbour::measure(&engine, dir).await?;
        }
        if chosen.has("operations") {
            let peers = chosen.has("peers").then_some((dir, root.as_path()));
            files::operations(&engine, launches, peers).await?;
        }
        anyhow::Ok(())
    };
    let measured = done.await;
    drop(engine);
    Arc::into_inner(node).context("the engine is still in use")?.evacuate().await?;
    measured?;
    if chosen.has("warm") {
        warm::measure(dir, &data, url).await?;
    }
    if chosen.has("api") {
        api::measure(&data, url).await?;
    }
    Ok(())
}

fn pool(data: &Path) -> StorageConfig {
    StorageConfig {
        kind: StorageKind::Btrfs,
        data_dir: data.to_owned(),
        device: None,
        pool_size: 16 << 30,
        keep_free: None,
        ready_copies: 8,
    }
}

fn limits() -> Limits {
    Limits {
        default_resources: Resources { vcpus: 2, memory_mib: 2048, pids: 512, disk_mib: None },
        max_vcpus: 8,
        default_timeout: Duration::from_secs(3600),
        max_timeout: Duration::from_secs(7200),
        quotas: dormouse_control::Quotas::default(),
    }
}

fn config(data: &Path, url: &str, limits: Limits) -> anyhow::Result<NodeConfig> {
    Ok(NodeConfig {
        host: host_id(data)?,
        instance: 12,
        storage: pool(data),
        limits,
        source_timeout: Duration::from_secs(60),
        stop_grace: Duration::from_secs(3),
        kernel: dormouse_node::KernelLimits::default(),
        lxcfs: None,
        keep_memory: None,
        network_pool: 32,
        egress: EgressConfig {
            upstream: None,
            proxy: None,
            ground: Ground::default(),
            mirrors: vec![Mirror { from: "https://github.com/".to_owned(), to: url.to_owned() }],
            extra_roots: None,
            secret: AuthoritySecret::new([7; 32]),
            signer: None,
        },
    })
}

fn key(name: &str, number: usize) -> anyhow::Result<SandboxKey> {
    let name: SandboxName = format!("{name}-{number}").parse()?;
    Ok(SandboxKey { namespace: Namespace::default_of("bench"), name })
}

async fn create(engine: &Control, key: &SandboxKey) -> anyhow::Result<RunRef> {
    let request = CreateSandbox::new(key.clone());
    let made = engine.create(request).await?;
    Ok(RunRef { namespace: key.namespace.clone(), id: made.run.id })
}

async fn round_trip(engine: &Control, run: &RunRef) -> anyhow::Result<()> {
    let mut events = engine.exec(run, CommandId::generate(), CommandSpec::new(["true"])).await?;
    while let Some(event) = events.next().await {
        if let LogEvent::Exited(command) = event? {
            ensure!(command.exit_code == Some(0), "true failed");
        }
    }
    Ok(())
}

/// Medians of the engine, by width, that peers are set beside.
#[derive(Debug, Default)]
pub(crate) struct Ours(HashMap<usize, Medians>);

#[derive(Debug, Default, Clone, Copy)]
struct Medians {
    create: Duration,
    command: Duration,
    delete: Duration,
}

impl Ours {
    fn at(&self, width: usize) -> Medians {
        self.0.get(&width).copied().unwrap_or_default()
    }

    /// A command in a sandbox that is there.
    pub(crate) fn command(&self, width: usize) -> Duration {
        self.at(width).command
    }

    /// A sandbox for one command.
    pub(crate) fn whole(&self, width: usize) -> Duration {
        let Medians { create, command, delete } = self.at(width);
        create + command + delete
    }
}

/// Keeps what the engine logs of its launches: the time from the launcher's
/// start to the exec of the agent, in microseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Launches(Arc<Mutex<Vec<Duration>>>);

impl Launches {
    pub(crate) fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Launches {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Micros(Option<u64>);
        impl tracing::field::Visit for Micros {
            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
            fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
                if field.name() == "launcher_us" {
                    self.0 = Some(value);
                }
            }
        }
        let mut found = Micros(None);
        event.record(&mut found);
        if let Some(micros) = found.0 {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Duration::from_micros(micros));
        }
    }
}

async fn engine_operations(engine: &Control, launches: &Launches) -> anyhow::Result<Ours> {
    let mut ours = Ours::default();
    for width in WIDTHS {
        launches.take();
        let keys = (0..COUNT).map(|n| key(&format!("w{width}"), n)).collect::<anyhow::Result<Vec<_>>>()?;
        let create = timed("create, no repository", width, COUNT, |n| {
            let key = &keys[n];
            async move { create(engine, key).await.map(drop) }
        })
        .await?;
        show("  launcher to exec", width, launches.take());
        let mut runs = Vec::new();
        for key in &keys {
            runs.push(RunRef { namespace: key.namespace.clone(), id: engine.get(key).await?.run.id });
        }
        let command =
            timed("command round trip", width, COUNT * 4, |n| round_trip(engine, &runs[n % COUNT])).await?;
        timed("stop", width, COUNT, |n| {
            let run = &runs[n];
            async move { Ok(engine.stop(run, StopReason::Requested).await.map(drop)?) }
        })
        .await?;
        timed("resume", width, COUNT, |n| {
            let key = &keys[n];
            async move { Ok(engine.resume(key).await.map(drop)?) }
        })
        .await?;
        let delete = timed("delete", width, COUNT, |n| {
            let key = &keys[n];
            async move { Ok(engine.delete(key, false).await.map(drop)?) }
        })
        .await?;
        ours.0.insert(width, Medians { create, command, delete });
    }
    Ok(ours)
}

async fn main_job(
    engine: &Arc<Control>,
    db: &Db,
    clock: &Clock,
    url: &str,
    dir: &Path,
) -> anyhow::Result<()> {
    let lifecycle = LifecycleConfig {
        idle_timeout: Duration::from_secs(1800),
        max_lifetime: Duration::from_secs(3600),
        clone_timeout: Duration::from_secs(600),
    };
    let account = AccountRow {
        id: AccountId::generate(),
        name: "Bench".to_owned(),
        email: None,
        created_at: clock.now(),
    };
    db.insert_account(&account).await?;
    let provider: Arc<dyn SandboxProvider> = engine.clone();
    let host = host_id(&dir.join("data"))?;
    let sessions = Sessions::new(db.clone(), provider, clock.clone(), lifecycle, host, true);
    let sessions = Arc::new(sessions);
    let repo: GithubRepo = "https://github.com/dormouse/dormouse".parse()?;
    for width in WIDTHS {
        let count = 32;
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(sessions.create(&account.id, NewSession::default()).await?.id);
        }
        let ours = |n: usize| {
            let (sessions, account, id, repo) = (&sessions, account.id.clone(), ids[n].clone(), repo.clone());
            async move { Ok(sessions.provision(account, Some(id), repo).await.map(drop)?) }
        };
        let bare = |n: usize| {
            let target = dir.join(format!("bare-{width}-{n}"));
            async move {
                let mut command = tokio::process::Command::new("git");
                command.args(["clone", "--quiet", "--depth=1"]).arg(format!("{url}dormouse/dormouse"));
                let status = command.arg(&target).stdin(Stdio::null()).status().await?;
                ensure!(status.success(), "bare clone failed");
                Ok(())
            }
        };
        // By turns: what else the machine does then weighs on both alike.
        let (mut our_times, mut bare_times) = (Vec::new(), Vec::new());
        for first in (0..count).step_by(width) {
            let numbers = first..(first + width).min(count);
            our_times.extend(times(width, numbers.clone(), ours).await?);
            bare_times.extend(times(width, numbers, bare).await?);
        }
        let ours = show("create with clone", width, our_times);
        let bare = show("bare git clone on the host", width, bare_times);
        ratio("  ratio to the bare clone", width, ours, bare);
        for id in &ids {
            sessions.delete(&account.id, id).await?;
        }
    }
    Ok(())
}

fn available_kib() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).context("MemAvailable")?;
    Ok(line.split_whitespace().nth(1).context("MemAvailable")?.parse()?)
}

async fn idle_memory(engine: &Control) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = available_kib()?;
    let mut keys = Vec::new();
    for number in 0..IDLE {
        let key = key("idle", number)?;
        create(engine, &key).await?;
        keys.push(key);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let each = before.saturating_sub(available_kib()?) / IDLE as u64;
    println!("{:<32} {IDLE:>5} {each:>7} KiB each", "memory of idle sandboxes");
    for key in &keys {
        engine.delete(key, false).await?;
    }
    Ok(())
}
