//! The service's GitHub tokens: one for everything, one for each organization of
//! GitHub's, from a file, or of a GitHub App, whose tokens are minted for one repository
//! and end after an hour.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_egress::{Mirror, mirrored};
use dormouse_jobs::Clock;
use dormouse_sessions::{GitToken, TokenError, TokenSource};
use dormouse_types::{GithubRepo, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{Outward, SetUpError};

/// How long GitHub may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A minted token is used for this long; GitHub's are good for an hour.
const USED_FOR: Duration = Duration::from_secs(40 * 60);

/// How long nobody asks again after a failure.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// Tokens that are kept.
const KEPT: usize = 10_000;

/// Where a token comes from.
#[derive(Clone)]
pub enum Credential {
    /// From a file, which is read whenever it is used: whoever replaces it need not
    /// tell anybody.
    File(PathBuf),
    /// As it is.
    Text(GitToken),
    /// Of a GitHub App.
    App {
        /// Its id, or client id.
        id: String,
        /// Its private key in PEM, in a file.
        key: PathBuf,
    },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Text(_) => "Text",
            Self::App { .. } => "App",
        })
    }
}

/// Which repositories a token is for.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// For owners that have none of their own.
    pub default: Option<Credential>,
    /// By owner, in lower case.
    pub owners: BTreeMap<String, Credential>,
}

impl Credentials {
    fn of(&self, repo: &GithubRepo) -> Option<&Credential> {
        self.owners.get(&repo.owner().to_ascii_lowercase()).or(self.default.as_ref())
    }
}

/// The token of one repository, which is minted by one at a time, or when that failed.
type Slot = Arc<Mutex<Option<(Timestamp, Option<GitToken>)>>>;

/// The tokens of a server.
#[derive(Debug)]
pub struct GithubTokens {
    credentials: Credentials,
    client: reqwest::Client,
    mirrors: Vec<Mirror>,
    minted: std::sync::Mutex<HashMap<String, Slot>>,
    clock: Clock,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Installation {
    id: u64,
}

#[derive(Deserialize)]
struct Minted {
    token: String,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl GithubTokens {
    /// With these credentials; GitHub's API may be mirrored.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(
        credentials: Credentials,
        mirrors: Vec<Mirror>,
        outward: &Outward,
        clock: Clock,
    ) -> Result<Self, SetUpError> {
        let client = outward.client(&mirrors, PATIENCE)?;
        Ok(Self { credentials, client, mirrors, minted: std::sync::Mutex::default(), clock })
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        jwt: &str,
        body: Option<serde_json::Value>,
    ) -> Result<T, Failure> {
        let url = format!("https://api.github.com/{path}");
        let url = mirrored(&self.mirrors, &url).unwrap_or(url);
        let mut request = self.client.request(method, url).bearer_auth(jwt);
        request = request.header("accept", "application/vnd.github+json");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(reqwest::Error::without_url)?;
        let answer = answer.error_for_status().map_err(reqwest::Error::without_url)?;
        Ok(answer.json().await.map_err(reqwest::Error::without_url)?)
    }

    /// A token of an app for one repository ("Authenticating as a GitHub App
    /// installation").
    async fn mint(&self, id: &str, key: &Path, repo: &GithubRepo) -> Result<GitToken, Failure> {
        let name = repo.to_string().to_ascii_lowercase();
        let slot = {
            // A map only: a panic elsewhere cannot tear it.
            let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
            if minted.len() >= KEPT && !minted.contains_key(&name) {
                minted.clear();
            }
            minted.entry(name).or_default().clone()
        };
        let mut slot = slot.lock().await;
        if let Some((at, minted)) = slot.as_ref() {
            let age = self.clock.now().since(*at);
            match minted {
                Some(token) if age < USED_FOR => return Ok(token.clone()),
                None if age < FAILED_FOR => return Err("it failed a moment ago".into()),
                _ => {}
            }
        }
        let minted = self.ask_for_token(id, key, repo).await;
        *slot = Some((self.clock.now(), minted.as_ref().ok().cloned()));
        minted
    }

    async fn ask_for_token(&self, id: &str, key: &Path, repo: &GithubRepo) -> Result<GitToken, Failure> {
        let pem = tokio::fs::read(key).await?;
        let now = u64::try_from(self.clock.now().0 / 1000)?;
        // GitHub's clock may be behind.
        let claims = Claims { iss: id, iat: now - 60, exp: now + 540 };
        let jwt =
            jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &EncodingKey::from_rsa_pem(&pem)?)?;
        let Installation { id } =
            self.ask(Method::GET, &format!("repos/{repo}/installation"), &jwt, None).await?;
        let scope = serde_json::json!({ "repositories": [repo.name()] });
        let path = format!("app/installations/{id}/access_tokens");
        let Minted { token } = self.ask(Method::POST, &path, &jwt, Some(scope)).await?;
        Ok(GitToken::new(token))
    }

