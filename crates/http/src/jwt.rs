//! JWTs of one configured issuer, checked against its published keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_jobs::Clock;
use dormouse_store::{AccountRow, Db};
use dormouse_types::AccountId;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use tokio::sync::Mutex;

use crate::auth::{Identity, PlatformClaims};
use crate::error::{ApiError, chain};

/// How long fetched keys are believed.
const FRESH: Duration = Duration::from_secs(600);

/// An unknown key id asks the issuer again, but not more often than this.
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
    keys: Mutex<Option<(Instant, Arc<JwkSet>)>>,
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
        Ok(Self { config, client, keys: Mutex::new(None) })
    }

    async fn keys(&self, older_than: Duration) -> Result<Arc<JwkSet>, ApiError> {
        let mut cached = self.keys.lock().await;
        if let Some((at, keys)) = cached.as_ref().filter(|(at, _)| at.elapsed() < older_than) {
            let _ = at;
            return Ok(keys.clone());
        }
        let fetch = async {
            let answer = self.client.get(&self.config.jwks_url).send().await?.error_for_status()?;
            answer.json::<JwkSet>().await
        };
        match fetch.await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                *cached = Some((Instant::now(), keys.clone()));
                Ok(keys)
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "fetch JWKS");
                Err(ApiError::new(
                    axum::http::StatusCode::SERVICE_UNAVAILABLE,
                    "the token issuer cannot be reached",
                ))
            }
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
        let mut keys = self.keys(FRESH).await?;
        if keys.find(&kid).is_none() {
            keys = self.keys(RETRY).await?;
        }
        let key = DecodingKey::from_jwk(keys.find(&kid).ok_or_else(refused)?).map_err(|_| refused())?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&self.config.audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| refused())?.claims;
        let project_id = claims.project_id;
        let platform = claims.owner_id.map(|owner_id| PlatformClaims { owner_id, project_id });
        if let Some(account) = db.account_of_identity(&self.config.issuer, &claims.sub).await? {
            return Ok(Identity { account, platform });
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
        Ok(Identity { account, platform })
    }
}

#[cfg(test)]
mod tests;
