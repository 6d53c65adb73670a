//! The store suite: every case on SQLite and on Postgres.
//!
//! One long file: its cases build on each other's rows (an image, a sandbox, a run,
//! a snapshot), and what makes those stands here once.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use dormouse_store::*;
use dormouse_types::*;

const NOW: Timestamp = Timestamp(1_000);

/// Addresses of databases of every kind, empty.
fn addresses(dir: &tempfile::TempDir) -> [Address; 2] {
    let postgres = testing::Postgres::shared().database();
    [Address::Sqlite(dir.path().join("dormouse.db")), postgres.parse().unwrap()]
}

/// Every kind of database, empty.
async fn databases(dir: &tempfile::TempDir) -> Vec<Db> {
    let mut databases = Vec::new();
    for address in addresses(dir) {
        databases.push(Db::open(&address).await.unwrap());
    }
    databases
}

fn host() -> HostId {
    "host_one".parse().unwrap()
}

fn namespace() -> Namespace {
    Namespace::default_of("a")
}

fn account() -> AccountRow {
    AccountRow { id: AccountId::generate(), name: "Ada".into(), email: None, created_at: NOW }
}

fn session(account: &AccountId) -> SessionRow {
    SessionRow::new(account.clone(), "t".into(), NOW)
}

async fn named_image(db: &Db, name: &str, digest: &str, created_at: Timestamp) -> ImageRow {
    let image = ImageRow {
        id: ImageId::generate(),
        host_id: host(),
        name: name.into(),
        digest: digest.into(),
        size_bytes: 7,
        config: "{}".into(),
        source: "test".into(),
        created_at,
        replaced_at: None,
    };
    db.insert_image(&image).await.unwrap();
    image
}

async fn image(db: &Db) -> ImageRow {
    named_image(db, "default", "d1", NOW).await
}

fn sandbox(image: &ImageRow, name: &str) -> SandboxRow {
    SandboxRow {
        id: SandboxId::generate(),
        namespace: namespace(),
        name: name.parse().unwrap(),
        persistent: true,
        image_id: image.id.clone(),
        config: "{}".into(),
        current_run: RunId::generate(),
        current_snapshot: None,
        volume_id: Some(VolumeId::generate()),
        descends_from: None,
        base_bytes: 7,
        boots: 1,
        retry_key: None,
        created_at: NOW,
        updated_at: NOW,
        status_updated_at: NOW,
    }
}

fn run(sandbox: &SandboxRow) -> RunRow {
    RunRow {
        id: RunId::generate(),
        sandbox_id: sandbox.id.clone(),
        host_id: host(),
        namespace: sandbox.namespace.clone(),
        sandbox_name: sandbox.name.clone(),
        status: RunStatus::Pending,
        number: 1,
        resources: Resources { vcpus: 1, memory_mib: 2048, pids: 9, disk_mib: None },
        cwd: "/".into(),
        runtime: "default".into(),
        network: "{}".into(),
        source_snapshot: None,
        volume_id: sandbox.volume_id.clone().unwrap(),
        made_volume: false,
        process: None,
        timeout_ms: 1,
        expires_at: None,
        requested_at: NOW,
        started_at: None,
        stop_requested_at: None,
        stopped_at: None,
        stop_reason: None,
        ending: None,
        warnings: Vec::new(),
        sent_bytes: 0,
        received_bytes: 0,
        updated_at: NOW,
    }
}

/// The run that a new sandbox comes with.
fn first(sandbox: &SandboxRow) -> RunRow {
    RunRow { id: sandbox.current_run.clone(), ..run(sandbox) }
}

fn state() -> VolumeState {
    VolumeState { descends_from: None, base_bytes: 7, boots: 2 }
}

fn snapshot(run: &RunRow, image: &ImageRow, parent: Option<SnapshotId>) -> SnapshotRow {
    SnapshotRow {
        id: SnapshotId::generate(),
        host_id: host(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        image_id: image.id.clone(),
        kind: SnapshotKind::Automatic,
        status: SnapshotStatus::Created,
        size_bytes: 8,
        boots: 1,
        parent,
        expiration_ms: None,
        expires_at: None,
        last_used_at: None,
        created_at: NOW,
        updated_at: NOW,
    }
}

/// The end of a run, as it is recorded.
async fn end(db: &Db, run: &RunRow, snapshot: Option<&SnapshotRow>, retire: Option<Retire>, volume: Volume) {
    let end = RunEnd {
        run,
        status: RunStatus::Stopped,
        reason: StopReason::Requested,
        snapshot,
        retire,
        volume,
        forget: None,
        now: NOW,
    };
    db.record_end(&end).await.unwrap();
    // A crash may have it recorded again.
    db.record_end(&end).await.unwrap();
}

/// A sandbox with its first run.
async fn started(db: &Db, image: &ImageRow, name: &str) -> (SandboxRow, RunRow) {
    let sandbox = sandbox(image, name);
    let first = first(&sandbox);
    db.insert_sandbox(&sandbox, &first, &BTreeMap::new(), &[], &Quota::default()).await.unwrap();
    (sandbox, first)
}

async fn reread(db: &Db, sandbox: &SandboxRow) -> SandboxRow {
    db.sandbox_by_id(&sandbox.id).await.unwrap().unwrap().sandbox
}

async fn add_run(db: &Db, run: &RunRow) {
    let was = db.sandbox_by_id(&run.sandbox_id).await.unwrap().unwrap().sandbox;
    assert!(db.insert_run(run, &state(), &was, &Quota::default()).await.unwrap());
}

/// What has to go from disk, which then goes.
async fn take_garbage(db: &Db) -> Vec<Garbage> {
    let mut garbage = db.garbage(&host(), 100).await.unwrap();
    db.forget_garbage(&host(), &garbage).await.unwrap();
    assert!(db.garbage(&host(), 100).await.unwrap().is_empty());
    garbage.sort();
    garbage
}

fn of_volume(id: &VolumeId) -> Garbage {
    Garbage { kind: GarbageKind::Volume, name: id.to_string() }
}

fn of_snapshot(id: &SnapshotId) -> Garbage {
    Garbage { kind: GarbageKind::Snapshot, name: id.to_string() }
}

#[tokio::test]
async fn keys_are_found_by_hash_and_end_when_revoked() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let account = account();
        db.insert_account(&account).await.unwrap();
        let secret = ApiKey::generate().unwrap();
        assert!(ApiKey::looks_like(secret.reveal()) && !format!("{secret:?}").contains(secret.reveal()));
        let key = KeyRow {
            id: KeyId::generate(),
            account_id: account.id.clone(),
            name: "k".into(),
            created_at: NOW,
            expires_at: None,
            revoked_at: None,
        };
        db.insert_key(&key, &hash_secret(secret.reveal())).await.unwrap();
        let found = db.key_by_hash(&hash_secret(secret.reveal())).await.unwrap().unwrap();
        assert_eq!(found.account_id, account.id);
        assert!(db.key_by_hash(secret.reveal()).await.unwrap().is_none());
        assert!(db.revoke_key(&key.id, NOW).await.unwrap() && !db.revoke_key(&key.id, NOW).await.unwrap());
    }
}

