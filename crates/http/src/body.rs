//! Reading JSON bodies, queries and paths with errors that say what is wrong.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// A JSON body. An empty one reads as `{}`.
pub(crate) struct ApiJson<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if let Some(kind) = request.headers().get(header::CONTENT_TYPE) {
            let kind =
                kind.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
            // A body of text without a kind is what `fetch` sends where nobody named one.
            if kind != "application/json" && !kind.ends_with("+json") && kind != "text/plain" {
                return Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "the body must be JSON, sent as content-type: application/json",
                ));
            }
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let status = axum::response::IntoResponse::into_response(rejection).status();
            let message = if status == StatusCode::PAYLOAD_TOO_LARGE {
                format!("the body must not be over {} bytes", crate::MAX_JSON)
            } else {
                "the body could not be read".to_owned()
            };
            ApiError::new(status, message)
        })?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
        // Two steps, so that "not JSON" and "not what was asked for" differ.
        let value: serde_json::Value = serde_json::from_slice(text)
            .map_err(|error| ApiError::bad_request(format!("malformed JSON body: {error}")))?;
        if !value.is_object() {
            let path = Some(Vec::new());
            return Err(ApiError { path, ..ApiError::bad_request("the body must be a JSON object") });
        }
        serde_path_to_error::deserialize(value).map(Self).map_err(|error| {
            let (place, fault) = (error.path().to_string(), error.inner().to_string());
            if place == "." {
                let wrong = ApiError::bad_request(format!("wrong body: {fault}"));
                return ApiError { path: Some(Vec::new()), ..wrong };
            }
            ApiError::about(&place, format!("{place}: {fault}"))
        })
    }
}

/// A query string.
pub(crate) struct ApiQuery<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| ApiError::bad_request(format!("wrong query: {}", rejection.body_text())))
    }
}
