//! The provider as a server reaches it: calls take their time, fail, lose their
//! answers, and go on when whoever made them is gone. Git in its sandboxes is a
//! file, which sleeps, is copied and is lost as all files are.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_provider::fake::Fake;
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, CreateSandbox, Direction, ForkSandbox, Input, ListOf,
    ListSandboxes, LogEvent, MadeSnapshot, Namespace, NetworkPolicy, ProviderError, Result, Route, Run,
    RunRef, Sandbox, SandboxKey, SandboxProvider, SandboxView, Snapshot, SnapshotRequest, SnapshotTree,
    StopReason, Stopped, TerminalOutput, TerminalSize, TerminalStream, UpdateSandbox,
};
use dormouse_sessions::{Remote, RemoteError, Tip};
use dormouse_types::{CommandId, GithubRepo, SandboxName, SessionId, SnapshotId};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;

use super::schedule::Schedule;

/// Where a sandbox has its checkout.
const CHECKOUT: &str = "/checkout";

/// A git host with one repository.
#[derive(Debug)]
pub(super) struct Forge {
    pub(super) commit: u32,
    pub(super) up: bool,
    pub(super) set_up: bool,
}

/// The hosts that sandboxes run on.
#[derive(Clone)]
pub(super) struct Hosts {
    pub(super) fake: Arc<Fake>,
    pub(super) schedule: Schedule,
    pub(super) forge: Arc<Mutex<Forge>>,
    /// Their own tasks, which live on when a server dies.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) server: String,
    /// Which sessions there are, to name their sandboxes alike in each run.
    pub(super) sessions: Arc<Mutex<Vec<SessionId>>>,
}

impl std::fmt::Debug for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hosts")
    }
}

fn broken(what: &str) -> ProviderError {
    ProviderError::internal(what.to_owned(), "simulated")
}

impl Hosts {
    /// A call: it takes its time to arrive, and its answer too. Dropped, it is
    /// carried out all the same, once it was made.
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        of: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        let (schedule, server, of) = (self.schedule.clone(), self.server.clone(), of.to_owned());
        self.runtime.spawn(async move {
            schedule.gate(format!("{server} {what} {of}")).await;
            let answer = if schedule.fails() {
                Err(broken(what))
            } else {
                let done = work.await;
                schedule.gate(format!("{server} {what} {of} answers")).await;
                if schedule.fails() { Err(broken(what)) } else { done }
            };
            // Nobody need wait.
            let _ = tell.send(answer);
        });
        told.await.unwrap_or_else(|_| Err(broken(what)))
    }

    fn name(&self, sandbox: &SandboxName) -> String {
        let sessions = self.sessions.lock().unwrap();
        let session = sandbox.session().and_then(|id| sessions.iter().position(|one| *one == id));
        session.map_or_else(|| "of a builder".to_owned(), |session| format!("of session {session}"))
    }

    fn name_of(&self, run: &RunRef) -> String {
        let found = self.fake.run(run).now_or_never().and_then(Result::ok);
        found.map_or_else(|| "of nobody".to_owned(), |run| self.name(&run.sandbox))
    }

    /// What the checkout of a sandbox is at, if there is one.
    fn commit(&self, run: &RunRef) -> Option<String> {
        let read = self.fake.read_file(run, CHECKOUT, None).now_or_never()?.ok()?;
        let parts = read.map(|part| part.unwrap_or_default()).collect::<Vec<_>>().now_or_never()?;
        Some(String::from_utf8(parts.concat()).unwrap())
    }

    /// Does what one of the scripts does: exit code and output.
    fn git(&self, run: &RunRef, spec: &CommandSpec) -> (i32, String) {
        let forge = self.forge.lock().unwrap();
        let script = spec.argv.get(2).cloned().unwrap_or_default();
        let set_up = if forge.set_up { "set-up\n" } else { "" };
        let now = format!("c{}", forge.commit);
        let put = |commit: &str| self.fake.put_file(run, CHECKOUT, commit.as_bytes());
        let clones = script.contains("git clone");
        let fetches = script.contains("--no-tags") && !spec.argv[4].is_empty();
        if (clones || fetches) && !forge.up {
            return (128, String::new());
        }
        if clones && self.commit(run).is_some() {
            return (128, String::new());
        }
        if clones || fetches {
            put(&now);
        }
        match self.commit(run) {
            Some(commit) => (0, format!("trunk\n{commit}\n{set_up}")),
            None if script.contains("echo nothing") => (0, "nothing\n".to_owned()),
            None => (1, String::new()),
        }
    }

    async fn run_command(self, run: RunRef, id: CommandId, spec: CommandSpec) -> Result<Vec<LogEvent>> {
        let probe = CommandSpec::new(["true"]);
        let mut events = self.fake.exec(&run, id, probe).await?.collect::<Vec<_>>().await;
        self.schedule.gate(format!("{} command {} runs", self.server, self.name_of(&run))).await;
        let alive = self.fake.run(&run).await.is_ok_and(|run| !run.status.is_ended());
        let (code, text) = if alive { self.git(&run, &spec) } else { (137, String::new()) };
        let Some(Ok(LogEvent::Exited(command))) = events.pop() else { return Err(ProviderError::Stopped) };
        let ended = Command { exit_code: Some(code), ..command };
        Ok(vec![LogEvent::Stdout(Bytes::from(text)), LogEvent::Exited(ended)])
    }
}

#[async_trait]
impl Remote for Hosts {
    async fn tip(&self, _: &GithubRepo, _: Option<&str>) -> std::result::Result<Tip, RemoteError> {
        self.schedule.gate(format!("{} tip", self.server)).await;
        let forge = self.forge.lock().unwrap();
        if forge.up {
            Ok(Tip { branch: "trunk".to_owned(), commit: format!("c{}", forge.commit) })
        } else {
            Err(RemoteError::Silent("simulated".to_owned()))
        }
    }
}

