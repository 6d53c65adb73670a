//! Table `accounts`, and `identities` that lead to it.

use dormouse_types::{AccountId, Timestamp};

use crate::db::{Db, StoreError, Tx, commit, typed};

/// One account.
#[derive(Debug, Clone)]
pub struct AccountRow {
    /// Its id.
    pub id: AccountId,
    /// Name, also of its git commits.
    pub name: String,
    /// E-mail, also of its git commits.
    pub email: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

type Raw = (String, String, Option<String>, i64);

fn row((id, name, email, created_at): Raw) -> crate::Result<AccountRow> {
    Ok(AccountRow { id: typed(&id, "accounts", "id")?, name, email, created_at: Timestamp(created_at) })
}

async fn insert(tx: &mut Tx<'_>, account: &AccountRow) -> crate::Result<()> {
    sqlx::query("INSERT INTO accounts (id, name, email, created_at) VALUES ($1, $2, $3, $4)")
        .bind(account.id.as_str())
        .bind(&account.name)
        .bind(&account.email)
        .bind(account.created_at.0)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(StoreError::unique("insert account", format!("account {}", account.id)))
}

impl Db {
    /// Adds an account.
    pub async fn insert_account(&self, account: &AccountRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        insert(&mut tx, account).await?;
        commit(tx, "insert account").await
    }

    /// The account with this id.
    pub async fn account(&self, id: &AccountId) -> crate::Result<Option<AccountRow>> {
        sqlx::query_as::<_, Raw>("SELECT id, name, email, created_at FROM accounts WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read account {id}")))?
            .map(row)
            .transpose()
    }

    /// The account behind a token issuer's subject.
    pub async fn account_of_identity(&self, issuer: &str, subject: &str) -> crate::Result<Option<AccountId>> {
        let found: Option<(String,)> =
            sqlx::query_as("SELECT account_id FROM identities WHERE issuer = $1 AND subject = $2")
                .bind(issuer)
                .bind(subject)
                .fetch_optional(&self.readers)
                .await
                .map_err(StoreError::database("read identity"))?;
        found.map(|(id,)| typed(&id, "identities", "account_id")).transpose()
    }

    /// The account of an identity, made as `account` if there is none. Two
    /// callers at once get the same one.
    pub async fn account_for_identity(
        &self,
        issuer: &str,
        subject: &str,
        account: &AccountRow,
    ) -> crate::Result<AccountId> {
        let mut tx = self.write().await?;
        let found: Option<(String,)> =
            sqlx::query_as("SELECT account_id FROM identities WHERE issuer = $1 AND subject = $2")
                .bind(issuer)
                .bind(subject)
                .fetch_optional(&mut *tx)
                .await
                .map_err(StoreError::database("read identity"))?;
        if let Some((id,)) = found {
            return typed(&id, "identities", "account_id");
        }
        insert(&mut tx, account).await?;
        sqlx::query("INSERT INTO identities (issuer, subject, account_id) VALUES ($1, $2, $3)")
            .bind(issuer)
            .bind(subject)
            .bind(account.id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database("insert identity"))?;
        commit(tx, "insert identity").await?;
        Ok(account.id.clone())
    }
}
