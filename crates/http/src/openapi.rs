//! The OpenAPI 3.1 documents of both APIs. They are made from the handlers and
//! checked in as `openapi/session-api.json` and `openapi/provider-api.json`; a
//! test fails on drift.

use utoipa::ToSchema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, PathItem, SecurityRequirement};

/// The document of the session API.
#[must_use]
pub fn session_document() -> OpenApi {
    let (_, routes) = crate::session::router().split_for_parts();
    document::<crate::error::ErrorBody>(
        routes,
        "Dormouse session API",
        "A Linux sandbox for every agent session.",
    )
}

/// The document of the provider API.
#[must_use]
pub fn provider_document() -> OpenApi {
    let (_, routes) = crate::provider::documented().split_for_parts();
    let about = "Versions 2 and 3 of the Vercel Sandbox protocol. They are the same but for one thing: a git \
        source goes into the working directory itself in 2, into a directory of its own in 3. Version 1, which \
        older clients speak, is served too.";
    document::<dormouse_wire::ErrorReply>(routes, "Dormouse provider API", about)
}

/// `E`: the body of every error answer, which the handlers' own schemas leave
/// out.
fn document<E: ToSchema>(routes: OpenApi, title: &str, about: &str) -> OpenApi {
    let info = InfoBuilder::new().title(title).version(env!("CARGO_PKG_VERSION")).description(Some(about));
    let mut document = OpenApiBuilder::new().info(info.build()).build().merge_from(routes);
    let components = document.components.get_or_insert_with(Default::default);
    let mut schemas = vec![(E::name().into_owned(), E::schema())];
    E::schemas(&mut schemas);
    components.schemas.extend(schemas);
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
    // A function's name is an operation's only within its module.
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            operation.operation_id = Some(operation_id(method, path));
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, post, put, patch, delete, .. } = item;
    [("get", get), ("post", post), ("put", put), ("patch", patch), ("delete", delete)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Method and path as one word: `getApiSandboxStatus`.
fn operation_id(method: &str, path: &str) -> String {
    let mut id = method.to_owned();
    for word in path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        let mut letters = word.chars();
        id.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        id.extend(letters);
    }
    id
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use utoipa::openapi::OpenApi;

    /// The checked-in documents are those that the handlers make.
    /// `UPDATE_OPENAPI=1` writes them anew.
    #[test]
    fn the_documents_are_checked_in() {
        checked_in("session-api.json", &super::session_document());
        checked_in("provider-api.json", &super::provider_document());
    }

    fn checked_in(name: &str, document: &OpenApi) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi").join(name);
        let made = format!("{}\n", document.to_pretty_json().unwrap());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == made, "openapi/{name} is stale: UPDATE_OPENAPI=1 cargo test -p dormouse-http");
    }

    /// Lists of words are written by hand there, and come from enums.
    #[test]
    fn every_word_is_in_the_document() {
        use dormouse_types::{BuildPhase, EventReason, RepoAccess, SetUp};

        let text = super::session_document().to_json().unwrap();
        let words = EventReason::ALL.iter().map(|word| word.as_str());
        let words = words.chain(BuildPhase::ALL.iter().map(|word| word.as_str()));
        let words = words.chain(RepoAccess::ALL.iter().map(|word| word.as_str()));
        for word in words.chain(SetUp::ALL.iter().map(|word| word.as_str())) {
            assert!(text.contains(&format!("`{word}`")), "{word}");
        }
    }

    #[test]
    fn operations_have_names_of_their_own() {
        assert_eq!(super::operation_id("get", "/api/sandbox/status"), "getApiSandboxStatus");
        assert_eq!(super::operation_id("delete", "/api/sessions/{id}"), "deleteApiSessionsId");
    }
}
