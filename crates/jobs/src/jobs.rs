//! Jobs: work that takes time, one live job for a kind and a key.
//!
//! ```text
//!  ask ──► ready ──claim──► running ──complete──► done
//!            ▲               │ │ ▲ └──give up───► failed
//!            │ put off,      │ └─┘
//!            └ asked again ──┘  the lease ran out: claimed by another
//! ```
//!
//! Asked for again, a job that waits is moved, and one that runs is run again
//! afterwards. Each claim has a token that is greater than the one before: what
//! somebody writes whose lease ran out changes nothing. Leases are compared by
//! the clocks of the servers, which must agree within a few seconds.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_store::{Db, JobRow, Move, Result};
use dormouse_types::{HostId, JobId, Timestamp};
use tokio::sync::Notify;

use crate::{Backoff, Clock, keep_lease};

/// How often a worker looks without being told to: what another server asked
/// for waits no longer.
const PERIOD: Duration = Duration::from_secs(5);

/// A kind of job.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Its name in rows and logs. One that only some servers can do has their
    /// name in it.
    pub name: Cow<'static, str>,
    /// How long a worker that died keeps others from its job.
    pub lease: Duration,
    /// How long an attempt may take.
    pub deadline: Duration,
    /// Attempts that may fail before it is given up.
    pub attempts: u32,
    /// Between two of them.
    pub backoff: Backoff,
    /// How many run at once on one server.
    pub width: usize,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing is left to do.
    Done,
    /// It went well, and there is more to do after this time.
    Again(Duration),
    /// It failed, and may go well another time.
    Failed(String),
    /// It failed for good.
    GaveUp(String),
}

/// Does jobs of one kind.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Which.
    fn kind(&self) -> Kind;

    /// One attempt. It is dropped when the lease is lost or the deadline passes,
    /// and may find what an earlier one did: each step can be done again.
    async fn run(&self, claim: &Claim) -> Outcome;
}

/// A job that is being worked on.
#[derive(Debug)]
pub struct Claim {
    jobs: Jobs,
    row: JobRow,
    lease: Duration,
}

impl Claim {
    /// What it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.row.key
    }

    /// What was said when it was asked for, as JSON.
    #[must_use]
    pub fn payload(&self) -> &str {
        &self.row.payload
    }

    /// The last step that an attempt finished.
    #[must_use]
    pub fn phase(&self) -> Option<&str> {
        self.row.phase.as_deref()
    }

    /// Notes that a step is finished, so that the next attempt begins after it.
    /// `false`: somebody else has the job by now.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn finished(&self, phase: &str) -> Result<bool> {
        let now = self.jobs.clock.now();
        self.jobs.db.hold_job(&self.row, Some(phase), now, now.plus(self.lease)).await
    }
}

/// The jobs of a database, as one server asks for them and works on them.
#[derive(Debug, Clone)]
pub struct Jobs {
    db: Db,
    clock: Clock,
    host: HostId,
    wakes: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
}

impl Jobs {
    /// The jobs in `db`, for the server that is `host`.
    #[must_use]
    pub fn new(db: Db, clock: Clock, host: HostId) -> Self {
        Self { db, clock, host, wakes: Arc::default() }
    }

