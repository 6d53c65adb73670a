//! Sessions over a provider in memory, with a clock that is moved by hand and
//! faults where the test wants them; on both databases.

#![allow(clippy::unwrap_used, reason = "a test")]

mod org_snapshots;
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_provider::fake::{Call, Fake, Fault};
use dormouse_provider::{
    CommandSpec, ProviderError, RunRef, RunStatus, SandboxKey, SandboxProvider, StopReason, UpdateSandbox,
};
use dormouse_sessions::{
    LifecycleConfig, LifecycleState, NewSession, Probe, SessionError, SessionPatch, SessionStatus, Sessions,
};
use dormouse_store::testing::{Postgres, refuse_active};
use dormouse_store::{AccountRow, Address, Db};
use dormouse_types::{AccountId, CommandId, GithubRepo, SandboxName, SessionId, Timestamp};
use tokio::sync::Notify;

const IDLE: Duration = Duration::from_secs(60);
const LIFETIME: Duration = Duration::from_secs(3600);

fn repo() -> GithubRepo {
    "https://github.com/acme/widgets".parse().unwrap()
}

thread_local! {
    /// There is nothing in a sandbox until something is cloned. A test has one
    /// thread.
    static GONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static GONE_PRINTS: std::cell::Cell<&str> = const { std::cell::Cell::new("nothing\n") };
}

/// Git, as far as sessions need it: a clone, and the branch in it.
fn git(spec: &CommandSpec) -> Option<(i32, String)> {
    let script = spec.argv.get(2)?;
    let is_git = script.contains("git") && spec.argv[0] == "sh";
    if is_git && !script.contains("git clone") && GONE.with(std::cell::Cell::get) {
        return Some((0, GONE_PRINTS.with(|prints| prints.get().to_owned())));
    }
    is_git.then(|| match spec.argv.iter().any(|word| word.contains("missing")) {
        true => (128, String::new()),
        false => (0, "trunk\nc1\n".to_owned()),
    })
}

struct Bench {
    db: Db,
    fake: Arc<Fake>,
    clock: Clock,
    sessions: Arc<Sessions>,
    account: AccountId,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn on(address: Address, dir: tempfile::TempDir) -> Self {
        let db = Db::open(&address).await.unwrap();
        let clock = Clock::fixed(Timestamp(1_000_000));
        let time = clock.clone();
        let fake = Arc::new(Fake::new(move || time.now()).with_programs(git));
        let account = AccountId::generate();
        let row =
            AccountRow { id: account.clone(), name: "Ada".into(), email: None, created_at: clock.now() };
        db.insert_account(&row).await.unwrap();
        let sessions = server(&db, &fake, &clock, "host_one");
        Self { db, fake, clock, sessions, account, _dir: dir }
    }

    /// One for each kind of database.
    async fn all() -> Vec<Self> {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sqlite = Address::Sqlite(one.path().join("dormouse.db"));
        let postgres = Postgres::shared().database().parse().unwrap();
        vec![Self::on(sqlite, one).await, Self::on(postgres, other).await]
    }

    async fn session(&self) -> SessionId {
        self.sessions.create(&self.account, NewSession::default()).await.unwrap().id
    }

    async fn provision(&self, id: &SessionId) -> Result<(), SessionError> {
        self.sessions.provision(self.account.clone(), Some(id.clone()), repo()).await.map(drop)
    }

    /// A session whose sandbox is ready.
    async fn ready(&self) -> SessionId {
        let id = self.session().await;
        self.provision(&id).await.unwrap();
        id
    }

    async fn state(&self, id: &SessionId) -> LifecycleState {
        self.db.session(id).await.unwrap().unwrap().lifecycle_state
    }

    fn key(&self, id: &SessionId) -> SandboxKey {
        SandboxKey { namespace: Sessions::namespace(&self.account), name: SandboxName::for_session(id) }
    }

    async fn run(&self, id: &SessionId) -> RunRef {
        let found = self.fake.get(&self.key(id)).await.unwrap();
        RunRef { namespace: self.key(id).namespace, id: found.run.id }
    }

