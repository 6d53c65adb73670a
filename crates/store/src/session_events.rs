//! Table `session_events`: the history of each session.

use dormouse_types::{AccountId, EventReason, LifecycleState, SessionId, Timestamp};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::sql::Row;

/// Why a session changes, and who wants it: written down with the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Why.
    pub reason: EventReason,
    /// Who wants it; `None`: the server does it by itself.
    pub actor: Option<AccountId>,
    /// What else there is to say.
    pub detail: Option<String>,
    /// URL of the repository that it is about, where the row does not say so yet. Only
    /// for who delivers it.
    pub repo: Option<String>,
}

/// Something that happened to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEventRow {
    /// Its number among those of the session: greater ones came later.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Version of the session after it.
    pub version: i64,
    /// State before it.
    pub before: LifecycleState,
    /// State after it.
    pub after: LifecycleState,
    /// Why it happened.
    pub cause: Cause,
}

fn read(row: &Row) -> Result<SessionEventRow> {
    let row = row.of("session_events", "");
    Ok(SessionEventRow {
        seq: row.get("seq")?,
        at: row.get("at")?,
        version: row.get("version")?,
        before: row.get("state_before")?,
        after: row.get("state_after")?,
        cause: Cause {
            reason: row.get("reason")?,
            actor: row.get("actor")?,
            detail: row.get("detail")?,
            repo: None,
        },
    })
}

/// Adds an event, in a transaction that holds the session's row. Its number is
/// given here. What changed since the event before without being told, as a sleep
/// that is tried again does, is part of it: it begins where that one ended.
pub(crate) async fn insert(
    tx: &mut Tx,
    session: &SessionId,
    event: SessionEventRow,
) -> Result<SessionEventRow> {
    let number = tx
        .sql(
            format!("number an event of {session}"),
            "UPDATE sessions SET last_event = last_event + 1 WHERE id = $1 RETURNING last_event",
        )
        .bind(session)
        .count()
        .await?;
    let before = tx
        .sql(
        format!("insert an event of {session}"),
        "INSERT INTO session_events
         (session_id, seq, at, version, state_before, state_after, reason, actor, detail)
         VALUES ($1, $2, $3, $4,
          COALESCE((SELECT last.state_after FROM session_events last
                    WHERE last.session_id = $1 AND last.seq = $2 - 1), $5), $6, $7, $8, $9) RETURNING state_before",
    )
    .bind(session)
    .bind(number)
    .bind(event.at)
    .bind(event.version)
    .bind(event.before)
    .bind(event.after)
    .bind(event.cause.reason)
    .bind(&event.cause.actor)
    .bind(&event.cause.detail)
    .one(|row| row.of("session_events", "").get("state_before"))
    .await?;
    Ok(SessionEventRow { seq: number, before: before.unwrap_or(event.before), ..event })
}

/// Forgets the events of a session that is deleted.
pub(crate) async fn forget(tx: &mut Tx, session: &SessionId) -> Result<()> {
    tx.sql(format!("forget the events of {session}"), "DELETE FROM session_events WHERE session_id = $1")
        .bind(session)
        .execute()
        .await
        .map(drop)
}

impl Db {
    /// Events of a session after the one with the number `after`, oldest first, at
    /// most `limit`.
    pub async fn session_events(
        &self,
        session: &SessionId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<SessionEventRow>> {
        self.sql(
            format!("read events of {session}"),
            "SELECT seq, at, version, state_before, state_after, reason, actor, detail FROM session_events
             WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        )
        .bind(session)
        .bind(after)
        .bind(limit)
        .all(read)
        .await
    }

    /// Forgets events from before `before`, at most `limit`; how many.
    pub async fn prune_session_events(&self, before: Timestamp, limit: i64) -> Result<u64> {
        self.change(
            "prune events",
            "DELETE FROM session_events WHERE (session_id, seq) IN
             (SELECT session_id, seq FROM session_events WHERE at < $1 ORDER BY at LIMIT $2)",
        )
        .bind(before)
        .bind(limit)
        .execute()
        .await
    }
}
