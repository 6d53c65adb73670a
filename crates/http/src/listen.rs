//! The listener: HTTP, and HTTPS on the same port where the server has a certificate, on
//! connections with time limits. A head, a body and an idle connection
//! each have so long and no longer; what has begun and goes on may take its time.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderValue;
use hyper::body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// How long something may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The head of a request; and a connection is kept so long for the next one.
    head: Duration,
    /// What is missing of a body may stand still.
    body: Duration,
}

/// Longer than clients keep their connections.
const LIMITS: Limits = Limits { head: Duration::from_secs(75), body: Duration::from_secs(120) };

/// How long the other side of HTTP/2 may be silent, when it is asked whether it is there.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// Pause after an error that would come again at once.
const RESPITE: Duration = Duration::from_millis(50);

/// The first byte of a connection that begins with TLS: a record of a handshake (RFC 8446,
/// section 5.1). No method of HTTP begins so.
const HANDSHAKE: u8 = 0x16;

/// A certificate or its key is no such thing.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is not there, or not PEM.
    #[error("read {0}: {1}")]
    Read(std::path::PathBuf, tokio_rustls::rustls::pki_types::pem::Error),
    /// They do not belong together.
    #[error("use the certificate: {0}")]
    Use(#[from] tokio_rustls::rustls::Error),
}

/// What the server shows whoever speaks TLS to it.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(…)")
    }
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and the key to it, both PEM.
    ///
    /// # Errors
    ///
    /// One of them cannot be read, or they do not fit.
    pub fn load(certificate: &std::path::Path, key: &std::path::Path) -> Result<Self, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|error| TlsError::Read(certificate.to_owned(), error))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::Read(key.to_owned(), error))?;
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Serves until `stop`, and then what is under way until that has ended.
pub async fn serve(listener: TcpListener, tls: Option<Tls>, router: Router, stop: impl Future<Output = ()>) {
    serve_within(LIMITS, listener, tls, router, stop).await;
}

