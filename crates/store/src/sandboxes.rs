//! Tables `sandboxes` and `sandbox_tags`.

use std::collections::BTreeMap;

use dormouse_types::{
    ImageId, Namespace, Quota, RunId, SandboxId, SandboxName, SnapshotId, Timestamp, VolumeId,
};

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::quotas;
use crate::routes::{self, RouteRow};
use crate::runs::{self, RunRow};
use crate::sql::{Row, placeholders, prefixed};

/// One sandbox.
#[derive(Debug, Clone)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub namespace: Namespace,
    /// Its name there.
    pub name: SandboxName,
    /// Keeps its files when it stops.
    pub persistent: bool,
    /// Base image.
    pub image_id: ImageId,
    /// Configuration as JSON.
    pub config: String,
    /// Its newest run, which says where it lives.
    pub current_run: RunId,
    /// What forks copy, and what a run without volume starts from.
    pub current_snapshot: Option<SnapshotId>,
    /// Its files; `None`: the next run makes a volume.
    pub volume_id: Option<VolumeId>,
    /// The last snapshot whose files the volume continues.
    pub descends_from: Option<SnapshotId>,
    /// Bytes below the volume: the image, and what a snapshot held that the
    /// volume was copied from.
    pub base_bytes: i64,
    /// Runs that these files have seen.
    pub boots: i64,
    /// What its creation is repeated by, until the answer was taken.
    pub retry_key: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When the status of its newest run last changed.
    pub status_updated_at: Timestamp,
}

/// A sandbox and its newest run, read at once.
#[derive(Debug, Clone)]
pub struct SandboxWithRun {
    /// The sandbox.
    pub sandbox: SandboxRow,
    /// Its newest run.
    pub run: RunRow,
}

/// What a list of sandboxes is sorted by; ties by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxOrder {
    /// Id, and so age.
    Id,
    /// Name.
    Name,
    /// `status_updated_at`.
    StatusUpdatedAt,
}

/// Which sandboxes to list.
#[derive(Debug, Clone)]
pub struct SandboxFilter<'a> {
    /// Only names that begin so.
    pub name_prefix: Option<&'a str>,
    /// Only with all of these labels.
    pub tags: &'a BTreeMap<String, String>,
    /// By what.
    pub order: SandboxOrder,
    /// Smallest first.
    pub ascending: bool,
    /// Only after this one: what it is sorted by (empty for its id), and its id.
    pub after: Option<(String, String)>,
    /// At most this many.
    pub limit: i64,
}

const COLUMNS: &[&str] = &[
    "id",
    "owner",
    "project",
    "name",
    "persistent",
    "image_id",
    "config",
    "current_run",
    "current_snapshot",
    "volume_id",
    "descends_from",
    "base_bytes",
    "boots",
    "retry_key",
    "created_at",
    "updated_at",
    "status_updated_at",
];

fn read(row: &Row) -> Result<SandboxRow> {
    let row = row.of("sandboxes", "");
    Ok(SandboxRow {
        id: row.get("id")?,
        namespace: Namespace { owner: row.get("owner")?, project: row.get("project")? },
        name: row.get("name")?,
        persistent: row.get("persistent")?,
        image_id: row.get("image_id")?,
        config: row.secret("config")?,
        current_run: row.get("current_run")?,
        current_snapshot: row.get("current_snapshot")?,
        volume_id: row.get("volume_id")?,
        descends_from: row.get("descends_from")?,
        base_bytes: row.get("base_bytes")?,
        boots: row.get("boots")?,
        retry_key: row.get("retry_key")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        status_updated_at: row.get("status_updated_at")?,
    })
}

/// What a query selects that calls sandboxes `s` and their current runs `r`.
fn columns_with_run() -> String {
    format!("{}, {}", prefixed("s", "", COLUMNS), prefixed("r", "run_", runs::COLUMNS))
}

fn read_with_run(row: &Row) -> Result<SandboxWithRun> {
    Ok(SandboxWithRun { sandbox: read(row)?, run: runs::read(row, "run_")? })
}

fn select_with_run() -> String {
    format!("SELECT {} FROM sandboxes s JOIN runs r ON r.id = s.current_run", columns_with_run())
}

/// The sandbox, which nobody else changes before this transaction is over.
pub(crate) async fn lock(tx: &mut Tx, id: &SandboxId) -> Result<Option<SandboxRow>> {
    let text = format!("SELECT {} FROM sandboxes WHERE id = $1{}", COLUMNS.join(", "), tx.locking());
    tx.sql(format!("lock sandbox {id}"), text).bind(id).one(read).await
}

