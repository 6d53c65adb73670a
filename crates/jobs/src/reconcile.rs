//! The driver of reconcilers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

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
            biased;
            () = tokio::time::sleep(period) => {}
            () = wake.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::reconcile;

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
