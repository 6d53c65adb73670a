//! The database behind one type. One file per table; a method here reads or
//! writes rows and holds no rule: who may do what, and what follows from what,
//! is decided above.
//!
//! SQLite is embedded and the default. The SQL keeps to what SQLite and
//! Postgres share, so that the second can join under the same suite
//! (`tests/store.rs`).

mod accounts;
mod db;
mod garbage;
mod images;
mod keys;
mod organizations;
mod room;
mod runs;
mod sandboxes;
mod secret;
mod sessions;
mod snapshots;

pub use accounts::AccountRow;
pub use db::{Db, StoreError, Tx};
pub use garbage::{Garbage, GarbageKind};
pub use images::ImageRow;
pub use keys::KeyRow;
pub use organizations::OrgRow;
pub use runs::{RunEnd, RunProcess, RunRow, Volume, VolumeState};
pub use sandboxes::{RouteRow, SandboxFilter, SandboxOrder, SandboxRow, SnapshotsOfDeleted};
pub use secret::{ApiKey, hash_secret};
pub use sessions::{SessionFilter, SessionRow};
pub use snapshots::{Retire, SnapshotRow};

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;
