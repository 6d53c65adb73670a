//! The end of a run: what is meant by it is recorded, its processes end, its files are
//! kept or dropped, and the end is recorded. After a crash at any of these it goes on
//! where it stopped. What to end, and when, is [`super`]'s.

use std::time::Duration;

use dormouse_agent_protocol::Request;
use dormouse_control::ending::{Deletion, Ending};
use dormouse_control::order::Recorded;
use dormouse_control::{SandboxRecord, Stored as _};
use dormouse_provider::{ProviderError, Result, RunStatus, StopReason};
use dormouse_store::{RunRow, SandboxWithRun};
use dormouse_types::{RunId, Timestamp};

use super::{Intent, Machine, Owned};
use crate::agent::Agent;
use crate::files::{Ended, abandon, finish};
use crate::host::{Host, internal};
use crate::live::in_a_row;
use crate::{kernel, launch, sys};

/// On top of the grace period: what an agent may take to end a run.
const STOP_SLACK: Duration = Duration::from_secs(8);

/// How long the kernel may take to end a run whose agent has ended its part, or
/// was killed. PID 1 is gone after every other process of its namespace, and one
/// that waits in the kernel takes its time.
pub(super) const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// What is said of a run whose PID 1 the kernel ended.
const NO_MEMORY: &str = "the sandbox ran out of memory, and the kernel ended its PID 1 for it";

/// What is said of a run whose processes outlive SIGKILL.
const LINGERS: &str = "a process of the sandbox does not end, it waits in the kernel of the host; \
                       the sandbox is stopped, and can start again, once it has";

impl Machine {
    /// Ends the live run: what is meant is recorded, then processes end, then
    /// files are kept or dropped, then the end is recorded. A run whose PID 1
    /// lives is not over: it keeps what it has, and ends when the kernel lets it.
    pub(super) async fn end(&mut self, reason: StopReason, intent: Intent) -> Result<Recorded> {
        let gone = || ProviderError::internal("end a run", "there is none");
        let live = self.live.as_ref().ok_or_else(gone)?;
        let (host, run) = (&self.host, live.row.id.clone());
        let found = host.db.sandbox_by_id(&self.sandbox).await.map_err(internal("read sandbox"))?;
        let sandbox = found.map(|found| SandboxRecord::new(found.sandbox));
        let now = host.clock.now();
        let ending = meant(&live.row, sandbox.as_ref(), why(&live.row, reason, now), intent);
        let recorded = ending.write()?;
        host.db.run_stopping(&live.row, &recorded, now).await.map_err(internal("stop run"))?;
        self.registry.unpublish(&run);
        let ended = end_processes(host, live, ending.deletion.is_some()).await;
        let live = self.live.as_mut().ok_or_else(gone)?;
        live.row.status = RunStatus::Stopping;
        live.row.stop_requested_at.get_or_insert(now);
        live.row.ending = Some(recorded);
        let said = match (ended, ending.reason) {
            (false, _) => Some(LINGERS),
            (true, StopReason::Died) if kernel::ended_for_memory(live.process.pid) => Some(NO_MEMORY),
            (true, _) => None,
        };
        if let Some(said) = said {
            live.row.warnings = vec![said.to_owned()];
            let noted = self.host.db.note_warnings(&run, &live.row.warnings, now).await;
            noted.map_err(internal("stop run"))?;
        }
        if !ended {
            return Err(ProviderError::Stopping);
        }
        let slot = live.process.slot;
        if let Some(sums) = self.host.sandboxes.sums(self.host.numbering.address(slot)) {
            (live.row.sent_bytes, live.row.received_bytes) = in_a_row(sums);
        }
        let Ended { recorded, refused } =
            finish(&self.host, &live.row, sandbox.as_ref(), &ending, self.may_have_drives).await?;
        self.let_go(&run, slot);
        refused.map_or(Ok(recorded), Err)
    }

    /// Finishes a run whose end failed half-way, and that nobody has.
    pub(super) async fn finish_left_over(
        &self,
        reason: StopReason,
        deletion: Option<Deletion>,
    ) -> Result<Recorded> {
        let SandboxWithRun { sandbox, run } = self.find().await?;
        self.host.usable()?;
        launch::remove(&self.host, &run.id, None).await;
        if self.host.has_process(&run) {
            return Err(ProviderError::Stopping);
        }
        if run.process.is_none() && deletion.is_none() {
            // It never took a command, so nothing of it stays.
            abandon(&self.host, &run).await?;
            return self.as_recorded(Some(&run.id)).await;
        }
        let sandbox = SandboxRecord::new(sandbox);
        let reason = why(&run, reason, self.host.clock.now());
        let ending = meant(&run, Some(&sandbox), reason, Intent { manual: None, deletion });
        finish(&self.host, &run, Some(&sandbox), &ending, true).await.map(|ended| ended.recorded)
    }

    /// Forgets the live run, which has ended.
    fn let_go(&mut self, run: &RunId, slot: u32) {
        self.live = None;
        // Nobody waits for what is only tidying; start-up does it after a crash.
        let (host, registry, run) = (self.host.clone(), self.registry.clone(), run.clone());
        registry.begin(&run);
        tokio::spawn(async move {
            launch::remove(&host, &run, Some(slot)).await;
            registry.forget(&run, true);
        });
    }
}

/// A run that died after its lifetime ended by itself, while no server was there.
fn why(run: &RunRow, reason: StopReason, now: Timestamp) -> StopReason {
    match reason {
        StopReason::Died if run.expires_at.is_some_and(|end| end <= now) => StopReason::Lifetime,
        reason => reason,
    }
}

/// How a run ends: deleted, if that is asked for now; else as was recorded; else
/// as is asked for.
fn meant(run: &RunRow, sandbox: Option<&SandboxRecord>, reason: StopReason, intent: Intent) -> Ending {
    match (intent.deletion, Ending::of(run)) {
        (Some(deletion), _) => Ending::of_deleted(deletion),
        (None, Some(ending)) => ending,
        (None, None) => Ending::decide(sandbox, reason, intent.manual),
    }
}

/// Gracefully, then by force. Returns whether PID 1 is gone, and with it every
/// process of its namespace.
async fn end_processes(host: &Host, live: &Owned, at_once: bool) -> bool {
    let grace = if at_once { Duration::ZERO } else { host.config.stop_grace };
    if host.lives(&live.process) {
        let agent = Agent::in_dir(&host.socket_dir(live.row.id.as_str()));
        let shutdown = Request::Shutdown { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(0) };
        if let Err(error) = agent.control(shutdown, grace + STOP_SLACK).await {
            tracing::warn!(run = %live.row.id, %error, "the agent did not end the run; killing it");
            let _ = sys::pidfd_kill(live.pidfd.get_ref());
        }
    }
    // Where it was asked before, all that is left is to wait.
    let patience = if live.row.warnings.iter().any(|known| known == LINGERS) {
        Duration::from_millis(100)
    } else {
        DEATH_PATIENCE
    };
    if tokio::time::timeout(patience, live.pidfd.readable()).await.is_err() {
        let _ = sys::pidfd_kill(live.pidfd.get_ref());
        if tokio::time::timeout(patience, live.pidfd.readable()).await.is_err() {
            tracing::error!(run = %live.row.id, "PID 1 does not end: the run keeps its place until it does");
            return false;
        }
    }
    sys::reap(live.process.pid);
    true
}
