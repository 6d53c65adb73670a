//! The orders that this host takes: each goes to the task of its sandbox.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_control::order::{CopyTo, Creation, LiveRun, Recorded, Runner};
use dormouse_provider::{Grant, NetworkPolicy, Result, RunRef, SnapshotRequest, StopReason, UpdateSandbox};
use dormouse_store::{Garbage, GarbageKind, VolumeState};
use dormouse_types::{DriveId, RunId, SandboxId};

use crate::Node;
use crate::host::pool;
use crate::live::{Command, Live};

#[async_trait]
impl Runner for Node {
    async fn ready(&self) -> Result<()> {
        self.wait_until_recovered().await
    }

    async fn create(&self, creation: Creation) -> Result<Recorded> {
        let sandbox = creation.sandbox.id.clone();
        let creation = Box::new(creation);
        self.command(&sandbox, |reply| Command::Create { creation: creation.clone(), reply }).await
    }

    async fn resume(&self, sandbox: &SandboxId) -> Result<(Recorded, bool)> {
        self.command(sandbox, |reply| Command::Resume { reply }).await
    }

    async fn stop(&self, sandbox: &SandboxId, run: &RunId, reason: StopReason) -> Result<Recorded> {
        self.command(sandbox, |reply| Command::Stop { run: Some(run.clone()), reason, reply }).await
    }

    async fn snapshot(
        &self,
        sandbox: &SandboxId,
        run: &RunId,
        request: SnapshotRequest,
    ) -> Result<(Recorded, Option<Duration>)> {
        self.command(sandbox, |reply| Command::Snapshot { run: run.clone(), request, reply }).await
    }

    async fn copy(&self, sandbox: &SandboxId, to: CopyTo) -> Result<Option<VolumeState>> {
        self.command(sandbox, |reply| Command::Copy { to: to.clone(), reply }).await
    }

    async fn delete(&self, sandbox: &SandboxId, with_snapshots: bool) -> Result<()> {
        self.command(sandbox, |reply| Command::Delete { with_snapshots, reply }).await
    }

    async fn update(&self, sandbox: &SandboxId, changes: UpdateSandbox) -> Result<Recorded> {
        let changes = Box::new(changes);
        self.command(sandbox, |reply| Command::Update { changes: changes.clone(), reply }).await
    }

    async fn set_policy(&self, sandbox: &SandboxId, run: &RunId, policy: NetworkPolicy) -> Result<Recorded> {
        let set = |reply| Command::SetPolicy { run: run.clone(), policy: policy.clone(), reply };
        self.command(sandbox, set).await
    }

    async fn renew(
        &self,
        sandbox: &SandboxId,
        run: &RunId,
        grant: &Grant,
        policy: NetworkPolicy,
    ) -> Result<bool> {
        let renewal = Box::new((grant.clone(), policy));
        let renew = |reply| Command::Renew { run: run.clone(), renewal: renewal.clone(), reply };
        self.command(sandbox, renew).await
    }

    fn has_drives(&self) -> bool {
        self.host.storage.enforces_limits()
    }

    async fn copy_drive(&self, from: &DriveId, to: &DriveId, size: u64) -> Result<()> {
        let (from, to) = (from.clone(), to.clone());
        pool(&self.host, "copy a drive", move |storage| storage.copy_drive(&from, &to, size)).await
    }

    async fn drop_drive(&self, drive: &DriveId) -> Result<()> {
        let garbage = Garbage { kind: GarbageKind::Drive, name: drive.to_string() };
        pool(&self.host, "drop a drive", move |storage| storage.delete(&garbage)).await
    }

    fn granted(&self) -> Vec<(RunRef, Grant)> {
        let of = |live: &Live| {
            let run = RunRef { namespace: live.namespace.clone(), id: live.run.clone() };
            Some((run, live.config.grant.clone()?))
        };
        self.registry.all_live().iter().filter_map(|live| of(live)).collect()
    }

    async fn extend(&self, sandbox: &SandboxId, run: &RunId, by: Duration) -> Result<Recorded> {
        self.command(sandbox, |reply| Command::Extend { run: run.clone(), by, reply }).await
    }

    fn live(&self, run: &RunId) -> Option<Arc<dyn LiveRun>> {
        Some(self.registry.live(run)?)
    }

    async fn used_bytes(&self, sandbox: &SandboxId) -> Result<Option<u64>> {
        if self.host.usable().is_err() {
            return Ok(None);
        }
        let id = sandbox.clone();
        pool(&self.host, "size a sandbox", move |storage| storage.used(&id)).await
    }

    fn tidy(&self) {
        self.host.untidy.notify_one();
    }

    async fn saved(&self) -> Result<()> {
        self.host.sync_database().await
    }
}
