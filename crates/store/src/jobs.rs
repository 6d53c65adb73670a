//! Table `jobs`. Which change of state is legal when is drawn in
//! `dormouse-jobs`; here each is one statement that names the state, and the
//! token, that it starts from.

use dormouse_types::{HostId, JobId, Timestamp, words};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::sql::Row;

words! {
    /// State of a job.
    JobState, "job state" {
        /// To be run at `run_at`.
        Ready = "ready",
        /// Somebody holds its lease.
        Running = "running",
        /// It was completed.
        Done = "done",
        /// It was given up.
        Failed = "failed",
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: String,
    /// On what; one job of a kind and key is alive at a time.
    pub key: String,
    /// State.
    pub state: JobState,
    /// What it needs to know, as JSON.
    pub payload: String,
    /// When it is to run.
    pub run_at: Timestamp,
    /// Asked for again while it runs: when.
    pub again_at: Option<Timestamp>,
    /// Until when its lease holds, while it runs.
    pub lease_ends_at: Option<Timestamp>,
    /// The fencing token of its newest claim.
    pub token: i64,
    /// Claims that were neither completed nor put off.
    pub attempts: i64,
    /// The last step that was finished.
    pub phase: Option<String>,
    /// Why the last attempt failed, or why it was given up.
    pub error: Option<String>,
}

const COLUMNS: &str =
    "id, kind, key, state, payload, run_at, again_at, lease_ends_at, token, attempts, phase, error";

fn read(row: &Row) -> Result<JobRow> {
    let row = row.of("jobs", "");
    Ok(JobRow {
        id: row.get("id")?,
        kind: row.get("kind")?,
        key: row.get("key")?,
        state: row.get("state")?,
        payload: row.get("payload")?,
        run_at: row.get("run_at")?,
        again_at: row.get("again_at")?,
        lease_ends_at: row.get("lease_ends_at")?,
        token: row.get("token")?,
        attempts: row.get("attempts")?,
        phase: row.get("phase")?,
        error: row.get("error")?,
    })
}

/// When a job of this kind and key is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Then, or before, if it is due before already.
    NotLater,
    /// Then, whatever was said before.
    Exactly,
}

impl Db {
    /// Asks for a job: a new one, or, where one of the kind and key is alive,
    /// that one. One that waits is moved, with the new payload; one that runs is
    /// run again afterwards.
    pub async fn ask_for_job(
        &self,
        kind: &str,
        key: &str,
        payload: &str,
        run_at: Timestamp,
        how: Move,
        now: Timestamp,
    ) -> Result<JobId> {
        let mut tx = self.write().await?;
        let id = ask(&mut tx, kind, key, payload, run_at, how, now).await?;
        tx.commit("ask for a job").await?;
        Ok(id)
    }

