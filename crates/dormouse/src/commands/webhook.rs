//! `dormouse webhook`: where organizations are told what happens to their sessions.
//! The operator says where: a server that posts where any caller wants would reach
//! what only it can.

use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_jobs::Clock;
use dormouse_store::{DeliveryRow, WebhookRow};
use dormouse_types::{Timestamp, WebhookId};
use dormouse_webhooks::Secret;
use serde_json::{Value, json};

use super::accounts::{existing_org, open};
use crate::cli::WebhookAction;
use crate::output::{Output, hint};

fn address(text: &str) -> anyhow::Result<String> {
    let url = url::Url::parse(text).with_context(|| format!("{text}: no URL"))?;
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    anyhow::ensure!(
        url.scheme() == "https" || (url.scheme() == "http" && local),
        "{text}: a webhook's URL begins with https://, or with http:// on this host"
    );
    Ok(url.into())
}

fn shown(delivery: &DeliveryRow) -> Value {
    json!({
        "id": delivery.id,
        "state": delivery.state.to_string(),
        "attempts": delivery.attempts,
        "outcome": delivery.outcome,
        "createdAt": delivery.created_at.as_millis(),
        "endedAt": delivery.ended_at.map(Timestamp::as_millis),
        "body": serde_json::from_str::<Value>(&delivery.body).unwrap_or_default(),
    })
}

pub(crate) async fn webhook(action: WebhookAction, output: &Output) -> anyhow::Result<ExitCode> {
    match action {
        WebhookAction::Add { data, org, url } => {
            let db = open(&data).await?;
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).context("make a secret")?;
            let hook = WebhookRow {
                id: WebhookId::generate(),
                org_id: existing_org(&db, &org).await?,
                url: address(&url)?,
                secret: Secret::new(bytes).reveal(),
                failures: 0,
                retry_at: Timestamp(0),
                created_at: Clock::system().now(),
            };
            db.insert_webhook(&hook).await?;
            let text = format!("{}\n{}", hook.id, hook.secret);
            output.data(&json!({"id": hook.id, "secret": hook.secret}), &text);
        }
        WebhookAction::List { data } => {
            let hooks = open(&data).await?.webhooks().await?;
            let all: Vec<Value> = hooks
                .iter()
                .map(|hook| json!({"id": hook.id, "org": hook.org_id, "url": hook.url, "failures": hook.failures}))
                .collect();
            let lines: Vec<String> =
                hooks.iter().map(|hook| format!("{}  {}  {}", hook.id, hook.org_id, hook.url)).collect();
            output.data(&json!(all), &lines.join("\n"));
        }
        WebhookAction::Remove { data, id } => {
            let id: WebhookId = id.parse()?;
            anyhow::ensure!(open(&data).await?.delete_webhook(&id).await?, "there is no webhook {id}");
            output.data(&json!({"id": id, "removed": true}), "");
        }
        WebhookAction::Deliveries { data, id, limit } => {
            let (db, id) = (open(&data).await?, id.parse::<WebhookId>()?);
            if db.webhook(&id).await?.is_none() {
                return Err(hint(format!("there is no webhook {id}"), "`dormouse webhook list` shows them"));
            }
            let all = db.deliveries(&id, i64::from(limit)).await?;
            let line = |delivery: &DeliveryRow| {
                let outcome = delivery.outcome.as_deref().unwrap_or("-");
                format!(
                    "{}  {:9}  {:2}  {outcome}",
                    delivery.id,
                    delivery.state.to_string(),
                    delivery.attempts
                )
            };
            let lines: Vec<String> = all.iter().map(line).collect();
            output.data(&json!(all.iter().map(shown).collect::<Vec<_>>()), &lines.join("\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
