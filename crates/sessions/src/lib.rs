//! The product: an agent session gets its sandbox, keeps it, loses it to
//! sleep and gets it back.
//!
//! [`Sessions`] is the whole interface. It knows a provider, a store and a
//! clock; it knows nothing of namespaces, overlays or HTTP.
//!
//! ```text
//!  create ─► provisioning ──provision──► restoring ──ready──► active
//!                  ▲                      │   ▲                 │ idle, lifetime, pause
//!                  └── failure, crash ────┘   │                 ▼
//!                      (nothing is left)      └─provision── hibernated ◄── hibernating
//!
//!  failed: the last change failed; the next provision heals it
//!  any ──archive──► archived ──unarchive──► hibernated, or provisioning without a sandbox
//! ```

mod credentials;
mod error;
mod lifecycle;
mod provision;
mod query;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_provider::{Namespace, SandboxProvider};
use dormouse_store::{Db, SessionRow};
use dormouse_types::{AccountId, SessionId, Timestamp};

pub use credentials::GitToken;
pub use error::{Result, SessionError};
pub use lifecycle::LifecycleState;
pub use provision::Provisioned;
pub use query::{NewSession, Probe, SessionPatch, Status};

use slots::Slots;

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
    git_token: Option<GitToken>,
    slots: Slots,
    wake: Arc<tokio::sync::Notify>,
}

impl Sessions {
    /// Sessions over a provider.
    #[must_use]
    pub fn new(db: Db, provider: Arc<dyn SandboxProvider>, clock: Clock, config: LifecycleConfig) -> Self {
        let (slots, wake) = (Slots::default(), Arc::default());
        Self { db, provider, clock, config, git_token: None, slots, wake }
    }

    /// With a token for repositories that an organization of the caller claims.
    /// The provider must be able to set it on requests.
    #[must_use]
    pub fn with_git_token(self, token: GitToken) -> Self {
        Self { git_token: Some(token), ..self }
    }

    /// How long a sandbox that nobody uses stays awake.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.config.idle_timeout
    }

    /// Where an account's sandboxes live: its default project.
    #[must_use]
    pub fn namespace(account: &AccountId) -> Namespace {
        Namespace(format!("{account}/default"))
    }

    /// The session, if it is `account`'s.
    async fn owned(&self, account: &AccountId, id: &SessionId) -> Result<SessionRow> {
        let row = self.db.session(id).await?.ok_or(SessionError::NotFound)?;
        if &row.account_id == account { Ok(row) } else { Err(SessionError::Forbidden) }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