/// Writes what is known of a sandbox's files.
pub(crate) async fn write_files(tx: &mut Tx, sandbox: &SandboxRow) -> Result<()> {
    tx.sql(
        format!("write the files of {}", sandbox.id),
        "UPDATE sandboxes SET current_snapshot = $1, volume_id = $2, descends_from = $3,
         updated_at = $4, status_updated_at = $5 WHERE id = $6",
    )
    .bind(&sandbox.current_snapshot)
    .bind(&sandbox.volume_id)
    .bind(&sandbox.descends_from)
    .bind(sandbox.updated_at)
    .bind(sandbox.status_updated_at)
    .bind(&sandbox.id)
    .execute()
    .await
    .map(drop)
}

async fn put_tags(tx: &mut Tx, id: &SandboxId, tags: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in tags {
        tx.sql(format!("tag {id}"), "INSERT INTO sandbox_tags (sandbox_id, key, value) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(key)
            .bind(value)
            .execute()
            .await?;
    }
    Ok(())
}

impl Db {
    /// Sandboxes that do not run and have nothing but this snapshot to start
    /// from.
    pub async fn sandboxes_with_nothing_but(
        &self,
        snapshot: &SnapshotId,
    ) -> Result<Vec<(Namespace, SandboxName)>> {
        self.sql(
            format!("read the sandboxes that start from {snapshot}"),
            "SELECT s.owner AS owner, s.project AS project, s.name AS name FROM sandboxes s
             JOIN runs r ON r.id = s.current_run
             WHERE s.current_snapshot = $1 AND s.volume_id IS NULL
               AND r.status IN ('stopped', 'failed', 'aborted')",
        )
        .bind(snapshot)
        .all(|row| {
            let row = row.of("sandboxes", "");
            let namespace = Namespace { owner: row.get("owner")?, project: row.get("project")? };
            Ok((namespace, row.get("name")?))
        })
        .await
    }

    /// Adds a sandbox together with its first run, labels and routes, unless that is
    /// more than its owner may have.
    pub async fn insert_sandbox(
        &self,
        sandbox: &SandboxRow,
        run: &RunRow,
        tags: &BTreeMap<String, String>,
        routes: &[RouteRow],
        quota: &Quota,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        quotas::admit(&mut tx, run, quota, true).await?;
        tx.sql(
            format!("insert sandbox {}", sandbox.name),
            format!(
                "INSERT INTO sandboxes ({}) VALUES ({})",
                COLUMNS.join(", "),
                placeholders(COLUMNS.len())
            ),
        )
        .bind(&sandbox.id)
        .bind(&sandbox.namespace.owner)
        .bind(&sandbox.namespace.project)
        .bind(&sandbox.name)
        .bind(sandbox.persistent)
        .bind(&sandbox.image_id)
        .bind_secret("sandboxes", "config", &sandbox.config)
        .bind(&sandbox.current_run)
        .bind(&sandbox.current_snapshot)
        .bind(&sandbox.volume_id)
        .bind(&sandbox.descends_from)
        .bind(sandbox.base_bytes)
        .bind(sandbox.boots)
        .bind(&sandbox.retry_key)
        .bind(sandbox.created_at)
        .bind(sandbox.updated_at)
        .bind(sandbox.status_updated_at)
        .execute()
        .await
        .map_err(|error| error.unique(format!("sandbox {}", sandbox.name)))?;
        put_tags(&mut tx, &sandbox.id, tags).await?;
        routes::put(&mut tx, &sandbox.id, routes).await?;
        runs::insert(&mut tx, run).await?;
        tx.commit("insert sandbox").await
    }

    /// Writes what a caller may change in a sandbox: persistence and
    /// configuration. `tags` and `routes` replace what is there, when given; a
    /// port that stays keeps its name.
    pub async fn update_sandbox(
        &self,
        sandbox: &SandboxRow,
        tags: Option<&BTreeMap<String, String>>,
        routes: Option<&[RouteRow]>,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("update sandbox {}", sandbox.id),
            "UPDATE sandboxes SET persistent = $1, config = $2, updated_at = $3 WHERE id = $4",
        )
        .bind(sandbox.persistent)
        .bind_secret("sandboxes", "config", &sandbox.config)
        .bind(sandbox.updated_at)
        .bind(&sandbox.id)
        .execute()
        .await?;
        if let Some(tags) = tags {
            tx.sql(format!("drop tags of {}", sandbox.id), "DELETE FROM sandbox_tags WHERE sandbox_id = $1")
                .bind(&sandbox.id)
                .execute()
                .await?;
            put_tags(&mut tx, &sandbox.id, tags).await?;
        }
        if let Some(routes) = routes {
            routes::replace(&mut tx, &sandbox.id, routes).await?;
        }
        tx.commit("update sandbox").await
    }

    /// The sandbox of this name, with its newest run.
    pub async fn sandbox(&self, namespace: &Namespace, name: &SandboxName) -> Result<Option<SandboxWithRun>> {
        let text = format!("{} WHERE s.owner = $1 AND s.project = $2 AND s.name = $3", select_with_run());
        self.sql(format!("read sandbox {name}"), text)
            .bind(&namespace.owner)
            .bind(&namespace.project)
            .bind(name)
            .one(read_with_run)
            .await
    }

    /// The sandbox with this id, with its newest run.
    pub async fn sandbox_by_id(&self, id: &SandboxId) -> Result<Option<SandboxWithRun>> {
        let text = format!("{} WHERE s.id = $1", select_with_run());
        self.sql(format!("read sandbox {id}"), text).bind(id).one(read_with_run).await
    }

    /// Sandboxes of a namespace, with their newest runs.
    pub async fn sandboxes_of(
        &self,
        namespace: &Namespace,
        filter: &SandboxFilter<'_>,
    ) -> Result<Vec<SandboxWithRun>> {
        let mut text = format!("{} WHERE s.owner = $1 AND s.project = $2", select_with_run());
        let mut values = Vec::new();
        let place = |values: &mut Vec<String>, value: String| {
            values.push(value);
            format!("${}", values.len() + 2)
        };
        if let Some(prefix) = filter.name_prefix {
            // Names are ASCII below DEL.
            let from = place(&mut values, prefix.to_owned());
            let to = place(&mut values, format!("{prefix}\u{7f}"));
            text.push_str(&format!(" AND s.name >= {from} AND s.name < {to}"));
        }
        for (key, value) in filter.tags {
            let key = place(&mut values, key.clone());
            let value = place(&mut values, value.clone());
            text.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM sandbox_tags t WHERE t.sandbox_id = s.id
                   AND t.key = {key} AND t.value = {value})"
            ));
        }
        let column = match filter.order {
            SandboxOrder::Id => "",
            SandboxOrder::Name => "s.name",
            SandboxOrder::StatusUpdatedAt => "s.status_updated_at",
        };
        let (compare, direction) = if filter.ascending { (">", "ASC") } else { ("<", "DESC") };
        let mut instant = None;
        if let Some((key, id)) = &filter.after {
            let id = place(&mut values, id.clone());
            text.push_str(&match filter.order {
                SandboxOrder::Id => format!(" AND s.id {compare} {id}"),
                SandboxOrder::Name => {
                    let name = place(&mut values, key.clone());
                    format!(" AND (s.name, s.id) {compare} ({name}, {id})")
                }
                SandboxOrder::StatusUpdatedAt => {
                    instant = Some(key.parse::<i64>().unwrap_or(0));
                    format!(" AND (s.status_updated_at, s.id) {compare} (${}, {id})", values.len() + 3)
                }
            });
        }
        let sorted = if column.is_empty() { String::new() } else { format!("{column} {direction}, ") };
        let limit = values.len() + 3 + usize::from(instant.is_some());
        text.push_str(&format!(" ORDER BY {sorted}s.id {direction} LIMIT ${limit}"));
        let mut query = self.sql("list sandboxes", text).bind(&namespace.owner).bind(&namespace.project);
        for value in values {
            query = query.bind(value);
        }
        if let Some(instant) = instant {
            query = query.bind(instant);
        }
        query.bind(filter.limit).all(read_with_run).await
    }

    /// The answer to a creation was taken: who asks again gets that the name is
    /// taken.
    pub async fn creation_taken(&self, namespace: &Namespace, name: &SandboxName) -> Result<()> {
        self.change(
            format!("note that {name} was handed over"),
            "UPDATE sandboxes SET retry_key = NULL
             WHERE owner = $1 AND project = $2 AND name = $3 AND retry_key IS NOT NULL",
        )
        .bind(&namespace.owner)
        .bind(&namespace.project)
        .bind(name)
        .execute()
        .await
        .map(drop)
    }

    /// The sandbox and port behind a name.
    pub async fn route(&self, subdomain: &str) -> Result<Option<(SandboxWithRun, u16)>> {
        let text = format!(
            "SELECT {}, t.port AS port FROM routes t JOIN sandboxes s ON s.id = t.sandbox_id
             JOIN runs r ON r.id = s.current_run WHERE t.subdomain = $1",
            columns_with_run()
        );
        self.sql(format!("read route {subdomain}"), text)
            .bind(subdomain.to_owned())
            .one(|row| Ok((read_with_run(row)?, row.of("routes", "").number("port")?)))
            .await
    }
}
