//! The reconciler that puts to sleep what nobody uses, and sleep itself.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::{ProviderError, RunRef, RunStatus, SandboxKey, SandboxView, StopReason};
use dormouse_store::{Cause, SessionRow};
use dormouse_types::{AccountId, EventReason, SandboxName, Timestamp};
use futures::{StreamExt as _, stream};

use crate::decide::{Action, Due, Event, View, decide};
use crate::error::Result;
use crate::outside::forget;
use crate::provision::by_itself;
use crate::{LifecycleState, SessionError, Sessions};

/// How often the reconciler looks without being told to.
const PERIOD: Duration = Duration::from_secs(2);

/// Sessions of a kind that one round deals with.
const ROUND: i64 = 64;

/// Of these, so many at once: a stop may take as long as its processes are
/// given, and a look at what runs takes [`WATCH`].
const AT_ONCE: usize = 32;

/// How long a sandbox whose commands nobody waits for is watched before it sleeps.
const WATCH: Duration = Duration::from_secs(2);

/// Commands that use this part of a processor are at work.
const WORKS: u32 = 100;

/// What failed is tried again after this time.
pub(crate) const HEAL: Duration = Duration::from_secs(30);

impl Sessions {
    /// Runs the reconciler for ever.
    pub async fn run_lifecycle(self: Arc<Self>) {
        let lost = async {
            while let Err(error) = self.forget_the_lost().await {
                tracing::error!(?error, "look for sessions whose sandboxes are gone");
                tokio::time::sleep(HEAL).await;
            }
        };
        let wake = self.wake.clone();
        let reconcile = dormouse_jobs::reconcile(PERIOD, wake, || {
            let sessions = self.clone();
            async move { sessions.reconcile_once().await }
        });
        tokio::join!(biased; lost, reconcile);
    }