    /// Asks for a job to be done: at once, if `run_at` is now or past.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn ask(
        &self,
        kind: &str,
        key: &str,
        payload: &str,
        run_at: Timestamp,
        how: Move,
    ) -> Result<JobId> {
        let id = self.db.ask_for_job(kind, key, payload, run_at, how, self.clock.now()).await?;
        self.wake(kind).notify_one();
        Ok(id)
    }

    /// Forgets jobs that ended before `before`, at most `limit`; how many.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn prune(&self, before: Timestamp, limit: i64) -> Result<u64> {
        self.db.prune_jobs(before, limit).await
    }

    fn wake(&self, kind: &str) -> Arc<Notify> {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.entry(kind.to_owned()).or_default().clone()
    }

    /// Works on jobs of one kind, for ever.
    pub async fn work(self, handler: Arc<dyn Handler>) {
        let kind = handler.kind();
        let wake = self.wake(&kind.name);
        let places = Arc::new(tokio::sync::Semaphore::new(kind.width));
        let mut running = tokio::task::JoinSet::new();
        loop {
            // Those that ended are forgotten.
            while running.try_join_next().is_some() {}
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.claim(&kind).await {
                Ok(Some(claim)) => {
                    let (handler, wake) = (handler.clone(), wake.clone());
                    running.spawn(async move {
                        attempt(&*handler, claim).await;
                        drop(place);
                        wake.notify_one();
                    });
                    continue;
                }
                Ok(None) => drop(place),
                Err(error) => {
                    drop(place);
                    tracing::warn!(kind = %kind.name, %error, "claim a job");
                }
            }
            let pause = match self.db.next_job(&kind.name).await {
                Ok(Some(at)) => at.since(self.clock.now()).clamp(Duration::from_millis(10), PERIOD),
                Ok(None) | Err(_) => PERIOD,
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = wake.notified() => {}
            }
        }
    }

    async fn claim(&self, kind: &Kind) -> Result<Option<Claim>> {
        let now = self.clock.now();
        let row = self.db.claim_job(&kind.name, &self.host, now, now.plus(kind.lease)).await?;
        Ok(row.map(|row| Claim { jobs: self.clone(), row, lease: kind.lease }))
    }
}

/// Makes one attempt, and records how it ended.
async fn attempt(handler: &dyn Handler, claim: Claim) {
    let kind = handler.kind();
    let row = &claim.row;
    let (kind_name, key) = (kind.name.as_ref(), &row.key);
    // Somebody died over it again and again.
    let failures = u32::try_from(row.attempts).unwrap_or(u32::MAX);
    let outcome = if failures > kind.attempts {
        Outcome::GaveUp(row.error.clone().unwrap_or_else(|| "nobody who began it ended it".to_owned()))
    } else {
        tokio::select! {
            biased;
            outcome = tokio::time::timeout(kind.deadline, handler.run(&claim)) => outcome.unwrap_or_else(|_| {
                let limit = dormouse_types::format_duration(kind.deadline);
                Outcome::Failed(format!("it took longer than {limit}"))
            }),
            () = hold(&claim) => return,
        }
    };
    let (db, now) = (&claim.jobs.db, claim.jobs.clock.now());
    let left = match outcome {
        Outcome::Done => db.complete_job(row, now).await,
        Outcome::Again(after) => db.put_off_job(row, now.plus(after), None, now).await,
        Outcome::Failed(why) if failures < kind.attempts => {
            tracing::warn!(kind = kind_name, key, failures, why, "a job failed; it is tried again");
            db.put_off_job(
                row,
                now.plus(kind.backoff.after(failures, claim.jobs.clock.chance())),
                Some(&why),
                now,
            )
            .await
        }
        Outcome::Failed(why) | Outcome::GaveUp(why) => {
            tracing::error!(kind = kind_name, key, why, "gave a job up");
            db.give_up_job(row, &why, now).await
        }
    };
    match left {
        Ok(true) => {}
        Ok(false) => tracing::warn!(kind = kind_name, key, "another worker has this job by now"),
        // Its lease ends, and it is done again.
        Err(error) => tracing::warn!(kind = kind_name, key, %error, "record the end of a job"),
    }
}

/// Holds a claim; returns when it is lost.
async fn hold(claim: &Claim) {
    let Claim { jobs, row, lease } = claim;
    let ends_at = row.lease_ends_at.unwrap_or_else(|| jobs.clock.now());
    keep_lease(&jobs.clock, row.id.as_str(), ends_at, *lease, |now, longer| {
        jobs.db.hold_job(row, None, now, longer)
    })
    .await;
}
