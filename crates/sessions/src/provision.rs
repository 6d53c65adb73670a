//! `POST /api/sandbox`: from a session to a sandbox in which its repository is
//! checked out.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::checkout::{Branch, Checkout, Found, Identity};
use dormouse_provider::{CreateSandbox, ProviderError, RunRef, SandboxKey};
use dormouse_store::{Cause, SessionRow};
use dormouse_types::{AccountId, EventReason, GithubRepo, SandboxName, SessionId, Timestamp};
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::attempts::Attempt;
use crate::decide::Event;
use crate::error::Result;
use crate::lifecycle::{HEAL, put};
use crate::org_snapshots::Reader;
use crate::{LifecycleState, SessionError, SessionStatus, Sessions};

/// Longest error that a row keeps, in bytes.
const MAX_ERROR: usize = 1000;

/// A sandbox that is ready.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// When it was.
    pub ready_at: Timestamp,
    /// Idle timeout, by which sleep is scheduled.
    pub timeout: Duration,
    /// Branch that is checked out.
    pub branch: String,
    /// Its name.
    pub sandbox: SandboxName,
    /// The session had a sandbox, and nothing of what was in it is left.
    pub anew: bool,
}

/// The sandbox of a session, as it came.
struct Ready {
    ends_at: Timestamp,
    branch: String,
    /// Nothing is left of what was in the one before.
    anew: bool,
}

/// The branch that a session was made with.
fn branch_of(row: &SessionRow) -> Option<Branch> {
    let name = row.wanted_branch.as_deref()?.parse().ok()?;
    Some(if row.is_new_branch { Branch::New(name) } else { Branch::Existing(name) })
}

/// What is to be checked out in a sandbox.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of which repository.
    pub repo: GithubRepo,
    /// `None`: the default branch. It counts when the checkout is made: one that is
    /// there stays as it is.
    pub branch: Option<Branch>,
}

impl From<GithubRepo> for Wanted {
    fn from(repo: GithubRepo) -> Self {
        Self { repo, branch: None }
    }
}

impl Sessions {
    /// Gives the session its sandbox: creates, resumes, or finds it running.
    ///
    /// It goes on when the caller hangs up. On failure nothing is left behind
    /// that the next call would trip over.
    ///
    /// # Errors
    /// [`SessionError`], by what the caller can do about it.
    pub async fn provision(
        self: &Arc<Self>,
        account: AccountId,
        session: Option<SessionId>,
        wanted: impl Into<Wanted>,
    ) -> Result<Provisioned> {
        let (sessions, wanted) = (self.clone(), wanted.into());
        let work = async move {
            match session {
                Some(session) => sessions.provision_session(&account, &session, &wanted).await,
                None => sessions.provision_ephemeral(&account, &wanted, SandboxName::generate()).await,
            }
        };
        tokio::spawn(work.in_current_span())
            .await
            .map_err(|error| ProviderError::internal("provision", error))?
    }

    async fn provision_session(
        self: &Arc<Self>,
        account: &AccountId,
        session: &SessionId,
        wanted: &Wanted,
    ) -> Result<Provisioned> {
        let repo = &wanted.repo;
        // Before the lock: whoever may not come in does not wait.
        check(&self.owned(account, session).await?, repo)?;
        let attempt = self.attempts.begin(session);
        let (lock, row) = self.locked(account, session).await?;
        attempt.check()?;
        check(&row, repo)?;
        // To the last write: whoever has the lock next may remove what is not bound.
        lock.hold(self.provision_locked(&attempt, row, account, wanted)).await
    }

