//! The provider port, call by call: find, give an order or hand on to the live
//! run, present.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, CreateSandbox, Direction, Drive, ForkSandbox, Grant, Input,
    ListDrives, ListOf, ListSandboxes, LogEvent, MadeSnapshot, Namespace, NetworkPolicy, NetworkUse,
    ProviderError, Result, Route, Run, RunRef, RunStatus, Sandbox, SandboxKey, SandboxProvider, SandboxView,
    Snapshot, SnapshotRequest, SnapshotTree, StopReason, Stopped, TerminalOutput, TerminalSize,
    TerminalStream, UpdateSandbox,
};
use dormouse_types::{CommandId, QuotaKind, SandboxId, SandboxName, SnapshotId};

use crate::order::{LiveRun, Recorded};
use crate::present::{self, take_page};
use crate::quotas::Counted;
use crate::record::SandboxRecord;
use crate::{Control, carry_through, internal};

impl Control {
    /// The live run, or the reason why there is none here.
    async fn live(&self, run: &RunRef) -> Result<Arc<dyn LiveRun>> {
        self.runner.ready().await?;
        if let Some(live) = self.runner.live(&run.id) {
            return if live.namespace() == &run.namespace {
                Ok(live)
            } else {
                Err(ProviderError::NotFound(format!("run {}", run.id)))
            };
        }
        let row = self.find_run(run).await?;
        match row.status {
            status if status.is_ended() => Err(ProviderError::Stopped),
            status => {
                self.here(&row.host_id, || format!("run {}", run.id)).await?;
                match status {
                    // Between the record and the publishing of a fresh run.
                    RunStatus::Running => self.runner.live(&run.id).ok_or(ProviderError::Stopping),
                    _ => Err(ProviderError::Stopping),
                }
            }
        }
    }

    fn count_command(&self, run: &RunRef) -> Result<Option<Counted>> {
        let owner = &run.namespace.owner;
        self.used.command(owner, &self.config.limits.quotas.of(owner))
    }

    /// Has a command count until it, or its run, has ended.
    fn until_it_ends(live: Arc<dyn LiveRun>, id: CommandId, counted: Option<Counted>) {
        if let Some(counted) = counted {
            tokio::spawn(async move {
                // Whatever it says, it does not run any more.
                let _ = live.wait(&id).await;
                drop(counted);
            });
        }
    }

    /// The sandbox of a run, for an order about the run.
    async fn ordered(&self, run: &RunRef) -> Result<SandboxId> {
        self.live(run).await.map(|live| live.sandbox().clone())
    }

    /// The sandbox in what an order recorded.
    fn kept(recorded: &Recorded) -> Result<&SandboxRecord> {
        let gone = || ProviderError::NotFound(format!("sandbox {}", recorded.run.sandbox_name));
        recorded.sandbox.as_ref().ok_or_else(gone)
    }

    /// What a stop left, of a run that had ended already too.
    async fn stopped(&self, recorded: Recorded) -> Result<Stopped> {
        let run = present::run(&recorded.run);
        let Some(sandbox) = &recorded.sandbox else {
            return Ok(Stopped { run, sandbox: None, snapshot: None });
        };
        let snapshot = match (&recorded.snapshot, &sandbox.row.current_snapshot) {
            (Some(made), _) => Some(present::snapshot(made)),
            // Made by the stop that this one repeats.
            (None, Some(id)) => {
                let found = self.db.snapshot(id).await.map_err(internal("read snapshot"))?;
                found.filter(|row| row.source_run == run.id).map(|row| present::snapshot(&row))
            }
            (None, None) => None,
        };
        let shown = if sandbox.row.current_run == run.id {
            present::sandbox(sandbox, &run)
        } else {
            let current = self.db.run(&sandbox.row.current_run).await.map_err(internal("read run"))?;
            match current {
                Some(current) => present::sandbox(sandbox, &present::run(&current)),
                None => present::sandbox(sandbox, &run),
            }
        };
        Ok(Stopped { run, sandbox: Some(shown), snapshot })
    }
}

#[async_trait]
impl SandboxProvider for Control {
    async fn create(&self, request: CreateSandbox) -> Result<SandboxView> {
        let control = self.clone();
        carry_through("create a sandbox", async move { control.create_sandbox(request).await }).await
    }

    async fn taken(&self, key: &SandboxKey) -> Result<()> {
        let noted = self.db.creation_taken(&key.namespace, &key.name).await;
        noted.map_err(internal("note a creation"))
    }

    async fn reachable(&self, key: &SandboxKey) -> Result<()> {
        let found = self.find(key).await?;
        self.here(&found.run.host_id, || format!("sandbox {}", key.name)).await
    }

