//! One change of a session's sandbox at a time: the second caller waits for
//! the first and then finds its work done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_types::SessionId;
use tokio::sync::OwnedMutexGuard;

type Map = Arc<Mutex<HashMap<SessionId, Arc<tokio::sync::Mutex<()>>>>>;

/// The slots of all sessions that are being changed.
#[derive(Debug, Default)]
pub(crate) struct Slots(Map);

/// A held slot.
#[derive(Debug)]
pub(crate) struct Slot {
    map: Map,
    session: SessionId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Slots {
    /// Waits for the session's slot.
    pub(crate) async fn take(&self, session: &SessionId) -> Slot {
        let guard = self.mutex(session).lock_owned().await;
        self.held(session, guard)
    }

    /// The session's slot, unless somebody has it.
    pub(crate) fn try_take(&self, session: &SessionId) -> Option<Slot> {
        let guard = self.mutex(session).try_lock_owned().ok()?;
        Some(self.held(session, guard))
    }

    fn mutex(&self, session: &SessionId) -> Arc<tokio::sync::Mutex<()>> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(session.clone()).or_default().clone()
    }

    fn held(&self, session: &SessionId, guard: OwnedMutexGuard<()>) -> Slot {
        Slot { map: self.0.clone(), session: session.clone(), guard: Some(guard) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.guard.take());
        // Only the map is left holding it: nobody waits.
        if map.get(&self.session).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            map.remove(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;
    use dormouse_types::SessionId;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_stays() {
        let (slots, session) = (Slots::default(), SessionId::generate());
        let first = slots.take(&session).await;
        let waiting = slots.take(&session);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(slots.try_take(&session).is_none());
        drop(first);
        drop(waiting.await);
        assert!(slots.0.lock().unwrap().is_empty());
        drop(slots.try_take(&session).unwrap());
        assert!(slots.0.lock().unwrap().is_empty());
    }
}