/// Methods that a session calls: their arguments go with the call.
macro_rules! calls {
    ($hosts:ident, $what:literal, $of:expr, $method:ident($($argument:ident),*)) => {{
        let fake = $hosts.fake.clone();
        let of = $of.to_string();
        $(let $argument = $argument.to_owned();)*
        $hosts.call($what, &of, async move { fake.$method($(&$argument),*).await }).await
    }};
}

#[async_trait]
impl SandboxProvider for Hosts {
    async fn create(&self, request: CreateSandbox) -> Result<SandboxView> {
        let (fake, of) = (self.fake.clone(), self.name(&request.key.name));
        self.call("create", &of, async move { fake.create(request).await }).await
    }

    async fn get(&self, key: &SandboxKey) -> Result<SandboxView> {
        calls!(self, "get", self.name(&key.name), get(key))
    }

    async fn resume(&self, key: &SandboxKey) -> Result<SandboxView> {
        calls!(self, "resume", self.name(&key.name), resume(key))
    }

    async fn list(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
        let (fake, namespace) = (self.fake.clone(), namespace.clone());
        self.call("list", "", async move { fake.list(&namespace, list).await }).await
    }

    async fn update(&self, key: &SandboxKey, changes: UpdateSandbox) -> Result<SandboxView> {
        self.fake.update(key, changes).await
    }

    async fn fork(&self, request: ForkSandbox) -> Result<SandboxView> {
        self.fake.fork(request).await
    }

    async fn delete(&self, key: &SandboxKey, with_snapshots: bool) -> Result<Sandbox> {
        let (fake, key, of) = (self.fake.clone(), key.clone(), self.name(&key.name));
        self.call("delete", &of, async move { fake.delete(&key, with_snapshots).await }).await
    }

    async fn run(&self, run: &RunRef) -> Result<Run> {
        calls!(self, "run", self.name_of(run), run(run))
    }

    async fn routes(&self, run: &RunRef) -> Result<Vec<Route>> {
        self.fake.routes(run).await
    }

    async fn runs(&self, namespace: &Namespace, list: ListOf) -> Result<(Vec<Run>, Option<String>)> {
        self.fake.runs(namespace, list).await
    }

    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped> {
        let (fake, run, of) = (self.fake.clone(), run.clone(), self.name_of(run));
        self.call("stop", &of, async move { fake.stop(&run, reason).await }).await
    }

    async fn snapshot(&self, run: &RunRef, request: SnapshotRequest) -> Result<MadeSnapshot> {
        let (fake, run, of) = (self.fake.clone(), run.clone(), self.name_of(run));
        self.call("snapshot", &of, async move { fake.snapshot(&run, request).await }).await
    }

    async fn snapshots(
        &self,
        namespace: &Namespace,
        list: ListOf,
    ) -> Result<(Vec<Snapshot>, Option<String>)> {
        let (fake, namespace) = (self.fake.clone(), namespace.clone());
        self.call("snapshots", "", async move { fake.snapshots(&namespace, list).await }).await
    }

    async fn get_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        self.fake.get_snapshot(namespace, id).await
    }

    async fn delete_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        calls!(self, "delete snapshot", "", delete_snapshot(namespace, id))
    }

    async fn snapshot_tree(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: Direction,
        limit: u32,
    ) -> Result<SnapshotTree> {
        self.fake.snapshot_tree(namespace, id, order, limit).await
    }

    async fn set_network_policy(&self, run: &RunRef, policy: NetworkPolicy) -> Result<Run> {
        let (fake, run, of) = (self.fake.clone(), run.clone(), self.name_of(run));
        self.call("set network policy", &of, async move { fake.set_network_policy(&run, policy).await }).await
    }

    async fn terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        self.fake.terminal(run, spec, size, input).await
    }

    async fn extend(&self, run: &RunRef, by: Duration) -> Result<Run> {
        let (fake, run, of) = (self.fake.clone(), run.clone(), self.name_of(run));
        self.call("extend", &of, async move { fake.extend(&run, by).await }).await
    }

    async fn start(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<Command> {
        self.fake.start(run, id, spec).await
    }

    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        self.fake.command(run, id).await
    }

    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>> {
        calls!(self, "commands", self.name_of(run), commands(run))
    }

    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        self.fake.wait(run, id).await
    }

    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>> {
        self.fake.logs(run, id).await
    }

    async fn exec(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>> {
        let (hosts, run, of) = (self.clone(), run.clone(), self.name_of(run));
        let events = self.call("exec", &of, hosts.run_command(run, id, spec)).await?;
        Ok(Box::pin(futures::stream::iter(events.into_iter().map(Ok))))
    }

    async fn stdin(&self, run: &RunRef, id: &CommandId, body: BodyStream) -> Result<()> {
        self.fake.stdin(run, id, body).await
    }

    async fn input(&self, run: &RunRef, id: &CommandId, input: Input) -> Result<u64> {
        self.fake.input(run, id, input).await
    }

    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32, tree: bool) -> Result<Command> {
        self.fake.kill(run, id, signal, tree).await
    }

    async fn write_files(&self, run: &RunRef, cwd: &str, gzip: bool, body: BodyStream) -> Result<()> {
        self.fake.write_files(run, cwd, gzip, body).await
    }

    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        self.fake.read_file(run, path, cwd).await
    }

    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()> {
        self.fake.mkdir(run, path, cwd, recursive).await
    }
}
