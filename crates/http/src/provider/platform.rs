//! The few account and project calls that the protocol's command line makes on
//! its way (provider contract, section 2). A team is the caller's own account or
//! an organization; a project is a name, and exists as soon as it is used.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::error::{WireError, WireResult};
use super::scope::{Scope, owner};
use crate::App;
use crate::auth::{Caller, Identity};
use crate::body::ApiJson;

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/api/v2/user", get(user))
        .route("/api/v2/teams", get(teams))
        .route("/api/v2/teams/{id}", get(team))
        .route("/api/v2/projects/{id}", get(project))
        .route("/api/v9/projects/{id}", get(project))
        .route("/api/v11/projects", post(make_project))
        .route("/api/v1/events", post(async || Json(json!({}))))
}

/// Who calls, whatever the query says.
struct Anyone(Identity);

impl axum::extract::FromRequestParts<App> for Anyone {
    type Rejection = WireError;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        app: &App,
    ) -> Result<Self, WireError> {
        let Caller(identity) = Caller::from_request_parts(parts, app).await?;
        Ok(Self(identity))
    }
}

async fn user(State(app): State<App>, Anyone(identity): Anyone) -> WireResult<Json<Value>> {
    let row = app.db.account(&identity.account).await.map_err(crate::error::ApiError::from)?;
    let (name, email) = row.map(|row| (row.name, row.email)).unwrap_or_default();
    let mut user = json!({
        "id": identity.account,
        "username": name,
        "name": name,
        "defaultTeamId": identity.account,
    });
    if let Some(email) = email {
        user["email"] = email.into();
    }
    Ok(Json(json!({ "user": user })))
}

fn as_team(id: &str, slug: &str, name: &str) -> Value {
    json!({
        "id": id, "slug": slug, "name": name,
        "membership": {"role": "OWNER"}, "billing": {"plan": "enterprise"},
    })
}

/// The caller's own account, and their organizations.
async fn all_teams(app: &App, identity: &Identity) -> WireResult<Vec<Value>> {
    let row = app.db.account(&identity.account).await.map_err(crate::error::ApiError::from)?;
    let name = row.map(|row| row.name).unwrap_or_default();
    let account = identity.account.as_str();
    let mut teams = vec![as_team(account, account, &name)];
    let orgs = app.db.orgs_of(&identity.account).await.map_err(crate::error::ApiError::from)?;
    teams.extend(orgs.iter().map(|org| as_team(org.id.as_str(), &org.name, &org.name)));
    Ok(teams)
}

async fn teams(State(app): State<App>, Anyone(identity): Anyone) -> WireResult<Json<Value>> {
    let teams = all_teams(&app, &identity).await?;
    let pagination = json!({"count": teams.len(), "next": null, "prev": null});
    Ok(Json(json!({"teams": teams, "pagination": pagination})))
}

async fn team(
    State(app): State<App>,
    Anyone(identity): Anyone,
    Path(id): Path<String>,
) -> WireResult<Json<Value>> {
    let owner = owner(&app, &identity, Some(&id)).await?;
    let team = all_teams(&app, &identity).await?.into_iter().find(|team| team["id"] == owner.as_str());
    team.map(Json).ok_or_else(|| WireError::not_found(format!("team {id} not found")))
}

fn as_project(owner: &str, name: &str) -> Json<Value> {
    Json(json!({"id": name, "name": name, "accountId": owner}))
}

/// The default project of the protocol's command line is ours.
async fn project(scope: Scope, Path(id): Path<String>) -> WireResult<Json<Value>> {
    let scope = scope.with_project(Some(id))?;
    Ok(as_project(&scope.owner, &scope.namespace.project))
}

#[derive(serde::Deserialize)]
struct NewProject {
    name: String,
}

async fn make_project(
    scope: Scope,
    Query(_): Query<Vec<(String, String)>>,
    ApiJson(body): ApiJson<NewProject>,
) -> WireResult<Json<Value>> {
    let scope = scope.with_project(Some(body.name.clone()))?;
    Ok(as_project(&scope.owner, &body.name))
}
