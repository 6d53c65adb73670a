//! The invariants of the design that concern sessions, as they are checked.

use std::time::Duration;

use dormouse_provider::fake::Fake;
use dormouse_provider::{RunRef, RunStatus, SandboxKey, SandboxProvider as _};
use dormouse_sessions::LifecycleState;
use dormouse_types::{EventReason, RepoAccess};
use futures::FutureExt as _;

use super::world::{IDLE, SKEW, World, kept, repo, run_of, states};

/// The live run of a sandbox, and which of `files` it does not have.
pub(super) fn files_of(fake: &Fake, key: &SandboxKey, files: &[String]) -> Option<(RunRef, Vec<String>)> {
    let run = run_of(fake, key)?;
    let there = |path: &str| fake.read_file(&run, path, None).now_or_never().is_some_and(|read| read.is_ok());
    let lost = files.iter().filter(|path| !there(path)).cloned().collect();
    Some((run, lost))
}

/// Whether a sandbox ended because its time was over.
pub(super) fn lived_out(fake: &Fake, key: &SandboxKey) -> bool {
    let found = fake.get(key).now_or_never().and_then(Result::ok);
    found.is_some_and(|found| found.run.stop_reason.as_deref() == Some("lifetime"))
}

/// What holds after each step.
pub(super) fn always(world: &World) {
    // One session, one sandbox: by its name in its owner's namespace, and nowhere else.
    let all = world.fake.sandboxes();
    for id in &world.sessions {
        let name = format!("session-{id}");
        if all.iter().filter(|(of, _)| *of == name).count() > 1 {
            world.fails(format!("{name} is there twice"));
        }
    }
}

/// What holds when nobody has had anything to do for longer than a lifetime.
pub(super) fn at_rest(world: &World) {
    let sandboxes = states(world);
    let mut known = Vec::new();
    for (session, id) in world.sessions.iter().enumerate() {
        let row = world.see(world.db.session(id)).unwrap();
        let ledgers = world.ledgers.lock().unwrap();
        let ledger = &ledgers[session];
        let name = world.key(session).name.to_string();
        let sandbox = sandboxes.get(&name);
        world.outcome.lock().unwrap().push(format!(
            "session {session}: {:?} {sandbox:?}",
            row.as_ref().map(|row| (row.lifecycle_state, row.status))
        ));
        let Some(row) = row else {
            if !ledger.deletion_asked {
                world.fails(format!("session {session} is gone"));
            }
            if sandbox.is_some() {
                world.fails(format!("session {session} is gone, and its sandbox is there"));
            }
            continue;
        };
        if ledger.deleted || row.deleted_at.is_some() {
            world.fails(format!("session {session} was deleted, and is there"));
        }
        if sandbox.is_some_and(|status| *status == RunStatus::Running) {
            world.fails(format!("nobody uses session {session}, and its sandbox runs"));
        }
        match (&row.sandbox_name, sandbox) {
            (Some(_), None) if !ledger.untold => {
                world.fails(format!("session {session} has a sandbox, which is not there"));
            }
            (None, Some(_)) => world.fails(format!("nobody knows the sandbox of session {session}")),
            (Some(_), _) => known.push(name),
            (None, None) => {}
        }
        let rests = match row.lifecycle_state {
            LifecycleState::Hibernated => row.sandbox_name.is_some(),
            LifecycleState::Provisioning => row.sandbox_name.is_none(),
            LifecycleState::Archived => row.status == dormouse_sessions::SessionStatus::Archived,
            LifecycleState::Failed => row.lifecycle_error.is_some(),
            LifecycleState::Active | LifecycleState::Hibernating | LifecycleState::Restoring => false,
        };
        if !rests {
            let bound = row.sandbox_name.is_some();
            world.fails(format!("session {session} rests {} (bound: {bound})", row.lifecycle_state));
        }
        let archived = row.lifecycle_state == LifecycleState::Archived;
        if archived != (row.status == dormouse_sessions::SessionStatus::Archived)
            || ledger.archived.is_some_and(|said| said != archived)
        {
            world.fails(format!("session {session}: {} and {}", row.status, row.lifecycle_state));
        }
        drop(ledgers);
        history(world, session, row.lifecycle_state);
    }
    for name in sandboxes.keys() {
        if !known.contains(name) {
            world.fails(format!("the sandbox {name} is nobody's"));
        }
    }
    org_snapshots(world);
}

/// What is told of a session is one chain, and says why it slept.
fn history(world: &World, session: usize, now: LifecycleState) {
    let id = &world.sessions[session];
    let events = world.see(world.db.session_events(id, 0, 10_000)).unwrap();
    let (mut state, mut version) = (LifecycleState::Provisioning, 0);
    for (n, event) in events.iter().enumerate() {
        if event.seq != i64::try_from(n).unwrap() + 1 {
            world.fails(format!("session {session}: event {} is at {n}", event.seq));
        }
        if event.before != state {
            world.fails(format!(
                "session {session}: event {} begins at {}, where it was {state}",
                event.seq, event.before
            ));
        }
        if event.version < version {
            world.fails(format!("session {session}: event {} goes back in time", event.seq));
        }
        (state, version) = (event.after, event.version);
        let used = &world.ledgers.lock().unwrap()[session].used;
        // Of what happened within the skew, on two servers, nobody knows which was first.
        let skew = if world.servers.len() > 1 { SKEW } else { Duration::ZERO };
        let early =
            used.iter().find(|used| used.plus(skew) <= event.at && event.at.plus(skew) < used.plus(IDLE));
        if let (EventReason::Idle, Some(used)) = (event.cause.reason, early) {
            let told = events.iter().map(|event| (event.at.0, event.cause.reason, event.after));
            world.fails(format!(
                "session {session} fell asleep at {:?}, used at {used:?}, of its history {:?}",
                event.at,
                told.collect::<Vec<_>>()
            ));
        }
    }
    if state != now {
        world.fails(format!("session {session}: its history ends {state}, and it is {now}"));
    }
}

/// What holds when nobody has used anything for twice the idle time.
pub(super) fn asleep(world: &World) {
    for (name, status) in states(world) {
        if status == RunStatus::Running && name.starts_with("session-") {
            world.fails(format!("nobody has used {name} for long, and it runs"));
        }
    }
}

/// One of each repository, and nothing that none of them needs.
fn org_snapshots(world: &World) {
    let mut current = Vec::new();
    let places = || std::iter::once("").chain(world.servers.iter().map(|server| server.host.as_str()));
    for place in places() {
        let key = dormouse_store::OrgSnapshotKey::new(&repo(), RepoAccess::Public, place);
        if let Some(row) = world.see(world.db.org_snapshot(&key)).unwrap() {
            current.push(row.snapshot_id);
        }
    }
    // One that was retired stays for a minute, and until somebody looks.
    let (now, lately) = (world.clock.now(), Duration::from_secs(120));
    let retired: Vec<_> = places()
        .flat_map(|place| world.see(world.db.retired_org_snapshots(place, now.plus(SKEW), 100)).unwrap())
        .filter(|row| row.retired_at.is_some_and(|at| at.plus(lately) > now))
        .map(|row| row.snapshot_id)
        .collect();
    let there = kept(world);
    for id in &there {
        if !current.contains(id) && !retired.contains(id) {
            world.fails(format!("the snapshot {id} is of no org snapshot"));
        }
    }
    // Where several servers build they expire, and are found to be gone.
    let expire = world.servers.len() > 1;
    for id in current.iter().filter(|_| !expire) {
        if !there.contains(id) {
            world.fails(format!("the snapshot {id} of an org snapshot is not there"));
        }
    }
}
