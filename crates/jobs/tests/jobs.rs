//! Jobs on both databases: against a model, and with workers.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_jobs::{Backoff, Claim, Clock, Handler, Jobs, Kind, Outcome};
use dormouse_store::{Address, Db, JobRow, JobState, Move, testing::Postgres};
use dormouse_types::{HostId, Timestamp};
use proptest::prelude::*;

const LEASE: i64 = 100;

fn host() -> HostId {
    "host_one".parse().unwrap()
}

#[derive(Debug, Clone)]
enum Act {
    Ask {
        key: u8,
        after: i64,
        exactly: bool,
    },
    Claim,
    /// Of the claims so far, stale ones included, one is used.
    Hold {
        claim: usize,
        phase: bool,
    },
    Complete {
        claim: usize,
    },
    PutOff {
        claim: usize,
        after: i64,
        failed: bool,
    },
    GiveUp {
        claim: usize,
    },
    /// Time passes; whoever does not hold its claim is as good as dead.
    Wait {
        ms: i64,
    },
}

fn acts() -> impl Strategy<Value = Act> {
    let claim = 0..8_usize;
    prop_oneof![
        3 => (0..3_u8, -50..150_i64, any::<bool>())
            .prop_map(|(key, after, exactly)| Act::Ask { key, after, exactly }),
        4 => Just(Act::Claim),
        2 => (claim.clone(), any::<bool>()).prop_map(|(claim, phase)| Act::Hold { claim, phase }),
        2 => claim.clone().prop_map(|claim| Act::Complete { claim }),
        2 => (claim.clone(), 0..150_i64, any::<bool>())
            .prop_map(|(claim, after, failed)| Act::PutOff { claim, after, failed }),
        1 => claim.prop_map(|claim| Act::GiveUp { claim }),
        3 => (0..150_i64).prop_map(|ms| Act::Wait { ms }),
    ]
}

/// A live job, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Live {
    running: bool,
    run_at: i64,
    again_at: Option<i64>,
    lease_ends_at: i64,
    token: i64,
    attempts: i64,
    phase: bool,
}

impl Live {
    fn due(&self, now: i64) -> bool {
        if self.running { self.lease_ends_at <= now } else { self.run_at <= now }
    }

    /// The claim was left; `rests`: where nothing was asked for meanwhile.
    fn leave(&mut self, end: bool, run_at: i64, anew: bool) {
        let again = self.again_at.take();
        self.running = false;
        self.run_at = match again {
            Some(again) if end || again < run_at => again,
            _ => run_at,
        };
        if anew || (again.is_some() && end) {
            (self.attempts, self.phase) = (0, false);
        }
    }
}

async fn play(db: &Db, acts: Vec<Act>) {
    let mut now = 1_000;
    let mut model: BTreeMap<String, Live> = BTreeMap::new();
    let mut claims: Vec<JobRow> = Vec::new();
    // Whoever asks once is served once: asked and not done since.
    for act in acts {
        let at = Timestamp(now);
        match act {
            Act::Ask { key, after, exactly } => {
                let key = key.to_string();
                let how = if exactly { Move::Exactly } else { Move::NotLater };
                db.ask_for_job("kind", &key, "{}", Timestamp(now + after), how, at).await.unwrap();
                let earlier = |was: i64| if exactly { now + after } else { was.min(now + after) };
                match model.get_mut(&key) {
                    None => {
                        let live = Live {
                            running: false,
                            run_at: now + after,
                            again_at: None,
                            lease_ends_at: 0,
                            token: 0,
                            attempts: 0,
                            phase: false,
                        };
                        model.insert(key, live);
                    }
                    Some(live) if live.running => {
                        live.again_at = Some(live.again_at.map_or(now + after, earlier));
                    }
                    Some(live) => live.run_at = earlier(live.run_at),
                }
            }
            Act::Claim => {
                let claimed = db.claim_job("kind", &host(), at, Timestamp(now + LEASE)).await.unwrap();
                match claimed {
                    None => assert!(!model.values().any(|live| live.due(now)), "a job was not found"),
                    Some(row) => {
                        let longest =
                            model.values().filter(|live| live.due(now)).map(|live| live.run_at).min();
                        let live = model.get_mut(&row.key).unwrap();
                        assert!(live.due(now), "a job that somebody works on was handed out");
                        assert_eq!(Some(live.run_at), longest, "not the one that waited for longest");
                        (live.running, live.lease_ends_at) = (true, now + LEASE);
                        (live.token, live.attempts) = (live.token + 1, live.attempts + 1);
                        assert_eq!((row.token, row.attempts), (live.token, live.attempts));
                        assert_eq!(row.phase.is_some(), live.phase);
                        claims.push(row);
                    }
                }
            }
            Act::Wait { ms } => now += ms,
            Act::Hold { claim, .. }
            | Act::Complete { claim }
            | Act::PutOff { claim, .. }
            | Act::GiveUp { claim } => {
                let Some(row) = claims.len().checked_sub(1 + claim).map(|index| claims[index].clone()) else {
                    continue;
                };
                // A job that ended is another one when it comes again.
                let is_newest = |live: &&mut Live| live.running && live.token == row.token;
                let same = match db.live_job("kind", &row.key).await.unwrap() {
                    Some(found) => found.id == row.id,
                    None => false,
                };
                let live = model.get_mut(&row.key).filter(is_newest).filter(|_| same);
                let expected = live.is_some();
                let did = match act {
                    Act::Hold { phase, .. } => {
                        if let Some(live) = live {
                            live.lease_ends_at = now + LEASE;
                            live.phase |= phase;
                        }
                        let phase = phase.then_some("half");
                        db.hold_job(&row, phase, at, Timestamp(now + LEASE)).await.unwrap()
                    }
                    Act::PutOff { after, failed, .. } => {
                        if let Some(live) = live {
                            live.leave(false, now + after, !failed);
                        }
                        let error = failed.then_some("no");
                        db.put_off_job(&row, Timestamp(now + after), error, at).await.unwrap()
                    }
                    Act::Complete { .. } | Act::GiveUp { .. } => {
                        let again = live.as_ref().is_some_and(|live| live.again_at.is_some());
                        if let Some(live) = live {
                            live.leave(true, row.run_at.0, false);
                        }
                        if expected && !again {
                            model.remove(&row.key);
                        }
                        match act {
                            Act::Complete { .. } => db.complete_job(&row, at).await.unwrap(),
                            _ => db.give_up_job(&row, "no", at).await.unwrap(),
                        }
                    }
                    _ => expected,
                };
                assert_eq!(did, expected, "a stale token wrote, or a fresh one did not: {row:?}");
            }
        }
        for key in 0..3_u8 {
            let key = key.to_string();
            let found = db.live_job("kind", &key).await.unwrap().map(|row| Live {
                running: row.state == JobState::Running,
                run_at: row.run_at.0,
                again_at: row.again_at.map(|at| at.0),
                lease_ends_at: row.lease_ends_at.map_or(0, |at| at.0),
                token: row.token,
                attempts: row.attempts,
                phase: row.phase.is_some(),
            });
            let expected = model.get(&key).cloned().map(|mut live| {
                live.lease_ends_at = if live.running { live.lease_ends_at } else { 0 };
                live
            });
            assert_eq!(found, expected, "{key}");
        }
    }
}

