//! `DELETE /api/org-snapshots/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use dormouse_sessions::SessionError;
use dormouse_types::OrgSnapshotId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::auth::Account;
use crate::error::{ApiErrors, ApiResult};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeleteOrgSnapshotReply {
    success: bool,
}

/// Delete an org snapshot of a repository that one of your organizations claims.
/// Sandboxes that started from it go on; the next one starts cold.
#[utoipa::path(delete, path = "/api/org-snapshots/{id}", tag = "org snapshots",
    params(("id" = String, Path, description = "Org snapshot id")),
    responses((status = 200, description = "Deleted", body = DeleteOrgSnapshotReply), ApiErrors))]
pub(crate) async fn delete(
    State(app): State<App>,
    Account(account): Account,
    Path(id): Path<String>,
) -> ApiResult<Json<DeleteOrgSnapshotReply>> {
    let id: OrgSnapshotId = id.parse().map_err(|_| SessionError::NoSuchOrgSnapshot)?;
    app.sessions.delete_org_snapshot(&account, &id).await?;
    Ok(Json(DeleteOrgSnapshotReply { success: true }))
}
