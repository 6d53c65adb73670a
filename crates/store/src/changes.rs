//! Changes of several tables at once, each in one transaction: a run starts and
//! ends, a snapshot becomes the current one, a sandbox is rolled back or goes.
//! On Postgres they lock in one order: sandbox, runs, snapshots.

use dormouse_types::{
    HostId, Quota, RunId, RunStatus, SandboxId, SnapshotId, StopReason, Timestamp, VolumeId,
};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::garbage::{self, GarbageKind};
use crate::quotas;
use crate::runs::{self, RunRow, VolumeState};
use crate::sandboxes::{self, SandboxRow};
use crate::snapshots::{self, GO, Retire, SnapshotRow, TOUCHED};

/// Which snapshots go with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotsOfDeleted {
    /// None; automatic ones that would stay for ever go at this time.
    Stay {
        /// When.
        automatic_until: Timestamp,
    },
    /// The automatic ones.
    AutomaticGo,
    /// All.
    AllGo,
}

/// What becomes of the volume of a run that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// The sandbox's next run continues with it.
    Kept,
    /// It goes.
    Dropped,
    /// It goes, since the sandbox's next run was told to start from a snapshot.
    RolledBack,
}

/// The end of a run.
#[derive(Debug, Clone, Copy)]
pub struct RunEnd<'a> {
    /// Which run.
    pub run: &'a RunRow,
    /// Its last status.
    pub status: RunStatus,
    /// Why it ended.
    pub reason: StopReason,
    /// The snapshot that was made of its files.
    pub snapshot: Option<&'a SnapshotRow>,
    /// Which older snapshots go.
    pub retire: Option<Retire>,
    /// What becomes of its volume.
    pub volume: Volume,
    /// The sandbox goes too, and of its snapshots these.
    pub forget: Option<SnapshotsOfDeleted>,
    /// When that is.
    pub now: Timestamp,
}

impl Db {
    /// Adds a run to an existing sandbox, whose current run it is from now on,
    /// and whose volume is the run's. `false`, and nothing done, where the
    /// sandbox is not as `was` says any more: the snapshot that it stood on went,
    /// or somebody else started a run.
    pub async fn insert_run(
        &self,
        run: &RunRow,
        volume: &VolumeState,
        was: &SandboxRow,
        quota: &Quota,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        quotas::admit(&mut tx, run, quota, false).await?;
        let given = tx
            .sql(
                format!("give {} to its sandbox", run.volume_id),
                "UPDATE sandboxes SET volume_id = $1, descends_from = $2, base_bytes = $3, boots = $4,
                 current_run = $5, status_updated_at = $6
                 WHERE id = $7 AND volume_id IS NOT DISTINCT FROM $8
                   AND current_snapshot IS NOT DISTINCT FROM $9 AND current_run = $10",
            )
            .bind(&run.volume_id)
            .bind(&volume.descends_from)
            .bind(volume.base_bytes)
            .bind(volume.boots)
            .bind(&run.id)
            .bind(run.requested_at)
            .bind(&run.sandbox_id)
            .bind(&was.volume_id)
            .bind(&was.current_snapshot)
            .bind(&was.current_run)
            .execute()
            .await?;
        if given == 0 {
            return Ok(false);
        }
        runs::insert(&mut tx, run).await?;
        runs::supersede(&mut tx, &was.current_run, run.requested_at).await?;
        tx.commit("insert run").await.map(|()| true)
    }

    /// The run never came up. A volume that was made for it goes; one that was
    /// there before is as it was. `and_sandbox`: the sandbox, which never had
    /// another run, goes too.
    pub async fn run_failed(&self, run: &RunRow, and_sandbox: bool, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        if run.made_volume {
            drop_volume(&mut tx, run, now).await?;
        }
        runs::ended(&mut tx, run, RunStatus::Failed, StopReason::StartFailed, now).await?;
        if and_sandbox {
            let gone = SnapshotsOfDeleted::AllGo;
            forget_sandbox(&mut tx, &run.sandbox_id, &run.host_id, gone, now).await?;
        }
        tx.commit("end run").await
    }

