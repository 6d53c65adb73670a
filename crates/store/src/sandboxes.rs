//! Tables `sandboxes`, `sandbox_tags` and `routes`.

use std::collections::BTreeMap;

use dormouse_types::{ImageId, SandboxId, SandboxName, SnapshotId, Timestamp, VolumeId};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _};

use crate::db::{Db, StoreError, Tx, commit, typed};
use crate::garbage::{self, GarbageKind};
use crate::runs::{self, RunRow};
use crate::snapshots::{self, GOES};

/// One sandbox.
#[derive(Debug, Clone)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub namespace: String,
    /// Its name there.
    pub name: SandboxName,
    /// Keeps its files when it stops.
    pub persistent: bool,
    /// Base image.
    pub image_id: ImageId,
    /// Configuration as JSON; only the engine reads it.
    pub config: String,
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
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When the status of its newest run last changed.
    pub status_updated_at: Timestamp,
}

/// A port of a sandbox and the name that reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRow {
    /// First label of the host name; unique.
    pub subdomain: String,
    /// Port inside.
    pub port: u16,
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

/// Which snapshots go with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotsOfDeleted {
    /// None; automatic ones that would stay for ever go at this time.
    Stay {
        /// When.
        automatic_until: Timestamp,
    },
    /// The automatic ones.
    AutomaticGo,
    /// All.
    AllGo,
}

const COLUMNS: &str = "id, namespace, name, persistent, image_id, config, current_snapshot, volume_id,
    descends_from, base_bytes, boots, created_at, updated_at, status_updated_at";

fn row(raw: &SqliteRow) -> crate::Result<SandboxRow> {
    fn column<'r, T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(
        raw: &'r SqliteRow,
        name: &'static str,
    ) -> crate::Result<T> {
        raw.try_get(name).map_err(StoreError::database(format!("read sandboxes.{name}")))
    }
    fn id<T: std::str::FromStr>(raw: &SqliteRow, name: &'static str) -> crate::Result<Option<T>> {
        let text = column::<Option<String>>(raw, name)?;
        text.map(|text| typed(&text, "sandboxes", name)).transpose()
    }
    let text = |name| column::<String>(raw, name);
    Ok(SandboxRow {
        id: typed(&text("id")?, "sandboxes", "id")?,
        namespace: text("namespace")?,
        name: typed(&text("name")?, "sandboxes", "name")?,
        persistent: column(raw, "persistent")?,
        image_id: typed(&text("image_id")?, "sandboxes", "image_id")?,
        config: text("config")?,
        current_snapshot: id(raw, "current_snapshot")?,
        volume_id: id(raw, "volume_id")?,
        descends_from: id(raw, "descends_from")?,
        base_bytes: column(raw, "base_bytes")?,
        boots: column(raw, "boots")?,
        created_at: Timestamp(column(raw, "created_at")?),
        updated_at: Timestamp(column(raw, "updated_at")?),
        status_updated_at: Timestamp(column(raw, "status_updated_at")?),
    })
}

async fn put_tags(tx: &mut Tx<'_>, id: &SandboxId, tags: &BTreeMap<String, String>) -> crate::Result<()> {
    for (key, value) in tags {
        sqlx::query("INSERT INTO sandbox_tags (sandbox_id, key, value) VALUES ($1, $2, $3)")
            .bind(id.as_str())
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await
            .map_err(StoreError::database(format!("tag {id}")))?;
    }
    Ok(())
}

async fn put_routes(tx: &mut Tx<'_>, id: &SandboxId, routes: &[RouteRow]) -> crate::Result<()> {
    for route in routes {
        // A port that is kept keeps its name.
        sqlx::query(
            "INSERT INTO routes (subdomain, sandbox_id, port) VALUES ($1, $2, $3)
             ON CONFLICT (sandbox_id, port) DO NOTHING",
        )
        .bind(&route.subdomain)
        .bind(id.as_str())
        .bind(i64::from(route.port))
        .execute(&mut **tx)
        .await
        .map_err(StoreError::database(format!("route to {id}")))?;
    }
    Ok(())
}

