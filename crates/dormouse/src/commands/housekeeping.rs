//! What a server does for the records without being asked.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_control::Control;
use dormouse_jobs::{Backoff, Claim, Clock, Handler, Jobs, Kind, Outcome};
use dormouse_sessions::Sessions;
use dormouse_store::Move;
use dormouse_webhooks::Webhooks;

/// Between two looks at what expires.
const EXPIRY: Duration = Duration::from_secs(10);

/// Between two rounds of pruning.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Between two parts of one round: others write in the meantime.
const PRUNE_PAUSE: Duration = Duration::from_millis(100);

/// Deletes snapshots whose time is over, for ever.
pub(crate) async fn expire(control: Control) {
    dormouse_jobs::reconcile(EXPIRY, Arc::default(), || async {
        if let Err(error) = control.expire_snapshots().await {
            tracing::warn!(error = error.detail(), "expire snapshots");
        }
    })
    .await;
}

/// Forgets history, for ever: one job for all servers of a database.
pub(crate) async fn prune(jobs: Jobs, prune: Prune) {
    let asked = jobs.ask(Prune::NAME, "all", "{}", prune.clock.now(), Move::NotLater).await;
    if let Err(error) = asked {
        tracing::warn!(%error, "ask for history to be pruned");
    }
    jobs.work(Arc::new(prune)).await;
}

/// For how long a request is recognized when it is sent again.
const REPEATED: Duration = Duration::from_secs(24 * 3600);

/// Jobs that are forgotten at once.
const JOBS: i64 = 1000;

/// What forgets history.
pub(crate) struct Prune {
    /// Of sandboxes, where they run here.
    pub(crate) control: Option<Control>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) webhooks: Webhooks,
    /// How long what happened to sessions is known.
    pub(crate) history: Duration,
    pub(crate) clock: Clock,
    pub(crate) jobs: Jobs,
}

impl Prune {
    const NAME: &str = "prune_history";
}

#[async_trait]
impl Handler for Prune {
    fn kind(&self) -> Kind {
        Kind {
            name: Self::NAME.into(),
            lease: Duration::from_secs(30),
            deadline: Duration::from_secs(600),
            // There is always another hour.
            attempts: u32::MAX,
            backoff: Backoff { first: Duration::from_secs(10), most: PRUNE_EVERY },
            width: 1,
        }
    }

    async fn run(&self, _: &Claim) -> Outcome {
        let sandboxes = async {
            match &self.control {
                Some(control) => control.prune_history().await.map_err(|error| error.detail()),
                None => Ok(false),
            }
        };
        let before = self.clock.now().minus(self.history);
        let events = async {
            let day_before = self.clock.now().minus(REPEATED);
            let requests = self.sessions.prune_requests(day_before).await?;
            let deliveries = self.webhooks.prune(before).await?;
            Ok(self.sessions.prune_events(before).await? || requests || deliveries)
        };
        let events = events.await.map_err(|error: dormouse_sessions::SessionError| error.to_string());
        let jobs = self.jobs.prune(before, JOBS).await.map_err(|error| error.to_string());
        match (sandboxes.await, events, jobs) {
            (Ok(sandboxes), Ok(events), Ok(jobs)) => {
                let more = sandboxes || events || i64::try_from(jobs).is_ok_and(|jobs| jobs == JOBS);
                Outcome::Again(if more { PRUNE_PAUSE } else { PRUNE_EVERY })
            }
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => Outcome::Failed(error),
        }
    }
}
