//! Sandboxes that start from a snapshot with their repository in it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_jobs::{Clock, Jobs};
use dormouse_provider::fake::{Call, Fake, Fault};
use dormouse_provider::{
    CommandSpec, CreateSandbox, ListOf, Namespace, RunRef, SandboxKey, SandboxProvider, SnapshotRequest,
    SnapshotStatus,
};
use dormouse_sessions::{
    GitToken, NewSession, OrgSnapshotConfig, Provisioned, Remote, RemoteError, SessionError, Sessions, Tip,
};
use dormouse_store::testing::Postgres;
use dormouse_store::{AccountRow, Address, Db, OrgRow, OrgSnapshotKey, OrgSnapshotRow};
use dormouse_types::{
    AccountId, BuildPhase, GithubRepo, HostId, OrgId, RepoAccess, SandboxName, SessionId, SetUp, Timestamp,
};

use tokio_util::task::AbortOnDropHandle;

use crate::{broken, server_with};

const INTERVAL: Duration = Duration::from_secs(10);

/// A git host: what its only repository stands at, and what is done with it.
#[derive(Debug)]
struct Forge {
    tip: Mutex<Result<Tip, RemoteError>>,
    /// It does not tell where it stands, and can be cloned all the same.
    tip_fails: Mutex<Option<RemoteError>>,
    asked: AtomicUsize,
    clones: AtomicUsize,
    /// Branches that were fetched in sandboxes that started warm; `None`:
    /// nothing was.
    updates: Mutex<Vec<Option<String>>>,
    /// The repository says how it is set up.
    set_up: Mutex<bool>,
    clone_fails: Mutex<bool>,
    update_fails: Mutex<bool>,
}

fn tip(branch: &str, commit: &str) -> Tip {
    Tip { branch: branch.to_owned(), commit: commit.to_owned() }
}

impl Forge {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tip: Mutex::new(Ok(tip("trunk", "c1"))),
            tip_fails: Mutex::default(),
            asked: AtomicUsize::new(0),
            clones: AtomicUsize::new(0),
            updates: Mutex::default(),
            set_up: Mutex::new(false),
            clone_fails: Mutex::new(false),
            update_fails: Mutex::new(false),
        })
    }

    fn stands_at(&self, branch: &str, commit: &str) {
        *self.tip.lock().unwrap() = Ok(tip(branch, commit));
    }

    /// Git inside: clones and updates of sandboxes.
    fn run(&self, spec: &CommandSpec) -> Option<(i32, String)> {
        let script = spec.argv.get(2)?;
        let tip = self.tip.lock().unwrap().clone();
        let set_up = if *self.set_up.lock().unwrap() { "set-up\n" } else { "" };
        let at = |branch: &str| match &tip {
            Ok(tip) if tip.branch == branch || branch.is_empty() => {
                Some((0, format!("{}\n{}\n{set_up}", tip.branch, tip.commit)))
            }
            _ => Some((128, String::new())),
        };
        if script.contains("git clone") {
            self.clones.fetch_add(1, Ordering::SeqCst);
            return if *self.clone_fails.lock().unwrap() { Some((128, String::new())) } else { at("") };
        }
        if script.contains("--no-tags") {
            let branch = spec.argv[4].clone();
            self.updates.lock().unwrap().push((!branch.is_empty()).then(|| branch.clone()));
            return if *self.update_fails.lock().unwrap() { Some((1, String::new())) } else { at(&branch) };
        }
        script.contains(".git/HEAD").then(|| at("")).flatten()
    }

    fn clones(&self) -> usize {
        self.clones.load(Ordering::SeqCst)
    }

    fn updates(&self) -> Vec<Option<String>> {
        self.updates.lock().unwrap().clone()
    }
}

#[derive(Debug)]
struct Gate(Arc<Forge>);

#[async_trait]
impl Remote for Gate {
    async fn tip(&self, _: &GithubRepo, _: Option<&str>) -> Result<Tip, RemoteError> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if let Some(error) = self.0.tip_fails.lock().unwrap().clone() {
            return Err(error);
        }
        self.0.tip.lock().unwrap().clone()
    }
}

struct Bench {
    db: Db,
    fake: Arc<Fake>,
    clock: Clock,
    forge: Arc<Forge>,
    sessions: Arc<Sessions>,
    account: AccountId,
    _work: AbortOnDropHandle<()>,
    _dir: tempfile::TempDir,
}