    /// Takes the job of `kind` that has been due for longest: one that is
    /// ready, or one whose lease ran out. Its token is a new one.
    pub async fn claim_job(
        &self,
        kind: &str,
        host: &HostId,
        now: Timestamp,
        lease_ends_at: Timestamp,
    ) -> Result<Option<JobRow>> {
        // Mostly nothing is due, and nobody has to wait for the writer to find
        // that out.
        let due = "kind = $1 AND ((state = 'ready' AND run_at <= $2)
             OR (state = 'running' AND lease_ends_at <= $2))";
        let text = format!("SELECT 1 FROM jobs WHERE {due} LIMIT 1");
        if !self.sql(format!("look for a {kind}"), text).bind(kind.to_owned()).bind(now).exists().await? {
            return Ok(None);
        }
        let mut tx = self.write().await?;
        let text = format!(
            "UPDATE jobs SET state = $3, host_id = $4, lease_ends_at = $5, token = token + 1,
             attempts = attempts + 1, updated_at = $2
             WHERE id = (SELECT id FROM jobs WHERE {due} ORDER BY run_at, id LIMIT 1{})
             RETURNING {COLUMNS}",
            tx.locking_free()
        );
        let claimed = tx
            .sql(format!("claim a {kind}"), text)
            .bind(kind.to_owned())
            .bind(now)
            .bind(JobState::Running)
            .bind(host)
            .bind(lease_ends_at)
            .one(read)
            .await?;
        tx.commit("claim job").await?;
        Ok(claimed)
    }

    /// Holds a claim longer, and notes the step that was finished, if one was.
    /// `false`: the claim is not the newest any more.
    pub async fn hold_job(
        &self,
        job: &JobRow,
        phase: Option<&str>,
        now: Timestamp,
        lease_ends_at: Timestamp,
    ) -> Result<bool> {
        let held = self
            .change(
                format!("hold {}", job.id),
                "UPDATE jobs SET lease_ends_at = $1, phase = COALESCE($2, phase), updated_at = $3
                 WHERE id = $4 AND state = 'running' AND token = $5",
            )
            .bind(lease_ends_at)
            .bind(phase.map(str::to_owned))
            .bind(now)
            .bind(&job.id)
            .bind(job.token)
            .execute()
            .await?;
        Ok(held > 0)
    }

    /// The job is done. Asked for again meanwhile, it waits for that. `false`:
    /// the claim is not the newest any more, and nothing was written.
    pub async fn complete_job(&self, job: &JobRow, now: Timestamp) -> Result<bool> {
        self.leave(job, Left::Done, now).await
    }

    /// The attempt failed, or there is more to do: it runs again at `run_at`.
    /// `error`: why it failed; `None` begins a new count of attempts, and a new
    /// first step.
    pub async fn put_off_job(
        &self,
        job: &JobRow,
        run_at: Timestamp,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<bool> {
        self.leave(job, Left::PutOff { run_at, error }, now).await
    }

    /// The job is given up, for this reason. Asked for again meanwhile, it
    /// begins anew.
    pub async fn give_up_job(&self, job: &JobRow, error: &str, now: Timestamp) -> Result<bool> {
        self.leave(job, Left::Failed(error), now).await
    }

    async fn leave(&self, job: &JobRow, left: Left<'_>, now: Timestamp) -> Result<bool> {
        let (state, run_at, error, anew) = match left {
            Left::Done => (JobState::Done, job.run_at, None, true),
            Left::Failed(error) => (JobState::Failed, job.run_at, Some(error), false),
            Left::PutOff { run_at, error } => (JobState::Ready, run_at, error, error.is_none()),
        };
        let end = matches!(left, Left::Done | Left::Failed(_));
        // What was asked for again is a wait from here on, with nothing of the
        // attempt left but the growing token.
        let again = "again_at IS NOT NULL";
        let text = format!(
            "UPDATE jobs SET
               state = CASE WHEN {again} THEN 'ready' ELSE $1 END,
               run_at = CASE WHEN {again} AND ($2 OR again_at < $3) THEN again_at ELSE $3 END,
               attempts = CASE WHEN {again} AND $2 OR $4 THEN 0 ELSE attempts END,
               phase = CASE WHEN {again} AND $2 OR $4 THEN NULL ELSE phase END,
               error = $5, again_at = NULL, host_id = NULL, lease_ends_at = NULL, updated_at = $6
             WHERE id = $7 AND state = 'running' AND token = $8"
        );
        let done = self
            .change(format!("leave {}", job.id), text)
            .bind(state)
            .bind(end)
            .bind(run_at)
            .bind(anew)
            .bind(error.map(str::to_owned))
            .bind(now)
            .bind(&job.id)
            .bind(job.token)
            .execute()
            .await?;
        Ok(done > 0)
    }

    /// The job with this id.
    pub async fn job(&self, id: &JobId) -> Result<Option<JobRow>> {
        self.sql(format!("read {id}"), format!("SELECT {COLUMNS} FROM jobs WHERE id = $1"))
            .bind(id)
            .one(read)
            .await
    }

    /// The job of this kind and key that is alive.
    pub async fn live_job(&self, kind: &str, key: &str) -> Result<Option<JobRow>> {
        let text = format!(
            "SELECT {COLUMNS} FROM jobs WHERE kind = $1 AND key = $2 AND state IN ('ready', 'running')"
        );
        self.sql(format!("read the {kind} of {key}"), text)
            .bind(kind.to_owned())
            .bind(key.to_owned())
            .one(read)
            .await
    }

    /// When the next job of `kind` is due: waiting, or with a lease that ends.
    pub async fn next_job(&self, kind: &str) -> Result<Option<Timestamp>> {
        let ready = self
            .sql(
                format!("when is the next {kind}"),
                "SELECT run_at FROM jobs WHERE kind = $1 AND state = 'ready' ORDER BY run_at LIMIT 1",
            )
            .bind(kind.to_owned())
            .one(|row| row.of("jobs", "").get("run_at"))
            .await?;
        let running = self
            .sql(
                format!("when does the next lease of a {kind} end"),
                "SELECT lease_ends_at FROM jobs WHERE state = 'running' AND kind = $1
                 ORDER BY lease_ends_at LIMIT 1",
            )
            .bind(kind.to_owned())
            .one(|row| row.of("jobs", "").get("lease_ends_at"))
            .await?;
        Ok([ready, running].into_iter().flatten().min())
    }

    /// Forgets jobs that ended before `before`, oldest first, at most `limit`;
    /// how many those were.
    pub async fn prune_jobs(&self, before: Timestamp, limit: i64) -> Result<u64> {
        let pruned = self
            .change(
                "prune jobs",
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state IN ('done', 'failed')
                   AND updated_at < $1 ORDER BY updated_at LIMIT $2)",
            )
            .bind(before)
            .bind(limit)
            .execute()
            .await?;
        Ok(pruned)
    }
}

enum Left<'a> {
    Done,
    PutOff { run_at: Timestamp, error: Option<&'a str> },
    Failed(&'a str),
}

/// [`Db::ask_for_job`] inside a larger change.
async fn ask(
    tx: &mut Tx,
    kind: &str,
    key: &str,
    payload: &str,
    run_at: Timestamp,
    how: Move,
    now: Timestamp,
) -> Result<JobId> {
    let moved = match how {
        Move::NotLater => "CASE WHEN jobs.run_at < $5 THEN jobs.run_at ELSE $5 END",
        Move::Exactly => "$5",
    };
    let again = match how {
        Move::NotLater => "CASE WHEN jobs.again_at < $5 THEN jobs.again_at ELSE $5 END",
        Move::Exactly => "$5",
    };
    let text = format!(
        "INSERT INTO jobs (id, kind, key, state, payload, run_at, token, attempts, created_at, updated_at)
         VALUES ($1, $2, $3, 'ready', $4, $5, 0, 0, $6, $6)
         ON CONFLICT (kind, key) WHERE state IN ('ready', 'running') DO UPDATE SET
           payload = excluded.payload,
           run_at = CASE WHEN jobs.state = 'ready' THEN {moved} ELSE jobs.run_at END,
           again_at = CASE WHEN jobs.state = 'ready' THEN NULL ELSE {again} END,
           updated_at = excluded.updated_at
         RETURNING id"
    );
    let id = tx
        .sql(format!("ask for a {kind} of {key}"), text)
        .bind(JobId::generate())
        .bind(kind.to_owned())
        .bind(key.to_owned())
        .bind(payload.to_owned())
        .bind(run_at)
        .bind(now)
        .one(|row| row.of("jobs", "").get("id"))
        .await?;
    id.ok_or(crate::StoreError::Corrupt { table: "jobs", column: "id" })
}
