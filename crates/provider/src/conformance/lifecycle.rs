//! Create, stop, resume, change, delete.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_types::CommandId;

use super::{Bench, Failure, Outcome, check, check_error};
use crate::{
    CommandSpec, CreateSandbox, CustomPolicy, NetworkPolicy, ProviderError, Retention, RunStatus, StopReason,
    UpdateSandbox,
};

pub(super) async fn a_new_sandbox_takes_commands(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    check!(made.run.status == RunStatus::Running, "a new run is {:?}", made.run.status);
    check!(made.sandbox.current_run == made.run.id, "the new run is not the current one");
    check!(made.run.started_at.is_some(), "a running run has no start");
    check!(bench.ok(&made.run, "echo hello").await? == "hello", "echo");
    let found = bench.provider.get(&bench.key_of(&made)).await?;
    check!(found.run.id == made.run.id && !found.resumed, "get after create: {found:?}");
    let by_run = bench.provider.run(&bench.run_ref(&made.run)).await?;
    check!(by_run.id == made.run.id && by_run.status == RunStatus::Running, "run by id: {by_run:?}");
    Ok(())
}

pub(super) async fn names_are_taken_and_free_again(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let key = bench.key_of(&made);
    check_error!(bench.provider.create(CreateSandbox::new(key.clone())).await, ProviderError::Conflict(_));
    check!(bench.ok(&made.run, "echo still here").await? == "still here", "a conflict hurt the first");
    bench.provider.delete(&key, true).await?;
    check_error!(bench.provider.get(&key).await, ProviderError::NotFound(_));
    check_error!(bench.provider.resume(&key).await, ProviderError::NotFound(_));
    check_error!(bench.provider.delete(&key, true).await, ProviderError::NotFound(_));
    let again = bench.sandbox("a").await?;
    check!(again.run.id != made.run.id, "a new sandbox with an old run");
    check!(bench.sh(&again.run, "true").await?.code == 0, "the second of its name takes no commands");
    Ok(())
}

pub(super) async fn everything_survives_a_stop(bench: &Bench) -> Outcome {
    let mut now = bench.sandbox_with("a", |request| request.retention = Retention::Expiry).await?;
    let key = bench.key_of(&now);
    bench.ok(&now.run, "for d in /tmp /home/ubuntu /vercel/sandbox; do echo kept > $d/file; done").await?;
    for round in 0..10 {
        let stopped = bench.provider.stop(&bench.run_ref(&now.run), StopReason::Requested).await?;
        check!(stopped.run.status == RunStatus::Stopped, "after a stop: {:?}", stopped.run.status);
        let snapshot = stopped.snapshot.ok_or_else(|| Failure("a stop kept no snapshot".to_owned()))?;
        let current = stopped.sandbox.and_then(|sandbox| sandbox.current_snapshot);
        check!(current.as_ref() == Some(&snapshot.id), "the next run would not start from what was kept");
        let (ended, spec) = (bench.run_ref(&now.run), CommandSpec::new(["true"]));
        check_error!(bench.provider.exec(&ended, CommandId::generate(), spec).await, ProviderError::Stopped);
        let resumed = bench.provider.resume(&key).await?;
        check!(resumed.resumed, "a resume of a stopped sandbox started nothing");
        check!(resumed.run.id != now.run.id, "a resume revived the old run");
        check!(resumed.run.source_snapshot.as_ref() == Some(&snapshot.id), "it started from something else");
        let kept = "cat /tmp/file /home/ubuntu/file /vercel/sandbox/file | tr -d '\\n'";
        check!(bench.ok(&resumed.run, kept).await? == "keptkeptkept", "files are lost in round {round}");
        let again = bench.provider.resume(&key).await?;
        check!(!again.resumed && again.run.id == resumed.run.id, "a resume of a running sandbox: {again:?}");
        now = resumed;
    }
    Ok(())
}

/// Without snapshots too.
pub(super) async fn files_need_no_snapshot_to_survive(bench: &Bench) -> Outcome {
    let mut now = bench.sandbox("a").await?;
    let key = bench.key_of(&now);
    bench.ok(&now.run, "mkdir /tmp/d; echo 0 > /tmp/d/file; ln /tmp/d/file /tmp/link").await?;
    for round in 1..=3 {
        bench.provider.stop(&bench.run_ref(&now.run), StopReason::Requested).await?;
        now = bench.provider.resume(&key).await?;
        let script =
            format!("mv /tmp/d /tmp/e && mv /tmp/e /tmp/d && echo {round} > /tmp/link && cat /tmp/d/file");
        check!(bench.ok(&now.run, &script).await? == round.to_string(), "round {round}");
    }
    Ok(())
}

