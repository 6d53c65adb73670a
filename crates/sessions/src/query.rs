//! Everything about sessions but provisioning: rows, status, probe, activity,
//! extension, pause, deletion.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::checkout::Branch;
use dormouse_provider::{
    CommandSpec, LogEvent, NetworkUse, ProviderError, RunRef, RunStatus, SandboxKey, StopReason,
};
use dormouse_store::{Cause, SessionFilter, SessionRow};
use dormouse_types::{
    AccountId, CommandId, EventReason, GithubRepo, OrgId, SandboxName, SessionId, Timestamp,
};
use futures::StreamExt as _;
use tracing::Instrument as _;

use crate::decide::{Action, Event, View, decide};
use crate::error::Result;
use crate::lifecycle::put;
use crate::provision::{by_itself, caused};
use crate::{LifecycleState, SessionError, SessionStatus, Sessions};

/// A sandbox counts as gone this long before its hard end (session contract,
/// section 9).
const EXPIRY_BUFFER: Duration = Duration::from_secs(10);

/// How long a probe may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(15);

/// Step of an extension (session contract, section 4).
const EXTENSION: Duration = Duration::from_secs(20 * 60);

/// A session to make.
#[derive(Debug, Clone, Default)]
pub struct NewSession {
    /// Shown to users; never interpreted.
    pub title: Option<String>,
    /// Repository that it is bound to from the start.
    pub repo: Option<GithubRepo>,
    /// Branch that its first checkout is to be on.
    pub branch: Option<Branch>,
    /// Organization that it is for.
    pub organization: Option<OrgId>,
}

impl NewSession {
    /// The row of a new session of `account`.
    #[must_use]
    pub fn row(self, account: &AccountId, now: Timestamp) -> SessionRow {
        let title = self.title.map(|title| title.trim().to_owned()).filter(|title| !title.is_empty());
        let title = title.unwrap_or_else(|| "New session".to_owned());
        let clone_url = self.repo.map(|repo| repo.url());
        let (wanted_branch, is_new_branch) = match self.branch {
            None => (None, false),
            Some(Branch::Existing(name)) => (Some(name.to_string()), false),
            Some(Branch::New(name)) => (Some(name.to_string()), true),
        };
        let organization = self.organization;
        let row = SessionRow::new(account.clone(), title, now);
        SessionRow { clone_url, wanted_branch, is_new_branch, organization, ..row }
    }
}

/// What may change in a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionPatch {
    /// Shown to users; never interpreted.
    pub title: Option<String>,
    /// What its owner says of it.
    pub status: Option<SessionStatus>,
    /// Shown to users; never interpreted.
    pub lines_added: Option<i64>,
    /// Shown to users; never interpreted.
    pub lines_removed: Option<i64>,
}

impl SessionPatch {
    fn apply(&self, row: &mut SessionRow) {
        if let Some(title) = &self.title {
            row.title.clone_from(title);
        }
        row.status = self.status.unwrap_or(row.status);
        row.lines_added = self.lines_added.or(row.lines_added);
        row.lines_removed = self.lines_removed.or(row.lines_removed);
    }
}

/// What a status call tells.
#[derive(Debug, Clone)]
pub struct Status {
    /// A live sandbox is there.
    pub active: bool,
    /// A sleeping sandbox is there.
    pub has_snapshot: bool,
    /// The row.
    pub row: SessionRow,
    /// When this was.
    pub now: Timestamp,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The sandbox answered; its lifetime ends then.
    Connected(Option<Timestamp>),
    /// It was there and is gone.
    Expired,
    /// There is none.
    NoSandbox,
}

impl Sessions {
    /// Makes a session.
    ///
    /// # Errors
    /// [`SessionError::NotAMember`] for an organization of others.
    pub async fn create(&self, account: &AccountId, new: NewSession) -> Result<SessionRow> {
        if let Some(organization) = &new.organization
            && self.db.org_of_member(account, organization.as_str()).await?.is_none()
        {
            return Err(SessionError::NotAMember);
        }
        let row = new.row(account, self.now());
        self.db.insert_session(&row).await?;
        Ok(row)
    }

    /// Get a session of the account.
    pub async fn get(&self, account: &AccountId, id: &SessionId) -> Result<SessionRow> {
        self.owned(account, id).await
    }

