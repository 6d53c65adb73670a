//! What is recorded tells a host what to do, and hears what the host recorded.
//!
//! [`Runner`] is everything that the rest of this crate knows of a host. Each
//! order names the states of a sandbox in which it is legal; which of them a
//! sandbox is in, the host knows. Orders on one sandbox are carried out one after
//! the other, and to their end when whoever gave one is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, Grant, Input, LogEvent, Namespace, NetworkPolicy,
    NetworkUse, PortError, PortStream, Result, RunRef, SnapshotRequest, Source, StopReason, TerminalOutput,
    TerminalSize, TerminalStream, UpdateSandbox,
};
use dormouse_store::{ImageRow, RouteRow, RunRow, SandboxRow, SnapshotRow, VolumeState};
use dormouse_types::{CommandId, DriveId, RunId, SandboxId, VolumeId};

use crate::ground::Files;
use crate::record::SandboxRecord;

/// What an order recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The sandbox; `None`: it is gone.
    pub sandbox: Option<SandboxRecord>,
    /// The run that the order was about.
    pub run: RunRow,
    /// The snapshot that it made.
    pub snapshot: Option<SnapshotRow>,
}

/// A sandbox to make, with its first run.
#[derive(Debug, Clone)]
pub struct Creation {
    /// The sandbox.
    pub sandbox: SandboxRow,
    /// Its first run, pending.
    pub run: RunRow,
    /// Its labels.
    pub tags: BTreeMap<String, String>,
    /// Its ports.
    pub routes: Vec<RouteRow>,
    /// What its files are.
    pub files: Files,
    /// The image below them.
    pub image: ImageRow,
    /// What is put into it before it is handed over.
    pub source: Option<Source>,
}

/// A volume to be made a copy of another sandbox's.
#[derive(Debug, Clone)]
pub struct CopyTo {
    /// The new volume.
    pub volume: VolumeId,
    /// Whose it will be.
    pub sandbox: SandboxId,
    /// Bytes that it may hold.
    pub limit: Option<u64>,
}

/// A host, as what is recorded sees it.
#[async_trait]
pub trait Runner: Send + Sync + std::fmt::Debug + 'static {
    /// Returns once the host has made its processes agree with the rows, after
    /// its start; until then it takes no order.
    ///
    /// # Errors
    /// [`dormouse_provider::ProviderError::Capacity`] when that takes too long.
    async fn ready(&self) -> Result<()>;

    /// Records a sandbox and brings up its first run. Legal where there is no
    /// sandbox of this name.
    ///
    /// # Errors
    /// [`dormouse_provider::ProviderError::Conflict`] when there is. On any
    /// failure nothing is left, a volume that was copied for it included.
    async fn create(&self, creation: Creation) -> Result<Recorded>;

    /// Has a live run. Legal in every state: one that runs is the answer (and
    /// `false`), one that ends is waited for.
    async fn resume(&self, sandbox: &SandboxId) -> Result<(Recorded, bool)>;

    /// Ends a run. Legal in every state: one that ended is the answer.
    async fn stop(&self, sandbox: &SandboxId, run: &RunId, reason: StopReason) -> Result<Recorded>;

    /// Makes a manual snapshot of a run, which ends it unless it is to be a live
    /// one; how long its processes stood still then. Legal while it is live.
    async fn snapshot(
        &self,
        sandbox: &SandboxId,
        run: &RunId,
        request: SnapshotRequest,
    ) -> Result<(Recorded, Option<Duration>)>;

    /// Makes a volume a copy of a sandbox's files as they are now; `None` where
    /// it has no volume. Legal in every state.
    async fn copy(&self, sandbox: &SandboxId, to: CopyTo) -> Result<Option<VolumeState>>;

    /// Ends the run, if any, and forgets the sandbox. Legal in every state.
    async fn delete(&self, sandbox: &SandboxId, with_snapshots: bool) -> Result<()>;

    /// Changes a sandbox. Legal in every state.
    async fn update(&self, sandbox: &SandboxId, changes: UpdateSandbox) -> Result<Recorded>;

    /// Changes what may leave a run, and its sandbox's later ones. Legal while
    /// it is live.
    async fn set_policy(&self, sandbox: &SandboxId, run: &RunId, policy: NetworkPolicy) -> Result<Recorded>;

    /// As [`Runner::set_policy`], unless the sandbox's policy is not of this grant: then
    /// nothing happens, and the answer is `false`.
    async fn renew(
        &self,
        sandbox: &SandboxId,
        run: &RunId,
        grant: &Grant,
        policy: NetworkPolicy,
    ) -> Result<bool>;

    /// Whether this host can keep drives.
    fn has_drives(&self) -> bool;

    /// Makes the files of a drive a copy of another's, as they are now; `size`: bytes that it
    /// may hold.
    async fn copy_drive(&self, from: &DriveId, to: &DriveId, size: u64) -> Result<()>;

    /// Removes the files of a drive that has no row. Harmless where there are none.
    async fn drop_drive(&self, drive: &DriveId) -> Result<()>;

    /// Live runs whose policy was of a grant when they began.
    fn granted(&self) -> Vec<(RunRef, Grant)>;

    /// Moves the hard end of a run later. Legal while it is live.
    async fn extend(&self, sandbox: &SandboxId, run: &RunId, by: Duration) -> Result<Recorded>;

    /// The run, if it takes commands now.
    fn live(&self, run: &RunId) -> Option<Arc<dyn LiveRun>>;

    /// Bytes that a sandbox holds on disk, where the host counts.
    async fn used_bytes(&self, sandbox: &SandboxId) -> Result<Option<u64>>;

    /// There is garbage among the rows: the host's files have to follow.
    fn tidy(&self);

    /// Has what was recorded survive the death of the host.
    async fn saved(&self) -> Result<()>;
}

