//! Org snapshots: a repository is cloned once, into a sandbox of our own that
//! nobody else can reach, and a snapshot of that is what the sandboxes of its
//! sessions start from.
//!
//! ```text
//!  first request ──► build: create, clone, snapshot ──► published ──► retired ──► gone
//!  meanwhile others wait for that build                    │   ▲        ▲
//!  later requests ───────── start from it ◄────────────────┘   └ newer ─┘
//! ```
//!
//! It is for those who may read the repository: the key has how it was read, and
//! a start from it needs the remote to tell, in the same way and just now, where
//! its default branch is. Where that or anything else does not work out the
//! sandbox starts cold, with a clone of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_provider::checkout::{Checkout, Identity};
use dormouse_provider::{
    CreateSandbox, Expiration, ProviderError, RunRef, SandboxKey, SandboxView, SnapshotRequest, Source,
};
use dormouse_store::{OrgSnapshotKey, OrgSnapshotRow, StoreError};
use dormouse_types::{
    GithubRepo, Namespace, OrgSnapshotId, RepoAccess, SandboxName, SetUp, SnapshotId, Timestamp,
};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tracing::Instrument as _;

use crate::error::Result;
use crate::remote::{RemoteError, Tip, Tips};
use crate::{Remote, SessionError, Sessions};

/// Whose they are. No account and no organization has such an id.
const OWNER: &str = "org-snapshots";

/// After a build that failed for a reason of ours, sandboxes start cold for this
/// long before one is tried again.
const PAUSE: Duration = Duration::from_secs(60);

/// Beyond the clone, a builder needs this long at most.
const BUILD_MARGIN: Duration = Duration::from_secs(60);

/// When a sandbox last started from one is noted once in this time.
const USE_STEP: Duration = Duration::from_secs(3600);

/// A retired one stays this long for sandboxes that are about to start from it.
const GRACE: Duration = Duration::from_secs(60);

/// How often retired ones are looked for.
const PERIOD: Duration = Duration::from_secs(30);

/// Retired ones that one round removes.
const ROUND: i64 = 64;

/// Options of org snapshots.
#[derive(Debug, Clone)]
pub struct OrgSnapshotConfig {
    /// Owners whose repositories get one, in lower case; empty: all.
    pub owners: Vec<String>,
    /// A remote is asked for its tip once in this time.
    pub tip_interval: Duration,
    /// One from which nothing started for this long goes.
    pub unused_for: Duration,
}

/// What is known of org snapshots beside their rows.
#[derive(Debug)]
pub(crate) struct OrgSnapshots {
    config: OrgSnapshotConfig,
    tips: Tips,
    builds: Mutex<HashMap<OrgSnapshotKey, Build>>,
}

/// A build that goes on, or one that failed.
#[derive(Debug, Clone)]
enum Build {
    Running(Shared<BoxFuture<'static, BuildResult>>),
    Failed(Timestamp),
}

type BuildResult = std::result::Result<OrgSnapshotRow, BuildError>;

/// Why there is no snapshot.
#[derive(Debug, Clone)]
enum BuildError {
    /// The repository cannot be cloned, in git's words.
    Clone(String),
    /// Something else, which was logged.
    Failed,
}

/// Who reads a repository.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub(crate) repo: GithubRepo,
    pub(crate) access: RepoAccess,
}

/// A sandbox that started from an org snapshot.
pub(crate) struct Warm {
    pub(crate) made: SandboxView,
    pub(crate) checkout: Checkout,
}

impl OrgSnapshots {
    fn new(remote: Arc<dyn Remote>, clock: dormouse_jobs::Clock, config: OrgSnapshotConfig) -> Self {
        let tips = Tips::new(remote, clock, config.tip_interval);
        Self { config, tips, builds: Mutex::default() }
    }

    fn covers(&self, repo: &GithubRepo) -> bool {
        let owners = &self.config.owners;
        owners.is_empty() || owners.iter().any(|owner| owner.eq_ignore_ascii_case(repo.owner()))
    }
}

impl Sessions {
    /// With snapshots of repositories, from which sandboxes start.
    #[must_use]
    pub fn with_org_snapshots(self, remote: Arc<dyn Remote>, config: OrgSnapshotConfig) -> Self {
        let org_snapshots = Some(OrgSnapshots::new(remote, self.clock.clone(), config));
        Self { org_snapshots, ..self }
    }

    fn org_namespace() -> Namespace {
        Namespace::default_of(OWNER)
    }

    fn org_key(&self, reader: &Reader) -> OrgSnapshotKey {
        let place = self.host.as_ref().map_or("", |host| host.as_str());
        OrgSnapshotKey::new(&reader.repo, reader.access, place)
    }

