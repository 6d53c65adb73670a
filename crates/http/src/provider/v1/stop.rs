//! Stop a sandbox.

use axum::Json;
use axum::extract::State;
use dormouse_provider::StopReason;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::scope::RunScope;
use super::reply;
use crate::App;

pub(super) async fn stop(
    State(app): State<App>,
    scope: RunScope,
) -> WireResult<Json<wire::v1::SandboxReply>> {
    let stopped = app.provider.stop(&scope.run, StopReason::Requested).await?;
    reply(&app, &scope, stopped.run).await
}
