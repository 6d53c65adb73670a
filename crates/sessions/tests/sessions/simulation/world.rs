//! One history: what happens in it, step by step.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dormouse_jobs::{Clock, Jobs};
use dormouse_provider::fake::Fake;
use dormouse_provider::{ListOf, ProviderError, RunRef, SandboxKey, SandboxProvider as _, SnapshotStatus};
use dormouse_sessions::{
    LifecycleConfig, NewSession, OrgSnapshotConfig, SessionError, SessionPatch, SessionStatus, Sessions,
};
use dormouse_store::{AccountRow, Address, Db};
use dormouse_types::{AccountId, GithubRepo, HostId, Namespace, SandboxName, SessionId, Timestamp};
use futures::FutureExt as _;
use tokio::runtime::Runtime;

use super::hosts::{Forge, Hosts};
use super::schedule::{Paced, Schedule};

pub(super) const IDLE: Duration = Duration::from_secs(60);
pub(super) const LIFETIME: Duration = Duration::from_secs(600);

/// The clocks of servers differ by at most this.
pub(super) const SKEW: Duration = Duration::from_secs(1);

/// Calls that are made at once, at most.
const CALLS: usize = 5;

/// What came of a history.
pub(super) struct History {
    pub(super) wrong: Option<String>,
    pub(super) trace: Vec<String>,
    /// How each call ended, and how the sessions did.
    pub(super) outcome: Vec<String>,
}

/// What callers did to a session, and were told of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Files that somebody put into its sandbox, which nothing excuses the loss of.
    pub(super) files: Vec<String>,
    pub(super) deletion_asked: bool,
    pub(super) deleted: bool,
    /// What its owner said of it last: `true`, archived; `None`: it is not known.
    pub(super) archived: Option<bool>,
    /// How often they said so.
    said: u32,
    /// Calls that may take its sandbox away, by somebody who does not go through
    /// the session.
    pub(super) taken_away: bool,
    /// A server died that may not have told the session of such a call.
    pub(super) untold: bool,
    /// When it was used, as was acknowledged.
    pub(super) used: Vec<Timestamp>,
    /// Somebody asks for something that is not over.
    pub(super) going_on: usize,
}

pub(super) struct Server {
    name: String,
    pub(super) host: HostId,
    pub(super) clock: Clock,
    pub(super) alive: Option<Alive>,
}

pub(super) struct Alive {
    runtime: Runtime,
    pub(super) sessions: Arc<Sessions>,
}

/// A call, until it is answered.
struct Call {
    server: usize,
    over: Arc<Mutex<bool>>,
    session: usize,
    what: &'static str,
}

pub(super) struct World {
    pub(super) schedule: Schedule,
    /// Time as it is for the hosts.
    pub(super) clock: Clock,
    pub(super) fake: Arc<Fake>,
    pub(super) forge: Arc<Mutex<Forge>>,
    pub(super) servers: Vec<Server>,
    pub(super) account: AccountId,
    pub(super) sessions: Vec<SessionId>,
    pub(super) ledgers: Arc<Mutex<Vec<Ledger>>>,
    pub(super) wrong: Arc<Mutex<Option<String>>>,
    pub(super) outcome: Arc<Mutex<Vec<String>>>,
    calls: Vec<Call>,
    org_snapshots: bool,
    /// Tasks of the hosts.
    hosts: Runtime,
    /// The database of the servers, without gates.
    shared: Db,
    /// The same, for who only looks.
    pub(super) db: Db,
    files: u32,
    names: Arc<Mutex<Vec<SessionId>>>,
    _dir: tempfile::TempDir,
}

pub(super) fn repo() -> GithubRepo {
    "https://github.com/acme/widgets".parse().unwrap()
}

fn simulated() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Looks at databases past the gates, on a thread of its own.
fn observer() -> &'static Runtime {
    static OBSERVER: OnceLock<Runtime> = OnceLock::new();
    OBSERVER.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    })
}

/// An empty database, to be copied: a schema takes longer than a history.
fn template() -> &'static PathBuf {
    static TEMPLATE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &TEMPLATE
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("template.db");
            observer()
                .block_on(async { Db::open(&Address::Sqlite(path.clone())).await.unwrap().close().await });
            (dir, path)
        })
        .1
}