#[tokio::test]
async fn a_claim_opens_a_repository_to_members_only() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let (member, other) = (account(), account());
        db.insert_account(&member).await.unwrap();
        db.insert_account(&other).await.unwrap();
        let org = OrgRow { id: OrgId::generate(), name: "acme".into(), created_at: NOW };
        db.insert_org(&org).await.unwrap();
        db.add_member(&org.id, &member.id).await.unwrap();
        db.add_member(&org.id, &member.id).await.unwrap();
        db.insert_claim(&org.id, "acme/*").await.unwrap();
        assert!(matches!(db.insert_claim(&org.id, "acme/*").await, Err(StoreError::Conflict(_))));
        let repo = |url: &str| url.parse::<GithubRepo>().unwrap();
        assert!(db.may_use_token(&member.id, &repo("https://github.com/Acme/X")).await.unwrap());
        assert!(!db.may_use_token(&other.id, &repo("https://github.com/acme/x")).await.unwrap());
        assert!(!db.may_use_token(&member.id, &repo("https://github.com/acme2/x")).await.unwrap());
    }
}

#[tokio::test]
async fn a_stale_write_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let account = account();
        db.insert_account(&account).await.unwrap();
        let row = session(&account.id);
        db.insert_session(&row).await.unwrap();
        let mut first = row.clone();
        first.lifecycle_state = LifecycleState::Active;
        first.hibernate_after = Some(Timestamp(5));
        assert_eq!(db.update_session(&first, None).await.unwrap().unwrap().lifecycle_version, 1);
        let mut stale = row.clone();
        stale.title = "lost".into();
        assert!(db.update_session(&stale, None).await.unwrap().is_none());
        // Activity outdates a decision that was taken on an older read.
        let decided = db.sessions_due(None, Timestamp(9), 10).await.unwrap().remove(0);
        assert!(db.touch_session(&row.id, Timestamp(9), Timestamp(99)).await.unwrap());
        assert!(db.update_session(&decided, None).await.unwrap().is_none());
        assert!(db.sessions_due(None, Timestamp(9), 10).await.unwrap().is_empty());
        let found = db.session(&row.id).await.unwrap().unwrap();
        assert_eq!(found.title, "t");
        // One that lives on a host is that host's to put to sleep, and its hard
        // end counts although it is used.
        let bound = SessionRow { host_id: Some(host()), sandbox_expires_at: Some(Timestamp(50)), ..found };
        db.update_session(&bound, None).await.unwrap().unwrap();
        assert!(db.touch_session(&row.id, Timestamp(9), Timestamp(99)).await.unwrap());
        assert!(db.sessions_due(None, Timestamp(60), 10).await.unwrap().is_empty());
        assert!(db.sessions_due(Some(&host()), Timestamp(49), 10).await.unwrap().is_empty());
        assert_eq!(db.sessions_due(Some(&host()), Timestamp(50), 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_sandbox_has_one_live_run() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let other = self::sandbox(&image, "one");
        let taken =
            db.insert_sandbox(&other, &self::first(&other), &BTreeMap::new(), &[], &Quota::default()).await;
        assert!(matches!(taken, Err(StoreError::Conflict(_))));
        let second =
            db.insert_run(&run(&sandbox), &state(), &reread(&db, &sandbox).await, &Quota::default()).await;
        assert!(matches!(second, Err(StoreError::Conflict(_))));
        db.run_failed(&first, false, NOW).await.unwrap();
        add_run(&db, &run(&sandbox)).await;
        assert_eq!(db.live_runs(&host()).await.unwrap().len(), 1);
        let ended = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!((ended.status, ended.stop_reason), (RunStatus::Failed, Some(StopReason::StartFailed)));
        assert_eq!(reread(&db, &sandbox).await.boots, 2);
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_hide_the_live_run() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        end(&db, &first, None, None, Volume::Kept).await;
        let earlier = RunRow { requested_at: Timestamp(NOW.0 - 5), ..run(&sandbox) };
        add_run(&db, &earlier).await;
        let found = db.sandbox(&namespace(), &sandbox.name).await.unwrap().unwrap();
        assert_eq!((&found.run.id, &found.sandbox.current_run), (&earlier.id, &earlier.id));
        let later = RunRow { requested_at: Timestamp(NOW.0 + 5), ..run(&sandbox) };
        end(&db, &earlier, None, None, Volume::Kept).await;
        add_run(&db, &later).await;
        end(&db, &later, None, None, Volume::Kept).await;
        let found = db.sandbox_by_id(&sandbox.id).await.unwrap().unwrap();
        assert_eq!((found.run.id, found.run.status), (later.id, RunStatus::Stopped));
    }
}

