//! Base images: built from a recipe, or taken from a tar of a root file
//! system, an OCI image layout, or a registry. Whatever it was, it ends as one
//! immutable EROFS file, named by its digest.
//!
//! An archive is hostile: it is unpacked entry by entry below a scratch
//! directory with `openat2(RESOLVE_IN_ROOT)`, so no link in it can lead out.
//! Device nodes, set aside by every sandbox anyway, are left out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_control::{ImageConfig, Stored as _};
use dormouse_store::{Db, ImageRow, StoreError};
use dormouse_types::{HostId, ImageId, Timestamp};

use crate::storage::{ImageFile, Storage, StorageConfig};
use crate::sys;

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
    /// Reading the source or writing the image failed.
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

/// How often the pool is looked after while an image is made.
const GROWTH_PERIOD: Duration = Duration::from_millis(250);

/// The images of a data directory; works beside a running server.
#[derive(Debug)]
pub struct Images {
    host: HostId,
    db: Db,
    storage: Arc<Storage>,
    kitchen: Kitchen,
}

/// Where recipes are built.
#[derive(Debug, Clone)]
struct Kitchen {
    /// What is built is kept here.
    cache: PathBuf,
    /// Where Debian's packages come from; `None`: from where this host's do.
    sources: Option<recipe::AptSources>,
}

impl Images {
    /// Opens the pool, mounting it where it is not.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the pool cannot be opened.
    pub fn open(config: StorageConfig, cache: &Path, db: Db) -> Result<Self, ImageError> {
        let data_dir = config.data_dir.clone();
        fs::create_dir_all(&data_dir).map_err(io_error(format!("make {}", data_dir.display())))?;
        let host = crate::host_id(&data_dir).map_err(io_error("read the host's id"))?;
        let storage = Storage::open(config).map_err(io_error("open the storage pool"))?;
        Ok(Self::over(host, db, Arc::new(storage), cache))
    }

    /// Those of a server that has the pool open.
    pub(crate) fn over(host: HostId, db: Db, storage: Arc<Storage>, cache: &Path) -> Self {
        Self { host, db, storage, kitchen: Kitchen { cache: cache.to_owned(), sources: None } }
    }

    /// Has recipes take Debian's packages from what this file of apt's names
    /// (`sources.list(5)`, either form), such as an archive of one day: then the same packages
    /// come of it each time.
    ///
    /// # Errors
    /// [`ImageError::Io`] when it cannot be read.
    pub fn with_apt_sources(mut self, path: Option<&Path>) -> Result<Self, ImageError> {
        self.kitchen.sources = path.map(recipe::AptSources::read).transpose()?;
        Ok(self)
    }

    /// Whether there is an image called `name`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn has(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.db.image(&self.host, name).await?.is_some())
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
        let pulled = match &source {
            ImageSource::Registry(reference) => Some(self.pull(reference, &progress).await?),
            _ => None,
        };
        let (storage, kitchen, from) = (self.storage.clone(), self.kitchen.clone(), source.clone());
        let work =
            tokio::task::spawn_blocking(move || make(&storage, &from, pulled.as_ref(), &kitchen, &progress));
        // An image may be larger than what the pool has free now.
        let storage = self.storage.clone();
        let growing = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let storage = storage.clone();
                // A failure shows in the work itself.
                let _ = tokio::task::spawn_blocking(move || storage.look_after()).await;
                tokio::time::sleep(GROWTH_PERIOD).await;
            }
        }));
        let (file, config) = work.await.map_err(|error| ImageError::Invalid(error.to_string()))??;
        drop(growing);
        let image = ImageRow {
            id: ImageId::generate(),
            host_id: self.host.clone(),
            name: name.to_owned(),
            digest: file.digest.clone(),
            size_bytes: i64::try_from(file.bytes).unwrap_or(i64::MAX),
            config: config.write().map_err(|error| ImageError::Invalid(error.detail()))?,
            source: self.kitchen.describe(&source),
            created_at: now,
            replaced_at: None,
        };
        self.db.insert_image(&image).await?;
        // Else a host that dies now forgets it, and start-up removes its file.
        self.db.sync().await.map_err(io_error("sync the database"))?;
        // Its row keeps it from here on.
        drop(file);
        Ok(image)
    }

    async fn pull(
        &self,
        reference: &ImageReference,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Pulled, ImageError> {
        let workplace = Workplace::new(&self.kitchen.cache)?;
        let (digests, config) = registry::pull(reference, &workplace.path, progress).await?;
        Ok(Pulled { workplace, digests, config })
    }
}