    /// The end of a run, in one transaction: its status and reason, the
    /// snapshot that was made, the sandbox's volume and current snapshot, and
    /// what retires. Doing it again after a crash changes nothing more. Returns
    /// the sandbox as it is then, unless it is gone.
    pub async fn record_end(&self, end: &RunEnd<'_>) -> Result<Option<SandboxRow>> {
        let RunEnd { run, status, reason, snapshot, retire: rule, volume, forget, now } = *end;
        let mut tx = self.write().await?;
        let mut sandbox = sandboxes::lock(&mut tx, &run.sandbox_id).await?;
        if let Some(snapshot) = snapshot {
            snapshots::insert(&mut tx, snapshot).await?;
        }
        let made = snapshot.map(|snapshot| &snapshot.id);
        let mut replaced = None;
        if let Some(sandbox) = &mut sandbox {
            replaced = match (volume, made) {
                // The sandbox was rolled back while the run lived: it has moved
                // on.
                (Volume::RolledBack, _) | (Volume::Dropped, None) => None,
                (Volume::Kept | Volume::Dropped, made) => make_current(sandbox, made),
            };
            if volume != Volume::Kept && sandbox.volume_id.as_ref() == Some(&run.volume_id) {
                sandbox.volume_id = None;
            }
            sandbox.updated_at = now;
            if sandbox.current_run == run.id {
                sandbox.status_updated_at = now;
            }
            sandboxes::write_files(&mut tx, sandbox).await?;
        }
        runs::ended(&mut tx, run, status, reason, now).await?;
        if volume != Volume::Kept {
            garbage::add(&mut tx, &run.host_id, GarbageKind::Volume, run.volume_id.as_str(), now).await?;
        }
        if let Some(rule) = rule {
            snapshots::retire(&mut tx, rule, &run.sandbox_id, replaced.as_ref(), now).await?;
        }
        if let Some(replaced) = &replaced {
            snapshots::let_go(&mut tx, replaced, now).await?;
        }
        if let Some(snapshots) = forget {
            forget_sandbox(&mut tx, &run.sandbox_id, &run.host_id, snapshots, now).await?;
            sandbox = None;
        }
        tx.commit("record the end of a run").await?;
        Ok(sandbox)
    }

    /// A snapshot of a run that goes on: it becomes the sandbox's current one,
    /// unless the sandbox was rolled back meanwhile and has moved on.
    pub async fn record_snapshot(&self, snapshot: &SnapshotRow, run: &RunRow, rule: Retire) -> Result<()> {
        let now = snapshot.updated_at;
        let mut tx = self.write().await?;
        let sandbox = sandboxes::lock(&mut tx, &snapshot.sandbox_id).await?;
        snapshots::insert(&mut tx, snapshot).await?;
        let mut replaced = None;
        if let Some(mut sandbox) = sandbox
            && sandbox.volume_id.as_ref() == Some(&run.volume_id)
        {
            replaced = make_current(&mut sandbox, Some(&snapshot.id));
            sandbox.updated_at = now;
            sandboxes::write_files(&mut tx, &sandbox).await?;
        }
        snapshots::retire(&mut tx, rule, &snapshot.sandbox_id, replaced.as_ref(), now).await?;
        if let Some(replaced) = &replaced {
            snapshots::let_go(&mut tx, replaced, now).await?;
        }
        tx.commit("record snapshot").await
    }

    /// The next run of a sandbox starts from `snapshot`; `None`: from its image. What it
    /// has on disk, on `host`, goes: at once, or, while `live` has it, with that run.
    /// `false`, and nothing done, where the snapshot or the sandbox is gone.
    pub async fn roll_back(
        &self,
        id: &SandboxId,
        snapshot: Option<&SnapshotId>,
        host: &HostId,
        live: Option<&RunRow>,
        now: Timestamp,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        let Some(mut sandbox) = sandboxes::lock(&mut tx, id).await? else { return Ok(false) };
        if let Some(snapshot) = snapshot {
            let text =
                format!("SELECT id FROM snapshots WHERE id = $1 AND status = 'created'{}", tx.locking());
            let found: Option<SnapshotId> = tx
                .sql(format!("lock snapshot {snapshot}"), text)
                .bind(snapshot)
                .one(|row| row.of("snapshots", "").get("id"))
                .await?;
            if found.is_none() {
                return Ok(false);
            }
        }
        if let Some(volume) = sandbox.volume_id.take()
            && live.is_none_or(|live| live.volume_id != volume)
        {
            garbage::add(&mut tx, host, GarbageKind::Volume, volume.as_str(), now).await?;
        }
        let before = std::mem::replace(&mut sandbox.current_snapshot, snapshot.cloned());
        sandbox.updated_at = now;
        sandboxes::write_files(&mut tx, &sandbox).await?;
        if let Some(before) = before.filter(|before| Some(before) != snapshot) {
            snapshots::let_go(&mut tx, &before, now).await?;
        }
        tx.commit("roll back").await.map(|()| true)
    }

