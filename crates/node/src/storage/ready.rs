//! How many writable copies of a snapshot wait for who starts from it next. Beside
//! somebody who writes much a copy has to wait for the file system's next commit, and
//! one that is there only changes its name.
//!
//! Copies lie in `scratch` and are nobody's after a crash. Here is what is there and what
//! is wanted, and how they are made and removed; `Storage` hands them over.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_types::SnapshotId;

use super::{Driver, Storage};

/// Starts of this time say how many will follow.
const WINDOW: Duration = Duration::from_secs(60);

/// Snapshots that are kept in mind.
const MAX_SNAPSHOTS: usize = 256;

/// What waits, by snapshot.
#[derive(Debug)]
pub(super) struct Ready {
    /// Copies of one snapshot, at most.
    most: usize,
    shelves: Mutex<HashMap<SnapshotId, Shelf>>,
}

#[derive(Debug, Default)]
struct Shelf {
    starts: VecDeque<Instant>,
    copies: Vec<String>,
    /// Being made now.
    coming: usize,
}

impl Shelf {
    /// As many as started in the window, once that is more than one.
    fn wanted(&mut self, most: usize, now: Instant) -> usize {
        while self.starts.front().is_some_and(|start| now.duration_since(*start) > WINDOW) {
            self.starts.pop_front();
        }
        if self.starts.len() < 2 { 0 } else { self.starts.len().min(most) }
    }
}

impl Ready {
    pub(super) fn new(most: usize) -> Self {
        Self { most, shelves: Mutex::default() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<SnapshotId, Shelf>) -> T) -> T {
        work(&mut self.shelves.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody starts from a snapshot: a copy that waits, if one does.
    pub(super) fn take(&self, snapshot: &SnapshotId, now: Instant) -> Option<String> {
        if self.most == 0 {
            return None;
        }
        self.with(|shelves| {
            if !shelves.contains_key(snapshot) && shelves.len() >= MAX_SNAPSHOTS {
                return None;
            }
            let shelf = shelves.entry(snapshot.clone()).or_default();
            shelf.starts.push_back(now);
            if shelf.starts.len() > self.most.max(2) {
                shelf.starts.pop_front();
            }
            // The oldest: none waits for ever.
            (!shelf.copies.is_empty()).then(|| shelf.copies.remove(0))
        })
    }

    /// Whether another copy is to be made now; whoever is told so makes it and says how
    /// that went.
    pub(super) fn begin(&self, snapshot: &SnapshotId, now: Instant) -> bool {
        self.with(|shelves| {
            let Some(shelf) = shelves.get_mut(snapshot) else { return false };
            let wanted = shelf.copies.len() + shelf.coming < shelf.wanted(self.most, now);
            shelf.coming += usize::from(wanted);
            wanted
        })
    }

    /// A copy was made, or, without a name, was not. `false`: nobody wants it any more.
    pub(super) fn end(&self, snapshot: &SnapshotId, made: Option<&str>) -> bool {
        self.with(|shelves| {
            let Some(shelf) = shelves.get_mut(snapshot) else { return false };
            shelf.coming = shelf.coming.saturating_sub(1);
            shelf.copies.extend(made.map(str::to_owned));
            true
        })
    }

    /// A snapshot goes: its copies.
    pub(super) fn forget(&self, snapshot: &SnapshotId) -> Vec<String> {
        self.with(|shelves| shelves.remove(snapshot)).map(|shelf| shelf.copies).unwrap_or_default()
    }

    /// Copies that are more than what is wanted by now.
    pub(super) fn surplus(&self, now: Instant) -> Vec<String> {
        self.with(|shelves| {
            let mut all = Vec::new();
            shelves.retain(|_, shelf| {
                let wanted = shelf.wanted(self.most, now);
                let over = shelf.copies.len().saturating_sub(wanted);
                all.extend(shelf.copies.drain(..over));
                shelf.coming > 0 || !shelf.starts.is_empty() || !shelf.copies.is_empty()
            });
            all
        })
    }
}

impl Storage {
    /// Makes the copies of a snapshot that are wanted for who starts from it next.
    pub(crate) fn copy_ahead(&self, snapshot: &SnapshotId) -> io::Result<()> {
        let Driver::Btrfs { driver, .. } = &self.driver else { return Ok(()) };
        while self.ready.begin(snapshot, Instant::now()) {
            let name = format!("ready-{snapshot}-{}", self.counter.fetch_add(1, Ordering::Relaxed));
            let made = self.access().and_then(|_open| {
                driver.copy_ahead(&self.snapshot_path(snapshot), &self.root.join("scratch"), &name)
            });
            let wanted = self.ready.end(snapshot, made.is_ok().then_some(name.as_str()));
            if made.is_ok() && !wanted {
                let _open = self.access()?;
                self.delete_scratch(&name)?;
            }
            made?;
        }
        Ok(())
    }

    /// Removes copies that were made ahead and that nobody wants any more.
    pub(super) fn drop_copies(&self, names: Vec<String>) {
        for name in names {
            if let Err(error) = self.delete_scratch(&name) {
                // The next start removes it.
                tracing::warn!(%error, name, "remove a copy that was made ahead");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_wait_as_are_asked_for() {
        let (ready, snapshot, begun) = (Ready::new(3), SnapshotId::generate(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(!ready.begin(&snapshot, at(0)));
        assert_eq!(ready.take(&snapshot, at(0)), None);
        assert!(!ready.begin(&snapshot, at(0)), "one start says nothing");
        assert_eq!(ready.take(&snapshot, at(1)), None);
        assert!(ready.begin(&snapshot, at(1)) && ready.begin(&snapshot, at(1)));
        assert!(!ready.begin(&snapshot, at(1)), "as many as started");
        assert!(ready.end(&snapshot, Some("a")) && ready.end(&snapshot, None));
        assert!(ready.begin(&snapshot, at(1)), "one failed");
        assert!(ready.end(&snapshot, Some("b")));
        for second in 2..9 {
            ready.take(&snapshot, at(second));
        }
        let mut more = 0;
        while ready.begin(&snapshot, at(9)) {
            more += 1;
            ready.end(&snapshot, Some("c"));
        }
        assert_eq!(more, 3, "no more than may be");
        assert!(ready.surplus(at(10)).is_empty());
        assert_eq!(ready.surplus(at(67)).len(), 1);
        assert_eq!(ready.surplus(at(80)).len(), 2);
        assert!(ready.with(|shelves| shelves.is_empty()));
        assert!(!ready.end(&snapshot, Some("d")), "nobody wants it");
    }

    #[test]
    fn what_goes_takes_its_copies_along() {
        let (ready, snapshot, now) = (Ready::new(3), SnapshotId::generate(), Instant::now());
        ready.take(&snapshot, now);
        ready.take(&snapshot, now);
        assert!(ready.begin(&snapshot, now));
        ready.end(&snapshot, Some("a"));
        assert_eq!(ready.forget(&snapshot), ["a"]);
        assert_eq!(ready.take(&snapshot, now), None);
        let none = Ready::new(0);
        none.take(&snapshot, now);
        none.take(&snapshot, now);
        assert!(!none.begin(&snapshot, now));
    }
}
