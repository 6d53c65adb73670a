//! What can go wrong, by what the caller can do about it.

use dormouse_provider::ProviderError;
use dormouse_store::StoreError;
use dormouse_types::{GithubRepo, SandboxName};

use crate::RemoteError;

/// Result of a call on sessions.
pub type Result<T> = std::result::Result<T, SessionError>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is no such session.
    #[error("Session not found")]
    NotFound,
    /// It is somebody else's.
    #[error("Forbidden")]
    Forbidden,
    /// The session is bound to another repository.
    #[error("this session is bound to {bound}; use another session for {asked}")]
    OtherRepository {
        /// What it is bound to.
        bound: GithubRepo,
        /// What was asked for.
        asked: GithubRepo,
    },
    /// The session is archived.
    #[error("this session is archived; set its status to running to use it again")]
    Archived,
    /// The session has no sandbox that runs.
    #[error("Sandbox not initialized")]
    NotInitialized,
    /// The session never had a sandbox.
    #[error("No sandbox available for resume")]
    NeverInitialized,
    /// The session's sandbox was deleted behind its back.
    #[error("Saved sandbox is no longer available. Create a new sandbox.")]
    SandboxGone,
    /// Somebody changed the session in the same moment, again and again.
    #[error("the session is being changed by others; try again")]
    Contended,
    /// The sandbox was stopped or deleted while it was being set up.
    #[error("the sandbox was stopped or deleted while its repository was being cloned; try again")]
    Interrupted,
    /// The session was stopped, archived or deleted meanwhile.
    #[error("the session was stopped, archived or deleted in the meantime")]
    CalledOff,
    /// The name is that of a session's sandbox.
    #[error("the name {0} is reserved for an agent session; use POST /api/sandbox to create its sandbox")]
    Reserved(SandboxName),
    /// A key was used for another request before.
    #[error("this Idempotency-Key was used for another request; use a new one")]
    KeyReused,
    /// The repository could not be cloned; the message is git's, for the caller.
    #[error("Failed to clone {repo}: {message}")]
    Clone {
        /// Which.
        repo: GithubRepo,
        /// Git's last words.
        message: String,
    },
    /// The remote of the repository does not say where it stands, or that it has
    /// nothing.
    #[error("{repo}: {error}")]
    Remote {
        /// Which.
        repo: GithubRepo,
        /// Why.
        error: RemoteError,
    },
    /// There is no such org snapshot for the caller.
    #[error("Org snapshot not found")]
    NoSuchOrgSnapshot,
    /// There are no org snapshots of this repository here.
    #[error("org snapshots are not enabled for {0} on this server")]
    NoOrgSnapshots(GithubRepo),
    /// None of the caller's organizations claims the repository.
    #[error("only members of an organization that claims {0} may do this")]
    NotClaimed(GithubRepo),
    /// The caller is no member of the organization that a session is to be for.
    #[error("Access denied to specified organizationId")]
    NotAMember,
    /// The caller is no member of such an organization.
    #[error("Organization not found")]
    NoSuchOrganization,
    /// A secret cannot be so.
    #[error("{0}")]
    Secret(String),
    /// The provider failed.
    #[error("Failed to provision sandbox")]
    Provider(#[from] ProviderError),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
}
