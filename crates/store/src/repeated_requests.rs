//! Table `repeated_requests`: requests whose callers gave them a key, to send them
//! again without having them done again.

use dormouse_types::{AccountId, SandboxName, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::sql::Row;

/// A request with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatedRequestRow {
    /// Whose it is.
    pub account_id: AccountId,
    /// The caller's name for it.
    pub key: String,
    /// What was asked for.
    pub digest: String,
    /// The sandbox that is made for it.
    pub sandbox: SandboxName,
    /// What came of it, as JSON; `None` while somebody is at it, or died over it.
    pub answer: Option<String>,
    /// When it came first.
    pub created_at: Timestamp,
}

const COLUMNS: &str = "account_id, key, digest, sandbox, answer, created_at";

fn read(row: &Row) -> Result<RepeatedRequestRow> {
    let row = row.of("repeated_requests", "");
    Ok(RepeatedRequestRow {
        account_id: row.get("account_id")?,
        key: row.get("key")?,
        digest: row.get("digest")?,
        sandbox: row.get("sandbox")?,
        answer: row.get("answer")?,
        created_at: row.get("created_at")?,
    })
}

impl Db {
    /// The request of this key: `row`, or the one that came before it.
    pub async fn request_of_key(&self, row: &RepeatedRequestRow) -> Result<RepeatedRequestRow> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("note a request of {}", row.account_id),
            format!(
                "INSERT INTO repeated_requests ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (account_id, key) DO NOTHING"
            ),
        )
        .bind(&row.account_id)
        .bind(&row.key)
        .bind(&row.digest)
        .bind(&row.sandbox)
        .bind(&row.answer)
        .bind(row.created_at)
        .execute()
        .await?;
        let found = tx
            .sql(
                format!("read a request of {}", row.account_id),
                format!("SELECT {COLUMNS} FROM repeated_requests WHERE account_id = $1 AND key = $2"),
            )
            .bind(&row.account_id)
            .bind(&row.key)
            .one(read)
            .await?;
        tx.commit("note a request").await?;
        Ok(found.unwrap_or_else(|| row.clone()))
    }

    /// Notes what came of a request, unless somebody else is at it by now.
    pub async fn answer_request(&self, request: &RepeatedRequestRow, answer: &str) -> Result<()> {
        self.change(
            format!("answer a request of {}", request.account_id),
            "UPDATE repeated_requests SET answer = $1 WHERE account_id = $2 AND key = $3 AND sandbox = $4",
        )
        .bind(answer.to_owned())
        .bind(&request.account_id)
        .bind(&request.key)
        .bind(&request.sandbox)
        .execute()
        .await
        .map(drop)
    }

    /// Forgets a request that came to nothing, unless somebody else is at it by now: sent
    /// again, it is a new one.
    pub async fn forget_request(&self, request: &RepeatedRequestRow) -> Result<()> {
        self.change(
            format!("forget a request of {}", request.account_id),
            "DELETE FROM repeated_requests WHERE account_id = $1 AND key = $2 AND sandbox = $3",
        )
        .bind(&request.account_id)
        .bind(&request.key)
        .bind(&request.sandbox)
        .execute()
        .await
        .map(drop)
    }

    /// Forgets requests from before `before`, at most `limit`; how many.
    pub async fn prune_requests(&self, before: Timestamp, limit: i64) -> Result<u64> {
        self.change(
            "forget old requests",
            "DELETE FROM repeated_requests WHERE (account_id, key) IN
             (SELECT account_id, key FROM repeated_requests WHERE created_at < $1
              ORDER BY created_at LIMIT $2)",
        )
        .bind(before)
        .bind(limit)
        .execute()
        .await
    }
}
