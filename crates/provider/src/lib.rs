//! The provider port: what the session API needs from whoever runs sandboxes.
//!
//! It is the Vercel Sandbox protocol as a Rust trait: one crate serves it over
//! HTTP, the engine does it on this host. Types say what a thing is, not how
//! JSON spells it (that is `dormouse-wire`).

mod error;
mod model;

use std::pin::Pin;

pub use error::{ProviderError, Result};
pub use model::{
    Command, CommandSpec, CreateSandbox, LogEvent, Namespace, NetworkPolicy, Page, Resources, Resumed, Run,
    RunRef, RunStatus, Sandbox, SandboxKey, Snapshot, SnapshotKind, StdinSource, StopReason, Stopped,
};

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_types::CommandId;
use futures::Stream;

/// A stream that a provider returns.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// A body that a caller sends.
pub type BodyStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Runs sandboxes.
///
/// Every method is safe to retry unless it says otherwise, and returns only
/// once its effect is visible to the next call. A future that is dropped does
/// not undo what began: the operation runs to its end.
#[async_trait]
pub trait SandboxProvider: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a named sandbox and its first run; returns when commands can run.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] when the name is taken. On any failure
    /// nothing is left behind.
    async fn create(&self, request: CreateSandbox) -> Result<Resumed>;

    /// The sandbox as it stands; never wakes it.
    async fn get(&self, key: &SandboxKey) -> Result<Resumed>;

    /// The sandbox with a live run: the current one, or a new one from the
    /// current snapshot. Waits for a stop in progress.
    async fn resume(&self, key: &SandboxKey) -> Result<Resumed>;

    /// Sandboxes of a namespace, newest first.
    async fn list(&self, namespace: &Namespace, page: Page) -> Result<(Vec<Sandbox>, Option<String>)>;

    /// Ends the run, if any, and forgets the sandbox. Legal in every state.
    async fn delete(&self, key: &SandboxKey) -> Result<Sandbox>;

    /// The run as it stands.
    async fn run(&self, run: &RunRef) -> Result<Run>;

    /// Runs of a namespace or of one sandbox, newest first.
    async fn runs(
        &self,
        namespace: &Namespace,
        sandbox: Option<&str>,
        page: Page,
    ) -> Result<(Vec<Run>, Option<String>)>;

    /// Ends the run; a persistent sandbox keeps everything in a snapshot.
    /// Ending an ended run changes nothing.
    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped>;

    /// Moves the run's hard end later.
    async fn extend(&self, run: &RunRef, by: std::time::Duration) -> Result<Run>;

    /// Starts a command. `id` makes a retry harmless.
    async fn start(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<Command>;

    /// Where a command stands.
    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command>;

    /// Commands that the run remembers, oldest first.
    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>>;

    /// Waits until the command has exited.
    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command>;

    /// Output from the first byte, then the exit.
    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>>;

    /// Starts a command and follows it in one step. The first event is
    /// [`LogEvent::Started`].
    async fn exec(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>>;

    /// Feeds standard input of a command that was started with
    /// [`StdinSource::Stream`]; the end of the stream closes it.
    async fn stdin(&self, run: &RunRef, id: &CommandId, body: BodyStream) -> Result<()>;

    /// Sends a signal to the command's process group.
    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32) -> Result<Command>;

    /// Unpacks a tar archive (gzip or plain) below `cwd`, as the default user.
    async fn write_files(&self, run: &RunRef, cwd: &str, gzip: bool, body: BodyStream) -> Result<()>;

    /// Content of a regular file, read as the default user.
    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>>;

    /// Makes a directory as the default user.
    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()>;
}