fn repo() -> GithubRepo {
    "https://github.com/Acme/widgets".parse().unwrap()
}

impl Bench {
    async fn on(address: Address, dir: tempfile::TempDir) -> Self {
        let db = Db::open(&address).await.unwrap();
        let clock = Clock::fixed(Timestamp(1_000_000));
        let (time, forge) = (clock.clone(), Forge::new());
        let git = forge.clone();
        let fake = Arc::new(Fake::new(move || time.now()).with_programs(move |spec| git.run(spec)));
        let account = add_account(&db, &clock).await;
        let config = OrgSnapshotConfig {
            owners: vec!["acme".to_owned()],
            tip_interval: INTERVAL,
            unused_for: Duration::from_secs(3600),
            set_up_timeout: Some(Duration::from_secs(60)),
            history: Duration::from_secs(3600),
        };
        let jobs = Jobs::new(db.clone(), clock.clone(), "host_one".parse().unwrap());
        let remote = Arc::new(Gate(forge.clone()));
        let sessions = server_with(&db, &fake, &clock, "host_one", |sessions| {
            sessions
                .with_tokens(Arc::new(GitToken::new("t0ken".to_owned())))
                .with_org_snapshots(remote, jobs, config)
        });
        let work = AbortOnDropHandle::new(tokio::spawn(sessions.clone().run_org_snapshots()));
        Self { db, fake, clock, forge, sessions, account, _work: work, _dir: dir }
    }

    async fn all() -> Vec<Self> {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sqlite = Address::Sqlite(one.path().join("dormouse.db"));
        let postgres = Postgres::shared().database().parse().unwrap();
        vec![Self::on(sqlite, one).await, Self::on(postgres, other).await]
    }

    async fn session_of(&self, account: &AccountId) -> SessionId {
        self.sessions.create(account, NewSession::default()).await.unwrap().id
    }

    /// A new session with a sandbox.
    async fn post(&self) -> Result<Provisioned, SessionError> {
        self.post_for(&self.account).await
    }

    async fn post_for(&self, account: &AccountId) -> Result<Provisioned, SessionError> {
        let id = self.session_of(account).await;
        self.sessions.provision(account.clone(), Some(id), repo()).await
    }

    async fn published(&self, access: RepoAccess) -> Option<OrgSnapshotRow> {
        self.db.org_snapshot(&OrgSnapshotKey::new(&repo(), access, "")).await.unwrap()
    }

    /// The snapshots that are there.
    async fn kept(&self) -> usize {
        let namespace = Namespace::default_of("org-snapshots");
        let (all, _) = self.fake.snapshots(&namespace, ListOf::default()).await.unwrap();
        all.iter().filter(|snapshot| snapshot.status == SnapshotStatus::Created).count()
    }

    /// Nothing of a builder is left: sandboxes are those of sessions.
    fn sandboxes(&self) -> usize {
        let all = self.fake.sandboxes();
        assert!(all.iter().all(|(name, _)| name.starts_with("session-")), "{all:?}");
        all.len()
    }

