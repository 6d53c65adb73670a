//! `/api/keys`: the caller's own keys.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;

use dormouse_store::KeyRow;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Key {
    id: String,
    name: String,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl From<KeyRow> for Key {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name,
            created_at: row.created_at.as_millis(),
            expires_at: row.expires_at.map(|t| t.as_millis()),
            revoked_at: row.revoked_at.map(|t| t.as_millis()),
        }
    }
}
