//! Org snapshots: a repository is cloned once, into a sandbox of our own that
//! nobody else can reach, and a snapshot of that is what the sandboxes of its
//! sessions start from.
//!
//! ```text
//!  first request ──► build: create, clone, snapshot ──► published ──► retired ──► gone
//!  meanwhile others wait for that build                  │   ▲          ▲
//!                                                        │   └─ newer ──┘
//!  a set-up, or a tip that moved ──► job: build anew ────┼───┘
//!  later requests ───────── start from it ◄──────────────┘
//! ```
//!
//! It is for those who may read the repository: the key has how it was read, and
//! a start from it needs the remote to tell, in the same way and just now, where
//! its default branch is. Where that or anything else does not work out the
//! sandbox starts cold, with a clone of its own.
//!
//! [`start`] starts sandboxes, [`build`] makes snapshots, [`job`] has them made in
//! the background, [`set_up`] knows what a repository wants run, [`log`] writes
//! down how a build goes, [`orders`] is for callers. Here: options, keys, and what
//! takes retired ones away.

mod build;
mod job;
mod log;
mod orders;
mod set_up;
mod start;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_jobs::{Clock, Jobs};
use dormouse_provider::{ListOf, ListSandboxes, ProviderError, SandboxKey, SnapshotStatus};
use dormouse_store::OrgSnapshotKey;
use dormouse_types::{GithubRepo, Namespace, RepoAccess, SnapshotId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::remote::Tips;
use crate::{Remote, Sessions};

/// Whose they are. No account and no organization has such an id.
const OWNER: &str = "org-snapshots";

/// A retired one stays this long for sandboxes that are about to start from it.
const GRACE: Duration = Duration::from_secs(60);

/// How often retired ones are looked for.
const PERIOD: Duration = Duration::from_secs(30);

/// Retired ones, and records of builds, that one round removes.
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
    /// How long the set-up of a repository may take; `None`: it is not run.
    pub set_up_timeout: Option<Duration>,
    /// How long the records of builds stay.
    pub history: Duration,
}

/// What is known of org snapshots beside their rows.
#[derive(Debug)]
pub(crate) struct OrgSnapshots {
    config: OrgSnapshotConfig,
    jobs: Jobs,
    tips: Tips,
    builds: Mutex<HashMap<OrgSnapshotKey, build::Build>>,
    /// A build failed, and may have left a snapshot that nobody knows.
    untidy: std::sync::atomic::AtomicBool,
    /// Builds that go on here.
    building: Arc<std::sync::atomic::AtomicUsize>,
    /// What a server that died left of its builds is gone.
    swept: tokio::sync::OnceCell<()>,
}

/// Who reads a repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reader {
    pub(crate) repo: GithubRepo,
    pub(crate) access: RepoAccess,
}

/// A build that is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    reader: Reader,
    /// Also where the one that there is would do.
    anew: bool,
}

impl OrgSnapshots {
    fn covers(&self, repo: &GithubRepo) -> bool {
        let owners = &self.config.owners;
        owners.is_empty() || owners.iter().any(|owner| owner.eq_ignore_ascii_case(repo.owner()))
    }
}

impl Sessions {
    /// With snapshots of repositories, from which sandboxes start.
    #[must_use]
    pub fn with_org_snapshots(self, remote: Arc<dyn Remote>, jobs: Jobs, config: OrgSnapshotConfig) -> Self {
        let clock: Clock = self.clock.clone();
        let tips = Tips::new(remote, clock, config.tip_interval);
        let org_snapshots = Some(OrgSnapshots {
            config,
            jobs,
            tips,
            builds: Mutex::default(),
            untidy: std::sync::atomic::AtomicBool::new(false),
            building: Arc::default(),
            swept: tokio::sync::OnceCell::new(),
        });
        Self { org_snapshots, ..self }
    }

    /// Where the builders and snapshots of this place are.
    fn org_namespace(&self) -> Namespace {
        match self.place() {
            "" => Namespace::default_of(OWNER),
            place => Namespace::new(OWNER, place),
        }
    }

    /// Where the org snapshots of this server can be started from.
    fn place(&self) -> &str {
        self.host.as_ref().map_or("", |host| host.as_str())
    }

    fn org_key(&self, reader: &Reader) -> OrgSnapshotKey {
        OrgSnapshotKey::new(&reader.repo, reader.access, self.place())
    }

