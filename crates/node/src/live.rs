//! What a sandbox's task is asked for, and what it publishes of a live run.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_control::SandboxConfig;
use dormouse_control::order::{CopyTo, Creation, Recorded};
use dormouse_egress::{Sandboxes, Sums};
use dormouse_provider::{Grant, NetworkPolicy, Result, SnapshotRequest, StopReason, UpdateSandbox};
use dormouse_store::{RunRow, VolumeState};
use dormouse_types::{Namespace, RunId, SandboxId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::cgroup::Cgroups;
use crate::output::Outputs;

/// Where the answer to a command goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// What a task is asked to do: the orders of [`dormouse_control::order::Runner`],
/// and to take over a run that a server before us started.
#[derive(Debug)]
pub(crate) enum Command {
    Create {
        creation: Box<Creation>,
        reply: Reply<Recorded>,
    },
    Resume {
        reply: Reply<(Recorded, bool)>,
    },
    Adopt {
        run: Box<RunRow>,
        reply: Reply<()>,
    },
    /// `None` means whichever run is live.
    Stop {
        run: Option<RunId>,
        reason: StopReason,
        reply: Reply<Recorded>,
    },
    Snapshot {
        run: RunId,
        request: SnapshotRequest,
        reply: Reply<(Recorded, Option<Duration>)>,
    },
    Copy {
        to: CopyTo,
        reply: Reply<Option<VolumeState>>,
    },
    Delete {
        with_snapshots: bool,
        reply: Reply<()>,
    },
    Update {
        changes: Box<UpdateSandbox>,
        reply: Reply<Recorded>,
    },
    SetPolicy {
        run: RunId,
        policy: NetworkPolicy,
        reply: Reply<Recorded>,
    },
    Renew {
        run: RunId,
        renewal: Box<(Grant, NetworkPolicy)>,
        reply: Reply<bool>,
    },
    Extend {
        run: RunId,
        by: Duration,
        reply: Reply<Recorded>,
    },
}

/// A live run, as everybody may see it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) run: RunId,
    pub(crate) sandbox: SandboxId,
    pub(crate) namespace: Namespace,
    pub(crate) config: Arc<SandboxConfig>,
    /// Default working directory, which is not the configured one where that
    /// cannot be.
    pub(crate) cwd: String,
    pub(crate) agent: Agent,
    /// Its address, and who knows what happens there.
    pub(crate) address: Ipv4Addr,
    pub(crate) sandboxes: Arc<Sandboxes>,
    /// Bytes sent and received, as the row has them.
    pub(crate) saved: Mutex<(i64, i64)>,
    pub(crate) cgroups: Arc<Cgroups>,
    /// Logs of its commands that somebody follows.
    pub(crate) outputs: Outputs,
    /// Ends what outlives no run: connections to its ports.
    pub(crate) ended: CancellationToken,
}

/// Bytes sent and received, as a row has them.
pub(crate) fn in_a_row(sums: Sums) -> (i64, i64) {
    let count = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    (count(sums.sent), count(sums.received))
}

impl Live {
    /// Bytes sent and received so far; `None`: nobody counts them any more.
    pub(crate) fn transferred(&self) -> Option<(i64, i64)> {
        self.sandboxes.sums(self.address).map(in_a_row)
    }

    /// What the row says.
    pub(crate) fn saved(&self) -> MutexGuard<'_, (i64, i64)> {
        // Two numbers: a panic elsewhere cannot tear them.
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
