//! The store suite. It speaks to [`Db`] only, so a second database runs it by
//! joining `databases()`.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use dormouse_store::*;
use dormouse_types::*;

const NOW: Timestamp = Timestamp(1_000);

/// Every kind of database, empty.
async fn databases(dir: &tempfile::TempDir) -> Vec<Db> {
    vec![Db::open(&dir.path().join("dormouse.db")).await.unwrap()]
}

fn account() -> AccountRow {
    AccountRow { id: AccountId::generate(), name: "Ada".into(), email: None, created_at: NOW }
}

fn session(account: &AccountId) -> SessionRow {
    SessionRow {
        id: SessionId::generate(),
        account_id: account.clone(),
        title: "t".into(),
        status: "running".into(),
        clone_url: None,
        branch: None,
        sandbox_name: None,
        lifecycle_state: Some("provisioning".into()),
        lifecycle_version: 0,
        lifecycle_error: None,
        last_activity_at: None,
        hibernate_after: None,
        sandbox_expires_at: None,
        lines_added: None,
        lines_removed: None,
        created_at: NOW,
        updated_at: NOW,
    }
}

async fn named_image(db: &Db, name: &str, digest: &str, created_at: Timestamp) -> ImageRow {
    let image = ImageRow {
        id: ImageId::generate(),
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
        namespace: "a/default".into(),
        name: name.parse().unwrap(),
        persistent: true,
        image_id: image.id.clone(),
        config: "{}".into(),
        current_snapshot: None,
        volume_id: Some(VolumeId::generate()),
        descends_from: None,
        base_bytes: 7,
        boots: 1,
        created_at: NOW,
        updated_at: NOW,
        status_updated_at: NOW,
    }
}

fn run(sandbox: &SandboxRow) -> RunRow {
    RunRow {
        id: RunId::generate(),
        sandbox_id: sandbox.id.clone(),
        namespace: sandbox.namespace.clone(),
        sandbox_name: sandbox.name.clone(),
        status: "pending".into(),
        config: "{}".into(),
        source_snapshot: None,
        volume_id: sandbox.volume_id.clone().unwrap(),
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
        updated_at: NOW,
    }
}

fn state() -> VolumeState {
    VolumeState { descends_from: None, base_bytes: 7, boots: 2 }
}

