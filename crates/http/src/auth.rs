//! Who calls: exactly one of `x-api-key` and `Authorization: Bearer`, a key of
//! ours or a JWT of a configured issuer (session contract, section 1).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use dormouse_store::{ApiKey, hash_secret};
use dormouse_types::AccountId;

use crate::App;
use crate::error::ApiError;

/// The authenticated account.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) AccountId);

/// Who calls, and what their token says of the platform that issued it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) account: AccountId,
    pub(crate) platform: Option<PlatformClaims>,
}

/// Owner and project in the words of the token's issuer (provider contract,
/// section 12). The owner stands for the caller's own account.
#[derive(Debug, Clone)]
pub(crate) struct PlatformClaims {
    pub(crate) owner_id: String,
    pub(crate) project_id: Option<String>,
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        authenticate(&parts.headers, app).await.map(|identity| Self(identity.account))
    }
}

enum Credential {
    Key(String),
    Token(String),
}

fn credential(headers: &HeaderMap) -> Result<Credential, ApiError> {
    let text = |name: &header::HeaderName| {
        let mut values = headers.get_all(name).iter().filter(|value| !value.is_empty());
        let first = values.next().map(|value| value.to_str().unwrap_or("").trim().to_owned());
        (first.filter(|text| !text.is_empty()), values.next().is_some())
    };
    let (key, more_keys) = text(&header::HeaderName::from_static("x-api-key"));
    let (authorization, more) = text(&header::AUTHORIZATION);
    match (key, authorization) {
        (Some(key), None) if !more_keys => Ok(Credential::Key(key)),
        (None, Some(value)) if !more => {
            let token = match value.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim().to_owned(),
                _ => return Err(ApiError::unauthorized("Authorization header with Bearer token required")),
            };
            Ok(if ApiKey::looks_like(&token) { Credential::Key(token) } else { Credential::Token(token) })
        }
        _ => Err(ApiError::unauthorized("Exactly one of x-api-key or Authorization must be provided")),
    }
}

pub(crate) async fn authenticate(headers: &HeaderMap, app: &App) -> Result<Identity, ApiError> {
    match credential(headers)? {
        Credential::Key(key) => {
            let found = app.db.key_by_hash(&hash_secret(&key)).await?;
            let now = app.clock.now();
            found
                .filter(|row| row.revoked_at.is_none() && row.expires_at.is_none_or(|end| end > now))
                .map(|row| Identity { account: row.account_id, platform: None })
                .ok_or_else(|| ApiError::unauthorized("Unauthorized"))
        }
        Credential::Token(token) => match &app.jwt {
            Some(verifier) => verifier.identity(&token, &app.db, &app.clock).await,
            None => Err(ApiError::unauthorized("Unauthorized")),
        },
    }
}
