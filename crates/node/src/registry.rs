//! Which runs are live, and the queue of each sandbox's task.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_types::{RunId, SandboxId};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::live::{Command, Live};

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<RunId, Arc<Live>>,
    /// Runs that are being made or tidied: the sweeper leaves them alone.
    busy: HashSet<RunId>,
    queues: HashMap<SandboxId, mpsc::Sender<Command>>,
    tasks: HashMap<SandboxId, AbortHandle>,
    /// Nobody gets a task any more.
    closed: bool,
}

/// What the tasks publish.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<Inner>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Maps only: a panic elsewhere cannot tear them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn live(&self, run: &RunId) -> Option<Arc<Live>> {
        self.lock().live.get(run).cloned()
    }

    pub(crate) fn all_live(&self) -> Vec<Arc<Live>> {
        self.lock().live.values().cloned().collect()
    }

    pub(crate) fn live_count(&self) -> usize {
        self.lock().live.len()
    }

    pub(crate) fn publish(&self, live: Live) {
        self.lock().live.insert(live.run.clone(), Arc::new(live));
    }

    pub(crate) fn unpublish(&self, run: &RunId) {
        let mut inner = self.lock();
        if let Some(live) = inner.live.remove(run) {
            live.ended.cancel();
        }
        inner.busy.insert(run.clone());
    }

    /// The run's parts on the host are in somebody's hands.
    pub(crate) fn begin(&self, run: &RunId) {
        self.lock().busy.insert(run.clone());
    }

    /// They are not any more; `gone`: nor do they exist.
    pub(crate) fn forget(&self, run: &RunId, gone: bool) {
        let mut inner = self.lock();
        inner.busy.remove(run);
        if gone {
            inner.live.remove(run);
        }
    }

    /// Ends every task; runs go on without an owner.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.queues.clear();
        inner.tasks.drain().for_each(|(_, task)| task.abort());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether any run is being made or tidied.
    pub(crate) fn is_busy(&self) -> bool {
        !self.lock().busy.is_empty()
    }

    /// Whether a name found on the host belongs to a run that somebody owns.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let Ok(run) = name.parse::<RunId>() else {
            return false;
        };
        let inner = self.lock();
        inner.live.contains_key(&run) || inner.busy.contains(&run)
    }

    /// The queue of a sandbox's task; `start` makes the task where there is none.
    /// `None` after [`Self::close`]: a task of then would know no live run, and take
    /// those that go on for left over.
    pub(crate) fn queue(
        &self,
        sandbox: &SandboxId,
        start: impl FnOnce(mpsc::Receiver<Command>) -> AbortHandle,
    ) -> Option<mpsc::Sender<Command>> {
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        if let Some(queue) = inner.queues.get(sandbox).filter(|queue| !queue.is_closed()) {
            return Some(queue.clone());
        }
        let (sender, receiver) = mpsc::channel(64);
        inner.queues.insert(sandbox.clone(), sender.clone());
        inner.tasks.insert(sandbox.clone(), start(receiver));
        Some(sender)
    }

    /// Ends the queue of a task that owns nothing, unless a command waits in
    /// it. A command that is sent a moment later is lost with its reply, and
    /// its sender asks for the queue again.
    pub(crate) fn retire(&self, sandbox: &SandboxId, commands: &mpsc::Receiver<Command>) -> bool {
        let mut inner = self.lock();
        let idle = commands.is_empty();
        if idle {
            inner.queues.remove(sandbox);
            inner.tasks.remove(sandbox);
        }
        idle
    }
}
