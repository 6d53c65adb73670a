//! `[network]`, `[git]` and `[github]`: what sandboxes reach, and as whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use dormouse_egress::Mirror;
use dormouse_remote::{Credential, Credentials, Outward};
use dormouse_sessions::GitToken;
use dormouse_types::Cidr;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// Networks kept ready.
    pub(crate) pool: usize,
    /// Resolver for sandboxes' questions; absent: the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<SocketAddr>,
    /// Private, link-local and documentation networks that sandboxes may reach. The
    /// host, its loopback and metadata services they never reach.
    pub(crate) allow_private: Vec<Cidr>,
    /// Networks that they may not reach.
    pub(crate) deny: Vec<Cidr>,
    /// HTTP proxy through which this host reaches the internet:
    /// `http://[USER:PASSWORD@]HOST:PORT`. It resolves names, and decides what they may
    /// lead to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<String>,
    /// PEM file of certificate authorities to believe in beside the public ones and
    /// the host's, where the proxy of sandboxes answers for a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl Default for Network {
    fn default() -> Self {
        Self { pool: 16, dns: None, allow_private: Vec::new(), deny: Vec::new(), proxy: None, ca_file: None }
    }
}

impl Network {
    /// The URL of the proxy.
    pub(super) fn proxy(&self) -> anyhow::Result<Option<url::Url>> {
        let Some(text) = &self.proxy else { return Ok(None) };
        // It may hold a password, which is not repeated.
        let wrong = || anyhow::anyhow!("network.proxy: must be http://[USER:PASSWORD@]HOST:PORT");
        let url: url::Url = text.parse().map_err(|_| wrong())?;
        anyhow::ensure!(url.scheme() == "http" && url.has_host() && url.path() == "/", wrong());
        Ok(Some(url))
    }

    /// How the server itself reaches the internet.
    pub(crate) fn outward(&self) -> anyhow::Result<Outward> {
        Ok(Outward { proxy: self.proxy()?, ca_file: self.ca_file.clone() })
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!((1..=64).contains(&self.pool), "network.pool: must be from 1 to 64");
        self.proxy().map(drop)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Git {
    /// URL prefixes that stand for others.
    pub(crate) mirrors: Vec<MirrorEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorEntry {
    /// What people write.
    pub(crate) from: String,
    /// Where it really is.
    pub(crate) to: String,
}

impl Git {
    /// The mirrors, as the proxy of sandboxes takes them.
    pub(crate) fn mirrors(&self) -> Vec<Mirror> {
        self.mirrors.iter().map(|m| Mirror { from: m.from.clone(), to: m.to.clone() }).collect()
    }
}

/// The service's credentials at GitHub, for repositories that an organization of the
/// caller claims. They are set on requests by the network policy and never enter a
/// sandbox.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Github {
    /// The token. Better given as `DORMOUSE_GITHUB__TOKEN`, or in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// File of the token, such as a credential of systemd's (`%d/github-token`). It is
    /// read whenever it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// Id of a GitHub App.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_id: Option<String>,
    /// PEM file of that app's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_key_file: Option<PathBuf>,
    /// The same by owner on GitHub, where one has credentials of its own.
    pub(crate) organizations: BTreeMap<String, GithubCredential>,
}

impl std::fmt::Debug for Github {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The tokens stay out.
        f.debug_struct("Github").finish_non_exhaustive()
    }
}

impl Github {
    /// The credentials, if there are some.
    pub(crate) fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        let Self { token, token_file, app_id, app_key_file, organizations } = self.clone();
        let default = GithubCredential { token, token_file, app_id, app_key_file }.read("github")?;
        let mut owners = BTreeMap::new();
        for (owner, credential) in &organizations {
            let key = format!("github.organizations.{owner}");
            let credential = credential.read(&key)?.with_context(|| format!("{key}: names no credential"))?;
            owners.insert(owner.to_ascii_lowercase(), credential);
        }
        let credentials = Credentials { default, owners };
        Ok((credentials.default.is_some() || !credentials.owners.is_empty()).then_some(credentials))
    }
}

/// One credential: a token, the file of one, or an app, as in [`Github`].
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GithubCredential {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_key_file: Option<PathBuf>,
}

impl GithubCredential {
    fn read(&self, key: &str) -> anyhow::Result<Option<Credential>> {
        Ok(match self.clone() {
            Self { token: None, token_file: None, app_id: None, app_key_file: None } => None,
            Self { token: Some(token), token_file: None, app_id: None, app_key_file: None } => {
                Some(Credential::Text(GitToken::new(token)))
            }
            Self { token: None, token_file: Some(path), app_id: None, app_key_file: None } => {
                Some(Credential::File(path))
            }
            Self { token: None, token_file: None, app_id: Some(id), app_key_file: Some(key) } => {
                Some(Credential::App { id, key })
            }
            _ => anyhow::bail!("{key}: give one of token, token_file, and app_id with app_key_file"),
        })
    }
}
