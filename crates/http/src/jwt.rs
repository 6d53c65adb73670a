//! JWTs of one configured issuer, checked against its published keys.
//!
//! Keys are fetched by one request at a time, for which only those wait that
//! need a key which is not known. An issuer that is away or hangs refuses
//! nobody whose key is known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_store::{AccountRow, Db};
use dormouse_types::{AccountId, Timestamp};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use crate::auth::{Identity, PlatformClaims};
use crate::error::{ApiError, chain};

/// From this age on keys are fetched again.
const FRESH: Duration = Duration::from_secs(600);

/// Up to this age keys are believed where they cannot be fetched.
const BELIEVED: Duration = Duration::from_secs(24 * 3600);

/// The issuer is not asked more often than this, whoever brings unknown keys.
const RETRY: Duration = Duration::from_secs(30);

/// Whose tokens are accepted.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// Where the issuer publishes its keys.
    pub jwks_url: String,
    /// `iss` must be this.
    pub issuer: String,
    /// `aud` must be one of these.
    pub audience: Vec<String>,
    /// `alg` must be one of these.
    pub algorithms: Vec<Algorithm>,
    /// Make an account for a subject that has none.
    pub create_accounts: bool,
}

/// Checks tokens.
#[derive(Debug)]
pub struct JwtVerifier {
    config: JwtConfig,
    client: reqwest::Client,
    known: Mutex<Known>,
    /// Held by whoever asks the issuer.
    fetching: tokio::sync::Mutex<()>,
}

/// What the issuer said last.
#[derive(Debug, Default)]
struct Known {
    keys: Option<(Timestamp, Arc<JwkSet>)>,
    /// When it was asked last, and whether it answered.
    asked: Option<(Timestamp, bool)>,
}

/// What is known of a key.
enum Found {
    Fresh(Jwk),
    /// It should be fetched again.
    Old(Jwk),
    Unknown,
}

#[derive(serde::Deserialize)]
struct Claims {
    sub: String,
    email: Option<String>,
    name: Option<String>,
    owner_id: Option<String>,
    project_id: Option<String>,
}

impl JwtVerifier {
    /// A verifier; keys are fetched with the first token.
    ///
    /// # Errors
    /// The HTTP client's, when the host has no TLS roots.
    pub fn new(config: JwtConfig) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        Ok(Self { config, client, known: Mutex::default(), fetching: tokio::sync::Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is one assignment: a panic elsewhere cannot tear it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, kid: &str, now: Timestamp) -> Found {
        let known = self.known();
        let Some((at, keys)) = &known.keys else { return Found::Unknown };
        let age = now.since(*at);
        match keys.find(kid) {
            Some(key) if age < FRESH => Found::Fresh(key.clone()),
            Some(key) if age < BELIEVED => Found::Old(key.clone()),
            Some(_) | None => Found::Unknown,
        }
    }

    /// The issuer's key of this id; `None`: it has none.
    async fn key(&self, kid: &str, clock: &Clock) -> Result<Option<Jwk>, ApiError> {
        match self.find(kid, clock.now()) {
            Found::Fresh(key) => return Ok(Some(key)),
            Found::Old(key) => {
                // One of them waits for the new ones.
                let Ok(_fetching) = self.fetching.try_lock() else { return Ok(Some(key)) };
                self.fetch(clock).await;
            }
            Found::Unknown => {
                let _fetching = self.fetching.lock().await;
                if matches!(self.find(kid, clock.now()), Found::Unknown) {
                    self.fetch(clock).await;
                }
            }
        }
        match self.find(kid, clock.now()) {
            Found::Fresh(key) | Found::Old(key) => Ok(Some(key)),
            Found::Unknown if self.known().asked.is_some_and(|(_, answered)| answered) => Ok(None),
            Found::Unknown => {
                let message = "the token issuer cannot be reached";
                Err(ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, message))
            }
        }
    }

    /// Asks the issuer, unless that was done just now. The caller holds
    /// `fetching`.
    async fn fetch(&self, clock: &Clock) {
        let now = clock.now();
        if self.known().asked.is_some_and(|(at, _)| now.since(at) < RETRY) {
            return;
        }
        let fetch = async {
            let answer = self.client.get(&self.config.jwks_url).send().await?.error_for_status()?;
            answer.json::<JwkSet>().await
        };
        let fetched = fetch.await;
        let mut known = self.known();
        known.asked = Some((clock.now(), fetched.is_ok()));
        match fetched {
            Ok(keys) => known.keys = Some((now, Arc::new(keys))),
            Err(error) => tracing::error!(error = chain(&error), "fetch JWKS"),
        }
    }

    /// Who the token speaks for.
    pub(crate) async fn identity(&self, token: &str, db: &Db, clock: &Clock) -> Result<Identity, ApiError> {
        let refused = || ApiError::unauthorized("Unauthorized");
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused())?;
        if !self.config.algorithms.contains(&header.alg) {
            return Err(refused());
        }
        let kid = header.kid.ok_or_else(refused)?;
        let key = self.key(&kid, clock).await?.ok_or_else(refused)?;
        let key = DecodingKey::from_jwk(&key).map_err(|_| refused())?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&self.config.audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| refused())?.claims;
        let project_id = claims.project_id;
        let platform = claims.owner_id.map(|owner_id| PlatformClaims { owner_id, project_id });
        if let Some(account) = db.account_of_identity(&self.config.issuer, &claims.sub).await? {
            return Ok(Identity { account, key: None, platform });
        }
        if !self.config.create_accounts {
            return Err(refused());
        }
        let account = AccountRow {
            id: AccountId::generate(),
            name: claims.name.or_else(|| claims.email.clone()).unwrap_or_else(|| claims.sub.clone()),
            email: claims.email,
            created_at: clock.now(),
        };
        let account = db.account_for_identity(&self.config.issuer, &claims.sub, &account).await?;
        Ok(Identity { account, key: None, platform })
    }
}

#[cfg(test)]
mod tests;
