//! Make a sandbox, which has one run.

use axum::Json;
use axum::extract::State;
use dormouse_provider::CloneDirectory;
use dormouse_wire as wire;

use super::super::error::WireResult;
use super::super::present;
use super::super::sandboxes::create::creation;
use super::super::scope::Scope;
use crate::App;
use crate::body::ApiJson;

pub(super) async fn create(
    State(app): State<App>,
    scope: Scope,
    ApiJson(body): ApiJson<wire::CreateRequest>,
) -> WireResult<Json<wire::v1::SandboxReply>> {
    let mut request = creation(CloneDirectory::Workdir, scope, body)?;
    // It has no second run.
    (request.persistent, request.ephemeral) = (false, true);
    let made = app.provider.create(request).await?;
    let routes = present::routes(made.routes, &app.ports);
    Ok(Json(wire::v1::SandboxReply { sandbox: present::session(made.run), routes }))
}