    /// Builds what is asked for and takes away what is retired, for ever.
    pub async fn run_org_snapshots(self: Arc<Self>) {
        let Some(org) = &self.org_snapshots else { return };
        self.swept().await;
        let work = org.jobs.clone().work(Arc::new(job::Builder(self.clone())));
        let tidy = dormouse_jobs::reconcile(PERIOD, Arc::default(), || {
            let sessions = self.clone();
            async move { sessions.tidy_org_snapshots().await }
        });
        tokio::join!(biased; work, tidy);
    }

    /// Removes the org snapshots that were retired a while ago, and old records
    /// of builds.
    pub async fn tidy_org_snapshots(&self) {
        let Some(org) = &self.org_snapshots else { return };
        self.end_lost_builds(false).await;
        if self.swept().await {
            self.tidy_failed_builds().await;
        }
        let used_before = self.now().minus(org.config.unused_for + start::USE_STEP);
        if let Err(error) = self.db.retire_unused_org_snapshots(self.place(), used_before, self.now()).await {
            tracing::error!(%error, "retire unused org snapshots");
        }
        match self.db.retired_org_snapshots(self.place(), self.now().minus(GRACE), ROUND).await {
            Ok(retired) => {
                for row in retired {
                    if self.drop_snapshot(&row.snapshot_id).await
                        && let Err(error) = self.db.forget_org_snapshot(&row.id).await
                    {
                        tracing::warn!(org_snapshot = %row.id, %error, "forget");
                    }
                }
            }
            Err(error) => tracing::error!(%error, "read retired org snapshots"),
        }
        if let Err(error) = self.db.prune_org_builds(self.now().minus(org.config.history), ROUND).await {
            tracing::error!(%error, "forget builds");
        }
    }

    /// Removes what builds left that failed. What one that goes on made has no row yet,
    /// so nothing is touched meanwhile. Where several servers build, nobody knows what
    /// another is about to publish; there it expires.
    async fn tidy_failed_builds(&self) {
        let Some(org) = &self.org_snapshots else { return };
        let idle = org.building.load(Ordering::SeqCst) == 0;
        if self.place().is_empty() || !idle || !org.untidy.swap(false, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.sweep_snapshots(self.now()).await {
            tracing::warn!(?error, "remove what is left of failed builds");
            org.untidy.store(true, Ordering::SeqCst);
        }
    }

    /// Whether nothing is left of the builds that a server before this one began: no
    /// build begins earlier, since a sweep that comes later would take it for one of
    /// those. Where other servers build too, builders end by themselves.
    async fn swept(&self) -> bool {
        let Some(org) = &self.org_snapshots else { return false };
        let sweep = async {
            self.end_lost_builds(true).await;
            if self.place().is_empty() { Ok(()) } else { self.sweep().await }
        };
        match org.swept.get_or_try_init(|| sweep).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(?error, "remove what is left of builds");
                false
            }
        }
    }

    async fn sweep(&self) -> Result<()> {
        let namespace = self.org_namespace();
        let (builders, _) = self.provider.list(&namespace, ListSandboxes::default()).await?;
        for builder in builders {
            self.delete_sandbox(&SandboxKey { namespace: namespace.clone(), name: builder.name }).await?;
        }
        self.sweep_snapshots(self.now()).await
    }

    /// Removes the snapshots from before `before` that are no org snapshot's.
    async fn sweep_snapshots(&self, before: Timestamp) -> Result<()> {
        let Some(org) = &self.org_snapshots else { return Ok(()) };
        let mut list = ListOf::default();
        loop {
            let (snapshots, next) = self.provider.snapshots(&self.org_namespace(), list.clone()).await?;
            for snapshot in snapshots.iter().filter(|one| one.status == SnapshotStatus::Created) {
                if self.db.is_org_snapshot(&snapshot.id).await? {
                    continue;
                }
                if snapshot.created_at > before || !self.drop_snapshot(&snapshot.id).await {
                    org.untidy.store(true, Ordering::SeqCst);
                }
            }
            match next {
                Some(cursor) => list.page.cursor = Some(cursor),
                None => return Ok(()),
            }
        }
    }

    /// Deletes the files of an org snapshot; whether they are gone.
    async fn drop_snapshot(&self, id: &SnapshotId) -> bool {
        match self.provider.delete_snapshot(&self.org_namespace(), id).await {
            Ok(_) | Err(ProviderError::NotFound(_) | ProviderError::SnapshotGone(_)) => true,
            Err(error) => {
                tracing::warn!(snapshot = %id, error = error.detail(), "delete the files of an org snapshot");
                if let Some(org) = &self.org_snapshots {
                    org.untidy.store(true, Ordering::SeqCst);
                }
                false
            }
        }
    }
}
