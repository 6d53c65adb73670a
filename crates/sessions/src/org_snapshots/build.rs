//! Making an org snapshot: a sandbox of ours, which no caller can reach, gets the
//! repository and is kept. It is ephemeral, so it goes in any case, also when
//! this server does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dormouse_provider::checkout::Checkout;
use dormouse_provider::{
    CreateSandbox, Expiration, NetworkPolicy, ProviderError, RunRef, SandboxKey, SnapshotRequest, Source,
};
use dormouse_store::{OrgSnapshotKey, OrgSnapshotRow, StoreError};
use dormouse_types::{
    BuildPhase, EventReason, OrgSnapshotId, SandboxName, SessionId, SetUp, SnapshotId, Timestamp,
};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::watch;
use tracing::Instrument as _;

use super::Reader;
use super::log::BuildLog;
use crate::checkout::Progress;
use crate::provision::{about, by_itself};
use crate::{SessionError, Sessions};

/// After a build that failed for a reason of ours, sandboxes start cold for this
/// long before one is tried again.
const PAUSE: Duration = Duration::from_secs(60);

/// Beyond clone and set-up, a builder needs this long at most.
const MARGIN: Duration = Duration::from_secs(60);

/// A build for a request that goes on, or one that failed.
#[derive(Debug, Clone)]
pub(super) enum Build {
    Running(Running),
    Failed(Timestamp),
}

/// A build that goes on, for who waits for it.
#[derive(Debug, Clone)]
pub(super) struct Running {
    built: Shared<BoxFuture<'static, BuildResult>>,
    progress: watch::Receiver<Progress>,
}

pub(super) type BuildResult = std::result::Result<OrgSnapshotRow, BuildError>;

/// Why there is no snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BuildError {
    /// The repository cannot be cloned, in git's words.
    Clone(String),
    /// Something else, which was logged.
    Failed,
}

/// What a build begins with, and whether it does all that it could.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// A request waits for it, and for how far it is: a clone, and no more.
    Fresh(watch::Sender<Progress>),
    /// The snapshot that there is, brought to the tip of this branch.
    Newer(Box<OrgSnapshotRow>, String),
    /// A clone, with the repository's set-up.
    Whole,
}

/// A build that goes on, until it is dropped.
struct GoingOn(Arc<AtomicUsize>);

impl GoingOn {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sessions {
    /// The org snapshot of `key`, built now for a request; whoever else wants it
    /// waits for the same build, which goes on when they are gone. `session` is told
    /// how far it is.
    pub(super) async fn build(
        self: &Arc<Self>,
        key: &OrgSnapshotKey,
        reader: &Reader,
        session: Option<&SessionId>,
    ) -> BuildResult {
        let Some(Running { built, progress }) = self.begin_build(key, reader) else {
            return Err(BuildError::Failed);
        };
        if let Some(session) = session {
            self.tell(session, about(&reader.repo, by_itself(EventReason::Clone))).await;
        }
        self.watched(session, progress, built).await
    }

    /// `None`: one failed just now.
    fn begin_build(self: &Arc<Self>, key: &OrgSnapshotKey, reader: &Reader) -> Option<Running> {
        let org = self.org_snapshots.as_ref()?;
        let mut builds = org.builds.lock().unwrap_or_else(PoisonError::into_inner);
        match builds.get(key) {
            Some(Build::Running(build)) => return Some(build.clone()),
            Some(Build::Failed(at)) if self.now().since(*at) < PAUSE => return None,
            Some(Build::Failed(_)) | None => {}
        }
        builds.retain(|_, build| match build {
            Build::Running(_) => true,
            Build::Failed(at) => self.now().since(*at) < PAUSE,
        });
        let (sessions, key_of_build, reader) = (self.clone(), key.clone(), reader.clone());
        let (told, progress) = watch::channel(None);
        let work = async move {
            let key = key_of_build;
            let built = sessions.first_build(&key, &reader, told).await;
            if let Some(org) = &sessions.org_snapshots {
                let mut builds = org.builds.lock().unwrap_or_else(PoisonError::into_inner);
                match &built {
                    Err(BuildError::Failed) => builds.insert(key, Build::Failed(sessions.now())),
                    _ => builds.remove(&key),
                };
            }
            built
        };
        let work = tokio::spawn(work.in_current_span());
        let built = async move { work.await.unwrap_or(Err(BuildError::Failed)) }.boxed().shared();
        let running = Running { built, progress };
        builds.insert(key.clone(), Build::Running(running.clone()));
        Some(running)
    }

