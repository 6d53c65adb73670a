//! OCI image layouts (image specification, "Image Layout"): an index that
//! names a manifest that names layers, each a blob found by its digest.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use dormouse_control::ImageConfig;

use super::{ImageError, decompressed, io_error, unpack};
use crate::storage;

/// Largest index or manifest that is read, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

#[derive(serde::Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(serde::Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The configuration of an image (image specification, "Image
/// Configuration"), as far as it is for every command.
#[derive(Default, serde::Deserialize)]
struct Document {
    config: Option<Execution>,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Reads the configuration of an image.
pub(super) fn configuration(text: &[u8]) -> Result<ImageConfig, ImageError> {
    let document: Document = serde_json::from_slice(text)
        .map_err(|error| ImageError::Invalid(format!("the image's configuration cannot be read: {error}")))?;
    let Execution { env, working_dir, user } = document.config.unwrap_or_default();
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let pair = |entry: String| entry.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    Ok(ImageConfig {
        env: env.unwrap_or_default().into_iter().filter_map(pair).collect(),
        // The root directory is what images say that have none.
        workdir: given(working_dir).filter(|dir| dir.starts_with('/') && dir != "/"),
        user: given(user),
    })
}

#[derive(serde::Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(serde::Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Unpacks the image of the layout at `path` into `target`.
pub(super) fn unpack_layout(
    path: &Path,
    target: &Path,
    progress: &dyn Fn(&str),
) -> Result<ImageConfig, ImageError> {
    let mut index: Index = document(&path.join("index.json"))?;
    let manifest = loop {
        let chosen = choose(index.manifests)?;
        let blob = verified(path, &chosen.digest)?;
        if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
            index = document(&blob)?;
        } else {
            break document::<Manifest>(&blob)?;
        }
    };
    let digests: Vec<String> = manifest.layers.into_iter().map(|layer| layer.digest).collect();
    unpack_blobs(path, &digests, target, progress)?;
    let blob = verified(path, &manifest.config.digest)?;
    configuration(&bounded(&blob)?)
}

/// Unpacks layers, lowest first, from the blobs of the layout at `path`.
pub(super) fn unpack_blobs(
    path: &Path,
    digests: &[String],
    target: &Path,
    progress: &dyn Fn(&str),
) -> Result<(), ImageError> {
    let count = digests.len();
    for (number, digest) in digests.iter().enumerate() {
        progress(&format!("unpacking layer {} of {count}", number + 1));
        let blob = verified(path, digest)?;
        let file = File::open(&blob).map_err(io_error(format!("open {}", blob.display())))?;
        let reader = decompressed(file).map_err(io_error(format!("read {}", blob.display())))?;
        unpack::unpack(reader, target, progress).map_err(io_error(format!("unpack {digest}")))?;
    }
    Ok(())
}

/// The manifest for this machine, or the only one.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, ImageError> {
    let fits =
        |d: &Descriptor| d.platform.as_ref().is_none_or(|p| p.architecture == "amd64" && p.os == "linux");
    let found = manifests.into_iter().find(fits);
    found.ok_or_else(|| ImageError::Invalid("the image has no manifest for linux/amd64".to_owned()))
}

fn bounded(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut text = Vec::new();
    let read = File::open(path)
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, MAX_DOCUMENT), &mut text));
    read.map_err(io_error(format!("read {}", path.display())))?;
    Ok(text)
}

fn document<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    serde_json::from_slice(&bounded(path)?)
        .map_err(|error| ImageError::Invalid(format!("{} is not an OCI document: {error}", path.display())))
}

/// Path of a blob whose content matches its digest.
fn verified(layout: &Path, digest: &str) -> Result<PathBuf, ImageError> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    let hex = hex.ok_or_else(|| ImageError::Invalid(format!("{digest:?} is not a sha256 digest")))?;
    let path = layout.join("blobs/sha256").join(hex);
    let metadata = fs::metadata(&path).map_err(io_error(format!("look at {}", path.display())))?;
    if !metadata.is_file() {
        return Err(ImageError::Invalid(format!("{} is not a file", path.display())));
    }
    let file = File::open(&path).map_err(io_error(format!("open {}", path.display())))?;
    let found = storage::digest(&file).map_err(io_error(format!("read {}", path.display())))?;
    if found == hex { Ok(path) } else { Err(ImageError::Invalid(format!("blob {digest} is damaged"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_of_its_commands_is_kept() {
        let text = br#"{"architecture": "amd64", "config": {"Env": ["A=b=c", "PATH=/x:/y", "broken"],
            "WorkingDir": "/app", "User": "node", "Cmd": ["sh"]}}"#;
        let found = configuration(text).unwrap();
        let env = [("A", "b=c"), ("PATH", "/x:/y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(found.env, env.into());
        assert_eq!((found.workdir.as_deref(), found.user.as_deref()), (Some("/app"), Some("node")));
        for text in
            ["{}", r#"{"config": null}"#, r#"{"config": {"Env": null, "WorkingDir": "/", "User": ""}}"#]
        {
            assert_eq!(configuration(text.as_bytes()).unwrap(), ImageConfig::default(), "{text}");
        }
        assert!(configuration(b"[").is_err());
    }
}
