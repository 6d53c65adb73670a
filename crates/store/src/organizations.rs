//! Tables `organizations`, `organization_members`, `organization_claims`.

use dormouse_types::{AccountId, GithubRepo, OrgId, Timestamp};

use crate::db::{Db, StoreError, commit, typed};

/// One organization.
#[derive(Debug, Clone)]
pub struct OrgRow {
    /// Its id.
    pub id: OrgId,
    /// Its unique name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Db {
    /// Adds an organization.
    pub async fn insert_org(&self, org: &OrgRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("INSERT INTO organizations (id, name, created_at) VALUES ($1, $2, $3)")
            .bind(org.id.as_str())
            .bind(&org.name)
            .bind(org.created_at.0)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::unique("insert organization", format!("organization {}", org.name)))?;
        commit(tx, "insert organization").await
    }

    /// The organization with this id.
    pub async fn org(&self, id: &OrgId) -> crate::Result<Option<OrgRow>> {
        let found: Option<(String, String, i64)> =
            sqlx::query_as("SELECT id, name, created_at FROM organizations WHERE id = $1")
                .bind(id.as_str())
                .fetch_optional(&self.readers)
                .await
                .map_err(StoreError::database(format!("read organization {id}")))?;
        found
            .map(|(id, name, created)| {
                let id = typed(&id, "organizations", "id")?;
                Ok(OrgRow { id, name, created_at: Timestamp(created) })
            })
            .transpose()
    }

    /// The organization with this id or name, if `account` is a member.
    pub async fn org_of_member(
        &self,
        account: &AccountId,
        id_or_name: &str,
    ) -> crate::Result<Option<OrgRow>> {
        Ok(self
            .orgs_of(account)
            .await?
            .into_iter()
            .find(|org| org.id.as_str() == id_or_name || org.name == id_or_name))
    }

    /// Organizations of an account, by name.
    pub async fn orgs_of(&self, account: &AccountId) -> crate::Result<Vec<OrgRow>> {
        let found: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT o.id, o.name, o.created_at FROM organizations o
             JOIN organization_members m ON m.org_id = o.id WHERE m.account_id = $1 ORDER BY o.name",
        )
        .bind(account.as_str())
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::database(format!("read organizations of {account}")))?;
        found
            .into_iter()
            .map(|(id, name, created)| {
                let id = typed(&id, "organizations", "id")?;
                Ok(OrgRow { id, name, created_at: Timestamp(created) })
            })
            .collect()
    }

    /// Adds a member; adding one twice changes nothing.
    pub async fn add_member(&self, org: &OrgId, account: &AccountId) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO organization_members (org_id, account_id) VALUES ($1, $2)
             ON CONFLICT (org_id, account_id) DO NOTHING",
        )
        .bind(org.as_str())
        .bind(account.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("add {account} to {org}")))?;
        commit(tx, "add member").await
    }

    /// Claims `owner/repo` or `owner/*` (lower case) for an organization.
    pub async fn insert_claim(&self, org: &OrgId, pattern: &str) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("INSERT INTO organization_claims (pattern, org_id) VALUES ($1, $2)")
            .bind(pattern)
            .bind(org.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::unique("insert claim", format!("a claim on {pattern}")))?;
        commit(tx, "insert claim").await
    }

    /// Whether an organization of `account` claims `repo`.
    pub async fn may_use_token(&self, account: &AccountId, repo: &GithubRepo) -> crate::Result<bool> {
        let (owner, full) = (repo.owner().to_ascii_lowercase(), repo.to_string().to_ascii_lowercase());
        let found: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM organization_claims c
             JOIN organization_members m ON m.org_id = c.org_id
             WHERE m.account_id = $1 AND c.pattern IN ($2, $3) LIMIT 1",
        )
        .bind(account.as_str())
        .bind(full)
        .bind(format!("{owner}/*"))
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read claims on {repo}")))?;
        Ok(found.is_some())
    }
}