    /// The account's sessions, newest first, and how many are archived.
    pub async fn list(
        &self,
        account: &AccountId,
        filter: SessionFilter,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<SessionRow>, i64)> {
        let rows = self.db.sessions_of(account, filter, limit, offset).await?;
        Ok((rows, self.db.archived_sessions_of(account).await?))
    }

    /// Changes a session. Archiving calls off what goes on for it, and puts its
    /// sandbox to sleep, also when the caller hangs up.
    pub async fn patch(
        self: &Arc<Self>,
        account: &AccountId,
        id: &SessionId,
        patch: SessionPatch,
    ) -> Result<SessionRow> {
        let row = self.owned(account, id).await?;
        if patch == SessionPatch::default() {
            return Ok(row);
        }
        let archived = |status| status == SessionStatus::Archived;
        if patch.status.is_some_and(archived) && !archived(row.status) {
            self.at_hand(&row).await?;
            // First the word: a crash from here on leaves a trace.
            let now = self.now();
            let said = self.db.change_session(id, None, |row| {
                patch.apply(row);
                row.updated_at = now;
                true
            });
            said.await?.ok_or(SessionError::NotFound)?;
            self.attempts.call_off(id);
            let (sessions, id, account) = (self.clone(), id.clone(), account.clone());
            return self
                .carry_through(async move { sessions.finish_archiving(&id, Some(&account)).await })
                .await;
        }
        let _lock = self.locks.take(id).await?;
        let row = self.owned(account, id).await?;
        let unarchives = archived(row.status) && patch.status.is_some_and(|status| !archived(status));
        let cause = unarchives.then(|| caused(EventReason::Unarchived, account));
        self.change(row, cause, |row| {
            if unarchives {
                put(row, Event::Unarchive);
            }
            patch.apply(row);
        })
        .await
    }

    async fn finish_archiving(&self, id: &SessionId, actor: Option<&AccountId>) -> Result<SessionRow> {
        let lock = self.locks.take(id).await?;
        let row = self.db.session(id).await?.ok_or(SessionError::NotFound)?;
        // It was wanted back, or somebody else was first.
        if row.status != SessionStatus::Archived || row.lifecycle_state == LifecycleState::Archived {
            return Ok(row);
        }
        lock.hold(self.put_away(row, actor)).await
    }

    /// Puts the sandbox of an archived session to sleep. The caller holds the
    /// lock.
    pub(crate) async fn put_away(
        &self,
        mut row: SessionRow,
        actor: Option<&AccountId>,
    ) -> Result<SessionRow> {
        if row.sandbox_name.is_some() {
            row = self.hibernate(row, StopReason::Requested, actor).await?;
        } else {
            // What was being made for it.
            self.delete_sandbox(&Self::key(&row, &SandboxName::for_session(&row.id))).await?;
        }
        let cause = Cause { reason: EventReason::Archived, actor: actor.cloned(), detail: None, repo: None };
        self.change(row, Some(cause), |row| {
            put(row, Event::Archive);
            row.lifecycle_error = None;
        })
        .await
    }

    /// Forgets a session with its sandbox and everything in it. It calls off what
    /// goes on for it, and is carried through when the caller hangs up, and after
    /// a crash.
    pub async fn delete(self: &Arc<Self>, account: &AccountId, id: &SessionId) -> Result<()> {
        let row = self.owned(account, id).await?;
        self.at_hand(&row).await?;
        self.db.mark_session_deleted(id, self.now()).await?;
        self.attempts.call_off(id);
        let (sessions, id) = (self.clone(), id.clone());
        self.carry_through(async move { sessions.finish_deletion(&id).await }).await
    }

    async fn finish_deletion(&self, id: &SessionId) -> Result<()> {
        let lock = self.locks.take(id).await?;
        match self.db.session(id).await? {
            Some(row) => lock.hold(self.take_away(&row)).await,
            None => Ok(()),
        }
    }

    /// Removes a session with its sandbox. The caller holds the lock.
    pub(crate) async fn take_away(&self, row: &SessionRow) -> Result<()> {
        self.delete_sandbox(&Self::key(row, &SandboxName::for_session(&row.id))).await?;
        self.db.delete_session(&row.id).await?;
        Ok(())
    }

