//! Time and the driver of reconcilers. Leases for long work join with the
//! first job that needs them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_types::Timestamp;
use tokio::sync::Notify;

/// Where "now" comes from: the host's clock, or a test's own.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The host's clock.
    #[must_use]
    pub fn system() -> Self {
        Self { fixed: None }
    }

    /// A clock that stands at `start` until [`Clock::advance`].
    #[must_use]
    pub fn fixed(start: Timestamp) -> Self {
        Self { fixed: Some(Arc::new(AtomicI64::new(start.0))) }
    }

    /// The current instant.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the host")]
    pub fn now(&self) -> Timestamp {
        match &self.fixed {
            Some(fixed) => Timestamp(fixed.load(Ordering::SeqCst)),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }

    /// Moves a fixed clock; the host's clock is not ours to move.
    pub fn advance(&self, by: Duration) {
        if let Some(fixed) = &self.fixed {
            fixed.fetch_add(i64::try_from(by.as_millis()).unwrap_or(0), Ordering::SeqCst);
        }
    }
}

/// Runs `act` every `period`, and at once when `wake` is notified.
///
/// `act` is a reconciler: it takes no input, finds out by itself what is due,
/// is idempotent, and handles its own errors; the period is its retry. It is
/// never run twice at once. Returns when the caller drops it.
pub async fn reconcile<F, Fut>(period: Duration, wake: Arc<Notify>, mut act: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    loop {
        act().await;
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = wake.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, reconcile};
    use dormouse_types::Timestamp;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use tokio::sync::Notify;

    #[test]
    fn a_fixed_clock_moves_only_by_hand() {
        let clock = Clock::fixed(Timestamp(5));
        clock.clone().advance(Duration::from_millis(7));
        assert_eq!(clock.now(), Timestamp(12));
    }

    #[tokio::test(start_paused = true)]
    async fn runs_by_period_and_by_notice() {
        let (runs, wake) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let counted = runs.clone();
        let task = tokio::spawn(reconcile(Duration::from_secs(10), wake.clone(), move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async {}
        }));
        tokio::time::sleep(Duration::from_secs(25)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        wake.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 4);
        task.abort();
    }
}
