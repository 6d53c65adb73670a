//! `dormouse secret`: secrets of organizations.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_jobs::Clock;
use dormouse_sessions::NewSecret;
use serde_json::{Value, json};

use super::accounts::{existing_org, open};
use crate::cli::SecretAction;
use crate::output::Output;

pub(crate) async fn secret(action: SecretAction, output: &Output) -> anyhow::Result<ExitCode> {
    match action {
        SecretAction::Set { data, org, name, hosts, header } => {
            let db = open(&data).await?;
            let org = existing_org(&db, &org).await?;
            if std::io::stdin().is_terminal() {
                eprintln!("the value, and then ^D:");
            }
            let mut value = String::new();
            std::io::stdin().read_to_string(&mut value).context("read the value from standard input")?;
            let value = value.trim_end_matches(['\r', '\n']).to_owned();
            let secret = NewSecret { name, hosts, header, value };
            let row = secret.row(org, Clock::system().now()).map_err(anyhow::Error::msg)?;
            db.set_secret(&row).await?;
            output.data(&json!({"name": row.name}), &row.name);
        }
        SecretAction::List { data, org } => {
            let db = open(&data).await?;
            let secrets = db.secrets_of(&existing_org(&db, &org).await?).await?;
            let all: Vec<Value> = secrets
                .iter()
                .map(|row| json!({"name": row.name, "hosts": row.hosts, "header": row.header}))
                .collect();
            let lines: Vec<String> = secrets
                .iter()
                .map(|row| format!("{}  {}  {}", row.name, row.header, row.hosts.join(" ")))
                .collect();
            output.data(&json!(all), &lines.join("\n"));
        }
        SecretAction::Delete { data, org, name } => {
            let db = open(&data).await?;
            let org = existing_org(&db, &org).await?;
            anyhow::ensure!(db.delete_secret(&org, &name).await?, "there is no secret {name}");
            output.data(&json!({"name": name, "deleted": true}), "");
        }
    }
    Ok(ExitCode::SUCCESS)
}