impl World {
    pub(super) fn run(seed: u64) -> History {
        let mut world = Self::new(seed);
        let steps = 100 + world.schedule.chance(|chance| chance.below(400));
        let faults = world.schedule.chance(|chance| [0, 0, 3, 8][chance.below(4)]);
        world.schedule.set_faults(faults);
        for _ in 0..steps {
            if world.wrong().is_some() {
                break;
            }
            world.step();
        }
        if world.wrong().is_none() {
            world.come_to_rest();
            super::checks::at_rest(&world);
        }
        if world.wrong().is_none() {
            world.everybody_comes_back();
        }
        let wrong = world.wrong();
        let outcome = world.outcome.lock().unwrap().clone();
        History { wrong, trace: world.schedule.trace(), outcome }
    }

    pub(super) fn fails(&self, why: String) {
        self.wrong.lock().unwrap().get_or_insert(why);
    }

    pub(super) fn wrong(&self) -> Option<String> {
        self.wrong.lock().unwrap().clone()
    }

    fn new(seed: u64) -> Self {
        let schedule = Schedule::new(seed);
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("dormouse.db");
        std::fs::copy(template(), &path).unwrap();
        let open = || observer().block_on(async { Db::open(&Address::Sqlite(path.clone())).await.unwrap() });
        let (shared, db) = (open(), open());
        let clock = Clock::fixed(Timestamp(1_000_000_000));
        let time = clock.clone();
        let account = AccountId::generate();
        let ada =
            AccountRow { id: account.clone(), name: "Ada".into(), email: None, created_at: clock.now() };
        observer().block_on(db.insert_account(&ada)).unwrap();
        let count = 1 + schedule.chance(|chance| chance.below(2));
        let servers = (0..count).map(|n| Server {
            name: format!("server {n}"),
            host: format!("host_{n}").parse().unwrap(),
            clock: Clock::fixed(clock.now().plus(SKEW * u32::try_from(n).unwrap())),
            alive: None,
        });
        let mut world = Self {
            servers: servers.collect(),
            fake: Arc::new(Fake::new(move || time.now())),
            forge: Arc::new(Mutex::new(Forge { commit: 1, up: true, set_up: false })),
            org_snapshots: schedule.chance(|chance| chance.percent(50)),
            schedule,
            clock,
            account,
            sessions: Vec::new(),
            ledgers: Arc::default(),
            wrong: Arc::default(),
            outcome: Arc::default(),
            calls: Vec::new(),
            hosts: simulated(),
            shared,
            db,
            files: 0,
            names: Arc::default(),
            _dir: dir,
        };
        for at in 0..count {
            world.start_server(at);
            world.settle();
        }
        for _ in 0..1 + world.schedule.chance(|chance| chance.below(3)) {
            let row = NewSession::default().row(&world.account, world.clock.now());
            world.see(world.db.insert_session(&row)).unwrap();
            world.names.lock().unwrap().push(row.id.clone());
            world.sessions.push(row.id);
            world.ledgers.lock().unwrap().push(Ledger::default());
        }
        world
    }

    /// Asks the database past the gates.
    pub(super) fn see<T>(&self, look: impl Future<Output = T>) -> T {
        observer().block_on(look)
    }

    pub(super) fn key(&self, session: usize) -> SandboxKey {
        let name = SandboxName::for_session(&self.sessions[session]);
        SandboxKey { namespace: Sessions::namespace(&self.account), name }
    }

    /// Where what org snapshots are made of is.
    pub(super) fn org_namespaces(&self) -> Vec<Namespace> {
        let one = |project: &str| {
            if project.is_empty() {
                Namespace::default_of("org-snapshots")
            } else {
                Namespace::new("org-snapshots", project)
            }
        };
        let places = self.servers.iter().map(|server| one(server.host.as_str()));
        std::iter::once(one("")).chain(places).collect()
    }

