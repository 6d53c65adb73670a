//! Mirrors: standing in for a git host.
//!
//! Inside a sandbox the public URL stays what it is; its host resolves to an
//! address of ours, where this gateway answers TLS with a certificate of our
//! own authority, which only git inside trusts for that host. Requests of the
//! git smart-HTTP protocol (`gitprotocol-http(5)`) and of Git LFS go on to the mirror;
//! nothing else does, so a mirror on a private address exposes repositories and no
//! more.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use url::Url;

/// How long a mirror may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Request headers that go on.
const PASSED_ON: [HeaderName; 6] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    HeaderName::from_static("git-protocol"),
];

/// Answer headers that come back.
const PASSED_BACK: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CACHE_CONTROL, header::WWW_AUTHENTICATE];

/// One URL prefix that stands for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// What people write: `https://HOST/`, with a path or without.
    pub from: String,
    /// Where it really is: `http://` or `https://`.
    pub to: String,
}

/// Why a mirror cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The prefix cannot be mirrored.
    #[error("git.mirrors: {value:?} {rule}")]
    Prefix {
        /// What was written.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
    /// The certificate authority could not be made or read.
    #[error("prepare the certificate of the git mirrors: {0}")]
    Certificate(String),
}

impl Mirror {
    /// Checks both ends.
    ///
    /// # Errors
    /// [`MirrorError::Prefix`] that says what would be right.
    pub fn check(&self) -> Result<(), MirrorError> {
        self.host().map(drop)?;
        let to = Url::parse(&self.to).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if to.is_none_or(|url| url.host().is_none() || url.query().is_some()) || !self.to.ends_with('/') {
            let rule = "must be an http or https URL that ends with a slash";
            return Err(MirrorError::Prefix { value: self.to.clone(), rule });
        }
        Ok(())
    }

    fn host(&self) -> Result<String, MirrorError> {
        let rule = "must start with https://, name a host without a port, and end with a slash";
        let wrong = || MirrorError::Prefix { value: self.from.clone(), rule };
        let url = Url::parse(&self.from).map_err(|_| wrong())?;
        let plain = url.scheme() == "https"
            && url.port().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && self.from.ends_with('/');
        url.domain().filter(|_| plain).map(str::to_ascii_lowercase).ok_or_else(wrong)
    }
}

/// Where a URL leads that one of the mirrors stands for.
#[must_use]
pub fn mirrored(mirrors: &[Mirror], url: &str) -> Option<String> {
    mirrors.iter().find_map(|mirror| {
        let rest = url.strip_prefix(&normal(&mirror.from))?;
        Some(format!("{}{rest}", mirror.to))
    })
}

/// Answers in the name of mirrored hosts.
pub(crate) struct Gateway {
    mirrors: Vec<Mirror>,
    hosts: Vec<String>,
    certificate: String,
    acceptor: TlsAcceptor,
    client: reqwest::Client,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("mirrors", &self.mirrors).finish_non_exhaustive()
    }
}

