//! One change of a session's sandbox at a time: the second caller waits for
//! the first and then finds its work done. Callers of one server queue in it;
//! servers that share a database hold a lease on the session besides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_jobs::{Clock, keep_lease};
use dormouse_store::Db;
use dormouse_types::{HostId, LeaseId, SessionId};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::SessionError;
use crate::error::Result;

/// How long a server that died keeps others from its sessions.
const LEASE: Duration = Duration::from_secs(15);

/// Between two looks at a lease that another server holds.
const LOOK: Duration = Duration::from_millis(100);

type Map = Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>;

/// The locks of all sessions that are being changed.
#[derive(Debug)]
pub(crate) struct Locks {
    map: Map,
    db: Db,
    clock: Clock,
    host: HostId,
    /// The longest that a change takes.
    patience: Duration,
}

/// A held lock; dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Lock {
    local: Option<Local>,
    /// Where servers share the database.
    lease: Option<Lease>,
}

/// The lock among callers of this server.
#[derive(Debug)]
struct Local {
    map: Map,
    name: String,
    guard: Option<OwnedMutexGuard<()>>,
}

/// The lock among servers, which is held longer for as long as this lives.
#[derive(Debug)]
struct Lease {
    db: Db,
    name: String,
    holder: LeaseId,
    /// Another server may have it.
    lost: CancellationToken,
    _renewing: AbortOnDropHandle<()>,
}

impl Locks {
    pub(crate) fn new(db: Db, clock: Clock, host: HostId, patience: Duration) -> Self {
        Self { map: Map::default(), db, clock, host, patience }
    }

    /// Waits for the session's lock.
    ///
    /// # Errors
    /// [`SessionError::Contended`] when another server has it for longer than
    /// any change takes; those of the database.
    pub(crate) async fn take(&self, session: &SessionId) -> Result<Lock> {
        self.take_named(&of(session)).await
    }

    /// [`Locks::take`] of something that is no session.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn take_named(&self, name: &str) -> Result<Lock> {
        let guard = self.mutex(name).lock_owned().await;
        let local = self.held(name, guard);
        if !self.db.is_shared() {
            return Ok(Lock { local: Some(local), lease: None });
        }
        let until = self.clock.now().plus(self.patience);
        loop {
            if let Some(lease) = self.lease(name).await? {
                return Ok(Lock { local: Some(local), lease: Some(lease) });
            }
            if self.clock.now() >= until {
                return Err(SessionError::Contended);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The session's lock, unless somebody has it.
    ///
    /// # Errors
    /// Those of the database.
    pub(crate) async fn try_take(&self, session: &SessionId) -> Result<Option<Lock>> {
        let name = of(session);
        let Ok(guard) = self.mutex(&name).try_lock_owned() else { return Ok(None) };
        let local = self.held(&name, guard);
        let lease = if self.db.is_shared() {
            match self.lease(&name).await? {
                Some(lease) => Some(lease),
                None => return Ok(None),
            }
        } else {
            None
        };
        Ok(Some(Lock { local: Some(local), lease }))
    }

    /// The lease of this name, unless another server holds it.
    async fn lease(&self, name: &str) -> Result<Option<Lease>> {
        let name = name.to_owned();
        let (holder, now) = (LeaseId::generate(), self.clock.now());
        let ends_at = now.plus(LEASE);
        if !self.db.take_lease(&name, &self.host, &holder, now, ends_at).await? {
            return Ok(None);
        }
        let lost = CancellationToken::new();
        let (db, clock, held, by) = (self.db.clone(), self.clock.clone(), name.clone(), holder.clone());
        let told = lost.clone();
        let renewing = AbortOnDropHandle::new(tokio::spawn(async move {
            let renew = |_, longer| db.renew_lease(&held, &by, longer);
            keep_lease(&clock, &held, ends_at, LEASE, renew).await;
            told.cancel();
        }));
        Ok(Some(Lease { db: self.db.clone(), name, holder, lost, _renewing: renewing }))
    }

    fn mutex(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(name.to_owned()).or_default().clone()
    }

    fn held(&self, name: &str, guard: OwnedMutexGuard<()>) -> Local {
        Local { map: self.map.clone(), name: name.to_owned(), guard: Some(guard) }
    }
}

fn of(session: &SessionId) -> String {
    format!("session {session}")
}

impl Lock {
    /// Returns once another server may have the lock. What its holder was doing
    /// must end there: what it finds and removes may be the other's.
    pub(crate) async fn lost(&self) {
        match &self.lease {
            Some(lease) => lease.lost.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

impl Lock {
    /// Does what the lock is for, as long as it is held.
    ///
    /// # Errors
    /// [`SessionError::Contended`] once another server may have it; those of the work.
    pub(crate) async fn hold<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.lost() => Err(SessionError::Contended),
            done = work => done,
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.guard.take());
        // Only the map is left holding it: nobody waits.
        if map.get(&self.name).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            map.remove(&self.name);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let (Some(lease), local) = (self.lease.take(), self.local.take()) else { return };
        // Whoever waits in this server comes after the lease is given back.
        tokio::spawn(async move {
            if let Err(error) = lease.db.release_lease(&lease.name, &lease.holder).await {
                tracing::warn!(lease = lease.name, %error, "release a lease; it ends by itself");
            }
            drop(local);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn locks(db: Db, host: &str) -> Locks {
        Locks::new(db, Clock::system(), host.parse().unwrap(), Duration::from_secs(60))
    }

    #[tokio::test]
    async fn one_at_a_time_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_file(&dir.path().join("dormouse.db")).await.unwrap();
        let (locks, session) = (locks(db, "host_one").await, SessionId::generate());
        let first = locks.take(&session).await.unwrap();
        let waiting = locks.take(&session);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(locks.try_take(&session).await.unwrap().is_none());
        drop(first);
        drop(waiting.await.unwrap());
        assert!(locks.map.lock().unwrap().is_empty());
        drop(locks.try_take(&session).await.unwrap().unwrap());
        assert!(locks.map.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn servers_of_one_database_take_turns() {
        let address = dormouse_store::testing::Postgres::shared().database().parse().unwrap();
        let db = Db::open(&address).await.unwrap();
        let (one, other) = (locks(db.clone(), "host_one").await, locks(db.clone(), "host_two").await);
        let session = SessionId::generate();
        let first = one.take(&session).await.unwrap();
        assert!(other.try_take(&session).await.unwrap().is_none());
        let waiting = other.take(&session);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        let second = waiting.await.unwrap();
        assert!(one.try_take(&session).await.unwrap().is_none());
        drop(second);
        // One that died holds it no longer than its lease, or its next start.
        std::mem::forget(one.take(&session).await.unwrap());
        assert!(other.try_take(&session).await.unwrap().is_none());
        db.clear_leases(&one.host, Clock::system().now()).await.unwrap();
        assert!(other.try_take(&session).await.unwrap().is_some());
    }
}