pub(super) async fn looking_does_not_wake(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let (key, run) = (bench.key_of(&made), bench.run_ref(&made.run));
    bench.provider.stop(&run, StopReason::Requested).await?;
    for _ in 0..3 {
        let found = bench.provider.get(&key).await?;
        check!(found.run.id == made.run.id && !found.resumed, "a look woke it: {found:?}");
        check!(found.run.status == RunStatus::Stopped, "a look changed it: {:?}", found.run.status);
        check!(bench.provider.run(&run).await?.status == RunStatus::Stopped, "the run by its id");
    }
    Ok(())
}

pub(super) async fn two_resumes_give_one_run(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let key = bench.key_of(&made);
    bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    let (a, b, c) =
        futures::join!(bench.provider.resume(&key), bench.provider.resume(&key), bench.provider.resume(&key));
    let (a, b, c) = (a?, b?, c?);
    check!(a.run.id == b.run.id && b.run.id == c.run.id, "{} {} {}", a.run.id, b.run.id, c.run.id);
    let fresh = [&a, &b, &c].iter().filter(|found| found.resumed).count();
    check!(fresh == 1, "{fresh} of three resumes say that they started the run");
    // One that comes while it stops waits for the end.
    let run = bench.run_ref(&a.run);
    let (stopped, resumed) =
        futures::join!(bench.provider.stop(&run, StopReason::Requested), bench.provider.resume(&key));
    stopped?;
    let resumed = resumed?;
    let again = bench.provider.resume(&key).await?;
    check!(
        again.run.status == RunStatus::Running && (again.run.id == resumed.run.id || again.resumed),
        "after a stop and a resume at once: {again:?}"
    );
    Ok(())
}

pub(super) async fn stop_may_be_said_again(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let (a, b) = futures::join!(
        bench.provider.stop(&run, StopReason::Requested),
        bench.provider.stop(&run, StopReason::Requested)
    );
    check!(a?.run.status == RunStatus::Stopped && b?.run.status == RunStatus::Stopped, "two stops at once");
    let again = bench.provider.stop(&run, StopReason::Requested).await?;
    check!(again.run.status == RunStatus::Stopped, "a third stop: {:?}", again.run.status);
    Ok(())
}

pub(super) async fn what_is_not_persistent_begins_anew(bench: &Bench) -> Outcome {
    let made = bench.sandbox_with("a", |request| request.persistent = false).await?;
    bench.ok(&made.run, "echo here > /tmp/file").await?;
    let stopped = bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    check!(stopped.snapshot.is_none(), "what is not persistent was kept");
    let resumed = bench.provider.resume(&bench.key_of(&made)).await?;
    check!(resumed.resumed, "it did not come back");
    check!(
        bench.ok(&resumed.run, "ls /tmp").await?.is_empty(),
        "what is not persistent came back with its files"
    );
    Ok(())
}

pub(super) async fn a_lifetime_ends_in_a_stop(bench: &Bench) -> Outcome {
    let short = Duration::from_millis(1500);
    let kept = Retention::Expiry;
    let made =
        bench.sandbox_with("a", |request| (request.timeout, request.retention) = (Some(short), kept)).await?;
    let key = bench.key_of(&made);
    bench.ok(&made.run, "echo kept > /tmp/file").await?;
    let mut found = bench.provider.get(&key).await?;
    while !found.run.status.is_ended() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        found = bench.provider.get(&key).await?;
    }
    check!(found.run.status == RunStatus::Stopped, "a lifetime ended in {:?}", found.run.status);
    check!(found.sandbox.current_snapshot.is_some(), "a lifetime ended in loss");
    let longer = UpdateSandbox { timeout: Some(Duration::from_secs(600)), ..UpdateSandbox::default() };
    bench.provider.update(&key, longer).await?;
    let resumed = bench.provider.resume(&key).await?;
    check!(bench.ok(&resumed.run, "cat /tmp/file").await? == "kept", "files are lost");
    Ok(())
}

pub(super) async fn lifetimes_grow_up_to_a_limit(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let longer = bench.provider.extend(&run, Duration::from_secs(60)).await?;
    let grown = longer.timeout.checked_sub(made.run.timeout);
    check!(grown == Some(Duration::from_secs(60)), "{:?} became {:?}", made.run.timeout, longer.timeout);
    let days = Duration::from_secs(30 * 86_400);
    check_error!(bench.provider.extend(&run, days).await, ProviderError::TimeoutInvalid(_));
    check!(
        bench.provider.run(&run).await?.timeout == longer.timeout,
        "a refused extension changed something"
    );
    let mut request = CreateSandbox::new(bench.key("b"));
    request.timeout = Some(days);
    check_error!(
        bench.provider.create(request).await,
        ProviderError::TimeoutInvalid(_) | ProviderError::Invalid(_)
    );
    Ok(())
}

