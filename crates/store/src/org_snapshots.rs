//! Table `org_snapshots`: snapshots with a repository in them.

use dormouse_types::{AccountId, GithubRepo, OrgSnapshotId, RepoAccess, SetUp, SnapshotId, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::sql::Row;

/// What an org snapshot is of, and where it can be started from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OrgSnapshotKey {
    /// `owner/name` in lower case.
    pub repo: String,
    /// How the repository was read.
    pub access: RepoAccess,
    /// The host that can start from it; empty where the provider is one place.
    pub place: String,
}

impl OrgSnapshotKey {
    /// Of `repo`, read with `access`, at `place`.
    #[must_use]
    pub fn new(repo: &GithubRepo, access: RepoAccess, place: &str) -> Self {
        Self { repo: repo.to_string().to_ascii_lowercase(), access, place: place.to_owned() }
    }
}

impl std::fmt::Display for OrgSnapshotKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.repo, self.access)
    }
}

/// One org snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgSnapshotRow {
    /// Its id.
    pub id: OrgSnapshotId,
    /// Of what.
    pub key: OrgSnapshotKey,
    /// Its files.
    pub snapshot_id: SnapshotId,
    /// The branch that is checked out.
    pub branch: String,
    /// The commit that is checked out.
    pub commit_id: String,
    /// What became of the repository's set-up.
    pub set_up: SetUp,
    /// When a sandbox last started from it, to the hour.
    pub last_used_at: Timestamp,
    /// Since when nothing starts from it any more.
    pub retired_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

const COLUMNS: &str = "id, repo, access, place, snapshot_id, branch, commit_id, set_up, last_used_at,
    retired_at, created_at";

fn read(row: &Row) -> Result<OrgSnapshotRow> {
    let row = row.of("org_snapshots", "");
    Ok(OrgSnapshotRow {
        id: row.get("id")?,
        key: OrgSnapshotKey { repo: row.get("repo")?, access: row.get("access")?, place: row.get("place")? },
        snapshot_id: row.get("snapshot_id")?,
        branch: row.get("branch")?,
        commit_id: row.get("commit_id")?,
        set_up: row.get("set_up")?,
        last_used_at: row.get("last_used_at")?,
        retired_at: row.get("retired_at")?,
        created_at: row.get("created_at")?,
    })
}

impl Db {
    /// The one from which new sandboxes start.
    pub async fn org_snapshot(&self, key: &OrgSnapshotKey) -> Result<Option<OrgSnapshotRow>> {
        self.sql(
            format!("read the org snapshot of {key}"),
            format!(
                "SELECT {COLUMNS} FROM org_snapshots
                 WHERE repo = $1 AND access = $2 AND place = $3 AND retired_at IS NULL"
            ),
        )
        .bind(key.repo.clone())
        .bind(key.access)
        .bind(key.place.clone())
        .one(read)
        .await
    }