fn model_on(cases: u32, address: impl Fn() -> Address) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&prop::collection::vec(acts(), 1..40), |acts| {
            runtime.block_on(async {
                let db = Db::open(&address()).await.unwrap();
                play(&db, acts).await;
                db.close().await;
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn as_the_model_says_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicU32::new(0);
    model_on(96, || {
        let name = format!("{}.db", count.fetch_add(1, Ordering::Relaxed));
        Address::Sqlite(dir.path().join(name))
    });
}

#[test]
fn as_the_model_says_on_postgres() {
    let postgres = Postgres::shared();
    model_on(24, || postgres.database().parse().unwrap());
}

const KIND: Kind = Kind {
    name: std::borrow::Cow::Borrowed("count"),
    lease: Duration::from_millis(600),
    deadline: Duration::from_secs(5),
    attempts: 3,
    backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(40) },
    width: 4,
};

/// Counts what runs, and that no key is worked on twice at once.
#[derive(Default)]
struct Counter {
    done: AtomicU32,
    now: std::sync::Mutex<BTreeMap<String, u32>>,
    overlaps: AtomicU32,
}

struct Work(Arc<Counter>);

#[async_trait]
impl Handler for Work {
    fn kind(&self) -> Kind {
        KIND
    }

    async fn run(&self, claim: &Claim) -> Outcome {
        let key = claim.key().to_owned();
        if *self.0.now.lock().unwrap().entry(key.clone()).and_modify(|n| *n += 1).or_insert(1) > 1 {
            self.0.overlaps.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        *self.0.now.lock().unwrap().get_mut(&key).unwrap() -= 1;
        match claim.payload() {
            "fails" if claim.phase().is_none() => {
                claim.finished("tried").await.unwrap();
                Outcome::Failed("the first time".to_owned())
            }
            "hopeless" => Outcome::Failed("always".to_owned()),
            _ => {
                self.0.done.fetch_add(1, Ordering::Relaxed);
                Outcome::Done
            }
        }
    }
}

#[tokio::test]
async fn two_servers_share_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let addresses =
        [Address::Sqlite(dir.path().join("jobs.db")), Postgres::shared().database().parse().unwrap()];
    for address in addresses {
        let db = Db::open(&address).await.unwrap();
        let counter = Arc::new(Counter::default());
        let servers: Vec<_> = ["host_one", "host_two"]
            .map(|host| Jobs::new(db.clone(), Clock::system(), host.parse().unwrap()))
            .into();
        let workers: Vec<_> = servers
            .iter()
            .map(|jobs| tokio::spawn(jobs.clone().work(Arc::new(Work(counter.clone())))))
            .collect();
        let now = Clock::system().now();
        for key in 0..40 {
            let payload = if key % 4 == 0 { "fails" } else { "{}" };
            servers[key % 2].ask("count", &key.to_string(), payload, now, Move::NotLater).await.unwrap();
        }
        let hopeless = servers[0].ask("count", "hopeless", "hopeless", now, Move::NotLater).await.unwrap();
        let ended = async {
            while counter.done.load(Ordering::Relaxed) < 40
                || db.job(&hopeless).await.unwrap().unwrap().state != JobState::Failed
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
        assert_eq!(counter.done.load(Ordering::Relaxed), 40, "done once each");
        assert_eq!(counter.overlaps.load(Ordering::Relaxed), 0);
        let given_up = db.job(&hopeless).await.unwrap().unwrap();
        assert_eq!((given_up.attempts, given_up.error.as_deref()), (3, Some("always")));
        workers.iter().for_each(tokio::task::JoinHandle::abort);
        // What a server was at when it died is done by the other.
        let late = servers[0].ask("count", "late", "{}", now, Move::NotLater).await.unwrap();
        db.claim_job("count", &host(), now, now.plus(Duration::from_millis(300))).await.unwrap().unwrap();
        let worker = tokio::spawn(servers[1].clone().work(Arc::new(Work(counter.clone()))));
        let ended = async {
            while db.job(&late).await.unwrap().unwrap().state != JobState::Done {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
        worker.abort();
    }
}