impl Gateway {
    pub(crate) fn new(mut mirrors: Vec<Mirror>, state_dir: &Path) -> Result<Self, MirrorError> {
        let mut hosts = Vec::new();
        for mirror in &mut mirrors {
            mirror.check()?;
            hosts.push(mirror.host()?);
            mirror.from = normal(&mirror.from);
        }
        hosts.sort();
        hosts.dedup();
        let failed = |error: &dyn std::fmt::Display| MirrorError::Certificate(error.to_string());
        let (certificate, acceptor) = identity(&hosts, state_dir).map_err(|error| failed(&error))?;
        let client = reqwest::Client::builder()
            // A redirect is the caller's to follow, under the caller's rules.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(15))
            .no_proxy()
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self { mirrors, hosts, certificate, acceptor, client })
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }

    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream) -> io::Result<()> {
        // Small answers must not wait for more to say.
        stream.set_nodelay(true)?;
        let accept = self.acceptor.accept(stream);
        let stream = tokio::time::timeout(Duration::from_secs(10), accept).await??;
        let host = stream.get_ref().1.server_name().unwrap_or_default().to_ascii_lowercase();
        let service = hyper::service::service_fn(move |request| {
            let (gateway, host) = (self.clone(), host.clone());
            async move { Ok::<_, std::convert::Infallible>(gateway.answer(&host, request).await) }
        });
        hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(Duration::from_secs(60))
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    }

    /// The mirror's URL for what was asked of `host` (lower case), if a mirror
    /// answers it.
    fn target(&self, host: &str, method: &Method, uri: &Uri) -> Option<String> {
        let (path, query) = (uri.path(), uri.query());
        if !is_git_request(method, path, query) && !is_lfs_request(method, path, query) {
            return None;
        }
        let asked = format!("https://{host}{path}");
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        mirrored(&self.mirrors, &asked).map(|url| format!("{url}{query}"))
    }

    async fn answer(&self, host: &str, request: Request<Incoming>) -> Response<BoxBody<Bytes, io::Error>> {
        // One name on the certificate, one in the request: the same.
        let named = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
        if named.is_none_or(|named| !named.eq_ignore_ascii_case(host)) {
            return plain(StatusCode::MISDIRECTED_REQUEST, "another host was asked for");
        }
        let Some(target) = self.target(host, request.method(), request.uri()) else {
            return plain(StatusCode::NOT_FOUND, "this mirror serves git over HTTP only");
        };
        let method = request.method().clone();
        let sent = Arc::new(std::sync::Mutex::new(Instant::now()));
        let mut forwarded = self.client.request(method.clone(), &target);
        for name in PASSED_ON {
            // What is read here must not be compressed.
            let read = name == header::ACCEPT_ENCODING && target.ends_with(BATCH);
            if let Some(value) = request.headers().get(&name).filter(|_| !read) {
                forwarded = forwarded.header(name, value);
            }
        }
        if method == Method::POST || method == Method::PUT {
            let length = request.headers().get(header::CONTENT_LENGTH).cloned();
            let sending = sent.clone();
            let body = BodyStream::new(request.into_body())
                .inspect_ok(move |_| {
                    *sending.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
                })
                .try_filter_map(|frame| async { Ok(frame.into_data().ok()) })
                .map_err(io::Error::other);
            forwarded = forwarded.body(reqwest::Body::wrap_stream(body));
            if let Some(length) = length {
                forwarded = forwarded.header(header::CONTENT_LENGTH, length);
            }
        }
        // From the last of what is sent: large files take their time.
        let answering = async {
            let answer = forwarded.send();
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => return Ok(answer),
                    () = tokio::time::sleep(Duration::from_secs(1)) => {
                        let last = *sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        if last.elapsed() > PATIENCE {
                            return Err("it does not answer");
                        }
                    }
                }
            }
        };
        let answer = match answering.await {
            Ok(Ok(answer)) => answer,
            failed => {
                tracing::warn!(%target, ?failed, "git mirror");
                return plain(StatusCode::BAD_GATEWAY, "the git mirror cannot be reached");
            }
        };
        let batch = target.ends_with(BATCH) && answer.status().is_success();
        let mut response = Response::builder().status(answer.status().as_u16());
        for name in PASSED_BACK {
            if let Some(value) = answer.headers().get(name.as_str()) {
                response = response.header(
                    name,
                    HeaderValue::from_bytes(value.as_bytes()).unwrap_or(HeaderValue::from_static("")),
                );
            }
        }
        if batch {
            return match self.public_batch(answer).await {
                Ok(text) => {
                    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
                    response.body(BodyExt::boxed(body)).unwrap_or_else(|_| nonsense())
                }
                Err(error) => {
                    tracing::warn!(%target, %error, "git mirror");
                    nonsense()
                }
            };
        }
        let body = answer.bytes_stream().map_ok(Frame::data).map_err(io::Error::other);
        let body = BodyExt::boxed(StreamBody::new(SyncStream(std::sync::Mutex::new(Box::pin(body)))));
        response.body(body).unwrap_or_else(|_| nonsense())
    }

    /// What an LFS server says of where objects are, with the public URLs of those that
    /// are on a mirror: its own address means nothing in a sandbox.
    async fn public_batch(&self, mut answer: reqwest::Response) -> io::Result<String> {
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(io::Error::other)? {
            body.extend_from_slice(&part);
            if body.len() > MAX_BATCH {
                return Err(io::Error::other("the answer to an LFS batch is too large"));
            }
        }
        let mut batch: serde_json::Value = serde_json::from_slice(&body)?;
        let objects = batch.get_mut("objects").and_then(serde_json::Value::as_array_mut);
        for object in objects.into_iter().flatten() {
            let actions = object.get_mut("actions").and_then(serde_json::Value::as_object_mut);
            for action in actions.into_iter().flat_map(|actions| actions.values_mut()) {
                let Some(href) = action.get_mut("href") else { continue };
                let known = href.as_str().and_then(|url| {
                    self.mirrors.iter().find_map(|mirror| {
                        Some(format!("{}{}", mirror.from, url.strip_prefix(&normal(&mirror.to))?))
                    })
                });
                if let Some(public) = known {
                    *href = public.into();
                }
            }
        }
        Ok(batch.to_string())
    }
}

