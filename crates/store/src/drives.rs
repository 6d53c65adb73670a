//! Table `drives`: volumes of their own, which sandboxes mount.

use dormouse_types::{DriveId, HostId, Namespace, RunId, SandboxName, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::garbage::{self, GarbageKind};
use crate::runs::LIVE;
use crate::sql::Row;

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveRow {
    /// Its id.
    pub id: DriveId,
    /// Whose it is.
    pub namespace: Namespace,
    /// Its name there.
    pub name: String,
    /// Where its files are.
    pub host_id: HostId,
    /// Bytes that it may hold.
    pub max_size_bytes: i64,
    /// It was mounted once, so that there is something of it on disk.
    pub made: bool,
    /// The live run that may write to it, and whose that is.
    pub attached: Option<(RunId, SandboxName)>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed hands.
    pub updated_at: Timestamp,
}

/// What a list of drives is sorted by; ties by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveOrder {
    /// When they were made.
    CreatedAt,
    /// When they last changed hands.
    UpdatedAt,
    /// Their names.
    Name,
}

/// Which drives a list shows.
#[derive(Debug, Clone)]
pub struct DriveFilter<'a> {
    /// By what.
    pub order: DriveOrder,
    /// Which way.
    pub ascending: bool,
    /// Only names that begin so.
    pub name_prefix: Option<&'a str>,
    /// Sort key and id of the last one of the page before.
    pub after: Option<(String, String)>,
    /// How many.
    pub limit: i64,
}

fn select() -> String {
    // A run that has ended holds nothing, whoever did not get to say so.
    format!(
        "SELECT d.id, d.owner, d.project, d.name, d.host_id, d.max_size_bytes, d.made, d.created_at,
           d.updated_at, r.id AS run, r.sandbox_name AS sandbox
         FROM drives d LEFT JOIN runs r ON r.id = d.attached_run AND r.{LIVE}"
    )
}

fn read(row: &Row) -> Result<DriveRow> {
    let row = row.of("drives", "");
    let run: Option<RunId> = row.get("run")?;
    let sandbox: Option<SandboxName> = row.get("sandbox")?;
    Ok(DriveRow {
        id: row.get("id")?,
        namespace: Namespace::new(row.get::<String>("owner")?, row.get::<String>("project")?),
        name: row.get("name")?,
        host_id: row.get("host_id")?,
        max_size_bytes: row.get("max_size_bytes")?,
        made: row.get("made")?,
        attached: run.zip(sandbox),
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

impl Db {
    /// Adds a drive, which nothing is attached to.
    ///
    /// # Errors
    /// [`crate::StoreError::Conflict`] where the name is taken.
    pub async fn insert_drive(&self, drive: &DriveRow) -> Result<()> {
        self.change(
            format!("insert drive {}", drive.name),
            "INSERT INTO drives (id, owner, project, name, host_id, max_size_bytes, made, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&drive.id)
        .bind(&drive.namespace.owner)
        .bind(&drive.namespace.project)
        .bind(drive.name.clone())
        .bind(&drive.host_id)
        .bind(drive.max_size_bytes)
        .bind(drive.made)
        .bind(drive.created_at)
        .bind(drive.updated_at)
        .execute()
        .await
        .map_err(|error| error.unique(format!("drive {}", drive.name)))
        .map(drop)
    }

    /// The drive of this name.
    pub async fn drive(&self, namespace: &Namespace, name: &str) -> Result<Option<DriveRow>> {
        let text = format!("{} WHERE d.owner = $1 AND d.project = $2 AND d.name = $3", select());
        self.sql(format!("read drive {name}"), text)
            .bind(&namespace.owner)
            .bind(&namespace.project)
            .bind(name.to_owned())
            .one(read)
            .await
    }

    /// Drives of a namespace.
    pub async fn drives_of(&self, namespace: &Namespace, filter: &DriveFilter<'_>) -> Result<Vec<DriveRow>> {
        let (column, number) = match filter.order {
            DriveOrder::CreatedAt => ("d.created_at", true),
            DriveOrder::UpdatedAt => ("d.updated_at", true),
            DriveOrder::Name => ("d.name", false),
        };
        let (compare, direction) = if filter.ascending { (">", "ASC") } else { ("<", "DESC") };
        // Names are ASCII below DEL.
        let prefix = filter.name_prefix.unwrap_or_default().to_owned();
        let mut text =
            format!("{} WHERE d.owner = $1 AND d.project = $2 AND d.name >= $3 AND d.name < $4", select());
        if filter.after.is_some() {
            text.push_str(&format!(" AND ({column}, d.id) {compare} ($6, $7)"));
        }
        text.push_str(&format!(" ORDER BY {column} {direction}, d.id {direction} LIMIT $5"));
        let mut query = self
            .sql("list drives", text)
            .bind(&namespace.owner)
            .bind(&namespace.project)
            .bind(prefix.clone())
            .bind(format!("{prefix}\u{7f}"))
            .bind(filter.limit);
        if let Some((key, id)) = &filter.after {
            query =
                if number { query.bind(key.parse::<i64>().unwrap_or(0)) } else { query.bind(key.clone()) };
            query = query.bind(id.clone());
        }
        query.all(read).await
    }

    /// Gives a drive to a run to write to. `false`: another live run has it.
    pub async fn attach_drive(&self, id: &DriveId, run: &RunId, now: Timestamp) -> Result<bool> {
        let text = format!(
            "UPDATE drives SET attached_run = $1, made = TRUE, updated_at = $2 WHERE id = $3
             AND (attached_run IS NULL OR attached_run = $1
               OR NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = drives.attached_run AND runs.{LIVE}))"
        );
        let attached = self.change(format!("attach drive {id}"), text).bind(run).bind(now).bind(id);
        Ok(attached.execute().await? > 0)
    }

    /// The drives that a run may write to.
    pub async fn drives_attached(&self, run: &RunId) -> Result<Vec<DriveId>> {
        self.sql(format!("read the drives of {run}"), "SELECT id FROM drives WHERE attached_run = $1")
            .bind(run)
            .all(|row| row.of("drives", "").get("id"))
            .await
    }

    /// Forgets a drive, whose files go. `false`: a live run has it.
    pub async fn delete_drive(&self, drive: &DriveRow, now: Timestamp) -> Result<bool> {
        let mut tx = self.write().await?;
        let text = format!(
            "DELETE FROM drives WHERE id = $1 AND NOT EXISTS
               (SELECT 1 FROM runs WHERE runs.id = drives.attached_run AND runs.{LIVE})"
        );
        let gone = tx.sql(format!("delete drive {}", drive.id), text).bind(&drive.id).execute().await?;
        if gone > 0 {
            let id = drive.id.as_str();
            garbage::add(&mut tx, &drive.host_id, GarbageKind::Drive, id, now).await?;
        }
        tx.commit("delete drive").await?;
        Ok(gone > 0)
    }

    /// Whether a drive, or the garbage, owns these files.
    pub async fn owns_drive(&self, id: &DriveId) -> Result<bool> {
        self.sql(
            format!("look for the owner of {id}"),
            "SELECT 1 FROM drives WHERE id = $1
             UNION ALL SELECT 1 FROM garbage WHERE kind = 'drive' AND name = $1 LIMIT 1",
        )
        .bind(id)
        .exists()
        .await
    }

    /// Whether this run lives.
    pub async fn is_live(&self, run: &RunId) -> Result<bool> {
        self.sql(format!("look for run {run}"), format!("SELECT 1 FROM runs WHERE id = $1 AND {LIVE}"))
            .bind(run)
            .exists()
            .await
    }
}
