//! Who calls: exactly one of `x-api-key` and `Authorization: Bearer`, a key of
//! ours or a JWT of a configured issuer (session contract, section 1).

use std::ops::Not as _;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use dormouse_store::{ApiKey, hash_secret};
use dormouse_types::{AccountId, KeyId};
use futures::{Stream, StreamExt as _};

use crate::App;
use crate::error::ApiError;

/// Who calls, as the layer in front of every API found out.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Identity);

/// The account that calls.
#[derive(Debug, Clone)]
pub(crate) struct Account(pub(crate) AccountId);

/// Who calls, and what their token says of the platform that issued it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) account: AccountId,
    /// The key of ours that was shown.
    pub(crate) key: Option<KeyId>,
    pub(crate) platform: Option<PlatformClaims>,
}

/// Owner and project in the words of the token's issuer (provider contract,
/// section 12). The owner stands for the caller's own account.
#[derive(Debug, Clone)]
pub(crate) struct PlatformClaims {
    pub(crate) owner_id: String,
    pub(crate) project_id: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // A route that is not behind the layer lets nobody in.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthorized("Unauthorized"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Account {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Caller(identity) = Caller::from_request_parts(parts, state).await?;
        Ok(Self(identity.account))
    }
}

/// The layer in front of an API: finds out who calls, and holds them to the
/// rate that they may have. `refuse` gives a refusal the API's own form.
pub(crate) async fn layer(
    app: App,
    mut request: Request,
    next: Next,
    refuse: fn(ApiError) -> Response,
) -> Response {
    let peer = crate::request::peer(&request);
    match authenticate(request.headers(), &app).await {
        Ok(identity) => match app.rates.of_account(&identity.account) {
            Ok(()) => {
                crate::request::note_account(&identity.account);
                request.extensions_mut().insert(Caller(identity));
                next.run(request).await
            }
            Err(wait) => refuse(ApiError::too_many(wait)),
        },
        // Guesses are counted by where they come from.
        Err(error) if error.status == StatusCode::UNAUTHORIZED => match app.rates.of_stranger(peer) {
            Ok(()) => refuse(error),
            Err(wait) => refuse(ApiError::too_many(wait)),
        },
        Err(error) => refuse(error),
    }
}

enum Credential {
    Key(String),
    /// A key of ours in the form of a token of the platform.
    Dressed(String, PlatformClaims),
    Token(String),
}

/// Owner in a [`Credential::Dressed`] that stands for the caller's own account.
const OWN: &str = "dormouse";

/// A key of ours that clients took for a token of the platform's: they want three parts with
/// `owner_id` and `project_id` in the second, and look at nothing else. The third is the key.
fn dressed(token: &str) -> Option<Credential> {
    #[derive(serde::Deserialize)]
    struct Claims {
        owner_id: String,
        project_id: Option<String>,
    }
    let [_, claims, key] = token.split('.').collect::<Vec<_>>()[..] else { return None };
    let key = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(key).ok()?).ok()?;
    if !ApiKey::looks_like(&key) {
        return None;
    }
    let Claims { owner_id, project_id } =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    Some(Credential::Dressed(key, PlatformClaims { owner_id, project_id }))
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
            Ok(if ApiKey::looks_like(&token) {
                Credential::Key(token)
            } else {
                dressed(&token).unwrap_or(Credential::Token(token))
            })
        }
        _ => Err(ApiError::unauthorized("Exactly one of x-api-key or Authorization must be provided")),
    }
}

/// Whether the credentials of a call that goes on for long are still those of
/// `account`. A database that does not answer ends nobody's stream.
pub(crate) async fn still_allowed(headers: &HeaderMap, app: &App, account: &AccountId) -> bool {
    match authenticate(headers, app).await {
        Ok(identity) => &identity.account == account,
        Err(error) => error.status != StatusCode::UNAUTHORIZED,
    }
}

/// How often somebody who reads a stream is asked whether they still may.
const CHECK: std::time::Duration = std::time::Duration::from_secs(5);

/// The right to what goes on for long: it can be taken away meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Right {
    pub(crate) account: AccountId,
    pub(crate) key: Option<KeyId>,
    /// Account or organization whose it is.
    pub(crate) owner: String,
}

impl Right {
    /// Whether the key is valid, and the account speaks for the owner. A database
    /// that does not answer ends nothing.
    pub(crate) async fn holds(&self, app: &App) -> bool {
        if let Some(key) = &self.key
            && let Ok(row) = app.db.key(key).await
        {
            let now = app.clock.now();
            let valid = |row: &dormouse_store::KeyRow| {
                row.revoked_at.is_none() && row.expires_at.is_none_or(|end| end > now)
            };
            if !row.is_some_and(|row| valid(&row)) {
                return false;
            }
        }
        self.owner == self.account.as_str()
            || app.db.org_of_member(&self.account, &self.owner).await.is_ok_and(|org| org.is_none()).not()
    }

    /// Returns once it does not hold any more.
    pub(crate) async fn lost(&self, app: &App) {
        loop {
            tokio::time::sleep(CHECK).await;
            if !self.holds(app).await {
                return;
            }
        }
    }

    /// Ends a stream with it.
    pub(crate) fn bound<T>(
        self,
        app: App,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> impl Stream<Item = T> + Send + 'static
    where
        T: Send,
    {
        stream.take_until(Box::pin(async move { self.lost(&app).await }))
    }
}

async fn of_key(key: &str, app: &App) -> Result<Identity, ApiError> {
    let found = app.db.key_by_hash(&hash_secret(key)).await?;
    let now = app.clock.now();
    found
        .filter(|row| row.revoked_at.is_none() && row.expires_at.is_none_or(|end| end > now))
        .map(|row| Identity { account: row.account_id, key: Some(row.id), platform: None })
        .ok_or_else(|| ApiError::unauthorized("Unauthorized"))
}

async fn authenticate(headers: &HeaderMap, app: &App) -> Result<Identity, ApiError> {
    match credential(headers)? {
        Credential::Key(key) => of_key(&key, app).await,
        Credential::Dressed(key, claims) => {
            let identity = of_key(&key, app).await?;
            // Any other owner is looked up like one of a query.
            let platform = (claims.owner_id == OWN).then_some(claims);
            Ok(Identity { platform, ..identity })
        }
        Credential::Token(token) => match &app.jwt {
            Some(verifier) => verifier.identity(&token, &app.db, &app.clock).await,
            None => Err(ApiError::unauthorized("Unauthorized")),
        },
    }
}