pub(super) async fn deletion_is_legal_in_every_state(bench: &Bench) -> Outcome {
    let running = bench.sandbox("running").await?;
    bench.provider.delete(&bench.key_of(&running), true).await?;
    check_error!(bench.provider.get(&bench.key_of(&running)).await, ProviderError::NotFound(_));

    let stopped = bench.sandbox("stopped").await?;
    bench.provider.stop(&bench.run_ref(&stopped.run), StopReason::Requested).await?;
    bench.provider.delete(&bench.key_of(&stopped), true).await?;

    let stopping = bench.sandbox("stopping").await?;
    let (key, run) = (bench.key_of(&stopping), bench.run_ref(&stopping.run));
    let (stop, delete) =
        futures::join!(bench.provider.stop(&run, StopReason::Requested), bench.provider.delete(&key, true));
    delete?;
    // Whichever came first: the sandbox is gone, and the stop did not hang.
    if let Err(error) = stop {
        check!(matches!(error, ProviderError::NotFound(_) | ProviderError::Stopped), "{}", error.detail());
    }
    check_error!(bench.provider.get(&key).await, ProviderError::NotFound(_));
    Ok(())
}

pub(super) async fn changes_apply(bench: &Bench) -> Outcome {
    let made = bench.sandbox_with("a", |request| request.ports = vec![3000]).await?;
    check!(made.routes.iter().map(|route| route.port).eq([3000]), "{:?}", made.routes);
    let key = bench.key_of(&made);
    let tags = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    let changes = UpdateSandbox {
        tags: Some(tags.clone()),
        ports: Some(vec![4000, 5000]),
        timeout: Some(Duration::from_secs(1200)),
        ..UpdateSandbox::default()
    };
    let changed = bench.provider.update(&key, changes).await?;
    check!(changed.sandbox.tags == tags, "{:?}", changed.sandbox.tags);
    check!(changed.sandbox.timeout == Duration::from_secs(1200), "{:?}", changed.sandbox.timeout);
    let mut ports: Vec<u16> = changed.routes.iter().map(|route| route.port).collect();
    ports.sort_unstable();
    check!(ports == [4000, 5000], "{ports:?}");
    let of_run = bench.provider.routes(&bench.run_ref(&made.run)).await?;
    check!(of_run.len() == 2, "{of_run:?}");
    // What is left out stays, also while it is stopped.
    bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    let none = UpdateSandbox { ports: Some(Vec::new()), ..UpdateSandbox::default() };
    let changed = bench.provider.update(&key, none).await?;
    check!(changed.routes.is_empty() && changed.sandbox.tags == tags, "{changed:?}");
    check_error!(
        bench.provider.update(&bench.key("none"), UpdateSandbox::default()).await,
        ProviderError::NotFound(_)
    );
    Ok(())
}

pub(super) async fn policies_are_reported_and_kept(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let key = bench.key_of(&made);
    check!(made.run.network == NetworkPolicy::AllowAll, "{:?}", made.run.network);
    let changed =
        bench.provider.set_network_policy(&bench.run_ref(&made.run), NetworkPolicy::DenyAll).await?;
    check!(changed.network == NetworkPolicy::DenyAll, "{:?}", changed.network);
    // Looking strips nothing.
    for _ in 0..2 {
        let found = bench.provider.get(&key).await?;
        check!(
            found.run.network == NetworkPolicy::DenyAll && found.sandbox.network == NetworkPolicy::DenyAll,
            "{:?} {:?}",
            found.run.network,
            found.sandbox.network
        );
    }
    bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    let resumed = bench.provider.resume(&key).await?;
    check!(resumed.run.network == NetworkPolicy::DenyAll, "a resume forgot it: {:?}", resumed.run.network);
    // Whether it is enforced shows only with somebody outside who answers: that
    // is for each provider's own tests.
    let networks = CustomPolicy {
        allowed_networks: vec!["192.0.2.0/24".parse().map_err(|_| Failure("a network".to_owned()))?],
        ..CustomPolicy::default()
    };
    let custom = NetworkPolicy::Custom(networks);
    let changed = bench.provider.set_network_policy(&bench.run_ref(&resumed.run), custom.clone()).await?;
    check!(changed.network == custom, "{:?}", changed.network);
    Ok(())
}