#[tokio::test]
async fn two_who_start_a_run_make_one() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        end(&db, &first, None, None, Volume::Kept).await;
        let was = reread(&db, &sandbox).await;
        let (one, other) = (run(&sandbox), run(&sandbox));
        let state = state();
        let quota = Quota::default();
        let (a, b) = tokio::join!(
            db.insert_run(&one, &state, &was, &quota),
            db.insert_run(&other, &state, &was, &quota)
        );
        assert_eq!([a.unwrap(), b.unwrap()].iter().filter(|made| **made).count(), 1);
        assert_eq!(db.live_runs(&host()).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_quota_holds_for_those_who_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for address in addresses(&dir) {
        // Two servers may share one.
        let (db, second) = (Db::open(&address).await.unwrap(), Db::open(&address).await.unwrap());
        let image = image(&db).await;
        let (none, labels) = (Quota::default(), BTreeMap::new());
        let quota = Quota { running: Some(3), ..none };
        let (kept, first_run) = started(&db, &image, "kept").await;
        let made: Vec<_> = (0..8)
            .map(|n| {
                let sandbox = sandbox(&image, &format!("s{n}"));
                let run = first(&sandbox);
                (sandbox, run)
            })
            .collect();
        let mut tries = tokio::task::JoinSet::new();
        for (n, (sandbox, run)) in made.into_iter().enumerate() {
            let (db, labels) = (if n % 2 == 0 { db.clone() } else { second.clone() }, labels.clone());
            tries.spawn(async move { db.insert_sandbox(&sandbox, &run, &labels, &[], &quota).await });
        }
        let refused: Vec<_> = tries.join_all().await.into_iter().filter_map(Result::err).collect();
        assert_eq!(refused.len(), 6, "three places, one of which was taken");
        for error in refused {
            let StoreError::Quota(refused) = error else { panic!("{error}") };
            assert_eq!(refused, QuotaExceeded { kind: QuotaKind::Running, limit: 3, used: 3, asked: 1 });
        }
        assert_eq!(db.live_runs(&host()).await.unwrap().len(), 3, "and nothing else was recorded");

        // What ended is free, for a run of a sandbox that is there too.
        end(&db, &first_run, None, None, Volume::Kept).await;
        let was = reread(&db, &kept).await;
        assert!(db.insert_run(&run(&kept), &state(), &was, &quota).await.unwrap());
        let next = sandbox(&image, "next");
        let by = |quota: Quota| {
            let (db, next, labels) = (&db, &next, &labels);
            async move { db.insert_sandbox(next, &first(next), labels, &[], &quota).await }
        };
        let resources = first(&next).resources;
        let vcpus = 4 * u64::from(resources.vcpus);
        for (quota, kind) in [
            (Quota { vcpus: Some(vcpus - 1), ..none }, QuotaKind::Vcpus),
            (Quota { memory_mib: Some(4 * resources.memory_mib - 1), ..none }, QuotaKind::MemoryMib),
        ] {
            let refused = by(quota).await;
            assert!(matches!(refused, Err(StoreError::Quota(found)) if found.kind == kind), "{kind:?}");
        }
        // Of disk also those count that are asleep.
        let large = |name: &str| {
            let sandbox = sandbox(&image, name);
            let mut run = first(&sandbox);
            run.resources.disk_mib = Some(60);
            (sandbox, run)
        };
        let of_disk = Quota { disk_mib: Some(120), ..none };
        let (one, its) = large("large1");
        db.insert_sandbox(&one, &its, &labels, &[], &of_disk).await.unwrap();
        end(&db, &its, None, None, Volume::Kept).await;
        for (name, fits) in [("large2", true), ("large3", false)] {
            let (sandbox, run) = large(name);
            let tried = db.insert_sandbox(&sandbox, &run, &labels, &[], &of_disk).await;
            match tried {
                Ok(()) => assert!(fits, "{name}"),
                Err(StoreError::Quota(found)) => {
                    assert_eq!((found.kind, found.used, fits), (QuotaKind::DiskMib, 120, false));
                }
                Err(error) => panic!("{error}"),
            }
        }
        let vcpus = vcpus + u64::from(resources.vcpus);
        let memory = 5 * resources.memory_mib;
        by(Quota { vcpus: Some(vcpus), memory_mib: Some(memory), ..none }).await.unwrap();
    }
}