    async fn first_build(
        &self,
        key: &OrgSnapshotKey,
        reader: &Reader,
        progress: watch::Sender<Progress>,
    ) -> BuildResult {
        // Published between the look of whoever asked for it and now.
        if let Ok(Some(row)) = self.db.org_snapshot(key).await {
            return Ok(row);
        }
        let row = self.build_and_publish(key, reader, Plan::Fresh(progress)).await?;
        if row.set_up == SetUp::Pending {
            self.want_build(key, reader).await;
        }
        Ok(row)
    }

    /// One build, written down.
    pub(super) async fn build_and_publish(
        &self,
        key: &OrgSnapshotKey,
        reader: &Reader,
        plan: Plan,
    ) -> BuildResult {
        if !self.swept().await {
            return Err(BuildError::Failed);
        }
        let _going_on = self.org_snapshots.as_ref().map(|org| GoingOn::new(&org.building));
        let mut log = BuildLog::begin(&self.db, &self.clock, key).await;
        let built = match self.build_snapshot(reader, plan, &mut log).await {
            Ok((checkout, set_up, snapshot)) => {
                log.phase(BuildPhase::Publish).await;
                self.publish(key, checkout, set_up, snapshot).await
            }
            Err(error) => Err(error),
        };
        if let (Err(_), Some(org)) = (&built, &self.org_snapshots) {
            org.untidy.store(true, Ordering::SeqCst);
        }
        match &built {
            Ok(row) => {
                log.line(&format!("published {} at {} {}", row.id, row.branch, row.commit_id));
                log.end(BuildPhase::Published).await;
            }
            Err(BuildError::Clone(words)) => {
                log.line(words);
                log.end(BuildPhase::Failed).await;
            }
            Err(BuildError::Failed) => {
                log.line("the server failed; its own log says why");
                log.end(BuildPhase::Failed).await;
            }
        }
        built
    }

    async fn publish(
        &self,
        key: &OrgSnapshotKey,
        checkout: Checkout,
        set_up: SetUp,
        snapshot_id: SnapshotId,
    ) -> BuildResult {
        let now = self.now();
        let row = OrgSnapshotRow {
            id: OrgSnapshotId::generate(),
            key: key.clone(),
            snapshot_id,
            // A checkout without branch and commit is not kept.
            branch: checkout.branch.unwrap_or_default(),
            commit_id: checkout.commit.unwrap_or_default(),
            set_up,
            last_used_at: now,
            retired_at: None,
            created_at: now,
        };
        match self.db.publish_org_snapshot(&row).await {
            Ok(()) => {
                tracing::info!(org_snapshot = %row.id, %key, commit = row.commit_id, %set_up, "published");
                Ok(row)
            }
            Err(error) => {
                self.drop_snapshot(&row.snapshot_id).await;
                match error {
                    // Another server was first.
                    StoreError::Conflict(_) => match self.db.org_snapshot(key).await {
                        Ok(Some(row)) => Ok(row),
                        other => Err(failed(key, "read the org snapshot", &other)),
                    },
                    error => Err(failed(key, "publish", &error)),
                }
            }
        }
    }

    async fn build_snapshot(
        &self,
        reader: &Reader,
        plan: Plan,
        log: &mut BuildLog,
    ) -> std::result::Result<(Checkout, SetUp, SnapshotId), BuildError> {
        let key = SandboxKey { namespace: self.org_namespace(), name: SandboxName::generate() };
        let mut request = CreateSandbox::new(key.clone());
        (request.persistent, request.ephemeral) = (false, true);
        request.timeout = Some(self.longest_build());
        let network = self.builder_policy(&reader.repo, reader.access).await;
        request.network = network.map_err(|error| failed(&reader.repo, "get a token for", &error))?;
        if let Plan::Newer(row, _) = &plan {
            request.source = Some(Source::Snapshot(row.snapshot_id.clone()));
        }
        let made = self.provider.create(request).await;
        let made = made.map_err(|error| failed(&reader.repo, "create a builder", &error.detail()))?;
        let run = RunRef { namespace: key.namespace.clone(), id: made.run.id };
        let built = self.fill_and_keep(&run, reader, plan, log).await;
        if let Err(error) = self.delete_sandbox(&key).await {
            // It ends by itself.
            tracing::warn!(sandbox = %key.name, error = error.detail(), "delete a builder");
        }
        built
    }