    /// Lets the reconciler look until the sandbox sleeps: the lock of the call
    /// before is given back in the background.
    async fn falls_asleep(&self, id: &SessionId) {
        for _ in 0..2000 {
            self.sessions.reconcile_once().await;
            if !self.is_awake(id).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not fall asleep");
    }

    async fn is_awake(&self, id: &SessionId) -> bool {
        self.fake.get(&self.key(id)).await.unwrap().run.status == RunStatus::Running
    }
}

fn server(db: &Db, fake: &Arc<Fake>, clock: &Clock, host: &str) -> Arc<Sessions> {
    server_with(db, fake, clock, host, |sessions| sessions)
}

fn lifecycle() -> LifecycleConfig {
    LifecycleConfig { idle_timeout: IDLE, max_lifetime: LIFETIME, clone_timeout: Duration::from_secs(30) }
}

fn server_with(
    db: &Db,
    fake: &Arc<Fake>,
    clock: &Clock,
    host: &str,
    more: impl FnOnce(Sessions) -> Sessions,
) -> Arc<Sessions> {
    let config = lifecycle();
    let provider: Arc<dyn SandboxProvider> = fake.clone();
    // Every server can deal with the sandboxes of this provider.
    let host = host.parse().unwrap();
    Arc::new(more(Sessions::new(db.clone(), provider, clock.clone(), config, host, false)))
}

fn broken() -> ProviderError {
    ProviderError::internal("ask", "nobody is there")
}

#[tokio::test]
async fn idle_ones_sleep_and_come_back() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        assert_eq!(bench.state(&id).await, LifecycleState::Active);
        bench.clock.advance(IDLE / 2);
        assert!(bench.sessions.activity(&bench.account, &id).await.unwrap());
        bench.clock.advance(IDLE / 2 + Duration::from_secs(1));
        bench.sessions.reconcile_once().await;
        assert!(bench.is_awake(&id).await, "it was used");
        bench.clock.advance(IDLE);
        bench.falls_asleep(&id).await;
        assert_eq!(bench.state(&id).await, LifecycleState::Hibernated);
        bench.provision(&id).await.unwrap();
        assert_eq!((bench.fake.count(Call::Create), bench.state(&id).await), (1, LifecycleState::Active));
    }
}

#[tokio::test]
async fn a_lifetime_ends_whatever_happens() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        for _ in 0..LIFETIME.as_secs() / 50 + 1 {
            bench.clock.advance(Duration::from_secs(50));
            bench.sessions.activity(&bench.account, &id).await.unwrap();
        }
        bench.falls_asleep(&id).await;
        assert_eq!(bench.state(&id).await, LifecycleState::Hibernated);
    }
}

/// Fault 2: nobody waits for somebody else's clone.
#[tokio::test]
async fn a_clone_that_hangs_keeps_nobody_else_awake() {
    for bench in Bench::all().await {
        let idle = bench.ready().await;
        let release = Arc::new(Notify::new());
        bench.fake.plan(Call::Create, Fault::Hang(release.clone()));
        let hanging = bench.session().await;
        let (sessions, account, id) = (bench.sessions.clone(), bench.account.clone(), hanging.clone());
        let clone = tokio::spawn(async move { sessions.provision(account, Some(id), repo()).await });
        while bench.state(&hanging).await != LifecycleState::Restoring {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.clock.advance(IDLE + Duration::from_secs(1));
        let round = tokio::time::timeout(Duration::from_secs(5), bench.sessions.reconcile_once()).await;
        assert!(round.is_ok(), "the reconciler waits for the clone");
        bench.falls_asleep(&idle).await;
        assert_eq!(bench.state(&idle).await, LifecycleState::Hibernated);
        release.notify_one();
        clone.await.unwrap().unwrap();
        assert_eq!(bench.state(&hanging).await, LifecycleState::Active);
    }
}

/// Fault 3: a provider that cannot tell has not said that nothing runs.
#[tokio::test]
async fn a_provider_that_does_not_answer_stops_nothing() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        bench.clock.advance(IDLE + Duration::from_secs(1));
        bench.fake.plan(Call::Commands, Fault::Error(broken()));
        // The lock of the call before is given back in the background.
        while bench.fake.count(Call::Commands) == 0 {
            bench.sessions.reconcile_once().await;
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.state(&id).await, LifecycleState::Active, "it may be busy");
        bench.fake.plan(Call::Get, Fault::Error(broken()));
        assert!(bench.sessions.stop(&bench.account, &id).await.is_err(), "not: it was stopped already");
        bench.fake.plan(Call::Get, Fault::Error(broken()));
        assert!(bench.sessions.probe(&bench.account, &id).await.is_err());
        assert!(bench.is_awake(&id).await);
        // A control: nothing fails, and it sleeps.
        bench.clock.advance(IDLE + Duration::from_secs(1));
        bench.falls_asleep(&id).await;
    }
}

