//! What a git remote stands at. It is asked from here, not from a sandbox: once
//! for a repository and a short while, not once for each sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_jobs::Clock;
use dormouse_types::{GithubRepo, RepoAccess, Timestamp};

/// Answers that are remembered, so that callers who name ever new repositories
/// take no memory.
const MAX_ANSWERS: usize = 10_000;

/// Where the default branch of a remote is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    /// Name of the branch.
    pub branch: String,
    /// Its commit.
    pub commit: String,
}

/// Why a tip is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// There is no such repository for whoever asked.
    #[error("there is no such repository, or it may not be read")]
    Unreadable,
    /// The repository has no commit that its `HEAD` names, or no branch there.
    #[error("its HEAD is no branch with a commit")]
    NoBranch,
    /// The remote does not answer, or not in a way that is understood.
    #[error("the remote does not tell: {0}")]
    Silent(String),
}

/// Asks git remotes.
#[async_trait]
pub trait Remote: Send + Sync + std::fmt::Debug + 'static {
    /// Where the default branch of a repository is; `authorization`: the value
    /// of that HTTP header.
    ///
    /// # Errors
    /// [`RemoteError`].
    async fn tip(&self, repo: &GithubRepo, authorization: Option<&str>) -> Result<Tip, RemoteError>;
}

/// Tips of the last while.
#[derive(Debug)]
pub(crate) struct Tips {
    remote: Arc<dyn Remote>,
    clock: Clock,
    interval: Duration,
    answers: Mutex<HashMap<(String, RepoAccess), Arc<Answer>>>,
}

/// The last answer about one repository. Who asks meanwhile waits for it.
type Answer = tokio::sync::Mutex<Option<(Timestamp, Result<Tip, RemoteError>)>>;

impl Tips {
    pub(crate) fn new(remote: Arc<dyn Remote>, clock: Clock, interval: Duration) -> Self {
        Self { remote, clock, interval, answers: Mutex::default() }
    }

    /// The tip as it was at most an interval ago.
    pub(crate) async fn ask(
        &self,
        repo: &GithubRepo,
        access: RepoAccess,
        authorization: Option<&str>,
    ) -> Result<Tip, RemoteError> {
        let answer = self.answer(repo, access);
        let mut answer = answer.lock().await;
        let now = self.clock.now();
        if let Some((at, known)) = &*answer
            && now.since(*at) < self.interval
            && *at <= now
        {
            return known.clone();
        }
        let told = self.remote.tip(repo, authorization).await;
        // What failed is asked again by the next one.
        *answer = told.is_ok().then(|| (now, told.clone()));
        told
    }

    fn answer(&self, repo: &GithubRepo, access: RepoAccess) -> Arc<Answer> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_ANSWERS {
            // Those that somebody waits for stay.
            answers.retain(|_, answer| Arc::strong_count(answer) > 1);
        }
        answers.entry((repo.to_string().to_ascii_lowercase(), access)).or_default().clone()
    }
}