    async fn fill_and_keep(
        &self,
        run: &RunRef,
        reader: &Reader,
        plan: Plan,
        log: &mut BuildLog,
    ) -> std::result::Result<(Checkout, SetUp, SnapshotId), BuildError> {
        log.phase(BuildPhase::Clone).await;
        let checkout = match &plan {
            Plan::Fresh(_) | Plan::Whole => {
                let progress = if let Plan::Fresh(progress) = &plan { Some(progress) } else { None };
                match self.clone_repository(run, &reader.repo, None, None, progress).await {
                    Ok(checkout) => Some(checkout),
                    Err(SessionError::Clone { message, .. }) => return Err(BuildError::Clone(message)),
                    Err(error) => return Err(failed(&reader.repo, "clone", &error)),
                }
            }
            Plan::Newer(_, branch) => match self.update_checkout(run, Some(branch), None, None).await {
                Ok(Ok(checkout)) => checkout,
                Ok(Err(words)) => return Err(BuildError::Clone(words)),
                Err(error) => return Err(failed(&reader.repo, "update", &error)),
            },
        };
        let Some(checkout) = checkout.filter(|found| found.branch.is_some() && found.commit.is_some()) else {
            return Err(BuildError::Clone("no branch with a commit is checked out".to_owned()));
        };
        let set_up = match (&plan, checkout.set_up, self.set_up_timeout()) {
            (_, false, _) | (_, _, None) => SetUp::Nothing,
            (Plan::Whole, true, Some(limit)) => {
                log.phase(BuildPhase::SetUp).await;
                // It is the repository's word against our token.
                self.provider
                    .set_network_policy(run, NetworkPolicy::AllowAll)
                    .await
                    .map_err(|error| failed(&reader.repo, "open a builder's network", &error.detail()))?;
                self.run_set_up(run, limit, log)
                    .await
                    .map_err(|error| failed(&reader.repo, "set up", &error))?
            }
            (Plan::Fresh(_) | Plan::Newer(..), true, Some(_)) => SetUp::Pending,
        };
        log.phase(BuildPhase::Snapshot).await;
        // What a set-up left running is not to be kept in the middle of something.
        let snapshot = self.keep(run, matches!(plan, Plan::Fresh(_))).await;
        let snapshot = snapshot.map_err(|error| failed(&reader.repo, "keep a builder", &error.detail()))?;
        Ok((checkout, set_up, snapshot))
    }

    async fn keep(&self, run: &RunRef, live: bool) -> std::result::Result<SnapshotId, ProviderError> {
        // Here it goes with its row. Elsewhere nobody sweeps what a server that died
        // did not publish.
        let unused = self.org_snapshots.as_ref().filter(|_| self.place().is_empty());
        let unused = unused.map(|org| u64::try_from(org.config.unused_for.as_millis()).unwrap_or(u64::MAX));
        let expiration = Some(unused.map_or(Expiration::Never, Expiration::After));
        let mut request = SnapshotRequest { expiration, live };
        let made = match self.provider.snapshot(run, request).await {
            // It makes none of what runs.
            Err(ProviderError::Invalid(_)) if live => {
                request.live = false;
                self.provider.snapshot(run, request).await
            }
            made => made,
        };
        Ok(made?.snapshot.id)
    }

    /// No build takes longer.
    pub(super) fn longest_build(&self) -> Duration {
        self.config.clone_timeout + self.set_up_timeout().unwrap_or_default() + MARGIN
    }

    fn set_up_timeout(&self) -> Option<Duration> {
        self.org_snapshots.as_ref().and_then(|org| org.config.set_up_timeout)
    }
}

fn failed(subject: &dyn std::fmt::Display, what: &str, error: &dyn std::fmt::Debug) -> BuildError {
    tracing::warn!(%subject, ?error, "no org snapshot: {what}");
    BuildError::Failed
}
