//! Tables `organizations`, `organization_members`, `organization_claims`.

use dormouse_types::{AccountId, GithubRepo, OrgId, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::sql::Row;

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

fn read(row: &Row) -> Result<OrgRow> {
    let row = row.of("organizations", "");
    Ok(OrgRow { id: row.get("id")?, name: row.get("name")?, created_at: row.get("created_at")? })
}

impl Db {
    /// Adds an organization.
    pub async fn insert_org(&self, org: &OrgRow) -> Result<()> {
        self.change(
            format!("insert organization {}", org.name),
            "INSERT INTO organizations (id, name, created_at) VALUES ($1, $2, $3)",
        )
        .bind(&org.id)
        .bind(&org.name)
        .bind(org.created_at)
        .execute()
        .await
        .map_err(|error| error.unique(format!("organization {}", org.name)))
        .map(drop)
    }

    /// The organization with this id.
    pub async fn org(&self, id: &OrgId) -> Result<Option<OrgRow>> {
        self.sql(
            format!("read organization {id}"),
            "SELECT id, name, created_at FROM organizations WHERE id = $1",
        )
        .bind(id)
        .one(read)
        .await
    }

    /// The organization with this id or name, if `account` is a member.
    pub async fn org_of_member(&self, account: &AccountId, id_or_name: &str) -> Result<Option<OrgRow>> {
        self.sql(
            format!("read an organization of {account}"),
            "SELECT o.id AS id, o.name AS name, o.created_at AS created_at FROM organizations o
             JOIN organization_members m ON m.org_id = o.id
             WHERE m.account_id = $1 AND (o.id = $2 OR o.name = $2)",
        )
        .bind(account)
        .bind(id_or_name.to_owned())
        .one(read)
        .await
    }

    /// Organizations of an account, by name.
    pub async fn orgs_of(&self, account: &AccountId) -> Result<Vec<OrgRow>> {
        self.sql(
            format!("read organizations of {account}"),
            "SELECT o.id AS id, o.name AS name, o.created_at AS created_at FROM organizations o
             JOIN organization_members m ON m.org_id = o.id WHERE m.account_id = $1 ORDER BY o.name",
        )
        .bind(account)
        .all(read)
        .await
    }

    /// Adds a member; adding one twice changes nothing.
    pub async fn add_member(&self, org: &OrgId, account: &AccountId) -> Result<()> {
        self.change(
            format!("add {account} to {org}"),
            "INSERT INTO organization_members (org_id, account_id) VALUES ($1, $2)
             ON CONFLICT (org_id, account_id) DO NOTHING",
        )
        .bind(org)
        .bind(account)
        .execute()
        .await
        .map(drop)
    }

    /// Ends a membership. `false`: there was none.
    pub async fn remove_member(&self, org: &OrgId, account: &AccountId) -> Result<bool> {
        let removed = self
            .change(
                format!("remove {account} from {org}"),
                "DELETE FROM organization_members WHERE org_id = $1 AND account_id = $2",
            )
            .bind(org)
            .bind(account)
            .execute()
            .await?;
        self.last("remove a member").await?;
        Ok(removed > 0)
    }

    /// Claims `owner/repo` or `owner/*` (lower case) for an organization.
    pub async fn insert_claim(&self, org: &OrgId, pattern: &str) -> Result<()> {
        self.change(
            format!("claim {pattern} for {org}"),
            "INSERT INTO organization_claims (pattern, org_id) VALUES ($1, $2)",
        )
        .bind(pattern.to_owned())
        .bind(org)
        .execute()
        .await
        .map_err(|error| error.unique(format!("a claim on {pattern}")))
        .map(drop)
    }

    /// Whether an organization of `account` claims `repo`.
    pub async fn may_use_token(&self, account: &AccountId, repo: &GithubRepo) -> Result<bool> {
        let (owner, full) = (repo.owner().to_ascii_lowercase(), repo.to_string().to_ascii_lowercase());
        self.sql(
            format!("read claims on {repo}"),
            "SELECT 1 FROM organization_claims c JOIN organization_members m ON m.org_id = c.org_id
             WHERE m.account_id = $1 AND c.pattern IN ($2, $3) LIMIT 1",
        )
        .bind(account)
        .bind(full)
        .bind(format!("{owner}/*"))
        .exists()
        .await
    }
}