    /// Forgets a sandbox with its labels and routes. Its volume goes.
    pub async fn delete_sandbox(
        &self,
        id: &SandboxId,
        host: &HostId,
        snapshots: SnapshotsOfDeleted,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        forget_sandbox(&mut tx, id, host, snapshots, now).await?;
        tx.commit("delete sandbox").await
    }
}

/// The sandbox of `run` has its volume no more, and the volume's files go.
async fn drop_volume(tx: &mut Tx, run: &RunRow, now: Timestamp) -> Result<()> {
    garbage::add(tx, &run.host_id, GarbageKind::Volume, run.volume_id.as_str(), now).await?;
    tx.sql(
        format!("drop {}", run.volume_id),
        "UPDATE sandboxes SET volume_id = NULL WHERE id = $1 AND volume_id = $2",
    )
    .bind(&run.sandbox_id)
    .bind(&run.volume_id)
    .execute()
    .await
    .map(drop)
}

/// Has `sandbox` start its copies from `snapshot` from now on (`None`: its
/// volume alone tells its files); returns what that was before.
fn make_current(sandbox: &mut SandboxRow, snapshot: Option<&SnapshotId>) -> Option<SnapshotId> {
    let before = std::mem::replace(&mut sandbox.current_snapshot, snapshot.cloned());
    if let Some(snapshot) = snapshot {
        sandbox.descends_from = Some(snapshot.clone());
    }
    // Said again after a crash, it replaces nothing.
    before.filter(|before| Some(before) != snapshot)
}

/// [`Db::delete_sandbox`] as part of something larger.
async fn forget_sandbox(
    tx: &mut Tx,
    id: &SandboxId,
    host: &HostId,
    which: SnapshotsOfDeleted,
    now: Timestamp,
) -> Result<()> {
    let gone: Option<(Option<VolumeId>, RunId, Option<SnapshotId>)> = tx
        .sql(
            format!("delete sandbox {id}"),
            "DELETE FROM sandboxes WHERE id = $1 RETURNING volume_id, current_run, current_snapshot",
        )
        .bind(id)
        .one(|row| {
            let row = row.of("sandboxes", "");
            Ok((row.get("volume_id")?, row.get("current_run")?, row.get("current_snapshot")?))
        })
        .await?;
    let Some((volume, run, stood_on)) = gone else { return Ok(()) };
    if let Some(volume) = volume {
        garbage::add(tx, host, GarbageKind::Volume, volume.as_str(), now).await?;
    }
    runs::supersede(tx, &run, now).await?;
    snapshots::lock_all_of(tx, id).await?;
    let operation = format!("retire snapshots of {id}");
    let changed = match which {
        SnapshotsOfDeleted::Stay { automatic_until } => {
            tx.sql(
                operation,
                format!(
                    "UPDATE snapshots SET expires_at = $3, updated_at = $1 WHERE sandbox_id = $2
                     AND status = 'created' AND kind = 'automatic' AND expires_at IS NULL {TOUCHED}"
                ),
            )
            .bind(now)
            .bind(id)
            .bind(automatic_until)
            .all(snapshots::touched)
            .await?
        }
        SnapshotsOfDeleted::AutomaticGo | SnapshotsOfDeleted::AllGo => {
            let kind = match which {
                SnapshotsOfDeleted::AllGo => "",
                _ => " AND kind = 'automatic'",
            };
            let text = format!(
                "UPDATE snapshots SET {GO} WHERE sandbox_id = $2 AND status = 'created'{kind} {TOUCHED}"
            );
            tx.sql(operation, text).bind(now).bind(id).all(snapshots::touched).await?
        }
    };
    snapshots::deleted(tx, changed, now).await?;
    match stood_on {
        Some(snapshot) => snapshots::let_go(tx, &snapshot, now).await,
        None => Ok(()),
    }
}
