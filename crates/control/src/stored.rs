//! What rows hold as JSON: the configuration of a sandbox and of an image. Each
//! text names the version of its form; `tests/stored` has a golden file for each
//! that was ever written, and what an older build wrote is read for ever.

use std::collections::BTreeMap;

use dormouse_provider::{
    Expiration, Grant, Mount, NetworkPolicy, ProviderError, Resources, Result, Retention,
};
use serde::{Deserialize, Serialize};

/// Who commands run as unless they ask for root.
pub const DEFAULT_USER: &str = "ubuntu";

/// Default working directory (provider contract, section 11; session contract,
/// section 5).
pub const DEFAULT_CWD: &str = "/vercel/sandbox";

/// What is stored as JSON under a version.
pub trait Stored: Sized {
    /// What it is, for an error.
    const WHAT: &'static str;

    /// The text for a row.
    ///
    /// # Errors
    /// [`ProviderError::Internal`] for what JSON cannot say.
    fn write(&self) -> Result<String>;

    /// Reads a text of this or an older version.
    ///
    /// # Errors
    /// [`ProviderError::Internal`] for anything else.
    fn read(text: &str) -> Result<Self>;
}

/// The versions of one form; `$name` is the newest.
macro_rules! stored {
    ($name:ident, $what:literal, $versions:ident { $($tag:literal => $variant:ident($form:ty)),+ $(,)? }) => {
        #[derive(Serialize, Deserialize)]
        #[serde(tag = "v")]
        enum $versions {
            $(#[serde(rename = $tag)] $variant($form),)+
        }

        impl $crate::stored::Stored for $name {
            const WHAT: &'static str = $what;

            fn write(&self) -> dormouse_provider::Result<String> {
                serde_json::to_string(&$versions::V1(self.clone().into())).map_err(|error| {
                    dormouse_provider::ProviderError::internal(concat!("write the ", $what), error)
                })
            }

            fn read(text: &str) -> dormouse_provider::Result<Self> {
                match serde_json::from_str(text) {
                    $(Ok($versions::$variant(form)) => Ok(form.into()),)+
                    Err(error) => Err(dormouse_provider::ProviderError::internal(
                        concat!("read the stored ", $what),
                        error,
                    )),
                }
            }
        }
    };
}

pub(crate) use stored;

/// Configuration of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Limits of its next run.
    pub resources: Resources,
    /// Name of its image.
    pub image: String,
    /// Default working directory.
    pub cwd: String,
    /// Who commands run as unless they ask for root.
    pub user: String,
    /// The image's environment, below `env`.
    pub image_env: BTreeMap<String, String>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Hard lifetime of its next run, in milliseconds.
    pub timeout_ms: u64,
    /// What may leave it.
    pub network: NetworkPolicy,
    /// Whose credentials are in that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// It is forgotten when its run ends.
    pub ephemeral: bool,
    /// Runtime that it was asked for by.
    pub runtime: Option<String>,
    /// Ports that have a route.
    pub ports: Vec<u16>,
    /// For its snapshots, when it was asked for.
    pub snapshot_expiration: Option<Expiration>,
    /// Which snapshots stay.
    pub retention: Retention,
    /// Drives of its next run, by the path where each is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, Mount>,
}

stored! { SandboxConfig, "configuration of a sandbox", SandboxVersions { "1" => V1(SandboxConfig) } }

impl SandboxConfig {
    /// The policy of its network as a row of a run has it: what is secret stays
    /// with the sandbox.
    ///
    /// # Errors
    /// [`ProviderError::Internal`] for what JSON cannot say.
    pub fn shown_network(&self) -> Result<String> {
        serde_json::to_string(&self.network.without_values())
            .map_err(|error| ProviderError::internal("write a network policy", error))
    }
}

/// What a base image says of the commands that run in it (OCI image
/// specification, "Image Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Absolute; `None`: [`DEFAULT_CWD`].
    pub workdir: Option<String>,
    /// Name or number, perhaps with a group's number; `None`: [`DEFAULT_USER`].
    pub user: Option<String>,
}

stored! { ImageConfig, "configuration of an image", ImageVersions { "1" => V1(ImageConfig) } }

#[cfg(test)]
mod tests {
    use dormouse_provider::{Action, CustomPolicy, DomainPolicy, KeepLast, Rule};

    use super::*;
    use crate::ending::{Deletion, Ending, Manual};

    fn text(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn sandbox() -> SandboxConfig {
        let headers = BTreeMap::from([("authorization".to_owned(), Some("Bearer x".to_owned()))]);
        let rule = Rule { matches: None, action: Action::SetHeaders(headers) };
        SandboxConfig {
            resources: Resources { vcpus: 2, memory_mib: 4096, pids: 512, disk_mib: Some(1024) },
            image: "default".to_owned(),
            cwd: DEFAULT_CWD.to_owned(),
            user: DEFAULT_USER.to_owned(),
            image_env: text(&[("PATH", "/bin")]),
            env: text(&[("A", "b c")]),
            tags: text(&[("team", "blue")]),
            timeout_ms: 300_000,
            network: NetworkPolicy::Custom(CustomPolicy {
                domains: vec![DomainPolicy { domain: "github.com".to_owned(), rules: vec![rule] }],
                denied_networks: vec!["192.0.2.0/24".parse().unwrap()],
                ..CustomPolicy::default()
            }),
            grant: None,
            ephemeral: true,
            runtime: Some("node24".to_owned()),
            ports: vec![3000],
            snapshot_expiration: Some(Expiration::After(5)),
            retention: Retention::KeepLast(KeepLast {
                count: 2,
                expiration: Some(Expiration::Never),
                delete_evicted: true,
            }),
            mounts: BTreeMap::new(),
        }
    }

    /// What is on disk somewhere is read, and what is written now is what is on
    /// disk: a change of either needs a new version.
    #[test]
    fn every_version_is_read_and_the_newest_is_written() {
        let image = ImageConfig {
            env: text(&[("LANG", "C.UTF-8")]),
            workdir: Some("/app".to_owned()),
            user: Some("1000:1000".to_owned()),
        };
        let snapshot = Some("snap_1".parse().unwrap());
        let manual = Some(Manual { expiration: Some(Expiration::After(9)) });
        let reason = dormouse_provider::StopReason::Snapshot;
        let ending = Ending { reason, snapshot, manual, deletion: Some(Deletion { with_snapshots: true }) };
        golden(include_str!("../tests/stored/sandbox-1.json"), &sandbox());
        golden(include_str!("../tests/stored/image-1.json"), &image);
        golden(include_str!("../tests/stored/ending-1.json"), &ending);
    }

    fn golden<T: Stored + std::fmt::Debug + PartialEq>(file: &str, value: &T) {
        assert_eq!(&T::read(file).unwrap(), value);
        assert_eq!(value.write().unwrap(), file.trim_end());
    }

    #[test]
    fn what_is_none_of_ours_is_refused() {
        for bad in ["", "{}", r#"{"v":"2","image":"x"}"#, "[]"] {
            let error = SandboxConfig::read(bad).unwrap_err();
            assert!(matches!(error, ProviderError::Internal { .. }), "{bad}");
        }
    }

    #[test]
    fn a_run_does_not_get_what_is_secret() {
        let shown = sandbox().shown_network().unwrap();
        assert!(shown.contains("authorization") && !shown.contains("Bearer"), "{shown}");
    }
}
