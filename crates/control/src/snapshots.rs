//! Snapshots: lists, lines of descent, deletion. The host of a sandbox makes
//! them.

use dormouse_provider::{Direction, ListOf, Namespace, Result, Snapshot, SnapshotNode, SnapshotTree};
use dormouse_store::SnapshotRow;
use dormouse_types::SnapshotId;

use crate::present::{self, take_page};
use crate::{Control, internal};

/// Siblings that are shown beside a snapshot; the count says how many there are.
const SIBLINGS: i64 = 10;

/// Most snapshots on one page of a line.
const MAX_LINE: u32 = 100;

impl Control {
    pub(crate) async fn list_snapshots(
        &self,
        namespace: &Namespace,
        list: ListOf,
    ) -> Result<(Vec<Snapshot>, Option<String>)> {
        let limit = i64::from(list.page.limit) + 1;
        let ascending = list.order == Direction::Ascending;
        let (sandbox, cursor) = (list.sandbox.as_deref(), list.page.cursor.as_deref());
        let rows = self.db.snapshots_of(namespace, sandbox, ascending, cursor, limit).await;
        let mut rows = rows.map_err(internal("list snapshots"))?;
        let next = take_page(&mut rows, list.page.limit, |row| row.id.to_string());
        Ok((rows.iter().map(present::snapshot).collect(), next))
    }

    /// Deletes the record; the files go on whichever host they are.
    pub(crate) async fn drop_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        self.find_snapshot(namespace, id).await?;
        self.db.delete_snapshot(id, self.clock.now()).await.map_err(internal("delete snapshot"))?;
        self.runner.tidy();
        self.runner.saved().await?;
        Ok(present::snapshot(&self.find_snapshot(namespace, id).await?))
    }

    /// A snapshot beside those on top of the same parent. Those that stand on
    /// an image alone have no parent, and so no siblings.
    async fn node(&self, row: &SnapshotRow) -> Result<SnapshotNode> {
        let (siblings, count) = match &row.parent {
            Some(parent) => {
                let found = self.db.snapshot_children(&row.namespace, parent, Some(&row.id), SIBLINGS).await;
                found.map_err(internal("list siblings"))?
            }
            None => (Vec::new(), 0),
        };
        Ok(SnapshotNode {
            snapshot: present::snapshot(row),
            siblings: siblings.iter().map(present::snapshot).collect(),
            sibling_count: u64::try_from(count).unwrap_or(0),
        })
    }

    /// The line from `id` towards its first ancestor whose record is still
    /// there, or towards the newest descendant of each generation.
    pub(crate) async fn line_of_snapshots(
        &self,
        namespace: &Namespace,
        id: &SnapshotId,
        order: Direction,
        limit: u32,
    ) -> Result<SnapshotTree> {
        let anchor = self.find_snapshot(namespace, id).await?;
        let (mut nodes, mut at, mut next) = (Vec::new(), anchor.clone(), None);
        loop {
            let following = match order {
                Direction::Descending => match &at.parent {
                    Some(parent) => self.db.snapshot(parent).await.map_err(internal("read parent"))?,
                    None => None,
                },
                Direction::Ascending => {
                    let children = self.db.snapshot_children(namespace, &at.id, None, 1).await;
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
