//! CORS as clients of the session API expect it (session contract, section 0):
//! on every answer, errors too; `OPTIONS` is answered here, with 204.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

pub(crate) async fn apply(request: Request, next: Next) -> Response {
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    add(response.headers_mut());
    response
}

fn add(headers: &mut HeaderMap) {
    let fixed = HeaderValue::from_static;
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, fixed("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, fixed("GET, POST, PUT, DELETE, OPTIONS, PATCH"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        fixed(
            "Content-Type, Authorization, X-Requested-With, x-api-key, x-request-id, Idempotency-Key, \
             Last-Event-ID",
        ),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        fixed("x-request-id, x-dormouse-began-anew, x-workflow-run-id, x-workflow-stream-tail-index"),
    );
    headers.entry(header::CACHE_CONTROL).or_insert(fixed("no-store"));
}
