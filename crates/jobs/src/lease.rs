//! Holding a lease for as long as it is needed.

use std::time::Duration;

use dormouse_store::Result;
use dormouse_types::Timestamp;

use crate::Clock;

/// Holds a lease that ends at `ends_at` longer, again and again, each time for
/// `length`. Returns when it is lost: `renew`, which gets the time and the new end,
/// says that it is somebody else's, or the database did not answer before it ended.
/// `what` names it in the log.
pub async fn keep_lease<R: Future<Output = Result<bool>>>(
    clock: &Clock,
    what: &str,
    mut ends_at: Timestamp,
    length: Duration,
    mut renew: impl FnMut(Timestamp, Timestamp) -> R,
) {
    let step = length / 3;
    loop {
        tokio::time::sleep(step.min(ends_at.since(clock.now()))).await;
        let now = clock.now();
        if now >= ends_at {
            break;
        }
        let longer = now.plus(length);
        // A database that does not answer must not hide that the lease is over.
        match tokio::time::timeout(step.min(ends_at.since(now)), renew(now, longer)).await {
            Ok(Ok(true)) => ends_at = longer,
            Ok(Ok(false)) => break,
            Ok(Err(error)) => tracing::warn!(lease = what, %error, "renew a lease"),
            Err(_) => tracing::warn!(lease = what, "renew a lease: the database does not answer"),
        }
    }
    tracing::warn!(lease = what, "lost a lease");
}
