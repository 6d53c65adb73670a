//! Who may take the next step. Whatever a server asks of its database or its
//! provider waits at a gate, and one gate is opened at a time, by the seed's
//! chance: nothing but the seed decides what comes before what.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_store::{Hold, Pace};
use tokio::sync::oneshot;

/// Chance from a seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    /// With so many chances in a hundred.
    pub(super) fn percent(&mut self, chances: usize) -> bool {
        self.below(100) < chances
    }
}

/// Somebody at a gate.
struct Waiting {
    what: String,
    open: oneshot::Sender<()>,
}

struct State {
    chance: Chance,
    waiting: Vec<Waiting>,
    trace: Vec<String>,
    /// Calls of a provider that fail, in a hundred.
    faults: usize,
}

/// The gates of a history.
#[derive(Clone)]
pub(super) struct Schedule {
    state: Arc<Mutex<State>>,
    /// What the database's own threads are doing.
    busy: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Schedule")
    }
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        let state = State { chance: Chance(seed), waiting: Vec::new(), trace: Vec::new(), faults: 0 };
        Self { state: Arc::new(Mutex::new(state)), busy: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn chance<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut self.state().chance)
    }

    pub(super) fn set_faults(&self, percent: usize) {
        self.state().faults = percent;
    }

    /// Whether a call goes wrong now.
    pub(super) fn fails(&self) -> bool {
        let mut state = self.state();
        let faults = state.faults;
        faults > 0 && state.chance.percent(faults)
    }

    pub(super) fn note(&self, what: String) {
        self.state().trace.push(what);
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }

    /// Returns when it is opened.
    pub(super) async fn gate(&self, what: String) {
        let (open, opened) = oneshot::channel();
        if std::env::var_os("GATES").is_some() {
            let count = self.state().waiting.len();
            self.note(format!("  {what} waits after {count}"));
        }
        self.state().waiting.push(Waiting { what, open });
        if opened.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Opens one, if somebody waits.
    pub(super) fn open_one(&self) -> bool {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.open.is_closed());
        if state.waiting.is_empty() {
            return false;
        }
        let count = state.waiting.len();
        let at = state.chance.below(count);
        let waiting = state.waiting.remove(at);
        state.trace.push(waiting.what);
        drop(state);
        // Whoever waits was alive just now.
        let _ = waiting.open.send(());
        true
    }

    /// Opens those of a server that died: what it sent arrives before anybody
    /// takes its work over, which is after the end of a lease.
    pub(super) fn open_all_of(&self, server: &str) -> bool {
        self.open_all(|what| what.starts_with(server))
    }

    /// Opens those of calls that are on their way: none takes as long as a lease.
    pub(super) fn deliver(&self) -> bool {
        let stays = ["database", "answers", "tip", " command ", "take away"];
        self.open_all(|what| !stays.iter().any(|word| what.contains(word)))
    }

    fn open_all(&self, which: impl Fn(&str) -> bool) -> bool {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.open.is_closed());
        let (its, others): (Vec<_>, Vec<_>) =
            state.waiting.drain(..).partition(|waiting| which(&waiting.what));
        state.waiting = others;
        let any = !its.is_empty();
        for waiting in its {
            state.trace.push(waiting.what);
            // Whoever waits was alive just now.
            let _ = waiting.open.send(());
        }
        any
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
    }
}

/// The database as one server has it.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) schedule: Schedule,
    pub(super) server: String,
    pub(super) shared: bool,
}

#[derive(Debug)]
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pace for Paced {
    fn turn<'a>(&'a self, what: &'a str) -> Pin<Box<dyn Future<Output = Hold> + Send + 'a>> {
        Box::pin(async {
            // Names differ from run to run.
            let words: Vec<&str> = what.split(' ').filter(|word| word.len() < 20).collect();
            self.schedule.gate(format!("{} database: {}", self.server, words.join(" "))).await;
            self.schedule.busy.fetch_add(1, Ordering::SeqCst);
            Box::new(Busy(self.schedule.busy.clone())) as Hold
        })
    }

    fn is_shared(&self) -> bool {
        self.shared
    }
}