    async fn eventually(&self, what: &str, check: impl AsyncFn(&Self) -> bool) {
        for _ in 0..2000 {
            if check(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not come to pass that {what}");
    }
}

async fn add_account(db: &Db, clock: &Clock) -> AccountId {
    let id = AccountId::generate();
    let row = AccountRow { id: id.clone(), name: "Ada".into(), email: None, created_at: clock.now() };
    db.insert_account(&row).await.unwrap();
    id
}

#[tokio::test]
async fn the_second_sandbox_needs_no_clone() {
    for bench in Bench::all().await {
        for _ in 0..3 {
            assert_eq!(bench.post().await.unwrap().branch, "trunk");
        }
        assert_eq!((bench.forge.clones(), bench.forge.updates()), (1, vec![None; 3]));
        assert_eq!(bench.forge.asked.load(Ordering::SeqCst), 1, "once in an interval");
        assert_eq!((bench.sandboxes(), bench.kept().await), (3, 1));
        // Repositories of others get none.
        let other: GithubRepo = "https://github.com/other/widgets".parse().unwrap();
        let id = bench.session_of(&bench.account).await;
        bench.sessions.provision(bench.account.clone(), Some(id), other).await.unwrap();
        assert_eq!((bench.forge.clones(), bench.kept().await), (2, 1));
    }
}

#[tokio::test]
async fn however_many_ask_it_is_cloned_once() {
    for bench in Bench::all().await {
        let mut posts = Vec::new();
        for _ in 0..20 {
            let (sessions, account) = (bench.sessions.clone(), bench.account.clone());
            let id = bench.session_of(&account).await;
            posts.push(tokio::spawn(async move { sessions.provision(account, Some(id), repo()).await }));
        }
        for post in posts {
            post.await.unwrap().unwrap();
        }
        assert_eq!((bench.forge.clones(), bench.sandboxes(), bench.kept().await), (1, 20, 1));
        assert_eq!(bench.forge.asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_tip_that_moved_is_fetched_and_built_anew() {
    for bench in Bench::all().await {
        bench.post().await.unwrap();
        bench.forge.stands_at("main", "c2");
        bench.post().await.unwrap();
        assert_eq!(bench.forge.updates(), [None, None], "it was asked just now");
        bench.clock.advance(INTERVAL);
        assert_eq!(bench.post().await.unwrap().branch, "main");
        assert_eq!(bench.forge.updates().last().unwrap().as_deref(), Some("main"));
        bench
            .eventually("the newer one is published", async |bench| {
                bench.published(RepoAccess::Public).await.is_some_and(|row| row.commit_id == "c2")
            })
            .await;
        bench.post().await.unwrap();
        // The builder fetched it too, and cloned nothing.
        let fetched = Some("main".to_owned());
        assert_eq!(bench.forge.updates(), [None, None, fetched.clone(), fetched, None]);
        assert_eq!(bench.forge.clones(), 1);
        assert_eq!(bench.published(RepoAccess::Public).await.unwrap().set_up, SetUp::Nothing);
        // The older one goes, but not under those who start from it right now.
        bench.sessions.tidy_org_snapshots().await;
        assert_eq!(bench.kept().await, 2);
        bench.clock.advance(Duration::from_secs(61));
        bench.sessions.tidy_org_snapshots().await;
        assert_eq!((bench.kept().await, bench.sandboxes()), (1, 4));
        bench.sessions.tidy_org_snapshots().await;
    }
}

#[tokio::test]
async fn who_may_not_read_it_gets_nothing_of_it() {
    for bench in Bench::all().await {
        let org = OrgRow { id: OrgId::generate(), name: "acme".to_owned(), created_at: bench.clock.now() };
        bench.db.insert_org(&org).await.unwrap();
        bench.db.add_member(&org.id, &bench.account).await.unwrap();
        bench.db.insert_claim(&org.id, "acme/*").await.unwrap();
        bench.post().await.unwrap();
        assert!(bench.published(RepoAccess::Claimed).await.is_some());
        // A stranger reads it as anybody does, and gets what that gives.
        let stranger = add_account(&bench.db, &bench.clock).await;
        bench.post_for(&stranger).await.unwrap();
        assert_eq!(bench.forge.clones(), 2);
        assert!(bench.published(RepoAccess::Public).await.is_some());
        // It becomes private: the snapshot that was made before is no way in.
        *bench.forge.tip.lock().unwrap() = Err(RemoteError::Unreadable);
        bench.clock.advance(INTERVAL);
        let (creations, updates) = (bench.fake.count(Call::Create), bench.forge.updates().len());
        let refused = bench.post_for(&stranger).await;
        assert!(matches!(refused, Err(SessionError::Clone { .. })), "{refused:?}");
        assert_eq!(bench.fake.count(Call::Create), creations + 1, "one that was to clone");
        assert_eq!(bench.forge.updates().len(), updates);
        assert_eq!(bench.sandboxes(), 2);
    }
}

#[tokio::test]
async fn one_that_is_gone_or_broken_is_replaced_in_the_same_request() {
    for bench in Bench::all().await {
        bench.post().await.unwrap();
        let first = bench.published(RepoAccess::Public).await.unwrap();
        let namespace = Namespace::default_of("org-snapshots");
        bench.fake.delete_snapshot(&namespace, &first.snapshot_id).await.unwrap();
        bench.post().await.unwrap();
        assert_eq!((bench.forge.clones(), bench.sandboxes()), (2, 2));
        assert_eq!(bench.published(RepoAccess::Public).await, None);
        // The next one makes another.
        bench.post().await.unwrap();
        assert_eq!((bench.forge.clones(), bench.kept().await), (3, 1));
        // Its files are there, and git does not like them.
        *bench.forge.update_fails.lock().unwrap() = true;
        bench.post().await.unwrap();
        assert_eq!((bench.forge.clones(), bench.sandboxes()), (4, 4));
        assert_eq!(bench.published(RepoAccess::Public).await, None);
    }
}

#[tokio::test]
async fn a_build_that_fails_leaves_nothing() {
    for bench in Bench::all().await {
        *bench.forge.clone_fails.lock().unwrap() = true;
        let failed = bench.post().await;
        assert!(matches!(failed, Err(SessionError::Clone { .. })), "{failed:?}");
        assert_eq!((bench.sandboxes(), bench.kept().await, bench.forge.clones()), (0, 0, 1));
        *bench.forge.clone_fails.lock().unwrap() = false;
        // Our own failure costs the caller nothing, and is not repeated for each.
        bench.fake.plan(Call::Create, Fault::Error(broken()));
        bench.post().await.unwrap();
        bench.post().await.unwrap();
        assert_eq!((bench.forge.clones(), bench.kept().await, bench.sandboxes()), (3, 0, 2));
        bench.clock.advance(Duration::from_secs(61));
        bench.post().await.unwrap();
        assert_eq!((bench.forge.clones(), bench.kept().await, bench.sandboxes()), (4, 1, 3));
    }
}

#[tokio::test]
async fn a_remote_that_does_not_tell_is_cloned() {
    for bench in Bench::all().await {
        bench.post().await.unwrap();
        for error in [RemoteError::NoBranch, RemoteError::Silent("tired".to_owned())] {
            bench.clock.advance(INTERVAL);
            *bench.forge.tip_fails.lock().unwrap() = Some(error);
            let (clones, updates) = (bench.forge.clones(), bench.forge.updates().len());
            assert_eq!(bench.post().await.unwrap().branch, "trunk");
            assert_eq!((bench.forge.clones(), bench.forge.updates().len()), (clones + 1, updates));
        }
        // Not everybody waits for what does not answer.
        let asked = bench.forge.asked.load(Ordering::SeqCst);
        bench.post().await.unwrap();
        assert_eq!(bench.forge.asked.load(Ordering::SeqCst), asked);
        *bench.forge.tip_fails.lock().unwrap() = None;
        bench.clock.advance(INTERVAL);
        let clones = bench.forge.clones();
        bench.post().await.unwrap();
        assert_eq!((bench.forge.clones(), bench.kept().await), (clones, 1));
    }
}

/// A tenant who ends their own sandbox, and a fetch that fails once, take nothing
/// from others.
#[tokio::test]
async fn what_goes_wrong_for_one_is_not_everybodys() {
    for bench in Bench::all().await {
        bench.post().await.unwrap();
        let first = bench.published(RepoAccess::Public).await.unwrap();
        bench.forge.stands_at("trunk", "c2");
        bench.clock.advance(INTERVAL);
        *bench.forge.update_fails.lock().unwrap() = true;
        bench.post().await.unwrap();
        assert_eq!(bench.published(RepoAccess::Public).await.unwrap().id, first.id);
        *bench.forge.update_fails.lock().unwrap() = false;
        let (id, gate) = (bench.session_of(&bench.account).await, Arc::new(tokio::sync::Notify::new()));
        let before = bench.fake.count(Call::Exec);
        bench.fake.plan(Call::Exec, Fault::Hang(gate.clone()));
        let (sessions, account, of) = (bench.sessions.clone(), bench.account.clone(), id.clone());
        let post = tokio::spawn(async move { sessions.provision(account, Some(of), repo()).await });
        bench.eventually("it updates", async |bench| bench.fake.count(Call::Exec) > before).await;
        let key = SandboxKey {
            namespace: Sessions::namespace(&bench.account),
            name: SandboxName::for_session(&id),
        };
        bench.fake.delete(&key, false).await.unwrap();
        gate.notify_one();
        let ended = post.await.unwrap();
        assert!(matches!(ended, Err(SessionError::Interrupted)), "{ended:?}");
        assert!(bench.published(RepoAccess::Public).await.is_some());
    }
}

/// The first request does not wait for it, and neither does the next one.
#[tokio::test]
async fn a_set_up_is_run_in_the_background() {
    for bench in Bench::all().await {
        *bench.forge.set_up.lock().unwrap() = true;
        bench.post().await.unwrap();
        bench
            .eventually("the one with the set-up is published", async |bench| {
                // There is no file in it after all.
                bench.published(RepoAccess::Public).await.is_some_and(|row| row.set_up == SetUp::Nothing)
            })
            .await;
        assert_eq!(bench.forge.clones(), 2);
        let builds = async |bench: &Bench| bench.db.org_builds_of("acme/widgets", true, 10).await.unwrap();
        // The record follows what it is about.
        bench
            .eventually("both builds are written down", async |bench| {
                builds(bench).await.iter().all(|build| build.phase == BuildPhase::Published)
            })
            .await;
        let builds = builds(&bench).await;
        let phases = |log: &str| log.lines().filter_map(|line| line.strip_prefix("== ")).count();
        assert_eq!(builds.iter().map(|build| phases(&build.log)).collect::<Vec<_>>(), [4, 3], "{builds:?}");
        bench.post().await.unwrap();
        assert_eq!(bench.forge.clones(), 2);
    }
}

/// A remote that fails is not asked again and again for a build.
#[tokio::test]
async fn builds_that_fail_are_put_off() {
    for bench in Bench::all().await {
        bench.post().await.unwrap();
        bench.forge.stands_at("trunk", "c2");
        bench.clock.advance(INTERVAL);
        bench.post().await.unwrap();
        bench
            .eventually("it is built", async |bench| {
                bench.published(RepoAccess::Public).await.is_some_and(|row| row.commit_id == "c2")
            })
            .await;
        *bench.forge.set_up.lock().unwrap() = true;
        *bench.forge.clone_fails.lock().unwrap() = true;
        bench.forge.stands_at("trunk", "c3");
        bench.clock.advance(INTERVAL);
        let failures = async |bench: &Bench| {
            let builds = bench.db.org_builds_of("acme/widgets", true, 100).await.unwrap();
            builds.iter().filter(|build| build.phase == BuildPhase::Failed).count()
        };
        bench.post().await.unwrap();
        // What there was had none: it is updated, and the one with a set-up is
        // built next, which fails.
        bench.eventually("the build fails", async |bench| failures(bench).await == 1).await;
        for _ in 0..10 {
            bench.post().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(failures(&bench).await, 1);
        *bench.forge.clone_fails.lock().unwrap() = false;
        bench.clock.advance(Duration::from_secs(601));
        bench.post().await.unwrap();
        assert_eq!(bench.published(RepoAccess::Public).await.unwrap().commit_id, "c3");
    }
}

/// What a server that died was building is gone before anything is built again;
/// what was published stays.
#[tokio::test]
async fn builds_of_a_server_that_died_leave_nothing() {
    for bench in Bench::all().await {
        let config = OrgSnapshotConfig {
            owners: Vec::new(),
            tip_interval: INTERVAL,
            unused_for: Duration::from_secs(3600),
            set_up_timeout: None,
            history: Duration::from_secs(3600),
        };
        let provider: Arc<dyn SandboxProvider> = bench.fake.clone();
        let start = || {
            let (db, host) = (bench.db.clone(), "host_one".parse::<HostId>().unwrap());
            let jobs = Jobs::new(db.clone(), bench.clock.clone(), host.clone());
            let remote = Arc::new(Gate(bench.forge.clone()));
            let sessions =
                Sessions::new(db, provider.clone(), bench.clock.clone(), crate::lifecycle(), host, true);
            Arc::new(sessions.with_org_snapshots(remote, jobs, config.clone()))
        };
        let post = async |sessions: &Arc<Sessions>| {
            let id = bench.session_of(&bench.account).await;
            sessions.provision(bench.account.clone(), Some(id), repo()).await.unwrap();
        };
        post(&start()).await;
        let place = Namespace::new("org-snapshots", "host_one");
        let key = SandboxKey { namespace: place.clone(), name: SandboxName::generate() };
        let builder = bench.fake.create(CreateSandbox::new(key.clone())).await.unwrap();
        let run = RunRef { namespace: place.clone(), id: builder.run.id };
        let request = SnapshotRequest { live: true, ..SnapshotRequest::default() };
        bench.fake.snapshot(&run, request).await.unwrap();
        let _work = AbortOnDropHandle::new(tokio::spawn(start().run_org_snapshots()));
        bench
            .eventually("what was begun is gone", async |bench| {
                let (all, _) = bench.fake.snapshots(&place, ListOf::default()).await.unwrap();
                let kept = all.iter().filter(|one| one.status == SnapshotStatus::Created).count();
                bench.fake.get(&key).await.is_err() && kept == 1
            })
            .await;
        post(&start()).await;
        assert_eq!(bench.forge.clones(), 1);
    }
}