    async fn get(&self, repo: &GithubRepo) -> Result<GitToken, Failure> {
        match self.credentials.of(repo).ok_or("no credential is configured")? {
            Credential::Text(token) => Ok(token.clone()),
            Credential::File(path) => read(path).await,
            Credential::App { id, key } => self.mint(id, key, repo).await,
        }
    }
}

async fn read(path: &Path) -> Result<GitToken, Failure> {
    let text = tokio::fs::read_to_string(path).await?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err("the file holds no token".into());
    }
    Ok(GitToken::new(token.to_owned()))
}

#[async_trait]
impl TokenSource for GithubTokens {
    fn covers(&self, repo: &GithubRepo) -> bool {
        self.credentials.of(repo).is_some()
    }

    async fn token(&self, repo: &GithubRepo) -> Result<GitToken, TokenError> {
        self.get(repo).await.map_err(|error| {
            tracing::error!(%repo, error = %super::causes(&*error), "get a GitHub token");
            TokenError
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Json;
    use axum::http::{HeaderMap, StatusCode, Uri};
    use axum::response::IntoResponse as _;
    use serde_json::json;

    use super::*;

    fn repo(name: &str) -> GithubRepo {
        format!("https://github.com/{name}").parse().unwrap()
    }

    #[tokio::test]
    async fn a_file_is_read_whenever_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let owners = BTreeMap::from([("acme".to_owned(), Credential::File(path.clone()))]);
        let tokens = GithubTokens::new(
            Credentials { default: None, owners },
            Vec::new(),
            &Outward::default(),
            Clock::system(),
        )
        .unwrap();
        assert!(tokens.covers(&repo("Acme/widgets")) && !tokens.covers(&repo("other/widgets")));
        assert!(tokens.token(&repo("acme/widgets")).await.is_err());
        for text in ["one", "two"] {
            std::fs::write(&path, format!("{text}\n")).unwrap();
            let token = tokens.token(&repo("acme/widgets")).await.unwrap();
            assert_eq!(token, GitToken::new(text.to_owned()));
        }
        std::fs::write(&path, "two words").unwrap();
        assert!(tokens.token(&repo("acme/widgets")).await.is_err());
    }

    /// Minted for one repository, once, with a token that the app's key signed.
    #[tokio::test]
    async fn an_app_mints_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        let der = dormouse_egress::Signer::generate().unwrap();
        std::fs::write(&key, dormouse_egress::pem(&der)).unwrap();
        let clock = Clock::fixed(Timestamp(1_800_000_000_000));
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let answer = move |method: axum::http::Method, uri: Uri, headers: HeaderMap, body: String| async move {
            let jwt = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
            assert_eq!(jsonwebtoken::decode_header(&jwt).unwrap().alg, Algorithm::RS256);
            let number = count.fetch_add(1, Ordering::SeqCst);
            match (method.as_str(), uri.path()) {
                ("GET", "/repos/acme/widgets/installation") => Json(json!({ "id": 42 })).into_response(),
                ("POST", "/app/installations/42/access_tokens") => {
                    assert_eq!(body, r#"{"repositories":["widgets"]}"#);
                    Json(json!({ "token": format!("ghs_{number}"), "expires_at": "x" })).into_response()
                }
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("http://{}/", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mirrors = vec![Mirror { from: "https://api.github.com/".to_owned(), to }];
        let default = Some(Credential::App { id: "7".to_owned(), key });
        let tokens = GithubTokens::new(
            Credentials { default, owners: BTreeMap::new() },
            mirrors,
            &Outward::default(),
            clock.clone(),
        )
        .unwrap();
        let token = tokens.token(&repo("acme/widgets")).await.unwrap();
        assert_eq!(token, GitToken::new("ghs_1".to_owned()));
        assert_eq!(tokens.token(&repo("Acme/Widgets")).await.unwrap(), token, "minted twice");
        assert!(tokens.token(&repo("acme/other")).await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        clock.advance(USED_FOR);
        assert_ne!(tokens.token(&repo("acme/widgets")).await.unwrap(), token, "an old one");
    }
}
