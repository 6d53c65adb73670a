//! Base images: built from a recipe, or taken from a tar of a root file
//! system, an OCI image layout, or a registry.
//!
//! An archive is hostile: it is unpacked entry by entry below the new layer's
//! directory with `openat2(RESOLVE_IN_ROOT)`, so no link in it can lead out.
//! Device nodes, set aside by every sandbox anyway, are left out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use dormouse_store::{Db, ImageRow, LayerRow, StoreError};
use dormouse_types::{ImageId, LayerId, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::storage::{NewLayer, Storage, StorageKind};

mod oci;
mod registry;
mod unpack;

const PACKAGES: &str = include_str!("../../../images/default/packages");
const SETUP: &str = include_str!("../../../images/default/setup.sh");

/// Name of an image in a registry, such as `docker.io/library/debian:12`.
pub use oci_client::Reference as ImageReference;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// The recipe of this release: Debian packages (`images/default`).
    Recipe,
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
        let image = ImageRow {
            id: ImageId::generate(),
            name: name.to_owned(),
            layers: vec![layer.clone()],
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
        ImageSource::Recipe => format!("recipe {}", recipe_digest()),
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
        ImageSource::Recipe => unpack_tar(&recipe_tar(cache, progress)?, target, progress)?,
        ImageSource::Tar(path) => unpack_tar(path, target, progress)?,
        ImageSource::OciLayout(path) => oci::unpack_layout(path, target, progress)?,
        ImageSource::Registry(_) => {
            // Pulled before this is called.
            let found = pulled.ok_or_else(|| ImageError::Invalid("the image was not pulled".to_owned()))?;
            oci::unpack_blobs(&found.layout, &found.digests, target, progress)?;
        }
    }
    progress("preparing the default user");
    unpack::ensure_user(target).map_err(io_error("prepare the default user"))?;
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

fn recipe_digest() -> String {
    let digest = Sha256::new().chain_update(PACKAGES).chain_update(SETUP).finalize();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The recipe's tar, from the cache or built with `mmdebstrap`.
fn recipe_tar(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
    fs::create_dir_all(cache).map_err(io_error(format!("make {}", cache.display())))?;
    let path = cache.join(format!("default-{}.tar", recipe_digest()));
    if path.exists() {
        progress("taking the root file system from the cache");
        return Ok(path);
    }
    let work = cache.join(format!("build-{}", std::process::id()));
    fs::create_dir_all(&work).map_err(io_error(format!("make {}", work.display())))?;
    let built = run_recipe(&work, progress);
    let moved = built.and_then(|tar| fs::rename(tar, &path).map_err(io_error("keep the built tar")));
    // Only our own scratch files are in there.
    let _ = fs::remove_dir_all(&work);
    moved.map(|()| path)
}

fn run_recipe(work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = work.join("setup.sh");
    fs::write(&setup, SETUP).map_err(io_error("write setup.sh"))?;
    fs::set_permissions(&setup, fs::Permissions::from_mode(0o755)).map_err(io_error("write setup.sh"))?;
    let packages: Vec<&str> =
        PACKAGES.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let tar = work.join("root.tar");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages \"none\""])
        .args(["doc", "man", "locale", "info"].map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")))
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!("--customize-hook={} \"$1\"", setup.display()))
        .arg("bookworm")
        .arg(&tar);
    // The host's own Debian mirror, where it names one.
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    if let Some(sources) = sources.iter().find(|path| fs::metadata(path).is_ok_and(|m| m.len() > 0)) {
        command.arg(sources);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io_error("run mmdebstrap (apt-get install mmdebstrap)"))?;
    let mut last = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in io::BufRead::lines(io::BufReader::new(stderr)).map_while(Result::ok) {
            if let Some(step) = line.strip_prefix("I: ") {
                progress(step);
            }
            last.push(line);
            if last.len() > 20 {
                last.remove(0);
            }
        }
    }
    let status = child.wait().map_err(io_error("wait for mmdebstrap"))?;
    if status.success() {
        Ok(tar)
    } else {
        Err(ImageError::Invalid(format!("mmdebstrap failed ({status}):\n{}", last.join("\n"))))
    }
}