fn snapshot(run: &RunRow, image: &ImageRow, parent: Option<SnapshotId>) -> SnapshotRow {
    SnapshotRow {
        id: SnapshotId::generate(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        image_id: image.id.clone(),
        kind: "automatic".into(),
        status: "created".into(),
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
        status: "stopped",
        reason: "requested",
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
    let first = run(&sandbox);
    db.insert_sandbox(&sandbox, &first, &BTreeMap::new(), &[]).await.unwrap();
    (sandbox, first)
}

async fn reread(db: &Db, sandbox: &SandboxRow) -> SandboxRow {
    db.sandbox_by_id(&sandbox.id).await.unwrap().unwrap()
}

async fn add_run(db: &Db, run: &RunRow) {
    let was = db.sandbox_by_id(&run.sandbox_id).await.unwrap().unwrap();
    assert!(db.insert_run(run, &state(), &was).await.unwrap());
}

/// What has to go from disk, which then goes.
async fn take_garbage(db: &Db) -> Vec<Garbage> {
    let mut garbage = db.garbage(100).await.unwrap();
    db.forget_garbage(&garbage).await.unwrap();
    assert!(db.garbage(100).await.unwrap().is_empty());
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
        first.lifecycle_state = Some("active".into());
        first.hibernate_after = Some(Timestamp(5));
        assert_eq!(db.update_session(&first).await.unwrap().unwrap().lifecycle_version, 1);
        let mut stale = row.clone();
        stale.title = "lost".into();
        assert!(db.update_session(&stale).await.unwrap().is_none());
        // Activity outdates a decision that was taken on an older read.
        let decided = db.sessions_due(Timestamp(9), 10).await.unwrap().remove(0);
        assert!(db.touch_session(&row.id, Timestamp(9), Timestamp(99)).await.unwrap());
        assert!(db.update_session(&decided).await.unwrap().is_none());
        assert!(db.sessions_due(Timestamp(9), 10).await.unwrap().is_empty());
        assert_eq!(db.session(&row.id).await.unwrap().unwrap().title, "t");
    }
}

#[tokio::test]
async fn a_sandbox_has_one_live_run() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let (sandbox, first) = started(&db, &image, "one").await;
        let other = self::sandbox(&image, "one");
        let taken = db.insert_sandbox(&other, &run(&sandbox), &BTreeMap::new(), &[]).await;
        assert!(matches!(taken, Err(StoreError::Conflict(_))));
        let second = db.insert_run(&run(&sandbox), &state(), &reread(&db, &sandbox).await).await;
        assert!(matches!(second, Err(StoreError::Conflict(_))));
        db.run_failed(&first, false, "start_failed", NOW).await.unwrap();
        add_run(&db, &run(&sandbox)).await;
        assert_eq!(db.live_runs().await.unwrap().len(), 1);
        let ended = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!(ended.stop_reason.as_deref(), Some("start_failed"));
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
        assert_eq!(db.newest_run(&sandbox.id).await.unwrap().unwrap().id, earlier.id);
        let later = RunRow { requested_at: Timestamp(NOW.0 + 5), ..run(&sandbox) };
        end(&db, &earlier, None, None, Volume::Kept).await;
        add_run(&db, &later).await;
        end(&db, &later, None, None, Volume::Kept).await;
        assert_eq!(db.newest_run(&sandbox.id).await.unwrap().unwrap().id, later.id);
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
        assert!(take_garbage(&db).await.is_empty() && db.live_runs().await.unwrap().is_empty());

        // What was made for a run that never came up goes; what was there stays.
        let next = run(&sandbox);
        add_run(&db, &next).await;
        assert!(db.volume_had_runs(&next).await.unwrap());
        db.run_failed(&next, false, "start_failed", NOW).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.volume_id, Some(volume.clone()));

        let next = run(&sandbox);
        add_run(&db, &next).await;
        end(&db, &next, None, None, Volume::Dropped).await;
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);
        assert_eq!(take_garbage(&db).await, [of_volume(&volume)]);
        assert!(!db.owns_volume(&volume).await.unwrap());

        let fresh = RunRow { volume_id: VolumeId::generate(), ..run(&sandbox) };
        add_run(&db, &fresh).await;
        assert!(!db.volume_had_runs(&fresh).await.unwrap());
        end(&db, &fresh, None, None, Volume::Kept).await;
        db.delete_sandbox(&sandbox.id, SnapshotsOfDeleted::AutomaticGo, NOW).await.unwrap();
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
        assert!(db.roll_back(&sandbox.id, &kept.id, false, NOW).await.unwrap());
        assert_eq!(take_garbage(&db).await, [of_volume(&first.volume_id)]);
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);

        // While it runs: with the run, which is not the current one any more.
        let next = RunRow { volume_id: VolumeId::generate(), ..run(&sandbox) };
        add_run(&db, &next).await;
        assert!(db.roll_back(&sandbox.id, &kept.id, true, NOW).await.unwrap());
        assert!(take_garbage(&db).await.is_empty());
        assert!(db.owns_volume(&next.volume_id).await.unwrap(), "the live run owns it");
        let late = snapshot(&next, &image, Some(kept.id.clone()));
        end(&db, &next, Some(&late), Some(Retire::Replaced), Volume::RolledBack).await;
        let found = reread(&db, &sandbox).await;
        assert_eq!((found.current_snapshot.as_ref(), found.volume_id), (Some(&kept.id), None));
        assert_eq!(status(&db, &late.id).await, "created");
        assert_eq!(take_garbage(&db).await, [of_volume(&next.volume_id)]);
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
        assert!(!db.insert_run(&run(&sandbox), &state(), &was).await.unwrap());
        assert!(db.live_runs().await.unwrap().is_empty());
        assert_eq!(reread(&db, &sandbox).await.volume_id, None);

        let fresh = RunRow { volume_id: VolumeId::generate(), ..run(&sandbox) };
        add_run(&db, &fresh).await;
        end(&db, &fresh, None, None, Volume::Kept).await;
        take_garbage(&db).await;
        assert!(!db.roll_back(&sandbox.id, &kept.id, false, NOW).await.unwrap(), "to what is gone");
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
        db.record_snapshot(&kept, Retire::Replaced).await.unwrap();
        assert!(db.roll_back(&sandbox.id, &kept.id, true, NOW).await.unwrap());
        let late = snapshot(&first, &image, Some(kept.id.clone()));
        db.record_snapshot(&late, Retire::Replaced).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.current_snapshot, Some(kept.id.clone()));
        assert_eq!(
            (status(&db, &kept.id).await, status(&db, &late.id).await),
            ("created".into(), "created".into())
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
        let live = run(&fork);
        db.insert_sandbox(&fork, &live, &BTreeMap::new(), &[]).await.unwrap();

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
        live.kind = "manual".into();
        db.record_snapshot(&live, Retire::Replaced).await.unwrap();
        assert_eq!(reread(&db, &sandbox).await.current_snapshot, Some(live.id.clone()));
        assert_eq!(db.live_runs().await.unwrap().len(), 1);
        assert_eq!(db.count_snapshots(&sandbox.id).await.unwrap(), 1);
        // A stop without one: the volume alone is current, and the lineage is
        // remembered. What somebody asked for stays.
        end(&db, &first, None, Some(Retire::Replaced), Volume::Kept).await;
        let found = reread(&db, &sandbox).await;
        assert_eq!((found.current_snapshot, found.descends_from), (None, Some(live.id.clone())));
        assert_eq!(status(&db, &live.id).await, "created");
    }
}

