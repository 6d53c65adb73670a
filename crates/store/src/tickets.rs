//! Table `tickets`: the right to open one terminal, once.

use dormouse_types::{AccountId, KeyId, Namespace, RunId, Timestamp};

use crate::db::Db;
use crate::error::Result;

/// What a ticket stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketRow {
    /// Whose run it is.
    pub namespace: Namespace,
    /// In which run.
    pub run_id: RunId,
    /// Who asked for it.
    pub account_id: AccountId,
    /// With which key, if it was one.
    pub key_id: Option<KeyId>,
    /// Until when it can be used.
    pub expires_at: Timestamp,
}

impl Db {
    /// Adds a ticket under its hash, and forgets those that nobody used in time.
    pub async fn insert_ticket(&self, hash: &str, ticket: &TicketRow, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql("forget tickets", "DELETE FROM tickets WHERE expires_at <= $1").bind(now).execute().await?;
        tx.sql(
            format!("insert a ticket for {}", ticket.run_id),
            "INSERT INTO tickets (hash, owner, project, run_id, account_id, key_id, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(hash.to_owned())
        .bind(&ticket.namespace.owner)
        .bind(&ticket.namespace.project)
        .bind(&ticket.run_id)
        .bind(&ticket.account_id)
        .bind(&ticket.key_id)
        .bind(ticket.expires_at)
        .execute()
        .await?;
        tx.commit("insert ticket").await
    }

    /// Uses a ticket up: it is handed out once, on whichever server, and not
    /// after its time. A guess writes nothing.
    pub async fn redeem_ticket(&self, hash: &str, now: Timestamp) -> Result<Option<TicketRow>> {
        let there = self.sql("look for a ticket", "SELECT 1 FROM tickets WHERE hash = $1");
        if !there.bind(hash.to_owned()).exists().await? {
            return Ok(None);
        }
        let found = self
            .change(
                "redeem a ticket",
                "DELETE FROM tickets WHERE hash = $1
                 RETURNING owner, project, run_id, account_id, key_id, expires_at",
            )
            .bind(hash.to_owned())
            .one(|row| {
                let row = row.of("tickets", "");
                Ok(TicketRow {
                    namespace: Namespace { owner: row.get("owner")?, project: row.get("project")? },
                    run_id: row.get("run_id")?,
                    account_id: row.get("account_id")?,
                    key_id: row.get("key_id")?,
                    expires_at: row.get("expires_at")?,
                })
            })
            .await?;
        Ok(found.filter(|ticket| ticket.expires_at > now))
    }
}
