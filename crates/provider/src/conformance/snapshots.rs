//! Snapshots, forks, and what comes of them.

use std::collections::BTreeMap;

use dormouse_types::SnapshotId;

use super::{Bench, Failure, Outcome, check, check_error};
use crate::{
    CreateSandbox, Direction, ForkSandbox, KeepLast, ListOf, ProviderError, Retention, RunStatus,
    SnapshotKind, SnapshotRequest, SnapshotStatus, Source, StartFrom, StopReason, UpdateSandbox,
};

pub(super) async fn a_snapshot_starts_others(bench: &Bench) -> Outcome {
    let made = bench.sandbox_with("a", |request| request.persistent = false).await?;
    bench.ok(&made.run, "echo kept > /tmp/file").await?;
    let made_snapshot =
        bench.provider.snapshot(&bench.run_ref(&made.run), SnapshotRequest::default()).await?;
    let (snapshot, run) = (made_snapshot.snapshot, made_snapshot.run);
    check!(run.status == RunStatus::Stopped, "a snapshot leaves its run {:?}", run.status);
    check!(snapshot.kind == SnapshotKind::Manual && snapshot.source_run == made.run.id, "{snapshot:?}");
    let resumed = bench.provider.resume(&bench.key_of(&made)).await?;
    check!(bench.ok(&resumed.run, "cat /tmp/file").await? == "kept", "the sandbox itself lost it");
    for name in ["b", "c"] {
        let from = Some(Source::Snapshot(snapshot.id.clone()));
        let other = bench.sandbox_with(name, |request| request.source = from).await?;
        check!(other.run.source_snapshot.as_ref() == Some(&snapshot.id), "{:?}", other.run.source_snapshot);
        check!(bench.ok(&other.run, "cat /tmp/file; echo more >> /tmp/file").await? == "kept", "{name}");
    }
    Ok(())
}

pub(super) async fn a_deleted_snapshot_is_gone_everywhere(bench: &Bench) -> Outcome {
    let made = bench.sandbox_with("a", |request| request.retention = Retention::Expiry).await?;
    let key = bench.key_of(&made);
    let stopped = bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    let snapshot = stopped.snapshot.ok_or_else(|| Failure("a stop kept no snapshot".to_owned()))?;
    check!(snapshot.kind == SnapshotKind::Automatic, "{:?}", snapshot.kind);
    let deleted = bench.provider.delete_snapshot(&bench.namespace, &snapshot.id).await?;
    check!(deleted.status == SnapshotStatus::Deleted, "{:?}", deleted.status);
    let found = bench.provider.get_snapshot(&bench.namespace, &snapshot.id).await?;
    check!(found.status == SnapshotStatus::Deleted, "{:?}", found.status);
    check_error!(bench.provider.resume(&key).await, ProviderError::SnapshotGone(_));
    let mut request = CreateSandbox::new(bench.key("b"));
    request.source = Some(Source::Snapshot(snapshot.id.clone()));
    check_error!(bench.provider.create(request).await, ProviderError::SnapshotGone(_));
    let list = ListOf { sandbox: Some(key.name.to_string()), ..ListOf::default() };
    let (listed, _) = bench.provider.snapshots(&bench.namespace, list).await?;
    let listed = listed.iter().find(|listed| listed.id == snapshot.id).map(|listed| listed.status);
    check!(listed == Some(SnapshotStatus::Deleted), "a deleted snapshot is listed as {listed:?}");
    let unknown = SnapshotId::generate();
    check_error!(bench.provider.get_snapshot(&bench.namespace, &unknown).await, ProviderError::NotFound(_));
    check_error!(
        bench.provider.delete_snapshot(&bench.namespace, &unknown).await,
        ProviderError::NotFound(_)
    );
    Ok(())
}

pub(super) async fn forks(bench: &Bench) -> Outcome {
    let tags = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    let env = BTreeMap::from([("FROM".to_owned(), "source".to_owned())]);
    let (of_source, with) = (tags.clone(), env.clone());
    let made = bench.sandbox_with("a", |request| (request.tags, request.env) = (of_source, with)).await?;
    bench.ok(&made.run, "echo kept > /tmp/file").await?;
    bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    let fork = |name: &str| ForkSandbox {
        source: made.sandbox.name.clone(),
        key: bench.key(name),
        env: None,
        live: false,
        changes: UpdateSandbox::default(),
        retry_key: None,
    };
    let forked = bench.provider.fork(fork("b")).await?;
    check!(forked.sandbox.tags == tags, "{:?}", forked.sandbox.tags);
    check!(
        bench.ok(&forked.run, "cat /tmp/file; echo $FROM").await? == "kept\nsource",
        "files and environment"
    );
    check_error!(bench.provider.fork(fork("b")).await, ProviderError::Conflict(_));
    let mut other = fork("c");
    other.env = Some(BTreeMap::new());
    other.changes.tags = Some(BTreeMap::new());
    let other = bench.provider.fork(other).await?;
    check!(other.sandbox.tags.is_empty(), "{:?}", other.sandbox.tags);
    check!(bench.ok(&other.run, "echo \"<$FROM>\"").await? == "<>", "a whole value replaces the whole");
    let mut unknown = fork("d");
    unknown.source = bench.key("none").name;
    check_error!(bench.provider.fork(unknown).await, ProviderError::NotFound(_));
    Ok(())
}

