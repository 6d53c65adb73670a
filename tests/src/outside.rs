//! The world outside of sandboxes: a network namespace of the test's own with a name
//! server, web servers with two sites at one address, listeners that nobody may reach,
//! and a record of everything that arrived. No packet to it leaves the host.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::body::{Body, Bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts as _, Request};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use futures::{StreamExt as _, TryStreamExt as _};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The token that opens what `private` owns on the git server.
pub const SERVICE_TOKEN: &str = "ghp_plantedServiceToken0123456789abcdef";

const NAMESPACE: &str = "dormouse-test-outside";
const LINK: &str = "dm-test-out";

/// Where names are resolved.
pub const RESOLVER: &str = "198.51.100.53:53";

/// Sites of their own.
pub const API: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// Two sites at one address.
pub const CDN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 12);
/// Where GitHub is here.
const GITHUB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 40);
/// An address of this host, in a network that worlds allow.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 250);
/// Listens on many ports, and nobody may come.
pub const HONEYPOT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// Ports of the honeypot, all with TCP.
pub const TRAPS: [u16; 6] = [22, 25, 853, 6379, 8443, 50000];

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Host that it names.
    pub host: String,
    /// Its method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: HeaderMap,
    /// It came over TLS.
    pub secure: bool,
}

impl Arrived {
    /// A header of it, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Records {
    requests: Mutex<Vec<Arrived>>,
    questions: Mutex<Vec<String>>,
    trapped: AtomicU32,
    connections: AtomicU32,
    rebinds: AtomicU32,
}