fn nonsense() -> Response<BoxBody<Bytes, io::Error>> {
    plain(StatusCode::BAD_GATEWAY, "the git mirror answered nonsense")
}

type FrameStream = std::pin::Pin<Box<dyn futures::Stream<Item = io::Result<Frame<Bytes>>> + Send>>;

/// A stream that only its owner polls, made shareable for hyper's box.
struct SyncStream(std::sync::Mutex<FrameStream>);

impl futures::Stream for SyncStream {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let stream = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        stream.as_mut().poll_next(context)
    }
}

/// A prefix as it is compared: its host in lower case, without the usual port.
fn normal(prefix: &str) -> String {
    Url::parse(prefix).map_or_else(|_| prefix.to_owned(), String::from)
}

/// The requests of fetching and pushing (`gitprotocol-http(5)`).
fn is_git_request(method: &Method, path: &str, query: Option<&str>) -> bool {
    if path.contains("/..") || path.contains("//") || path.contains('%') {
        return false;
    }
    let services = ["git-upload-pack", "git-receive-pack"];
    match *method {
        Method::GET => {
            path.ends_with("/info/refs")
                && query.is_some_and(|query| services.iter().any(|s| query == format!("service={s}")))
        }
        Method::POST => {
            services.iter().any(|service| path.ends_with(&format!("/{service}"))) && query.is_none()
        }
        _ => false,
    }
}

/// Where an LFS client asks where objects are (Git LFS, "Batch API").
const BATCH: &str = "/info/lfs/objects/batch";

/// Largest answer to that, in bytes: some hundred for each of a hundred objects.
const MAX_BATCH: usize = 1 << 20;

