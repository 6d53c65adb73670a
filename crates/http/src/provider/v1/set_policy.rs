//! Change what may leave a sandbox.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::requests;
use super::super::scope::RunScope;
use super::reply;
use crate::App;
use crate::body::ApiJson;

pub(super) async fn set_policy(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::NetworkPolicyRequest>,
) -> WireResult<Json<wire::v1::SandboxReply>> {
    scope.used(&app).await;
    let run = app.provider.set_network_policy(&scope.run, requests::policy(body)?).await?;
    reply(&app, &scope, run).await
}