#[tokio::test]
async fn a_command_that_runs_keeps_it_awake() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        let run = bench.run(&id).await;
        let command = CommandId::generate();
        bench.fake.start(&run, command.clone(), CommandSpec::new(["sleep", "1000"])).await.unwrap();
        for _ in 0..3 {
            bench.clock.advance(IDLE + Duration::from_secs(1));
            bench.sessions.reconcile_once().await;
            assert!(bench.is_awake(&id).await);
        }
        bench.fake.kill(&run, &command, 9, false).await.unwrap();
        bench.clock.advance(IDLE + Duration::from_secs(1));
        bench.falls_asleep(&id).await;
    }
}

/// Fault 12: what the provider granted is not lost to somebody else's write.
#[tokio::test]
async fn an_extension_and_a_use_at_once() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        for _ in 0..10 {
            let extend = bench.sessions.extend(&bench.account, &id);
            let (extended, used) = tokio::join!(extend, bench.sessions.touch(&id));
            let (end, _) = extended.unwrap();
            assert!(used.unwrap());
            let row = bench.db.session(&id).await.unwrap().unwrap();
            assert_eq!(row.sandbox_expires_at, Some(end));
            assert_eq!(bench.fake.get(&bench.key(&id)).await.unwrap().sandbox.expires_at, Some(end));
        }
    }
}

#[tokio::test]
async fn what_fails_is_healed_by_the_next_call() {
    for bench in Bench::all().await {
        // Nothing is left of a clone that failed.
        let id = bench.session().await;
        let missing: GithubRepo = "https://github.com/acme/missing".parse().unwrap();
        let failed = bench.sessions.provision(bench.account.clone(), Some(id.clone()), missing).await;
        assert!(matches!(failed, Err(SessionError::Clone { .. })));
        assert!(bench.fake.sandboxes().is_empty());
        let row = bench.db.session(&id).await.unwrap().unwrap();
        assert_eq!(row.lifecycle_state, LifecycleState::Failed);
        assert!(row.lifecycle_error.unwrap().contains("Failed to clone acme/missing"));
        // A creation whose answer was lost is not made twice.
        bench.fake.plan(Call::Create, Fault::LostAnswer);
        assert!(bench.provision(&id).await.is_err());
        bench.provision(&id).await.unwrap();
        assert_eq!(bench.fake.sandboxes().len(), 1);
        // A stop whose answer was lost.
        bench.fake.plan(Call::Stop, Fault::LostAnswer);
        assert!(bench.sessions.pause(&bench.account, &id).await.is_err());
        assert_eq!(bench.state(&id).await, LifecycleState::Failed);
        bench.provision(&id).await.unwrap();
        assert_eq!(bench.state(&id).await, LifecycleState::Active);
        // A resume that fails.
        bench.sessions.pause(&bench.account, &id).await.unwrap();
        bench.fake.plan(Call::Resume, Fault::Error(broken()));
        assert!(bench.provision(&id).await.is_err());
        assert_eq!(bench.state(&id).await, LifecycleState::Failed);
        bench.provision(&id).await.unwrap();
        assert!(bench.is_awake(&id).await);
    }
}