    async fn fork(&self, request: ForkSandbox) -> Result<SandboxView> {
        let control = self.clone();
        carry_through("fork a sandbox", async move { control.fork_sandbox(request).await }).await
    }

    async fn update(&self, key: &SandboxKey, changes: UpdateSandbox) -> Result<SandboxView> {
        let found = self.find_here(key).await?;
        if let Some(mounts) = &changes.mounts {
            self.check_drives(&key.namespace, mounts).await?;
        }
        let changed = self.runner.update(&found.sandbox.id, changes).await?;
        self.view(Self::kept(&changed)?, &changed.run, false).await
    }

    async fn get(&self, key: &SandboxKey) -> Result<SandboxView> {
        let found = self.find(key).await?;
        let (id, host) = (found.sandbox.id.clone(), found.run.host_id.clone());
        let mut view = self.view_found(found).await?;
        if host == self.config.host {
            view.sandbox.disk = self.disk_use(&id, &view.sandbox).await?;
        }
        Ok(view)
    }

    async fn network_use(&self, key: &SandboxKey) -> Result<Option<NetworkUse>> {
        let found = self.find_here(key).await?;
        Ok(self.runner.live(&found.run.id).map(|live| live.network_use()))
    }

    async fn resume(&self, key: &SandboxKey) -> Result<SandboxView> {
        let found = self.find_here(key).await?;
        let (recorded, resumed) = self.runner.resume(&found.sandbox.id).await?;
        self.view(Self::kept(&recorded)?, &recorded.run, resumed).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
        self.list_sandboxes(namespace, list).await
    }

    async fn delete(&self, key: &SandboxKey, with_snapshots: bool) -> Result<Sandbox> {
        let found = self.find_here(key).await?;
        let id = found.sandbox.id.clone();
        let before = present::sandbox(&SandboxRecord::new(found.sandbox), &present::run(&found.run));
        self.runner.delete(&id, with_snapshots).await?;
        Ok(before)
    }

    async fn run(&self, run: &RunRef) -> Result<Run> {
        Ok(self.run_with_transfer(&self.find_run(run).await?))
    }

    async fn routes(&self, run: &RunRef) -> Result<Vec<Route>> {
        let row = self.find_run(run).await?;
        let found = self.db.sandbox_by_id(&row.sandbox_id).await.map_err(internal("read sandbox"))?;
        match found {
            Some(found) => self.routes_of(&SandboxRecord::new(found.sandbox)).await,
            None => Ok(Vec::new()),
        }
    }

    async fn runs(&self, namespace: &Namespace, list: ListOf) -> Result<(Vec<Run>, Option<String>)> {
        let limit = i64::from(list.page.limit) + 1;
        let ascending = list.order == Direction::Ascending;
        let (sandbox, cursor) = (list.sandbox.as_deref(), list.page.cursor.as_deref());
        let rows = self.db.runs_of(namespace, sandbox, ascending, cursor, limit).await;
        let mut rows = rows.map_err(internal("list runs"))?;
        let next = take_page(&mut rows, list.page.limit, |row| row.id.to_string());
        Ok((rows.iter().map(present::run).collect(), next))
    }

    async fn snapshot(&self, run: &RunRef, request: SnapshotRequest) -> Result<MadeSnapshot> {
        let sandbox = self.ordered(run).await?;
        let quota = self.config.limits.quotas.of(&run.namespace.owner);
        if quota.snapshots.is_some() {
            let used = self.db.manual_snapshots(&run.namespace).await.map_err(internal("count snapshots"))?;
            quota.check(QuotaKind::Snapshots, used, 1).map_err(ProviderError::Quota)?;
        }
        let (recorded, stall) = self.runner.snapshot(&sandbox, &run.id, request).await?;
        let missing = || ProviderError::internal("make a snapshot", "none was made");
        let snapshot = recorded.snapshot.as_ref().ok_or_else(missing)?;
        Ok(MadeSnapshot { snapshot: present::snapshot(snapshot), run: present::run(&recorded.run), stall })
    }

    async fn snapshots(
        &self,
        namespace: &Namespace,
        list: ListOf,
    ) -> Result<(Vec<Snapshot>, Option<String>)> {
        self.list_snapshots(namespace, list).await
    }

