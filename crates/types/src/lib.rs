//! Words that every crate shares: ids, instants, states, repository names,
//! durations and the error envelope. No I/O and no rule of one endpoint.

mod cidr;
mod column;
mod duration;
mod github;
mod id;
mod namespace;
mod resources;
mod time;
mod word;

pub use cidr::Cidr;
pub use duration::{DurationError, format_duration, parse_duration};
pub use github::{GithubRepo, RepoError};
pub use id::{
    AccountId, CommandId, HostId, IdError, ImageId, JobId, KeyId, OrgId, RunId, SandboxId, SandboxName,
    SessionId, SnapshotId, VolumeId,
};
pub use namespace::{DEFAULT_PROJECT, Namespace};
pub use resources::Resources;
pub use time::Timestamp;
pub use word::{
    LifecycleState, RunStatus, SessionStatus, SnapshotKind, SnapshotStatus, StopReason, WordError,
};

/// Body of every error reply of the session API (seed, `components/schemas/Error`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ErrorBody {
    /// Always `"error"`.
    pub status: String,
    /// What went wrong and what would be right.
    pub error: String,
}

impl ErrorBody {
    /// The envelope around `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { status: "error".to_owned(), error: message.into() }
    }
}
