//! Table `sessions`. Every change names the version that it read and bumps it:
//! a write based on a stale read changes nothing (invariant 6).

use dormouse_types::{
    AccountId, DEFAULT_PROJECT, HostId, LifecycleState, OrgId, SandboxName, SessionId, SessionStatus,
    Timestamp,
};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::session_events::{self, Cause, SessionEventRow};
use crate::sql::{Row, placeholders};
use crate::webhooks;

/// One agent session.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub account_id: AccountId,
    /// Shown to users; never interpreted.
    pub title: String,
    /// What its owner says of it.
    pub status: SessionStatus,
    /// Public URL of its repository.
    pub clone_url: Option<String>,
    /// Branch that was checked out.
    pub branch: Option<String>,
    /// Organization that it is for; never changes.
    pub organization: Option<OrgId>,
    /// Branch that its first checkout is to be on; never changes.
    pub wanted_branch: Option<String>,
    /// That branch is to be made; never changes.
    pub is_new_branch: bool,
    /// Its sandbox, once one was ready.
    pub sandbox_name: Option<SandboxName>,
    /// Where that lives; `None`: every server can deal with it.
    pub host_id: Option<HostId>,
    /// State of its sandbox.
    pub lifecycle_state: LifecycleState,
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
    /// Shown to users; never interpreted.
    pub lines_added: Option<i64>,
    /// Shown to users; never interpreted.
    pub lines_removed: Option<i64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Since when its owner wants it gone. Only [`Db::mark_session_deleted`] writes
    /// it.
    pub deleted_at: Option<Timestamp>,
}

impl SessionRow {
    /// One that nobody has used yet.
    #[must_use]
    pub fn new(account_id: AccountId, title: String, now: Timestamp) -> Self {
        Self {
            id: SessionId::generate(),
            account_id,
            title,
            status: SessionStatus::Running,
            clone_url: None,
            branch: None,
            organization: None,
            wanted_branch: None,
            is_new_branch: false,
            sandbox_name: None,
            host_id: None,
            lifecycle_state: LifecycleState::Provisioning,
            lifecycle_version: 0,
            lifecycle_error: None,
            last_activity_at: None,
            hibernate_after: None,
            sandbox_expires_at: None,
            lines_added: None,
            lines_removed: None,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        }
    }

    /// When it is put to sleep, if nobody uses it. Of one that failed the same column
    /// says when it is looked at again.
    #[must_use]
    pub fn sleeps_at(&self) -> Option<Timestamp> {
        self.hibernate_after.filter(|_| self.lifecycle_state != LifecycleState::Failed)
    }

    /// When its lifecycle wants attention.
    fn due_at(&self) -> Option<Timestamp> {
        [self.hibernate_after, self.sandbox_expires_at].into_iter().flatten().min()
    }
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

const COLUMNS: &str = "id, account_id, title, status, clone_url, branch, sandbox_name, host_id,
    lifecycle_state, lifecycle_version, lifecycle_error, last_activity_at, hibernate_after, sandbox_expires_at,
    lines_added, lines_removed, created_at, updated_at, deleted_at, organization_id, wanted_branch,
    is_new_branch";

fn read(row: &Row) -> Result<SessionRow> {
    let row = row.of("sessions", "");
    Ok(SessionRow {
        id: row.get("id")?,
        account_id: row.get("account_id")?,
        title: row.get("title")?,
        status: row.get("status")?,
        clone_url: row.get("clone_url")?,
        branch: row.get("branch")?,
        organization: row.get("organization_id")?,
        wanted_branch: row.get("wanted_branch")?,
        is_new_branch: row.get("is_new_branch")?,
        sandbox_name: row.get("sandbox_name")?,
        host_id: match row.get::<String>("host_id")? {
            any if any.is_empty() => None,
            host => Some(host.parse().map_err(|_| row.corrupt("host_id"))?),
        },
        lifecycle_state: row.get("lifecycle_state")?,
        lifecycle_version: row.get("lifecycle_version")?,
        lifecycle_error: row.get("lifecycle_error")?,
        last_activity_at: row.get("last_activity_at")?,
        hibernate_after: row.get("hibernate_after")?,
        sandbox_expires_at: row.get("sandbox_expires_at")?,
        lines_added: row.get("lines_added")?,
        lines_removed: row.get("lines_removed")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        deleted_at: row.get("deleted_at")?,
    })
}

impl Db {
    /// Adds a session.
    pub async fn insert_session(&self, s: &SessionRow) -> Result<()> {
        self.change(
            format!("insert session {}", s.id),
            format!("INSERT INTO sessions ({COLUMNS}, due_at) VALUES ({})", placeholders(23)),
        )
        .bind(&s.id)
        .bind(&s.account_id)
        .bind(&s.title)
        .bind(s.status)
        .bind(&s.clone_url)
        .bind(&s.branch)
        .bind(&s.sandbox_name)
        .bind(host_column(s.host_id.as_ref()))
        .bind(s.lifecycle_state)
        .bind(s.lifecycle_version)
        .bind(&s.lifecycle_error)
        .bind(s.last_activity_at)
        .bind(s.hibernate_after)
        .bind(s.sandbox_expires_at)
        .bind(s.lines_added)
        .bind(s.lines_removed)
        .bind(s.created_at)
        .bind(s.updated_at)
        .bind(s.deleted_at)
        .bind(&s.organization)
        .bind(&s.wanted_branch)
        .bind(s.is_new_branch)
        .bind(s.due_at())
        .execute()
        .await
        .map_err(|error| error.unique(format!("session {}", s.id)))
        .map(drop)
    }