    /// [`Sessions::provision`] by who holds the lock.
    async fn provision_locked(
        self: &Arc<Self>,
        attempt: &Attempt,
        mut row: SessionRow,
        account: &AccountId,
        wanted: &Wanted,
    ) -> Result<Provisioned> {
        let repo = &wanted.repo;
        let name = SandboxName::for_session(&row.id);
        let key = Self::key(&row, &name);
        let (before, fresh) = (row.lifecycle_state, row.sandbox_name.is_none());
        if row.sandbox_name.is_none() || before != LifecycleState::Active {
            row = self
                .change(row, Some(about(repo, caused(EventReason::Provision, account))), |row| {
                    put(row, Event::Provision);
                    row.host_id.clone_from(&self.host);
                })
                .await?;
        }
        let of_session =
            Wanted { branch: wanted.branch.clone().or_else(|| branch_of(&row)), ..wanted.clone() };
        let ready = match self.bring_up(attempt, &key, &row, account, &of_session).await {
            Ok(ready) => ready,
            // Another server has the session by now, and may have its sandbox.
            Err(SessionError::Contended) => return Err(SessionError::Contended),
            Err(error) => {
                // What is bound was somebody's before.
                let clean = row.sandbox_name.is_some() || self.discard(&key).await;
                self.note_failure(row, repo, &error, clean).await;
                return Err(error);
            }
        };
        let Ready { ends_at, branch, anew } = ready;
        let ready = Cause { detail: Some(branch.clone()), ..caused(EventReason::Ready, account) };
        let session = row.id.clone();
        let bound = self
            .change(row, Some(ready), |row| {
                put(row, Event::Ready);
                row.sandbox_name = Some(name.clone());
                row.host_id.clone_from(&self.host);
                row.clone_url = Some(repo.url());
                row.branch = Some(branch.clone());
                row.sandbox_expires_at = Some(ends_at);
                self.used_now(row);
            })
            .await;
        let ready_at = match bound {
            Ok(row) => row.last_activity_at.unwrap_or(row.updated_at),
            Err(error) => {
                tracing::warn!(%session, ?error, "bind sandbox");
                // What was made just now was acknowledged to nobody, and what belongs to
                // no session must not stay. All else is somebody's work.
                let nobodys = match error {
                    SessionError::NotFound | SessionError::CalledOff => true,
                    SessionError::Contended => false,
                    _ => fresh,
                };
                if nobodys {
                    self.discard(&key).await;
                }
                return Err(error);
            }
        };
        Ok(Provisioned { ready_at, timeout: self.config.idle_timeout, branch, sandbox: name, anew })
    }

    /// A ready sandbox of a session.
    async fn bring_up(
        self: &Arc<Self>,
        attempt: &Attempt,
        key: &SandboxKey,
        row: &SessionRow,
        account: &AccountId,
        wanted: &Wanted,
    ) -> Result<Ready> {
        let mut anew = false;
        let Wanted { repo, branch: wanted_branch } = wanted;
        if row.sandbox_name.is_some() {
            match self.provider.resume(key).await {
                Ok(found) => {
                    let run = RunRef { namespace: key.namespace.clone(), id: found.run.id.clone() };
                    self.refresh_credentials(&found, &run, account, repo).await?;
                    let look = self.look_at_checkout(&run);
                    let branch = match self.unless_called_off(Some(attempt), look).await? {
                        Found::Checkout(checkout) => checkout.shown(),
                        // One that keeps nothing has nothing: it begins anew.
                        Found::Nothing => {
                            anew = true;
                            self.tell(&row.id, caused(EventReason::BeganAnew, account)).await;
                            let identity = self.identity(account).await?;
                            let branch = wanted_branch.as_ref();
                            let clone = self.clone_for(Some(&row.id), &run, repo, branch, &identity);
                            self.unless_called_off(Some(attempt), clone).await?.shown()
                        }
                        // Whoever moved the repository knows where it is.
                        Found::Other => String::new(),
                    };
                    return Ok(Ready { ends_at: found.run.expires_at(), branch, anew });
                }
                // The sandbox or its snapshot was deleted: begin anew.
                Err(ProviderError::NotFound(_)) => anew = true,
                Err(ProviderError::SnapshotGone(_)) => {
                    anew = true;
                    self.discard(key).await;
                }
                Err(error) => return Err(error.into()),
            }
            self.tell(&row.id, caused(EventReason::BeganAnew, account)).await;
        } else {
            // It was ready once, and then somebody deleted its sandbox.
            anew = row.branch.is_some();
            if anew {
                self.tell(&row.id, caused(EventReason::BeganAnew, account)).await;
            }
            // What a crash left before it was bound was never acknowledged.
            self.delete_sandbox(key).await?;
        }
        let mut request = CreateSandbox::new(key.clone());
        request.ports.clone_from(&self.ports);
        request.timeout = Some(self.config.max_lifetime);
        let (ends_at, checkout) = self.create_with_checkout(Some(attempt), request, account, wanted).await?;
        Ok(Ready { ends_at, branch: checkout.shown(), anew })
    }