/// Whatever a server that died was at, the next one brings to rest.
#[tokio::test]
async fn what_a_crash_left_comes_to_rest() {
    for bench in Bench::all().await {
        for (left, rests) in [
            (LifecycleState::Hibernating, LifecycleState::Hibernated),
            (LifecycleState::Restoring, LifecycleState::Hibernated),
        ] {
            let id = bench.ready().await;
            let set = |row: &mut dormouse_store::SessionRow| {
                row.lifecycle_state = left;
                true
            };
            bench.db.change_session(&id, None, set).await.unwrap().unwrap();
            bench.falls_asleep(&id).await;
            assert_eq!(bench.state(&id).await, rests);
        }
        // A first provisioning: what it made was never acknowledged.
        let id = bench.ready().await;
        let unbind = |row: &mut dormouse_store::SessionRow| {
            (row.lifecycle_state, row.sandbox_name) = (LifecycleState::Restoring, None);
            true
        };
        bench.db.change_session(&id, None, unbind).await.unwrap().unwrap();
        while bench.state(&id).await != LifecycleState::Provisioning {
            bench.sessions.reconcile_once().await;
        }
        assert!(bench.fake.get(&bench.key(&id)).await.is_err());
        // Used before the next server looked, it is awake for its session too.
        let id = bench.ready().await;
        let set = |row: &mut dormouse_store::SessionRow| {
            row.lifecycle_state = LifecycleState::Hibernating;
            true
        };
        bench.db.change_session(&id, None, set).await.unwrap().unwrap();
        let key = bench.key(&id);
        bench.sessions.note_use(&key).await.unwrap();
        assert_eq!(bench.state(&id).await, LifecycleState::Active);
    }
}

#[tokio::test]
async fn a_sandbox_that_died_is_noticed() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        let (probe, _) = bench.sessions.probe(&bench.account, &id).await.unwrap();
        assert!(matches!(probe, Probe::Connected(Some(_))), "{probe:?}");
        let run = bench.run(&id).await;
        bench.fake.stop(&run, StopReason::Died).await.unwrap();
        let (probe, status) = bench.sessions.probe(&bench.account, &id).await.unwrap();
        assert_eq!((probe, status.has_snapshot), (Probe::Expired, true));
        let (ran, _) = bench.sessions.wake_up(&bench.account, &id).await.unwrap();
        assert!(!ran && bench.is_awake(&id).await);
        let (ran, _) = bench.sessions.wake_up(&bench.account, &id).await.unwrap();
        assert!(ran);
    }
}

#[tokio::test]
async fn archived_ones_sleep_until_they_are_wanted() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        let to = |status| SessionPatch { status: Some(status), ..SessionPatch::default() };
        let archived = bench.sessions.patch(&bench.account, &id, to(SessionStatus::Archived)).await.unwrap();
        assert_eq!(archived.lifecycle_state, LifecycleState::Archived);
        assert!(!bench.is_awake(&id).await);
        assert!(matches!(bench.provision(&id).await, Err(SessionError::Archived)));
        let back = bench.sessions.patch(&bench.account, &id, to(SessionStatus::Running)).await.unwrap();
        assert_eq!(back.lifecycle_state, LifecycleState::Hibernated);
        bench.provision(&id).await.unwrap();
        bench.sessions.delete(&bench.account, &id).await.unwrap();
        assert!(bench.fake.sandboxes().is_empty());
    }
}

/// Two servers on one database: a session has one sandbox.
#[tokio::test]
async fn two_servers_make_one_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::on(Postgres::shared().database().parse().unwrap(), dir).await;
    let other = server(&bench.db, &bench.fake, &bench.clock, "host_two");
    for _ in 0..5 {
        let id = bench.session().await;
        let created = bench.fake.count(Call::Create);
        let mut asking = tokio::task::JoinSet::new();
        for turn in 0..8 {
            let sessions = if turn % 2 == 0 { bench.sessions.clone() } else { other.clone() };
            let (account, id) = (bench.account.clone(), id.clone());
            asking.spawn(async move { sessions.provision(account, Some(id), repo()).await.map(drop) });
        }
        for outcome in asking.join_all().await {
            outcome.unwrap();
        }
        assert_eq!(bench.fake.count(Call::Create), created + 1);
    }
    assert_eq!(bench.fake.sandboxes().len(), 5);
}