#[tokio::test]
async fn history_is_pruned_and_what_is_current_stays() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let kept = snapshot(&first, &image, None);
        end(&db, &first, Some(&kept), None, Volume::Kept).await;
        let later = Timestamp(NOW.0 + 10);
        assert_eq!(db.prune_runs(later, 9).await.unwrap(), 0, "the current one, though it ended");
        let next = run(&sandbox);
        add_run(&db, &next).await;
        assert_eq!(db.prune_runs(NOW, 9).await.unwrap(), 0, "history of just now");
        assert_eq!(db.prune_runs(later, 9).await.unwrap(), 1);
        assert!(db.run(&first.id).await.unwrap().is_none() && db.run(&next.id).await.unwrap().is_some());
        end(&db, &next, None, None, Volume::Kept).await;
        db.delete_sandbox(&sandbox.id, &host(), SnapshotsOfDeleted::AllGo, NOW).await.unwrap();
        assert_eq!(db.prune_runs(later, 9).await.unwrap(), 1, "that of a sandbox that is gone");
        assert_eq!(db.prune_snapshots(NOW, 9).await.unwrap(), 0);
        assert_eq!(db.prune_snapshots(later, 9).await.unwrap(), 1);
        assert!(db.snapshot(&kept.id).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_volume_lives_as_long_as_its_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let volume = first.volume_id.clone();
        assert!(db.owns_volume(&volume).await.unwrap());
        end(&db, &first, None, None, Volume::Kept).await;
        assert_eq!(reread(&db, &sandbox).await.volume_id, Some(volume.clone()));
        assert!(take_garbage(&db).await.is_empty() && db.live_runs(&host()).await.unwrap().is_empty());

        // What was there stays when a run does not come up.
        let next = run(&sandbox);
        add_run(&db, &next).await;
        db.run_failed(&next, false, NOW).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.volume_id, Some(volume.clone()));

        let next = run(&sandbox);
        add_run(&db, &next).await;
        end(&db, &next, None, None, Volume::Dropped).await;
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);
        assert_eq!(take_garbage(&db).await, [of_volume(&volume)]);
        assert!(!db.owns_volume(&volume).await.unwrap());

        // What was made for it goes.
        let fresh = RunRow { volume_id: VolumeId::generate(), made_volume: true, ..run(&sandbox) };
        add_run(&db, &fresh).await;
        db.run_failed(&fresh, false, NOW).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);
        assert_eq!(take_garbage(&db).await, [of_volume(&fresh.volume_id)]);

        let fresh = RunRow { volume_id: VolumeId::generate(), made_volume: true, ..run(&sandbox) };
        add_run(&db, &fresh).await;
        end(&db, &fresh, None, None, Volume::Kept).await;
        db.delete_sandbox(&sandbox.id, &host(), SnapshotsOfDeleted::AutomaticGo, NOW).await.unwrap();
        assert_eq!(take_garbage(&db).await, [of_volume(&fresh.volume_id)]);
    }
}

#[tokio::test]
async fn a_rollback_drops_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let kept = snapshot(&first, &image, None);
        end(&db, &first, Some(&kept), Some(Retire::ReplacedAt(Timestamp(9_000))), Volume::Kept).await;
        let stopped = reread(&db, &sandbox).await;
        assert_eq!(stopped.current_snapshot.as_ref(), Some(&kept.id));
        assert_eq!(stopped.descends_from.as_ref(), Some(&kept.id));

        // While it is stopped: at once.
        assert!(db.roll_back(&sandbox.id, Some(&kept.id), &host(), None, NOW).await.unwrap());
        assert_eq!(take_garbage(&db).await, [of_volume(&first.volume_id)]);
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);

        // While it runs: with the run, which is not the current one any more.
        let next = RunRow { volume_id: VolumeId::generate(), ..run(&sandbox) };
        add_run(&db, &next).await;
        assert!(db.roll_back(&sandbox.id, Some(&kept.id), &host(), Some(&next), NOW).await.unwrap());
        assert!(take_garbage(&db).await.is_empty());
        assert!(db.owns_volume(&next.volume_id).await.unwrap(), "the live run owns it");
        let late = snapshot(&next, &image, Some(kept.id.clone()));
        end(&db, &next, Some(&late), Some(Retire::Replaced), Volume::RolledBack).await;
        let found = reread(&db, &sandbox).await;
        assert_eq!((found.current_snapshot.as_ref(), found.volume_id), (Some(&kept.id), None));
        assert_eq!(status(&db, &late.id).await, SnapshotStatus::Created);
        assert_eq!(take_garbage(&db).await, [of_volume(&next.volume_id)]);

        // To the image: nothing is current any more.
        let again = RunRow { volume_id: VolumeId::generate(), ..run(&sandbox) };
        add_run(&db, &again).await;
        end(&db, &again, None, None, Volume::Kept).await;
        assert!(db.roll_back(&sandbox.id, None, &host(), None, NOW).await.unwrap());
        let found = reread(&db, &sandbox).await;
        assert_eq!((found.current_snapshot, found.volume_id), (None, None));
        assert_eq!(take_garbage(&db).await, [of_volume(&again.volume_id)]);
    }
}

#[tokio::test]
async fn what_was_read_of_a_sandbox_may_have_gone() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let kept = snapshot(&first, &image, None);
        end(&db, &first, Some(&kept), None, Volume::Kept).await;
        let was = reread(&db, &sandbox).await;
        db.delete_snapshot(&kept.id, NOW).await.unwrap();
        // Its volume is garbage now.
        assert!(!db.insert_run(&run(&sandbox), &state(), &was, &Quota::default()).await.unwrap());
        assert!(db.live_runs(&host()).await.unwrap().is_empty());
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);

        let fresh = RunRow { volume_id: VolumeId::generate(), ..run(&sandbox) };
        add_run(&db, &fresh).await;
        end(&db, &fresh, None, None, Volume::Kept).await;
        take_garbage(&db).await;
        assert!(
            !db.roll_back(&sandbox.id, Some(&kept.id), &host(), None, NOW).await.unwrap(),
            "to what is gone"
        );
        assert_eq!(reread(&db, &sandbox).await.volume_id, Some(fresh.volume_id.clone()));
        assert!(take_garbage(&db).await.is_empty());
    }
}

