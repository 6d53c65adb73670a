//! The product: an agent session gets its sandbox, keeps it, loses it to
//! sleep and gets it back.
//!
//! [`Sessions`] is the whole interface. It knows a provider, a store and a
//! clock; it knows nothing of namespaces, overlays or HTTP.
//!
//! What is done in which state of a session is decided in [`decide`], with its
//! diagram; the other modules do it.

mod attempts;
mod checkout;
mod credentials;
mod decide;
mod error;
mod events;
mod lifecycle;
mod locks;
mod org_snapshots;
mod outside;
mod provision;
mod query;
mod remote;
mod repeated;
mod secrets;

use std::sync::Arc;
use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_provider::{Namespace, ProviderError, SandboxProvider};
use dormouse_store::{Db, SessionRow};
use dormouse_types::{AccountId, HostId, SandboxName, SessionId, Timestamp};
pub use dormouse_types::{LifecycleState, SessionStatus};

pub use credentials::{GitToken, TokenError, TokenSource};
pub use dormouse_provider::checkout::Branch;
pub use error::{Result, SessionError};
pub use org_snapshots::OrgSnapshotConfig;
pub use provision::{Provisioned, Wanted};
pub use query::{NewSession, Probe, SessionPatch, Status};
pub use remote::{Remote, RemoteError, Tip};
pub use secrets::NewSecret;

use attempts::Attempts;
use locks::{Lock, Locks};

/// Options of the lifecycle.
#[derive(Debug, Clone, Copy)]
pub struct LifecycleConfig {
    /// A sandbox that nobody used for this long is put to sleep.
    pub idle_timeout: Duration,
    /// Hard lifetime of a sandbox between two sleeps.
    pub max_lifetime: Duration,
    /// A clone may take this long.
    pub clone_timeout: Duration,
}

/// Sandboxes of agent sessions.
#[derive(Debug)]
pub struct Sessions {
    db: Db,
    provider: Arc<dyn SandboxProvider>,
    clock: Clock,
    config: LifecycleConfig,
    tokens: Option<Arc<dyn TokenSource>>,
    org_snapshots: Option<org_snapshots::OrgSnapshots>,
    /// Published by each of their sandboxes.
    ports: Vec<u16>,
    locks: Locks,
    attempts: Attempts,
    /// Where its sandboxes live, if that is here.
    host: Option<HostId>,
    wake: Arc<tokio::sync::Notify>,
    /// Sessions that something happened to.
    heard: tokio::sync::broadcast::Sender<SessionId>,
    /// The server goes down.
    closing: tokio_util::sync::CancellationToken,
}

impl Sessions {
    /// Sessions over a provider, on the server that is `host`. `here`: their
    /// sandboxes live on it, and no other server can deal with them.
    #[must_use]
    pub fn new(
        db: Db,
        provider: Arc<dyn SandboxProvider>,
        clock: Clock,
        config: LifecycleConfig,
        host: HostId,
        here: bool,
    ) -> Self {
        // A clone, and what comes before and after it.
        let patience = config.clone_timeout + Duration::from_secs(60);
        let locks = Locks::new(db.clone(), clock.clone(), host.clone(), patience);
        let heard = tokio::sync::broadcast::channel(events::BACKLOG).0;
        let (host, wake, attempts) = (here.then_some(host), Arc::default(), Attempts::default());
        Self {
            db,
            provider,
            clock,
            config,
            tokens: None,
            org_snapshots: None,
            ports: Vec::new(),
            locks,
            attempts,
            host,
            wake,
            heard,
            closing: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// With tokens for repositories that an organization of the caller claims.
    #[must_use]
    pub fn with_tokens(self, tokens: Arc<dyn TokenSource>) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// With these ports of each sandbox published, so that what listens there has a URL.
    #[must_use]
    pub fn with_ports(self, ports: Vec<u16>) -> Self {
        Self { ports, ..self }
    }

    /// How long a sandbox that nobody uses stays awake.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.config.idle_timeout
    }

    /// Where an account's sandboxes live: its default project.
    #[must_use]
    pub fn namespace(account: &AccountId) -> Namespace {
        Namespace::default_of(account.as_str())
    }

    /// The session, if it is `account`'s.
    async fn owned(&self, account: &AccountId, id: &SessionId) -> Result<SessionRow> {
        let row = self.db.session(id).await?.filter(|row| row.deleted_at.is_none());
        let row = row.ok_or(SessionError::NotFound)?;
        if &row.account_id == account { Ok(row) } else { Err(SessionError::Forbidden) }
    }

    /// The session and its lock, if it is `account`'s and its sandbox can be
    /// dealt with here.
    async fn locked(&self, account: &AccountId, id: &SessionId) -> Result<(Lock, SessionRow)> {
        // Before the lock: whoever may not come in does not wait.
        self.owned(account, id).await?;
        let lock = self.locks.take(id).await?;
        let row = self.owned(account, id).await?;
        self.at_hand(&row).await?;
        Ok((lock, row))
    }

    /// Refuses what needs a sandbox of another server.
    async fn at_hand(&self, row: &SessionRow) -> Result<()> {
        if row.host_id == self.host || row.host_id.is_none() {
            return Ok(());
        }
        let key = Self::key(row, &SandboxName::for_session(&row.id));
        match self.provider.reachable(&key).await {
            // Nothing is left of it there.
            Ok(()) | Err(ProviderError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