/// What was pulled from a registry, on disk for as long as this lives.
struct Pulled {
    workplace: Workplace,
    digests: Vec<String>,
    config: ImageConfig,
}

/// A directory in the cache for what is being made, on disk for as long as this
/// lives.
struct Workplace {
    path: PathBuf,
    /// Tells others that its owner lives.
    _lock: OwnedFd,
}

/// How the names of workplaces begin.
const WORKPLACE: &str = "work-";

impl Workplace {
    /// Makes one, and removes those whose owners died.
    fn new(cache: &Path) -> Result<Self, ImageError> {
        let made = || {
            fs::create_dir_all(cache)?;
            for entry in fs::read_dir(cache)?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(WORKPLACE)
                    && let Ok(_lock) = sys::lock_existing(&entry.path())
                {
                    // Only scratch files of ours are in there.
                    fs::remove_dir_all(entry.path())?;
                }
            }
            let path = cache.join(format!("{WORKPLACE}{}", uuid::Uuid::now_v7().simple()));
            fs::create_dir(&path)?;
            let lock = sys::lock_existing(&path)?;
            Ok(Self { path, _lock: lock })
        };
        made().map_err(io_error(format!("make a directory in {}", cache.display())))
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Kitchen {
    fn describe(&self, source: &ImageSource) -> String {
        match source {
            ImageSource::Recipe(recipe) => {
                format!("recipe {} {}", recipe.name(), recipe.digest(self.sources.as_ref()))
            }
            ImageSource::Tar(path) => format!("tar {}", path.display()),
            ImageSource::OciLayout(path) => format!("oci-layout {}", path.display()),
            ImageSource::Registry(reference) => format!("registry {}", reference.whole()),
        }
    }
}

/// Makes the file of an image.
fn make(
    storage: &Storage,
    source: &ImageSource,
    pulled: Option<&Pulled>,
    kitchen: &Kitchen,
    progress: &dyn Fn(&str),
) -> Result<(ImageFile, ImageConfig), ImageError> {
    let scratch = storage.start_image().map_err(io_error("make a scratch directory in the pool"))?;
    match fill(&scratch.path, source, pulled, kitchen, progress) {
        Ok(config) => {
            let file = storage.finish_image(scratch, progress).map_err(io_error("make the image file"))?;
            Ok((file, config))
        }
        Err(error) => {
            if let Err(failed) = storage.drop_image(scratch) {
                tracing::warn!(error = %failed, "drop the scratch directory of an image");
            }
            Err(error)
        }
    }
}

/// Fills `target` with the image's files.
fn fill(
    target: &Path,
    source: &ImageSource,
    pulled: Option<&Pulled>,
    kitchen: &Kitchen,
    progress: &dyn Fn(&str),
) -> Result<ImageConfig, ImageError> {
    let config = match source {
        ImageSource::Recipe(recipe) => {
            for part in recipe.parts() {
                unpack_tar(&part.tar(kitchen, progress)?, target, progress)?;
            }
            recipe.config()?
        }
        ImageSource::Tar(path) => {
            unpack_tar(path, target, progress)?;
            ImageConfig::default()
        }
        ImageSource::OciLayout(path) => oci::unpack_layout(path, target, progress)?,
        ImageSource::Registry(_) => {
            // Pulled before this is called.
            let found = pulled.ok_or_else(|| ImageError::Invalid("the image was not pulled".to_owned()))?;
            oci::unpack_blobs(&found.workplace.path, &found.digests, target, progress)?;
            found.config.clone()
        }
    };
    progress("preparing the default user");
    unpack::ensure_user(target, config.user.as_deref()).map_err(io_error("prepare the default user"))?;
    Ok(config)
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

#[cfg(test)]
mod tests {
    use super::Workplace;

    #[test]
    fn what_a_dead_builder_left_goes_with_the_next() {
        let cache = tempfile::tempdir().unwrap();
        let dead = cache.path().join("work-dead");
        std::fs::create_dir_all(dead.join("root")).unwrap();
        std::fs::write(cache.path().join("default-1.tar"), "kept").unwrap();
        let first = Workplace::new(cache.path()).unwrap();
        assert!(!dead.exists());
        let second = Workplace::new(cache.path()).unwrap();
        assert!(first.path.exists() && second.path.exists());
        drop((first, second));
        let names: Vec<_> =
            std::fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["default-1.tar"]);
    }
}