/// What fails once there is a sandbox with somebody's work in it leaves it be.
#[tokio::test]
async fn a_database_that_fails_costs_no_files() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        bench.sessions.pause(&bench.account, &id).await.unwrap();
        refuse_active(&bench.db, true).await.unwrap();
        assert!(matches!(bench.provision(&id).await, Err(SessionError::Store(_))));
        // A control: what was made for this very call goes.
        let fresh = bench.session().await;
        assert!(matches!(bench.provision(&fresh).await, Err(SessionError::Store(_))));
        assert_eq!(bench.fake.sandboxes().len(), 1);
        refuse_active(&bench.db, false).await.unwrap();
        bench.provision(&id).await.unwrap();
        assert_eq!(bench.fake.count(Call::Create), 2, "it is the sandbox of before");
    }
}

/// A server that was away for longer than its lease does nothing more: the
/// sandbox of that name is another server's.
#[tokio::test]
async fn a_lost_lease_ends_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::on(Postgres::shared().database().parse().unwrap(), dir).await;
    let other = server(&bench.db, &bench.fake, &bench.clock, "host_two");
    let (id, release) = (bench.session().await, Arc::new(Notify::new()));
    bench.fake.plan(Call::Create, Fault::Hang(release.clone()));
    let (sessions, account, session) = (bench.sessions.clone(), bench.account.clone(), id.clone());
    let clone = tokio::spawn(async move { sessions.provision(account, Some(session), repo()).await });
    // It is this call that hangs, not the other server's.
    while bench.fake.count(Call::Create) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.db.clear_leases(&"host_one".parse().unwrap(), bench.clock.now()).await.unwrap();
    other.provision(bench.account.clone(), Some(id.clone()), repo()).await.unwrap();
    let run = bench.run(&id).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), clone).await;
    let outcome = ended.expect("it goes on").unwrap();
    assert!(matches!(outcome, Err(SessionError::Contended)), "{outcome:?}");
    release.notify_one();
    assert_eq!(bench.state(&id).await, LifecycleState::Active);
    assert_eq!(bench.run(&id).await.id, run.id);
}

/// Whoever has the provider give a run more time gets it.
#[tokio::test]
async fn a_lifetime_that_was_extended_at_the_provider_holds() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        bench.fake.extend(&bench.run(&id).await, LIFETIME / 2).await.unwrap();
        let use_for = async |time: Duration| {
            for _ in 0..time.as_secs() / 50 + 1 {
                bench.clock.advance(Duration::from_secs(50));
                bench.sessions.activity(&bench.account, &id).await.unwrap();
            }
        };
        use_for(LIFETIME).await;
        for _ in 0..10 {
            bench.sessions.reconcile_once().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(bench.is_awake(&id).await, "it was extended");
        assert_eq!(bench.state(&id).await, LifecycleState::Active);
        use_for(LIFETIME / 2).await;
        bench.falls_asleep(&id).await;
    }
}

/// One failed stop does not keep an idle sandbox awake for good.
#[tokio::test]
async fn sleep_that_fails_is_tried_again() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        bench.clock.advance(IDLE + Duration::from_secs(1));
        bench.fake.plan(Call::Stop, Fault::Error(broken()));
        while bench.state(&id).await == LifecycleState::Active {
            bench.sessions.reconcile_once().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(bench.state(&id).await, LifecycleState::Hibernating);
        bench.falls_asleep(&id).await;
        assert_eq!(bench.state(&id).await, LifecycleState::Hibernated);
    }
}

