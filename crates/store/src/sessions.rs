//! Table `sessions`. Every change names the version that it read and bumps it:
//! a write based on a stale read changes nothing (invariant 6).

use dormouse_types::{AccountId, SandboxName, SessionId, Timestamp};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::db::{Db, StoreError, Tx, commit, typed};

/// One agent session.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub account_id: AccountId,
    /// For people.
    pub title: String,
    /// `running`, `completed`, `failed` or `archived`.
    pub status: String,
    /// Public URL of its repository.
    pub clone_url: Option<String>,
    /// Branch that was checked out.
    pub branch: Option<String>,
    /// Its sandbox, once one was ready.
    pub sandbox_name: Option<SandboxName>,
    /// Lifecycle word.
    pub lifecycle_state: Option<String>,
    /// Grows with every change.
    pub lifecycle_version: i64,
    /// Why the lifecycle failed.
    pub lifecycle_error: Option<String>,
    /// Last use of the sandbox.
    pub last_activity_at: Option<Timestamp>,
    /// When it will be put to sleep.
    pub hibernate_after: Option<Timestamp>,
    /// When its hard lifetime ends.
    pub sandbox_expires_at: Option<Timestamp>,
    /// For people.
    pub lines_added: Option<i64>,
    /// For people.
    pub lines_removed: Option<i64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Which sessions a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionFilter {
    /// All.
    All,
    /// Those that are not archived.
    Active,
    /// Those that are.
    Archived,
}

const COLUMNS: &str = "id, account_id, title, status, clone_url, branch, sandbox_name, lifecycle_state,
    lifecycle_version, lifecycle_error, last_activity_at, hibernate_after, sandbox_expires_at,
    lines_added, lines_removed, created_at, updated_at";

fn row(raw: &SqliteRow) -> crate::Result<SessionRow> {
    let read = || -> Result<_, sqlx::Error> {
        Ok((
            raw.try_get::<String, _>("id")?,
            raw.try_get::<String, _>("account_id")?,
            raw.try_get::<Option<String>, _>("sandbox_name")?,
            SessionRow {
                id: SessionId::generate(),
                account_id: AccountId::generate(),
                title: raw.try_get("title")?,
                status: raw.try_get("status")?,
                clone_url: raw.try_get("clone_url")?,
                branch: raw.try_get("branch")?,
                sandbox_name: None,
                lifecycle_state: raw.try_get("lifecycle_state")?,
                lifecycle_version: raw.try_get("lifecycle_version")?,
                lifecycle_error: raw.try_get("lifecycle_error")?,
                last_activity_at: raw.try_get::<Option<i64>, _>("last_activity_at")?.map(Timestamp),
                hibernate_after: raw.try_get::<Option<i64>, _>("hibernate_after")?.map(Timestamp),
                sandbox_expires_at: raw.try_get::<Option<i64>, _>("sandbox_expires_at")?.map(Timestamp),
                lines_added: raw.try_get("lines_added")?,
                lines_removed: raw.try_get("lines_removed")?,
                created_at: Timestamp(raw.try_get("created_at")?),
                updated_at: Timestamp(raw.try_get("updated_at")?),
            },
        ))
    };
    let (id, account_id, name, session) = read().map_err(StoreError::database("read session row"))?;
    Ok(SessionRow {
        id: typed(&id, "sessions", "id")?,
        account_id: typed(&account_id, "sessions", "account_id")?,
        sandbox_name: name.map(|name| typed(&name, "sessions", "sandbox_name")).transpose()?,
        ..session
    })
}

