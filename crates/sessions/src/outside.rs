//! What is done to the sandboxes of sessions without their session, through the
//! provider API: names are kept for them, and what goes there goes from the
//! session's row.

use std::time::Duration;

use dormouse_provider::SandboxKey;
use dormouse_types::{EventReason, SandboxName, SnapshotId};

use crate::decide::Event;
use crate::error::Result;
use crate::lifecycle::put;
use crate::provision::by_itself;
use crate::{SessionError, Sessions};

/// How long a session that is being changed is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

impl Sessions {
    /// Refuses the name of a session's sandbox to whoever wants to make another
    /// under it: the session would take it for what a crash left.
    ///
    /// # Errors
    /// [`SessionError::Reserved`].
    pub async fn refuse_reserved(&self, name: &SandboxName) -> Result<()> {
        match name.session() {
            Some(id) if self.db.session(&id).await?.is_some() => Err(SessionError::Reserved(name.clone())),
            _ => Ok(()),
        }
    }

    /// Somebody deleted a sandbox, or what it would start from next: the session
    /// that it belongs to, if it does, has none any more. A session that is being
    /// changed right now finds out by itself.
    pub async fn note_gone(&self, key: &SandboxKey) -> Result<()> {
        let Some(id) = key.name.session() else { return Ok(()) };
        let Some(row) = self.db.session(&id).await? else { return Ok(()) };
        let its =
            row.sandbox_name.as_ref() == Some(&key.name) && Self::namespace(&row.account_id) == key.namespace;
        if !its {
            return Ok(());
        }
        let Ok(lock) = tokio::time::timeout(PATIENCE, self.locks.take(&id)).await else { return Ok(()) };
        let _lock = lock?;
        let Some(row) = self.db.session(&id).await? else { return Ok(()) };
        if row.sandbox_name.as_ref() != Some(&key.name) {
            return Ok(());
        }
        let forget = |row: &mut dormouse_store::SessionRow| {
            put(row, Event::Gone);
            row.sandbox_name = None;
            row.hibernate_after = None;
            row.sandbox_expires_at = None;
            row.lifecycle_error = Some("its sandbox was deleted".to_owned());
        };
        match self.change(row, Some(by_itself(EventReason::SandboxDeleted)), forget).await {
            // It was put away, or deleted, in the same moment.
            Err(SessionError::Archived | SessionError::NotFound | SessionError::Contended) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Somebody deleted a snapshot: [`Sessions::note_gone`] for the sandboxes that
    /// have nothing else to start from.
    pub async fn note_gone_snapshot(&self, id: &SnapshotId) -> Result<()> {
        for key in self.db.sandboxes_with_nothing_but(id).await? {
            self.note_gone(&SandboxKey { namespace: key.0, name: key.1 }).await?;
        }
        Ok(())
    }
}
