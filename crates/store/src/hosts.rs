//! Table `hosts`: servers with their data directories.

use dormouse_types::{HostId, Timestamp};

use crate::db::Db;
use crate::error::Result;

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// Its id, which lies in its data directory.
    pub id: HostId,
    /// Where its API is reached.
    pub url: String,
    /// When its server last said that it is there.
    pub seen_at: Timestamp,
}

impl Db {
    /// A host's server is there, and reached so.
    pub async fn note_host(&self, host: &HostRow) -> Result<()> {
        self.change(
            format!("note {}", host.id),
            "INSERT INTO hosts (id, url, seen_at) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET url = excluded.url, seen_at = excluded.seen_at",
        )
        .bind(&host.id)
        .bind(&host.url)
        .bind(host.seen_at)
        .execute()
        .await
        .map(drop)
    }

    /// The host with this id.
    pub async fn host(&self, id: &HostId) -> Result<Option<HostRow>> {
        self.sql(format!("read {id}"), "SELECT id, url, seen_at FROM hosts WHERE id = $1")
            .bind(id)
            .one(|row| {
                let row = row.of("hosts", "");
                Ok(HostRow { id: row.get("id")?, url: row.get("url")?, seen_at: row.get("seen_at")? })
            })
            .await
    }
}