    /// The session with this id.
    pub async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>> {
        let text = format!("SELECT {COLUMNS} FROM sessions WHERE id = $1");
        self.sql(format!("read session {id}"), text).bind(id).one(read).await
    }

    /// Sessions of an account, newest first.
    pub async fn sessions_of(
        &self,
        account: &AccountId,
        filter: SessionFilter,
        limit: i64,
        offset: i64,
    ) -> Result<Vec<SessionRow>> {
        let condition = match filter {
            SessionFilter::All => "",
            SessionFilter::Active => "AND status <> 'archived'",
            SessionFilter::Archived => "AND status = 'archived'",
        };
        let text = format!(
            "SELECT {COLUMNS} FROM sessions WHERE account_id = $1 AND deleted_at IS NULL {condition}
             ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3"
        );
        self.sql(format!("list sessions of {account}"), text)
            .bind(account)
            .bind(limit)
            .bind(offset)
            .all(read)
            .await
    }

    /// Number of archived sessions of an account.
    pub async fn archived_sessions_of(&self, account: &AccountId) -> Result<i64> {
        self.sql(
            format!("count sessions of {account}"),
            "SELECT COUNT(*) FROM sessions WHERE account_id = $1 AND status = 'archived'
               AND deleted_at IS NULL",
        )
        .bind(account)
        .count()
        .await
    }

