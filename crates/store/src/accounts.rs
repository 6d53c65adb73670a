//! Table `accounts`, and `identities` that lead to it.

use dormouse_types::{AccountId, Timestamp};

use crate::db::{Db, Tx};
use crate::error::Result;

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

async fn insert(tx: &mut Tx, account: &AccountRow) -> Result<()> {
    tx.sql(
        format!("insert account {}", account.id),
        "INSERT INTO accounts (id, name, email, created_at) VALUES ($1, $2, $3, $4)",
    )
    .bind(&account.id)
    .bind(&account.name)
    .bind(&account.email)
    .bind(account.created_at)
    .execute()
    .await
    .map(drop)
    .map_err(|error| error.unique(format!("account {}", account.id)))
}

const OF_IDENTITY: &str = "SELECT account_id FROM identities WHERE issuer = $1 AND subject = $2";

impl Db {
    /// Adds an account.
    pub async fn insert_account(&self, account: &AccountRow) -> Result<()> {
        let mut tx = self.write().await?;
        insert(&mut tx, account).await?;
        tx.commit("insert account").await
    }

    /// The account with this id.
    pub async fn account(&self, id: &AccountId) -> Result<Option<AccountRow>> {
        self.sql(
            format!("read account {id}"),
            "SELECT id, name, email, created_at FROM accounts WHERE id = $1",
        )
        .bind(id)
        .one(|row| {
            let row = row.of("accounts", "");
            Ok(AccountRow {
                id: row.get("id")?,
                name: row.get("name")?,
                email: row.get("email")?,
                created_at: row.get("created_at")?,
            })
        })
        .await
    }

    /// The account behind a token issuer's subject.
    pub async fn account_of_identity(&self, issuer: &str, subject: &str) -> Result<Option<AccountId>> {
        self.sql("read identity", OF_IDENTITY)
            .bind(issuer.to_owned())
            .bind(subject.to_owned())
            .one(|row| row.of("identities", "").get("account_id"))
            .await
    }

    /// The account of an identity, made as `account` if there is none. Two
    /// callers at once get the same one.
    pub async fn account_for_identity(
        &self,
        issuer: &str,
        subject: &str,
        account: &AccountRow,
    ) -> Result<AccountId> {
        let mut tx = self.write().await?;
        insert(&mut tx, account).await?;
        let ours = tx
            .sql(
                "insert identity",
                "INSERT INTO identities (issuer, subject, account_id) VALUES ($1, $2, $3)
                 ON CONFLICT (issuer, subject) DO NOTHING",
            )
            .bind(issuer.to_owned())
            .bind(subject.to_owned())
            .bind(&account.id)
            .execute()
            .await?;
        if ours > 0 {
            tx.commit("insert identity").await?;
            return Ok(account.id.clone());
        }
        // Somebody else's is there; the account is not needed.
        let theirs = tx
            .sql("read identity", OF_IDENTITY)
            .bind(issuer.to_owned())
            .bind(subject.to_owned())
            .one(|row| row.of("identities", "").get("account_id"))
            .await?;
        theirs.ok_or(crate::StoreError::Corrupt { table: "identities", column: "account_id" })
    }
}
