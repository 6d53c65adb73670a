//! Creation that a client may repeat. The protocol's clients send a create
//! again when the connection broke or a gateway answered in our place, and have
//! no key to say so. What they send again is the same body for the same name:
//! if the first answer never reached them, the second one gets it; if it did, the
//! name is taken.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_provider::{ProviderError, Resumed, SandboxKey};
use tokio::sync::watch;

/// How long an answer that nobody took is kept: longer than clients repeat.
const KEPT: Duration = Duration::from_secs(60);

type Outcome = Option<Result<Box<Resumed>, Arc<ProviderError>>>;

#[derive(Debug, Clone)]
struct Attempt {
    body: [u8; 32],
    at: Instant,
    outcome: watch::Receiver<Outcome>,
}

/// Creations whose answer has not been taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Creations(Arc<Mutex<HashMap<SandboxKey, Attempt>>>);

/// An answer on its way. Dropped without [`Answer::taken`], it is kept for
/// whoever asks again.
#[derive(Debug)]
pub(crate) struct Answer {
    creations: Creations,
    key: SandboxKey,
}

impl Answer {
    /// The client has it.
    pub(crate) fn taken(self) {
        self.creations.lock().remove(&self.key);
    }
}

/// An attempt that has made nothing: once this is dropped, also by a panic, the
/// next one begins anew.
struct Unfinished {
    creations: Creations,
    key: Option<SandboxKey>,
}

impl Unfinished {
    fn finished(mut self) {
        self.key = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.creations.lock().remove(key);
        }
    }
}

impl Creations {
    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxKey, Attempt>> {
        // A map only: a panic elsewhere cannot tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates, or joins the same creation that is under way or that nobody
    /// took the answer of. `create` goes on when the caller hangs up.
    ///
    /// # Errors
    /// Those of `create`, for everybody who joined it; whoever comes later
    /// creates again.
    pub(crate) async fn create<F>(
        &self,
        key: SandboxKey,
        body: [u8; 32],
        create: F,
    ) -> Result<(Resumed, Answer), ProviderError>
    where
        F: Future<Output = Result<Resumed, ProviderError>> + Send + 'static,
    {
        let answer = Answer { creations: self.clone(), key: key.clone() };
        let (sender, receiver) = watch::channel(None);
        let joined = {
            let mut attempts = self.lock();
            attempts.retain(|_, attempt| attempt.outcome.borrow().is_none() || attempt.at.elapsed() < KEPT);
            match attempts.get(&key) {
                Some(attempt) if attempt.body == body => Some(attempt.outcome.clone()),
                Some(_) => return Err(ProviderError::Conflict(format!("sandbox {}", key.name))),
                None => {
                    let attempt = Attempt { body, at: Instant::now(), outcome: receiver };
                    attempts.insert(key.clone(), attempt);
                    None
                }
            }
        };
        if let Some(mut outcome) = joined {
            let found = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
            return match found {
                Ok(Some(Ok(made))) => Ok((*made, answer)),
                Ok(Some(Err(error))) => Err(error.repeated()),
                _ => Err(ProviderError::internal("create", "the creation that this one repeats was lost")),
            };
        }
        let attempt = Unfinished { creations: self.clone(), key: Some(key) };
        let work = tokio::spawn(async move {
            let made = create.await;
            let told = match &made {
                Ok(made) => Ok(Box::new(made.clone())),
                Err(error) => Err(Arc::new(error.repeated())),
            };
            match made.is_ok() {
                true => attempt.finished(),
                false => drop(attempt),
            }
            // Nobody else waiting is the rule.
            let _ = sender.send(Some(told));
            made
        });
        let made = work.await.map_err(|error| ProviderError::internal("create", error))??;
        Ok((made, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_provider::Namespace;

    fn key() -> SandboxKey {
        SandboxKey { namespace: Namespace("a/default".into()), name: "one".parse().unwrap() }
    }

    #[tokio::test]
    async fn a_failed_creation_is_forgotten() {
        let creations = Creations::default();
        for _ in 0..2 {
            let failed = async { Err(ProviderError::Invalid("no".into())) };
            assert!(creations.create(key(), [0; 32], failed).await.is_err());
            assert!(creations.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn whoever_joins_gets_the_same_error() {
        let creations = Creations::default();
        let (fail, failing) = tokio::sync::oneshot::channel();
        let waiting = creations.clone();
        let create = async { Err(failing.await.unwrap()) };
        let first = tokio::spawn(async move { waiting.create(key(), [0; 32], create).await.map(drop) });
        while creations.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let joined = creations.create(key(), [0; 32], std::future::pending());
        tokio::pin!(joined);
        assert!(futures::poll!(&mut joined).is_pending());
        fail.send(ProviderError::Capacity("full".into())).unwrap();
        for outcome in [first.await.unwrap(), joined.await.map(drop)] {
            assert!(matches!(outcome, Err(ProviderError::Capacity(reason)) if reason == "full"));
        }
    }

    #[tokio::test]
    async fn a_panic_does_not_keep_the_name() {
        let creations = Creations::default();
        let panicking = async { panic!("on purpose") };
        assert!(creations.create(key(), [0; 32], panicking).await.is_err());
        assert!(creations.lock().is_empty());
    }

    #[tokio::test]
    async fn another_body_for_a_name_under_way_is_a_conflict() {
        let creations = Creations::default();
        let waiting = creations.clone();
        let first =
            tokio::spawn(
                async move { waiting.create(key(), [0; 32], std::future::pending()).await.map(drop) },
            );
        while creations.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let other = creations.create(key(), [1; 32], std::future::pending()).await;
        assert!(matches!(other, Err(ProviderError::Conflict(_))));
        first.abort();
    }
}