    pub(crate) async fn provision_ephemeral(
        self: &Arc<Self>,
        account: &AccountId,
        wanted: &Wanted,
        name: SandboxName,
    ) -> Result<Provisioned> {
        let key = SandboxKey { namespace: Self::namespace(account), name: name.clone() };
        let mut request = CreateSandbox::new(key);
        request.ports.clone_from(&self.ports);
        (request.persistent, request.ephemeral) = (false, true);
        request.timeout = Some(self.config.idle_timeout);
        let (_, checkout) = self.create_with_checkout(None, request, account, wanted).await?;
        let branch = checkout.shown();
        let timeout = self.config.idle_timeout;
        Ok(Provisioned { ready_at: self.now(), timeout, branch, sandbox: name, anew: false })
    }

    /// A sandbox with the repository in it: from the org snapshot, or cold.
    async fn create_with_checkout(
        self: &Arc<Self>,
        attempt: Option<&Attempt>,
        mut request: CreateSandbox,
        account: &AccountId,
        wanted: &Wanted,
    ) -> Result<(Timestamp, Checkout)> {
        let Wanted { repo, branch } = wanted;
        let branch = branch.as_ref();
        let identity = self.identity(account).await?;
        let reader = Reader { repo: repo.clone(), access: self.access(account, repo).await? };
        self.let_out(&mut request, account, repo, reader.access).await?;
        if let Some(warm) = self.start_warm(attempt, &request, &reader, branch, &identity).await? {
            return Ok((warm.made.run.expires_at(), warm.checkout));
        }
        let key = request.key.clone();
        let made = match self.provider.create(request).await {
            Ok(made) => made,
            Err(error) => {
                // It may be there all the same: an answer can be lost.
                if !matches!(error, ProviderError::Conflict(_)) {
                    self.discard(&key).await;
                }
                return Err(error.into());
            }
        };
        let run = RunRef { namespace: key.namespace.clone(), id: made.run.id.clone() };
        let session = key.name.session();
        let clone = self.clone_for(session.as_ref(), &run, repo, branch, &identity);
        let cloned = self.unless_called_off(attempt, clone).await;
        if cloned.is_err() {
            self.discard(&key).await;
        }
        Ok((made.run.expires_at(), cloned?))
    }

    /// Clones for a session, which is told how far it is.
    async fn clone_for(
        &self,
        session: Option<&SessionId>,
        run: &RunRef,
        repo: &GithubRepo,
        branch: Option<&Branch>,
        identity: &Identity,
    ) -> Result<Checkout> {
        if let Some(session) = session {
            self.tell(session, about(repo, by_itself(EventReason::Clone))).await;
        }
        let (progress, told) = watch::channel(None);
        let clone = self.clone_repository(run, repo, branch, Some(identity), session.map(|_| &progress));
        self.watched(session, told, clone).await
    }

    /// The session is in use now, and nothing is wrong with it. Whoever writes the row
    /// calls this as late as they can: others may have used it meanwhile.
    pub(crate) fn used_now(&self, row: &mut SessionRow) {
        let now = self.now();
        row.lifecycle_error = None;
        row.last_activity_at = Some(now);
        row.hibernate_after = Some(now.plus(self.config.idle_timeout));
    }

    /// Removes a sandbox that did not become what it should; whether it is gone.
    async fn discard(&self, key: &SandboxKey) -> bool {
        match self.delete_sandbox(key).await {
            Ok(()) => true,
            // Whoever comes next, the reconciler or a provision, removes it first.
            Err(error) => {
                tracing::error!(sandbox = %key.name, error = error.detail(), "discard");
                false
            }
        }
    }

