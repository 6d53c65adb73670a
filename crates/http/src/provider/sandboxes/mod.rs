//! Sandboxes.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod fork;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod network;
pub(crate) mod update;

use axum::body::{Body, Bytes};
use axum::extract::OriginalUri;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use dormouse_provider::SandboxKey;
use dormouse_types::{SandboxName, hex};
use dormouse_wire as wire;
use sha2::{Digest as _, Sha256};

use super::error::{WireError, WireResult};
use super::scope::Scope;
use crate::App;
use crate::auth::Caller;
use crate::body::ApiJson;

fn key(scope: &Scope, name: &str) -> WireResult<SandboxKey> {
    let name: SandboxName =
        name.parse().map_err(|_| WireError::not_found(format!("sandbox {name} not found")))?;
    Ok(SandboxKey { namespace: scope.namespace.clone(), name })
}

/// A body, and what its request is recognized by when it is sent again. The
/// protocol's clients send a creation again when the connection broke or a gateway
/// answered in our place, and have no key to say so: what they send again is the
/// same body, to the same path, from the same account.
pub(crate) struct Repeatable<T>(pub(crate) T, pub(crate) String);

impl<T: serde::de::DeserializeOwned> axum::extract::FromRequest<App> for Repeatable<T> {
    type Rejection = WireError;

    async fn from_request(request: axum::extract::Request, app: &App) -> Result<Self, WireError> {
        let (parts, body) = request.into_parts();
        let bytes = Bytes::from_request(axum::extract::Request::from_parts(parts.clone(), body), app).await;
        let bytes =
            bytes.map_err(|_| WireError::bad_request("the body could not be read, or is too large"))?;
        let path = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        let account = parts.extensions.get::<Caller>().map_or("", |caller| caller.0.account.as_str());
        let mut digest = Sha256::new();
        for part in [account.as_bytes(), path.to_string().as_bytes(), &bytes] {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        let digest = hex(&digest.finalize());
        let request = axum::extract::Request::from_parts(parts, Body::from(bytes));
        let ApiJson(value) = ApiJson::from_request(request, app).await?;
        Ok(Self(value, digest))
    }
}

/// JSON that counts as taken once the last of it was asked for: from then on
/// the name of `key` is taken, also for who repeats its creation.
fn reply(reply: wire::SandboxReply, app: &App, key: Option<SandboxKey>) -> Response {
    // Strings and numbers: their JSON cannot fail.
    let text = Bytes::from(serde_json::to_vec(&reply).unwrap_or_default());
    let answer = key.map(|key| (app.provider.clone(), key));
    let chunks = futures::stream::unfold((Some(text), answer), |(text, answer)| async {
        match (text, answer) {
            (Some(text), answer) => Some((Ok::<_, std::convert::Infallible>(text), (None, answer))),
            // The connection took all of it and asks for more. The end of the
            // answer waits for the note: who has it and asks again is told so.
            (None, Some((provider, key))) => {
                if let Err(error) = provider.taken(&key).await {
                    tracing::warn!(sandbox = %key.name, error = error.detail(), "note that it was handed over");
                }
                None
            }
            (None, None) => None,
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