    /// Sessions of a host whose lifecycle wants attention at `now`: active ones past
    /// their deadline, longest overdue first, ones in the middle of a change, which
    /// a crash may have left so, oldest first, and ones on their way out or into the
    /// archive; at most `limit` of each. All are found by index.
    pub async fn sessions_due(
        &self,
        host: Option<&HostId>,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<SessionRow>> {
        let overdue = format!(
            "SELECT {COLUMNS} FROM sessions WHERE lifecycle_state IN ('active', 'failed') AND host_id = $1
               AND due_at <= $2 ORDER BY due_at LIMIT $3"
        );
        let overdue = self.sql("read overdue sessions", overdue);
        let overdue = overdue.bind(host_column(host)).bind(now).bind(limit);
        let mut due = overdue.all(read).await?;
        let unfinished = format!(
            "SELECT {COLUMNS} FROM sessions WHERE lifecycle_state IN ('hibernating', 'restoring')
               AND host_id = $1 ORDER BY updated_at LIMIT $2"
        );
        let unfinished = self.sql("read unfinished sessions", unfinished);
        due.extend(unfinished.bind(host_column(host)).bind(limit).all(read).await?);
        // Those without a host never had a sandbox: whoever comes first.
        let leaving = format!(
            "SELECT {COLUMNS} FROM sessions
             WHERE (deleted_at IS NOT NULL OR (status = 'archived' AND lifecycle_state <> 'archived'))
               AND host_id IN ($1, '') LIMIT $2"
        );
        let leaving = self.sql("read leaving sessions", leaving);
        due.extend(leaving.bind(host_column(host)).bind(limit).all(read).await?);
        Ok(due)
    }

    /// Sessions with a sandbox that runs on a host, after the one with the id `after`,
    /// at most `limit`.
    pub async fn active_sessions(
        &self,
        host: Option<&HostId>,
        after: Option<&SessionId>,
        limit: i64,
    ) -> Result<Vec<SessionRow>> {
        let text = format!(
            "SELECT {COLUMNS} FROM sessions WHERE lifecycle_state = 'active' AND host_id = $1 AND id > $2
             ORDER BY id LIMIT $3"
        );
        let after = after.map(SessionId::as_str).unwrap_or_default().to_owned();
        self.sql("read active sessions", text).bind(host_column(host)).bind(after).bind(limit).all(read).await
    }

    /// Sessions of a host that have a sandbox which is not in this database, after
    /// the one with the id `after`, at most `limit`. It looks at every session.
    pub async fn sessions_without_their_sandbox(
        &self,
        host: &HostId,
        after: Option<&SessionId>,
        limit: i64,
    ) -> Result<Vec<SessionRow>> {
        let columns = COLUMNS.split(',').map(|column| format!("sessions.{}", column.trim()));
        let columns = columns.collect::<Vec<_>>().join(", ");
        let text = format!(
            "SELECT {columns} FROM sessions LEFT JOIN sandboxes ON sandboxes.owner = sessions.account_id
               AND sandboxes.project = $1 AND sandboxes.name = sessions.sandbox_name
             WHERE sessions.sandbox_name IS NOT NULL AND sandboxes.id IS NULL AND sessions.host_id = $2
               AND sessions.id > $3 ORDER BY sessions.id LIMIT $4"
        );
        self.sql("read sessions without their sandbox", text)
            .bind(DEFAULT_PROJECT)
            .bind(host)
            .bind(after.map(ToString::to_string).unwrap_or_default())
            .bind(limit)
            .all(read)
            .await
    }

    /// Writes `change` over the version that it carries and bumps the version.
    /// `None` when the row has changed since: read again and decide anew. With a
    /// cause it is an event of the session.
    pub async fn update_session(
        &self,
        change: &SessionRow,
        cause: Option<&Cause>,
    ) -> Result<Option<SessionRow>> {
        let mut tx = self.write().await?;
        let before = match cause {
            Some(_) => lock(&mut tx, &change.id).await?.map(|row| row.lifecycle_state),
            None => None,
        };
        let written = write_over(&mut tx, change).await?;
        if let (Some(written), Some(before), Some(cause)) = (&written, before, cause) {
            tell(&mut tx, written, before, cause).await?;
        }
        if written.is_some() {
            tx.commit("update session").await?;
        }
        Ok(written)
    }

    /// Something happened to a session that changes nothing of its row. `false`:
    /// there is none.
    pub async fn note_session_event(&self, id: &SessionId, cause: &Cause, now: Timestamp) -> Result<bool> {
        let mut tx = self.write().await?;
        let Some(row) = lock(&mut tx, id).await? else { return Ok(false) };
        let state = row.lifecycle_state;
        tell(&mut tx, &SessionRow { updated_at: now, ..row }, state, cause).await?;
        tx.commit("note session event").await?;
        Ok(true)
    }

    /// Changes a session, whoever else writes: nobody does between the read and
    /// the write. `None` where there is none, or `change` answers `false`, which
    /// leaves it as it is. With a cause it is an event of the session.
    pub async fn change_session(
        &self,
        id: &SessionId,
        cause: Option<&Cause>,
        change: impl FnOnce(&mut SessionRow) -> bool,
    ) -> Result<Option<SessionRow>> {
        let mut tx = self.write().await?;
        let Some(mut session) = lock(&mut tx, id).await? else { return Ok(None) };
        let before = session.lifecycle_state;
        if !change(&mut session) {
            return Ok(None);
        }
        let written = write_over(&mut tx, &session).await?;
        if let (Some(written), Some(cause)) = (&written, cause) {
            tell(&mut tx, written, before, cause).await?;
        }
        tx.commit("change session").await?;
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
    ) -> Result<bool> {
        let touched = self
            .change(
                format!("touch session {id}"),
                "UPDATE sessions SET last_activity_at = $1, hibernate_after = $2,
                 due_at = CASE WHEN sandbox_expires_at < $2 THEN sandbox_expires_at ELSE $2 END,
                 lifecycle_version = lifecycle_version + 1
                 WHERE id = $3 AND lifecycle_state = 'active'",
            )
            .bind(now)
            .bind(hibernate_after)
            .bind(id)
            .execute()
            .await?;
        Ok(touched > 0)
    }

    /// Its owner wants a session gone: from now on only those who carry that out
    /// see it.
    pub async fn mark_session_deleted(&self, id: &SessionId, now: Timestamp) -> Result<()> {
        self.change(
            format!("mark session {id} deleted"),
            "UPDATE sessions SET deleted_at = $1, lifecycle_version = lifecycle_version + 1
             WHERE id = $2 AND deleted_at IS NULL",
        )
        .bind(now)
        .bind(id)
        .execute()
        .await
        .map(drop)
    }

    /// Forgets a session, with its history.
    pub async fn delete_session(&self, id: &SessionId) -> Result<bool> {
        let mut tx = self.write().await?;
        let deleted = tx
            .sql(format!("delete session {id}"), "DELETE FROM sessions WHERE id = $1")
            .bind(id)
            .execute()
            .await?;
        session_events::forget(&mut tx, id).await?;
        tx.commit("delete session").await?;
        Ok(deleted > 0)
    }
}

/// A session that nobody else changes before the transaction is over.
async fn lock(tx: &mut Tx, id: &SessionId) -> Result<Option<SessionRow>> {
    let text = format!("SELECT {COLUMNS} FROM sessions WHERE id = $1{}", tx.locking());
    tx.sql(format!("lock session {id}"), text).bind(id).one(read).await
}

/// Writes an event of a session down, which is `row` after it.
async fn tell(tx: &mut Tx, row: &SessionRow, before: LifecycleState, cause: &Cause) -> Result<()> {
    let event = SessionEventRow {
        seq: 0,
        at: row.updated_at,
        version: row.lifecycle_version,
        before,
        after: row.lifecycle_state,
        cause: cause.clone(),
    };
    let event = session_events::insert(tx, &row.id, event).await?;
    let repo = row.clone_url.as_deref().or(cause.repo.as_deref());
    webhooks::deliver(tx, &row.id, &row.account_id, repo, &event).await
}

/// Writes a row over the version that it carries, unless that is gone.
async fn write_over(tx: &mut Tx, change: &SessionRow) -> Result<Option<SessionRow>> {
    let written = tx
        .sql(
            format!("update session {}", change.id),
            "UPDATE sessions SET title = $1, status = $2, clone_url = $3, branch = $4,
             sandbox_name = $5, lifecycle_state = $6, lifecycle_version = lifecycle_version + 1,
             lifecycle_error = $7, last_activity_at = $8, hibernate_after = $9,
             sandbox_expires_at = $10, due_at = $11, lines_added = $12, lines_removed = $13,
             updated_at = $14, host_id = $15 WHERE id = $16 AND lifecycle_version = $17",
        )
        .bind(&change.title)
        .bind(change.status)
        .bind(&change.clone_url)
        .bind(&change.branch)
        .bind(&change.sandbox_name)
        .bind(change.lifecycle_state)
        .bind(&change.lifecycle_error)
        .bind(change.last_activity_at)
        .bind(change.hibernate_after)
        .bind(change.sandbox_expires_at)
        .bind(change.due_at())
        .bind(change.lines_added)
        .bind(change.lines_removed)
        .bind(change.updated_at)
        .bind(host_column(change.host_id.as_ref()))
        .bind(&change.id)
        .bind(change.lifecycle_version)
        .execute()
        .await?;
    Ok((written > 0)
        .then(|| SessionRow { lifecycle_version: change.lifecycle_version + 1, ..change.clone() }))
}

fn host_column(host: Option<&HostId>) -> String {
    host.map_or(String::new(), HostId::to_string)
}
