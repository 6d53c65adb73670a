//! Base images: built from a recipe, or taken from a tar of a root file
//! system, an OCI image layout, or a registry.
//!
//! An archive is hostile: it is unpacked entry by entry below the new layer's
//! directory with `openat2(RESOLVE_IN_ROOT)`, so no link in it can lead out.
//! Device nodes, set aside by every sandbox anyway, are left out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::{NewLayer, Storage, StorageKind};
use dormouse_store::{Db, ImageRow, LayerRow, StoreError};
use dormouse_types::{ImageId, LayerId, Timestamp};

mod oci;
mod recipe;
mod registry;
mod unpack;

pub use recipe::{Recipe, UnknownRecipe};

/// Name of an image in a registry, such as `docker.io/library/debian:12`.
pub use oci_client::Reference as ImageReference;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A recipe of this release.
    Recipe(Recipe),
    /// A tar of a root file system: plain, gzip or zstd.
    Tar(PathBuf),
    /// An OCI image layout directory.
    OciLayout(PathBuf),
    /// An image of a registry.
    Registry(ImageReference),
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reading the source or writing the layer failed.
    #[error("{operation}")]
    Io {
        /// What was done, on what.
        operation: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The registry did not give the image.
    #[error("pull {reference}")]
    Registry {
        /// Full name of the image.
        reference: String,
        /// What it answered.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The source is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// The database failed.
    #[error("record the image")]
    Store(#[from] StoreError),
}

fn io_error(operation: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
    let operation = operation.into();
    move |source| ImageError::Io { operation, source }
}

/// The images of a data directory; works beside a running server.
#[derive(Debug)]
pub struct Images {
    db: Db,
    storage: Arc<Storage>,
    cache: PathBuf,
}

impl Images {
    /// Opens the pool, mounting it where it is not.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the pool cannot be opened.
    pub fn open(
        kind: StorageKind,
        data_dir: &Path,
        pool_size: u64,
        cache: &Path,
        db: Db,
    ) -> Result<Self, ImageError> {
        fs::create_dir_all(data_dir).map_err(io_error(format!("make {}", data_dir.display())))?;
        let storage = Storage::open(kind, data_dir, pool_size).map_err(io_error("open the storage pool"))?;
        Ok(Self { db, storage: Arc::new(storage), cache: cache.to_owned() })
    }

    /// Makes an image called `name`, which takes the name from an older one.
    /// `progress` is told in words what is going on.
    ///
    /// # Errors
    /// [`ImageError`]; nothing is left behind.
    pub async fn build(
        &self,
        name: &str,
        source: ImageSource,
        now: Timestamp,
        progress: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<ImageRow, ImageError> {
        let layer = LayerId::generate();
        // What it stands on.
        let mut layers = match &source {
            ImageSource::Recipe(recipe) if recipe.is_layered() => {
                let base = self.db.image(Recipe::DEFAULT.name()).await?.ok_or_else(|| {
                    ImageError::Invalid(format!(
                        "{} stands on the default image, which is not there yet; run `dormouse image build`",
                        recipe.name()
                    ))
                })?;
                base.layers
            }
            _ => Vec::new(),
        };
        let pulled = match &source {
            ImageSource::Registry(reference) => Some(self.pull(reference, &progress).await?),
            _ => None,
        };
        let (storage, cache, id, from) =
            (self.storage.clone(), self.cache.clone(), layer.clone(), source.clone());
        let work = tokio::task::spawn_blocking(move || {
            let filled = fill(&storage, &id, &from, pulled.as_ref(), &cache, &progress);
            if filled.is_err() {
                // The failure is what the caller wants to hear about.
                let _ = storage.discard_layer(id.as_str());
            }
            filled
        });
        // Kept until a row names the layer.
        let (size, _made) = work.await.map_err(|error| ImageError::Invalid(error.to_string()))??;
        let size_bytes = i64::try_from(size).unwrap_or(i64::MAX);
        layers.push(layer.clone());
        let image = ImageRow {
            id: ImageId::generate(),
            name: name.to_owned(),
            layers,
            source: describe(&source),
            size_bytes,
            created_at: now,
        };
        let row = LayerRow { id: layer, size_bytes: Some(size_bytes), created_at: now };
        self.db.insert_image(&image, &[row]).await?;
        Ok(image)
    }

    async fn pull(
        &self,
        reference: &ImageReference,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Pulled, ImageError> {
        fs::create_dir_all(&self.cache).map_err(io_error(format!("make {}", self.cache.display())))?;
        let layout = self.cache.join(format!("pull-{}", std::process::id()));
        // Removed when it is dropped, whatever happens.
        let mut pulled = Pulled { layout, digests: Vec::new() };
        pulled.digests = registry::pull(reference, &pulled.layout, progress).await?;
        Ok(pulled)
    }
}

/// What was pulled from a registry, on disk for as long as this lives.
struct Pulled {
    layout: PathBuf,
    digests: Vec<String>,
}

impl Drop for Pulled {
    fn drop(&mut self) {
        // Only our own scratch files are in there.
        let _ = fs::remove_dir_all(&self.layout);
    }
}

fn describe(source: &ImageSource) -> String {
    match source {
        ImageSource::Recipe(recipe) => format!("recipe {} {}", recipe.name(), recipe.digest()),
        ImageSource::Tar(path) => format!("tar {}", path.display()),
        ImageSource::OciLayout(path) => format!("oci-layout {}", path.display()),
        ImageSource::Registry(reference) => format!("registry {}", reference.whole()),
    }
}

fn fill(
    storage: &Storage,
    layer: &LayerId,
    source: &ImageSource,
    pulled: Option<&Pulled>,
    cache: &Path,
    progress: &dyn Fn(&str),
) -> Result<(u64, NewLayer), ImageError> {
    let made = storage.create_layer(layer).map_err(io_error("create layer"))?;
    let target = &made.path;
    match source {
        ImageSource::Recipe(recipe) => unpack_tar(&recipe.tar(cache, progress)?, target, progress)?,
        ImageSource::Tar(path) => unpack_tar(path, target, progress)?,
        ImageSource::OciLayout(path) => oci::unpack_layout(path, target, progress)?,
        ImageSource::Registry(_) => {
            // Pulled before this is called.
            let found = pulled.ok_or_else(|| ImageError::Invalid("the image was not pulled".to_owned()))?;
            oci::unpack_blobs(&found.layout, &found.digests, target, progress)?;
        }
    }
    // A layer on top of another image leaves its users as they are.
    if !matches!(source, ImageSource::Recipe(recipe) if recipe.is_layered()) {
        progress("preparing the default user");
        unpack::ensure_user(target).map_err(io_error("prepare the default user"))?;
    }
    progress("writing to disk");
    storage.sync().map_err(io_error("sync the pool"))?;
    let size = storage.layer_size(layer).map_err(io_error("size the layer"))?;
    Ok((size, made))
}

fn unpack_tar(path: &Path, target: &Path, progress: &dyn Fn(&str)) -> Result<(), ImageError> {
    let file = File::open(path).map_err(io_error(format!("open {}", path.display())))?;
    let reader = decompressed(file).map_err(io_error(format!("read {}", path.display())))?;
    unpack::unpack(reader, target, progress).map_err(io_error(format!("unpack {}", path.display())))
}

/// The archive's bytes: gzip, zstd or plain.
fn decompressed(file: File) -> io::Result<Box<dyn Read>> {
    let mut file = io::BufReader::with_capacity(256 << 10, file);
    let magic = io::BufRead::fill_buf(&mut file)?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(file)?)
    } else {
        Box::new(file)
    })
}
