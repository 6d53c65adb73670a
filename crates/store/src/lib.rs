//! The database behind one type. One file per table, and one for the changes of
//! several at once; a method here reads or writes rows and holds no rule: who may do what, and what follows from what,
//! is decided above.
//!
//! SQLite is embedded and the default; a Postgres may be shared by several
//! servers. Each statement is written once, in the SQL that both understand
//! (`sql`), and one suite runs on both (`tests/store.rs`).

mod accounts;
mod changes;
mod db;
mod drives;
mod error;
mod garbage;
mod hosts;
mod images;
mod jobs;
mod keys;
mod leases;
mod org_builds;
mod org_snapshots;
mod organizations;
mod pace;
mod quotas;
mod repeated_requests;
mod room;
mod routes;
mod runs;
mod sandboxes;
mod secret;
mod secrets;
mod session_events;
mod sessions;
mod snapshots;
mod sql;
#[cfg(feature = "testing")]
pub mod testing;
mod tickets;
mod webhooks;

pub use accounts::AccountRow;
pub use changes::{RunEnd, SnapshotsOfDeleted, Volume};
pub use db::{Address, Db, PostgresAddress, Traffic, Tx};
pub use drives::{DriveFilter, DriveOrder, DriveRow};
pub use error::{Result, StoreError};
pub use garbage::{Garbage, GarbageKind};
pub use hosts::HostRow;
pub use images::ImageRow;
pub use jobs::{JobRow, JobState, Move};
pub use keys::KeyRow;
pub use org_builds::OrgBuildRow;
pub use org_snapshots::{OrgSnapshotKey, OrgSnapshotRow};
pub use organizations::OrgRow;
pub use pace::{Hold, Pace};
pub use repeated_requests::RepeatedRequestRow;
pub use routes::RouteRow;
pub use runs::{RunProcess, RunRow, VolumeState};
pub use sandboxes::{SandboxFilter, SandboxOrder, SandboxRow, SandboxWithRun};
pub use secret::{ApiKey, hash_secret};
pub use secrets::SecretRow;
pub use session_events::{Cause, SessionEventRow};
pub use sessions::{SessionFilter, SessionRow};
pub use snapshots::{Retire, SnapshotRow};
pub use tickets::TicketRow;
pub use webhooks::{DeliveryRow, WebhookRow};
