//! Tables `images` and `layers`.

use dormouse_types::{ImageId, LayerId, Timestamp};

use crate::db::{Db, StoreError, commit, json, typed};

/// One base image.
#[derive(Debug, Clone)]
pub struct ImageRow {
    /// Its id.
    pub id: ImageId,
    /// Its unique name.
    pub name: String,
    /// Layers, bottom first.
    pub layers: Vec<LayerId>,
    /// What it was built from, for people.
    pub source: String,
    /// Bytes on disk.
    pub size_bytes: i64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// One layer.
#[derive(Debug, Clone)]
pub struct LayerRow {
    /// Its id.
    pub id: LayerId,
    /// Bytes on disk, once counted.
    pub size_bytes: Option<i64>,
    /// When it was made.
    pub created_at: Timestamp,
}

type Raw = (String, String, String, String, i64, i64);

fn row((id, name, layers, source, size_bytes, created): Raw) -> crate::Result<ImageRow> {
    Ok(ImageRow {
        id: typed(&id, "images", "id")?,
        name,
        layers: json(&layers, "images", "layers")?,
        source,
        size_bytes,
        created_at: Timestamp(created),
    })
}

impl Db {
    /// Adds an image with its new layers; one of the same name loses the name
    /// and stays for the sandboxes that stand on it.
    pub async fn insert_image(&self, image: &ImageRow, new: &[LayerRow]) -> crate::Result<()> {
        let mut tx = self.write().await?;
        for layer in new {
            sqlx::query("INSERT INTO layers (id, size_bytes, created_at) VALUES ($1, $2, $3)")
                .bind(layer.id.as_str())
                .bind(layer.size_bytes)
                .bind(layer.created_at.0)
                .execute(&mut *tx)
                .await
                .map_err(StoreError::database("insert layer"))?;
        }
        sqlx::query("UPDATE images SET name = name || '@' || id WHERE name = $1")
            .bind(&image.name)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database("rename image"))?;
        sqlx::query(
            "INSERT INTO images (id, name, layers, source, size_bytes, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(image.id.as_str())
        .bind(&image.name)
        .bind(serde_json::to_string(&image.layers).unwrap_or_default())
        .bind(&image.source)
        .bind(image.size_bytes)
        .bind(image.created_at.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::unique("insert image", format!("image {}", image.name)))?;
        commit(tx, "insert image").await
    }

    /// The image with this name.
    pub async fn image(&self, name: &str) -> crate::Result<Option<ImageRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, name, layers, source, size_bytes, created_at FROM images WHERE name = $1",
        )
        .bind(name)
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read image {name}")))?
        .map(row)
        .transpose()
    }

    /// The image with this id.
    pub async fn image_by_id(&self, id: &ImageId) -> crate::Result<Option<ImageRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, name, layers, source, size_bytes, created_at FROM images WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::database(format!("read image {id}")))?
        .map(row)
        .transpose()
    }

    /// All images, newest first.
    pub async fn images(&self) -> crate::Result<Vec<ImageRow>> {
        sqlx::query_as::<_, Raw>(
            "SELECT id, name, layers, source, size_bytes, created_at FROM images
             ORDER BY created_at DESC, id DESC",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::database("list images"))?
        .into_iter()
        .map(row)
        .collect()
    }

    /// Adds a layer that was made before the row that will refer to it.
    pub async fn insert_layer(&self, layer: &LayerRow) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO layers (id, size_bytes, created_at) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(layer.id.as_str())
        .bind(layer.size_bytes)
        .bind(layer.created_at.0)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::database("insert layer"))?;
        commit(tx, "insert layer").await
    }

    /// Layers whose size nobody has counted yet.
    pub async fn uncounted_layers(&self, limit: i64) -> crate::Result<Vec<LayerId>> {
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT id FROM layers WHERE size_bytes IS NULL ORDER BY created_at LIMIT $1")
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .map_err(StoreError::database("list uncounted layers"))?;
        rows.iter().map(|(id,)| typed(id, "layers", "id")).collect()
    }

    /// Records the size of a layer.
    pub async fn set_layer_size(&self, id: &LayerId, size_bytes: i64) -> crate::Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("UPDATE layers SET size_bytes = $1 WHERE id = $2")
            .bind(size_bytes)
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::database(format!("size layer {id}")))?;
        commit(tx, "size layer").await
    }

    /// Sum of the counted sizes of these layers.
    pub async fn layers_size(&self, ids: &[LayerId]) -> crate::Result<i64> {
        let list = serde_json::to_string(ids).unwrap_or_default();
        let (sum,): (i64,) = sqlx::query_as(
            "SELECT COALESCE(SUM(size_bytes), 0) FROM layers
             WHERE id IN (SELECT value FROM json_each($1))",
        )
        .bind(list)
        .fetch_one(&self.readers)
        .await
        .map_err(StoreError::database("sum layer sizes"))?;
        Ok(sum)
    }

    /// Forgets layers that no image, snapshot or live run stands on, and
    /// returns them: their directories are of no more use.
    pub async fn forget_unused_layers(&self) -> crate::Result<Vec<LayerId>> {
        let mut tx = self.write().await?;
        let rows: Vec<(String,)> = sqlx::query_as(
            "DELETE FROM layers WHERE id NOT IN (
               SELECT value FROM images, json_each(images.layers)
               UNION SELECT value FROM snapshots, json_each(snapshots.layers)
                 WHERE snapshots.status = 'created'
               UNION SELECT value FROM runs, json_each(runs.layers)
                 WHERE runs.status IN ('pending', 'running', 'stopping', 'snapshotting'))
             RETURNING id",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(StoreError::database("forget unused layers"))?;
        commit(tx, "forget unused layers").await?;
        rows.iter().map(|(id,)| typed(id, "layers", "id")).collect()
    }

    /// Whether a layer is known.
    pub async fn has_layer(&self, id: &LayerId) -> crate::Result<bool> {
        let found: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM layers WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::database(format!("read layer {id}")))?;
        Ok(found.is_some())
    }
}
