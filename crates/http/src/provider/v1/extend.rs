//! Move the end of a sandbox later.

use axum::Json;
use axum::extract::State;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::requests;
use super::super::scope::RunScope;
use super::reply;
use crate::App;
use crate::body::ApiJson;

pub(super) async fn extend(
    State(app): State<App>,
    scope: RunScope,
    ApiJson(body): ApiJson<wire::ExtendRequest>,
) -> WireResult<Json<wire::v1::SandboxReply>> {
    scope.used(&app).await;
    let by = requests::extension(body.duration)?;
    let run = app.provider.extend(&scope.run, by).await?;
    reply(&app, &scope, run).await
}
