//! Where programs inside a sandbox look for the certificate authorities that they
//! believe in, so that they believe in the one of its own network: in the system's
//! store, as far as the image has one, and where the usual variables say.

use std::collections::BTreeMap;

use dormouse_agent_protocol::{BootFile, Placing};

/// The certificate by itself.
pub(crate) const AUTHORITY: &str = "/etc/dormouse/ca.crt";

/// Where Debian's `update-ca-certificates(8)`, and Alpine's, take local ones from.
const LOCAL: &str = "/usr/local/share/ca-certificates/dormouse.crt";

/// Where Red Hat's `update-ca-trust(8)` does.
const LOCAL_RED_HAT: &str = "/etc/pki/ca-trust/source/anchors/dormouse.crt";

/// All of the system's in one file: Debian and Alpine, Red Hat, SUSE.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// A link to the one of them that the image has.
const BUNDLE: &str = "/etc/dormouse/ca-bundle.crt";

/// Variables of every command, which an image or a sandbox may set otherwise. OpenSSL,
/// Go, Rust, Python's requests with pip, the AWS tools and gRPC are told of every authority
/// to believe in; Node and Bun add the one to their own list; Deno takes the system's.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("SSL_CERT_FILE", BUNDLE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("AWS_CA_BUNDLE", BUNDLE),
    ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", BUNDLE),
    ("NODE_EXTRA_CA_CERTS", AUTHORITY),
    ("DENO_TLS_CA_STORE", "system,mozilla"),
];

/// [`ENVIRONMENT`], to be added to.
pub(crate) fn environment() -> BTreeMap<String, String> {
    ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Files with a certificate in PEM, for the start of a run.
pub(crate) fn files(certificate: &str) -> Vec<BootFile> {
    let file =
        |path: &str, placing| BootFile { path: path.to_owned(), content: certificate.to_owned(), placing };
    let whole = [AUTHORITY, LOCAL].map(|path| file(path, Placing::Whole));
    let blocks = BUNDLES.iter().map(|path| file(path, Placing::BlockIfThere));
    let red_hat = file(LOCAL_RED_HAT, Placing::BlockIfThere);
    let link = BootFile {
        path: BUNDLE.to_owned(),
        content: BUNDLES.map(|path| format!("{path}\n")).concat(),
        placing: Placing::LinkToFirst,
    };
    whole.into_iter().chain(blocks).chain([red_hat, link]).collect()
}
