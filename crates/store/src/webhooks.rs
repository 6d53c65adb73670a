//! Tables `webhooks` and `webhook_deliveries`.

use dormouse_types::{
    AccountId, DeliveryId, DeliveryState, GithubRepo, OrgId, SessionId, Timestamp, WebhookId,
};
use serde_json::json;

use crate::SessionEventRow;
use crate::db::{Db, Tx};
use crate::error::Result;
use crate::sql::Row;

/// Where an organization is told what happens.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Its id.
    pub id: WebhookId,
    /// Whose it is.
    pub org_id: OrgId,
    /// Where deliveries go.
    pub url: String,
    /// What they are signed with.
    pub secret: String,
    /// Deliveries that failed since one arrived.
    pub failures: u32,
    /// When the next one is tried.
    pub retry_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
}

impl std::fmt::Debug for WebhookRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookRow").field("id", &self.id).field("url", &self.url).finish_non_exhaustive()
    }
}

/// One event, to one webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its id, also for who receives it.
    pub id: DeliveryId,
    /// Where it goes.
    pub webhook_id: WebhookId,
    /// What is sent, as JSON.
    pub body: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// How often it was sent.
    pub attempts: u32,
    /// What the last attempt came to.
    pub outcome: Option<String>,
    /// When its event happened.
    pub created_at: Timestamp,
    /// When it arrived, or was given up.
    pub ended_at: Option<Timestamp>,
}

const HOOK: &str = "id, org_id, url, secret, failures, retry_at, created_at";
const DELIVERY: &str = "id, webhook_id, body, state, attempts, outcome, created_at, ended_at";

fn read_hook(row: &Row) -> Result<WebhookRow> {
    let row = row.of("webhooks", "");
    Ok(WebhookRow {
        id: row.get("id")?,
        org_id: row.get("org_id")?,
        url: row.get("url")?,
        secret: row.secret("secret")?,
        failures: row.number("failures")?,
        retry_at: row.get("retry_at")?,
        created_at: row.get("created_at")?,
    })
}

fn read_delivery(row: &Row) -> Result<DeliveryRow> {
    let row = row.of("webhook_deliveries", "");
    Ok(DeliveryRow {
        id: row.get("id")?,
        webhook_id: row.get("webhook_id")?,
        body: row.get("body")?,
        state: row.get("state")?,
        attempts: row.number("attempts")?,
        outcome: row.get("outcome")?,
        created_at: row.get("created_at")?,
        ended_at: row.get("ended_at")?,
    })
}

/// Has an event of a session delivered to those organizations of its owner that
/// claim its repository.
pub(crate) async fn deliver(
    tx: &mut Tx,
    session: &SessionId,
    owner: &AccountId,
    repo: Option<&str>,
    event: &SessionEventRow,
) -> Result<()> {
    let Some(repo) = repo.and_then(|url| url.parse::<GithubRepo>().ok()) else { return Ok(()) };
    let hooks = tx
        .sql(
            format!("read the webhooks of {session}"),
            "SELECT DISTINCT w.id AS id FROM webhooks w
             JOIN organization_members m ON m.org_id = w.org_id AND m.account_id = $1
             JOIN organization_claims c ON c.org_id = w.org_id AND c.pattern IN ($2, $3)",
        )
        .bind(owner)
        .bind(repo.to_string().to_ascii_lowercase())
        .bind(format!("{}/*", repo.owner().to_ascii_lowercase()))
        .all(|row| row.of("webhooks", "").get::<WebhookId>("id"))
        .await?;
    for hook in hooks {
        let body = json!({
            "type": format!("session.{}", event.cause.reason),
            "timestamp": event.at.as_millis(),
            "data": {
                "sessionId": session.as_str(),
                "repoUrl": repo.url(),
                "id": event.seq,
                "at": event.at.as_millis(),
                "lifecycleVersion": event.version,
                "from": event.before.to_string(),
                "to": event.after.to_string(),
                "reason": event.cause.reason.to_string(),
                "actor": event.cause.actor.as_ref().map(AccountId::as_str),
                "detail": event.cause.detail,
            },
        });
        tx.sql(
            format!("have an event delivered to {hook}"),
            format!("INSERT INTO webhook_deliveries ({DELIVERY}) VALUES ($1, $2, $3, $4, 0, NULL, $5, NULL)"),
        )
        .bind(DeliveryId::generate())
        .bind(&hook)
        .bind(body.to_string())
        .bind(DeliveryState::Waiting)
        .bind(event.at)
        .execute()
        .await?;
    }
    Ok(())
}

impl Db {
    /// Adds a webhook.
    pub async fn insert_webhook(&self, hook: &WebhookRow) -> Result<()> {
        self.change(
            format!("insert webhook {}", hook.id),
            format!("INSERT INTO webhooks ({HOOK}) VALUES ($1, $2, $3, $4, 0, 0, $5)"),
        )
        .bind(&hook.id)
        .bind(&hook.org_id)
        .bind(&hook.url)
        .bind_secret("webhooks", "secret", &hook.secret)
        .bind(hook.created_at)
        .execute()
        .await
        .map(drop)
    }