    /// Starts a sandbox from the org snapshot of its repository, which is made if
    /// there is none. `None`: it has to start cold; nothing is left then.
    pub(crate) async fn start_warm(
        self: &Arc<Self>,
        request: &CreateSandbox,
        reader: &Reader,
        identity: &Identity,
    ) -> Result<Option<Warm>> {
        let Some(org) = self.org_snapshots.as_ref().filter(|org| org.covers(&reader.repo)) else {
            return Ok(None);
        };
        let tip = match org
            .tips
            .ask(&reader.repo, reader.access, self.authorization(reader.access).as_deref())
            .await
        {
            Ok(tip) => tip,
            // The clone says it in git's words, or goes well.
            Err(RemoteError::Unreadable | RemoteError::NoBranch) => return Ok(None),
            Err(error @ RemoteError::Silent(_)) => {
                tracing::warn!(repo = %reader.repo, %error, "ask for the tip");
                return Ok(None);
            }
        };
        let key = self.org_key(reader);
        let row = match self.db.org_snapshot(&key).await? {
            Some(row) => row,
            None => match self.build(&key, reader).await {
                Ok(row) => row,
                Err(BuildError::Clone(message)) => {
                    return Err(SessionError::Clone { repo: reader.repo.clone(), message });
                }
                Err(BuildError::Failed) => return Ok(None),
            },
        };
        let source = Source::SnapshotOf(Self::org_namespace(), row.snapshot_id.clone());
        let made = match self.provider.create(CreateSandbox { source: Some(source), ..request.clone() }).await
        {
            Ok(made) => made,
            Err(ProviderError::SnapshotGone(_) | ProviderError::NotFound(_)) => {
                tracing::warn!(org_snapshot = %row.id, repo = %reader.repo, "it is gone");
                self.db.retire_org_snapshot(&row.id, self.now()).await?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let run = RunRef { namespace: request.key.namespace.clone(), id: made.run.id.clone() };
        let moved = (&row.branch, &row.commit_id) != (&tip.branch, &tip.commit);
        let branch = moved.then_some(tip.branch.as_str());
        match self.update_checkout(&run, branch, identity).await {
            Ok(Ok(Some(checkout))) if checkout.commit.is_some() => {
                self.note_use_of(&row).await;
                if moved {
                    self.replace(key, reader.clone(), &row, &tip);
                }
                Ok(Some(Warm { made, checkout }))
            }
            other => {
                tracing::warn!(org_snapshot = %row.id, repo = %reader.repo, ?other, "its checkout does not work");
                self.delete_sandbox(&request.key).await?;
                self.db.retire_org_snapshot(&row.id, self.now()).await?;
                Ok(None)
            }
        }
    }

    async fn note_use_of(&self, row: &OrgSnapshotRow) {
        let now = self.now();
        if now.since(row.last_used_at) < USE_STEP {
            return;
        }
        if let Err(error) = self.db.use_org_snapshot(&row.id, now).await {
            tracing::warn!(org_snapshot = %row.id, %error, "note its use");
        }
    }

    /// The org snapshot of `key`, built now; whoever else wants it waits for the
    /// same build, which goes on when they are gone.
    async fn build(self: &Arc<Self>, key: &OrgSnapshotKey, reader: &Reader) -> BuildResult {
        match self.begin_build(key, reader, false) {
            Some(build) => build.await,
            None => Err(BuildError::Failed),
        }
    }

    /// Builds a newer one in the background.
    fn replace(self: &Arc<Self>, key: OrgSnapshotKey, reader: Reader, row: &OrgSnapshotRow, tip: &Tip) {
        tracing::info!(org_snapshot = %row.id, repo = %reader.repo, tip = tip.commit, "it is behind; rebuilding");
        drop(self.begin_build(&key, &reader, true));
    }

    /// `again`: also where one is published. `None`: one failed just now.
    fn begin_build(
        self: &Arc<Self>,
        key: &OrgSnapshotKey,
        reader: &Reader,
        again: bool,
    ) -> Option<Shared<BoxFuture<'static, BuildResult>>> {
        let org = self.org_snapshots.as_ref()?;
        let mut builds = org.builds.lock().unwrap_or_else(PoisonError::into_inner);
        match builds.get(key) {
            Some(Build::Running(build)) => return Some(build.clone()),
            Some(Build::Failed(at)) if self.now().since(*at) < PAUSE => return None,
            Some(Build::Failed(_)) | None => {}
        }
        let (sessions, key_of_build, reader) = (self.clone(), key.clone(), reader.clone());
        let work = async move {
            let key = key_of_build;
            let built = sessions.build_and_publish(&key, &reader, again).await;
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
        let build = async move { work.await.unwrap_or(Err(BuildError::Failed)) }.boxed().shared();
        builds.insert(key.clone(), Build::Running(build.clone()));
        Some(build)
    }

    async fn build_and_publish(&self, key: &OrgSnapshotKey, reader: &Reader, again: bool) -> BuildResult {
        // Published between the look of whoever asked for it and now.
        if !again && let Ok(Some(row)) = self.db.org_snapshot(key).await {
            return Ok(row);
        }
        let (checkout, snapshot) = self.build_snapshot(reader).await?;
        let now = self.now();
        let row = OrgSnapshotRow {
            id: OrgSnapshotId::generate(),
            key: key.clone(),
            snapshot_id: snapshot,
            // A checkout that has no branch or commit makes none.
            branch: checkout.branch.unwrap_or_default(),
            commit_id: checkout.commit.unwrap_or_default(),
            set_up: if checkout.set_up { SetUp::Pending } else { SetUp::Nothing },
            last_used_at: now,
            retired_at: None,
            created_at: now,
        };
        match self.db.publish_org_snapshot(&row).await {
            Ok(()) => {
                tracing::info!(org_snapshot = %row.id, %key, commit = row.commit_id, "published");
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

    /// A snapshot of a sandbox of ours with a fresh clone in it. The sandbox goes
    /// in any case, also when this server does: it is ephemeral.
    async fn build_snapshot(
        &self,
        reader: &Reader,
    ) -> std::result::Result<(Checkout, SnapshotId), BuildError> {
        let key = SandboxKey { namespace: Self::org_namespace(), name: SandboxName::generate() };
        let mut request = CreateSandbox::new(key.clone());
        (request.persistent, request.ephemeral) = (false, true);
        request.timeout = Some(self.config.clone_timeout + BUILD_MARGIN);
        request.network = self.policy_of(reader.access);
        let made = self.provider.create(request).await;
        let made = made.map_err(|error| failed(&reader.repo, "create a builder", &error.detail()))?;
        let run = RunRef { namespace: key.namespace.clone(), id: made.run.id };
        let built = self.clone_and_keep(&run, reader).await;
        if let Err(error) = self.delete_sandbox(&key).await {
            // It ends by itself.
            tracing::warn!(sandbox = %key.name, error = error.detail(), "delete a builder");
        }
        built
    }

    async fn clone_and_keep(
        &self,
        run: &RunRef,
        reader: &Reader,
    ) -> std::result::Result<(Checkout, SnapshotId), BuildError> {
        let checkout = match self.clone_repository(run, &reader.repo, None).await {
            Ok(checkout) if checkout.branch.is_some() && checkout.commit.is_some() => checkout,
            Ok(checkout) => return Err(failed(&reader.repo, "keep a checkout without a branch", &checkout)),
            Err(SessionError::Clone { message, .. }) => return Err(BuildError::Clone(message)),
            Err(error) => return Err(failed(&reader.repo, "clone", &error)),
        };
        let unused = self.org_snapshots.as_ref().map(|org| org.config.unused_for);
        let expiration = unused.map(|unused| u64::try_from(unused.as_millis()).unwrap_or(u64::MAX));
        let mut request = SnapshotRequest { expiration: expiration.map(Expiration::After), live: true };
        let made = match self.provider.snapshot(run, request).await {
            // It makes none of what runs.
            Err(ProviderError::Invalid(_)) => {
                request.live = false;
                self.provider.snapshot(run, request).await
            }
            made => made,
        };
        let made = made.map_err(|error| failed(&reader.repo, "snapshot a builder", &error.detail()))?;
        Ok((checkout, made.snapshot.id))
    }

    /// Deletes the files of an org snapshot; whether they are gone.
    async fn drop_snapshot(&self, id: &SnapshotId) -> bool {
        match self.provider.delete_snapshot(&Self::org_namespace(), id).await {
            Ok(_) | Err(ProviderError::NotFound(_) | ProviderError::SnapshotGone(_)) => true,
            Err(error) => {
                tracing::warn!(snapshot = %id, error = error.detail(), "delete the files of an org snapshot");
                false
            }
        }
    }

    /// Removes retired ones, for ever.
    pub async fn run_org_snapshots(self: Arc<Self>) {
        dormouse_jobs::reconcile(PERIOD, Arc::default(), || {
            let sessions = self.clone();
            async move { sessions.remove_retired_org_snapshots().await }
        })
        .await;
    }

    /// Removes the org snapshots that were retired a while ago.
    pub async fn remove_retired_org_snapshots(&self) {
        let place = self.host.as_ref().map_or("", |host| host.as_str());
        let before = self.now().minus(GRACE);
        let retired = match self.db.retired_org_snapshots(place, before, ROUND).await {
            Ok(retired) => retired,
            Err(error) => {
                tracing::error!(%error, "read retired org snapshots");
                return;
            }
        };
        for row in retired {
            if self.drop_snapshot(&row.snapshot_id).await
                && let Err(error) = self.db.forget_org_snapshot(&row.id).await
            {
                tracing::warn!(org_snapshot = %row.id, %error, "forget");
            }
        }
    }
}

fn failed(subject: &dyn std::fmt::Display, what: &str, error: &dyn std::fmt::Debug) -> BuildError {
    tracing::warn!(%subject, ?error, "no org snapshot: {what}");
    BuildError::Failed
}
