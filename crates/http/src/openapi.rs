//! The OpenAPI 3.1 document of the session API. It is made from the handlers
//! and checked in as `openapi/session-api.json`; a test fails on drift.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};

/// The document.
#[must_use]
pub fn document() -> OpenApi {
    let (_, routes) = crate::session::router().split_for_parts();
    let mut info = InfoBuilder::new().title("Dormouse session API").version(env!("CARGO_PKG_VERSION"));
    info = info.description(Some("A Linux sandbox for every agent session."));
    let mut document = OpenApiBuilder::new().info(info.build()).build().merge_from(routes);
    let components = document.components.get_or_insert_with(Default::default);
    components.add_security_scheme(
        "ApiKeyAuth",
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key"))),
    );
    components.add_security_scheme(
        "BearerAuth",
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
    );
    let none = Vec::<String>::new;
    document.security = Some(vec![
        SecurityRequirement::new("ApiKeyAuth", none()),
        SecurityRequirement::new("BearerAuth", none()),
    ]);
    document
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The checked-in document is the one that the handlers make.
    /// `UPDATE_OPENAPI=1` writes it anew.
    #[test]
    fn the_document_is_checked_in() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/session-api.json");
        let made = format!("{}\n", super::document().to_pretty_json().unwrap());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == made,
            "openapi/session-api.json is stale: UPDATE_OPENAPI=1 cargo test -p dormouse-http"
        );
    }
}