    /// All webhooks, oldest first.
    pub async fn webhooks(&self) -> Result<Vec<WebhookRow>> {
        self.sql("read webhooks", format!("SELECT {HOOK} FROM webhooks ORDER BY id")).all(read_hook).await
    }

    /// The webhook with this id.
    pub async fn webhook(&self, id: &WebhookId) -> Result<Option<WebhookRow>> {
        self.sql(format!("read webhook {id}"), format!("SELECT {HOOK} FROM webhooks WHERE id = $1"))
            .bind(id)
            .one(read_hook)
            .await
    }

    /// Forgets a webhook, with its deliveries. `false`: there was none.
    pub async fn delete_webhook(&self, id: &WebhookId) -> Result<bool> {
        let mut tx = self.write().await?;
        let deleted = tx
            .sql(format!("delete webhook {id}"), "DELETE FROM webhooks WHERE id = $1")
            .bind(id)
            .execute()
            .await?;
        tx.sql(
            format!("forget the deliveries to {id}"),
            "DELETE FROM webhook_deliveries WHERE webhook_id = $1",
        )
        .bind(id)
        .execute()
        .await?;
        tx.commit("delete webhook").await?;
        Ok(deleted > 0)
    }

    /// Webhooks for which something waits, and to which it may be sent now.
    pub async fn webhooks_due(&self, now: Timestamp, limit: i64) -> Result<Vec<WebhookId>> {
        self.sql(
            "read webhooks for which something waits",
            "SELECT id FROM webhooks WHERE retry_at <= $1 AND EXISTS
             (SELECT 1 FROM webhook_deliveries d WHERE d.webhook_id = webhooks.id AND d.state = 'waiting')
             ORDER BY retry_at LIMIT $2",
        )
        .bind(now)
        .bind(limit)
        .all(|row| row.of("webhooks", "").get("id"))
        .await
    }

    /// The oldest delivery that waits for a webhook.
    pub async fn next_delivery(&self, hook: &WebhookId) -> Result<Option<DeliveryRow>> {
        self.sql(
            format!("read the next delivery to {hook}"),
            format!(
                "SELECT {DELIVERY} FROM webhook_deliveries WHERE webhook_id = $1 AND state = 'waiting'
                 ORDER BY id LIMIT 1"
            ),
        )
        .bind(hook)
        .one(read_delivery)
        .await
    }

    /// Deliveries to a webhook, newest first.
    pub async fn deliveries(&self, hook: &WebhookId, limit: i64) -> Result<Vec<DeliveryRow>> {
        self.sql(
            format!("read deliveries to {hook}"),
            format!(
                "SELECT {DELIVERY} FROM webhook_deliveries WHERE webhook_id = $1 ORDER BY id DESC LIMIT $2"
            ),
        )
        .bind(hook)
        .bind(limit)
        .all(read_delivery)
        .await
    }

    /// Notes what an attempt at a delivery came to, and when the webhook may be tried
    /// again: at once after one that arrived.
    pub async fn note_delivery(
        &self,
        delivery: &DeliveryRow,
        state: DeliveryState,
        outcome: &str,
        retry_at: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("note an attempt at {}", delivery.id),
            "UPDATE webhook_deliveries SET state = $1, outcome = $2, attempts = attempts + 1, ended_at = $3
             WHERE id = $4 AND state = 'waiting'",
        )
        .bind(state)
        .bind(outcome.to_owned())
        .bind((state != DeliveryState::Waiting).then_some(now))
        .bind(&delivery.id)
        .execute()
        .await?;
        tx.sql(
            format!("note an attempt at {}", delivery.webhook_id),
            "UPDATE webhooks SET retry_at = $1, failures = CASE WHEN $2 THEN 0 ELSE failures + 1 END
             WHERE id = $3",
        )
        .bind(retry_at)
        .bind(state == DeliveryState::Delivered)
        .bind(&delivery.webhook_id)
        .execute()
        .await?;
        tx.commit("note a delivery").await
    }

    /// Gives up all that waits for a webhook.
    pub async fn give_deliveries_up(&self, hook: &WebhookId, outcome: &str, now: Timestamp) -> Result<()> {
        self.change(
            format!("give deliveries to {hook} up"),
            "UPDATE webhook_deliveries SET state = $1, outcome = $2, ended_at = $3
             WHERE webhook_id = $4 AND state = 'waiting'",
        )
        .bind(DeliveryState::Failed)
        .bind(outcome.to_owned())
        .bind(now)
        .bind(hook)
        .execute()
        .await
        .map(drop)
    }

    /// Forgets deliveries that ended before `before`, at most `limit`; how many.
    pub async fn prune_deliveries(&self, before: Timestamp, limit: i64) -> Result<u64> {
        self.change(
            "forget old deliveries",
            "DELETE FROM webhook_deliveries WHERE id IN
             (SELECT id FROM webhook_deliveries WHERE ended_at < $1
                OR (state = 'waiting' AND webhook_id NOT IN (SELECT id FROM webhooks)) LIMIT $2)",
        )
        .bind(before)
        .bind(limit)
        .execute()
        .await
    }
}
