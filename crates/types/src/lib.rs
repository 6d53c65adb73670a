//! Words that every crate shares: ids, instants, states, repository names,
//! durations. No I/O and no rule of one endpoint.

mod branch;
mod cidr;
mod column;
mod duration;
mod github;
mod hex;
mod id;
mod namespace;
mod quota;
mod resources;
mod time;
mod word;

pub use branch::{BranchError, BranchName};
pub use cidr::Cidr;
pub use duration::{DurationError, format_duration, parse_duration};
pub use github::{GithubRepo, RepoError};
pub use hex::{hex, is_commit};
pub use id::{
    AccountId, BuildId, CommandId, DeliveryId, DriveId, HostId, IdError, ImageId, JobId, KeyId, LeaseId,
    OrgId, OrgSnapshotId, RequestId, RunId, SandboxId, SandboxName, SessionId, SnapshotId, VolumeId,
    WebhookId,
};
pub use namespace::{DEFAULT_PROJECT, Namespace};
pub use quota::{Quota, QuotaExceeded, QuotaKind};
pub use resources::Resources;
pub use time::Timestamp;
pub use word::{
    BuildPhase, DeliveryState, EventReason, LifecycleState, RepoAccess, RunStatus, SessionStatus, SetUp,
    SnapshotKind, SnapshotStatus, StopReason, WordError,
};
