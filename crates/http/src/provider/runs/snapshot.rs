//! Make a snapshot of a session, which ends it unless the snapshot is live.

use axum::Json;
use axum::extract::State;
use dormouse_provider::SnapshotRequest;
use dormouse_wire as wire;

use super::super::error::{WireErrors, WireResult};
use super::super::scope::{RunScope, ScopeQuery};
use super::super::{present, requests};
use crate::App;
use crate::body::ApiJson;

/// Make a snapshot of a session, which ends it unless the snapshot is live.
#[utoipa::path(post, path = "/sessions/{id}/snapshot", tag = "sessions", request_body = wire::SnapshotRequest, params(("id" = String, Path, description = "Session id"), ScopeQuery),
    responses((status = 200, body = wire::MadeSnapshotReply, description = "What was made"), WireErrors))]
pub(crate) async fn snapshot(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::SnapshotRequest>,
) -> WireResult<Json<wire::MadeSnapshotReply>> {
    let run_ref = scope.used(&app).await;
    let request = SnapshotRequest {
        expiration: body.expiration.map(requests::expiration).transpose()?,
        live: body.live,
    };
    let made = app.provider.snapshot(&run_ref, request).await?;
    Ok(Json(wire::MadeSnapshotReply {
        snapshot: present::snapshot(made.snapshot),
        session: present::session(made.run),
        stall_micros: made.stall.map(|stall| u64::try_from(stall.as_micros()).unwrap_or(u64::MAX)),
    }))
}
