//! `dormouse serve` and `dormouse evacuate`.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dormouse_control::Control;
use dormouse_egress::Signer;
use dormouse_http::{Identity, JwtVerifier, Parts};
use dormouse_jobs::{Clock, Jobs};
use dormouse_node::{Node, NodeError, host_id, lock_data_dir};
use dormouse_provider::{HealthSource, PortGateway, SandboxProvider};
use dormouse_provider_vercel::Vercel;
use dormouse_remote::{GithubTokens, HttpRemote};
use dormouse_sessions::Sessions;
use dormouse_store::{Db, HostRow};
use dormouse_types::HostId;
use dormouse_vault::{Vault, write_secret};
use dormouse_webhooks::Webhooks;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::base_image::BaseImage;
use super::housekeeping;
use crate::cli::{LogFormat, ServeArgs};
use crate::config::{Config, ProviderKind, prepare_data_dir};
use crate::output::hint;

/// Between two syncs of the database.
const SAVE: Duration = Duration::from_secs(5);

/// How long requests under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);

/// What is logged unless `DORMOUSE_LOG` says otherwise. Postgres' notices are about
/// statements of a library (a migration table that exists, a rollback too many).
const LOG: &str = "info,sqlx::postgres::notice=error";

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("DORMOUSE_LOG").unwrap_or_else(|_| EnvFilter::new(LOG));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Lines::default);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Standard error, of which each event is one line: what a sandbox has said is in
/// some of them, and must neither begin another line nor move a terminal's cursor.
#[derive(Debug, Default)]
struct Lines;

impl std::io::Write for Lines {
    /// One event, which ends with a line feed.
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let mut stderr = std::io::stderr().lock();
        stderr.write_all(&one_line(event, stderr.is_terminal()))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// The event with its control characters escaped but for the last line feed, and,
/// with `colours`, for what sets a colour, which is the log's own.
fn one_line(event: &[u8], colours: bool) -> Vec<u8> {
    let (text, end) = match event.strip_suffix(b"\n") {
        Some(text) => (text, &b"\n"[..]),
        None => (event, &b""[..]),
    };
    let mut line = Vec::with_capacity(event.len());
    for (at, byte) in text.iter().enumerate() {
        let sets_colour = || {
            let rest = text[at..].strip_prefix(b"\x1b[").unwrap_or_default();
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b';').count();
            rest.get(digits) == Some(&b'm')
        };
        match byte {
            0x1b if colours && sets_colour() => line.push(*byte),
            b'\t' => line.push(b'\t'),
            0..0x20 | 0x7f => line.extend(byte.escape_ascii()),
            _ => line.push(*byte),
        }
    }
    line.extend_from_slice(end);
    line
}

async fn open(config: &Config, vault: Arc<Vault>) -> anyhow::Result<Db> {
    let db = Db::open(&config.database()?).await.context("open the database")?;
    let db = db.sealed_by(vault).await?;
    #[cfg(debug_assertions)]
    if let Some(order) = std::env::var_os("TEST_DIE_BY") {
        return Ok(db.paced(Arc::new(super::mortal::Mortal::new(order.into()))));
    }
    Ok(db)
}

async fn start(
    config: &Config,
    host: &HostId,
    vault: &Vault,
    signer: Option<Arc<Signer>>,
    db: &Db,
) -> anyhow::Result<Node> {
    let node = Node::start(config.node(host.clone(), vault, signer)?, db.clone(), Clock::system()).await;
    let node = node.map_err(|error| {
        let advice = match error {
            NodeError::Locked(_) => {
                "stop that server first (SIGTERM); its sandboxes go on until they are evacuated"
            }
            _ => "`dormouse doctor` says what this host lacks",
        };
        let told: Vec<_> =
            anyhow::Error::new(error).context("start the engine").chain().map(ToString::to_string).collect();
        hint(told.join(": "), advice)
    })?;
    Ok(node)
}