    /// New sandboxes start from this one; the one before is retired. Of two who
    /// publish in the same moment one gets an error, and nothing changes by it.
    pub async fn publish_org_snapshot(&self, row: &OrgSnapshotRow) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("retire the org snapshot of {}", row.key),
            "UPDATE org_snapshots SET retired_at = $1
             WHERE repo = $2 AND access = $3 AND place = $4 AND retired_at IS NULL",
        )
        .bind(row.created_at)
        .bind(row.key.repo.clone())
        .bind(row.key.access)
        .bind(row.key.place.clone())
        .execute()
        .await?;
        tx.sql(
            format!("publish {}", row.id),
            format!(
                "INSERT INTO org_snapshots ({COLUMNS}, owner)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
            ),
        )
        .bind(&row.id)
        .bind(row.key.repo.clone())
        .bind(row.key.access)
        .bind(row.key.place.clone())
        .bind(&row.snapshot_id)
        .bind(row.branch.clone())
        .bind(row.commit_id.clone())
        .bind(row.set_up)
        .bind(row.last_used_at)
        .bind(row.retired_at)
        .bind(row.created_at)
        .bind(row.key.repo.split('/').next().unwrap_or_default().to_owned())
        .execute()
        .await
        .map_err(|error| error.unique(format!("an org snapshot of {}", row.key)))?;
        tx.commit("publish org snapshot").await
    }

    /// A sandbox started from it.
    pub async fn use_org_snapshot(&self, id: &OrgSnapshotId, now: Timestamp) -> Result<()> {
        self.change(format!("use {id}"), "UPDATE org_snapshots SET last_used_at = $1 WHERE id = $2")
            .bind(now)
            .bind(id)
            .execute()
            .await
            .map(drop)
    }

    /// Nothing starts from it any more.
    pub async fn retire_org_snapshot(&self, id: &OrgSnapshotId, now: Timestamp) -> Result<()> {
        self.change(
            format!("retire {id}"),
            "UPDATE org_snapshots SET retired_at = $1 WHERE id = $2 AND retired_at IS NULL",
        )
        .bind(now)
        .bind(id)
        .execute()
        .await
        .map(drop)
    }

    /// Nothing starts any more from those at `place` that were last used before
    /// `used_before`.
    pub async fn retire_unused_org_snapshots(
        &self,
        place: &str,
        used_before: Timestamp,
        now: Timestamp,
    ) -> Result<u64> {
        self.change(
            "retire unused org snapshots",
            "UPDATE org_snapshots SET retired_at = $1
             WHERE place = $2 AND last_used_at < $3 AND retired_at IS NULL",
        )
        .bind(now)
        .bind(place.to_owned())
        .bind(used_before)
        .execute()
        .await
    }

    /// Those at `place` that were retired before `before`, oldest first, at most
    /// `limit`.
    pub async fn retired_org_snapshots(
        &self,
        place: &str,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<OrgSnapshotRow>> {
        self.sql(
            "read retired org snapshots",
            format!(
                "SELECT {COLUMNS} FROM org_snapshots
                 WHERE place = $1 AND retired_at <= $2 ORDER BY retired_at LIMIT $3"
            ),
        )
        .bind(place.to_owned())
        .bind(before)
        .bind(limit)
        .all(read)
        .await
    }

    /// Forgets a retired one, whose files are gone.
    pub async fn forget_org_snapshot(&self, id: &OrgSnapshotId) -> Result<()> {
        self.change(
            format!("forget {id}"),
            "DELETE FROM org_snapshots WHERE id = $1 AND retired_at IS NOT NULL",
        )
        .bind(id)
        .execute()
        .await
        .map(drop)
    }

    /// Whether there is an org snapshot with these files, retired or not.
    pub async fn is_org_snapshot(&self, snapshot: &SnapshotId) -> Result<bool> {
        self.sql(
            format!("look for the org snapshot of {snapshot}"),
            "SELECT 1 FROM org_snapshots WHERE snapshot_id = $1",
        )
        .bind(snapshot)
        .exists()
        .await
    }

    /// The org snapshot with this id, retired or not.
    pub async fn org_snapshot_by_id(&self, id: &OrgSnapshotId) -> Result<Option<OrgSnapshotRow>> {
        self.sql(format!("read {id}"), format!("SELECT {COLUMNS} FROM org_snapshots WHERE id = $1"))
            .bind(id)
            .one(read)
            .await
    }

    /// Those of a repository from which sandboxes start.
    pub async fn org_snapshots_of(&self, repo: &str) -> Result<Vec<OrgSnapshotRow>> {
        self.sql(
            format!("list the org snapshots of {repo}"),
            format!(
                "SELECT {COLUMNS} FROM org_snapshots WHERE repo = $1 AND retired_at IS NULL
                 ORDER BY access, place"
            ),
        )
        .bind(repo.to_owned())
        .all(read)
        .await
    }

    /// Those from which sandboxes start of repositories that organizations of
    /// `account` claim, newest first, at most `limit`.
    pub async fn org_snapshots_claimed_by(
        &self,
        account: &AccountId,
        limit: i64,
    ) -> Result<Vec<OrgSnapshotRow>> {
        self.sql(
            format!("list the org snapshots of {account}"),
            format!(
                "SELECT {COLUMNS} FROM org_snapshots
                 WHERE retired_at IS NULL AND (
                   repo IN (SELECT c.pattern FROM organization_claims c
                     JOIN organization_members m ON m.org_id = c.org_id WHERE m.account_id = $1)
                   OR owner || '/*' IN (SELECT c.pattern FROM organization_claims c
                     JOIN organization_members m ON m.org_id = c.org_id WHERE m.account_id = $1))
                 ORDER BY created_at DESC, id DESC LIMIT $2"
            ),
        )
        .bind(account)
        .bind(limit)
        .all(read)
        .await
    }
}
