//! A server that dies in the middle of something, for tests of what that leaves. It
//! is in no release.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_store::{Hold, Pace};

/// Dies before a write to the database: the one whose number stands in a file, counted
/// from when the file is there.
#[derive(Debug)]
pub(super) struct Mortal {
    order: PathBuf,
    writes: AtomicU64,
}

impl Mortal {
    pub(super) fn new(order: PathBuf) -> Self {
        Self { order, writes: AtomicU64::new(0) }
    }

    fn is_time(&self) -> bool {
        let number =
            std::fs::read_to_string(&self.order).ok().and_then(|text| text.trim().parse::<u64>().ok());
        number.is_some_and(|number| self.writes.fetch_add(1, Ordering::SeqCst) + 1 >= number)
    }
}

impl Pace for Mortal {
    fn turn<'a>(&'a self, what: &'a str) -> Pin<Box<dyn Future<Output = Hold> + Send + 'a>> {
        Box::pin(async move {
            if what == "write" && self.is_time() {
                // As kill -9: nothing is closed, flushed or told.
                let pid = std::process::id().to_string();
                let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
                std::future::pending::<()>().await;
            }
            Box::new(()) as Hold
        })
    }

    fn is_shared(&self) -> bool {
        false
    }
}
