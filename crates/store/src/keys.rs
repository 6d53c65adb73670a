//! Table `api_keys`.

use dormouse_types::{AccountId, KeyId, Timestamp};

use crate::db::{Db, StoreError, commit, typed};

/// One key, without the key.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// What it is listed and revoked by.
    pub id: KeyId,
    /// Whose it is.
    pub account_id: AccountId,
    /// For people.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When somebody ended it.
    pub revoked_at: Option<Timestamp>,
}

type Raw = (String, String, String, i64, Option<i64>, Option<i64>);

fn row((id, account, name, created, expires, revoked): Raw) -> crate::Result<KeyRow> {
    Ok(KeyRow {
        id: typed(&id, "api_keys", "id")?,
        account_id: typed(&account, "api_keys", "account_id")?,
        name,
        created_at: Timestamp(created),
        expires_at: expires.map(Timestamp),
        revoked_at: revoked.map(Timestamp),
    })
}

impl Db {
    /// Adds a key under the hash of its secret.
    pub async fn insert_key(&self, key: &KeyRow, hash: &str) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO api_keys (id, account_id, name, hash, created_at, expires_at, revoked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(key.id.as_str())
        .bind(key.account_id.as_str())
        .bind(&key.name)
        .bind(hash)
        .bind(key.created_at.0)
        .bind(key.expires_at.map(|t| t.0))
        .bind(key.revoked_at.map(|t| t.0))
        .execute(&mut *tx)
        .await
        .map_err(StoreError::unique("insert key", format!("key {}", key.id)))?;
        commit(tx, "insert key").await?;
        self.last("insert key").await
    }

    /// The key whose secret hashes to `hash`: one look-up in a unique index.
    pub async fn key_by_hash(&self, hash: &str) -> crate::Result<Option<KeyRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, account_id, name, created_at, expires_at, revoked_at
             FROM api_keys WHERE hash = $1",
        )
        .bind(hash)
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database("read key"))?
        .map(row)
        .transpose()
    }

    /// The key with this id.
    pub async fn key(&self, id: &KeyId) -> crate::Result<Option<KeyRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, account_id, name, created_at, expires_at, revoked_at
             FROM api_keys WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read key {id}")))?
        .map(row)
        .transpose()
    }

    /// Keys of an account, newest first, revoked ones included.
    pub async fn keys_of(&self, account: &AccountId) -> crate::Result<Vec<KeyRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, account_id, name, created_at, expires_at, revoked_at
             FROM api_keys WHERE account_id = $1 ORDER BY created_at DESC, id DESC",
        )
        .bind(account.as_str())
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::database(format!("list keys of {account}")))?
        .into_iter()
        .map(row)
        .collect()
    }

    /// Ends a key. `false` when it had ended or never was.
    pub async fn revoke_key(&self, id: &KeyId, now: Timestamp) -> crate::Result<bool> {
        let mut tx = self.write().await?;
        let done = sqlx::query("UPDATE api_keys SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL")
            .bind(now.0)
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database(format!("revoke key {id}")))?;
        commit(tx, "revoke key").await?;
        self.last("revoke key").await?;
        Ok(done.rows_affected() > 0)
    }
}