pub(super) async fn the_last_ones_are_kept(bench: &Bench) -> Outcome {
    let keep = KeepLast { count: 2, expiration: None, delete_evicted: true };
    let made = bench.sandbox_with("a", |request| request.retention = Retention::KeepLast(keep)).await?;
    check!(made.sandbox.retention == Retention::KeepLast(keep), "{:?}", made.sandbox.retention);
    let key = bench.key_of(&made);
    let mut run = made.run;
    for _ in 0..3 {
        bench.provider.stop(&bench.run_ref(&run), StopReason::Requested).await?;
        run = bench.provider.resume(&key).await?.run;
    }
    let list = ListOf { sandbox: Some(key.name.to_string()), ..ListOf::default() };
    let (snapshots, _) = bench.provider.snapshots(&bench.namespace, list).await?;
    let kept = snapshots.iter().filter(|snapshot| snapshot.status == SnapshotStatus::Created).count();
    check!(snapshots.len() == 3 && kept == 2, "{kept} of {} snapshots are kept", snapshots.len());
    check!(bench.sh(&run, "true").await?.code == 0, "what it stands on went");
    Ok(())
}

pub(super) async fn trees(bench: &Bench) -> Outcome {
    let made = bench.sandbox_with("a", |request| request.retention = Retention::Expiry).await?;
    let key = bench.key_of(&made);
    let mut run = made.run;
    let mut line = Vec::new();
    for _ in 0..3 {
        let request = SnapshotRequest::default();
        line.push(bench.provider.snapshot(&bench.run_ref(&run), request).await?.snapshot.id);
        run = bench.provider.resume(&key).await?.run;
    }
    let up = bench.provider.snapshot_tree(&bench.namespace, &line[2], Direction::Descending, 10).await?;
    let ancestors: Vec<_> = up.nodes.iter().map(|node| node.snapshot.id.clone()).collect();
    check!(ancestors == [line[1].clone(), line[0].clone()], "{ancestors:?} of {line:?}");
    check!(
        up.anchor.snapshot.id == line[2] && up.next.is_none(),
        "{:?} {:?}",
        up.anchor.snapshot.id,
        up.next
    );
    let down = bench.provider.snapshot_tree(&bench.namespace, &line[0], Direction::Ascending, 1).await?;
    let descendants: Vec<_> = down.nodes.iter().map(|node| node.snapshot.id.clone()).collect();
    check!(descendants == [line[1].clone()] && down.next.is_some(), "{descendants:?} {:?}", down.next);
    Ok(())
}

/// The run goes on, and the copy has the files of one moment. A provider that
/// cannot do it says so, and stops nothing.
pub(super) async fn live_copies(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    bench.ok(&made.run, "echo before > /tmp/file").await?;
    let live = SnapshotRequest { live: true, ..SnapshotRequest::default() };
    let run = bench.run_ref(&made.run);
    let fork = |name: &str| ForkSandbox {
        source: made.sandbox.name.clone(),
        key: bench.key(name),
        env: None,
        live: true,
        changes: UpdateSandbox::default(),
        retry_key: None,
    };
    let kept = match bench.provider.snapshot(&run, live).await {
        Err(ProviderError::Invalid(_)) => {
            check!(bench.sh(&made.run, "true").await?.code == 0, "a refused live snapshot stopped the run");
            check_error!(bench.provider.fork(fork("b")).await, ProviderError::Invalid(_));
            return Ok(());
        }
        other => other?,
    };
    check!(kept.run.status == RunStatus::Running && kept.stall.is_some(), "{:?}", kept.run.status);
    check!(kept.snapshot.kind == SnapshotKind::Manual, "{:?}", kept.snapshot.kind);
    bench.ok(&made.run, "echo after > /tmp/file").await?;
    let forked = bench.provider.fork(fork("b")).await?;
    check!(bench.ok(&forked.run, "cat /tmp/file").await? == "after", "a live fork has older files");
    let from = Some(Source::Snapshot(kept.snapshot.id));
    let other = bench.sandbox_with("c", |request| request.source = from).await?;
    check!(bench.ok(&other.run, "cat /tmp/file").await? == "before", "a snapshot has newer files");
    // Each has its own from then on.
    bench.ok(&forked.run, "echo fork > /tmp/file").await?;
    check!(bench.ok(&made.run, "cat /tmp/file").await? == "after", "a fork writes to its source");
    Ok(())
}

