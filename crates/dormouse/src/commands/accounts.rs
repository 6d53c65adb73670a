//! `dormouse account|key|org|session`: rows of the database, whether or not a
//! server runs.

use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_jobs::Clock;
use dormouse_sessions::NewSession;
use dormouse_store::{AccountRow, ApiKey, Db, KeyRow, OrgRow, hash_secret};
use dormouse_types::{AccountId, GithubRepo, KeyId, OrgId, parse_duration};
use serde_json::json;

use crate::cli::{AccountAction, DataArgs, KeyAction, OrgAction, SessionAction};
use crate::config::{Config, prepare_data_dir};
use crate::output::{Output, hint};

pub(super) async fn open(data: &DataArgs) -> anyhow::Result<Db> {
    let config = Config::load_data(data)?;
    prepare_data_dir(&config.data_dir)?;
    let vault = std::sync::Arc::new(config.vault()?);
    Ok(Db::open(&config.database()?).await?.sealed_by(vault).await?)
}

async fn existing_account(db: &Db, id: &str) -> anyhow::Result<AccountId> {
    let id: AccountId = id.parse()?;
    let found = db.account(&id).await?;
    found
        .map(|row| row.id)
        .ok_or_else(|| hint(format!("there is no account {id}"), "`dormouse account create NAME` makes one"))
}

pub(super) async fn existing_org(db: &Db, id: &str) -> anyhow::Result<OrgId> {
    let id: OrgId = id.parse()?;
    let found = db.org(&id).await?;
    found
        .map(|row| row.id)
        .ok_or_else(|| hint(format!("there is no organization {id}"), "`dormouse org create NAME` makes one"))
}

pub(crate) async fn account(action: AccountAction, output: &Output) -> anyhow::Result<ExitCode> {
    let AccountAction::Create { data, name, email } = action;
    anyhow::ensure!(!name.trim().is_empty(), "the name must not be empty");
    let db = open(&data).await?;
    let row = AccountRow { id: AccountId::generate(), name, email, created_at: Clock::system().now() };
    db.insert_account(&row).await?;
    output.data(&json!({"id": row.id}), row.id.as_str());
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn key(action: KeyAction, output: &Output) -> anyhow::Result<ExitCode> {
    let now = Clock::system().now();
    match action {
        KeyAction::Create { data, account, name, expires_in } => {
            let db = open(&data).await?;
            let expires_at = expires_in.map(|text| parse_duration(&text)).transpose()?.map(|d| now.plus(d));
            let row = KeyRow {
                id: KeyId::generate(),
                account_id: existing_account(&db, &account).await?,
                name,
                created_at: now,
                expires_at,
                revoked_at: None,
            };
            let key = ApiKey::generate().context("make a key")?;
            db.insert_key(&row, &hash_secret(key.reveal())).await?;
            output.data(&json!({"id": row.id, "key": key.reveal()}), key.reveal());
        }
        KeyAction::List { data, account } => {
            let db = open(&data).await?;
            let keys = db.keys_of(&existing_account(&db, &account).await?).await?;
            let json: Vec<_> = keys
                .iter()
                .map(|k| json!({"id": k.id, "name": k.name, "createdAt": k.created_at, "expiresAt": k.expires_at, "revokedAt": k.revoked_at}))
                .collect();
            let state = |k: &KeyRow| match (k.revoked_at, k.expires_at) {
                (Some(_), _) => "revoked",
                (None, Some(end)) if end <= now => "expired",
                _ => "valid",
            };
            let rows: Vec<_> =
                keys.iter().map(|k| vec![k.id.to_string(), k.name.clone(), state(k).to_owned()]).collect();
            output.table(&json!({"keys": json}), &["ID", "NAME", "STATE"], &rows);
        }
        KeyAction::Revoke { data, id } => {
            let db = open(&data).await?;
            let id: KeyId = id.parse()?;
            anyhow::ensure!(db.revoke_key(&id, now).await?, "there is no valid key {id}");
            output.data(&json!({"id": id, "revoked": true}), "");
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn org(action: OrgAction, output: &Output) -> anyhow::Result<ExitCode> {
    match action {
        OrgAction::Create { data, name } => {
            let db = open(&data).await?;
            let row = OrgRow { id: OrgId::generate(), name, created_at: Clock::system().now() };
            db.insert_org(&row).await?;
            output.data(&json!({"id": row.id}), row.id.as_str());
        }
        OrgAction::AddMember { data, org, account } => {
            let db = open(&data).await?;
            let (org, account) = (existing_org(&db, &org).await?, existing_account(&db, &account).await?);
            db.add_member(&org, &account).await?;
            output.data(&json!({"org": org, "account": account}), "");
        }
        OrgAction::RemoveMember { data, org, account } => {
            let db = open(&data).await?;
            let (org, account) = (existing_org(&db, &org).await?, existing_account(&db, &account).await?);
            anyhow::ensure!(db.remove_member(&org, &account).await?, "{account} is no member of {org}");
            output.data(&json!({"org": org, "account": account, "removed": true}), "");
        }
        OrgAction::Claim { data, org, pattern } => {
            let db = open(&data).await?;
            let org = existing_org(&db, &org).await?;
            let pattern = claim(&pattern)?;
            db.insert_claim(&org, &pattern).await?;
            output.data(&json!({"org": org, "pattern": pattern}), "");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `owner/repo` or `owner/*`, in lower case.
fn claim(pattern: &str) -> anyhow::Result<String> {
    let stand_in =
        pattern.strip_suffix("/*").map_or_else(|| pattern.to_owned(), |owner| format!("{owner}/any"));
    format!("https://github.com/{stand_in}")
        .parse::<GithubRepo>()
        .map_err(|_| anyhow::anyhow!("{pattern:?} is neither owner/repo nor owner/*"))?;
    Ok(pattern.to_ascii_lowercase())
}

pub(crate) async fn session(action: SessionAction, output: &Output) -> anyhow::Result<ExitCode> {
    let SessionAction::Create { data, account, repo, title } = action;
    let db = open(&data).await?;
    let account_id = existing_account(&db, &account).await?;
    let repo =
        repo.map(|url| url.parse::<GithubRepo>().map_err(|e| anyhow::anyhow!("--repo {e}"))).transpose()?;
    let row = NewSession { title, repo, ..NewSession::default() }.row(&account_id, Clock::system().now());
    db.insert_session(&row).await?;
    output.data(&json!({"id": row.id}), row.id.as_str());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::claim;

    #[test]
    fn claims_are_repositories_or_owners() {
        assert_eq!(claim("Acme/*").unwrap(), "acme/*");
        assert_eq!(claim("acme/Repo").unwrap(), "acme/repo");
        for bad in ["acme", "*/*", "acme/**", "a/b/c", "", "https://github.com/a/b"] {
            assert!(claim(bad).is_err(), "{bad}");
        }
    }
}