/// A run that takes commands.
#[async_trait]
pub trait LiveRun: Send + Sync + std::fmt::Debug {
    /// Whose it is.
    fn namespace(&self) -> &Namespace;

    /// Whose boot it is.
    fn sandbox(&self) -> &SandboxId;

    /// See [`dormouse_provider::SandboxProvider::network_use`].
    fn network_use(&self) -> NetworkUse;

    /// See [`dormouse_provider::SandboxProvider::start`].
    async fn start(self: Arc<Self>, id: CommandId, spec: CommandSpec) -> Result<Command>;

    /// See [`dormouse_provider::SandboxProvider::command`].
    async fn command(self: Arc<Self>, id: &CommandId) -> Result<Command>;

    /// See [`dormouse_provider::SandboxProvider::commands`].
    async fn commands(self: Arc<Self>) -> Result<Vec<Command>>;

    /// See [`dormouse_provider::SandboxProvider::processor_time`].
    async fn processor_time(self: Arc<Self>) -> Result<Option<Duration>>;

    /// See [`dormouse_provider::SandboxProvider::wait`].
    async fn wait(self: Arc<Self>, id: &CommandId) -> Result<Command>;

    /// See [`dormouse_provider::SandboxProvider::logs`].
    async fn logs(self: Arc<Self>, id: &CommandId) -> Result<BoxStream<LogEvent>>;

    /// See [`dormouse_provider::SandboxProvider::exec`].
    async fn exec(self: Arc<Self>, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>>;

    /// See [`dormouse_provider::SandboxProvider::stdin`].
    async fn stdin(self: Arc<Self>, id: &CommandId, body: BodyStream) -> Result<()>;

    /// See [`dormouse_provider::SandboxProvider::input`].
    async fn input(self: Arc<Self>, id: &CommandId, input: Input) -> Result<u64>;

    /// See [`dormouse_provider::SandboxProvider::kill`].
    async fn kill(self: Arc<Self>, id: &CommandId, signal: i32, tree: bool) -> Result<Command>;

    /// See [`dormouse_provider::SandboxProvider::write_files`].
    async fn write_files(self: Arc<Self>, cwd: &str, gzip: bool, body: BodyStream) -> Result<()>;

    /// See [`dormouse_provider::SandboxProvider::read_file`].
    async fn read_file(self: Arc<Self>, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>>;

    /// See [`dormouse_provider::SandboxProvider::mkdir`].
    async fn mkdir(self: Arc<Self>, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()>;

    /// See [`dormouse_provider::SandboxProvider::terminal`].
    async fn terminal(
        self: Arc<Self>,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>>;

    /// A connection to a TCP port of the sandbox's loopback; it ends with the
    /// run.
    async fn dial(self: Arc<Self>, port: u16) -> std::result::Result<Box<dyn PortStream>, PortError>;
}
