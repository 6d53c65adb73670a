//! Table `images`.

use dormouse_types::{ImageId, Timestamp};

use crate::db::{Db, StoreError, commit, typed};
use crate::garbage::{self, GarbageKind};

/// One base image.
#[derive(Debug, Clone)]
pub struct ImageRow {
    /// Its id.
    pub id: ImageId,
    /// Its name, unique among those that were not replaced.
    pub name: String,
    /// SHA-256 of its file, in hex.
    pub digest: String,
    /// Bytes of that file.
    pub size_bytes: i64,
    /// Configuration as JSON; only the engine reads it.
    pub config: String,
    /// What it was built from; shown to users, never interpreted.
    pub source: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when another one has its name.
    pub replaced_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, name, digest, size_bytes, config, source, created_at, replaced_at";

type Raw = (String, String, String, i64, String, String, i64, Option<i64>);

fn row((id, name, digest, size_bytes, config, source, created, replaced): Raw) -> crate::Result<ImageRow> {
    Ok(ImageRow {
        id: typed(&id, "images", "id")?,
        name,
        digest,
        size_bytes,
        config,
        source,
        created_at: Timestamp(created),
        replaced_at: replaced.map(Timestamp),
    })
}

impl Db {
    /// Adds an image. One of the same name loses the name and stays for the
    /// sandboxes that stand on it.
    pub async fn insert_image(&self, image: &ImageRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("UPDATE images SET replaced_at = $1 WHERE name = $2 AND replaced_at IS NULL")
            .bind(image.created_at.0)
            .bind(&image.name)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database("replace image"))?;
        sqlx::query(
            "INSERT INTO images (id, name, digest, size_bytes, config, source, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(image.id.as_str())
        .bind(&image.name)
        .bind(&image.digest)
        .bind(image.size_bytes)
        .bind(&image.config)
        .bind(&image.source)
        .bind(image.created_at.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::unique("insert image", format!("image {}", image.name)))?;
        // The same files may have been on their way out.
        garbage::spare(&mut tx, GarbageKind::Image, &image.digest).await?;
        commit(tx, "insert image").await
    }

    /// The image that has this name.
    pub async fn image(&self, name: &str) -> crate::Result<Option<ImageRow>> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE name = $1 AND replaced_at IS NULL");
        sqlx::query_as::<_, Raw>(sqlx::AssertSqlSafe(sql))
            .bind(name)
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read image {name}")))?
            .map(row)
            .transpose()
    }

    /// The image with this id.
    pub async fn image_by_id(&self, id: &ImageId) -> crate::Result<Option<ImageRow>> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE id = $1");
        sqlx::query_as::<_, Raw>(sqlx::AssertSqlSafe(sql))
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read image {id}")))?
            .map(row)
            .transpose()
    }

    /// All images, newest first, replaced ones included.
    pub async fn images(&self) -> crate::Result<Vec<ImageRow>> {
        let sql = format!("SELECT {COLUMNS} FROM images ORDER BY created_at DESC, id DESC");
        sqlx::query_as::<_, Raw>(sqlx::AssertSqlSafe(sql))
            .fetch_all(&self.readers)
            .await
            .map_err(StoreError::database("list images"))?
            .into_iter()
            .map(row)
            .collect()
    }

    /// Forgets images that were replaced before `before` and that no sandbox
    /// and no snapshot stands on; their files become garbage. How many those
    /// were.
    pub async fn forget_replaced_images(&self, before: Timestamp, now: Timestamp) -> crate::Result<u64> {
        let mut tx = self.write().await?;
        // Found by index: few images are ever replaced, and each asks for one
        // row of either kind.
        let gone: Vec<(String,)> = sqlx::query_as(
            "DELETE FROM images WHERE replaced_at IS NOT NULL AND replaced_at < $1
               AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE image_id = images.id)
               AND NOT EXISTS (SELECT 1 FROM snapshots WHERE image_id = images.id AND status = 'created')
             RETURNING digest",
        )
        .bind(before.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(StoreError::database("forget replaced images"))?;
        for (digest,) in &gone {
            let others: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM images WHERE digest = $1 LIMIT 1")
                .bind(digest)
                .fetch_optional(&mut *tx)
                .await
                .map_err(StoreError::database("look for an image of the same files"))?;
            if others.is_none() {
                garbage::add(&mut tx, GarbageKind::Image, digest, now).await?;
            }
        }
        commit(tx, "forget replaced images").await?;
        Ok(gone.len() as u64)
    }

    /// Whether an image has these files.
    pub async fn has_image_file(&self, digest: &str) -> crate::Result<bool> {
        let found: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM images WHERE digest = $1 LIMIT 1")
            .bind(digest)
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("look for image file {digest}")))?;
        Ok(found.is_some())
    }
}