    fn start_server(&mut self, at: usize) {
        let server = &self.servers[at];
        self.schedule.note(format!("{} starts", server.name));
        let shared = self.servers.len() > 1;
        let runtime = simulated();
        let pace = Paced { schedule: self.schedule.clone(), server: server.name.clone(), shared };
        let db = self.shared.clone().paced(Arc::new(pace));
        let hosts = Arc::new(Hosts {
            fake: self.fake.clone(),
            schedule: self.schedule.clone(),
            forge: self.forge.clone(),
            runtime: self.hosts.handle().clone(),
            server: server.name.clone(),
            sessions: self.names.clone(),
        });
        let (clock, host) = (server.clock.clone(), server.host.clone());
        self.see(self.db.clear_leases(&host, clock.now())).unwrap();
        let lifecycle = LifecycleConfig {
            idle_timeout: IDLE,
            max_lifetime: LIFETIME,
            clone_timeout: Duration::from_secs(120),
        };
        let sessions =
            Sessions::new(db.clone(), hosts.clone(), clock.clone(), lifecycle, host.clone(), !shared);
        let org_snapshots = OrgSnapshotConfig {
            owners: Vec::new(),
            tip_interval: Duration::from_secs(10),
            // Where several servers build, what one of them did not publish expires.
            unused_for: LIFETIME,
            set_up_timeout: Some(Duration::from_secs(60)),
            history: Duration::from_secs(3600),
        };
        let sessions = Arc::new(if self.org_snapshots {
            let jobs = Jobs::new(db, clock, host);
            sessions.with_org_snapshots(hosts, jobs, org_snapshots)
        } else {
            sessions
        });
        runtime.spawn(sessions.clone().run_lifecycle());
        runtime.spawn(sessions.clone().run_org_snapshots());
        self.servers[at].alive = Some(Alive { runtime, sessions });
    }

    /// A server dies, with all that it was doing.
    fn kill(&mut self, at: usize) {
        self.schedule.note(format!("{} dies", self.servers[at].name));
        self.servers[at].alive = None;
        while self.schedule.open_all_of(&self.servers[at].name) {
            self.settle();
        }
        let mut ledgers = self.ledgers.lock().unwrap();
        // Where no host is its own, nobody looks for what it did not tell any more.
        if self.servers.len() > 1 {
            ledgers.iter_mut().for_each(|ledger| ledger.untold |= ledger.taken_away);
        }
        self.calls.retain(|call| {
            let lost = call.server == at && !*call.over.lock().unwrap();
            if lost {
                let ledger = &mut ledgers[call.session];
                ledger.going_on -= 1;
                self.outcome.lock().unwrap().push(format!("{} lost", call.what));
            }
            !lost
        });
    }

    fn runtimes(&self) -> impl Iterator<Item = &Runtime> {
        let alive = self.servers.iter().filter_map(|server| server.alive.as_ref());
        std::iter::once(&self.hosts).chain(alive.map(|alive| &alive.runtime))
    }

    /// Lets everybody go on until they wait for a gate, or for time.
    pub(super) fn settle(&self) {
        let go_on = || {
            for runtime in self.runtimes() {
                runtime.block_on(async {
                    for _ in 0..4 {
                        tokio::task::yield_now().await;
                    }
                });
            }
        };
        // What the database does is over before anything else happens.
        loop {
            go_on();
            if !self.schedule.is_busy() {
                break;
            }
            std::thread::yield_now();
        }
        go_on();
        go_on();
    }

    pub(super) fn pass(&self, time: Duration) {
        while time >= Duration::from_secs(5) && self.schedule.deliver() {
            self.settle();
        }
        self.schedule.note(format!("{time:?} pass"));
        self.clock.advance(time);
        for server in &self.servers {
            server.clock.advance(time);
        }
        for runtime in self.runtimes() {
            runtime.block_on(tokio::time::advance(time));
        }
        self.settle();
    }

    fn step(&mut self) {
        let (what, which) = self.schedule.chance(|chance| (chance.below(100), chance.next()));
        let which = usize::try_from(which % 1_000_000).unwrap();
        self.calls.retain(|call| !*call.over.lock().unwrap());
        // Each step has a time of its own.
        for clock in self.servers.iter().map(|server| &server.clock).chain([&self.clock]) {
            clock.advance(Duration::from_millis(1));
        }
        match what {
            0..=79 if self.schedule.open_one() => {}
            0..=79 => self.call(which),
            80..=88 if self.calls.len() < CALLS => self.call(which),
            89..=95 => {
                let times = [10, 10, 100, 100, 1_000, 1_000, 5_000, 5_000, 20_000, 61_000, 61_000, 650_000];
                self.pass(Duration::from_millis(times[which % times.len()]));
            }
            96 if which.is_multiple_of(2) => {
                let at = which % self.servers.len();
                if self.servers[at].alive.is_some() {
                    self.kill(at);
                }
                if which.is_multiple_of(3) {
                    self.pass(Duration::from_secs(20));
                }
            }
            97 => self.forge.lock().unwrap().commit += 1,
            98 => {
                let mut forge = self.forge.lock().unwrap();
                forge.up = !forge.up || which.is_multiple_of(2);
            }
            99 => self.forge.lock().unwrap().set_up = which.is_multiple_of(2),
            _ => {}
        }
        self.settle();
        for at in 0..self.servers.len() {
            if self.servers[at].alive.is_none() && self.schedule.chance(|chance| chance.percent(20)) {
                self.start_server(at);
                self.settle();
            }
        }
        super::checks::always(self);
    }

