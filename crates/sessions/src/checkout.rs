//! Runs the scripts that get a repository into a sandbox, and reads what they
//! found.

use std::time::Duration;

use dormouse_provider::checkout::{self, Branch, Checkout, Found, Identity};
use dormouse_provider::{CommandSpec, LogEvent, ProviderError, RunRef, RunStatus};
use dormouse_store::Cause;
use dormouse_types::{AccountId, CommandId, EventReason, GithubRepo, SessionId, is_commit};
use futures::StreamExt as _;
use tokio::sync::watch;

use crate::error::Result;
use crate::provision::by_itself;
use crate::{SessionError, Sessions};

/// Words of git that are kept for an error message, in bytes: the last ones.
const MAX_WORDS: usize = 4096;

/// Commits of history that a sandbox has from the start; `git fetch
/// --unshallow` gets the rest.
const DEPTH: u32 = 1;

/// Who watches a clone is told how far it is once in this time.
const TELL: Duration = Duration::from_secs(1);

/// How long a look at a checkout may take: whatever stands in its way is the
/// sandbox's own.
const LOOK: Duration = Duration::from_secs(10);

/// Percent of a clone that are done, once git says.
pub(crate) type Progress = Option<u8>;

/// What a script said that failed, for the caller.
pub(crate) type Words = String;

impl Sessions {
    /// Clones a repository into the working directory of a run.
    pub(crate) async fn clone_repository(
        &self,
        run: &RunRef,
        repo: &GithubRepo,
        branch: Option<&Branch>,
        identity: Option<&Identity>,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<Checkout> {
        let url = repo.url();
        let revision = branch.and_then(Branch::existing);
        let new_branch = branch.and_then(Branch::made);
        let (depth, directory, told) = (DEPTH, ".", progress.is_some());
        let clone =
            checkout::Clone { url: &url, directory, depth, revision, identity, new_branch, progress: told };
        let failed = |message| SessionError::Clone { repo: repo.clone(), message };
        match self.run_checkout(run, clone.argv(), progress).await {
            Ok(Ok(Some(found))) => match revision {
                Some(name) if found.branch.as_deref() != Some(name) => {
                    Err(failed(format!("it has no branch {name}, but a tag or a commit of that name")))
                }
                _ => Ok(found),
            },
            Ok(Ok(None)) => Err(failed("nothing is checked out".to_owned())),
            Ok(Err(_)) if self.has_ended(run).await => Err(SessionError::Interrupted),
            Ok(Err(message)) => Err(failed(message)),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody ended a run, which says what became of a command in it.
    pub(crate) async fn has_ended(&self, run: &RunRef) -> bool {
        match self.provider.run(run).await {
            Ok(found) => found.status != RunStatus::Running,
            Err(error) => matches!(error, ProviderError::NotFound(_)),
        }
    }

    /// Brings the checkout of a new sandbox to the tip of `tip`, or leaves it where
    /// it is, checks `branch` out, and makes it `identity`'s.
    pub(crate) async fn update_checkout(
        &self,
        run: &RunRef,
        tip: Option<&str>,
        branch: Option<&Branch>,
        identity: Option<&Identity>,
    ) -> Result<std::result::Result<Option<Checkout>, Words>> {
        self.run_checkout(run, checkout::update(tip, branch, identity), None).await
    }

    /// What is in the working directory of a run. What cannot be looked at is its
    /// owner's.
    ///
    /// It is read, not asked of a program inside, which may be anything by now. Only
    /// a directory that lacks what every clone has is looked at by a script, and not
    /// for long.
    pub(crate) async fn look_at_checkout(&self, run: &RunRef) -> Result<Found> {
        if let Some(found) = self.read_checkout(run).await? {
            return Ok(Found::Checkout(found));
        }
        Ok(match self.run_script(run, checkout::look(), LOOK, None).await? {
            Ok(printed) => Found::read(&printed),
            Err(_) if self.has_ended(run).await => return Err(SessionError::Interrupted),
            Err(words) => {
                tracing::warn!(run = %run.id, words, "look at a checkout");
                Found::Other
            }
        })
    }

    /// What `.git/HEAD` says, and that the branch has a commit; `None`: it does not
    /// say, or says what a script has to look into.
    async fn read_checkout(&self, run: &RunRef) -> Result<Option<Checkout>> {
        let Some(head) = self.read_small(run, ".git/HEAD").await? else { return Ok(None) };
        let Some(found) = Checkout::of_head(&head) else { return Ok(None) };
        let Some(branch) = &found.branch else { return Ok(Some(found)) };
        // A clone that was cut off has a HEAD, and no commit.
        let commit = self.read_small(run, &format!(".git/refs/heads/{branch}")).await?;
        Ok(commit.is_some_and(|commit| is_commit(commit.trim_end())).then_some(found))
    }

    /// A small file below the working directory; `None` where there is none, or
    /// another one.
    async fn read_small(&self, run: &RunRef, path: &str) -> Result<Option<String>> {
        let read = async {
            let mut bytes = Vec::new();
            let mut parts = self.provider.read_file(run, path, None).await?;
            while let Some(part) = parts.next().await {
                bytes.extend_from_slice(&part?);
                if bytes.len() > checkout::MAX_HEAD {
                    return Ok(None);
                }
            }
            Ok(String::from_utf8(bytes).ok())
        };
        match tokio::time::timeout(LOOK, read).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error @ (ProviderError::Stopped | ProviderError::Stopping))) => Err(interrupted(error)),
            Ok(Err(_)) => Ok(None),
            Err(_) => Ok(None),
        }
    }