    /// Changes a row, although its session was used in the meantime, as long as the
    /// session may still be provisioned.
    ///
    /// # Errors
    /// [`SessionError::Contended`] where somebody else moved the session on: the
    /// lock was lost.
    pub(crate) async fn change(
        &self,
        mut row: SessionRow,
        cause: Option<Cause>,
        change: impl Fn(&mut SessionRow),
    ) -> Result<SessionRow> {
        let (id, seen) = (row.id.clone(), (row.lifecycle_state, row.sandbox_name.clone()));
        let (was_archived, was_deleted) = (row.status == SessionStatus::Archived, row.deleted_at.is_some());
        change(&mut row);
        match self.write(row, cause.as_ref()).await {
            Err(SessionError::Contended) => {}
            other => return other,
        }
        // It was used meanwhile.
        let (now, mut archived, mut deleted, mut moved) = (self.now(), false, false, false);
        let changed = self.db.change_session(&id, cause.as_ref(), |row| {
            let is_archived = row.status == SessionStatus::Archived;
            archived = is_archived && !was_archived;
            deleted = row.deleted_at.is_some() && !was_deleted;
            // Whoever wants an archived session back has the last word, too.
            moved =
                (row.lifecycle_state, &row.sandbox_name) != (seen.0, &seen.1) || was_archived && !is_archived;
            change(row);
            row.updated_at = now;
            !archived && !deleted && !moved
        });
        match changed.await? {
            Some(row) => {
                self.news(&id);
                Ok(row)
            }
            None if deleted => Err(SessionError::CalledOff),
            None if archived => Err(SessionError::Archived),
            None if moved => Err(SessionError::Contended),
            None => Err(SessionError::NotFound),
        }
    }

    /// Writes down that provisioning ended. `clean`: nothing is left that nobody
    /// knows.
    async fn note_failure(&self, row: SessionRow, repo: &GithubRepo, error: &SessionError, clean: bool) {
        let message = last_words(&error.to_string());
        let called_off = matches!(error, SessionError::CalledOff);
        let reason = if called_off { EventReason::CalledOff } else { EventReason::Failed };
        let cause = Cause { reason, actor: None, detail: (!called_off).then(|| message.clone()), repo: None };
        let noted = self.change(row, Some(about(repo, cause)), |row| {
            put(row, if called_off && clean { Event::CalledOff } else { Event::ProvisionFailed });
            row.lifecycle_error = (!called_off || !clean).then(|| message.clone());
            if row.lifecycle_state == LifecycleState::Failed {
                (row.hibernate_after, row.sandbox_expires_at) = (Some(self.now().plus(HEAL)), None);
            }
        });
        match noted.await {
            // Whoever put it away, or deletes it, goes on from here.
            Ok(_) | Err(SessionError::Archived | SessionError::CalledOff) => {}
            Err(error) => tracing::warn!(?error, "note failure"),
        }
    }
}

/// Something that `account` wants.
pub(crate) fn caused(reason: EventReason, account: &AccountId) -> Cause {
    Cause { reason, actor: Some(account.clone()), detail: None, repo: None }
}

/// Something about a repository that the session is not bound to yet.
pub(crate) fn about(repo: &GithubRepo, cause: Cause) -> Cause {
    Cause { repo: Some(repo.url()), ..cause }
}

/// Something that the server does by itself.
pub(crate) fn by_itself(reason: EventReason) -> Cause {
    Cause { reason, actor: None, detail: None, repo: None }
}

/// The end of a text, where the cause stands, for a row.
fn last_words(text: &str) -> String {
    let over = text.len().saturating_sub(MAX_ERROR);
    match (over..=text.len()).find(|at| text.is_char_boundary(*at)) {
        None | Some(0) => text.to_owned(),
        Some(at) => format!("…{}", &text[at..]),
    }
}

fn check(row: &SessionRow, repo: &GithubRepo) -> Result<()> {
    if row.status == SessionStatus::Archived {
        return Err(SessionError::Archived);
    }
    if let Some(bound) = row.clone_url.as_deref().and_then(|url| url.parse::<GithubRepo>().ok())
        && &bound != repo
    {
        return Err(SessionError::OtherRepository { bound, asked: repo.clone() });
    }
    Ok(())
}
