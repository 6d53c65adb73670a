//! What callers see of org snapshots, and what they may have done.
//!
//! Who names a repository sees what they could start from. Without a name one
//! sees those of repositories that one's organizations claim: what others work on
//! is not shown. Deleting is for those organizations.

use dormouse_store::{OrgBuildRow, OrgSnapshotRow};
use dormouse_types::{AccountId, GithubRepo, OrgSnapshotId, RepoAccess};

use super::{Order, Reader};
use crate::error::Result;
use crate::remote::RemoteError;
use crate::{SessionError, Sessions};

/// Most that a list has.
const MOST: i64 = 100;

/// Builds that are shown of a repository.
const BUILDS: i64 = 10;

impl Sessions {
    /// The org snapshots of a repository, or of all that organizations of
    /// `account` claim, newest first.
    pub async fn org_snapshots(
        &self,
        account: &AccountId,
        repo: Option<&GithubRepo>,
    ) -> Result<Vec<OrgSnapshotRow>> {
        let Some(repo) = repo else {
            return Ok(self.db.org_snapshots_claimed_by(account, MOST).await?);
        };
        let Some(access) = self.reads(account, repo).await? else { return Ok(Vec::new()) };
        let mut rows = self.db.org_snapshots_of(&repo.to_string().to_ascii_lowercase()).await?;
        rows.retain(|row| readable(row.key.access, access));
        Ok(rows)
    }

    /// The last builds of a repository's org snapshots, newest first.
    pub async fn org_builds(&self, account: &AccountId, repo: &GithubRepo) -> Result<Vec<OrgBuildRow>> {
        let Some(access) = self.reads(account, repo).await? else { return Ok(Vec::new()) };
        let (name, claimed) = (repo.to_string().to_ascii_lowercase(), access == RepoAccess::Claimed);
        Ok(self.db.org_builds_of(&name, claimed, BUILDS).await?)
    }

    /// How `account` reads a repository now; `None`: not at all. What was public
    /// once may be private by now, and its logs with it.
    async fn reads(&self, account: &AccountId, repo: &GithubRepo) -> Result<Option<RepoAccess>> {
        let access = self.access(account, repo).await?;
        if access == RepoAccess::Claimed {
            return Ok(Some(access));
        }
        let Some(org) = &self.org_snapshots else { return Ok(None) };
        let authorization = self.authorization(repo, access).await?;
        match org.tips.ask(repo, access, authorization.as_deref()).await {
            Ok(_) | Err(RemoteError::NoBranch) => Ok(Some(access)),
            Err(RemoteError::Unreadable) => Ok(None),
            Err(error @ RemoteError::Silent(_)) => Err(SessionError::Remote { repo: repo.clone(), error }),
        }
    }

    /// Has the org snapshot built anew from which `account` would start, although
    /// it may be at the tip.
    pub async fn build_org_snapshot(&self, account: &AccountId, repo: &GithubRepo) -> Result<()> {
        let org = self.org_snapshots.as_ref().filter(|org| org.covers(repo));
        let org = org.ok_or_else(|| SessionError::NoOrgSnapshots(repo.clone()))?;
        let reader = Reader { repo: repo.clone(), access: self.access(account, repo).await? };
        let authorization = self.authorization(repo, reader.access).await?;
        match org.tips.ask(repo, reader.access, authorization.as_deref()).await {
            Ok(_) => {}
            Err(error) => return Err(SessionError::Remote { repo: repo.clone(), error }),
        }
        let key = self.org_key(&reader);
        self.ask_for_build(&key, Order { reader, anew: true }).await
    }

    /// Retires an org snapshot: the next sandbox starts cold, and makes another.
    pub async fn delete_org_snapshot(&self, account: &AccountId, id: &OrgSnapshotId) -> Result<()> {
        let row = self.db.org_snapshot_by_id(id).await?;
        let row = row.filter(|row| row.retired_at.is_none()).ok_or(SessionError::NoSuchOrgSnapshot)?;
        let repo: GithubRepo = format!("https://github.com/{}", row.key.repo)
            .parse()
            .map_err(|_| SessionError::NoSuchOrgSnapshot)?;
        if self.db.may_use_token(account, &repo).await? {
            return Ok(self.db.retire_org_snapshot(id, self.now()).await?);
        }
        match row.key.access {
            RepoAccess::Public => Err(SessionError::NotClaimed(repo)),
            RepoAccess::Claimed => Err(SessionError::NoSuchOrgSnapshot),
        }
    }
}

/// Whether what was read with `of` is for those who read with `with`.
fn readable(of: RepoAccess, with: RepoAccess) -> bool {
    of == RepoAccess::Public || with == RepoAccess::Claimed
}
