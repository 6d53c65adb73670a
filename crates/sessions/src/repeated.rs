//! Sandboxes without a session, whose callers may send their request again: by its
//! key it is the same request, and gets the same sandbox.

use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::{ProviderError, SandboxKey};
use dormouse_store::RepeatedRequestRow;
use dormouse_types::{AccountId, SandboxName, Timestamp};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;

use crate::error::Result;
use crate::provision::{Provisioned, Wanted};
use crate::{SessionError, Sessions};

/// What is kept of an answer.
#[derive(Serialize, Deserialize)]
struct Answer {
    ready_at: i64,
    timeout_ms: u64,
    branch: String,
}

impl Sessions {
    /// A sandbox without a session, once for each `key` of an account, however often
    /// and on however many servers it is asked for.
    ///
    /// # Errors
    /// [`SessionError::KeyReused`] where something else was asked for with that key;
    /// else as [`Sessions::provision`], after which the key is free again.
    pub async fn provision_once(
        self: &Arc<Self>,
        account: AccountId,
        wanted: Wanted,
        key: String,
    ) -> Result<Provisioned> {
        let sessions = self.clone();
        let work = async move { sessions.once(&account, &wanted, &key).await };
        let done = tokio::spawn(work.in_current_span()).await;
        done.map_err(|error| ProviderError::internal("provision", error))?
    }

    async fn once(self: &Arc<Self>, account: &AccountId, wanted: &Wanted, key: &str) -> Result<Provisioned> {
        let request = RepeatedRequestRow {
            account_id: account.clone(),
            key: key.to_owned(),
            digest: format!("{} {:?}", wanted.repo.url(), wanted.branch),
            sandbox: SandboxName::generate(),
            answer: None,
            created_at: self.now(),
        };
        // Who comes while somebody is at it waits for that.
        let lock = self.locks.take_named(&format!("request {account} {key}")).await?;
        lock.hold(self.once_locked(&request, account, wanted)).await
    }

    async fn once_locked(
        self: &Arc<Self>,
        request: &RepeatedRequestRow,
        account: &AccountId,
        wanted: &Wanted,
    ) -> Result<Provisioned> {
        let mut first = self.db.request_of_key(request).await?;
        if first.digest != request.digest {
            return Err(SessionError::KeyReused);
        }
        let key_of = |row: &RepeatedRequestRow| SandboxKey {
            namespace: Self::namespace(account),
            name: row.sandbox.clone(),
        };
        if let Some(answer) =
            first.answer.as_deref().and_then(|text| serde_json::from_str::<Answer>(text).ok())
        {
            match self.provider.get(&key_of(&first)).await {
                // It lived its time, or somebody deleted it: this is a new request.
                Err(ProviderError::NotFound(_)) => {
                    self.db.forget_request(&first).await?;
                    first = self.db.request_of_key(request).await?;
                }
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    return Ok(Provisioned {
                        ready_at: Timestamp(answer.ready_at),
                        timeout: Duration::from_millis(answer.timeout_ms),
                        branch: answer.branch,
                        sandbox: first.sandbox,
                        anew: false,
                    });
                }
            }
        }
        // What a server made that died before it answered. On a host that is not there it
        // ends by itself.
        match self.delete_sandbox(&key_of(&first)).await {
            Ok(()) => {}
            Err(ProviderError::Elsewhere { .. }) => {
                self.db.forget_request(&first).await?;
                first = self.db.request_of_key(request).await?;
            }
            Err(error) => return Err(error.into()),
        }
        match self.provision_ephemeral(account, wanted, first.sandbox.clone()).await {
            Ok(ready) => {
                let answer = Answer {
                    ready_at: ready.ready_at.as_millis(),
                    timeout_ms: u64::try_from(ready.timeout.as_millis()).unwrap_or(u64::MAX),
                    branch: ready.branch.clone(),
                };
                let answer = serde_json::to_string(&answer)
                    .map_err(|error| ProviderError::internal("write an answer down", error))?;
                self.db.answer_request(&first, &answer).await?;
                Ok(ready)
            }
            Err(error) => {
                self.db.forget_request(&first).await?;
                Err(error)
            }
        }
    }

    /// Forgets some of the requests from before `before`; whether there may be more.
    pub async fn prune_requests(&self, before: Timestamp) -> Result<bool> {
        const ROUND: i64 = 1000;
        let pruned = self.db.prune_requests(before, ROUND).await?;
        Ok(i64::try_from(pruned).is_ok_and(|pruned| pruned == ROUND))
    }
}
