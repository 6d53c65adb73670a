//! Table `org_builds`: how org snapshots were made, or were not.

use dormouse_types::{BuildId, BuildPhase, RepoAccess, Timestamp};

use crate::OrgSnapshotKey;
use crate::db::Db;
use crate::error::Result;
use crate::sql::Row;

/// One build of an org snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgBuildRow {
    /// Its id.
    pub id: BuildId,
    /// Of what.
    pub key: OrgSnapshotKey,
    /// Where it is.
    pub phase: BuildPhase,
    /// What was said in it; of a long one the last part.
    pub log: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When something last happened.
    pub updated_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, repo, access, place, phase, log, started_at, updated_at, ended_at";

fn read(row: &Row) -> Result<OrgBuildRow> {
    let row = row.of("org_builds", "");
    Ok(OrgBuildRow {
        id: row.get("id")?,
        key: OrgSnapshotKey { repo: row.get("repo")?, access: row.get("access")?, place: row.get("place")? },
        phase: row.get("phase")?,
        log: row.get("log")?,
        started_at: row.get("started_at")?,
        updated_at: row.get("updated_at")?,
        ended_at: row.get("ended_at")?,
    })
}

impl Db {
    /// Adds a build.
    pub async fn insert_org_build(&self, build: &OrgBuildRow) -> Result<()> {
        self.change(
            format!("insert {}", build.id),
            format!("INSERT INTO org_builds ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
        )
        .bind(&build.id)
        .bind(build.key.repo.clone())
        .bind(build.key.access)
        .bind(build.key.place.clone())
        .bind(build.phase)
        .bind(build.log.clone())
        .bind(build.started_at)
        .bind(build.updated_at)
        .bind(build.ended_at)
        .execute()
        .await
        .map(drop)
    }

    /// Writes phase, log and times of a build that has not ended.
    pub async fn update_org_build(&self, build: &OrgBuildRow) -> Result<()> {
        self.change(
            format!("update {}", build.id),
            "UPDATE org_builds SET phase = $1, log = $2, updated_at = $3, ended_at = $4
             WHERE id = $5 AND ended_at IS NULL",
        )
        .bind(build.phase)
        .bind(build.log.clone())
        .bind(build.updated_at)
        .bind(build.ended_at)
        .bind(&build.id)
        .execute()
        .await
        .map(drop)
    }

    /// The last builds of a repository, newest first, at most `limit`; `claimed`:
    /// those too that are not for everybody.
    pub async fn org_builds_of(&self, repo: &str, claimed: bool, limit: i64) -> Result<Vec<OrgBuildRow>> {
        self.sql(
            format!("read the builds of {repo}"),
            format!(
                "SELECT {COLUMNS} FROM org_builds WHERE repo = $1 AND access IN ($2, $3)
                 ORDER BY started_at DESC, id DESC LIMIT $4"
            ),
        )
        .bind(repo.to_owned())
        .bind(RepoAccess::Public)
        .bind(if claimed { RepoAccess::Claimed } else { RepoAccess::Public })
        .bind(limit)
        .all(read)
        .await
    }

    /// The last build of an org snapshot.
    pub async fn last_org_build(&self, key: &OrgSnapshotKey) -> Result<Option<OrgBuildRow>> {
        self.sql(
            format!("read the last build of {key}"),
            format!(
                "SELECT {COLUMNS} FROM org_builds WHERE repo = $1 AND access = $2 AND place = $3
                 ORDER BY started_at DESC, id DESC LIMIT 1"
            ),
        )
        .bind(key.repo.clone())
        .bind(key.access)
        .bind(key.place.clone())
        .one(read)
        .await
    }

    /// The builds at `place` that were begun before `before` and have not ended,
    /// have: whoever made them is gone.
    pub async fn end_org_builds(&self, place: &str, before: Timestamp, now: Timestamp) -> Result<u64> {
        self.change(
            "end builds that nobody makes",
            "UPDATE org_builds SET phase = $1, ended_at = $2 WHERE place = $3 AND started_at < $4
             AND ended_at IS NULL",
        )
        .bind(BuildPhase::Failed)
        .bind(now)
        .bind(place.to_owned())
        .bind(before)
        .execute()
        .await
    }

    /// Forgets builds that ended before `before`, at most `limit`; how many.
    pub async fn prune_org_builds(&self, before: Timestamp, limit: i64) -> Result<u64> {
        self.change(
            "forget builds",
            "DELETE FROM org_builds WHERE id IN
             (SELECT id FROM org_builds WHERE ended_at < $1 ORDER BY ended_at LIMIT $2)",
        )
        .bind(before)
        .bind(limit)
        .execute()
        .await
    }
}
