//! Making the host agree with the database: once at start, and again every few
//! seconds. Both are reconcilers: no input, idempotent, and each kind of thing
//! that the engine makes has one paragraph here.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dormouse_provider::{RunStatus, StopReason};
use dormouse_store::{RunRow, SnapshotsOfDeleted};
use dormouse_types::{LayerId, SandboxId};
use tokio::sync::mpsc;

use crate::host::{self, Host};
use crate::machine::{Keep, Machine, Order, finish};
use crate::registry::Registry;
use crate::{launch, sys};

/// Runs recovered at once.
const WIDTH: usize = 16;

/// The queue of a sandbox's task, which is started where there is none.
pub(crate) fn task_queue(
    host: &Arc<Host>,
    registry: &Arc<Registry>,
    sandbox: &SandboxId,
) -> mpsc::Sender<Order> {
    registry.queue(sandbox, |orders| {
        tokio::spawn(Machine::run(host.clone(), registry.clone(), sandbox.clone(), orders)).abort_handle()
    })
}

/// Takes over the runs that live, ends the ones that do not.
pub(crate) async fn recover(host: &Arc<Host>, registry: &Arc<Registry>) {
    let runs = loop {
        match host.db.live_runs().await {
            Ok(runs) => break runs,
            Err(error) => {
                tracing::error!(%error, "read live runs; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
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
    if let Err(error) = drop_orphan_layers(host).await {
        tracing::warn!(%error, "drop orphan layers");
    }
}

/// Returns whether nothing of the run is left on the host.
async fn recover_run(host: &Arc<Host>, registry: &Arc<Registry>, run: RunRow) -> bool {
    let same_boot = run.process.as_ref().is_some_and(|process| process.boot_id == host.boot_id);
    let alive =
        same_boot && run.process.as_ref().is_some_and(|p| host::start_time(p.pid) == Some(p.start_time));
    if alive && run.status == RunStatus::Running.as_str() {
        let queue = task_queue(host, registry, &run.sandbox_id);
        let adopted = queue.send(Order::Adopt { run: Box::new(run.clone()) }).await;
        // The task publishes the run when it takes the order.
        while adopted.is_ok() && registry.live(&run.id).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if run.process.as_ref().is_none_or(|p| host::start_time(p.pid) != Some(p.start_time)) {
                break;
            }
        }
        if registry.live(&run.id).is_some() {
            return false;
        }
    }
    if alive && let Some(process) = &run.process {
        sys::kill(process.pid);
    }
    let slot = run.process.as_ref().map(|process| process.slot);
    launch::remove(host, &run.id, slot).await;
    let ended = if run.process.is_none() {
        abandon(host, &run).await
    } else {
        let reason = match (same_boot, run.status == RunStatus::Running.as_str()) {
            (false, _) => StopReason::HostRestart,
            (true, true) => StopReason::Died,
            (true, false) => StopReason::Requested,
        };
        finish(host, &run, reason, Keep::AsConfigured).await.map_err(|error| error.detail())
    };
    match ended {
        Ok(()) => tracing::info!(run = %run.id, "ended"),
        Err(error) => tracing::error!(run = %run.id, error, "end run"),
    }
    true
}

/// A run that never took a command: nothing was acknowledged, so nothing stays,
/// the sandbox included if this was to be its first run.
async fn abandon(host: &Arc<Host>, run: &RunRow) -> Result<(), String> {
    host.storage.discard_run(&run.id).map_err(|error| error.to_string())?;
    let now = host.clock.now();
    let (failed, reason) = (RunStatus::Failed.as_str(), StopReason::StartFailed.as_str());
    host.db.run_ended(&run.id, failed, reason, now).await.map_err(|error| error.to_string())?;
    if host.db.count_runs(&run.sandbox_id).await.map_err(|error| error.to_string())? == 1 {
        let deleted = host.db.delete_sandbox(&run.sandbox_id, SnapshotsOfDeleted::AllGo, now).await;
        deleted.map_err(|error| error.to_string())?;
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
    // Disks. One that belongs to a run in the database is not ours to drop:
    // its end failed half-way and is tried again.
    let on_disk = host.storage.names("runs").unwrap_or_default();
    for name in on_disk {
        let Ok(run) = name.parse() else { continue };
        if registry.owns(&name) {
            continue;
        }
        let ended = match host.db.run(&run).await {
            Ok(Some(row)) => RunStatus::from_word(&row.status).is_some_and(RunStatus::is_ended),
            Ok(None) => true,
            Err(_) => false,
        };
        if ended && !registry.owns(&name) {
            let (storage, id) = (host.storage.clone(), run.clone());
            report("discard disk", tokio::task::spawn_blocking(move || storage.discard_run(&id)).await);
        }
    }
    housekeeping(host).await;
}

fn report<E: std::fmt::Display>(what: &str, done: Result<std::io::Result<()>, E>) {
    match done {
        Ok(Err(error)) => tracing::warn!(%error, "{what}"),
        Err(error) => tracing::warn!(%error, "{what}"),
        Ok(Ok(())) => {}
    }
}

/// Expires snapshots, squashes deep stacks, collects unused layers, counts sizes.
async fn housekeeping(host: &Arc<Host>) {
    match host.db.expire_snapshots(host.clock.now()).await {
        Ok(0) => {}
        Ok(expired) => tracing::info!(expired, "snapshots expired"),
        Err(error) => tracing::warn!(%error, "expire snapshots"),
    }
    if let Err(error) = squash_deep(host).await {
        tracing::warn!(error, "squash");
    }
    let unused = {
        let _nobody_takes_layers = host.layers.write().await;
        host.db.forget_unused_layers().await
    };
    match unused {
        Ok(layers) => {
            for layer in layers {
                let storage = host.storage.clone();
                let done = tokio::task::spawn_blocking(move || storage.discard_layer(layer.as_str())).await;
                report("discard layer", done);
            }
        }
        Err(error) => tracing::warn!(%error, "forget unused layers"),
    }
    match host.storage.usage() {
        Ok(usage) if usage.free_bytes < usage.total_bytes / 20 => {
            let (free, total) = (usage.free_bytes >> 20, usage.total_bytes >> 20);
            tracing::warn!(free_mib = free, total_mib = total, "the pool is nearly full");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "look at the pool"),
    }
    let storage = host.storage.clone();
    report("empty trash", tokio::task::spawn_blocking(move || storage.empty_trash()).await);
    for layer in host.db.uncounted_layers(16).await.unwrap_or_default() {
        let (storage, id) = (host.storage.clone(), layer.clone());
        if let Ok(Ok(size)) = tokio::task::spawn_blocking(move || storage.layer_size(&id)).await {
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            if let Err(error) = host.db.set_layer_size(&layer, size).await {
                tracing::warn!(%error, "record layer size");
            }
        }
    }
}

async fn squash_deep(host: &Arc<Host>) -> Result<(), String> {
    let depth = i64::from(host.config.squash_depth);
    let mut snapshots = host.db.deep_snapshots(depth, 4).await.map_err(|e| e.to_string())?;
    let crowded = std::mem::take(&mut *host.crowded.lock().unwrap_or_else(PoisonError::into_inner));
    for id in crowded {
        let found = host.db.snapshot(&id).await.map_err(|e| e.to_string())?;
        snapshots.extend(found.filter(|snapshot| snapshot.status == "created"));
    }
    for snapshot in snapshots {
        // The base image's layers are shared: only what lies above is merged.
        let image = host.db.image_by_id(&snapshot.image_id).await.map_err(|e| e.to_string())?;
        let Some(base) = image.map(|image| image.layers.len()) else { continue };
        if snapshot.layers.len() < base + 2 {
            continue;
        }
        let (kept, merged) = snapshot.layers.split_at(base);
        let (layer, sources) = (LayerId::generate(), merged.to_vec());
        let (storage, id) = (host.storage.clone(), layer.clone());
        let done = tokio::task::spawn_blocking(move || {
            // A half-made layer is an orphan that start-up drops; drop it now.
            storage.squash(&id, &sources).inspect_err(|_| drop(storage.discard_layer(id.as_str())))
        });
        // Kept until a row names the layer.
        let _made =
            done.await.map_err(|e| e.to_string())?.map_err(|e| format!("merge {}: {e}", snapshot.id))?;
        let layers: Vec<LayerId> = kept.iter().cloned().chain([layer.clone()]).collect();
        let now = host.clock.now();
        let replaced = host.db.replace_layers(&snapshot, &layers, &layer, now).await;
        let replaced = replaced.map_err(|e| e.to_string())?;
        if !replaced {
            // The sandbox moved on meanwhile; nobody will stand on this.
            host.storage.discard_layer(layer.as_str()).map_err(|e| format!("discard {layer}: {e}"))?;
        }
        tracing::info!(snapshot = %snapshot.id, from = snapshot.layers.len(), replaced, "squashed");
    }
    Ok(())
}

/// Layers on disk that no row knows: half an import, or a squash that was cut
/// off. A frozen run is not one: its row says so before this looks.
async fn drop_orphan_layers(host: &Arc<Host>) -> std::io::Result<()> {
    for name in host.storage.names("layers")? {
        let Ok(layer) = name.parse::<LayerId>() else {
            continue;
        };
        let known = host.db.has_layer(&layer).await.map_err(std::io::Error::other)?;
        if !known {
            host.storage.discard_orphan(&name)?;
        }
    }
    Ok(())
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
