//! `/api/organizations/{org}/secrets`: secrets of an organization, for its members.

pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod set;

use dormouse_store::SecretRow;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    name: String,
    /// Hosts that it is for.
    hosts: Vec<String>,
    /// Header in which it goes there.
    header: String,
    /// What stands for it in the environment of sandboxes.
    placeholder: String,
    created_at: i64,
    updated_at: i64,
}

impl From<SecretRow> for Secret {
    fn from(row: SecretRow) -> Self {
        Self {
            name: row.name,
            hosts: row.hosts,
            header: row.header,
            placeholder: row.placeholder,
            created_at: row.created_at.as_millis(),
            updated_at: row.updated_at.as_millis(),
        }
    }
}
