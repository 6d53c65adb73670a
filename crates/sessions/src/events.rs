//! The history of a session, and who waits for the next line of it.

use dormouse_store::{Cause, SessionEventRow};
use dormouse_types::{AccountId, SessionId, Timestamp};
use tokio::sync::broadcast;

use crate::Sessions;
use crate::error::Result;

/// Sessions that something happened to lately, for who is slow to hear of it.
pub(crate) const BACKLOG: usize = 256;

/// Events that are forgotten at once.
const ROUND: i64 = 1000;

impl Sessions {
    /// Events of a session of the account after the one with the number `after`,
    /// oldest first, at most `limit`.
    pub async fn events(
        &self,
        account: &AccountId,
        id: &SessionId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<SessionEventRow>> {
        self.owned(account, id).await?;
        Ok(self.db.session_events(id, after, limit).await?)
    }

    /// Forgets some of what happened before `before`; whether there may be more.
    pub async fn prune_events(&self, before: Timestamp) -> Result<bool> {
        let pruned = self.db.prune_session_events(before, ROUND).await?;
        Ok(i64::try_from(pruned).is_ok_and(|pruned| pruned == ROUND))
    }

    /// Names each session that something happens to from now on, by this server.
    /// Who hears too slowly misses some, and has to look.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<SessionId> {
        self.heard.subscribe()
    }

    /// The server goes down: nobody is to wait for what happens next.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Returns once [`Sessions::close`] was called.
    pub async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Tells those who listen.
    pub(crate) fn news(&self, id: &SessionId) {
        // Nobody need listen.
        let _ = self.heard.send(id.clone());
    }

    /// Writes down what happens to a session without a change of its row. It is
    /// for who watches: a failure is only logged.
    pub(crate) async fn tell(&self, id: &SessionId, cause: Cause) {
        match self.db.note_session_event(id, &cause, self.now()).await {
            Ok(_) => self.news(id),
            Err(error) => tracing::warn!(session = %id, %error, "write an event down"),
        }
    }
}
