//! Starting a sandbox from the org snapshot of its repository.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::checkout::{Checkout, Identity};
use dormouse_provider::{CreateSandbox, ProviderError, RunRef, SandboxView, Source};
use dormouse_store::OrgSnapshotRow;

use super::Reader;
use super::build::BuildError;
use crate::error::Result;
use crate::remote::RemoteError;
use crate::{SessionError, Sessions};

/// When a sandbox last started from one is noted once in this time.
pub(super) const USE_STEP: Duration = Duration::from_secs(3600);

/// A sandbox that started from an org snapshot.
pub(crate) struct Warm {
    pub(crate) made: SandboxView,
    pub(crate) checkout: Checkout,
}

impl Sessions {
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
        let session = request.key.name.session();
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
            None => match self
                .unless_called_off(session.as_ref(), async { Ok(self.build(&key, reader).await) })
                .await?
            {
                Ok(row) => row,
                Err(BuildError::Clone(message)) => {
                    return Err(SessionError::Clone { repo: reader.repo.clone(), message });
                }
                Err(BuildError::Failed) => return Ok(None),
            },
        };
        let source = Source::SnapshotOf(self.org_namespace(), row.snapshot_id.clone());
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
        let update = self.update_checkout(&run, branch, Some(identity));
        match self.unless_called_off(session.as_ref(), update).await {
            Ok(Ok(Some(checkout))) if checkout.commit.is_some() => {
                self.note_use_of(&row).await;
                if moved {
                    tracing::info!(org_snapshot = %row.id, repo = %reader.repo, "it is behind");
                    self.want_build(&key, reader).await;
                }
                Ok(Some(Warm { made, checkout }))
            }
            Err(SessionError::CalledOff) => {
                self.delete_sandbox(&request.key).await?;
                Err(SessionError::CalledOff)
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
}