/// Who is told of a snapshot of another namespace starts from it, and sees
/// nothing of it but its files. A provider may have one namespace only.
pub(super) async fn snapshots_of_others(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    bench.ok(&made.run, "echo shared > /tmp/file").await?;
    let kept = bench.provider.snapshot(&bench.run_ref(&made.run), SnapshotRequest::default()).await?.snapshot;
    let other = bench.in_project("conformance-other");
    let outcome = started_from(bench, &other, &kept.id).await;
    outcome.and(other.clean_up().await)
}

async fn started_from(bench: &Bench, other: &Bench, kept: &SnapshotId) -> Outcome {
    if other.provider.get_snapshot(&other.namespace, kept).await.is_ok() {
        return Ok(());
    }
    let from = || Some(Source::SnapshotOf(bench.namespace.clone(), kept.clone()));
    let started = other.sandbox_with("b", |request| request.source = from()).await?;
    check!(other.ok(&started.run, "cat /tmp/file").await? == "shared", "not its files");
    check!(started.sandbox.current_snapshot.is_none(), "{:?}", started.sandbox.current_snapshot);
    other.ok(&started.run, "echo own > /tmp/file").await?;
    other.provider.stop(&other.run_ref(&started.run), StopReason::Requested).await?;
    let resumed = other.provider.resume(&other.key_of(&started)).await?;
    check!(other.ok(&resumed.run, "cat /tmp/file").await? == "own", "its own files are gone");
    bench.provider.delete_snapshot(&bench.namespace, kept).await?;
    let request = CreateSandbox { source: from(), ..CreateSandbox::new(other.key("c")) };
    check_error!(other.provider.create(request).await, ProviderError::SnapshotGone(_));
    check!(other.ok(&resumed.run, "cat /tmp/file").await? == "own", "they went with the snapshot");
    Ok(())
}

/// The next run starts from the snapshot that was named, whether the sandbox
/// runs meanwhile or not.
pub(super) async fn rollbacks(bench: &Bench) -> Outcome {
    let made = bench.sandbox_with("a", |request| request.retention = Retention::Expiry).await?;
    let key = bench.key_of(&made);
    bench.ok(&made.run, "echo first > /tmp/file").await?;
    let request = SnapshotRequest::default();
    let first = bench.provider.snapshot(&bench.run_ref(&made.run), request).await?.snapshot.id;
    let mut run = bench.provider.resume(&key).await?.run;
    for while_it_runs in [false, true] {
        bench.ok(&run, "echo second > /tmp/file; echo more > /tmp/more").await?;
        let back = UpdateSandbox {
            start_from: Some(StartFrom::Snapshot(first.clone())),
            ..UpdateSandbox::default()
        };
        if while_it_runs {
            bench.provider.update(&key, back).await?;
            check!(
                bench.ok(&run, "cat /tmp/file").await? == "second",
                "a rollback changed a running sandbox"
            );
            bench.provider.stop(&bench.run_ref(&run), StopReason::Requested).await?;
        } else {
            bench.provider.stop(&bench.run_ref(&run), StopReason::Requested).await?;
            bench.provider.update(&key, back).await?;
        }
        let found = bench.provider.get(&key).await?;
        check!(
            found.sandbox.current_snapshot.as_ref() == Some(&first),
            "{:?}",
            found.sandbox.current_snapshot
        );
        run = bench.provider.resume(&key).await?.run;
        let seen = bench.ok(&run, "cat /tmp/file; ls /tmp/more 2>/dev/null || echo none").await?;
        check!(seen == "first\nnone", "after a rollback (running: {while_it_runs}): {seen}");
    }
    let back = UpdateSandbox { start_from: Some(StartFrom::Image), ..UpdateSandbox::default() };
    bench.provider.stop(&bench.run_ref(&run), StopReason::Requested).await?;
    match bench.provider.update(&key, back).await {
        // The protocol has no word for it.
        Err(ProviderError::Invalid(_)) => return Ok(()),
        updated => check!(updated?.sandbox.current_snapshot.is_none(), "the image is no snapshot"),
    }
    run = bench.provider.resume(&key).await?.run;
    let seen = bench.ok(&run, "cat /tmp/file 2>/dev/null || echo none").await?;
    check!(seen == "none", "after a rollback to the image: {seen}");
    Ok(())
}
