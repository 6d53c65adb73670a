//! Snapshots: lists, lines of descent, deletion. They are made by the sandbox's
//! own task (`machine`).

use dormouse_provider::{ListOf, Namespace, Order, Result, Snapshot, SnapshotNode, SnapshotTree};
use dormouse_store::SnapshotRow;
use dormouse_types::SnapshotId;

use crate::Engine;
use crate::host::internal;
use crate::present::take_page;

/// Siblings that are shown beside a snapshot; the count says how many there are.
const SIBLINGS: i64 = 10;

/// Most snapshots on one page of a line.
const MAX_LINE: u32 = 100;

impl Engine {
    pub(crate) async fn list_snapshots(
        &self,
        namespace: &Namespace,
        list: ListOf,
    ) -> Result<(Vec<Snapshot>, Option<String>)> {
        let limit = i64::from(list.page.limit) + 1;
        let ascending = list.order == Order::Ascending;
        let (sandbox, cursor) = (list.sandbox.as_deref(), list.page.cursor.as_deref());
        let rows = self.host.db.snapshots_of(&namespace.0, sandbox, ascending, cursor, limit).await;
        let mut rows = rows.map_err(internal("list snapshots"))?;
        let next = take_page(&mut rows, list.page.limit, |row| row.id.to_string());
        Ok((self.present_snapshots(&rows), next))
    }

    fn present_snapshots(&self, rows: &[SnapshotRow]) -> Vec<Snapshot> {
        rows.iter().map(|row| self.present_snapshot(row)).collect()
    }

    pub(crate) async fn drop_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        self.find_snapshot(namespace, id).await?;
        let deleted = self.host.db.delete_snapshot(id, self.host.clock.now()).await;
        deleted.map_err(internal("delete snapshot"))?;
        self.host.untidy.notify_one();
        self.host.sync_database().await?;
        Ok(self.present_snapshot(&self.find_snapshot(namespace, id).await?))
    }

    /// A snapshot beside those on top of the same parent. Those that stand on
    /// an image alone have no parent, and so no siblings.
    async fn node(&self, row: &SnapshotRow) -> Result<SnapshotNode> {
        let (siblings, count) = match &row.parent {
            Some(parent) => {
                let namespace = &row.namespace;
                let found =
                    self.host.db.snapshot_children(namespace, Some(parent), Some(&row.id), SIBLINGS).await;
                found.map_err(internal("list siblings"))?
            }
            None => (Vec::new(), 0),
        };
        Ok(SnapshotNode {
            snapshot: self.present_snapshot(row),
            siblings: self.present_snapshots(&siblings),
            sibling_count: u64::try_from(count).unwrap_or(0),
        })
    }

    /// The line from `id` towards its first ancestor, or towards the newest
    /// descendant of each generation.
    pub(crate) async fn line_of_snapshots(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: Order,
        limit: u32,
    ) -> Result<SnapshotTree> {
        let anchor = self.find_snapshot(namespace, id).await?;
        let (mut nodes, mut at, mut next) = (Vec::new(), anchor.clone(), None);
        loop {
            let following = match order {
                Order::Descending => match &at.parent {
                    Some(parent) => self.host.db.snapshot(parent).await.map_err(internal("read parent"))?,
                    None => None,
                },
                Order::Ascending => {
                    let children = self.host.db.snapshot_children(&namespace.0, Some(&at.id), None, 1).await;
                    children.map_err(internal("read children"))?.0.into_iter().next()
                }
            };
            let Some(following) = following else { break };
            if nodes.len() >= usize::try_from(limit.min(MAX_LINE)).unwrap_or(usize::MAX) {
                next = Some(at.id.to_string());
                break;
            }
            nodes.push(self.node(&following).await?);
            at = following;
        }
        Ok(SnapshotTree { nodes, anchor: self.node(&anchor).await?, next })
    }
}