#[tokio::test]
async fn a_live_snapshot_does_not_undo_a_rollback() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let kept = snapshot(&first, &image, None);
        db.record_snapshot(&kept, &first, Retire::Replaced).await.unwrap();
        assert!(db.roll_back(&sandbox.id, Some(&kept.id), &host(), Some(&first), NOW).await.unwrap());
        let late = snapshot(&first, &image, Some(kept.id.clone()));
        db.record_snapshot(&late, &first, Retire::Replaced).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.current_snapshot, Some(kept.id.clone()));
        assert_eq!(
            (status(&db, &kept.id).await, status(&db, &late.id).await),
            (SnapshotStatus::Created, SnapshotStatus::Created)
        );
    }
}

#[tokio::test]
async fn a_stopped_sandbox_goes_with_its_snapshot_and_a_running_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (stopped, first) = started(&db, &image, "one").await;
        let kept = snapshot(&first, &image, None);
        end(&db, &first, Some(&kept), None, Volume::Kept).await;
        let mut fork = sandbox(&image, "fork");
        fork.current_snapshot = Some(kept.id.clone());
        let live = self::first(&fork);
        db.insert_sandbox(&fork, &live, &BTreeMap::new(), &[], &Quota::default()).await.unwrap();

        assert!(db.owns_snapshot(&kept.id).await.unwrap());
        db.delete_snapshot(&kept.id, NOW).await.unwrap();
        db.delete_snapshot(&kept.id, NOW).await.unwrap();
        assert_eq!(take_garbage(&db).await, [of_volume(&first.volume_id), of_snapshot(&kept.id)]);
        assert_eq!(reread(&db, &stopped).await.volume_id, None);
        assert_eq!(reread(&db, &fork).await.volume_id, Some(live.volume_id));
        assert!(!db.owns_snapshot(&kept.id).await.unwrap());
    }
}

#[tokio::test]
async fn a_live_snapshot_becomes_the_current_one() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let mut live = snapshot(&first, &image, None);
        live.kind = SnapshotKind::Manual;
        db.record_snapshot(&live, &first, Retire::Replaced).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.current_snapshot, Some(live.id.clone()));
        assert_eq!(db.live_runs(&host()).await.unwrap().len(), 1);
        assert_eq!(db.count_snapshots(&sandbox.id).await.unwrap(), 1);
        // A stop without one: the volume alone is current, and the lineage is
        // remembered. What somebody asked for stays.
        end(&db, &first, None, Some(Retire::Replaced), Volume::Kept).await;
        let found = reread(&db, &sandbox).await;
        assert_eq!((found.current_snapshot, found.descends_from), (None, Some(live.id.clone())));
        assert_eq!(status(&db, &live.id).await, SnapshotStatus::Created);
    }
}

#[tokio::test]
async fn a_replaced_image_stays_for_those_who_stand_on_it() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let old = image(&db).await;
        let (sandbox, first) = started(&db, &old, "one").await;
        let mut kept = snapshot(&first, &old, None);
        kept.kind = SnapshotKind::Manual;
        end(&db, &first, Some(&kept), None, Volume::Kept).await;
        let later = Timestamp(NOW.0 + 1_000);
        let new = named_image(&db, "default", "d2", later).await;
        assert_eq!(db.image(&host(), "default").await.unwrap().unwrap().id, new.id);
        let far = Timestamp(NOW.0 + 1_000_000);
        assert_eq!(db.forget_replaced_images(&host(), far, far).await.unwrap(), 0, "a sandbox stands on it");
        db.delete_sandbox(&sandbox.id, &host(), SnapshotsOfDeleted::AutomaticGo, NOW).await.unwrap();
        assert_eq!(db.forget_replaced_images(&host(), far, far).await.unwrap(), 0, "a snapshot does");
        db.delete_snapshot(&kept.id, NOW).await.unwrap();
        take_garbage(&db).await;
        assert_eq!(db.forget_replaced_images(&host(), later, far).await.unwrap(), 0, "replaced just now");
        assert_eq!(db.forget_replaced_images(&host(), far, far).await.unwrap(), 1);
        let gone = Garbage { kind: GarbageKind::Image, name: "d1".into() };
        assert_eq!(db.garbage(&host(), 9).await.unwrap(), [gone]);
        // The same files come back before they have gone.
        named_image(&db, "other", "d1", far).await;
        assert!(db.garbage(&host(), 9).await.unwrap().is_empty());
        assert!(
            db.has_image_file(&host(), "d1").await.unwrap()
                && !db.has_image_file(&host(), "d3").await.unwrap()
        );
        assert_eq!(db.images(&host()).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn what_a_run_was_to_become_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (_, mut first) = started(&db, &image, "one").await;
        first.warnings = vec!["odd".into()];
        let process = RunProcess { pid: 1, start_time: 2, boot_id: "b".into(), slot: 3 };
        db.run_started(&first, &process).await.unwrap();
        db.run_stopping(&first, "first", NOW).await.unwrap();
        db.run_stopping(&first, "second", NOW).await.unwrap();
        let found = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!((found.status, found.ending.as_deref()), (RunStatus::Stopping, Some("first")));
        assert_eq!(found.warnings, ["odd"]);
    }
}

