//! What is done to the sandboxes of sessions without their session, through the
//! provider API: names are kept for them, and what goes there goes from the
//! session's row.

use std::time::Duration;

use dormouse_provider::{ProviderError, SandboxKey};
use dormouse_store::SessionRow;
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

    /// Somebody deleted a sandbox: the session that it belongs to, if it does, has
    /// none any more. A session that is being changed right now finds out by itself.
    pub async fn note_gone(&self, key: &SandboxKey) -> Result<()> {
        self.forget_if(key, async {
            // By now there may be another one of this name.
            match self.provider.get(key).await {
                Err(ProviderError::NotFound(_)) => Ok(true),
                Ok(_) | Err(_) => Ok(false),
            }
        })
        .await
    }

    /// Somebody deleted a snapshot: [`Sessions::note_gone`] for the sandboxes that
    /// have nothing else to start from.
    pub async fn note_gone_snapshot(&self, id: &SnapshotId) -> Result<()> {
        for (namespace, name) in self.db.sandboxes_with_nothing_but(id).await? {
            let key = SandboxKey { namespace, name };
            let still = async {
                let all = self.db.sandboxes_with_nothing_but(id).await?;
                Ok(all.iter().any(|(namespace, name)| (namespace, name) == (&key.namespace, &key.name)))
            };
            self.forget_if(&key, still).await?;
        }
        Ok(())
    }

    /// Takes a sandbox from its session's row, if `gone` says so while nobody
    /// changes the session.
    async fn forget_if(&self, key: &SandboxKey, gone: impl Future<Output = Result<bool>>) -> Result<()> {
        let Some(id) = key.name.session() else { return Ok(()) };
        let its = |row: &SessionRow| {
            row.sandbox_name.as_ref() == Some(&key.name) && Self::namespace(&row.account_id) == key.namespace
        };
        if !self.db.session(&id).await?.is_some_and(|row| its(&row)) {
            return Ok(());
        }
        let Ok(lock) = tokio::time::timeout(PATIENCE, self.locks.take(&id)).await else { return Ok(()) };
        let _lock = lock?;
        let Some(row) = self.db.session(&id).await?.filter(its) else { return Ok(()) };
        if !gone.await? {
            return Ok(());
        }
        let forget = |row: &mut SessionRow| {
            put(row, Event::Gone);
            row.sandbox_name = None;
            row.hibernate_after = None;
            row.sandbox_expires_at = None;
            row.lifecycle_error = Some("its sandbox was deleted".to_owned());
        };
        match self.change(row, Some(by_itself(EventReason::SandboxDeleted)), forget).await {
            // It was put away, or deleted, in the same moment.
            Err(
                SessionError::Archived
                | SessionError::CalledOff
                | SessionError::NotFound
                | SessionError::Contended,
            )
            | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
