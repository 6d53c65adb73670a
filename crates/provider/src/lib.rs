//! The provider port: what the session API needs from whoever runs sandboxes.
//!
//! It is the Vercel Sandbox protocol as a Rust trait: one crate serves it over
//! HTTP, the engine does it on this host. Types say what a thing is, not how
//! JSON spells it (that is `dormouse-wire`).

pub mod checkout;
#[cfg(feature = "conformance")]
pub mod conformance;
mod drive;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod health;
mod model;
mod network;
mod policy;
mod ports;

use std::pin::Pin;

pub use drive::{Drive, DriveSort, ListDrives, Mount, MountMode};
pub use error::{ProviderError, Result};
pub use health::{Count, HealthCheck, HealthSource, HealthState};
pub use model::{
    CloneDirectory, Command, CommandSpec, CreateSandbox, Direction, DiskUse, Environment, Expiration,
    ForkSandbox, GitSource, Grant, Input, KeepLast, ListOf, ListSandboxes, LogEvent, MadeSnapshot, Page,
    ResourcesRequest, Retention, Route, Run, RunRef, Sandbox, SandboxKey, SandboxSort, SandboxView, Snapshot,
    SnapshotNode, SnapshotRequest, SnapshotTree, Source, StartFrom, StdinSource, Stopped, TerminalInput,
    TerminalOutput, TerminalSize, Transfer, UpdateSandbox, shown_url,
};
pub use network::{NetworkAccess, NetworkUse};
pub use policy::{
    Action, CustomPolicy, DirectResponse, DomainPattern, DomainPolicy, HostName, KeyValueMatcher, Matcher,
    NetworkPolicy, RequestMatch, Rule, Swap, expression,
};

pub use dormouse_types::{Namespace, Resources, RunStatus, SnapshotKind, SnapshotStatus, StopReason};
pub use ports::{PortConnection, PortError, PortGateway, PortStream};

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_types::{CommandId, SandboxName, SnapshotId};
use futures::Stream;

/// A stream that a provider returns.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// A body that a caller sends.
pub type BodyStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// What the user of a terminal does, until they hang up.
pub type TerminalStream = Pin<Box<dyn Stream<Item = TerminalInput> + Send>>;