/// The requests of Git LFS below its usual place ("Server Discovery"): the batch, objects
/// by their SHA-256, that they arrived, and locks.
fn is_lfs_request(method: &Method, path: &str, query: Option<&str>) -> bool {
    if path.contains("/..") || path.contains("//") || path.contains('%') {
        return false;
    }
    let is_id = |id: &str| {
        id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    // Where GitLab has its objects, with their size when they come.
    if let Some((_, rest)) = path.split_once("/gitlab-lfs/objects/") {
        let (id, size) = rest.split_once('/').unwrap_or((rest, "0"));
        let plain = is_id(id) && !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        return plain && query.is_none() && (*method == Method::GET || *method == Method::PUT);
    }
    let Some((_, rest)) = path.split_once("/info/lfs/") else { return false };
    let object = rest.strip_prefix("objects/").is_some_and(is_id);
    let verify = matches!(rest, "objects/batch" | "verify" | "objects/verify" | "locks" | "locks/verify");
    match *method {
        Method::GET => (object && query.is_none()) || rest == "locks",
        Method::PUT => object && query.is_none(),
        Method::POST => query.is_none() && (verify || rest.strip_prefix("locks/").is_some_and(unlocks)),
        _ => false,
    }
}

/// `ID/unlock`.
fn unlocks(rest: &str) -> bool {
    let id = rest.strip_suffix("/unlock").unwrap_or_default();
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn plain(status: StatusCode, text: &'static str) -> Response<BoxBody<Bytes, io::Error>> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {});
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = status;
    response
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Our authority (kept on disk, so that running sandboxes go on believing in
/// it) and a fresh certificate for `hosts`.
fn identity(hosts: &[String], dir: &Path) -> Result<(String, TlsAcceptor), Failure> {
    fs::create_dir_all(dir)?;
    let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.crt"));
    let key = match fs::read_to_string(&key_path) {
        Ok(pem) => KeyPair::from_pem(&pem)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            keep(&key_path, &key.serialize_pem())?;
            key
        }
        Err(error) => return Err(error.into()),
    };
    let authority = authority_params()?;
    let certificate = match fs::read_to_string(&certificate_path) {
        Ok(pem) => pem,
        Err(_) => {
            let pem = authority.self_signed(&key)?.pem();
            keep(&certificate_path, &pem)?;
            pem
        }
    };
    let issuer = Issuer::new(authority, key);
    let leaf_key = KeyPair::generate()?;
    let leaf = CertificateParams::new(hosts.to_vec())?.signed_by(&leaf_key, &issuer)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let mut tls =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((certificate, TlsAcceptor::from(Arc::new(tls))))
}

/// Puts a file in place, whole or not at all, also where the host dies in the
/// middle: half a key would keep the server from starting ever again.
fn keep(path: &Path, text: &str) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "Dormouse git mirrors");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::{Gateway, Mirror, is_git_request, is_lfs_request};
    use hyper::Method;

    #[test]
    fn hosts_match_in_any_case() {
        let dir = tempfile::tempdir().unwrap();
        for from in ["https://GitHub.com/", "https://github.com:443/"] {
            let mirror = Mirror { from: from.into(), to: "http://10.0.0.1/git/".into() };
            let gateway = Gateway::new(vec![mirror], dir.path()).unwrap();
            assert_eq!(gateway.hosts(), ["github.com"]);
            let uri = "/Acme/r/info/refs?service=git-upload-pack".parse().unwrap();
            let target = gateway.target("github.com", &Method::GET, &uri);
            let there = "http://10.0.0.1/git/Acme/r/info/refs?service=git-upload-pack";
            assert_eq!(target.as_deref(), Some(there), "{from}");
            assert_eq!(gateway.target("gitlab.com", &Method::GET, &uri), None);
        }
    }

    #[test]
    fn mirrors_are_checked() {
        let mirror = |from: &str, to: &str| Mirror { from: from.into(), to: to.into() }.check();
        assert!(mirror("https://github.com/", "http://127.0.0.1:1234/").is_ok());
        assert!(mirror("https://github.com/acme/", "https://git.acme.test/mirror/").is_ok());
        for from in [
            "http://github.com/",
            "https://github.com",
            "https://a:b@github.com/",
            "https://github.com:1/",
            "x",
        ] {
            assert!(mirror(from, "http://127.0.0.1/").is_err(), "{from}");
        }
        for to in ["ftp://x/", "http://x", "file:///etc/", "x"] {
            assert!(mirror("https://github.com/", to).is_err(), "{to}");
        }
    }

    #[test]
    fn only_git_gets_through() {
        let get = |path, query| is_git_request(&Method::GET, path, query);
        assert!(get("/o/r/info/refs", Some("service=git-upload-pack")));
        assert!(is_git_request(&Method::POST, "/o/r/git-upload-pack", None));
        assert!(!get("/o/r/info/refs", None));
        assert!(!get("/admin", None));
        assert!(!get("/o/../admin/info/refs", Some("service=git-upload-pack")));
        assert!(!get("/o/%2e%2e/info/refs", Some("service=git-upload-pack")));
        assert!(!is_git_request(&Method::DELETE, "/o/r/git-upload-pack", None));
    }

    #[test]
    fn only_lfs_gets_through() {
        let id = "a1".repeat(32);
        let lfs =
            |method: Method, rest: &str| is_lfs_request(&method, &format!("/o/r.git/info/lfs/{rest}"), None);
        assert!(lfs(Method::POST, "objects/batch"));
        assert!(lfs(Method::GET, &format!("objects/{id}")));
        assert!(lfs(Method::PUT, &format!("objects/{id}")));
        assert!(lfs(Method::POST, "locks/7/unlock"));
        let gitlab =
            |rest: &str| is_lfs_request(&Method::PUT, &format!("/o/r.git/gitlab-lfs/objects/{rest}"), None);
        assert!(gitlab(&id) && gitlab(&format!("{id}/12")));
        assert!(!gitlab(&format!("{id}/x")) && !gitlab("x/12") && !gitlab(&format!("{id}/1/2")));
        for (method, rest) in [
            (Method::GET, "objects/batch"),
            (Method::GET, "objects/x"),
            (Method::GET, "admin"),
            (Method::DELETE, "locks"),
            (Method::POST, "locks/../unlock"),
            (Method::POST, &format!("objects/{id}")),
        ] {
            assert!(!lfs(method.clone(), rest), "{method} {rest}");
        }
        assert!(!is_lfs_request(&Method::GET, &format!("/o/r/objects/{id}"), None));
    }
}