/// The connection as it speaks: its first byte says which.
async fn spoken(
    stream: TcpStream,
    tls: Option<Tls>,
) -> std::io::Result<Either<TcpStream, Box<TlsStream<TcpStream>>>> {
    let Some(Tls(acceptor)) = tls else { return Ok(Either::Left(stream)) };
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == HANDSHAKE {
        return Ok(Either::Right(Box::new(acceptor.accept(stream).await?)));
    }
    Ok(Either::Left(stream))
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    stop: impl Future<Output = ()>,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that was reset in the queue.
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(RESPITE).await;
                continue;
            }
        };
        // An answer in several parts (events, logs) must not wait for the caller's
        // delayed acknowledgement of the first.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "set TCP_NODELAY");
        }
        let (router, tls, server, watcher) =
            (router.clone(), tls.clone(), server.clone(), graceful.watcher());
        tokio::spawn(async move {
            let stream = match tokio::time::timeout(limits.head, spoken(stream, tls)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS"),
                Err(_) => return,
            };
            let secure = matches!(stream, Either::Right(_));
            let activity = Arc::new(Activity::new());
            let active = activity.clone();
            let service =
                hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    // The input of a command is as slow as who types it; only a caller with a key
                    // gets so far.
                    let typed = request.uri().path().ends_with("/stdin");
                    let mut request =
                        request.map(|body| if typed { Body::new(body) } else { patient(body, limits.body) });
                    request.extensions_mut().insert(ConnectInfo(peer));
                    if secure {
                        // What a proxy in front would say.
                        request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
                    }
                    let (mut router, answering) = (router.clone(), Answering::new(active.clone()));
                    // A router is always ready.
                    async move {
                        let response = call(&mut router, request).await;
                        Ok::<_, Infallible>(response.map(|body| Answered { body, _until_it_ends: answering }))
                    }
                });
            let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(watcher.watch(connection.into_owned()));
            // The library waits for ever to see which HTTP it is, and for the next request of
            // HTTP/2.
            let ended = tokio::select! {
                biased;
                ended = &mut connection => ended,
                () = activity.idle_for(limits.head) => return,
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, error, "connection");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn call(router: &mut Router, request: Request) -> axum::response::Response {
    use tower_service::Service as _;
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// How many requests of a connection are being answered, and since when none is.
#[derive(Debug)]
struct Activity(Mutex<(usize, Instant)>);

impl Activity {
    fn new() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (usize, Instant)> {
        // Two numbers: a panic elsewhere cannot tear them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing was asked for so long.
    async fn idle_for(&self, limit: Duration) {
        loop {
            let (answering, since) = *self.state();
            let end = if answering > 0 { Instant::now() + limit } else { since + limit };
            if answering == 0 && end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A request that is being answered, until this is dropped.
struct Answering(Arc<Activity>);

impl Answering {
    fn new(activity: Arc<Activity>) -> Self {
        activity.state().0 += 1;
        Self(activity)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        *state = (state.0 - 1, Instant::now());
    }
}

/// The body of an answer.
struct Answered {
    body: Body,
    _until_it_ends: Answering,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn patient(body: hyper::body::Incoming, most: Duration) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    Body::new(Patient { body, most, limit: Box::pin(tokio::time::sleep(most)) })
}

/// A body that fails when nothing of it comes for too long while somebody waits.
struct Patient {
    body: hyper::body::Incoming,
    most: Duration,
    limit: Pin<Box<Sleep>>,
}

/// Nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request stands still")]
struct StandsStill;

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.most;
                self.limit.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => match self.limit.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err(StandsStill.into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// One port speaks both, and says which it was.
    #[tokio::test]
    async fn tls_is_told_by_its_first_byte() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let error = Tls::load(&certificate, &certificate).unwrap_err();
        assert!(matches!(error, TlsError::Read(..)), "{error}");
        let tls = Tls::load(&certificate, &key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let how = |headers: axum::http::HeaderMap| async move {
            headers
                .get("x-forwarded-proto")
                .and_then(|value| value.to_str().ok())
                .unwrap_or("none")
                .to_owned()
        };
        let router = Router::new().route("/", axum::routing::get(how));
        tokio::spawn(serve(listener, Some(tls), router, std::future::pending()));
        let trusted = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([trusted]).build().unwrap();
        for (scheme, expected) in [("https", "https"), ("http", "none")] {
            let answer = client.get(format!("{scheme}://localhost:{port}/")).send().await.unwrap();
            assert_eq!(answer.text().await.unwrap(), expected);
        }
    }

    /// What is half said ends, and who is being answered is answered.
    #[tokio::test]
    async fn nothing_stays_open_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let read = |body: Body| async move {
            match axum::body::to_bytes(body, 100).await {
                Ok(bytes) => format!("{}", bytes.len()),
                Err(_) => "stands still".to_owned(),
            }
        };
        let router = Router::new().route("/", post(read));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let limits = Limits { head: Duration::from_millis(300), body: Duration::from_millis(300) };
        let serving = tokio::spawn(serve_within(limits, listener, None, router, async move {
            let _ = stopped.await;
        }));
        let talk = |said: &'static str| async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let reading = stream.read_to_string(&mut answer);
            let ended = tokio::time::timeout(Duration::from_secs(20), reading).await;
            assert!(ended.is_ok(), "{said:?} is still open");
            answer
        };
        for said in ["", "POST / HTTP/1.1\r\nHost: x\r\n"] {
            let answer = talk(said).await;
            assert!(!answer.contains("200"), "{said:?}: {answer}");
        }
        let answer = talk("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab").await;
        assert!(answer.ends_with("stands still"), "{answer}");
        let answer =
            talk("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
        assert!(answer.ends_with('5'), "{answer}");
        // HTTP/2 that answers pings, with nothing to ask.
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = hyper::Request::post(format!("http://{address}/")).body(Body::from("hello")).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), 200);
        assert!(tokio::time::timeout(Duration::from_secs(20), connection).await.is_ok(), "it is still open");
        stop.send(()).unwrap();
        serving.await.unwrap();
    }
}