/// Signs what sandboxes' requests are forwarded with. Its key is this server's own,
/// published below its `public_url`.
fn signer(config: &Config, address: SocketAddr) -> anyhow::Result<Signer> {
    let path = config.data_dir.join("identity.key");
    let key = match std::fs::read(&path) {
        Ok(key) => key,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = Signer::generate()?;
            write_secret(&path, &key).with_context(|| format!("write {}", path.display()))?;
            key
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let issuer = format!("{}/oidc", config.public_url(address).trim_end_matches('/'));
    Ok(Signer::new(issuer, &key)?)
}

/// What runs sandboxes here, if this server does.
struct Engine {
    node: Arc<Node>,
    control: Control,
}

pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr(args.log_format);
    let config = Config::load(&args)?;
    let listener =
        TcpListener::bind(&config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    prepare_data_dir(&config.data_dir)?;
    let vault = Arc::new(config.vault()?);
    let db = open(&config, vault.clone()).await?;
    let (clock, host) = (Clock::system(), host_id(&config.data_dir)?);
    let address = listener.local_addr()?;
    let signer = Arc::new(signer(&config, address)?);
    // Without an engine nothing else keeps a second server off the directory.
    let mut _lock = None;
    let (engine, provider): (_, Arc<dyn SandboxProvider>) = match config.provider {
        ProviderKind::Engine => {
            let node = Arc::new(start(&config, &host, &vault, Some(signer.clone()), &db).await?);
            let control =
                Control::new(db.clone(), clock.clone(), node.clone(), config.control(host.clone())?);
            (Some(Engine { node, control: control.clone() }), Arc::new(control))
        }
        ProviderKind::Vercel => {
            _lock = Some(lock_data_dir(&config.data_dir)?);
            (None, Arc::new(Vercel::new(&config.vercel()?)?))
        }
    };
    let now = clock.now();
    db.clear_leases(&host, now).await?;
    db.note_host(&HostRow { id: host.clone(), url: config.public_url(address), seen_at: now }).await?;
    let lifecycle = config.lifecycle_durations()?;
    let here = engine.is_some();
    let sessions = Sessions::new(db.clone(), provider.clone(), clock.clone(), lifecycle, host.clone(), here)
        .with_ports(config.session.ports.clone());
    let jobs = Jobs::new(db.clone(), clock.clone(), host.clone());
    let outward = config.network.outward()?;
    let sessions = match config.github.credentials()? {
        Some(github) => {
            let tokens = GithubTokens::new(github, config.git.mirrors(), &outward, clock.clone());
            sessions.with_tokens(Arc::new(tokens.context("set up the client of GitHub's API")?))
        }
        None => sessions,
    };
    let sessions = Arc::new(match config.org_snapshots()? {
        Some(org_snapshots) => {
            let remote = HttpRemote::new(config.git.mirrors(), &outward)
                .context("set up the client of git remotes")?;
            sessions.with_org_snapshots(Arc::new(remote), jobs.clone(), org_snapshots)
        }
        None => sessions,
    });
    let webhooks = Webhooks::new(db.clone(), jobs.clone(), clock.clone()).context("set up webhooks")?;
    let jwt = config.jwt_config()?.map(JwtVerifier::new).transpose()?.map(Arc::new);
    let mut background = vec![tokio::spawn(sessions.clone().run_lifecycle()), tokio::spawn(save(db.clone()))];
    background.push(tokio::spawn(sessions.clone().run_org_snapshots()));
    background.push(tokio::spawn(sessions.clone().run_credentials()));
    background.push(tokio::spawn(webhooks.clone().run()));
    let prune = housekeeping::Prune {
        webhooks,
        control: engine.as_ref().map(|engine| engine.control.clone()),
        sessions: sessions.clone(),
        history: config.history()?,
        clock: clock.clone(),
        jobs: jobs.clone(),
    };
    background.push(tokio::spawn(housekeeping::prune(jobs, prune)));
    let base_image = BaseImage::default();
    if let Some(engine) = &engine {
        background.push(tokio::spawn(housekeeping::expire(engine.control.clone())));
        let images = engine.node.images(&config.image_cache());
        let images = images.with_apt_sources(config.images.apt_sources.as_deref())?;
        base_image.look(&config, &db, &host, &engine.control).await?;
        let waiting = base_image.clone().provide(config.clone(), images, engine.control.clone());
        background.push(tokio::spawn(waiting));
    }
    let parts = Parts {
        db: db.clone(),
        sessions: sessions.clone(),
        provider,
        gateway: engine.as_ref().map(|engine| Arc::new(engine.control.clone()) as Arc<dyn PortGateway>),
        health: engine
            .as_ref()
            .map(|engine| Arc::new(base_image.beside(engine.node.clone())) as Arc<dyn HealthSource>),
        elsewhere: engine.is_none().then(|| config.vercel.base_url.clone()),
        ports: config.ports(address)?,
        rates: config.rates(),
        clock,
        jwt,
        identity: Identity { issuer: signer.issuer().to_owned(), keys: signer.keys() },
    };
    tracing::info!(listen = %address, data_dir = %config.data_dir.display(), "ready");

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = Arc::new(tokio::sync::Notify::new());
    let (told, following) = (stopping.clone(), sessions.clone());
    let tls = config.tls.as_ref().map(|tls| dormouse_http::Tls::load(&tls.certificate, &tls.key));
    let tls = tls.transpose().context("tls")?;
    let serve = dormouse_http::serve(listener, tls, dormouse_http::router(parts), async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        told.notify_one();
        following.close();
    });
    let deadline = async {
        stopping.notified().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = serve => {}
        () = deadline => tracing::warn!("some requests did not end in time"),
    }
    background.iter().for_each(tokio::task::JoinHandle::abort);
    if let Some(engine) = engine {
        engine.node.detach().await;
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
    log_to_stderr(args.log_format);
    let mut config = Config::load(&args)?;
    // Nothing leaves a sandbox any more: a file that is gone must not keep them here.
    config.network.ca_file = None;
    prepare_data_dir(&config.data_dir)?;
    let vault = Arc::new(config.vault()?);
    let db = open(&config, vault.clone()).await?;
    let node = start(&config, &host_id(&config.data_dir)?, &vault, None, &db).await?;
    node.evacuate().await?;
    db.close().await;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn an_event_is_one_line() {
        let plain = |text: &str, colours| String::from_utf8(one_line(text.as_bytes(), colours)).unwrap();
        assert_eq!(plain("said\n2026 INFO forged\r\n", false), "said\\n2026 INFO forged\\r\n");
        assert_eq!(plain("\x1b[2J\x1b[31mred\n", false), "\\x1b[2J\\x1b[31mred\n");
        assert_eq!(plain("\x1b[2J\x1b[31mred\n", true), "\\x1b[2J\x1b[31mred\n");
        assert_eq!(plain("tab\tand ü\n", false), "tab\tand ü\n");
    }
}
