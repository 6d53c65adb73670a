//! Work on a session that its owner can call off: whoever deletes, archives or
//! stops it does not wait behind a clone that hangs.
//!
//! In this server a call-off is heard at once. One that another server wrote down
//! is found by looking at the row.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_types::{SessionId, SessionStatus};
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::{SessionError, Sessions};

/// How often the row is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(2);

/// The work that goes on, by session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts(Arc<Mutex<HashMap<SessionId, (CancellationToken, usize)>>>);

/// One piece of it, until it is dropped.
pub(crate) struct Attempt {
    all: Attempts,
    session: SessionId,
    called_off: CancellationToken,
}

impl Attempts {
    pub(crate) fn begin(&self, session: &SessionId) -> Attempt {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, count) = all.entry(session.clone()).or_default();
        *count += 1;
        let called_off = token.clone();
        Attempt { all: self.clone(), session: session.clone(), called_off }
    }

    /// Calls off what goes on now; what begins later is not meant. `false`: nothing
    /// did.
    pub(crate) fn call_off(&self, session: &SessionId) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.remove(session) {
            Some((token, _)) => {
                token.cancel();
                true
            }
            None => false,
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.called_off.is_cancelled() {
            // Its entry is gone, or another's.
            return;
        }
        if let Some((_, count)) = all.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.session);
            }
        }
    }
}

impl Attempt {
    /// # Errors
    /// [`SessionError::CalledOff`] where it was, before it came to its turn.
    pub(crate) fn check(&self) -> Result<()> {
        if self.called_off.is_cancelled() { Err(SessionError::CalledOff) } else { Ok(()) }
    }
}

impl Sessions {
    /// Does work that is for an attempt, if it is for one, unless that is called
    /// off. Only what can be dropped in the middle goes through here.
    ///
    /// # Errors
    /// [`SessionError::CalledOff`]; those of the work.
    pub(crate) async fn unless_called_off<T>(
        &self,
        attempt: Option<&Attempt>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(Attempt { session, called_off: token, .. }) = attempt else { return work.await };
        let unwanted = async {
            loop {
                tokio::select! {
                    biased;
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                match self.db.session(session).await {
                    Ok(None) => return,
                    Ok(Some(row)) if row.deleted_at.is_some() || row.status == SessionStatus::Archived => {
                        return;
                    }
                    // What cannot be read has not been called off.
                    Ok(Some(_)) | Err(_) => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = unwanted => Err(SessionError::CalledOff),
            done = work => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_later_is_not_called_off() {
        let (attempts, session) = (Attempts::default(), SessionId::generate());
        let (first, second) = (attempts.begin(&session), attempts.begin(&session));
        drop(first);
        second.check().unwrap();
        assert!(attempts.call_off(&session));
        second.check().unwrap_err();
        let third = attempts.begin(&session);
        drop(second);
        third.check().unwrap();
        drop(third);
        assert!(attempts.0.lock().unwrap().is_empty());
        assert!(!attempts.call_off(&session));
    }
}
