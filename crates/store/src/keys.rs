//! Table `api_keys`.

use dormouse_types::{AccountId, KeyId, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::sql::Row;

/// One key, without the key.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// What it is listed and revoked by.
    pub id: KeyId,
    /// Whose it is.
    pub account_id: AccountId,
    /// Shown to users; never interpreted.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When somebody ended it.
    pub revoked_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, account_id, name, created_at, expires_at, revoked_at";

fn read(row: &Row) -> Result<KeyRow> {
    let row = row.of("api_keys", "");
    Ok(KeyRow {
        id: row.get("id")?,
        account_id: row.get("account_id")?,
        name: row.get("name")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}

impl Db {
    /// Adds a key under the hash of its secret.
    pub async fn insert_key(&self, key: &KeyRow, hash: &str) -> Result<()> {
        self.change(
            format!("insert key {}", key.id),
            format!("INSERT INTO api_keys ({COLUMNS}, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)"),
        )
        .bind(&key.id)
        .bind(&key.account_id)
        .bind(&key.name)
        .bind(key.created_at)
        .bind(key.expires_at)
        .bind(key.revoked_at)
        .bind(hash.to_owned())
        .execute()
        .await
        .map_err(|error| error.unique(format!("key {}", key.id)))?;
        self.last("insert key").await
    }

    /// The key whose secret hashes to `hash`: one look-up in a unique index.
    pub async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRow>> {
        self.sql("read key", format!("SELECT {COLUMNS} FROM api_keys WHERE hash = $1"))
            .bind(hash.to_owned())
            .one(read)
            .await
    }

    /// The key with this id.
    pub async fn key(&self, id: &KeyId) -> Result<Option<KeyRow>> {
        self.sql(format!("read key {id}"), format!("SELECT {COLUMNS} FROM api_keys WHERE id = $1"))
            .bind(id)
            .one(read)
            .await
    }

    /// Keys of an account, newest first, revoked ones included.
    pub async fn keys_of(&self, account: &AccountId) -> Result<Vec<KeyRow>> {
        self.sql(
            format!("list keys of {account}"),
            format!("SELECT {COLUMNS} FROM api_keys WHERE account_id = $1 ORDER BY created_at DESC, id DESC"),
        )
        .bind(account)
        .all(read)
        .await
    }

    /// Ends a key. `false` when it had ended or never was.
    pub async fn revoke_key(&self, id: &KeyId, now: Timestamp) -> Result<bool> {
        let revoked = self
            .change(
                format!("revoke key {id}"),
                "UPDATE api_keys SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL",
            )
            .bind(now)
            .bind(id)
            .execute()
            .await?;
        self.last("revoke key").await?;
        Ok(revoked > 0)
    }
}
