//! JSON of the Vercel Sandbox protocol (provider contract), shared by the
//! server and the command line. Absent fields are left out, never `null`,
//! except where the protocol says so; all times are milliseconds.
//!
//! Here a run is called a session, as on the wire, and nowhere else.

mod command;
mod drive;
mod network;
mod policy;
mod reply;
mod requests;
mod sandbox;
mod session;
mod snapshot;
mod terminal;
pub mod v1;

pub use command::{
    Command, CommandList, CommandReply, CommandRequest, Encoding, InputReply, InputRequest, KillRequest,
    LogLine, PathRequest,
};
pub use drive::{Drive, DriveForkRequest, DriveList, DriveReply, DriveRequest, Mount, Mounts};
pub use network::{NetworkAccess, NetworkUse};
pub use policy::{
    AllowedDomains, ForwardRule, InjectionRule, NetworkPolicy, NetworkPolicyRequest, PolicyRule, Subnets,
    Transform,
};
pub use reply::{ErrorDetail, ErrorReply, Pagination};
pub use requests::{CreateRequest, ForkRequest, Resources, Source, UpdateRequest};
pub use sandbox::{ChangeReply, Disk, KeepLastSnapshots, Route, Sandbox, SandboxList, SandboxReply};
pub use session::{ExtendRequest, NetworkTransfer, Session, SessionList, SessionReply, StopReply};
pub use snapshot::{
    MadeSnapshotReply, Snapshot, SnapshotList, SnapshotNode, SnapshotReply, SnapshotRequest, SnapshotTree,
};
pub use terminal::{InteractiveReply, TerminalMessage};