#[tokio::test]
async fn bytes_of_a_run_are_counted_while_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (_, first) = started(&db, &image, "one").await;
        db.runs_transferred(&[(first.id.clone(), (5, 7))]).await.unwrap();
        let counted = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!((counted.sent_bytes, counted.received_bytes), (5, 7));
        assert_eq!(counted.updated_at, first.updated_at);
        // The end counts for itself, and for good.
        let last = RunRow { sent_bytes: 6, received_bytes: 8, ..first.clone() };
        end(&db, &last, None, None, Volume::Dropped).await;
        db.runs_transferred(&[(first.id.clone(), (9, 9))]).await.unwrap();
        let ended = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!((ended.sent_bytes, ended.received_bytes), (6, 8));
    }
}

#[tokio::test]
async fn a_commit_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let account = account();
    for address in addresses(&dir) {
        let db = Db::open(&address).await.unwrap();
        db.insert_account(&account).await.unwrap();
        db.sync().await.unwrap();
        db.close().await;
        let db = Db::open(&address).await.unwrap();
        assert_eq!(db.account(&account.id).await.unwrap().unwrap().name, "Ada");
    }
}

/// Ends `run` with an automatic snapshot.
async fn stop(
    db: &Db,
    run: &RunRow,
    image: &ImageRow,
    parent: Option<&SnapshotId>,
    retire: Retire,
) -> SnapshotId {
    let snapshot = snapshot(run, image, parent.cloned());
    let end = RunEnd {
        run,
        status: RunStatus::Stopped,
        reason: StopReason::Requested,
        snapshot: Some(&snapshot),
        retire: Some(retire),
        volume: Volume::Kept,
        forget: None,
        now: NOW,
    };
    db.record_end(&end).await.unwrap();
    snapshot.id
}

async fn status(db: &Db, id: &SnapshotId) -> SnapshotStatus {
    db.snapshot(id).await.unwrap().unwrap().status
}

#[tokio::test]
async fn snapshots_go_when_they_are_told_to() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let sandbox = sandbox(&image, "one");
        let mut ids: Vec<SnapshotId> = Vec::new();
        let later = Timestamp(NOW.0 + 1000);
        for retire in [Retire::Replaced, Retire::ReplacedAt(later), Retire::Replaced, Retire::BeyondNewest(2)]
        {
            let next = if ids.is_empty() { self::first(&sandbox) } else { run(&sandbox) };
            if ids.is_empty() {
                db.insert_sandbox(&sandbox, &next, &BTreeMap::new(), &[], &Quota::default()).await.unwrap();
            } else {
                add_run(&db, &next).await;
            }
            ids.push(stop(&db, &next, &image, ids.last(), retire).await);
        }
        // 0 was replaced for a while, 1 at once; the last one keeps two.
        assert_eq!(status(&db, &ids[0]).await, SnapshotStatus::Deleted);
        assert_eq!(status(&db, &ids[1]).await, SnapshotStatus::Deleted);
        assert_eq!(status(&db, &ids[2]).await, SnapshotStatus::Created);

        // A fork stands on 2: that waits for it.
        let mut fork = self::sandbox(&image, "fork");
        fork.current_snapshot = Some(ids[2].clone());
        let first = self::first(&fork);
        db.insert_sandbox(&fork, &first, &BTreeMap::new(), &[], &Quota::default()).await.unwrap();
        let next = run(&sandbox);
        add_run(&db, &next).await;
        stop(&db, &next, &image, Some(&ids[3]), Retire::BeyondNewest(1)).await;
        assert_eq!(status(&db, &ids[2]).await, SnapshotStatus::Created);
        assert_eq!(status(&db, &ids[3]).await, SnapshotStatus::Deleted);
        assert_eq!(db.expire_snapshots(later, 9).await.unwrap(), 0);
        // Nobody has to come back for it.
        stop(&db, &first, &image, Some(&ids[2]), Retire::Replaced).await;
        assert_eq!(status(&db, &ids[2]).await, SnapshotStatus::Deleted);

        let (children, count) = db.snapshot_children(&namespace(), &ids[2], None, 1).await.unwrap();
        assert_eq!((children.len(), count), (1, 2));
        let after = db.snapshots_of(&namespace(), Some("one"), true, Some(ids[0].as_str()), 9).await.unwrap();
        assert_eq!(after.len(), 4);
    }
}