/// Runs sandboxes.
///
/// Every method is safe to retry unless it says otherwise, and returns only
/// once its effect is visible to the next call. A future that is dropped does
/// not undo what began: the operation runs to its end.
#[async_trait]
pub trait SandboxProvider: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a named sandbox and its first run; returns when commands can run.
    ///
    /// Safe to retry with [`CreateSandbox::retry_key`]; without one the name is
    /// taken.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] when the name is taken. On any failure
    /// nothing is left behind.
    async fn create(&self, request: CreateSandbox) -> Result<SandboxView>;

    /// Whoever created the sandbox has the answer: from now on its name is taken
    /// for a creation with the same [`CreateSandbox::retry_key`] too.
    async fn taken(&self, _key: &SandboxKey) -> Result<()> {
        Ok(())
    }

    /// Whether calls that need the sandbox's host can be made here; a provider
    /// that is one place needs not say so.
    ///
    /// # Errors
    /// [`ProviderError::Elsewhere`] where they cannot.
    async fn reachable(&self, _key: &SandboxKey) -> Result<()> {
        Ok(())
    }

    /// The sandbox as it stands; never wakes it.
    async fn get(&self, key: &SandboxKey) -> Result<SandboxView>;

    /// The sandbox with a live run: the current one, or a new one with the
    /// files of the last stop. Waits for a stop in progress.
    async fn resume(&self, key: &SandboxKey) -> Result<SandboxView>;

    /// Sandboxes of a namespace, and the cursor of the next page.
    async fn list(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)>;

    /// Changes a sandbox, whatever its state.
    async fn update(&self, key: &SandboxKey, changes: UpdateSandbox) -> Result<SandboxView>;

    /// Makes a sandbox from the files and the configuration of another. The
    /// files are those of its last snapshot; of one that keeps no snapshots
    /// ([`Retention::Current`]), or with `live`, those that it has now.
    ///
    /// # Errors
    /// As [`SandboxProvider::create`].
    async fn fork(&self, request: ForkSandbox) -> Result<SandboxView>;

    /// Ends the run, if any, and forgets the sandbox. Legal in every state.
    /// Manual snapshots stay unless `with_snapshots`.
    async fn delete(&self, key: &SandboxKey, with_snapshots: bool) -> Result<Sandbox>;

    /// The run as it stands.
    async fn run(&self, run: &RunRef) -> Result<Run>;

    /// The ports of the run's sandbox.
    async fn routes(&self, run: &RunRef) -> Result<Vec<Route>>;

    /// Runs of a namespace or of one sandbox.
    async fn runs(&self, namespace: &Namespace, list: ListOf) -> Result<(Vec<Run>, Option<String>)>;

    /// Ends the run; a persistent sandbox keeps everything, in a snapshot too
    /// where its retention wants one. Ending an ended run changes nothing.
    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped>;

    /// Ends the run and keeps its files in a manual snapshot, also when the
    /// sandbox is not persistent. A live one leaves the run going.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] where this provider makes no live ones.
    async fn snapshot(&self, run: &RunRef, request: SnapshotRequest) -> Result<MadeSnapshot>;

    /// Snapshots of a namespace or of one sandbox, deleted ones included.
    async fn snapshots(&self, namespace: &Namespace, list: ListOf)
    -> Result<(Vec<Snapshot>, Option<String>)>;

    /// One snapshot, deleted or not.
    async fn get_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot>;

    /// Sleeping sandboxes that would start from a snapshot next, at most ten of them.
    async fn starting_from(&self, _namespace: &Namespace, _id: &SnapshotId) -> Result<Vec<SandboxName>> {
        Ok(Vec::new())
    }

    /// Deletes a snapshot. Sandboxes that would start from it next do not
    /// start; runs that stand on it go on.
    async fn delete_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot>;

    /// What a snapshot was made on top of ([`Direction::Descending`]), or what was
    /// made on top of it.
    async fn snapshot_tree(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: Direction,
        limit: u32,
    ) -> Result<SnapshotTree>;

    /// Changes what may leave the live run, and its sandbox's later ones.
    async fn set_network_policy(&self, run: &RunRef, policy: NetworkPolicy) -> Result<Run>;

    /// Whether the provider keeps a [`Grant`] with its policy.
    fn keeps_grants(&self) -> bool {
        false
    }

    /// Runs that live here with a policy of a grant.
    async fn granted(&self) -> Result<Vec<(RunRef, Grant)>> {
        Ok(Vec::new())
    }

    /// Changes a policy as [`SandboxProvider::set_network_policy`] does, unless somebody
    /// set another since: then it stays, and the answer is `false`.
    async fn renew_grant(&self, _run: &RunRef, _grant: &Grant, _policy: NetworkPolicy) -> Result<bool> {
        Err(ProviderError::internal("renew a grant", "this provider keeps none"))
    }

    /// What the sandbox's live run did on the network; `None`: nothing runs, or the
    /// provider does not tell.
    async fn network_use(&self, _key: &SandboxKey) -> Result<Option<NetworkUse>> {
        Ok(None)
    }

    /// Drives of a namespace, and the cursor of the next page.
    async fn drives(
        &self,
        _namespace: &Namespace,
        _list: ListDrives,
    ) -> Result<(Vec<Drive>, Option<String>)> {
        Err(no_drives())
    }

    /// One drive.
    async fn drive(&self, _namespace: &Namespace, _name: &str) -> Result<Drive> {
        Err(no_drives())
    }

    /// The drive of this name, or a new one, which is `true` then.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] where it is there with another size than is asked for.
    async fn get_or_create_drive(
        &self,
        _namespace: &Namespace,
        _name: &str,
        _max_size: Option<u64>,
    ) -> Result<(Drive, bool)> {
        Err(no_drives())
    }

    /// A new drive with what is in another now, in constant time.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] where the name is taken.
    async fn fork_drive(&self, _namespace: &Namespace, _from: &str, _name: &str) -> Result<Drive> {
        Err(no_drives())
    }

    /// Deletes a drive with everything in it.
    ///
    /// # Errors
    /// [`ProviderError::InUse`] while a run may write to it.
    async fn delete_drive(&self, _namespace: &Namespace, _name: &str) -> Result<Drive> {
        Err(no_drives())
    }

    /// Starts a command on a terminal of its own. It gets SIGHUP when the input
    /// ends.
    async fn terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>>;

    /// Moves the run's hard end later. Not safe to repeat: each call adds.
    async fn extend(&self, run: &RunRef, by: std::time::Duration) -> Result<Run>;

    /// Starts a command. A retry with the same `id` gets the same command.
    async fn start(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<Command>;

    /// Where a command stands.
    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command>;

    /// Commands that the run remembers, oldest first.
    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>>;

    /// What the run's processes have used of processors since it began; `None`
    /// where the provider does not count it.
    async fn processor_time(&self, _run: &RunRef) -> Result<Option<std::time::Duration>> {
        Ok(None)
    }

    /// Waits until the command has exited.
    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command>;

    /// Output from the first byte, then the exit.
    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>>;

    /// Starts a command and follows it in one step. The first event is
    /// [`LogEvent::Started`].
    async fn exec(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>>;

    /// Feeds standard input of a command that was started with
    /// [`StdinSource::Stream`]; the end of the stream closes it. Writers take turns.
    ///
    /// # Errors
    /// [`ProviderError::InputRefused`] where the command does not take all of it.
    async fn stdin(&self, run: &RunRef, id: &CommandId, body: BodyStream) -> Result<()>;

    /// Feeds a part of standard input; how many bytes the command has taken since it
    /// started.
    ///
    /// # Errors
    /// [`ProviderError::InputRefused`] where the command takes no input;
    /// [`ProviderError::Invalid`] for an offset beyond what it has taken.
    async fn input(&self, run: &RunRef, id: &CommandId, input: Input) -> Result<u64>;

    /// Sends a signal to the command's process group; with `tree`, to everything that
    /// descends from it too, whatever group or session it made for itself.
    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32, tree: bool) -> Result<Command>;

    /// Unpacks a tar archive (gzip or plain) below `cwd`, as the default user.
    async fn write_files(&self, run: &RunRef, cwd: &str, gzip: bool, body: BodyStream) -> Result<()>;

    /// Content of a regular file, read as the default user.
    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>>;

    /// Makes a directory as the default user.
    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()>;
}

fn no_drives() -> ProviderError {
    ProviderError::Invalid("drives are not supported by this server".to_owned())
}
