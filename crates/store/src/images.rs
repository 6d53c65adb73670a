//! Table `images`.

use dormouse_types::{HostId, ImageId, Timestamp};

use crate::db::Db;
use crate::error::Result;
use crate::garbage::{self, GarbageKind};
use crate::sql::Row;

/// One base image.
#[derive(Debug, Clone)]
pub struct ImageRow {
    /// Its id.
    pub id: ImageId,
    /// Where its file is.
    pub host_id: HostId,
    /// Its name, unique among those of its host that were not replaced.
    pub name: String,
    /// SHA-256 of its file, in hex.
    pub digest: String,
    /// Bytes of that file.
    pub size_bytes: i64,
    /// Environment, directory and user of commands, as JSON.
    pub config: String,
    /// What it was built from; shown to users, never interpreted.
    pub source: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when another one has its name.
    pub replaced_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, host_id, name, digest, size_bytes, config, source, created_at, replaced_at";

fn read(row: &Row) -> Result<ImageRow> {
    let row = row.of("images", "");
    Ok(ImageRow {
        id: row.get("id")?,
        host_id: row.get("host_id")?,
        name: row.get("name")?,
        digest: row.get("digest")?,
        size_bytes: row.get("size_bytes")?,
        config: row.get("config")?,
        source: row.get("source")?,
        created_at: row.get("created_at")?,
        replaced_at: row.get("replaced_at")?,
    })
}

impl Db {
    /// Adds an image. One of the same name and host loses the name and stays for
    /// the sandboxes that stand on it.
    pub async fn insert_image(&self, image: &ImageRow) -> Result<()> {
        let mut tx = self.write().await?;
        tx.sql(
            format!("replace image {}", image.name),
            "UPDATE images SET replaced_at = $1 WHERE host_id = $2 AND name = $3 AND replaced_at IS NULL",
        )
        .bind(image.created_at)
        .bind(&image.host_id)
        .bind(&image.name)
        .execute()
        .await?;
        tx.sql(
            format!("insert image {}", image.name),
            "INSERT INTO images (id, host_id, name, digest, size_bytes, config, source, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&image.id)
        .bind(&image.host_id)
        .bind(&image.name)
        .bind(&image.digest)
        .bind(image.size_bytes)
        .bind(&image.config)
        .bind(&image.source)
        .bind(image.created_at)
        .execute()
        .await
        .map_err(|error| error.unique(format!("image {}", image.name)))?;
        // The same files may have been on their way out.
        garbage::spare(&mut tx, &image.host_id, GarbageKind::Image, &image.digest).await?;
        tx.commit("insert image").await
    }

    /// The image that has this name on a host.
    pub async fn image(&self, host: &HostId, name: &str) -> Result<Option<ImageRow>> {
        let text =
            format!("SELECT {COLUMNS} FROM images WHERE host_id = $1 AND name = $2 AND replaced_at IS NULL");
        self.sql(format!("read image {name}"), text).bind(host).bind(name.to_owned()).one(read).await
    }

    /// The image with this id.
    pub async fn image_by_id(&self, id: &ImageId) -> Result<Option<ImageRow>> {
        let text = format!("SELECT {COLUMNS} FROM images WHERE id = $1");
        self.sql(format!("read image {id}"), text).bind(id).one(read).await
    }

    /// All images of a host, newest first, replaced ones included.
    pub async fn images(&self, host: &HostId) -> Result<Vec<ImageRow>> {
        let text =
            format!("SELECT {COLUMNS} FROM images WHERE host_id = $1 ORDER BY created_at DESC, id DESC");
        self.sql("list images", text).bind(host).all(read).await
    }

    /// Forgets images of a host that were replaced before `before` and that no
    /// sandbox and no snapshot stands on; their files become garbage. How many
    /// those were.
    pub async fn forget_replaced_images(
        &self,
        host: &HostId,
        before: Timestamp,
        now: Timestamp,
    ) -> Result<u64> {
        // Most of the time there is none, and nobody has to wait for the writer
        // to find that out.
        let condition = "host_id = $1 AND replaced_at IS NOT NULL AND replaced_at < $2
             AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE image_id = images.id)
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE image_id = images.id AND status = 'created')";
        let any = self
            .sql("look for replaced images", format!("SELECT 1 FROM images WHERE {condition} LIMIT 1"))
            .bind(host)
            .bind(before);
        if !any.exists().await? {
            return Ok(0);
        }
        let mut tx = self.write().await?;
        let gone: Vec<String> = tx
            .sql("forget replaced images", format!("DELETE FROM images WHERE {condition} RETURNING digest"))
            .bind(host)
            .bind(before)
            .all(|row| row.of("images", "").get("digest"))
            .await?;
        for digest in &gone {
            let others = tx
                .sql(
                    format!("look for images of file {digest}"),
                    "SELECT 1 FROM images WHERE host_id = $1 AND digest = $2 LIMIT 1",
                )
                .bind(host)
                .bind(digest);
            if !others.exists().await? {
                garbage::add(&mut tx, host, GarbageKind::Image, digest, now).await?;
            }
        }
        tx.commit("forget replaced images").await?;
        Ok(u64::try_from(gone.len()).unwrap_or(u64::MAX))
    }

    /// Whether an image of a host has these files.
    pub async fn has_image_file(&self, host: &HostId, digest: &str) -> Result<bool> {
        self.sql(
            format!("look for image file {digest}"),
            "SELECT 1 FROM images WHERE host_id = $1 AND digest = $2 LIMIT 1",
        )
        .bind(host)
        .bind(digest.to_owned())
        .exists()
        .await
    }
}