#[tokio::test]
async fn use_puts_an_expiration_off() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let sandbox = sandbox(&image, "one");
        let first = self::first(&sandbox);
        db.insert_sandbox(&sandbox, &first, &BTreeMap::new(), &[], &Quota::default()).await.unwrap();
        let mut kept = snapshot(&first, &image, None);
        (kept.expiration_ms, kept.expires_at) = (Some(500), Some(Timestamp(NOW.0 + 500)));
        end(&db, &first, Some(&kept), Some(Retire::Replaced), Volume::Kept).await;
        let mut next = run(&sandbox);
        next.source_snapshot = Some(kept.id.clone());
        next.requested_at = Timestamp(NOW.0 + 400);
        add_run(&db, &next).await;
        assert_eq!(db.expire_snapshots(Timestamp(NOW.0 + 899), 9).await.unwrap(), 0);
        assert_eq!(db.expire_snapshots(Timestamp(NOW.0 + 900), 9).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn lists_page_in_every_order() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        for (index, name) in ["b", "a", "c", "ab"].into_iter().enumerate() {
            let sandbox = sandbox(&image, name);
            let tags = BTreeMap::from([("odd".to_owned(), (index % 2).to_string())]);
            let routes = [RouteRow { subdomain: format!("sub-{name}"), port: 3000 }];
            let status_updated_at = Timestamp(NOW.0 + 10 - i64::try_from(index).unwrap());
            let sandbox = SandboxRow { status_updated_at, ..sandbox };
            let first = first(&sandbox);
            db.insert_sandbox(&sandbox, &first, &tags, &routes, &Quota::default()).await.unwrap();
        }
        let odd = BTreeMap::from([("odd".to_owned(), "1".to_owned())]);
        for (order, ascending, prefix, tags, wanted) in [
            (SandboxOrder::Id, false, None, BTreeMap::new(), vec!["ab", "c", "a", "b"]),
            (SandboxOrder::Name, true, None, BTreeMap::new(), vec!["a", "ab", "b", "c"]),
            (SandboxOrder::Name, false, Some("a"), BTreeMap::new(), vec!["ab", "a"]),
            (SandboxOrder::StatusUpdatedAt, true, None, BTreeMap::new(), vec!["ab", "c", "a", "b"]),
            (SandboxOrder::Id, true, None, odd, vec!["a", "ab"]),
        ] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let filter =
                    SandboxFilter { name_prefix: prefix, tags: &tags, order, ascending, after, limit: 1 };
                let page = db.sandboxes_of(&namespace(), &filter).await.unwrap();
                let Some(SandboxWithRun { sandbox: last, .. }) = page.last() else { break };
                let key = match order {
                    SandboxOrder::Id => String::new(),
                    SandboxOrder::Name => last.name.to_string(),
                    SandboxOrder::StatusUpdatedAt => last.status_updated_at.0.to_string(),
                };
                after = Some((key, last.id.to_string()));
                seen.extend(page.into_iter().map(|row| row.sandbox.name.to_string()));
            }
            assert_eq!(seen, wanted, "{order:?}");
        }
        let (found, port) = db.route("sub-a").await.unwrap().unwrap();
        let (mut row, id) = (found.sandbox.clone(), found.sandbox.id);
        assert_eq!((row.name.as_str(), port), ("a", 3000));
        row.persistent = false;
        let routes =
            [("x", 3000), ("y", 4000)].map(|(name, port)| RouteRow { subdomain: name.to_owned(), port });
        db.update_sandbox(&row, Some(&BTreeMap::new()), Some(&routes)).await.unwrap();
        let kept = db.routes_of(&id).await.unwrap();
        assert_eq!(kept[0], RouteRow { subdomain: "sub-a".into(), port: 3000 }, "a port keeps its name");
        assert_eq!(kept[1].subdomain, "y");
        db.delete_sandbox(&id, &host(), SnapshotsOfDeleted::AllGo, NOW).await.unwrap();
        assert!(db.route("sub-a").await.unwrap().is_none());
    }
}

/// There is no moment at which a sandbox has lost its files and is still there.
#[tokio::test]
async fn a_deletion_is_one_step_with_the_end_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, run) = started(&db, &image, "one").await;
        let end = RunEnd {
            run: &run,
            status: RunStatus::Stopped,
            reason: StopReason::Deleted,
            snapshot: None,
            retire: None,
            volume: Volume::Dropped,
            forget: Some(SnapshotsOfDeleted::AllGo),
            now: NOW,
        };
        for _ in 0..2 {
            db.record_end(&end).await.unwrap();
            assert!(db.sandbox_by_id(&sandbox.id).await.unwrap().is_none());
            assert_eq!(db.run(&run.id).await.unwrap().unwrap().status, RunStatus::Stopped);
            let garbage = db.garbage(&host(), 10).await.unwrap();
            assert_eq!(garbage.iter().map(|one| &*one.name).collect::<Vec<_>>(), [run.volume_id.as_str()]);
        }
    }
}

#[tokio::test]
async fn a_lease_is_held_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (LeaseId::generate(), LeaseId::generate());
    for db in databases(&dir).await {
        let at = |ms| Timestamp(NOW.0 + ms);
        let other: HostId = "host_other".parse().unwrap();
        assert!(db.take_lease("one", &host(), &a, NOW, at(10)).await.unwrap());
        assert!(!db.take_lease("one", &other, &b, at(9), at(20)).await.unwrap());
        assert!(db.take_lease("two", &other, &b, NOW, at(10)).await.unwrap());
        assert!(db.renew_lease("one", &a, at(15)).await.unwrap());
        assert!(!db.take_lease("one", &other, &b, at(10), at(20)).await.unwrap());
        assert!(db.take_lease("one", &other, &b, at(15), at(25)).await.unwrap(), "its time is over");
        assert!(!db.renew_lease("one", &a, at(30)).await.unwrap());
        db.release_lease("one", &a).await.unwrap();
        assert!(!db.take_lease("one", &host(), &a, at(16), at(30)).await.unwrap(), "released by another");
        db.release_lease("one", &b).await.unwrap();
        assert!(db.take_lease("one", &host(), &a, at(16), at(30)).await.unwrap());
        // A server that comes back has none of those that it had.
        db.clear_leases(&host(), NOW).await.unwrap();
        assert!(db.take_lease("one", &other, &b, at(16), at(30)).await.unwrap());
    }
}

#[tokio::test]
async fn of_many_who_want_a_lease_one_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let mut takers = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let db = db.clone();
            takers.spawn(async move {
                db.take_lease("one", &host(), &LeaseId::generate(), NOW, Timestamp(NOW.0 + 9)).await.unwrap()
            });
        }
        assert_eq!(takers.join_all().await.into_iter().filter(|taken| *taken).count(), 1);
    }
}

