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

async fn image(db: &Db) -> ImageRow {
    let layer = LayerRow { id: LayerId::generate(), size_bytes: Some(7), created_at: NOW };
    let image = ImageRow {
        id: ImageId::generate(),
        name: "default".into(),
        layers: vec![layer.id.clone()],
        source: "test".into(),
        size_bytes: 7,
        created_at: NOW,
    };
    db.insert_image(&image, &[layer]).await.unwrap();
    image
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
        created_at: NOW,
        updated_at: NOW,
        status_updated_at: NOW,
    }
}

fn run(sandbox: &SandboxRow, layers: &[LayerId]) -> RunRow {
    RunRow {
        id: RunId::generate(),
        sandbox_id: sandbox.id.clone(),
        namespace: sandbox.namespace.clone(),
        sandbox_name: sandbox.name.clone(),
        status: "pending".into(),
        config: "{}".into(),
        source_snapshot: None,
        layers: layers.to_vec(),
        process: None,
        timeout_ms: 1,
        expires_at: None,
        requested_at: NOW,
        started_at: None,
        stop_requested_at: None,
        stopped_at: None,
        stop_reason: None,
        updated_at: NOW,
    }
}

fn snapshot(run: &RunRow, image: &ImageRow, parent: Option<SnapshotId>, layers: Vec<LayerId>) -> SnapshotRow {
    SnapshotRow {
        id: SnapshotId::generate(),
        namespace: run.namespace.clone(),
        sandbox_id: run.sandbox_id.clone(),
        sandbox_name: run.sandbox_name.clone(),
        source_run: run.id.clone(),
        image_id: image.id.clone(),
        kind: "automatic".into(),
        status: "created".into(),
        layers,
        parent,
        expiration_ms: None,
        expires_at: None,
        last_used_at: None,
        created_at: NOW,
        updated_at: NOW,
    }
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
        let sandbox = sandbox(&image, "one");
        let first = run(&sandbox, &image.layers);
        db.insert_sandbox(&sandbox, &first, &BTreeMap::new(), &[]).await.unwrap();
        let taken = db
            .insert_sandbox(&self::sandbox(&image, "one"), &run(&sandbox, &[]), &BTreeMap::new(), &[])
            .await;
        assert!(matches!(taken, Err(StoreError::Conflict(_))));
        assert!(matches!(db.insert_run(&run(&sandbox, &[])).await, Err(StoreError::Conflict(_))));
        db.run_ended(&first.id, "stopped", "requested", NOW).await.unwrap();
        db.insert_run(&run(&sandbox, &[])).await.unwrap();
        assert_eq!(db.live_runs().await.unwrap().len(), 1);
        let ended = db.run(&first.id).await.unwrap().unwrap();
        assert_eq!(ended.stop_reason.as_deref(), Some("requested"));
    }
}

#[tokio::test]
async fn layers_live_as_long_as_something_stands_on_them() {
    let dir = tempfile::tempdir().unwrap();
    for db in databases(&dir).await {
        let image = image(&db).await;
        let sandbox = sandbox(&image, "one");
        let mut stack = image.layers.clone();
        let mut parent = None;
        let mut made = Vec::new();
        for _ in 0..2 {
            let run = run(&sandbox, &stack);
            if parent.is_none() {
                db.insert_sandbox(&sandbox, &run, &BTreeMap::new(), &[]).await.unwrap();
            } else {
                db.insert_run(&run).await.unwrap();
            }
            let layer = LayerId::generate();
            stack.push(layer.clone());
            made.push(layer.clone());
            let snapshot = snapshot(&run, &image, parent.clone(), stack.clone());
            let row = LayerRow { id: layer.clone(), size_bytes: None, created_at: snapshot.created_at };
            db.record_stop(&snapshot, &row, Retire::Replaced, "requested").await.unwrap();
            parent = Some(snapshot.id.clone());
        }
        let current = db.sandbox_by_id(&sandbox.id).await.unwrap().unwrap().current_snapshot.unwrap();
        assert_eq!(Some(&current), parent.as_ref());
        assert!(db.live_runs().await.unwrap().is_empty());
        assert!(db.forget_unused_layers().await.unwrap().is_empty(), "the newest snapshot holds all");

        let current = db.snapshot(&current).await.unwrap().unwrap();
        let merged = LayerId::generate();
        let flat = vec![image.layers[0].clone(), merged.clone()];
        assert!(db.replace_layers(&current, &flat, &merged, NOW).await.unwrap());
        assert!(!db.replace_layers(&current, &flat, &merged, NOW).await.unwrap(), "replaced already");
        let mut unused = db.forget_unused_layers().await.unwrap();
        unused.sort();
        made.sort();
        assert_eq!(unused, made);

        db.delete_sandbox(&sandbox.id, SnapshotsOfDeleted::AutomaticGo, NOW).await.unwrap();
        assert_eq!(db.forget_unused_layers().await.unwrap(), vec![merged]);
        assert!(db.has_layer(&image.layers[0]).await.unwrap(), "the image stays");
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
    let layer = LayerRow { id: LayerId::generate(), size_bytes: None, created_at: NOW };
    let layers = run.layers.iter().cloned().chain([layer.id.clone()]).collect();
    let snapshot = snapshot(run, image, parent.cloned(), layers);
    db.record_stop(&snapshot, &layer, retire, "requested").await.unwrap();
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
            let next = run(&sandbox, &image.layers);
            if ids.is_empty() {
                db.insert_sandbox(&sandbox, &next, &BTreeMap::new(), &[]).await.unwrap();
            } else {
                db.insert_run(&next).await.unwrap();
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
        let first = run(&fork, &image.layers);
        db.insert_sandbox(&fork, &first, &BTreeMap::new(), &[]).await.unwrap();
        let next = run(&sandbox, &image.layers);
        db.insert_run(&next).await.unwrap();
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
        let first = run(&sandbox, &image.layers);
        db.insert_sandbox(&sandbox, &first, &BTreeMap::new(), &[]).await.unwrap();
        let layer = LayerRow { id: LayerId::generate(), size_bytes: None, created_at: NOW };
        let mut kept = snapshot(&first, &image, None, vec![layer.id.clone()]);
        (kept.expiration_ms, kept.expires_at) = (Some(500), Some(Timestamp(NOW.0 + 500)));
        db.record_stop(&kept, &layer, Retire::Replaced, "requested").await.unwrap();
        let mut next = run(&sandbox, &image.layers);
        next.source_snapshot = Some(kept.id.clone());
        next.requested_at = Timestamp(NOW.0 + 400);
        db.insert_run(&next).await.unwrap();
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
            let mut first = run(&sandbox, &image.layers);
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
