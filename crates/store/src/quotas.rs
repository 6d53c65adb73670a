//! What one owner uses, counted in the transaction that adds to it: two that come at
//! once do not both get the last place.

use dormouse_types::{Namespace, Quota, QuotaKind};

use crate::Db;
use crate::db::Tx;
use crate::error::{Result, StoreError};
use crate::runs::{LIVE, RunRow};
use crate::sql::Row;

/// A sum, which is never negative.
fn sum(row: &Row, column: usize) -> Result<u64> {
    Ok(u64::try_from(row.at::<i64>(column, "runs", "owner")?).unwrap_or_default())
}

/// Refuses a run that its owner has no quota for. `new`: its sandbox is one too.
pub(crate) async fn admit(tx: &mut Tx, run: &RunRow, quota: &Quota, new: bool) -> Result<()> {
    let owner = &run.namespace.owner;
    let of_runs = [QuotaKind::Running, QuotaKind::Vcpus, QuotaKind::MemoryMib];
    let counted = of_runs.into_iter().any(|kind| quota.of(kind).is_some());
    let of_disk = quota.disk_mib.is_some() && new;
    if !counted && !of_disk {
        return Ok(());
    }
    tx.lock_owner(owner).await?;
    if counted {
        let text = format!(
            "SELECT COUNT(*) AS runs, CAST(COALESCE(SUM(vcpus), 0) AS BIGINT) AS vcpus,
             CAST(COALESCE(SUM(memory_mib), 0) AS BIGINT) AS memory FROM runs WHERE owner = $1 AND {LIVE}"
        );
        let used = tx
            .sql(format!("count what {owner} runs"), text)
            .bind(owner)
            .one(|row| Ok([sum(row, 0)?, sum(row, 1)?, sum(row, 2)?]))
            .await?
            .unwrap_or_default();
        let asked = [1, u64::from(run.resources.vcpus), run.resources.memory_mib];
        for ((kind, used), asked) in of_runs.into_iter().zip(used).zip(asked) {
            quota.check(kind, used, asked).map_err(StoreError::Quota)?;
        }
    }
    if of_disk {
        let used = tx
            .sql(
                format!("count the disk of {owner}"),
                "SELECT CAST(COALESCE(SUM(r.disk_mib), 0) AS BIGINT) AS disk
                 FROM sandboxes s JOIN runs r ON r.id = s.current_run WHERE s.owner = $1",
            )
            .bind(owner)
            .one(|row| sum(row, 0))
            .await?
            .unwrap_or_default();
        let asked = run.resources.disk_mib.unwrap_or_default();
        quota.check(QuotaKind::DiskMib, used, asked).map_err(StoreError::Quota)?;
    }
    Ok(())
}

impl Db {
    /// Manual snapshots that an owner has.
    pub async fn manual_snapshots(&self, namespace: &Namespace) -> Result<u64> {
        let owner = &namespace.owner;
        self.sql(
            format!("count the snapshots of {owner}"),
            "SELECT COUNT(*) FROM snapshots WHERE owner = $1 AND status = 'created' AND kind = 'manual'",
        )
        .bind(owner)
        .count()
        .await
        .map(|count| u64::try_from(count).unwrap_or_default())
    }
}