    async fn run_checkout(
        &self,
        run: &RunRef,
        argv: Vec<String>,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<std::result::Result<Option<Checkout>, Words>> {
        let limit = self.config.clone_timeout;
        Ok(self.run_script(run, argv, limit, progress).await?.map(|printed| Checkout::read(&printed)))
    }

    /// Runs one of the scripts: what it printed, or what it said when it failed.
    async fn run_script(
        &self,
        run: &RunRef,
        argv: Vec<String>,
        limit: Duration,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<std::result::Result<String, Words>> {
        let mut spec = CommandSpec::new(argv);
        spec.timeout = Some(limit);
        let mut events = self.provider.exec(run, CommandId::generate(), spec).await.map_err(interrupted)?;
        let (mut out, mut words) = (Vec::new(), Vec::new());
        while let Some(event) = events.next().await {
            match event.map_err(interrupted)? {
                LogEvent::Stdout(data) => keep_last(&mut out, &data),
                LogEvent::Stderr(data) => {
                    keep_last(&mut words, &data);
                    if let Some(progress) = progress
                        && let percent @ Some(_) = checkout::percent(&String::from_utf8_lossy(&words))
                    {
                        progress.send_if_modified(|told| std::mem::replace(told, percent) != percent);
                    }
                }
                LogEvent::Started(_) | LogEvent::Lost(_) => {}
                LogEvent::Exited(command) => {
                    // Postgres keeps no NUL.
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', "");
                    if command.exit_code == Some(0) {
                        return Ok(Ok(text(&out)));
                    }
                    return Ok(Err(if command.timed_out {
                        format!("it took longer than {}", dormouse_types::format_duration(limit))
                    } else {
                        checkout::without_progress(&text(&words)).trim().to_owned()
                    }));
                }
            }
        }
        Err(SessionError::Interrupted)
    }

    /// Tells a session how far the clone is that `work` is about, or waits for.
    pub(crate) async fn watched<T>(
        &self,
        session: Option<&SessionId>,
        mut progress: watch::Receiver<Progress>,
        work: impl Future<Output = T>,
    ) -> T {
        let Some(session) = session else { return work.await };
        let tell = async {
            while progress.changed().await.is_ok() {
                tokio::time::sleep(TELL).await;
                let detail = progress.borrow_and_update().map(|percent| format!("{percent}%"));
                self.tell(session, Cause { detail, ..by_itself(EventReason::Clone) }).await;
            }
        };
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = tell => work.await,
        }
    }

    /// Git identity of an account (session contract, section 7).
    pub(crate) async fn identity(&self, account: &AccountId) -> Result<Identity> {
        let row = self.db.account(account).await?;
        let plain =
            |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
        let name = row.as_ref().map(|row| plain(&row.name)).filter(|name| !name.is_empty());
        let email =
            row.and_then(|row| row.email).map(|email| plain(&email)).filter(|email| !email.is_empty());
        Ok(Identity {
            name: name.unwrap_or_else(|| "dormouse".to_owned()),
            email: email.unwrap_or_else(|| format!("{account}@users.noreply.dormouse.invalid")),
        })
    }
}

/// Somebody stopped or deleted the sandbox under a script.
fn interrupted(error: ProviderError) -> SessionError {
    match error {
        ProviderError::Stopped | ProviderError::Stopping | ProviderError::NotFound(_) => {
            SessionError::Interrupted
        }
        error => error.into(),
    }
}

fn keep_last(kept: &mut Vec<u8>, data: &[u8]) {
    kept.extend_from_slice(data);
    if kept.len() > MAX_WORDS {
        kept.drain(..kept.len() - MAX_WORDS);
    }
}