    /// Somebody asks for something.
    fn call(&mut self, which: usize) {
        let alive: Vec<usize> =
            (0..self.servers.len()).filter(|at| self.servers[*at].alive.is_some()).collect();
        if alive.is_empty() {
            return;
        }
        let server = alive[which % alive.len()];
        let session = (which / 7) % self.sessions.len();
        match (which / 100) % 40 {
            0..=13 => self.post(server, session),
            14..=17 => self.activity(server, session),
            18 => self.archive(server, session, true),
            19 | 20 => self.archive(server, session, false),
            21 => self.delete(server, session),
            22..=24 => self.simple(server, session, "stop", |sessions, account, id| async move {
                sessions.stop(&account, &id).await.map(drop)
            }),
            25 | 26 => self.simple(server, session, "pause", |sessions, account, id| async move {
                sessions.pause(&account, &id).await.map(drop)
            }),
            27 | 28 => self.simple(server, session, "extend", |sessions, account, id| async move {
                sessions.extend(&account, &id).await.map(drop)
            }),
            29 | 30 => self.simple(server, session, "probe", |sessions, account, id| async move {
                sessions.probe(&account, &id).await.map(drop)
            }),
            31..=33 => self.simple(server, session, "wake up", |sessions, account, id| async move {
                sessions.wake_up(&account, &id).await.map(drop)
            }),
            34 => self.take_away(server, session),
            35 => {
                let key = self.key(session);
                self.simple(server, session, "wake outside", |sessions, _, _| async move {
                    sessions.wake_outside(&key).await.map(drop)
                });
            }
            _ => {
                let key = self.key(session);
                self.simple(
                    server,
                    session,
                    "use",
                    |sessions, _, _| async move { sessions.note_use(&key).await },
                );
            }
        }
    }

