//! The provider port by HTTP: a client of the Vercel Sandbox protocol
//! (provider contract). For people who have an account there, and for any
//! other server of the protocol, Dormouse among them.
//!
//! One client is one team and project of the other side, whatever the
//! namespace of the port: names must differ over namespaces, as those of
//! sessions do. Whoever needs namespaces kept apart makes a client for each.
//!
//! The other side has words for less than the port knows: a reply does not
//! tell whether a command ran into its time limit (it is worked out), how many
//! processes a sandbox may have (0), or the values of injected headers (`None`).

mod creation;
mod follow;
mod provider;
mod replies;
mod requests;
mod terminal;
mod transport;

use std::time::Duration;

use dormouse_provider::Result;
use transport::Transport;

/// Where Vercel serves the protocol.
pub const VERCEL: &str = "https://vercel.com/api";

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Which server, and as whom.
#[derive(Debug, Clone)]
pub struct VercelConfig {
    /// What the protocol's paths are below: [`VERCEL`], or `http…/api` of
    /// another server.
    pub base_url: String,
    /// Access token, or API key of a Dormouse.
    pub token: Token,
    /// Team, by id or slug; `None`: the token's own.
    pub team: Option<String>,
    /// Project, by id or name; `None`: the other side's default.
    pub project: Option<String>,
    /// Runtime of sandboxes whose creator names neither image nor runtime;
    /// `None`: the other side's default.
    pub runtime: Option<String>,
    /// For calls that read or write a row.
    pub short_timeout: Duration,
    /// For calls that start or stop a machine: longer than it takes to write
    /// its memory and files down.
    pub long_timeout: Duration,
}

impl VercelConfig {
    /// The token's own team and its default project, with usual limits.
    #[must_use]
    pub fn new(base_url: impl Into<String>, token: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            token: Token(token.into()),
            team: None,
            project: None,
            runtime: None,
            short_timeout: Duration::from_secs(30),
            long_timeout: Duration::from_secs(290),
        }
    }
}

/// Sandboxes of a team and project.
#[derive(Debug, Clone)]
pub struct Vercel {
    transport: Transport,
    project: Option<String>,
    runtime: Option<String>,
    long_timeout: Duration,
}

impl Vercel {
    /// A client. Nothing is sent yet.
    ///
    /// # Errors
    /// When the token cannot stand in a header.
    pub fn new(config: &VercelConfig) -> Result<Self> {
        Ok(Self {
            transport: Transport::new(config)?,
            project: config.project.clone(),
            runtime: config.runtime.clone(),
            long_timeout: config.long_timeout,
        })
    }
}