#[tokio::test]
async fn a_ticket_is_good_once() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let ticket = TicketRow {
            namespace: namespace(),
            run_id: RunId::generate(),
            account_id: AccountId::generate(),
            key_id: None,
            expires_at: Timestamp(NOW.0 + 60),
        };
        db.insert_ticket("a", &ticket, NOW).await.unwrap();
        db.insert_ticket("b", &ticket, NOW).await.unwrap();
        assert_eq!(db.redeem_ticket("a", NOW).await.unwrap(), Some(ticket.clone()));
        assert_eq!(db.redeem_ticket("a", NOW).await.unwrap(), None);
        assert_eq!(db.redeem_ticket("b", ticket.expires_at).await.unwrap(), None, "too late");
    }
}

#[tokio::test]
async fn an_identity_leads_to_one_account() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let db = db.clone();
            callers
                .spawn(async move { db.account_for_identity("https://i", "s", &account()).await.unwrap() });
        }
        let mut found = callers.join_all().await;
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 1);
        assert_eq!(db.account_of_identity("https://i", "s").await.unwrap(), Some(found.remove(0)));
        assert_eq!(db.account_of_identity("https://i", "t").await.unwrap(), None);
    }
}

/// Both databases have the same tables, columns, nullability and indexes.
#[test]
fn the_two_schemas_are_the_same() {
    let sqlite = include_str!("../migrations/sqlite/0001_house.sql");
    let postgres = include_str!("../migrations/postgres/0001_house.sql");
    let statements = |text: &str| -> Vec<String> {
        text.replace(" COLLATE \"C\"", "")
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(statements(sqlite), statements(postgres));
}

#[test]
fn addresses_are_told_apart_and_never_printed() {
    assert_eq!("sqlite:/a/b.db".parse::<Address>().unwrap(), Address::Sqlite("/a/b.db".into()));
    let address: Address = "postgres://me:s3cret@db/x".parse().unwrap();
    assert!(!format!("{address:?}").contains("s3cret"));
    for bad in ["", "mysql://me:s3cret@db/x", "/a/b.db", "sqlite:"] {
        let error = bad.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("postgres://USER@HOST/NAME") && !error.contains("s3cret"), "{error}");
    }
}

/// One live run writes to a drive, whoever asks first; its end, however it came, frees it.
#[tokio::test]
async fn a_drive_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let drive = |name: &str, at: i64| DriveRow {
            id: DriveId::generate(),
            namespace: namespace(),
            name: name.into(),
            host_id: host(),
            max_size_bytes: 7,
            made: false,
            attached: None,
            created_at: Timestamp(at),
            updated_at: Timestamp(at),
        };
        let (a, b, other) = (drive("a", 1), drive("b", 2), drive("c", 3));
        for row in [&a, &b, &other] {
            db.insert_drive(row).await.unwrap();
        }
        let taken = db.insert_drive(&DriveRow { id: DriveId::generate(), ..a.clone() }).await;
        assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");
        assert_eq!(db.drive(&namespace(), "a").await.unwrap(), Some(a.clone()));
        assert_eq!(db.drive(&Namespace::default_of("b"), "a").await.unwrap(), None);

        let (_, first) = started(&db, &image, "one").await;
        let (_, second) = started(&db, &image, "two").await;
        assert!(db.attach_drive(&a.id, &first.id, NOW).await.unwrap());
        assert!(db.attach_drive(&a.id, &first.id, NOW).await.unwrap(), "by the same run again");
        assert!(!db.attach_drive(&a.id, &second.id, NOW).await.unwrap());
        assert_eq!(db.drives_attached(&first.id).await.unwrap(), std::slice::from_ref(&a.id));
        let read = db.drive(&namespace(), "a").await.unwrap().unwrap();
        assert!(
            read.made && read.attached == Some((first.id.clone(), first.sandbox_name.clone())),
            "{read:?}"
        );
        assert!(!db.delete_drive(&read, NOW).await.unwrap(), "a live run has it");

        end(&db, &first, None, None, Volume::Kept).await;
        assert_eq!(db.drive(&namespace(), "a").await.unwrap().unwrap().attached, None);
        assert!(db.attach_drive(&a.id, &second.id, NOW).await.unwrap());
        end(&db, &second, None, None, Volume::Kept).await;
        assert!(db.delete_drive(&read, NOW).await.unwrap());
        assert!(!db.delete_drive(&read, NOW).await.unwrap(), "it is gone");
        assert!(db.owns_drive(&a.id).await.unwrap(), "until its files are");
        let gone = Garbage { kind: GarbageKind::Drive, name: a.id.to_string() };
        assert_eq!(take_garbage(&db).await, [gone]);
        assert!(!db.owns_drive(&a.id).await.unwrap());

        // Pages, in each direction.
        let names = async |ascending: bool, after: Option<(String, String)>| {
            let filter =
                DriveFilter { order: DriveOrder::Name, ascending, name_prefix: None, after, limit: 1 };
            let found = db.drives_of(&namespace(), &filter).await.unwrap();
            found.into_iter().map(|drive| (drive.name, drive.id.to_string())).collect::<Vec<_>>()
        };
        let up = names(true, None).await;
        assert_eq!(up[0].0, "b");
        assert_eq!(names(true, Some(up[0].clone())).await[0].0, "c");
        let down = names(false, None).await;
        assert_eq!(down[0].0, "c");
        assert_eq!(names(false, Some(down[0].clone())).await[0].0, "b");
    }
}

/// Who would start from a snapshot next is who has it and does not run.
#[tokio::test]
async fn a_snapshot_knows_who_starts_from_it() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (_, first) = started(&db, &image, "one").await;
        let kept = snapshot(&first, &image, None);
        assert!(db.starting_from(&kept.id, 9).await.unwrap().is_empty());
        end(&db, &first, Some(&kept), None, Volume::Kept).await;
        let names = db.starting_from(&kept.id, 9).await.unwrap();
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["one"]);
    }
}