    /// Does it to its end, whether anybody waits or not.
    async fn carry_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::spawn(work.in_current_span()).await;
        done.map_err(|error| ProviderError::internal("carry a change of a session through", error))?
    }

    /// Deletes a sandbox, if there is one.
    pub(crate) async fn delete_sandbox(&self, key: &SandboxKey) -> std::result::Result<(), ProviderError> {
        match self.provider.delete(key, false).await {
            Ok(_) | Err(ProviderError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where the session's sandbox stands, from the database alone.
    pub async fn status(&self, account: &AccountId, id: &SessionId) -> Result<Status> {
        let row = self.owned(account, id).await?;
        let now = self.now();
        let status = Status { active: is_active(&row, now), has_snapshot: has_snapshot(&row), row, now };
        if status.row.hibernate_after.is_some_and(|due| due <= now) {
            self.wake.notify_one();
        }
        Ok(status)
    }

    /// What the session's sandbox did on the network; `None`: it sleeps.
    pub async fn network_use(&self, account: &AccountId, id: &SessionId) -> Result<Option<NetworkUse>> {
        let row = self.owned(account, id).await?;
        let Some(name) = row.sandbox_name else { return Ok(None) };
        let key = SandboxKey { namespace: Self::namespace(&row.account_id), name };
        Ok(self.provider.network_use(&key).await?)
    }

    /// Asks the sandbox itself, without waking it.
    pub async fn probe(&self, account: &AccountId, id: &SessionId) -> Result<(Probe, Status)> {
        let row = self.owned(account, id).await?;
        if !is_active(&row, self.now()) {
            return Ok((Probe::NoSandbox, self.status(account, id).await?));
        }
        let probe = match self.live_run(&row).await? {
            Some(run) => {
                let answered = tokio::time::timeout(PROBE_PATIENCE, self.answers(&run)).await;
                match answered {
                    Ok(true) => Probe::Connected(row.sandbox_expires_at),
                    // It runs and does not answer now: not gone for that.
                    Ok(false) | Err(_) if self.live_run(&row).await?.is_some() => {
                        Probe::Connected(row.sandbox_expires_at.filter(|end| *end > self.now()))
                    }
                    Ok(false) | Err(_) => Probe::Expired,
                }
            }
            None => Probe::Expired,
        };
        if probe == Probe::Expired {
            let (lock, row) = self.locked(account, id).await?;
            let note = async {
                if row.lifecycle_state == LifecycleState::Active && self.live_run(&row).await?.is_none() {
                    self.hibernate(row, StopReason::Died, None).await?;
                }
                Ok(())
            };
            lock.hold(note).await?;
        }
        Ok((probe, self.status(account, id).await?))
    }

    async fn answers(&self, run: &RunRef) -> bool {
        let exec = self.provider.exec(run, CommandId::generate(), CommandSpec::new(["pwd"])).await;
        let Ok(mut events) = exec else { return false };
        while let Some(Ok(event)) = events.next().await {
            if let LogEvent::Exited(command) = event {
                return command.exit_code == Some(0);
            }
        }
        false
    }

    /// Somebody used the session: sleep is put off. `false`: it is not active.
    pub async fn activity(&self, account: &AccountId, id: &SessionId) -> Result<bool> {
        self.owned(account, id).await?;
        self.touch(id).await
    }

    /// [`Sessions::activity`] without a caller: commands and file calls count.
    pub async fn touch(&self, id: &SessionId) -> Result<bool> {
        let now = self.now();
        Ok(self.db.touch_session(id, now, now.plus(self.config.idle_timeout)).await?)
    }

    /// What was done in a sandbox is use of the session that it belongs to, if
    /// it does. One that was woken without the session is awake for it too, also
    /// where a server that died was putting it to sleep. A session that is going
    /// to sleep or coming back now is waited for.
    pub async fn note_use(&self, key: &SandboxKey) -> Result<()> {
        let Some(row) = self.session_of(key).await? else { return Ok(()) };
        if row.status == SessionStatus::Archived {
            return Ok(());
        }
        let id = row.id.clone();
        let used = |row: &SessionRow, running| decide(View::of(row), Event::Used { running });
        match used(&row, None) {
            Action::Touch if self.touch(&id).await? => return Ok(()),
            // Not any more: it is going to sleep in this moment.
            Action::Touch | Action::Ask => {}
            _ => return Ok(()),
        }
        let _lock = self.locks.take(&id).await?;
        let Some(row) = self.session_of(key).await? else { return Ok(()) };
        match used(&row, None) {
            Action::Touch => return self.touch(&id).await.map(drop),
            Action::Ask => {}
            _ => return Ok(()),
        }
        let found = self.provider.get(key).await?;
        let running = found.run.status == RunStatus::Running;
        if !matches!(used(&row, Some(running)), Action::Put(_)) {
            return Ok(());
        }
        self.change(row, Some(by_itself(EventReason::Used)), |row| {
            put(row, Event::Used { running: Some(running) });
            self.used_now(row);
            row.sandbox_expires_at = Some(found.run.expires_at());
        })
        .await
        .map(drop)
    }

    /// Moves the hard end of the sandbox 20 minutes later. Returns the new end.
    pub async fn extend(&self, account: &AccountId, id: &SessionId) -> Result<(Timestamp, Duration)> {
        let (_lock, row) = self.locked(account, id).await?;
        if !is_active(&row, self.now()) {
            return Err(SessionError::NotInitialized);
        }
        let Some(run) = self.live_run(&row).await? else { return Err(SessionError::NotInitialized) };
        let expires_at = self.provider.extend(&run, EXTENSION).await?.expires_at();
        let now = self.now();
        self.change(row, None, |row| {
            row.sandbox_expires_at = Some(expires_at);
            row.last_activity_at = Some(now);
            row.hibernate_after = Some(now.plus(self.config.idle_timeout));
        })
        .await?;
        Ok((expires_at, EXTENSION))
    }

    /// Puts the sandbox to sleep. Returns its name, by which it comes back.
    pub async fn pause(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<(Option<SandboxName>, Timestamp)> {
        let (lock, row) = self.locked(account, id).await?;
        if row.status == SessionStatus::Archived {
            return Err(SessionError::Archived);
        }
        let row = match row.lifecycle_state {
            LifecycleState::Hibernated => row,
            _ if row.sandbox_name.is_none() => {
                return Err(SessionError::NotInitialized);
            }
            _ => lock.hold(self.hibernate(row, StopReason::Requested, Some(account))).await?,
        };
        Ok((row.sandbox_name, row.updated_at))
    }

    /// Wakes a sleeping sandbox. `true`: it ran already.
    pub async fn wake_up(
        self: &Arc<Self>,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<(bool, SandboxName)> {
        let row = self.owned(account, id).await?;
        let (Some(name), Some(repo)) = (
            row.sandbox_name.clone(),
            row.clone_url.as_deref().and_then(|url| url.parse::<GithubRepo>().ok()),
        ) else {
            return Err(SessionError::NeverInitialized);
        };
        if is_active(&row, self.now()) && self.live_run(&row).await?.is_some() {
            return Ok((true, name));
        }
        if let Err(ProviderError::NotFound(_)) = self.provider.get(&Self::key(&row, &name)).await {
            return Err(SessionError::SandboxGone);
        }
        self.provision(account.clone(), Some(id.clone()), repo).await?;
        Ok((false, name))
    }

    /// Stops the sandbox, as [`Sessions::pause`], also while it is being made.
    /// `false`: nothing ran.
    pub async fn stop(self: &Arc<Self>, account: &AccountId, id: &SessionId) -> Result<bool> {
        let row = self.owned(account, id).await?;
        self.at_hand(&row).await?;
        let called_off = self.attempts.call_off(id);
        let (sessions, account, id) = (self.clone(), account.clone(), id.clone());
        let work = async move {
            let (lock, row) = sessions.locked(&account, &id).await?;
            let making = row.lifecycle_state == LifecycleState::Restoring;
            if row.status == SessionStatus::Archived || (sessions.live_run(&row).await?.is_none() && !making)
            {
                return Ok(called_off);
            }
            let stop = async {
                if row.sandbox_name.is_none() {
                    // What a crash left of the making of it.
                    let key = Self::key(&row, &SandboxName::for_session(&row.id));
                    sessions.delete_sandbox(&key).await?;
                }
                sessions.hibernate(row, StopReason::Requested, Some(&account)).await
            };
            lock.hold(stop).await?;
            Ok(true)
        };
        self.carry_through(work).await
    }
}

fn is_active(row: &SessionRow, now: Timestamp) -> bool {
    row.lifecycle_state == LifecycleState::Active
        && row.sandbox_name.is_some()
        && row.sandbox_expires_at.is_none_or(|end| now.plus(EXPIRY_BUFFER) < end)
}

fn has_snapshot(row: &SessionRow) -> bool {
    row.lifecycle_state == LifecycleState::Hibernated && row.sandbox_name.is_some()
}