/// What somebody does to a session's sandbox without the session reaches its
/// row.
#[tokio::test]
async fn a_sandbox_that_somebody_deleted_is_no_sandbox() {
    for bench in Bench::all().await {
        for sleeps in [false, true] {
            let id = bench.ready().await;
            if sleeps {
                bench.sessions.pause(&bench.account, &id).await.unwrap();
            }
            let key = bench.key(&id);
            bench.fake.delete(&key, false).await.unwrap();
            bench.sessions.note_gone(&key).await.unwrap();
            let status = bench.sessions.status(&bench.account, &id).await.unwrap();
            assert!(!status.active && !status.has_snapshot, "{status:?}");
            let woken = bench.sessions.wake_up(&bench.account, &id).await;
            assert!(matches!(woken, Err(SessionError::NeverInitialized)), "{woken:?}");
            let paused = bench.sessions.pause(&bench.account, &id).await;
            assert!(matches!(paused, Err(SessionError::NotInitialized)), "{paused:?}");
            bench.provision(&id).await.unwrap();
            assert_eq!(bench.state(&id).await, LifecycleState::Active);
            // It is there again, whoever was slow to tell that it was gone.
            bench.sessions.note_gone(&key).await.unwrap();
            assert_eq!(bench.state(&id).await, LifecycleState::Active);
            // Another's sandbox of the same name is not this session's.
            let stranger = Sessions::namespace(&AccountId::generate());
            bench.sessions.note_gone(&SandboxKey { namespace: stranger, ..key }).await.unwrap();
            assert_eq!(bench.state(&id).await, LifecycleState::Active);
        }
    }
}

#[tokio::test]
async fn the_name_of_a_session_is_kept_for_it() {
    for bench in Bench::all().await {
        let id = bench.session().await;
        let name = SandboxName::for_session(&id);
        let refused = bench.sessions.refuse_reserved(&name).await;
        assert!(matches!(refused, Err(SessionError::Reserved(_))), "{refused:?}");
        // Another server's session may be called so.
        let other = SandboxName::for_session(&SessionId::generate());
        bench.sessions.refuse_reserved(&other).await.unwrap();
        bench.sessions.refuse_reserved(&"mine".parse().unwrap()).await.unwrap();
    }
}

/// A sandbox that keeps nothing comes back empty: its repository is cloned
/// again.
#[tokio::test]
async fn a_checkout_that_is_gone_is_made_again() {
    for bench in Bench::all().await {
        let id = bench.ready().await;
        let changes = UpdateSandbox { persistent: Some(false), ..UpdateSandbox::default() };
        bench.fake.update(&bench.key(&id), changes).await.unwrap();
        bench.sessions.pause(&bench.account, &id).await.unwrap();
        GONE.with(|gone| gone.set(true));
        let made = bench.sessions.provision(bench.account.clone(), Some(id.clone()), repo()).await;
        assert_eq!(made.unwrap().branch, "trunk");
        assert_eq!(bench.fake.count(Call::Create), 1);
        // What somebody made of it otherwise is theirs: nothing is cloned over it.
        GONE_PRINTS.with(|prints| prints.set(""));
        let found = bench.sessions.provision(bench.account.clone(), Some(id.clone()), repo()).await;
        GONE_PRINTS.with(|prints| prints.set("nothing\n"));
        GONE.with(|gone| gone.set(false));
        assert_eq!(found.unwrap().branch, "");
    }
}

/// Who stops or deletes it meanwhile is told of by a sentence of its own.
#[tokio::test]
async fn a_clone_that_somebody_ends_is_not_a_clone_that_failed() {
    for bench in Bench::all().await {
        let id = bench.session().await;
        let gate = Arc::new(Notify::new());
        bench.fake.plan(Call::Exec, Fault::Hang(gate.clone()));
        let (sessions, account, of) = (bench.sessions.clone(), bench.account.clone(), id.clone());
        let post = tokio::spawn(async move { sessions.provision(account, Some(of), repo()).await });
        while bench.fake.count(Call::Exec) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bench.fake.delete(&bench.key(&id), false).await.unwrap();
        gate.notify_one();
        let ended = post.await.unwrap();
        assert!(matches!(ended, Err(SessionError::Interrupted)), "{ended:?}");
        assert_eq!(bench.state(&id).await, LifecycleState::Failed);
        bench.provision(&id).await.unwrap();
    }
}

impl Bench {
    /// A session whose clone hangs until the gate opens, and the call that waits
    /// for it.
    async fn hanging(
        &self,
        call: Call,
    ) -> (SessionId, Arc<Notify>, tokio::task::JoinHandle<Result<(), SessionError>>) {
        let (id, gate, before) = (self.session().await, Arc::new(Notify::new()), self.fake.count(call));
        self.fake.plan(call, Fault::Hang(gate.clone()));
        let (sessions, account, of) = (self.sessions.clone(), self.account.clone(), id.clone());
        let post = tokio::spawn(async move { sessions.provision(account, Some(of), repo()).await.map(drop) });
        while self.fake.count(call) == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (id, gate, post)
    }

