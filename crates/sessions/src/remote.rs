//! What a git remote stands at. It is asked from here, not from a sandbox: once
//! for a repository and a short while, not once for each sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dormouse_jobs::Clock;
use dormouse_types::{GithubRepo, RepoAccess, Timestamp};

/// Answers that are remembered, so that callers who name ever new repositories
/// take no memory.
const MAX_ANSWERS: usize = 10_000;

/// After a remote did not answer it is not asked again for this long.
const SILENCE: Duration = Duration::from_secs(5);

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
    #[error("repository not found, or access denied")]
    Unreadable,
    /// The repository has no commit that its `HEAD` names, or no branch there.
    #[error("HEAD does not point to a branch with a commit")]
    NoBranch,
    /// The remote does not answer, or not in a way that is understood.
    #[error("could not read the tip: {0}")]
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
type Answer = tokio::sync::Mutex<Option<Told>>;

/// What a remote answered.
#[derive(Debug)]
struct Told {
    at: Timestamp,
    arrived: Instant,
    answer: Result<Tip, RemoteError>,
}

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
        let (asked, last) = (Instant::now(), self.answer(repo, access));
        let mut last = last.lock().await;
        let now = self.clock.now();
        if let Some(told) = &*last {
            let kept = match &told.answer {
                Ok(_) => self.interval,
                // Not everybody waits for what does not answer.
                Err(RemoteError::Silent(_)) => SILENCE.min(self.interval),
                Err(RemoteError::Unreadable | RemoteError::NoBranch) => Duration::ZERO,
            };
            // It came while this one waited, or not long ago.
            if told.arrived >= asked || (told.at <= now && now.since(told.at) < kept) {
                return told.answer.clone();
            }
        }
        let answer = self.remote.tip(repo, authorization).await;
        *last = Some(Told { at: now, arrived: Instant::now(), answer: answer.clone() });
        answer
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
