//! Snapshots.

pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod tree;

use dormouse_provider::Namespace;
use dormouse_types::SnapshotId;

use super::error::{WireError, WireResult};
use super::scope::Scope;
use crate::App;

fn id(text: &str) -> WireResult<SnapshotId> {
    text.parse().map_err(|_| WireError::not_found(format!("snapshot {text} not found")))
}

/// The namespace of a snapshot of the caller's. The paths of one snapshot carry
/// no project, so the owner decides.
async fn locate(app: &App, scope: &Scope, text: &str) -> WireResult<(Namespace, SnapshotId)> {
    let id = id(text)?;
    let row = app.db.snapshot(&id).await.map_err(crate::error::ApiError::from)?;
    match row.filter(|row| row.namespace.owner == scope.owner) {
        Some(row) => Ok((row.namespace, id)),
        None => Err(WireError::not_found(format!("snapshot {id} not found"))),
    }
}
