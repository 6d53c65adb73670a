//! Making the host agree with the database: once at start, and again every few
//! seconds. Both are reconcilers: no input, idempotent, and each kind of thing
//! that the engine makes has one paragraph here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_control::SandboxRecord;
use dormouse_control::ending::Ending;
use dormouse_provider::{RunStatus, StopReason};
use dormouse_store::{Garbage, GarbageKind, RunRow};
use dormouse_types::SandboxId;
use tokio::sync::{mpsc, oneshot};

use crate::files::{abandon, finish};
use crate::host::Host;
use crate::live::Command;
use crate::machine::Machine;
use crate::registry::Registry;
use crate::storage::PoolHealth;
use crate::{launch, sys};

/// Runs recovered at once.
const WIDTH: usize = 16;

/// Files that one round removes.
const ROUND: i64 = 64;

/// How long a replaced image stays at least: whoever was reading its row has
/// it in a sandbox's by then.
const IMAGE_GRACE: Duration = Duration::from_secs(10);

/// The queue of a sandbox's task, which is started where there is none.
pub(crate) fn task_queue(
    host: &Arc<Host>,
    registry: &Arc<Registry>,
    sandbox: &SandboxId,
) -> Option<mpsc::Sender<Command>> {
    registry.queue(sandbox, |commands| {
        tokio::spawn(Machine::run(host.clone(), registry.clone(), sandbox.clone(), commands)).abort_handle()
    })
}

