//! Starting a sandbox from the org snapshot of its repository.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::checkout::{Branch, Checkout, Identity};
use dormouse_provider::{CreateSandbox, ProviderError, RunRef, SandboxView, Source};
use dormouse_store::OrgSnapshotRow;
use dormouse_types::SetUp;

use super::Reader;
use super::build::BuildError;
use crate::attempts::Attempt;
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
        attempt: Option<&Attempt>,
        request: &CreateSandbox,
        reader: &Reader,
        branch: Option<&Branch>,
        identity: &Identity,
    ) -> Result<Option<Warm>> {
        let Some(org) = self.org_snapshots.as_ref().filter(|org| org.covers(&reader.repo)) else {
            return Ok(None);
        };
        let authorization = self.authorization(&reader.repo, reader.access).await?;
        let ask = org.tips.ask(&reader.repo, reader.access, authorization.as_deref());
        let tip = match self.unless_called_off(attempt, async { Ok(ask.await) }).await? {
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
            None => {
                let session = request.key.name.session();
                let build = self.build(&key, reader, session.as_ref());
                match self.unless_called_off(attempt, async { Ok(build.await) }).await? {
                    Ok(row) => row,
                    Err(BuildError::Clone(message)) => {
                        return Err(SessionError::Clone { repo: reader.repo.clone(), message });
                    }
                    Err(BuildError::Failed) => return Ok(None),
                }
            }
        };
        let source = Source::SnapshotOf(self.org_namespace(), row.snapshot_id.clone());
        let made = match self.provider.create(CreateSandbox { source: Some(source), ..request.clone() }).await
        {
            Ok(made) => made,
            // These a cold start would get too.
            Err(
                error @ (ProviderError::Capacity(_)
                | ProviderError::Unready(_)
                | ProviderError::Elsewhere { .. }
                | ProviderError::Conflict(_)),
            ) => return Err(error.into()),
            Err(error) => {
                self.give_up(&row, &error.detail()).await?;
                // The answer may have been lost.
                self.delete_sandbox(&request.key).await?;
                return Ok(None);
            }
        };
        let run = RunRef { namespace: request.key.namespace.clone(), id: made.run.id.clone() };
        let moved = (&row.branch, &row.commit_id) != (&tip.branch, &tip.commit);
        let to = moved.then_some(tip.branch.as_str());
        // It stands there already.
        let branch = branch.filter(|branch| branch.existing() != Some(tip.branch.as_str()));
        let update = self.update_checkout(&run, to, branch, Some(identity));
        match self.unless_called_off(attempt, update).await {
            Ok(Ok(Some(checkout))) if checkout.commit.is_some() => {
                self.note_use_of(&row).await;
                if moved || row.set_up == SetUp::Pending {
                    self.want_build(&key, reader).await;
                }
                return Ok(Some(Warm { made, checkout }));
            }
            Ok(_) if self.has_ended(&run).await => {
                self.delete_sandbox(&request.key).await?;
                return Err(SessionError::Interrupted);
            }
            // The remote did not give what it has, perhaps this once, or has no such
            // branch: the clone says so.
            Ok(Err(words)) if moved || branch.is_some() => {
                tracing::warn!(repo = %reader.repo, words, "fetch the tip")
            }
            Ok(other) => self.give_up(&row, &format!("{other:?}")).await?,
            Err(error) => {
                self.delete_sandbox(&request.key).await?;
                return Err(error);
            }
        }
        self.delete_sandbox(&request.key).await?;
        Ok(None)
    }

    /// Nothing starts any more from an org snapshot that does not work.
    async fn give_up(&self, row: &OrgSnapshotRow, why: &str) -> Result<()> {
        tracing::warn!(org_snapshot = %row.id, key = %row.key, why, "it does not work");
        Ok(self.db.retire_org_snapshot(&row.id, self.now()).await?)
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