    /// Makes a call on a server; what comes of it is dealt with in one step.
    fn begin<T: Send + 'static>(
        &mut self,
        server: usize,
        session: usize,
        what: &'static str,
        work: impl Future<Output = Result<T, SessionError>> + Send + 'static,
        then: impl FnOnce(Result<T, SessionError>) + Send + 'static,
    ) {
        self.schedule.note(format!("{what} session {session} on server {server}"));
        let over = Arc::new(Mutex::new(false));
        self.ledgers.lock().unwrap()[session].going_on += 1;
        self.calls.push(Call { server, over: over.clone(), session, what });
        let (ledgers, outcome, schedule) =
            (self.ledgers.clone(), self.outcome.clone(), self.schedule.clone());
        let alive = self.servers[server].alive.as_ref().unwrap();
        alive.runtime.spawn(async move {
            let done = work.await;
            let said = match &done {
                Ok(_) => "ok".to_owned(),
                Err(SessionError::Provider(error)) => format!("{:?}", std::mem::discriminant(error)),
                Err(error) => error.to_string(),
            };
            schedule.note(format!("{what} session {session}: {said}"));
            outcome.lock().unwrap().push(format!("{what} {session}: {said}"));
            then(done);
            ledgers.lock().unwrap()[session].going_on -= 1;
            *over.lock().unwrap() = true;
        });
    }

    fn simple<F: Future<Output = Result<(), SessionError>> + Send + 'static>(
        &mut self,
        server: usize,
        session: usize,
        what: &'static str,
        call: impl FnOnce(Arc<Sessions>, AccountId, SessionId) -> F,
    ) {
        let sessions = self.servers[server].alive.as_ref().unwrap().sessions.clone();
        let work = call(sessions, self.account.clone(), self.sessions[session].clone());
        self.begin(server, session, what, work, |_| {});
    }

    pub(super) fn post(&mut self, server: usize, session: usize) {
        let sessions = self.servers[server].alive.as_ref().unwrap().sessions.clone();
        let (account, id, key) = (self.account.clone(), self.sessions[session].clone(), self.key(session));
        self.files += 1;
        let file = format!("/home/ubuntu/file-{}", self.files);
        let (fake, ledgers, wrong) = (self.fake.clone(), self.ledgers.clone(), self.wrong.clone());
        let work = async move { sessions.provision(account, Some(id), repo()).await };
        self.begin(server, session, "post", work, move |done| {
            let Ok(ready) = done else { return };
            let mut ledgers = ledgers.lock().unwrap();
            let ledger = &mut ledgers[session];
            let found = super::checks::files_of(&fake, &key, &ledger.files);
            let excused = ledger.deletion_asked || ledger.taken_away;
            let complain = |why: String| {
                wrong.lock().unwrap().get_or_insert(why);
            };
            match found {
                // Somebody else's call ended it in the same moment.
                None if excused || ledger.going_on > 1 || super::checks::lived_out(&fake, &key) => {}
                None => complain(format!("session {session} is ready, and has no sandbox that runs")),
                Some((_, lost)) if !lost.is_empty() && !excused => {
                    complain(format!("session {session} lost {lost:?}"));
                }
                Some((run, _)) => {
                    // What was taken away is gone, and this is another one.
                    if ledger.taken_away && ledger.going_on == 1 {
                        ledger.taken_away = false;
                        ledger.files.clear();
                    }
                    let excused = ledger.deletion_asked || ledger.taken_away;
                    if !excused && ready.branch != "trunk" {
                        complain(format!("session {session} is ready on the branch {:?}", ready.branch));
                    }
                    if fake.put_file(&run, &file, b"work") && !excused {
                        ledger.files.push(file);
                    }
                }
            }
            ledger.used.push(ready.ready_at);
        });
    }

    fn activity(&mut self, server: usize, session: usize) {
        let sessions = self.servers[server].alive.as_ref().unwrap().sessions.clone();
        let (account, id) = (self.account.clone(), self.sessions[session].clone());
        let (ledgers, at) = (self.ledgers.clone(), self.servers[server].clock.now());
        let work = async move { sessions.activity(&account, &id).await };
        self.begin(server, session, "activity", work, move |done| {
            if matches!(done, Ok(true)) {
                ledgers.lock().unwrap()[session].used.push(at);
            }
        });
    }

    fn archive(&mut self, server: usize, session: usize, archive: bool) {
        let sessions = self.servers[server].alive.as_ref().unwrap().sessions.clone();
        let (account, id) = (self.account.clone(), self.sessions[session].clone());
        let status = if archive { SessionStatus::Archived } else { SessionStatus::Running };
        let patch = SessionPatch { status: Some(status), ..SessionPatch::default() };
        let (alone, said) = {
            let ledger = &mut self.ledgers.lock().unwrap()[session];
            (ledger.archived, ledger.said) = (None, ledger.said + 1);
            (ledger.going_on == 0, ledger.said)
        };
        let ledgers = self.ledgers.clone();
        let work = async move { sessions.patch(&account, &id, patch).await };
        let what = if archive { "archive" } else { "unarchive" };
        self.begin(server, session, what, work, move |done| {
            let ledger = &mut ledgers.lock().unwrap()[session];
            // Of two that were asked for at once nobody knows which was last.
            if done.is_ok() && alone && ledger.said == said {
                ledger.archived = Some(archive);
            }
        });
    }

    fn delete(&mut self, server: usize, session: usize) {
        let sessions = self.servers[server].alive.as_ref().unwrap().sessions.clone();
        let (account, id) = (self.account.clone(), self.sessions[session].clone());
        self.ledgers.lock().unwrap()[session].deletion_asked = true;
        let ledgers = self.ledgers.clone();
        let work = async move { sessions.delete(&account, &id).await };
        self.begin(server, session, "delete", work, move |done| {
            if matches!(done, Ok(()) | Err(SessionError::NotFound)) {
                ledgers.lock().unwrap()[session].deleted = true;
            }
        });
    }

    /// Somebody deletes the sandbox itself, as the provider API does.
    fn take_away(&mut self, server: usize, session: usize) {
        let sessions = self.servers[server].alive.as_ref().unwrap().sessions.clone();
        let (fake, key, schedule) = (self.fake.clone(), self.key(session), self.schedule.clone());
        self.ledgers.lock().unwrap()[session].taken_away = true;
        let ledgers = self.ledgers.clone();
        let work = async move {
            schedule.gate("take away".to_owned()).await;
            match fake.delete(&key, false).await {
                Ok(_) => sessions.note_gone(&key).await,
                Err(ProviderError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        self.begin(server, session, "take away", work, move |done| {
            let ledger = &mut ledgers.lock().unwrap()[session];
            ledger.files.clear();
            // The provider did not say whether it is gone.
            ledger.untold |= done.is_err();
        });
    }

    /// Nothing goes wrong any more, and time passes until nobody has anything to
    /// do.
    fn come_to_rest(&mut self) {
        self.schedule.note("to rest".to_owned());
        self.schedule.set_faults(0);
        self.forge.lock().unwrap().up = true;
        for at in 0..self.servers.len() {
            if self.servers[at].alive.is_none() {
                self.start_server(at);
                self.settle();
            }
        }
        // Whoever waits for a lock of a server that died, or for the next round.
        for _ in 0..120 {
            self.drain();
            self.calls.retain(|call| !*call.over.lock().unwrap());
            if self.calls.is_empty() {
                break;
            }
            self.pass(Duration::from_secs(2));
        }
        if let Some(call) = self.calls.first() {
            self.fails(format!("{} of session {} never ends", call.what, call.session));
            return;
        }
        let mut left = LIFETIME + Duration::from_secs(200);
        let early = left - IDLE * 3;
        while !left.is_zero() {
            if left <= early && left + Duration::from_secs(40) > early {
                super::checks::asleep(self);
            }
            let time = left.min(Duration::from_secs(40));
            self.pass(time);
            self.drain();
            left -= time;
        }
    }

    /// Opens gates until nobody waits at one.
    pub(super) fn drain(&self) {
        for _ in 0..20_000 {
            for clock in self.servers.iter().map(|server| &server.clock).chain([&self.clock]) {
                clock.advance(Duration::from_millis(1));
            }
            if !self.schedule.open_one() {
                return;
            }
            self.settle();
        }
        self.fails("it does not come to rest".to_owned());
    }

    /// The next request is served, with everything that was there.
    fn everybody_comes_back(&mut self) {
        self.schedule.note("back".to_owned());
        for session in 0..self.sessions.len() {
            let row = self.see(self.db.session(&self.sessions[session])).unwrap();
            let Some(row) = row.filter(|row| row.status != SessionStatus::Archived) else { continue };
            if row.deleted_at.is_some() {
                continue;
            }
            let before = self.outcome.lock().unwrap().len();
            self.post(0, session);
            self.settle();
            for _ in 0..20 {
                self.drain();
                if self.outcome.lock().unwrap().len() > before {
                    break;
                }
                self.pass(Duration::from_secs(2));
            }
            let outcome = self.outcome.lock().unwrap();
            match outcome.get(before) {
                Some(said) if said.ends_with(": ok") => {}
                said => self.fails(format!("the next request of session {session}: {said:?}")),
            }
        }
    }
}

/// What of an org snapshot is there.
pub(super) fn kept(world: &World) -> Vec<dormouse_types::SnapshotId> {
    let mut all = Vec::new();
    for namespace in world.org_namespaces() {
        let list = ListOf::default();
        let (some, _) = world.fake.snapshots(&namespace, list).now_or_never().unwrap().unwrap();
        all.extend(some.into_iter().filter(|one| one.status == SnapshotStatus::Created).map(|one| one.id));
    }
    all
}

pub(super) fn states(world: &World) -> BTreeMap<String, dormouse_provider::RunStatus> {
    world.fake.sandboxes().into_iter().collect()
}

pub(super) fn run_of(fake: &Fake, key: &SandboxKey) -> Option<RunRef> {
    let found = fake.get(key).now_or_never()?.ok()?;
    let running = found.run.status == dormouse_provider::RunStatus::Running;
    running.then(|| RunRef { namespace: key.namespace.clone(), id: found.run.id })
}