    /// Deals with everything that is due now.
    pub async fn reconcile_once(&self) {
        let due = match self.db.sessions_due(self.host.as_ref(), self.now(), ROUND).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, "read due sessions");
                return;
            }
        };
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |row| async move {
                let session = row.id.clone();
                if let Err(error) = self.settle(row).await {
                    tracing::warn!(%session, ?error, "put to sleep");
                }
            })
            .await;
    }

    /// Brings one due session to where it belongs.
    async fn settle(&self, seen: SessionRow) -> Result<()> {
        // Somebody is at it, perhaps for as long as a clone takes: nobody else's
        // sleep waits for that.
        let Some(lock) = self.locks.try_take(&seen.id).await? else { return Ok(()) };
        lock.hold(self.settle_locked(seen)).await
    }

    /// [`Sessions::settle`] by who holds the lock.
    async fn settle_locked(&self, seen: SessionRow) -> Result<()> {
        // What was read before the lock was taken may be past.
        let Some(row) = self.db.session(&seen.id).await? else { return Ok(()) };
        if row.lifecycle_version != seen.lifecycle_version {
            return Ok(());
        }
        let (view, now) = (View::of(&row), Due::of(&row, self.now()));
        let mut action = decide(view, Event::Look { now, busy: None });
        if action == Action::Ask {
            action = decide(view, Event::Look { now, busy: Some(self.is_busy(&row).await) });
        }
        match action {
            Action::Hibernate(StopReason::Lifetime) => match self.later_end(&row).await? {
                Some(end) => self.change(row, None, |row| row.sandbox_expires_at = Some(end)).await.map(drop),
                None => self.hibernate(row, StopReason::Lifetime, None).await.map(drop),
            },
            Action::Hibernate(reason) => self.hibernate(row, reason, None).await.map(drop),
            Action::Touch => self.touch(&row.id).await.map(drop),
            Action::Archive => self.put_away(row, None).await.map(drop),
            Action::Delete => self.take_away(&row).await,
            Action::DiscardAndPut(state) => {
                // Whoever was cut off, and has lost the lock, does not bind it now. After
                // another crash this is the state that discards.
                let why = Some("the server ended while the sandbox was made".to_owned());
                let cause = Cause { detail: why.clone(), ..by_itself(EventReason::Failed) };
                let row = SessionRow {
                    lifecycle_state: LifecycleState::Failed,
                    lifecycle_error: why,
                    hibernate_after: Some(self.now()),
                    ..row
                };
                let row = self.write(row, Some(&cause)).await?;
                self.delete_sandbox(&Self::key(&row, &SandboxName::for_session(&row.id))).await?;
                let row = SessionRow {
                    lifecycle_state: state,
                    lifecycle_error: None,
                    hibernate_after: None,
                    ..row
                };
                self.write(row, Some(&by_itself(EventReason::Recovered))).await.map(drop)
            }
            Action::Discard => {
                let left = self.delete_sandbox(&Self::key(&row, &SandboxName::for_session(&row.id))).await;
                let again = left.is_err().then(|| self.now().plus(HEAL));
                self.write(SessionRow { hibernate_after: again, ..row }, None).await?;
                Ok(left?)
            }
            Action::Put(_) | Action::Nothing | Action::Ask | Action::Refuse => Ok(()),
        }
    }

    /// When the lifetime of the session's run ends, if that is later than its row
    /// says: the run was extended, or is another one, without the session.
    async fn later_end(&self, row: &SessionRow) -> Result<Option<Timestamp>> {
        let running = self.sandbox_of(row).await?.filter(|found| found.run.status == RunStatus::Running);
        Ok(running.map(|found| found.run.expires_at()).filter(|end| *end > self.now()))
    }

    /// Whether a command runs and uses a processor: that defers sleep. So does a
    /// provider that cannot tell. A command that somebody waits for is use of the
    /// session anyway, by who waits.
    async fn is_busy(&self, row: &SessionRow) -> bool {
        match self.works(row).await {
            Ok(works) => works,
            Err(ProviderError::Stopped | ProviderError::Stopping | ProviderError::NotFound(_)) => false,
            Err(error) => {
                tracing::warn!(session = %row.id, error = error.detail(), "ask whether a command runs");
                true
            }
        }
    }

    async fn works(&self, row: &SessionRow) -> std::result::Result<bool, ProviderError> {
        let Some(run) = self.live_run(row).await? else { return Ok(false) };
        let commands = self.provider.commands(&run).await?;
        if commands.iter().all(|command| command.exit_code.is_some()) {
            return Ok(false);
        }
        let Some(before) = self.provider.processor_time(&run).await? else { return Ok(true) };
        tokio::time::sleep(WATCH).await;
        let after = self.provider.processor_time(&run).await?;
        Ok(after.is_none_or(|after| after.saturating_sub(before) >= WATCH / WORKS))
    }

    pub(crate) fn key(row: &SessionRow, name: &SandboxName) -> SandboxKey {
        SandboxKey { namespace: Self::namespace(&row.account_id), name: name.clone() }
    }

    /// The session's live run, if there is one; asking never wakes a sleeping
    /// sandbox. A provider that cannot tell is an error, not a sandbox that sleeps.
    pub(crate) async fn live_run(
        &self,
        row: &SessionRow,
    ) -> std::result::Result<Option<RunRef>, ProviderError> {
        let running = self.sandbox_of(row).await?.filter(|found| found.run.status == RunStatus::Running);
        Ok(running.map(|found| Self::run_of(row, found)))
    }

    /// The session's sandbox, if there is one; asking never wakes it.
    async fn sandbox_of(&self, row: &SessionRow) -> std::result::Result<Option<SandboxView>, ProviderError> {
        let Some(name) = &row.sandbox_name else { return Ok(None) };
        match self.provider.get(&Self::key(row, name)).await {
            Ok(found) => Ok(Some(found)),
            Err(ProviderError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn run_of(row: &SessionRow, found: SandboxView) -> RunRef {
        RunRef { namespace: Self::namespace(&row.account_id), id: found.run.id }
    }

    /// Puts the session's sandbox to sleep. The caller holds the lock. Use of the
    /// session since its row was read keeps an idle one awake; somebody who asks
    /// for its sleep gets it.
    pub(crate) async fn hibernate(
        &self,
        mut row: SessionRow,
        reason: StopReason,
        actor: Option<&AccountId>,
    ) -> Result<SessionRow> {
        let why = match reason {
            StopReason::Idle => EventReason::Idle,
            StopReason::Lifetime => EventReason::Lifetime,
            StopReason::Died => EventReason::Died,
            _ => EventReason::Requested,
        };
        // A sleep that is tried again is no news.
        let again = matches!(row.lifecycle_state, LifecycleState::Hibernating)
            || matches!(decide(View::of(&row), Event::Sleep), Action::Refuse)
                && row.lifecycle_state == LifecycleState::Failed;
        let cause = (!again).then(|| Cause { reason: why, actor: actor.cloned(), detail: None, repo: None });
        let begin = |row: &mut SessionRow| {
            // What failed before stays known until something works.
            if row.lifecycle_state != LifecycleState::Failed {
                row.lifecycle_error = None;
            }
            put(row, Event::Sleep);
        };
        let row = match reason {
            StopReason::Idle => {
                begin(&mut row);
                self.write(row, cause.as_ref()).await?
            }
            _ => self.change(row, cause, begin).await?,
        };
        let stopped = self.stop_sandbox(&row, reason).await;
        let mut row = row;
        match stopped {
            // Somebody deleted it meanwhile, and could not wait to say so.
            Ok(false) => {
                forget(&mut row);
                self.write(row, Some(&by_itself(EventReason::SandboxDeleted))).await
            }
            Ok(true) => {
                put(&mut row, Event::Asleep);
                row.sandbox_expires_at = None;
                row.hibernate_after = None;
                self.write(row, Some(&by_itself(EventReason::Asleep))).await
            }
            // Nobody waits for it, and the next round tries again.
            Err(error) if matches!(reason, StopReason::Idle | StopReason::Lifetime) => Err(error.into()),
            Err(error) => {
                put(&mut row, Event::SleepFailed);
                row.lifecycle_error = Some("the sandbox could not be stopped".to_owned());
                (row.hibernate_after, row.sandbox_expires_at) = (Some(self.now().plus(HEAL)), None);
                let cause = Cause { detail: row.lifecycle_error.clone(), ..by_itself(EventReason::Failed) };
                self.write(row, (!again).then_some(&cause)).await?;
                Err(error.into())
            }
        }
    }

    /// Stops the sandbox, if it runs. `false`: the session had one, and it is gone.
    pub(crate) async fn stop_sandbox(
        &self,
        row: &SessionRow,
        reason: StopReason,
    ) -> std::result::Result<bool, ProviderError> {
        match self.sandbox_of(row).await? {
            Some(found) if !found.run.status.is_ended() => {
                self.provider.stop(&Self::run_of(row, found), reason).await?;
                Ok(true)
            }
            Some(_) => Ok(true),
            None => Ok(row.sandbox_name.is_none()),
        }
    }

    /// Writes a row over the version that it carries.
    pub(crate) async fn write(&self, mut row: SessionRow, cause: Option<&Cause>) -> Result<SessionRow> {
        row.updated_at = self.now();
        let written = self.db.update_session(&row, cause).await?.ok_or(SessionError::Contended)?;
        self.news(&written.id);
        Ok(written)
    }
}

/// Gives a row the state that it has after an event.
pub(crate) fn put(row: &mut SessionRow, event: Event) {
    if let Action::Put(state) = decide(View::of(row), event) {
        row.lifecycle_state = state;
    }
}