impl Db {
    /// Adds a session.
    pub async fn insert_session(&self, s: &SessionRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO sessions (id, account_id, title, status, clone_url, branch, sandbox_name,
             lifecycle_state, lifecycle_version, lifecycle_error, last_activity_at, hibernate_after,
             sandbox_expires_at, lines_added, lines_removed, created_at, updated_at)
             VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17)",
        )
        .bind(s.id.as_str())
        .bind(s.account_id.as_str())
        .bind(&s.title)
        .bind(&s.status)
        .bind(&s.clone_url)
        .bind(&s.branch)
        .bind(s.sandbox_name.as_ref().map(SandboxName::as_str))
        .bind(&s.lifecycle_state)
        .bind(s.lifecycle_version)
        .bind(&s.lifecycle_error)
        .bind(s.last_activity_at.map(|t| t.0))
        .bind(s.hibernate_after.map(|t| t.0))
        .bind(s.sandbox_expires_at.map(|t| t.0))
        .bind(s.lines_added)
        .bind(s.lines_removed)
        .bind(s.created_at.0)
        .bind(s.updated_at.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::unique("insert session", format!("session {}", s.id)))?;
        commit(tx, "insert session").await
    }

    /// The session with this id.
    pub async fn session(&self, id: &SessionId) -> crate::Result<Option<SessionRow>> {
        by_id(&self.readers, id).await
    }

    /// Sessions of an account, newest first.
    pub async fn sessions_of(
        &self,
        account: &AccountId,
        filter: SessionFilter,
        limit: i64,
        offset: i64,
    ) -> crate::Result<Vec<SessionRow>> {
        let condition = match filter {
            SessionFilter::All => "",
            SessionFilter::Active => "AND status <> 'archived'",
            SessionFilter::Archived => "AND status = 'archived'",
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM sessions WHERE account_id = $1 {condition}
             ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.as_str())
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database(format!("list sessions of {account}")))?
            .iter()
            .map(row)
            .collect()
    }

    /// Number of archived sessions of an account.
    pub async fn archived_sessions_of(&self, account: &AccountId) -> crate::Result<i64> {
        let (count,): (i64,) =
            sqlx::query_as("SELECT COUNT(*) FROM sessions WHERE account_id = $1 AND status = 'archived'")
                .bind(account.as_str())
                .fetch_one(&self.readers)
                .await
                .map_err(StoreError::database(format!("count sessions of {account}")))?;
        Ok(count)
    }

    /// Sessions whose lifecycle wants attention at `now`: active ones past
    /// their deadline, longest overdue first, and ones in the middle of a change,
    /// which a crash may have left so, oldest first; at most `limit` of each.
    pub async fn sessions_due(&self, now: Timestamp, limit: i64) -> crate::Result<Vec<SessionRow>> {
        let overdue = format!(
            "SELECT {COLUMNS} FROM sessions
             WHERE lifecycle_state = 'active' AND (hibernate_after <= $1 OR sandbox_expires_at <= $1)
             ORDER BY hibernate_after LIMIT $2"
        );
        let unfinished = format!(
            "SELECT {COLUMNS} FROM sessions WHERE lifecycle_state IN ('hibernating', 'restoring')
             ORDER BY updated_at LIMIT $1"
        );
        let overdue = sqlx::query(sqlx::AssertSqlSafe(overdue)).bind(now.0).bind(limit);
        let unfinished = sqlx::query(sqlx::AssertSqlSafe(unfinished)).bind(limit);
        let mut due = Vec::new();
        for query in [overdue, unfinished] {
            let rows = query.fetch_all(&self.readers).await;
            let rows = rows.map_err(StoreError::database("read due sessions"))?;
            due.extend(rows.iter().map(row).collect::<crate::Result<Vec<_>>>()?);
        }
        Ok(due)
    }

    /// Writes `change` over the version that it carries and bumps the version.
    /// `None` when the row has changed since: read again and decide anew.
    pub async fn update_session(&self, change: &SessionRow) -> crate::Result<Option<SessionRow>> {
        let mut tx = self.write().await?;
        let written = write_over(&mut tx, change).await?;
        if written.is_some() {
            commit(tx, "update session").await?;
        }
        Ok(written)
    }

    /// Changes a session, whoever else writes: nobody does between the read and
    /// the write. `None` where there is none, or `change` answers `false`, which
    /// leaves it as it is.
    pub async fn change_session(
        &self,
        id: &SessionId,
        change: impl FnOnce(&mut SessionRow) -> bool,
    ) -> crate::Result<Option<SessionRow>> {
        let mut tx = self.write().await?;
        let Some(mut session) = by_id(&mut *tx, id).await? else { return Ok(None) };
        if !change(&mut session) {
            return Ok(None);
        }
        let written = write_over(&mut tx, &session).await?;
        commit(tx, "change session").await?;
        Ok(written)
    }

    /// Moves the idle deadline of an active session. `false` when it is not
    /// active. Bumps the version, so that a decision to put the session to
    /// sleep that was taken on an older read fails.
    pub async fn touch_session(
        &self,
        id: &SessionId,
        now: Timestamp,
        hibernate_after: Timestamp,
    ) -> crate::Result<bool> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE sessions SET last_activity_at = $1, hibernate_after = $2,
             lifecycle_version = lifecycle_version + 1
             WHERE id = $3 AND lifecycle_state = 'active'",
        )
        .bind(now.0)
        .bind(hibernate_after.0)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database(format!("touch session {id}")))?;
        commit(tx, "touch session").await?;
        Ok(done.rows_affected() > 0)
    }

    /// Forgets a session.
    pub async fn delete_session(&self, id: &SessionId) -> crate::Result<bool> {
        let mut tx = self.write().await?;
        let done = sqlx::query("DELETE FROM sessions WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database(format!("delete session {id}")))?;
        commit(tx, "delete session").await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Writes a row over the version that it carries, unless that is gone.
async fn write_over(tx: &mut Tx<'_>, change: &SessionRow) -> crate::Result<Option<SessionRow>> {
    let done = sqlx::query(
        "UPDATE sessions SET title = $1, status = $2, clone_url = $3, branch = $4,
         sandbox_name = $5, lifecycle_state = $6, lifecycle_version = lifecycle_version + 1,
         lifecycle_error = $7, last_activity_at = $8, hibernate_after = $9,
         sandbox_expires_at = $10, lines_added = $11, lines_removed = $12, updated_at = $13
         WHERE id = $14 AND lifecycle_version = $15",
    )
    .bind(&change.title)
    .bind(&change.status)
    .bind(&change.clone_url)
    .bind(&change.branch)
    .bind(change.sandbox_name.as_ref().map(SandboxName::as_str))
    .bind(&change.lifecycle_state)
    .bind(&change.lifecycle_error)
    .bind(change.last_activity_at.map(|t| t.0))
    .bind(change.hibernate_after.map(|t| t.0))
    .bind(change.sandbox_expires_at.map(|t| t.0))
    .bind(change.lines_added)
    .bind(change.lines_removed)
    .bind(change.updated_at.0)
    .bind(change.id.as_str())
    .bind(change.lifecycle_version)
    .execute(&mut **tx)
    .await
    .map_err(StoreError::database(format!("update session {}", change.id)))?;
    Ok((done.rows_affected() > 0)
        .then(|| SessionRow { lifecycle_version: change.lifecycle_version + 1, ..change.clone() }))
}

async fn by_id(on: impl sqlx::SqliteExecutor<'_>, id: &SessionId) -> crate::Result<Option<SessionRow>> {
    let sql = format!("SELECT {COLUMNS} FROM sessions WHERE id = $1");
    let found = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(on).await;
    found.map_err(StoreError::database(format!("read session {id}")))?.as_ref().map(row).transpose()
}
