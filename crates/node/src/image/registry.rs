//! Images of a registry (OCI distribution specification), brought into an OCI
//! image layout's `blobs` directory. Digests are checked when it is unpacked.
//!
//! Like Docker: a name without a registry is Docker Hub's, a registry on
//! loopback is spoken to in plain HTTP, and credentials are those that
//! `docker login` left in `$DOCKER_CONFIG` or `~/.docker` (no credential
//! helpers).

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_control::ImageConfig;
use futures::StreamExt as _;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol, linux_amd64_resolver};
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncWriteExt as _;

use super::{ImageError, io_error, oci};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence of a registry.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Pulls the layers of `reference` for this machine into `layout`; returns
/// their digests, lowest first, and what the image says of its commands.
pub(super) async fn pull(
    reference: &Reference,
    layout: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(Vec<String>, ImageConfig), ImageError> {
    let failed = |error: oci_client::errors::OciDistributionError| ImageError::Registry {
        reference: reference.whole(),
        source: Box::new(error),
    };
    let registry = reference.resolve_registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let config = ClientConfig {
        protocol: if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        platform_resolver: Some(Box::new(linux_amd64_resolver)),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("dormouse/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let client = Client::new(config);
    progress(&format!("asking {registry}"));
    let auth = docker_login(reference.registry()).unwrap_or(RegistryAuth::Anonymous);
    let (manifest, _, config) = client.pull_manifest_and_config(reference, &auth).await.map_err(failed)?;
    let config = oci::configuration(config.as_bytes())?;

    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(io_error(format!("make {}", blobs.display())))?;
    let count = manifest.layers.len();
    let mut digests = Vec::with_capacity(count);
    for (number, layer) in manifest.layers.iter().enumerate() {
        let name =
            layer.digest.strip_prefix("sha256:").filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let name =
            name.ok_or_else(|| ImageError::Invalid(format!("{:?} is no sha256 digest", layer.digest)))?;
        let path = blobs.join(name);
        let size = u64::try_from(layer.size).unwrap_or(0);
        let mut stream = client.pull_blob_stream(reference, layer).await.map_err(failed)?.stream;
        let shown = || format!("write {}", path.display());
        let mut file = tokio::fs::File::create(&path).await.map_err(io_error(shown()))?;
        let (mut written, mut told) = (0_u64, 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(io_error(format!("pull {}", layer.digest)))?;
            written += chunk.len() as u64;
            // The manifest says how much: a registry must not fill the disk.
            if written > size {
                return Err(ImageError::Invalid(format!("layer {} is larger than announced", layer.digest)));
            }
            file.write_all(&chunk).await.map_err(io_error(shown()))?;
            if written >> 20 > told {
                told = written >> 20;
                progress(&format!("pulling layer {} of {count}: {told} of {} MiB", number + 1, size >> 20));
            }
        }
        file.flush().await.map_err(io_error(shown()))?;
        digests.push(layer.digest.clone());
    }
    Ok((digests, config))
}

#[derive(serde::Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::HashMap<String, DockerAuth>,
}

#[derive(serde::Deserialize)]
struct DockerAuth {
    auth: Option<String>,
}

/// What `docker login` keeps for a registry.
fn docker_login(registry: &str) -> Option<RegistryAuth> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    parse_docker_config(&std::fs::read_to_string(dir.join("config.json")).ok()?, registry)
}

fn parse_docker_config(text: &str, registry: &str) -> Option<RegistryAuth> {
    use base64::Engine as _;
    let config: DockerConfig = serde_json::from_str(text).ok()?;
    // Docker Hub has a name of its own in there.
    let name = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    let auth = config.auths.get(name)?.auth.as_ref()?;
    let text = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_login_left() {
        let text = r#"{"auths": {"ghcr.io": {"auth": "YWRhOnMzY3JldA=="}, "empty.test": {},
            "https://index.docker.io/v1/": {"auth": "aHVi OnB3"}}}"#;
        let text = text.replace(' ', "");
        assert_eq!(
            parse_docker_config(&text, "ghcr.io"),
            Some(RegistryAuth::Basic("ada".to_owned(), "s3cret".to_owned()))
        );
        assert_eq!(
            parse_docker_config(&text, "docker.io"),
            Some(RegistryAuth::Basic("hub".to_owned(), "pw".to_owned()))
        );
        assert_eq!(parse_docker_config(&text, "empty.test"), None);
        assert_eq!(parse_docker_config(&text, "other.test"), None);
        assert_eq!(parse_docker_config("{", "ghcr.io"), None);
    }
}