#[tokio::test]
async fn a_replaced_image_stays_for_those_who_stand_on_it() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let old = image(&db).await;
        let (sandbox, first) = started(&db, &old, "one").await;
        let mut kept = snapshot(&first, &old, None);
        kept.kind = "manual".into();
        end(&db, &first, Some(&kept), None, Volume::Kept).await;
        let later = Timestamp(NOW.0 + 1_000);
        let new = named_image(&db, "default", "d2", later).await;
        assert_eq!(db.image("default").await.unwrap().unwrap().id, new.id);
        let far = Timestamp(NOW.0 + 1_000_000);
        assert_eq!(db.forget_replaced_images(far, far).await.unwrap(), 0, "a sandbox stands on it");
        db.delete_sandbox(&sandbox.id, SnapshotsOfDeleted::AutomaticGo, NOW).await.unwrap();
        assert_eq!(db.forget_replaced_images(far, far).await.unwrap(), 0, "a snapshot does");
        db.delete_snapshot(&kept.id, NOW).await.unwrap();
        take_garbage(&db).await;
        assert_eq!(db.forget_replaced_images(later, far).await.unwrap(), 0, "replaced just now");
        assert_eq!(db.forget_replaced_images(far, far).await.unwrap(), 1);
        let gone = Garbage { kind: GarbageKind::Image, name: "d1".into() };
        assert_eq!(db.garbage(9).await.unwrap(), [gone]);
        // The same files come back before they have gone.
        named_image(&db, "other", "d1", far).await;
        assert!(db.garbage(9).await.unwrap().is_empty());
        assert!(db.has_image_file("d1").await.unwrap() && !db.has_image_file("d3").await.unwrap());
        assert_eq!(db.images().await.unwrap().len(), 2);
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
        db.run_started(&first, &process, NOW, NOW).await.unwrap();
        db.run_stopping(&first.id, "first", NOW).await.unwrap();
        db.run_stopping(&first.id, "second", NOW).await.unwrap();
        let found = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!((found.status.as_str(), found.ending.as_deref()), ("stopping", Some("first")));
        assert_eq!(found.warnings, ["odd"]);
    }
}

#[tokio::test]
async fn a_commit_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let account = account();
    for db in databases(&dir).await {
        db.insert_account(&account).await.unwrap();
        db.sync().await.unwrap();
        db.close().await;
    }
    for db in databases(&dir).await {
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
        status: "stopped",
        reason: "requested",
        snapshot: Some(&snapshot),
        retire: Some(retire),
        volume: Volume::Kept,
        forget: None,
        now: NOW,
    };
    db.record_end(&end).await.unwrap();
    snapshot.id
}

async fn status(db: &Db, id: &SnapshotId) -> String {
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
            let next = run(&sandbox);
            if ids.is_empty() {
                db.insert_sandbox(&sandbox, &next, &BTreeMap::new(), &[]).await.unwrap();
            } else {
                add_run(&db, &next).await;
            }
            ids.push(stop(&db, &next, &image, ids.last(), retire).await);
        }
        // 0 was replaced for a while, 1 at once; the last one keeps two.
        assert_eq!(status(&db, &ids[0]).await, "deleted");
        assert_eq!(status(&db, &ids[1]).await, "deleted");
        assert_eq!(status(&db, &ids[2]).await, "created");

        // A fork stands on 2: that waits for it.
        let mut fork = self::sandbox(&image, "fork");
        fork.current_snapshot = Some(ids[2].clone());
        let first = run(&fork);
        db.insert_sandbox(&fork, &first, &BTreeMap::new(), &[]).await.unwrap();
        let next = run(&sandbox);
        add_run(&db, &next).await;
        stop(&db, &next, &image, Some(&ids[3]), Retire::BeyondNewest(1)).await;
        assert_eq!(status(&db, &ids[2]).await, "created");
        assert_eq!(status(&db, &ids[3]).await, "deleted");
        assert_eq!(db.expire_snapshots(later).await.unwrap(), 0);
        stop(&db, &first, &image, Some(&ids[2]), Retire::Replaced).await;
        assert_eq!(db.expire_snapshots(later).await.unwrap(), 1);
        assert_eq!(status(&db, &ids[2]).await, "deleted");

        let (children, count) = db.snapshot_children("a/default", Some(&ids[2]), None, 1).await.unwrap();
        assert_eq!((children.len(), count), (1, 2));
        let after = db.snapshots_of("a/default", Some("one"), true, Some(ids[0].as_str()), 9).await.unwrap();
        assert_eq!(after.len(), 4);
    }
}

