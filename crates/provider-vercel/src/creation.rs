//! Creation that happens once, however often it is sent. The protocol has no
//! key for that; what it has are names, which are unique, and labels, which
//! come back. So each creation carries a label of its own: whoever finds the
//! name taken after an attempt with an unknown outcome can tell whether it was
//! that attempt that took it.

use std::time::{Duration, Instant};

use dormouse_provider::{ProviderError, Result, RunStatus, SandboxKey, SandboxView};
use dormouse_wire as wire;
use reqwest::{Method, StatusCode};

use crate::Vercel;
use crate::replies::{self, CREATION_TAG};
use crate::transport::{ATTEMPTS, Call, Failure, Repeat, late};

/// Labels that a sandbox may have (provider contract, section 3).
const MAX_TAGS: usize = 5;

/// Between two looks at a sandbox that is being made.
const POLL: Duration = Duration::from_millis(250);

/// How long a name may be taken by something that cannot be seen yet.
const UNSEEN: Duration = Duration::from_secs(10);

/// Adds the label, where there is room for it. Without room a creation
/// with an unknown outcome counts as somebody else's.
pub(crate) fn mark(tags: &mut std::collections::BTreeMap<String, String>) -> Result<Option<String>> {
    if tags.len() >= MAX_TAGS {
        return Ok(None);
    }
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| ProviderError::internal("label a creation", error))?;
    let mark = dormouse_types::hex(&bytes);
    tags.insert(CREATION_TAG.to_owned(), mark.clone());
    Ok(Some(mark))
}

impl Vercel {
    /// Sends a creation until it is known what became of it.
    pub(crate) async fn make(
        &self,
        call: Call,
        key: &SandboxKey,
        mark: Option<String>,
    ) -> Result<SandboxView> {
        let call = call.method(Method::POST).patient();
        let mut unknown = false;
        let mut attempt = 0;
        loop {
            let failure = match self.transport.once::<wire::SandboxReply>(&call).await {
                Ok(reply) => return replies::found(reply),
                Err(failure) => failure,
            };
            if let Failure::Refused { status: StatusCode::CONFLICT, .. } = failure
                && unknown
            {
                return match self.made_by(key, mark.as_deref(), UNSEEN).await? {
                    Some(found) => Ok(found),
                    None => Err(failure.into_provider(&call)),
                };
            }
            unknown |= matches!(failure, Failure::Unknown(_));
            match failure.pause(Repeat::Idempotent, attempt) {
                Some(pause) if attempt + 1 < ATTEMPTS => {
                    tracing::warn!(sandbox = %key.name, %failure, ?pause, "create again");
                    tokio::time::sleep(pause).await;
                }
                _ => {
                    // Nobody else will remove what may have been made.
                    if unknown
                        && self
                            .made_by(key, mark.as_deref(), Duration::ZERO)
                            .await
                            .is_ok_and(|found| found.is_some())
                    {
                        let removed =
                            self.transport.json::<wire::ChangeReply>(&self.deletion(key, true)).await;
                        if let Err(error) = removed {
                            tracing::error!(sandbox = %key.name, error = error.detail(), "remove a half-made sandbox");
                        }
                    }
                    return Err(failure.into_provider(&call));
                }
            }
            attempt += 1;
        }
    }

    /// The sandbox of that name, once it is ready, if the creation with this
    /// label made it. It may take `unseen` until it can be found.
    async fn made_by(
        &self,
        key: &SandboxKey,
        mark: Option<&str>,
        unseen: Duration,
    ) -> Result<Option<SandboxView>> {
        let began = Instant::now();
        let deadline = began + self.long_timeout;
        loop {
            let reply: wire::SandboxReply = match self.transport.json(&self.lookup(key, false)).await {
                Ok(reply) => reply,
                Err(ProviderError::NotFound(_)) if began.elapsed() < unseen => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                Err(ProviderError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            if mark.is_none() || reply.sandbox.tags.get(CREATION_TAG).map(String::as_str) != mark {
                return Ok(None);
            }
            let found = replies::found(reply)?;
            if found.run.status != RunStatus::Pending {
                return Ok(Some(found));
            }
            if Instant::now() > deadline {
                return Err(late(&format!("sandbox {}", key.name)));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