    async fn get_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        Ok(present::snapshot(&self.find_snapshot(namespace, id).await?))
    }

    async fn drives(&self, namespace: &Namespace, list: ListDrives) -> Result<(Vec<Drive>, Option<String>)> {
        self.list_drives(namespace, list).await
    }

    async fn drive(&self, namespace: &Namespace, name: &str) -> Result<Drive> {
        self.one_drive(namespace, name).await
    }

    async fn get_or_create_drive(
        &self,
        namespace: &Namespace,
        name: &str,
        max_size: Option<u64>,
    ) -> Result<(Drive, bool)> {
        self.have_drive(namespace, name, max_size).await
    }

    async fn fork_drive(&self, namespace: &Namespace, from: &str, name: &str) -> Result<Drive> {
        self.copy_drive(namespace, from, name).await
    }

    async fn delete_drive(&self, namespace: &Namespace, name: &str) -> Result<Drive> {
        self.drop_drive(namespace, name).await
    }

    async fn starting_from(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Vec<SandboxName>> {
        self.find_snapshot(namespace, id).await?;
        self.db.starting_from(id, 10).await.map_err(internal("find what starts from a snapshot"))
    }

    async fn delete_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        self.drop_snapshot(namespace, id).await
    }

    async fn snapshot_tree(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: Direction,
        limit: u32,
    ) -> Result<SnapshotTree> {
        self.line_of_snapshots(namespace, id, order, limit).await
    }

    async fn set_network_policy(&self, run: &RunRef, policy: NetworkPolicy) -> Result<Run> {
        let sandbox = self.ordered(run).await?;
        Ok(present::run(&self.runner.set_policy(&sandbox, &run.id, policy).await?.run))
    }

    fn keeps_grants(&self) -> bool {
        true
    }

    async fn granted(&self) -> Result<Vec<(RunRef, Grant)>> {
        // Before, nobody knows what lives.
        self.runner.ready().await?;
        Ok(self.runner.granted())
    }

    async fn renew_grant(&self, run: &RunRef, grant: &Grant, policy: NetworkPolicy) -> Result<bool> {
        let sandbox = self.ordered(run).await?;
        self.runner.renew(&sandbox, &run.id, grant, policy).await
    }

    async fn stop(&self, run: &RunRef, reason: StopReason) -> Result<Stopped> {
        let live = self.runner.live(&run.id).filter(|live| live.namespace() == &run.namespace);
        let sandbox = match live {
            Some(live) => live.sandbox().clone(),
            None => {
                let row = self.find_run(run).await?;
                if row.status.is_ended() {
                    let found = self.db.sandbox_by_id(&row.sandbox_id).await;
                    let found = found.map_err(internal("read sandbox"))?;
                    let sandbox = found.map(|found| SandboxRecord::new(found.sandbox));
                    return self.stopped(Recorded { sandbox, run: row, snapshot: None }).await;
                }
                self.here(&row.host_id, || format!("run {}", run.id)).await?;
                self.runner.ready().await?;
                row.sandbox_id
            }
        };
        self.stopped(self.runner.stop(&sandbox, &run.id, reason).await?).await
    }

    async fn extend(&self, run: &RunRef, by: Duration) -> Result<Run> {
        let sandbox = self.ordered(run).await?;
        Ok(present::run(&self.runner.extend(&sandbox, &run.id, by).await?.run))
    }

    async fn terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        self.live(run).await?.terminal(spec, size, input).await
    }

    async fn start(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<Command> {
        let (live, counted) = (self.live(run).await?, self.count_command(run)?);
        let started = live.clone().start(id.clone(), spec).await?;
        Self::until_it_ends(live, id, counted);
        Ok(started)
    }

    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        self.live(run).await?.command(id).await
    }

    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>> {
        self.live(run).await?.commands().await
    }

    async fn processor_time(&self, run: &RunRef) -> Result<Option<Duration>> {
        self.live(run).await?.processor_time().await
    }

    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        self.live(run).await?.wait(id).await
    }

    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>> {
        self.live(run).await?.logs(id).await
    }

    async fn exec(&self, run: &RunRef, id: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>> {
        let (live, counted) = (self.live(run).await?, self.count_command(run)?);
        let events = live.clone().exec(id.clone(), spec).await?;
        Self::until_it_ends(live, id, counted);
        Ok(events)
    }

    async fn stdin(&self, run: &RunRef, id: &CommandId, body: BodyStream) -> Result<()> {
        self.live(run).await?.stdin(id, body).await
    }

    async fn input(&self, run: &RunRef, id: &CommandId, input: Input) -> Result<u64> {
        self.live(run).await?.input(id, input).await
    }

    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32, tree: bool) -> Result<Command> {
        self.live(run).await?.kill(id, signal, tree).await
    }

    async fn write_files(&self, run: &RunRef, cwd: &str, gzip: bool, body: BodyStream) -> Result<()> {
        let live = self.live(run).await?;
        let sandbox = live.sandbox().clone();
        self.advise(&sandbox, live.write_files(cwd, gzip, body).await).await
    }

    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        self.live(run).await?.read_file(path, cwd).await
    }

    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()> {
        let live = self.live(run).await?;
        let sandbox = live.sandbox().clone();
        self.advise(&sandbox, live.mkdir(path, cwd, recursive).await).await
    }
}
