//! List sandboxes.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};
use dormouse_provider::{ListSandboxes, SandboxSort};
use dormouse_wire as wire;

use super::super::error::{WireError, WireErrors, WireResult};
use super::super::pages::{order, page};
use super::super::present;
use super::super::scope::{Scope, ScopeQuery};
use crate::App;

// Parameters may come more than once (`tags`), which a struct cannot read.

/// List the sandboxes of a project.
#[utoipa::path(get, path = "", tag = "sandboxes", params(ScopeQuery, ("limit" = Option<u32>, Query, description = "1 to 100; by default 20"), ("cursor" = Option<String>, Query, description = "Where the page before ended"),
        ("sortBy" = Option<String>, Query, description = "`createdAt`, `name` or `statusUpdatedAt`"), ("sortOrder" = Option<String>, Query, description = "`asc` or `desc`"),
        ("namePrefix" = Option<String>, Query, description = "Only names that begin so; needs `sortBy=name`"), ("tags" = Option<Vec<String>>, Query, description = "Only with all of these labels, written `key:value`")),
    responses((status = 200, body = wire::SandboxList, description = "A page of them"), WireErrors))]
pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(pairs): Query<Vec<(String, String)>>,
) -> WireResult<Json<wire::SandboxList>> {
    let one = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let limit =
        one("limit").map(|text| text.parse().map_err(|_| WireError::bad_request("limit must be a number")));
    let name_prefix = one("namePrefix").filter(|prefix| !prefix.is_empty());
    let sort = match one("sortBy").as_deref() {
        None | Some("createdAt") => SandboxSort::CreatedAt,
        Some("name") => SandboxSort::Name,
        Some("statusUpdatedAt") => SandboxSort::StatusUpdatedAt,
        Some(_) => {
            return Err(WireError::bad_request("sortBy must be createdAt, name or statusUpdatedAt"));
        }
    };
    if name_prefix.is_some() && sort != SandboxSort::Name {
        return Err(WireError::bad_request("namePrefix needs sortBy=name"));
    }
    let mut tags = BTreeMap::new();
    for (_, tag) in pairs.iter().filter(|(key, _)| key == "tags" || key == "tags[]") {
        let (key, value) =
            tag.split_once(':').ok_or_else(|| WireError::bad_request("tags must be written key:value"))?;
        if tags.insert(key.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
            return Err(WireError::bad_request(format!("tags: {key} cannot have two values")));
        }
    }
    let list = ListSandboxes {
        page: page(limit.transpose()?, one("cursor"))?,
        sort,
        order: order(one("sortOrder").as_deref())?,
        name_prefix,
        tags,
    };
    let (sandboxes, next) = app.provider.list(&scope.namespace, list).await?;
    let sandboxes: Vec<_> = sandboxes.into_iter().map(present::sandbox).collect();
    let pagination = wire::Pagination { count: sandboxes.len(), next };
    Ok(Json(wire::SandboxList { sandboxes, pagination }))
}
