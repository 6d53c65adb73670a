//! Get a sandbox.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::scope::RunScope;
use super::reply;
use crate::App;

pub(super) async fn get(State(app): State<App>, scope: RunScope) -> WireResult<Json<wire::v1::SandboxReply>> {
    let run = app.provider.run(&scope.run).await?;
    reply(&app, &scope, run).await
}
