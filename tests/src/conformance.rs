//! Puts a provider through the conformance suite: the engine in this process,
//! or a client of a server of the protocol. A third implementation is put
//! through it the same way, by a dozen lines like these.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dormouse_control::{Control, ControlConfig, Limits};
use dormouse_egress::{AuthoritySecret, EgressConfig, Ground};
use dormouse_jobs::Clock;
use dormouse_node::{Node, NodeConfig, StorageConfig, StorageKind, host_id};
use dormouse_provider::{
    CreateSandbox, Namespace, Resources, RunRef, SandboxKey, SandboxProvider, StopReason, conformance,
};
use dormouse_provider_vercel::{Vercel, VercelConfig};
use dormouse_store::Db;
use dormouse_vault::Vault;

/// Puts a sandbox provider through the conformance suite.
#[derive(Debug, Parser)]
struct Args {
    /// Only cases whose name contains this.
    #[arg(long, global = true)]
    only: Option<String>,
    #[command(subcommand)]
    provider: Provider,
}

#[derive(Debug, Subcommand)]
enum Provider {
    /// The engine, in this process, on a data directory that no server uses
    /// and that has a default image.
    Engine {
        /// Data directory.
        data_dir: PathBuf,
        /// Instance of this host.
        instance: u8,
    },
    /// Not the suite: how often the engine asks its database for one stop, on a
    /// data directory as for the engine.
    Traffic {
        /// Data directory.
        data_dir: PathBuf,
        /// Instance of this host.
        instance: u8,
    },
    /// A client of a server of the protocol.
    Http {
        /// What the protocol's paths are below, such as http://127.0.0.1:7700/api.
        base_url: String,
        /// Token or key.
        #[arg(env = "CONFORMANCE_TOKEN", hide_env_values = true)]
        token: String,
        /// Team.
        #[arg(long)]
        team: Option<String>,
        /// Project.
        #[arg(long)]
        project: Option<String>,
        /// Runtime of the sandboxes.
        #[arg(long)]
        runtime: Option<String>,
    },
}

/// The database of a server that is not running, with that server's key.
async fn database(data_dir: &Path) -> anyhow::Result<Db> {
    let vault = Arc::new(Vault::open_file(&data_dir.join("secret.key"))?);
    let db = Db::open_file(&data_dir.join("dormouse.db")).await.context("open the database")?;
    Ok(db.sealed_by(vault).await?)
}

async fn engine(data_dir: PathBuf, instance: u8, db: Db) -> anyhow::Result<(Arc<Node>, Control)> {
    let host = host_id(&data_dir).context("read the host's id")?;
    let limits = Limits {
        default_resources: Resources { vcpus: 2, memory_mib: 1024, pids: 512, disk_mib: Some(1024) },
        max_vcpus: 8,
        default_timeout: Duration::from_secs(600),
        max_timeout: Duration::from_secs(36_000),
        quotas: dormouse_control::Quotas::default(),
    };
    let config = NodeConfig {
        host: host.clone(),
        instance,
        storage: StorageConfig {
            kind: StorageKind::Btrfs,
            data_dir,
            device: None,
            pool_size: 8 << 30,
            keep_free: None,
            ready_copies: 8,
        },
        limits: limits.clone(),
        source_timeout: Duration::from_secs(60),
        stop_grace: Duration::from_secs(3),
        kernel: dormouse_node::KernelLimits::default(),
        lxcfs: None,
        keep_memory: None,
        network_pool: 8,
        egress: EgressConfig {
            upstream: None,
            proxy: None,
            ground: Ground::default(),
            mirrors: Vec::new(),
            extra_roots: None,
            secret: AuthoritySecret::new([7; 32]),
            signer: None,
        },
    };
    let node = Arc::new(Node::start(config, db.clone(), Clock::system()).await.context("start the engine")?);
    let config = ControlConfig {
        host,
        default_image: "default".to_owned(),
        recipes: Vec::new(),
        limits,
        creation_timeout: Duration::from_secs(120),
        history: Duration::from_secs(86_400),
    };
    let control = Control::new(db, Clock::system(), node.clone(), config);
    Ok((node, control))
}

async fn suite(provider: Arc<dyn SandboxProvider>, namespace: &str, only: Option<&str>) -> bool {
    let suite = conformance::Suite::new(provider, Namespace::default_of(namespace));
    let (mut passed, mut failed) = (0, 0);
    for case in conformance::CASES.iter().filter(|case| only.is_none_or(|word| case.name.contains(word))) {
        let started = Instant::now();
        let outcome = suite.run(case).await;
        let took = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok    {} ({took:.1} s)", case.name);
            }
            Err(failure) => {
                failed += 1;
                println!("FAIL  {} ({took:.1} s): {failure}", case.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    failed == 0 && passed > 0
}

/// Stops a sandbox a few times. A stop reads the sandbox, records how it is to
/// end, and records that it did. Over HTTP two reads come before that: whose the
/// key is, and whose the run.
async fn stop_traffic(control: &Control, db: &Db) -> anyhow::Result<bool> {
    let namespace = Namespace::default_of("acc_conformance");
    let key = SandboxKey { namespace: namespace.clone(), name: "traffic".parse()? };
    let mut run = control.create(CreateSandbox::new(key.clone())).await?.run;
    let mut good = true;
    for _ in 0..5 {
        let id = RunRef { namespace: namespace.clone(), id: run.id };
        let before = db.traffic();
        control.stop(&id, StopReason::Requested).await?;
        let after = db.traffic();
        let (reads, writes) = (after.reads - before.reads, after.writes - before.writes);
        println!("a stop: {reads} reads, {writes} write transactions");
        good &= reads <= 1 && writes <= 2;
        run = control.resume(&key).await?.run;
    }
    control.delete(&key, true).await?;
    Ok(good)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let only = args.only.as_deref();
    let good = match args.provider {
        Provider::Engine { data_dir, instance } => {
            let db = database(&data_dir).await?;
            let (node, control) = engine(data_dir, instance, db).await?;
            let good = suite(Arc::new(control), "acc_conformance", only).await;
            node.detach().await;
            good
        }
        Provider::Traffic { data_dir, instance } => {
            let db = database(&data_dir).await?;
            let (node, control) = engine(data_dir, instance, db.clone()).await?;
            let good = stop_traffic(&control, &db).await;
            node.detach().await;
            good?
        }
        Provider::Http { base_url, token, team, project, runtime } => {
            let config = VercelConfig { team, project, runtime, ..VercelConfig::new(base_url, token) };
            suite(Arc::new(Vercel::new(&config)?), "any", only).await
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