    /// Lets the reconciler look until `check` holds.
    async fn until(&self, what: &str, check: impl AsyncFn(&Self) -> bool) {
        for _ in 0..2000 {
            if check(self).await {
                return;
            }
            self.sessions.reconcile_once().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not come to pass that {what}");
    }
}

fn to(status: SessionStatus) -> SessionPatch {
    SessionPatch { status: Some(status), ..SessionPatch::default() }
}

/// Nobody waits behind a clone that hangs who wants it gone.
#[tokio::test]
async fn what_is_not_wanted_any_more_is_called_off() {
    for bench in Bench::all().await {
        let soon = Duration::from_secs(20);
        let (id, gate, post) = bench.hanging(Call::Exec).await;
        tokio::time::timeout(soon, bench.sessions.delete(&bench.account, &id)).await.unwrap().unwrap();
        assert!(matches!(post.await.unwrap(), Err(SessionError::CalledOff)));
        assert!(bench.db.session(&id).await.unwrap().is_none() && bench.fake.sandboxes().is_empty());
        drop(gate);

        let (id, gate, post) = bench.hanging(Call::Exec).await;
        let archive = bench.sessions.patch(&bench.account, &id, to(SessionStatus::Archived));
        let row = tokio::time::timeout(soon, archive).await.unwrap().unwrap();
        assert_eq!(row.lifecycle_state, LifecycleState::Archived);
        assert!(matches!(post.await.unwrap(), Err(SessionError::CalledOff)));
        assert!(bench.fake.sandboxes().is_empty());
        let back = bench.sessions.patch(&bench.account, &id, to(SessionStatus::Running)).await.unwrap();
        assert_eq!(back.lifecycle_state, LifecycleState::Provisioning);
        drop(gate);

        let (id, gate, post) = bench.hanging(Call::Exec).await;
        tokio::time::timeout(soon, bench.sessions.stop(&bench.account, &id)).await.unwrap().unwrap();
        assert!(matches!(post.await.unwrap(), Err(SessionError::CalledOff)));
        assert_eq!(bench.state(&id).await, LifecycleState::Provisioning);
        assert!(bench.fake.sandboxes().is_empty());
        bench.provision(&id).await.unwrap();
        drop(gate);

        // Before the clone, too: what is begun then is not begun.
        let (id, gate, post) = bench.hanging(Call::Create).await;
        let (sessions, account, of) = (bench.sessions.clone(), bench.account.clone(), id.clone());
        let stop = tokio::spawn(async move { sessions.stop(&account, &of).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.notify_one();
        assert!(tokio::time::timeout(soon, stop).await.unwrap().unwrap().unwrap());
        assert!(matches!(post.await.unwrap(), Err(SessionError::CalledOff)));
        assert!(bench.fake.sandboxes().iter().all(|(name, _)| !name.contains(id.as_str())));

        // Another server wrote it down.
        let (id, gate, post) = bench.hanging(Call::Exec).await;
        bench.db.mark_session_deleted(&id, bench.clock.now()).await.unwrap();
        let called_off = tokio::time::timeout(soon, post).await.unwrap().unwrap();
        assert!(matches!(called_off, Err(SessionError::CalledOff)), "{called_off:?}");
        drop(gate);
    }
}

/// The word counts, whoever hangs up and whatever dies before the deed.
#[tokio::test]
async fn a_deletion_is_carried_through() {
    for bench in Bench::all().await {
        // A creation cannot be called off: it is waited for, without the caller.
        let (id, gate, post) = bench.hanging(Call::Create).await;
        let hung_up = bench.sessions.delete(&bench.account, &id);
        assert!(tokio::time::timeout(Duration::from_millis(50), hung_up).await.is_err());
        let found = bench.sessions.get(&bench.account, &id).await;
        assert!(matches!(found, Err(SessionError::NotFound)), "{found:?}");
        gate.notify_one();
        assert!(post.await.unwrap().is_err());
        bench.until("it is gone", async |bench| bench.db.session(&id).await.unwrap().is_none()).await;
        assert!(bench.fake.sandboxes().is_empty());
        // A crash between the word and the deed.
        let (gone, away) = (bench.ready().await, bench.ready().await);
        bench.db.mark_session_deleted(&gone, bench.clock.now()).await.unwrap();
        let archived = |row: &mut dormouse_store::SessionRow| {
            row.status = SessionStatus::Archived;
            true
        };
        bench.db.change_session(&away, None, archived).await.unwrap().unwrap();
        let (listed, count) =
            bench.sessions.list(&bench.account, dormouse_store::SessionFilter::All, 10, 0).await.unwrap();
        assert!(listed.len() == 1 && count == 1, "{listed:?} {count}");
        bench
            .until("both are done", async |bench| {
                bench.db.session(&gone).await.unwrap().is_none()
                    && bench.state(&away).await == LifecycleState::Archived
            })
            .await;
        assert!(!bench.is_awake(&away).await);
        assert_eq!(bench.fake.sandboxes().len(), 1);
    }
}

/// Every transition is written down, with why and who.
#[tokio::test]
async fn what_happens_to_a_session_can_be_read() {
    for bench in Bench::all().await {
        let mut heard = bench.sessions.listen();
        let id = bench.ready().await;
        let told = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
        assert_eq!(told.unwrap().unwrap(), id);
        bench.clock.advance(IDLE + Duration::from_secs(1));
        bench.falls_asleep(&id).await;
        bench.fake.plan(Call::Resume, Fault::Error(broken()));
        assert!(bench.provision(&id).await.is_err());
        bench.provision(&id).await.unwrap();
        bench.sessions.patch(&bench.account, &id, to(SessionStatus::Archived)).await.unwrap();
        let events = bench.sessions.events(&bench.account, &id, 0, 100).await.unwrap();
        let told: Vec<_> = events.iter().map(|event| event.cause.reason.as_str()).collect();
        let expected = [
            "provision",
            "clone",
            "ready",
            "idle",
            "asleep",
            "provision",
            "failed",
            "provision",
            "ready",
            "requested",
            "asleep",
            "archived",
        ];
        assert_eq!(told, expected);
        assert!(events.iter().map(|event| event.seq).eq(1..=12));
        // Each begins where the one before ended.
        assert!(events.windows(2).all(|pair| pair[0].after == pair[1].before), "{events:?}");
        assert!(events.windows(2).all(|pair| pair[0].version <= pair[1].version));
        let by = |index: usize| events[index].cause.actor.as_ref() == Some(&bench.account);
        assert!(by(0) && by(2) && !by(3) && !by(4) && by(11));
        assert_eq!(events[2].cause.detail.as_deref(), Some("trunk"));
        assert!(events[6].cause.detail.as_ref().is_some_and(|why| !why.is_empty()));
        let rest = bench.sessions.events(&bench.account, &id, 10, 1).await.unwrap();
        assert_eq!(rest.iter().map(|event| event.seq).collect::<Vec<_>>(), [11]);
        let stranger = AccountId::generate();
        let refused = bench.sessions.events(&stranger, &id, 0, 10).await;
        assert!(matches!(refused, Err(SessionError::Forbidden)), "{refused:?}");
        assert!(!bench.sessions.prune_events(Timestamp(1_000_001)).await.unwrap());
        let left = bench.sessions.events(&bench.account, &id, 0, 100).await.unwrap();
        assert_eq!(left.first().unwrap().seq, 4);
        // Numbers are not given twice, also when all are forgotten.
        bench.sessions.prune_events(Timestamp(i64::MAX)).await.unwrap();
        bench.sessions.patch(&bench.account, &id, to(SessionStatus::Running)).await.unwrap();
        let left = bench.sessions.events(&bench.account, &id, 0, 100).await.unwrap();
        assert_eq!(left.iter().map(|event| event.seq).collect::<Vec<_>>(), [13]);
        bench.sessions.delete(&bench.account, &id).await.unwrap();
        assert!(bench.db.session_events(&id, 0, 100).await.unwrap().is_empty());
    }
}
