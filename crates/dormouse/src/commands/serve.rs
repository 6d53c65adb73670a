//! `dormouse serve` and `dormouse evacuate`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dormouse_engine::{Engine, EngineError};
use dormouse_http::{JwtVerifier, Parts};
use dormouse_jobs::Clock;
use dormouse_provider::{HealthSource, PortGateway, SandboxProvider};
use dormouse_provider_vercel::Vercel;
use dormouse_sessions::{GitToken, Sessions};
use dormouse_store::Db;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::ServeArgs;
use crate::config::{Config, ProviderKind, prepare_data_dir};
use crate::output::hint;

/// Between two syncs of the database.
const SAVE: Duration = Duration::from_secs(5);

/// How long requests under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("DORMOUSE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

async fn open(config: &Config) -> anyhow::Result<Db> {
    prepare_data_dir(&config.data_dir)?;
    Db::open(&config.database()).await.context("open the database")
}

async fn start(config: &Config, db: &Db) -> anyhow::Result<Engine> {
    let engine = Engine::start(config.engine()?, db.clone(), Clock::system()).await.map_err(|error| {
        let advice = match error {
            EngineError::Locked(_) => {
                "stop that server first (SIGTERM); its sandboxes go on until they are evacuated"
            }
            _ => "`dormouse doctor` says what this host lacks",
        };
        let told: Vec<_> =
            anyhow::Error::new(error).context("start the engine").chain().map(ToString::to_string).collect();
        hint(told.join(": "), advice)
    })?;
    if db.image(&config.sandbox.image).await?.is_none() {
        tracing::warn!(
            image = config.sandbox.image,
            "there is no such base image yet; run `dormouse image build`"
        );
    }
    Ok(engine)
}

pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr();
    let config = Config::load(&args)?;
    let listener =
        TcpListener::bind(&config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let db = open(&config).await?;
    let (engine, provider): (_, Arc<dyn SandboxProvider>) = match config.provider {
        ProviderKind::Engine => {
            let engine = Arc::new(start(&config, &db).await?);
            (Some(engine.clone()), engine)
        }
        ProviderKind::Vercel => (None, Arc::new(Vercel::new(&config.vercel()?)?)),
    };
    let clock = Clock::system();
    let sessions = Sessions::new(db.clone(), provider.clone(), clock.clone(), config.lifecycle_durations()?);
    let sessions = Arc::new(match &config.git.token {
        Some(token) => sessions.with_git_token(GitToken::new(token.clone())),
        None => sessions,
    });
    let jwt = config.jwt_config()?.map(JwtVerifier::new).transpose()?.map(Arc::new);
    let lifecycle = tokio::spawn(sessions.clone().run_lifecycle());
    let saving = tokio::spawn(save(db.clone()));
    let address = listener.local_addr()?;
    let parts = Parts {
        db: db.clone(),
        sessions,
        provider,
        gateway: engine.clone().map(|engine| engine as Arc<dyn PortGateway>),
        health: engine.clone().map(|engine| engine as Arc<dyn HealthSource>),
        elsewhere: engine.is_none().then(|| config.vercel.base_url.clone()),
        ports: config.ports(address)?,
        clock,
        jwt,
    };
    tracing::info!(listen = %address, data_dir = %config.data_dir.display(), "ready");

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = Arc::new(tokio::sync::Notify::new());
    let told = stopping.clone();
    // An answer in several parts (events, logs) must not wait for the caller's
    // delayed acknowledgement of the first.
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "set TCP_NODELAY");
        }
    });
    let serve = axum::serve(
        listener,
        dormouse_http::router(parts).into_make_service_with_connect_info::<std::net::SocketAddr>(),
    )
    .with_graceful_shutdown(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        told.notify_one();
    });
    let deadline = async {
        stopping.notified().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serve => served.context("serve")?,
        () = deadline => tracing::warn!("some requests did not end in time"),
    }
    lifecycle.abort();
    saving.abort();
    if let Some(engine) = engine {
        engine.detach();
    }
    db.close().await;
    tracing::info!("stopped; sandboxes go on");
    Ok(ExitCode::SUCCESS)
}

/// Bounds what a host that loses power forgets of what nobody synced before:
/// sessions and settings of the last seconds.
async fn save(db: Db) {
    dormouse_jobs::reconcile(SAVE, Arc::default(), || async {
        if let Err(error) = db.sync().await {
            tracing::warn!(%error, "sync the database");
        }
    })
    .await;
}

pub(crate) async fn evacuate(args: ServeArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr();
    let config = Config::load(&args)?;
    let db = open(&config).await?;
    let engine = start(&config, &db).await?;
    engine.evacuate().await?;
    db.close().await;
    Ok(ExitCode::SUCCESS)
}
