//! Table `secrets`.

use dormouse_types::{AccountId, GithubRepo, OrgId, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::sql::Row;

/// A secret of an organization.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// Whose it is.
    pub org_id: OrgId,
    /// Its name there.
    pub name: String,
    /// Names of hosts that it is for.
    pub hosts: Vec<String>,
    /// Header in which it goes there.
    pub header: String,
    /// What stands for it inside.
    pub placeholder: String,
    /// The secret. It is sealed at rest.
    pub value: String,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

impl std::fmt::Debug for SecretRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretRow")
            .field("org", &self.org_id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

const COLUMNS: &str = "org_id, name, hosts, header, placeholder, value, created_at, updated_at";

fn read(row: &Row) -> Result<SecretRow> {
    let row = row.of("secrets", "");
    Ok(SecretRow {
        org_id: row.get("org_id")?,
        name: row.get("name")?,
        hosts: row.json("hosts")?,
        header: row.get("header")?,
        placeholder: row.get("placeholder")?,
        value: row.secret("value")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

impl Db {
    /// Sets a secret. One of that name gets the new value, hosts and header, and keeps
    /// its placeholder, which sandboxes may have.
    pub async fn set_secret(&self, secret: &SecretRow) -> Result<()> {
        let text = format!(
            "INSERT INTO secrets ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (org_id, name) DO UPDATE SET hosts = excluded.hosts, header = excluded.header,
               value = excluded.value, updated_at = excluded.updated_at"
        );
        self.change(format!("set secret {}", secret.name), text)
            .bind(&secret.org_id)
            .bind(&secret.name)
            .bind(serde_json::Value::from(secret.hosts.clone()).to_string())
            .bind(&secret.header)
            .bind(&secret.placeholder)
            .bind_secret("secrets", "value", &secret.value)
            .bind(secret.created_at)
            .bind(secret.updated_at)
            .execute()
            .await
            .map(drop)
    }

    /// Secrets of an organization, by name.
    pub async fn secrets_of(&self, org: &OrgId) -> Result<Vec<SecretRow>> {
        let text = format!("SELECT {COLUMNS} FROM secrets WHERE org_id = $1 ORDER BY name");
        self.sql(format!("read secrets of {org}"), text).bind(org).all(read).await
    }

    /// Secrets for a sandbox of `account` with `repo` in it: those of organizations that
    /// it is a member of and that claim the repository.
    pub async fn secrets_for(&self, account: &AccountId, repo: &GithubRepo) -> Result<Vec<SecretRow>> {
        let (owner, full) = (repo.owner().to_ascii_lowercase(), repo.to_string().to_ascii_lowercase());
        let text = format!(
            "SELECT {COLUMNS} FROM secrets WHERE org_id IN (
               SELECT c.org_id FROM organization_claims c JOIN organization_members m ON m.org_id = c.org_id
               WHERE m.account_id = $1 AND c.pattern IN ($2, $3)) ORDER BY org_id, name"
        );
        self.sql(format!("read secrets for {repo}"), text)
            .bind(account)
            .bind(full)
            .bind(format!("{owner}/*"))
            .all(read)
            .await
    }

    /// Deletes a secret; tells whether there was one.
    pub async fn delete_secret(&self, org: &OrgId, name: &str) -> Result<bool> {
        let text = "DELETE FROM secrets WHERE org_id = $1 AND name = $2";
        let deleted = self.change(format!("delete secret {name}"), text).bind(org).bind(name.to_owned());
        Ok(deleted.execute().await? > 0)
    }
}
