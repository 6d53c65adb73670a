//! Make a snapshot of a sandbox, which ends it.

use axum::Json;
use axum::extract::State;
use dormouse_provider::SnapshotRequest;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::scope::RunScope;
use super::super::{present, requests};
use crate::App;
use crate::body::ApiJson;

pub(super) async fn snapshot(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::SnapshotRequest>,
) -> WireResult<Json<wire::v1::MadeSnapshotReply>> {
    scope.used(&app).await;
    let expiration = body.expiration.map(requests::expiration).transpose()?;
    let request = SnapshotRequest { expiration, live: false };
    let made = app.provider.snapshot(&scope.run, request).await?;
    let (snapshot, sandbox) = (present::snapshot(made.snapshot).into(), present::session(made.run));
    Ok(Json(wire::v1::MadeSnapshotReply { snapshot, sandbox }))
}
