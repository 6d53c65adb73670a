//! Org snapshots that are made in the background: with the repository's set-up, or
//! since the tip moved.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_jobs::{Backoff, Claim, Handler, Kind, Outcome};
use dormouse_provider::ProviderError;
use dormouse_store::{Move, OrgSnapshotKey};
use dormouse_types::{BuildPhase, SetUp};
use tracing::Instrument as _;

use super::build::{BuildError, Plan};
use super::{Order, Reader};
use crate::Sessions;
use crate::error::Result;
use crate::remote::RemoteError;

/// Attempts at one build.
const ATTEMPTS: u32 = 4;

/// Between them.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(10), most: Duration::from_secs(600) };

/// After a build that was given up, or failed just now, the next one waits this
/// long, however many ask.
const PAUSE: Duration = Duration::from_secs(600);

/// Builds at once on one server: each is a sandbox that works.
const WIDTH: usize = 2;

/// Does the builds of one place.
pub(super) struct Builder(pub(super) Arc<Sessions>);

impl Sessions {
    /// The kind of job that only servers of this place can do.
    fn build_kind(&self) -> String {
        match self.place() {
            "" => "org_snapshot".to_owned(),
            place => format!("org_snapshot@{place}"),
        }
    }

    /// Has the org snapshot of `key` built in the background; however often it is
    /// asked for meanwhile, once.
    pub(super) async fn ask_for_build(&self, key: &OrgSnapshotKey, order: Order) -> Result<()> {
        let Some(org) = &self.org_snapshots else { return Ok(()) };
        let payload = serde_json::to_string(&order)
            .map_err(|error| ProviderError::internal(format!("write down the build of {key}"), error))?;
        let last = self.db.last_org_build(key).await?;
        let failed = last.filter(|last| last.phase == BuildPhase::Failed && !order.anew);
        let paused = failed.and_then(|last| last.ended_at).map(|ended| ended.plus(PAUSE));
        let run_at = paused.unwrap_or(self.now()).max(self.now());
        // One that is to be built anew is not replaced by one that need not be.
        let anew = if order.anew { " anew" } else { "" };
        let name = format!("{} {}{anew}", key.access, key.repo);
        org.jobs.ask(&self.build_kind(), &name, &payload, run_at, Move::NotLater).await?;
        Ok(())
    }

    /// [`Sessions::ask_for_build`] on the way of a request that has what it needs:
    /// a failure is only logged, and the next one asks again.
    pub(super) async fn want_build(&self, key: &OrgSnapshotKey, reader: &Reader) {
        let order = Order { reader: reader.clone(), anew: false };
        if let Err(error) = self.ask_for_build(key, order).await {
            tracing::warn!(%key, ?error, "ask for an org snapshot");
        }
    }

    /// Has a build done that is due: everything that changes what sandboxes start
    /// from goes through here, or is the first one.
    async fn do_build(self: &Arc<Self>, order: &Order) -> Outcome {
        let reader = &order.reader;
        let Some(org) = &self.org_snapshots else { return Outcome::Done };
        let key = self.org_key(reader);
        let current = match self.db.org_snapshot(&key).await {
            Ok(current) => current,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let authorization = match self.authorization(&reader.repo, reader.access).await {
            Ok(authorization) => authorization,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let tip = match org.tips.ask(&reader.repo, reader.access, authorization.as_deref()).await {
            Ok(tip) => tip,
            // Nobody starts from it: there is nothing to be newer than.
            Err(RemoteError::Unreadable | RemoteError::NoBranch) => return Outcome::Done,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let plan = match current {
            _ if order.anew => Plan::Whole,
            Some(row) if (&row.branch, &row.commit_id) == (&tip.branch, &tip.commit) => match row.set_up {
                SetUp::Pending => Plan::Whole,
                SetUp::Nothing | SetUp::Done | SetUp::Failed => return Outcome::Done,
            },
            // The set-up of a repository begins with what it says now.
            Some(row) if row.set_up == SetUp::Nothing => Plan::Newer(Box::new(row), tip.branch),
            Some(_) | None => Plan::Whole,
        };
        // A lost lease or a deadline drops who waits, not what was begun.
        let (sessions, of, by) = (self.clone(), key.clone(), reader.clone());
        let build = async move { sessions.build_and_publish(&of, &by, plan).await };
        let built = tokio::spawn(build.in_current_span()).await;
        match built.unwrap_or(Err(BuildError::Failed)) {
            Ok(row) if row.set_up == SetUp::Pending => Outcome::Again(Duration::ZERO),
            Ok(_) => Outcome::Done,
            Err(BuildError::Clone(words)) => Outcome::Failed(words),
            Err(BuildError::Failed) => Outcome::Failed("the server failed".to_owned()),
        }
    }
}

#[async_trait]
impl Handler for Builder {
    fn kind(&self) -> Kind {
        let limit = self.0.org_snapshots.as_ref().and_then(|org| org.config.set_up_timeout);
        Kind {
            name: Cow::Owned(self.0.build_kind()),
            lease: Duration::from_secs(30),
            deadline: self.0.config.clone_timeout + limit.unwrap_or_default() + Duration::from_secs(120),
            attempts: ATTEMPTS,
            backoff: BACKOFF,
            width: WIDTH,
        }
    }

    async fn run(&self, claim: &Claim) -> Outcome {
        match serde_json::from_str::<Order>(claim.payload()) {
            Ok(order) => self.0.do_build(&order).await,
            Err(error) => Outcome::GaveUp(format!("what is to be built cannot be read: {error}")),
        }
    }
}