/// Takes over the runs that live, ends the ones that do not.
pub(crate) async fn recover(host: &Arc<Host>, registry: &Arc<Registry>) {
    let runs = loop {
        match host.db.live_runs(&host.config.host).await {
            Ok(runs) => break runs,
            Err(error) => {
                tracing::error!(%error, "read live runs; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    // Before anything lives: what is made from here on is its maker's.
    let found = take_stock(host).await;
    let width = Arc::new(tokio::sync::Semaphore::new(WIDTH));
    let mut tasks = tokio::task::JoinSet::new();
    for run in runs {
        registry.begin(&run.id);
        let (host, registry, width) = (host.clone(), registry.clone(), width.clone());
        tasks.spawn(async move {
            let _permit = width.acquire_owned().await;
            let id = run.id.clone();
            let gone = recover_run(&host, &registry, run).await;
            registry.forget(&id, gone);
        });
    }
    while tasks.join_next().await.is_some() {}
    sweep(host, registry).await;
    let removed = match found {
        Ok(found) => remove_orphans(host, found).await,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::warn!(error, "look for files that nobody owns");
    }
}

/// Waits until the pool can be used.
pub(crate) async fn wait_for_pool(host: &Arc<Host>) {
    while matches!(host.storage.health(), PoolHealth::Broken(_)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Looks after the pool for ever: its room, and its repair when it is broken.
/// Nothing runs on a broken one; what ran is finished once it is mended.
pub(crate) async fn look_after_pool(host: Arc<Host>) {
    let mut pause = LOOK;
    loop {
        tokio::time::sleep(pause).await;
        if host.usable().is_ok() {
            host.save_new().await;
        }
        let looking = host.clone();
        let looked = tokio::task::spawn_blocking(move || {
            look_at_disk(&looking);
            looking.storage.look_after()
        });
        let looked = looked.await;
        pause = match looked {
            Ok(PoolHealth::Broken(_)) => {
                end_all_processes(&host).await;
                let storage = host.storage.clone();
                match tokio::task::spawn_blocking(move || storage.repair()).await {
                    Ok(Ok(())) => LOOK,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "repair the storage pool; trying again");
                        (pause * 2).min(SLOWEST_REPAIR)
                    }
                    Err(error) => {
                        tracing::error!(%error, "repair the storage pool");
                        SLOWEST_REPAIR
                    }
                }
            }
            Ok(PoolHealth::Fine | PoolHealth::Low(_)) => LOOK,
            Err(error) => {
                tracing::error!(%error, "look after the storage pool");
                SLOWEST_REPAIR
            }
        };
    }
}

/// Has the database keep its room, and notes a full disk.
fn look_at_disk(host: &Host) {
    let full = match (host.storage.host_is_full(), host.db.keep_room()) {
        (Ok(full), Ok(has_room)) => full || !has_room,
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "look at the disk of the data directory");
            true
        }
    };
    if host.disk_full.swap(full, Ordering::Relaxed) != full {
        match full {
            true => tracing::warn!("the disk of the data directory is full"),
            false => tracing::info!("the disk of the data directory has room again"),
        }
    }
}

/// Between two looks at the pool: a fast writer must not fill what it has
/// before it grows.
const LOOK: Duration = Duration::from_millis(250);

/// Between two tries to repair it, at most.
const SLOWEST_REPAIR: Duration = Duration::from_secs(5);

/// Ends the processes of every run of this instance. Their tasks see it and
/// record the end as soon as the pool takes it.
async fn end_all_processes(host: &Arc<Host>) {
    for run in host.cgroups.runs() {
        let (cgroups, name) = (host.cgroups.clone(), run.clone());
        match tokio::task::spawn_blocking(move || cgroups.remove(&name)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(run, %error, "end the processes of a run"),
            Err(error) => tracing::warn!(run, %error, "end the processes of a run"),
        }
    }
}

/// Returns whether nothing of the run is left on the host.
async fn recover_run(host: &Arc<Host>, registry: &Arc<Registry>, run: RunRow) -> bool {
    let same_boot = run.process.as_ref().is_some_and(|process| process.boot_id == host.boot_id);
    if host.has_process(&run) && run.status == RunStatus::Running && adopt(host, registry, &run).await {
        return false;
    }
    if let Some(process) = run.process.as_ref().filter(|_| host.has_process(&run)) {
        // One that stands still takes no signal.
        host.cgroups.thaw(run.id.as_str());
        sys::kill(process.pid);
        let mut waited = Duration::ZERO;
        while host.has_process(&run) && waited < KILL_PATIENCE {
            tokio::time::sleep(KILL_LOOK).await;
            waited += KILL_LOOK;
        }
        if waited >= KILL_PATIENCE {
            tracing::error!(run = %run.id, "PID 1 does not end: the run keeps its place until it does");
            return !adopt(host, registry, &run).await;
        }
    }
    let slot = run.process.as_ref().map(|process| process.slot);
    launch::remove(host, &run.id, slot).await;
    let ended = if run.process.is_none() {
        abandon(host, &run).await.map_err(|error| error.detail())
    } else {
        end(host, &run, same_boot).await
    };
    match ended {
        Ok(()) => tracing::info!(run = %run.id, "ended"),
        Err(error) => tracing::error!(run = %run.id, error, "end run"),
    }
    true
}

/// Gives a run that lives to its sandbox's task; `false`: it cannot be kept.
async fn adopt(host: &Arc<Host>, registry: &Arc<Registry>, run: &RunRow) -> bool {
    // The server ends already: the next one adopts it.
    let Some(queue) = task_queue(host, registry, &run.sandbox_id) else { return true };
    let (reply, adopted) = oneshot::channel();
    let sent = queue.send(Command::Adopt { run: Box::new(run.clone()), reply }).await;
    match adopted.await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::error!(run = %run.id, error = %error.detail(), "adopt"),
        Err(_) if registry.is_closed() => return true,
        Err(_) => tracing::error!(run = %run.id, sent = sent.is_ok(), "its task is gone"),
    }
    false
}

/// How long a run may take to die at start-up, and between two looks.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const KILL_LOOK: Duration = Duration::from_millis(5);

/// Finishes the end of a run whose processes are gone: as it was meant, if
/// somebody had begun it.
async fn end(host: &Arc<Host>, run: &RunRow, same_boot: bool) -> Result<(), String> {
    let found = host.db.sandbox_by_id(&run.sandbox_id).await.map_err(|error| error.to_string())?;
    let sandbox = found.map(|found| SandboxRecord::new(found.sandbox));
    let ending = Ending::of(run).unwrap_or_else(|| {
        let reason = if same_boot { StopReason::Died } else { StopReason::HostRestart };
        Ending::decide(sandbox.as_ref(), reason, None)
    });
    let ended = finish(host, run, sandbox.as_ref(), &ending, true).await.map_err(|error| error.detail())?;
    if let Some(error) = ended.refused {
        // Nobody waits for it any more; the files are kept.
        tracing::warn!(run = %run.id, error = %error.detail(), "the snapshot of an end was not made");
    }
    Ok(())
}

/// Removes from the host what no live run owns, and does the housekeeping.
pub(crate) async fn sweep(host: &Arc<Host>, registry: &Arc<Registry>) {
    // Processes and limits.
    for name in host.cgroups.runs() {
        if !registry.owns(&name) {
            tracing::warn!(run = name, "removing a cgroup that nobody owns");
            launch::remove_named(host, &name).await;
        }
    }
    // Sockets.
    for entry in std::fs::read_dir(host.sockets()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !registry.owns(&name) {
            launch::remove_named(host, &name).await;
        }
    }
    save_transfers(host, registry).await;
    housekeeping(host).await;
}

/// Records how many bytes live runs sent and received, for the server after this one.
pub(crate) async fn save_transfers(host: &Host, registry: &Registry) {
    let changed = registry.all_live().into_iter().filter_map(|live| {
        let transferred = live.transferred()?;
        let known = *live.saved() == transferred;
        (!known).then_some((live, transferred))
    });
    let changed: Vec<_> = changed.collect();
    if changed.is_empty() {
        return;
    }
    let rows: Vec<_> = changed.iter().map(|(live, transferred)| (live.run.clone(), *transferred)).collect();
    match host.db.runs_transferred(&rows).await {
        Ok(()) => changed.into_iter().for_each(|(live, transferred)| *live.saved() = transferred),
        Err(error) => tracing::warn!(%error, "record the bytes of runs"),
    }
}

/// Forgets images that nothing stands on, and removes files that nothing refers
/// to. All of it is found by index.
pub(crate) async fn housekeeping(host: &Arc<Host>) {
    let now = host.clock.now();
    if let Err(error) = host.db.forget_replaced_images(&host.config.host, now.minus(IMAGE_GRACE), now).await {
        tracing::warn!(%error, "forget replaced images");
    }
    loop {
        let garbage = match host.db.garbage(&host.config.host, ROUND).await {
            Ok(garbage) if garbage.is_empty() => return,
            Ok(garbage) => garbage,
            Err(error) => {
                tracing::warn!(%error, "list garbage");
                return;
            }
        };
        let whole = i64::try_from(garbage.len()).unwrap_or(ROUND) == ROUND;
        if let Err(error) = remove_garbage(host, garbage).await {
            tracing::warn!(error, "remove garbage");
            return;
        }
        if !whole {
            return;
        }
    }
}

/// Removes files, whose rows are on disk as garbage before: a database that
/// came back as it was before the host died must not speak of files that are
/// not there.
async fn remove_garbage(host: &Arc<Host>, garbage: Vec<Garbage>) -> Result<(), String> {
    host.db.sync().await.map_err(|error| format!("sync the database: {error}"))?;
    let storage = host.storage.clone();
    let removed = tokio::task::spawn_blocking(move || {
        let mut removed = Vec::with_capacity(garbage.len());
        let mut first_error = None;
        for one in garbage {
            match storage.delete(&one) {
                Ok(()) => removed.push(one),
                Err(error) => {
                    first_error.get_or_insert(format!("delete {}: {error}", one.name));
                }
            }
        }
        if let Err(error) = storage.tidy_groups() {
            tracing::warn!(%error, "tidy quota groups");
        }
        (removed, first_error)
    });
    let (removed, first_error) = removed.await.map_err(|error| error.to_string())?;
    host.db.forget_garbage(&host.config.host, &removed).await.map_err(|error| error.to_string())?;
    first_error.map_or(Ok(()), Err)
}

/// What is on disk, without what was half-made when its maker died: that goes.
async fn take_stock(host: &Arc<Host>) -> Result<Vec<Garbage>, String> {
    let storage = host.storage.clone();
    let found = tokio::task::spawn_blocking(move || {
        storage.clear_scratch()?;
        storage.inventory()
    });
    found.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Removes those of the files that no row speaks of: a copy that was made when
/// the server or the host died. Once, at start: who makes something later also
/// removes it, unless it gets a row.
async fn remove_orphans(host: &Arc<Host>, found: Vec<Garbage>) -> Result<(), String> {
    let mut orphans = BTreeSet::new();
    for one in found {
        let owned = match one.kind {
            GarbageKind::Volume => match one.name.parse() {
                Ok(id) => host.db.owns_volume(&id).await,
                Err(_) => Ok(false),
            },
            GarbageKind::Snapshot => match one.name.parse() {
                Ok(id) => host.db.owns_snapshot(&id).await,
                Err(_) => Ok(false),
            },
            GarbageKind::Drive => match one.name.parse() {
                Ok(id) => host.db.owns_drive(&id).await,
                Err(_) => Ok(false),
            },
            GarbageKind::View => match one.name.rsplit_once('-').and_then(|(run, _)| run.parse().ok()) {
                Some(run) => host.db.is_live(&run).await,
                None => Ok(false),
            },
            GarbageKind::Image => host.db.has_image_file(&host.config.host, &one.name).await,
        };
        if !owned.map_err(|error| error.to_string())? {
            orphans.insert(one);
        }
    }
    if orphans.is_empty() {
        return Ok(());
    }
    tracing::info!(count = orphans.len(), "removing files that nobody owns");
    remove_garbage(host, orphans.into_iter().collect()).await
}

/// Waits until no run is being tidied.
pub(crate) async fn settle(registry: &Registry) {
    for _ in 0..500 {
        if !registry.is_busy() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
