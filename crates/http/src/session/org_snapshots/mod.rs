//! `/api/org-snapshots`: snapshots with a repository in them, from which new
//! sandboxes of that repository start.

pub(crate) mod build;
pub(crate) mod builds;
pub(crate) mod delete;
pub(crate) mod list;

use dormouse_types::GithubRepo;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::{ApiError, ApiResult};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct RepoQuery {
    /// `https://github.com/OWNER/NAME`.
    repo_url: Option<String>,
}

fn repo(url: &str) -> ApiResult<GithubRepo> {
    url.parse().map_err(|error| ApiError::bad_request(format!("repoUrl {error}")))
}