#[tokio::test]
async fn use_puts_an_expiration_off() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let sandbox = sandbox(&image, "one");
        let first = run(&sandbox);
        db.insert_sandbox(&sandbox, &first, &BTreeMap::new(), &[]).await.unwrap();
        let mut kept = snapshot(&first, &image, None);
        (kept.expiration_ms, kept.expires_at) = (Some(500), Some(Timestamp(NOW.0 + 500)));
        end(&db, &first, Some(&kept), Some(Retire::Replaced), Volume::Kept).await;
        let mut next = run(&sandbox);
        next.source_snapshot = Some(kept.id.clone());
        next.requested_at = Timestamp(NOW.0 + 400);
        add_run(&db, &next).await;
        assert_eq!(db.expire_snapshots(Timestamp(NOW.0 + 899)).await.unwrap(), 0);
        assert_eq!(db.expire_snapshots(Timestamp(NOW.0 + 900)).await.unwrap(), 1);
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
            let mut first = run(&sandbox);
            first.requested_at = Timestamp(NOW.0 + 10 - i64::try_from(index).unwrap());
            db.insert_sandbox(&sandbox, &first, &tags, &routes).await.unwrap();
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
                let page = db.sandboxes_of("a/default", &filter).await.unwrap();
                let Some(last) = page.last() else { break };
                let key = match order {
                    SandboxOrder::Id => String::new(),
                    SandboxOrder::Name => last.name.to_string(),
                    SandboxOrder::StatusUpdatedAt => last.status_updated_at.0.to_string(),
                };
                after = Some((key, last.id.to_string()));
                seen.extend(page.into_iter().map(|row| row.name.to_string()));
            }
            assert_eq!(seen, wanted, "{order:?}");
        }
        let (id, port) = db.route("sub-a").await.unwrap().unwrap();
        let mut row = db.sandbox_by_id(&id).await.unwrap().unwrap();
        assert_eq!((row.name.as_str(), port), ("a", 3000));
        row.persistent = false;
        let routes =
            [("x", 3000), ("y", 4000)].map(|(name, port)| RouteRow { subdomain: name.to_owned(), port });
        db.update_sandbox(&row, Some(&BTreeMap::new()), Some(&routes)).await.unwrap();
        let kept = db.routes_of(&id).await.unwrap();
        assert_eq!(kept[0], RouteRow { subdomain: "sub-a".into(), port: 3000 }, "a port keeps its name");
        assert_eq!(kept[1].subdomain, "y");
        db.delete_sandbox(&id, SnapshotsOfDeleted::AllGo, NOW).await.unwrap();
        assert!(db.route("sub-a").await.unwrap().is_none());
    }
}

/// A write that runs into a full disk harms itself only.
#[tokio::test]
async fn writes_go_on_after_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let known = account();
        db.insert_account(&known).await.unwrap();
        let mut tx = db.write().await.unwrap();
        // Has SQLite roll back by itself, as a full disk does.
        let again = "INSERT OR ROLLBACK INTO accounts SELECT * FROM accounts";
        sqlx::query(again).execute(&mut *tx).await.unwrap_err();
        drop(tx);
        db.insert_account(&account()).await.unwrap();
        db.insert_account(&account()).await.unwrap();
        assert!(db.keep_room().unwrap());
        for file in ["dormouse.db", "dormouse.db-wal"] {
            use std::os::unix::fs::MetadataExt as _;
            let found = std::fs::metadata(dir.path().join(file)).unwrap();
            assert!(found.blocks() * 512 >= found.len() + (8 << 20), "{file} has no room");
        }
        db.insert_account(&account()).await.unwrap();
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
            status: "stopped",
            reason: "deleted",
            snapshot: None,
            retire: None,
            volume: Volume::Dropped,
            forget: Some(SnapshotsOfDeleted::AllGo),
            now: NOW,
        };
        for _ in 0..2 {
            db.record_end(&end).await.unwrap();
            assert!(db.sandbox_by_id(&sandbox.id).await.unwrap().is_none());
            assert_eq!(db.run(&run.id).await.unwrap().unwrap().status, "stopped");
            let garbage = db.garbage(10).await.unwrap();
            assert_eq!(garbage.iter().map(|one| &*one.name).collect::<Vec<_>>(), [run.volume_id.as_str()]);
        }
    }
}