impl Db {
    /// Adds a sandbox together with its first run, labels and routes.
    pub async fn insert_sandbox(
        &self,
        sandbox: &SandboxRow,
        run: &RunRow,
        tags: &BTreeMap<String, String>,
        routes: &[RouteRow],
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO sandboxes (id, namespace, name, persistent, image_id, config,
             current_snapshot, volume_id, descends_from, base_bytes, boots, created_at, updated_at,
             status_updated_at)
             VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14)",
        )
        .bind(sandbox.id.as_str())
        .bind(&sandbox.namespace)
        .bind(sandbox.name.as_str())
        .bind(sandbox.persistent)
        .bind(sandbox.image_id.as_str())
        .bind(&sandbox.config)
        .bind(sandbox.current_snapshot.as_ref().map(SnapshotId::as_str))
        .bind(sandbox.volume_id.as_ref().map(VolumeId::as_str))
        .bind(sandbox.descends_from.as_ref().map(SnapshotId::as_str))
        .bind(sandbox.base_bytes)
        .bind(sandbox.boots)
        .bind(sandbox.created_at.0)
        .bind(sandbox.updated_at.0)
        .bind(sandbox.status_updated_at.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::unique("insert sandbox", format!("sandbox {}", sandbox.name)))?;
        put_tags(&mut tx, &sandbox.id, tags).await?;
        put_routes(&mut tx, &sandbox.id, routes).await?;
        runs::insert(&mut tx, run).await?;
        commit(tx, "insert sandbox").await
    }

    /// Writes what a caller may change in a sandbox: persistence and
    /// configuration. `tags` and `routes` replace what is there, when given; a
    /// port that stays keeps its name.
    pub async fn update_sandbox(
        &self,
        sandbox: &SandboxRow,
        tags: Option<&BTreeMap<String, String>>,
        routes: Option<&[RouteRow]>,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        let failed = |what: &str| StoreError::database(format!("{what} {}", sandbox.id));
        sqlx::query("UPDATE sandboxes SET persistent = $1, config = $2, updated_at = $3 WHERE id = $4")
            .bind(sandbox.persistent)
            .bind(&sandbox.config)
            .bind(sandbox.updated_at.0)
            .bind(sandbox.id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed("update sandbox"))?;
        if let Some(tags) = tags {
            sqlx::query("DELETE FROM sandbox_tags WHERE sandbox_id = $1")
                .bind(sandbox.id.as_str())
                .execute(&mut *tx)
                .await
                .map_err(failed("drop tags of"))?;
            put_tags(&mut tx, &sandbox.id, tags).await?;
        }
        if let Some(routes) = routes {
            let ports: Vec<i64> = routes.iter().map(|route| i64::from(route.port)).collect();
            sqlx::query(
                "DELETE FROM routes WHERE sandbox_id = $1 AND port NOT IN (SELECT value FROM json_each($2))",
            )
            .bind(sandbox.id.as_str())
            .bind(serde_json::to_string(&ports).unwrap_or_default())
            .execute(&mut *tx)
            .await
            .map_err(failed("drop routes of"))?;
            put_routes(&mut tx, &sandbox.id, routes).await?;
        }
        commit(tx, "update sandbox").await
    }

    /// The sandbox of this name.
    pub async fn sandbox(&self, namespace: &str, name: &SandboxName) -> crate::Result<Option<SandboxRow>> {
        let sql = format!("SELECT {COLUMNS} FROM sandboxes WHERE namespace = $1 AND name = $2");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(namespace)
            .bind(name.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read sandbox {name}")))?
            .as_ref()
            .map(row)
            .transpose()
    }

    /// The sandbox with this id.
    pub async fn sandbox_by_id(&self, id: &SandboxId) -> crate::Result<Option<SandboxRow>> {
        let sql = format!("SELECT {COLUMNS} FROM sandboxes WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read sandbox {id}")))?
            .as_ref()
            .map(row)
            .transpose()
    }

    /// Sandboxes of a namespace.
    pub async fn sandboxes_of(
        &self,
        namespace: &str,
        filter: &SandboxFilter<'_>,
    ) -> crate::Result<Vec<SandboxRow>> {
        let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM sandboxes WHERE namespace = "));
        query.push_bind(namespace);
        if let Some(prefix) = filter.name_prefix {
            // Names are ASCII below DEL.
            query.push(" AND name >= ").push_bind(prefix);
            query.push(" AND name < ").push_bind(format!("{prefix}\u{7f}"));
        }
        for (key, value) in filter.tags {
            query.push(" AND EXISTS (SELECT 1 FROM sandbox_tags t WHERE t.sandbox_id = sandboxes.id");
            query.push(" AND t.key = ").push_bind(key.as_str());
            query.push(" AND t.value = ").push_bind(value.as_str()).push(")");
        }
        let column = match filter.order {
            SandboxOrder::Id => None,
            SandboxOrder::Name => Some("name"),
            SandboxOrder::StatusUpdatedAt => Some("status_updated_at"),
        };
        let (compare, direction) = if filter.ascending { (">", "ASC") } else { ("<", "DESC") };
        if let Some((key, id)) = &filter.after {
            match filter.order {
                SandboxOrder::Id => query.push(format!(" AND id {compare} ")).push_bind(id.as_str()),
                SandboxOrder::Name => query
                    .push(format!(" AND (name, id) {compare} ("))
                    .push_bind(key.as_str())
                    .push(", ")
                    .push_bind(id.as_str())
                    .push(")"),
                SandboxOrder::StatusUpdatedAt => query
                    .push(format!(" AND (status_updated_at, id) {compare} ("))
                    .push_bind(key.parse::<i64>().unwrap_or(0))
                    .push(", ")
                    .push_bind(id.as_str())
                    .push(")"),
            };
        }
        query.push(" ORDER BY ");
        if let Some(column) = column {
            query.push(format!("{column} {direction}, "));
        }
        query.push(format!("id {direction} LIMIT ")).push_bind(filter.limit);
        query
            .build()
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database("list sandboxes"))?
            .iter()
            .map(row)
            .collect()
    }

    /// Routes of a sandbox, by port.
    pub async fn routes_of(&self, id: &SandboxId) -> crate::Result<Vec<RouteRow>> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT subdomain, port FROM routes WHERE sandbox_id = $1 ORDER BY port")
                .bind(id.as_str())
                .fetch_all(&self.readers)
                .await
                .map_err(StoreError::database(format!("read routes of {id}")))?;
        rows.into_iter()
            .map(|(subdomain, port)| {
                let corrupt = |_| StoreError::Corrupt { table: "routes", column: "port" };
                Ok(RouteRow { subdomain, port: port.try_into().map_err(corrupt)? })
            })
            .collect()
    }

    /// The sandbox and port behind a name.
    pub async fn route(&self, subdomain: &str) -> crate::Result<Option<(SandboxId, u16)>> {
        let found: Option<(String, i64)> =
            sqlx::query_as("SELECT sandbox_id, port FROM routes WHERE subdomain = $1")
                .bind(subdomain)
                .fetch_optional(&self.readers)
                .await
                .map_err(StoreError::database(format!("read route {subdomain}")))?;
        found
            .map(|(id, port)| {
                let corrupt = |_| StoreError::Corrupt { table: "routes", column: "port" };
                Ok((typed(&id, "routes", "sandbox_id")?, port.try_into().map_err(corrupt)?))
            })
            .transpose()
    }

    /// The next run of a stopped or running sandbox starts from `snapshot`.
    /// What it has on disk goes: at once, or with the run that uses it.
    pub async fn roll_back(
        &self,
        id: &SandboxId,
        snapshot: &SnapshotId,
        live: bool,
        now: Timestamp,
    ) -> crate::Result<bool> {
        let mut tx = self.write().await?;
        let failed = || StoreError::database(format!("roll back {id}"));
        if !live {
            let volume: Option<(Option<String>,)> =
                sqlx::query_as("SELECT volume_id FROM sandboxes WHERE id = $1")
                    .bind(id.as_str())
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(failed())?;
            if let Some(volume) = volume.and_then(|(volume,)| volume) {
                garbage::add(&mut tx, GarbageKind::Volume, &volume, now).await?;
            }
        }
        let moved = sqlx::query(
            "UPDATE sandboxes SET volume_id = NULL, current_snapshot = $1, updated_at = $2 WHERE id = $3
             AND EXISTS (SELECT 1 FROM snapshots WHERE id = $1 AND status = 'created')",
        )
        .bind(snapshot.as_str())
        .bind(now.0)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed())?;
        if moved.rows_affected() == 0 {
            return Ok(false);
        }
        commit(tx, "roll back").await.map(|()| true)
    }

    /// Forgets a sandbox with its labels and routes. Its volume goes.
    pub async fn delete_sandbox(
        &self,
        id: &SandboxId,
        snapshots: SnapshotsOfDeleted,
        now: Timestamp,
    ) -> crate::Result<()> {
        let mut tx = self.write().await?;
        forget(&mut tx, id, snapshots, now).await?;
        commit(tx, "delete sandbox").await
    }
}

