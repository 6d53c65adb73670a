//! Records that nobody needs any more: snapshots that expire, and history that
//! is pruned. All of it is found by index, a little at a time, and may be done
//! on every host at once.

use crate::{Control, internal};
use dormouse_provider::Result;

/// Rows that one transaction deals with: others wait for the writer no longer
/// than that takes.
const ROUND: i64 = 256;

impl Control {
    /// Deletes snapshots whose time is over; how many those were.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn expire_snapshots(&self) -> Result<usize> {
        let expired = self.db.expire_snapshots(self.clock.now(), ROUND).await;
        let expired = expired.map_err(internal("expire snapshots"))?;
        if expired > 0 {
            tracing::info!(expired, "snapshots expired");
            self.runner.tidy();
        }
        Ok(expired)
    }

    /// Forgets some of what has been history for long; whether there may be more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn prune_history(&self) -> Result<bool> {
        let before = self.clock.now().minus(self.config.history);
        let runs = self.db.prune_runs(before, ROUND).await.map_err(internal("prune runs"))?;
        let snapshots = self.db.prune_snapshots(before, ROUND).await.map_err(internal("prune snapshots"))?;
        if runs + snapshots > 0 {
            tracing::info!(runs, snapshots, "pruned history");
        }
        let whole = u64::try_from(ROUND).unwrap_or(u64::MAX);
        Ok([runs, snapshots].contains(&whole))
    }
}