/// The outside; it ends when this is dropped.
#[derive(Debug)]
pub struct Outside {
    records: Arc<Records>,
    dir: PathBuf,
    /// `None` only while it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

fn ip(args: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args.split(' ')).stdin(Stdio::null()).output().context("run ip")?;
    ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Runs `work` in the namespace, on a thread of its own.
fn inside<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    let thread = std::thread::spawn(move || {
        let namespace = std::fs::File::open(format!("/run/netns/{NAMESPACE}"))?;
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        work()
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread in the namespace ended"))?
}

fn listen(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    inside(move || {
        let listener =
            std::net::TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

impl Outside {
    /// Sets it up; `git` is the URL of the git server that GitHub is here.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        // What a killed run of the tests left.
        let _ = ip(&format!("netns del {NAMESPACE}"));
        let _ = ip(&format!("link del {LINK}"));
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("github-token"), format!("{SERVICE_TOKEN}\n"))?;
        ip(&format!("netns add {NAMESPACE}"))?;
        ip(&format!("link add {LINK} type veth peer name inside netns {NAMESPACE}"))?;
        ip(&format!("addr add 169.254.78.1/30 dev {LINK}"))?;
        ip(&format!("addr add {HOST}/32 dev {LINK}"))?;
        ip(&format!("link set {LINK} up"))?;
        ip(&format!("-n {NAMESPACE} link set lo up"))?;
        ip(&format!("-n {NAMESPACE} addr add 169.254.78.2/30 dev inside"))?;
        ip(&format!("-n {NAMESPACE} addr add 198.51.100.0/24 dev lo"))?;
        ip(&format!("-n {NAMESPACE} link set inside up"))?;
        ip(&format!("-n {NAMESPACE} route add default via 169.254.78.1"))?;
        ip(&format!("route add 198.51.100.0/24 via 169.254.78.2 dev {LINK}"))?;

        let records = Arc::new(Records::default());
        let runtime = tokio::runtime::Runtime::new()?;
        let _entered = runtime.enter();
        let tls = certificates(dir)?;
        for address in [API, OTHER, CDN, GITHUB] {
            for port in [80, 443] {
                let listener = tokio::net::TcpListener::from_std(listen((address, port).into())?)?;
                let tls = (port == 443).then(|| tls.clone());
                tokio::spawn(web(listener, tls, records.clone(), dir.to_owned()));
            }
        }
        for port in TRAPS {
            let listener = tokio::net::TcpListener::from_std(listen((HONEYPOT, port).into())?)?;
            let records = records.clone();
            tokio::spawn(async move {
                while listener.accept().await.is_ok() {
                    records.trapped.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Whoever connects is spoken to, and hears what they say.
        let listener = tokio::net::TcpListener::from_std(listen((API, 2222).into())?)?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.write_all(b"hello\n").await;
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        for (address, port) in [(HONEYPOT, 443), (HONEYPOT, 53), (HONEYPOT, 5353), (API, 443)] {
            let socket = inside(move || Ok(std::net::UdpSocket::bind((address, port))?))?;
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            let records = records.clone();
            tokio::spawn(async move {
                while socket.recv(&mut [0; 2048]).await.is_ok() {
                    records.trapped.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        serve_names(&records)?;
        drop(_entered);
        Ok(Self { records, dir: dir.to_owned(), runtime: Some(runtime) })
    }

    /// Configuration of a server whose world this is.
    pub fn config(&self) -> String {
        format!(
            "[network]\ndns = \"{RESOLVER}\"\nallow_private = [\"198.51.100.0/24\", \"203.0.113.0/24\"]\ndeny = [\"198.51.100.99/32\"]\nca_file = \"{}\"\n\
             [github]\ntoken_file = \"{}\"\n",
            self.dir.join("ca.crt").display(),
            self.dir.join("github-token").display()
        )
    }

    /// Which git server GitHub is.
    pub fn set_git(&self, url: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.dir.join("git.url"), url)?)
    }

    /// Requests since the last look.
    pub fn requests(&self) -> Vec<Arrived> {
        std::mem::take(&mut *self.records.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Names that were asked for since the last look.
    pub fn questions(&self) -> Vec<String> {
        std::mem::take(&mut *self.records.questions.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// How often somebody came where nobody may.
    pub fn trapped(&self) -> u32 {
        self.records.trapped.load(Ordering::SeqCst)
    }

    /// Connections to web servers so far.
    pub fn connections(&self) -> u32 {
        self.records.connections.load(Ordering::SeqCst)
    }

    /// IP packets that arrived so far (`/proc/net/snmp`).
    pub fn packets(&self) -> anyhow::Result<u64> {
        let text = inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let at = names.split(' ').position(|name| name == "InReceives").context("InReceives")?;
        Ok(values.split(' ').nth(at).context("value")?.parse()?)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Another runtime's task may be the one that drops this.
            runtime.shutdown_background();
        }
        for args in [
            "route del 198.51.100.0/24".to_owned(),
            format!("link del {LINK}"),
            format!("netns del {NAMESPACE}"),
        ] {
            // The link goes with its namespace, mostly.
            let _ = ip(&args);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Sites of which a client may ask here.
const SITES: [&str; 9] = [
    "api.test",
    "other.test",
    "site.test",
    "evil.test",
    "deep.a.test",
    "github.com",
    "api.github.com",
    "uploads.github.com",
    "codeload.github.com",
];

/// An authority in `ca.crt`, and a server's side with a certificate of its.
fn certificates(dir: &Path) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "Outside of the tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key)?;
    std::fs::write(dir.join("ca.crt"), authority.pem())?;
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate()?;
    let leaf = CertificateParams::new(SITES.map(str::to_owned).to_vec())?.signed_by(&leaf_key, &issuer)?;
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(leaf_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], private.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn web(
    listener: tokio::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    records: Arc<Records>,
    dir: PathBuf,
) {
    while let Ok((stream, _)) = listener.accept().await {
        records.connections.fetch_add(1, Ordering::SeqCst);
        let _ = stream.set_nodelay(true);
        let (tls, records, dir) = (tls.clone(), records.clone(), dir.clone());
        tokio::spawn(async move {
            let secure = tls.is_some();
            let service = hyper::service::service_fn(move |request| {
                let (records, dir) = (records.clone(), dir.clone());
                async move { Ok::<_, std::convert::Infallible>(answer(request, secure, &records, &dir).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            match tls {
                None => {
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                }
                Some(config) => {
                    let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else {
                        return;
                    };
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                }
            }
        });
    }
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

async fn answer(
    request: hyper::Request<hyper::body::Incoming>,
    secure: bool,
    records: &Records,
    dir: &Path,
) -> Response<Body> {
    let request: Request = request.map(Body::new);
    let by_header = request.headers().get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let host = request.uri().authority().map(ToString::to_string).or(by_header).unwrap_or_default();
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    records.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Arrived {
        host: host.clone(),
        method: request.method().to_string(),
        path: path.clone(),
        headers: request.headers().clone(),
        secure,
    });
    if host == "github.com" {
        return git(request, dir)
            .await
            .unwrap_or_else(|error| text(StatusCode::BAD_GATEWAY, format!("{error:#}")));
    }
    let (head, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    match head {
        // What the proxy made of the request.
        "headers" | "repos" => {
            let headers: BTreeMap<String, String> = request
                .headers()
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect();
            let mut response = text(StatusCode::OK, json!({ "host": host, "headers": headers }).to_string());
            // A server that repeats what it should not, in its own headers too.
            if let Some(value) = request.headers().get("authorization") {
                response.headers_mut().insert("x-you-said", value.clone());
            }
            response
        }
        "echo" => Response::new(request.into_body()),
        "count" => {
            let mut body = request.into_body().into_data_stream();
            let mut total = 0;
            while let Ok(Some(part)) = body.try_next().await {
                total += part.len();
            }
            text(StatusCode::OK, total.to_string())
        }
        "bytes" => {
            let total: u64 = rest.parse().unwrap_or(0);
            let mut response = Response::new(Body::from_stream(zeros(total)));
            response.headers_mut().insert("content-length", total.into());
            response
        }
        "chunked" => Response::new(Body::from_stream(zeros(rest.parse().unwrap_or(0)))),
        "cut" => {
            let start = futures::stream::iter([Ok(Bytes::from(vec![b'x'; 1000]))]);
            let broken = start.chain(futures::stream::once(async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Err(std::io::Error::other("cut"))
            }));
            let mut response = Response::new(Body::from_stream(broken));
            if rest == "length" {
                response.headers_mut().insert("content-length", 1_000_000.into());
            }
            response
        }
        "redirect" => {
            let mut response = text(StatusCode::FOUND, "elsewhere");
            if let Ok(to) = HeaderValue::from_str(&format!("https://{rest}")) {
                response.headers_mut().insert("location", to);
            }
            response.headers_mut().insert("set-cookie", HeaderValue::from_static("stolen=1"));
            response
        }
        "ws" => {
            let (mut parts, _) = request.into_parts();
            match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
                Ok(upgrade) => upgrade.on_upgrade(|mut socket| async move {
                    while let Some(Ok(message)) = socket.recv().await {
                        if socket.send(message).await.is_err() {
                            break;
                        }
                    }
                }),
                Err(_) => text(StatusCode::BAD_REQUEST, "no WebSocket"),
            }
        }
        // A unary call that echoes, as gRPC frames it, with its status in trailers.
        "test.Echo" => {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [
                Ok::<_, std::io::Error>(hyper::body::Frame::data(body)),
                Ok(hyper::body::Frame::trailers(trailers)),
            ];
            let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
            let mut response = Response::new(Body::new(body));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            response
        }
        "" => text(StatusCode::OK, "hello\n"),
        _ => text(StatusCode::NOT_FOUND, "nothing here\n"),
    }
}

/// So many bytes, in pieces.
fn zeros(total: u64) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send {
    const PIECE: u64 = 256 << 10;
    let piece = Bytes::from(vec![0; PIECE as usize]);
    futures::stream::unfold(total, move |left| {
        let piece = piece.clone();
        async move {
            let length = left.min(PIECE);
            (length > 0).then(|| (Ok(piece.slice(..length as usize)), left - length))
        }
    })
}

/// GitHub: what the git server says.
async fn git(request: Request, dir: &Path) -> anyhow::Result<Response<Body>> {
    let base = std::fs::read_to_string(dir.join("git.url")).context("no git server yet")?;
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let url = format!("{}{}", base.trim().trim_end_matches('/'), path);
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    headers.remove("host");
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build()?;
    let asked = client
        .request(parts.method, url)
        .headers(headers)
        .body(reqwest::Body::wrap_stream(body.into_data_stream()));
    let answer = asked.send().await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    for (name, value) in answer.headers() {
        if !matches!(name.as_str(), "transfer-encoding" | "connection") {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    Ok(response)
}

/// What names are there.
fn zone() -> HashMap<&'static str, Vec<Ipv4Addr>> {
    let many = (1..=100).map(|last| Ipv4Addr::new(198, 51, 100, last)).collect();
    HashMap::from([
        ("api.test", vec![API]),
        ("other.test", vec![OTHER]),
        ("site.test", vec![CDN]),
        ("evil.test", vec![CDN]),
        ("deep.a.test", vec![API]),
        ("big.test", many),
        ("private.test", vec![Ipv4Addr::new(10, 1, 2, 3)]),
        ("loopback.test", vec![Ipv4Addr::LOCALHOST]),
        ("metadata.test", vec![Ipv4Addr::new(169, 254, 169, 254)]),
        ("denied.test", vec![Ipv4Addr::new(198, 51, 100, 99)]),
        ("trap.test", vec![HONEYPOT]),
        ("github.com", vec![GITHUB]),
        ("api.github.com", vec![GITHUB]),
        ("uploads.github.com", vec![GITHUB]),
        ("codeload.github.com", vec![GITHUB]),
    ])
}

fn host_resolves(name: &str) -> Vec<Ipv4Addr> {
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(name, 0)).into_iter().flatten();
    found
        .filter_map(|address| if let SocketAddr::V4(address) = address { Some(*address.ip()) } else { None })
        .collect()
}

fn resolve(records: &Records, question: &[u8], udp: bool) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    let query = message.queries.first()?.clone();
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    records.questions.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name.clone());
    let mut answer = message.into_response();
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = ResponseCode::NoError;
    let record = |data| Record::from_rdata(query.name().clone(), 30, data);
    let addresses = match name.as_str() {
        // Public first, and then this host, without a time to live.
        "rebind.test" => {
            let first = records.rebinds.fetch_add(1, Ordering::SeqCst) == 0;
            let address = if first { API } else { Ipv4Addr::LOCALHOST };
            if query.query_type() == RecordType::A {
                answer.add_answer(Record::from_rdata(query.name().clone(), 0, RData::A(address.into())));
            }
            return answer.to_vec().ok();
        }
        "alias.test" => {
            let target = Name::from_ascii("evil.test.").ok()?;
            answer.add_answer(record(RData::CNAME(CNAME(target.clone()))));
            answer.add_answer(Record::from_rdata(target, 30, RData::A(CDN.into())));
            return answer.to_vec().ok();
        }
        name if name.ends_with(".wild.test") => vec![API],
        name if !name.contains('.') || name.ends_with(".test") || zone().contains_key(name) => {
            zone().get(name).cloned().unwrap_or_default()
        }
        // Package registries are where the host finds them.
        name => tokio::task::block_in_place(|| host_resolves(name)),
    };
    match query.query_type() {
        RecordType::A => {
            for address in addresses.iter().copied() {
                answer.add_answer(record(RData::A(address.into())));
            }
        }
        RecordType::TXT if !addresses.is_empty() => {
            answer.add_answer(record(RData::TXT(TXT::new(vec!["text".to_owned()]))));
        }
        RecordType::AAAA if !addresses.is_empty() => {
            answer.add_answer(record(RData::AAAA("2001:db8::1".parse().ok()?)));
        }
        _ => {}
    }
    if addresses.is_empty() {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    if udp && answer.answers.len() > 20 {
        answer.metadata.truncation = true;
        answer.answers.clear();
    }
    answer.to_vec().ok()
}

fn serve_names(records: &Arc<Records>) -> anyhow::Result<()> {
    let address: SocketAddr = RESOLVER.parse()?;
    let socket = inside(move || Ok(std::net::UdpSocket::bind(address)?))?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let known = records.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = resolve(&known, &buffer[..length], true) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    let listener = tokio::net::TcpListener::from_std(listen(address)?)?;
    let known = records.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let known = known.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; usize::from(length)];
                    if stream.read_exact(&mut question).await.is_err() {
                        break;
                    }
                    let Some(answer) = resolve(&known, &question, false) else { break };
                    let mut framed = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes().to_vec();
                    framed.extend_from_slice(&answer);
                    let _ = stream.write_all(&framed).await;
                }
            });
        }
    });
    Ok(())
}
