//! `dormouse quickstart`: everything that stands between a fresh host and an answered request.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use dormouse_jobs::Clock;
use dormouse_store::{AccountRow, ApiKey, Db, KeyRow, hash_secret};
use dormouse_types::{AccountId, KeyId};
use dormouse_vault::write_secret;

use super::{doctor, image, serve};
use crate::cli::{ImageAction, QuickstartArgs, ServeArgs};
use crate::config::{Config, prepare_data_dir};
use crate::output::{Output, hint};

/// File in the data directory with the key that was made.
const KEY_FILE: &str = "quickstart.key";

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: QuickstartArgs, output: &Output) -> anyhow::Result<ExitCode> {
    let QuickstartArgs { serve: serve_args, recipe } = args;
    let config = Config::load(&serve_args)?;
    eprintln!("== this host");
    if doctor::run(&serve_args.data, output)? != ExitCode::SUCCESS {
        return Err(hint("this host lacks something", "each line above that fails says what to do"));
    }
    eprintln!("== base image (built once from Debian's, npm's and PyPI's packages, then kept)");
    let action = ImageAction::Build {
        data: serve_args.data.clone(),
        name: Some(config.sandbox.image.clone()),
        recipe,
        tar: None,
        oci_layout: None,
        from: None,
        if_missing: true,
    };
    image::run(action, output).await?;
    prepare_data_dir(&config.data_dir)?;
    let (account, key) = credentials(&config).await?;
    eprintln!("== server (control-C ends it; sandboxes go on)");
    let told = tell(config, account, key);
    let served = serve::run(ServeArgs { ..serve_args });
    tokio::pin!(served);
    tokio::select! {
        ended = &mut served => return ended,
        told = told => told?,
    }
    served.await
}

/// The account and the key of an earlier quickstart, or new ones.
async fn credentials(config: &Config) -> anyhow::Result<(AccountId, String)> {
    let path = config.data_dir.join(KEY_FILE);
    let db = Db::open(&config.database()?).await.context("open the database")?;
    if let Ok(key) = std::fs::read_to_string(&path)
        && let Some(row) = db.key_by_hash(&hash_secret(key.trim())).await?
        && row.revoked_at.is_none()
    {
        return Ok((row.account_id, key.trim().to_owned()));
    }
    let now = Clock::system().now();
    let account = AccountRow {
        id: AccountId::generate(),
        name: "Quickstart".to_owned(),
        email: Some("quickstart@localhost".to_owned()),
        created_at: now,
    };
    db.insert_account(&account).await?;
    let row = KeyRow {
        id: KeyId::generate(),
        account_id: account.id.clone(),
        name: "quickstart".to_owned(),
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    let key = ApiKey::generate().context("make a key")?;
    db.insert_key(&row, &hash_secret(key.reveal())).await?;
    // Whoever starts again wants the same lines to work.
    let _ = std::fs::remove_file(&path);
    write_secret(&path, format!("{}\n", key.reveal()).as_bytes())
        .with_context(|| format!("write {}", path.display()))?;
    Ok((account.id, key.reveal().to_owned()))
}

/// Prints what to try, once the server answers.
async fn tell(config: Config, account: AccountId, key: String) -> anyhow::Result<()> {
    let server = format!("http://{}", config.listen);
    let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
    let begun = tokio::time::Instant::now();
    while !http.get(format!("{server}/healthz")).send().await.is_ok_and(|answer| answer.status().is_success())
    {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the server does not answer at {server}/healthz");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let binary =
        std::env::current_exe().map_or_else(|_| "dormouse".to_owned(), |path| path.display().to_string());
    println!(
        "
ready at {server}, account {account}; try, in another terminal:

  # a session's sandbox, with its repository checked out
  curl -sS {server}/api/sandbox -H 'x-api-key: {key}' -H 'content-type: application/json' \\
    -d '{{\"repoUrl\": \"https://github.com/octocat/Hello-World\"}}'

  # the command line
  export DORMOUSE_SERVER={server} DORMOUSE_KEY={key}
  {binary} sandbox create box && {binary} sandbox exec box -- uname -a

  # a program with the @vercel/sandbox SDK, unchanged
  eval \"$({binary} env)\" && node your-program.mjs
"
    );
    Ok(())
}