/// [`Db::delete_sandbox`] as part of something larger.
pub(crate) async fn forget(
    tx: &mut Tx<'_>,
    id: &SandboxId,
    snapshots: SnapshotsOfDeleted,
    now: Timestamp,
) -> crate::Result<()> {
    let volume: Option<(Option<String>,)> =
        sqlx::query_as("DELETE FROM sandboxes WHERE id = $1 RETURNING volume_id")
            .bind(id.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(StoreError::database(format!("delete sandbox {id}")))?;
    if let Some(volume) = volume.and_then(|(volume,)| volume) {
        garbage::add(tx, GarbageKind::Volume, &volume, now).await?;
    }
    let (change, which) = match snapshots {
        SnapshotsOfDeleted::Stay { .. } => ("expires_at = $3", "kind = 'automatic' AND expires_at IS NULL"),
        SnapshotsOfDeleted::AutomaticGo => (GOES, "kind = 'automatic'"),
        SnapshotsOfDeleted::AllGo => (GOES, "TRUE"),
    };
    let until = match snapshots {
        SnapshotsOfDeleted::Stay { automatic_until } => automatic_until,
        _ => now,
    };
    let sql = format!(
        "UPDATE snapshots SET {change}, updated_at = $1
             WHERE sandbox_id = $2 AND status = 'created' AND {which} AND $3 = $3 RETURNING id, status"
    );
    let changed = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(now.0)
        .bind(id.as_str())
        .bind(until.0)
        .fetch_all(&mut **tx)
        .await
        .map_err(StoreError::database(format!("retire snapshots of {id}")))?;
    snapshots::deleted(tx, changed, now).await
}
