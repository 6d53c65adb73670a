//! The command line's side of the two APIs.

use std::time::Duration;

use dormouse_wire as wire;
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use crate::cli::RemoteArgs;
use crate::output::hint;

/// A server, and the key to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    key: String,
    /// Owner and project, in the words of a query.
    scope: Vec<(&'static str, String)>,
}

/// Why a call failed, as far as the caller acts on it.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The run has ended: resume and repeat.
    Stopped,
    Refused(Refused),
    Other(anyhow::Error),
}

/// The server's own words.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    /// What the provider API says in a word; the session API has none.
    pub(crate) code: String,
    message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.status)
    }
}

impl std::error::Error for Refused {}

impl From<anyhow::Error> for CallError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<CallError> for anyhow::Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Stopped => anyhow::anyhow!("the sandbox is stopped"),
            CallError::Refused(refused) => Self::new(refused),
            CallError::Other(error) => error,
        }
    }
}

/// An error of either API.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum AnyError {
    Provider(wire::ErrorReply),
    Session { error: String },
}

impl Client {
    pub(crate) fn new(remote: &RemoteArgs) -> anyhow::Result<Self> {
        let Some(key) = remote.key.clone() else {
            return Err(hint(
                "no API key",
                "pass --key or set DORMOUSE_KEY; `dormouse key create` makes one",
            ));
        };
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).build()?;
        let base = format!("{}/api/v2/sandboxes", remote.server.trim_end_matches('/'));
        let team = remote.team.clone().map(|team| ("teamId", team));
        let project = remote.project.clone().map(|project| ("projectId", project));
        Ok(Self { http, base, key, scope: team.into_iter().chain(project).collect() })
    }

    /// For the session API, which knows no teams and projects.
    pub(crate) fn of_sessions(remote: &RemoteArgs) -> anyhow::Result<Self> {
        let base = format!("{}/api", remote.server.trim_end_matches('/'));
        Ok(Self { base, scope: Vec::new(), ..Self::new(remote)? })
    }

    /// For the platform's own calls about accounts.
    pub(crate) fn of_platform(remote: &RemoteArgs) -> anyhow::Result<Self> {
        Self::of_sessions(remote)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key);
        // An empty list would leave a question mark at the end.
        if self.scope.is_empty() { request } else { request.query(&self.scope) }
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, CallError> {
        let answer = request.send().await.map_err(|error| {
            let message = format!("cannot reach {}: {}", self.base, root_cause(&error));
            hint(message, "is the server running? Pass --server or set DORMOUSE_SERVER")
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let detail = answer.json::<AnyError>().await;
        match (status, detail) {
            (StatusCode::GONE | StatusCode::UNPROCESSABLE_ENTITY, Ok(AnyError::Provider(reply)))
                if reply.error.code.starts_with("sandbox_stop") =>
            {
                Err(CallError::Stopped)
            }
            (_, Ok(AnyError::Provider(reply))) => {
                let wire::ErrorDetail { code, message, .. } = reply.error;
                Err(CallError::Refused(Refused { status, code, message }))
            }
            (_, Ok(AnyError::Session { error })) => {
                Err(CallError::Refused(Refused { status, code: String::new(), message: error }))
            }
            (_, Err(_)) => Err(CallError::Other(anyhow::anyhow!("the server answered {status}"))),
        }
    }

    pub(crate) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, CallError> {
        let answer = self.send(request).await?;
        let read = answer.json().await;
        read.map_err(|error| CallError::Other(anyhow::Error::new(error).context("read the server's answer")))
    }

    /// The sandbox, woken if `resume`.
    pub(crate) async fn sandbox(&self, name: &str, resume: bool) -> Result<wire::SandboxReply, CallError> {
        let path = format!("/{}", plain(name)?);
        self.json(self.request(Method::GET, &path).query(&[("resume", resume)])).await
    }
}

/// A name that can stand in a path as it is.
pub(crate) fn plain(name: &str) -> anyhow::Result<&str> {
    name.parse::<dormouse_types::SandboxName>()?;
    Ok(name)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
