//! What is done to the sandboxes of sessions without their session, through the
//! provider API: names are kept for them, and what goes there goes from the
//! session's row.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::{ProviderError, SandboxKey, SandboxView};
use dormouse_store::SessionRow;
use dormouse_types::{EventReason, LifecycleState, SandboxName, SnapshotId};
use tracing::Instrument as _;

use crate::decide::{Action, Event, View, decide};
use crate::error::Result;
use crate::lifecycle::put;
use crate::provision::by_itself;
use crate::{SessionError, Sessions};

/// How long a session that is being changed is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Attempts to tell a session, after the first. The next start of the server makes
/// up for those that fail.
const RETRIES: u32 = 5;

/// Sessions that are read at once.
const ROUND: i64 = 256;

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

    /// Wakes a sandbox for somebody who does not go through the session that it
    /// belongs to, if it does. The session is awake from then on too. It goes on
    /// when the caller hangs up.
    ///
    /// # Errors
    /// [`SessionError::Archived`]: that of an archived session stays asleep.
    pub async fn wake_outside(self: &Arc<Self>, key: &SandboxKey) -> Result<SandboxView> {
        let Some(row) = self.session_of(key).await? else { return Ok(self.provider.resume(key).await?) };
        self.at_hand(&row).await?;
        let (sessions, key) = (self.clone(), key.clone());
        let work = async move {
            if let Some(found) = sessions.resume_active(&row, &key).await? {
                return Ok(found);
            }
            let lock = sessions.locks.take(&row.id).await?;
            lock.hold(sessions.wake_locked(&key)).await
        };
        tokio::spawn(work.in_current_span())
            .await
            .map_err(|error| ProviderError::internal("wake a sandbox", error))?
    }

    /// Finds the sandbox of an active session running, or has it run again; its row
    /// says already what it is.
    async fn resume_active(&self, row: &SessionRow, key: &SandboxKey) -> Result<Option<SandboxView>> {
        if row.lifecycle_state != LifecycleState::Active || !self.touch(&row.id).await? {
            return Ok(None);
        }
        Ok(Some(self.provider.resume(key).await?))
    }

    /// [`Sessions::wake_outside`] by who holds the lock. Where it fails, the reconciler finds
    /// the session on its way, and stops what may run.
    async fn wake_locked(&self, key: &SandboxKey) -> Result<SandboxView> {
        let row = self.session_of(key).await?.ok_or_else(|| gone(key))?;
        if let Some(found) = self.resume_active(&row, key).await? {
            return Ok(found);
        }
        if decide(View::of(&row), Event::Provision) == Action::Refuse {
            return Err(SessionError::Archived);
        }
        let begin = |row: &mut SessionRow| put(row, Event::Provision);
        let row = self.change(row, Some(by_itself(EventReason::Used)), begin).await?;
        let found = self.provider.resume(key).await?;
        let ready = |row: &mut SessionRow| {
            put(row, Event::Ready);
            row.sandbox_expires_at = Some(found.run.expires_at());
            self.used_now(row);
        };
        self.change(row, Some(by_itself(EventReason::Ready)), ready).await?;
        Ok(found)
    }

    /// The session that a sandbox belongs to: whoever may name a sandbox may not speak
    /// for another's session.
    pub(crate) async fn session_of(&self, key: &SandboxKey) -> Result<Option<SessionRow>> {
        let Some(id) = key.name.session() else { return Ok(None) };
        Ok(self.db.session(&id).await?.filter(|row| is_its(row, key)))
    }

    /// Somebody deleted a sandbox: the session that it belongs to, if it does, has
    /// none any more. One that is being changed is told as soon as that is over; its
    /// caller waits a moment.
    pub async fn note_gone(self: &Arc<Self>, key: &SandboxKey) -> Result<()> {
        if key.name.session().is_none() {
            return Ok(());
        }
        let (sessions, key) = (self.clone(), key.clone());
        let telling = tokio::spawn(async move {
            let mut told = sessions.forget_if_gone(&key).await;
            for _ in 0..RETRIES {
                let Err(error) = &told else { break };
                tracing::warn!(sandbox = %key.name, ?error, "tell its session that a sandbox is gone");
                tokio::time::sleep(PATIENCE).await;
                told = sessions.forget_if_gone(&key).await;
            }
            told
        });
        match tokio::time::timeout(PATIENCE, telling).await {
            Ok(told) => told.map_err(|error| ProviderError::internal("tell a session", error))?,
            Err(_) => Ok(()),
        }
    }

    async fn forget_if_gone(&self, key: &SandboxKey) -> Result<()> {
        let gone = async {
            // By now there may be another one of this name.
            match self.provider.get(key).await {
                Err(ProviderError::NotFound(_)) => Ok(true),
                Ok(_) => Ok(false),
                Err(error) => Err(error.into()),
            }
        };
        self.forget_if(key, gone).await
    }

    /// Tells the sessions of this host whose sandboxes were deleted while nobody
    /// could tell them: a server died in between.
    pub(crate) async fn forget_the_lost(&self) -> Result<()> {
        let Some(host) = &self.host else { return Ok(()) };
        let mut after = None;
        loop {
            let rows = self.db.sessions_without_their_sandbox(host, after.as_ref(), ROUND).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.id.clone());
            for row in rows {
                self.forget_if_gone(&Self::key(&row, &SandboxName::for_session(&row.id))).await?;
            }
        }
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
            let told = tokio::time::timeout(PATIENCE, self.forget_if(&key, still)).await;
            // One that is being changed finds out by itself: it starts, or cannot.
            told.unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// Takes a sandbox from its session's row, if `gone` says so while nobody
    /// changes the session.
    async fn forget_if(&self, key: &SandboxKey, gone: impl Future<Output = Result<bool>>) -> Result<()> {
        let Some(row) = self.session_of(key).await? else { return Ok(()) };
        let lock = self.locks.take(&row.id).await?;
        let Some(row) = self.session_of(key).await? else { return Ok(()) };
        if !lock.hold(gone).await? {
            return Ok(());
        }
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

fn gone(key: &SandboxKey) -> ProviderError {
    ProviderError::NotFound(format!("sandbox {}", key.name))
}

/// Whether a session's sandbox is this one.
pub(crate) fn is_its(row: &SessionRow, key: &SandboxKey) -> bool {
    row.sandbox_name.as_ref() == Some(&key.name) && Sessions::namespace(&row.account_id) == key.namespace
}

/// Its sandbox is gone.
pub(crate) fn forget(row: &mut SessionRow) {
    put(row, Event::Gone);
    row.sandbox_name = None;
    row.hibernate_after = None;
    row.sandbox_expires_at = None;
    row.lifecycle_error = Some("its sandbox was deleted".to_owned());
}
