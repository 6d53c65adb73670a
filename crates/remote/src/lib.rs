//! Asks git remotes over HTTP where their default branch is, by the cheapest
//! request there is: `ls-refs` of `HEAD` in version 2 of the protocol
//! (`gitprotocol-v2(5)`), one round trip on a connection that stays open.
//!
//! Nothing else of git is here; repositories themselves are dealt with inside
//! sandboxes only.

mod pkt;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_egress::{Mirror, mirrored};
use dormouse_sessions::{Remote, RemoteError, Tip};
use dormouse_types::GithubRepo;
use reqwest::header::{self, HeaderName};
use reqwest::{Response, StatusCode, Url};

pub use tokens::{Credential, Credentials, GithubTokens};

/// How long an answer may take. A clone is given more: whoever does not answer
/// here may still be slow there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest answer that is read, in bytes: one line of `HEAD` is some hundred.
const MAX_ANSWER: usize = 64 << 10;

/// Redirects that are followed, to the same host only: a renamed repository has
/// one.
const REDIRECTS: usize = 3;

/// How this server reaches the internet: as its sandboxes do.
#[derive(Debug, Clone, Default)]
pub struct Outward {
    /// HTTP proxy, for everything but mirrors.
    pub proxy: Option<Url>,
    /// PEM file of authorities to believe in beside the public ones and the host's.
    pub ca_file: Option<PathBuf>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The file of authorities could not be read.
    #[error("read the certificate authorities in {0}")]
    Authorities(PathBuf, #[source] std::io::Error),
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[from] reqwest::Error),
}

impl Outward {
    /// A client that follows no redirect and takes so long at most.
    fn client(&self, mirrors: &[Mirror], patience: Duration) -> Result<reqwest::Client, SetUpError> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(patience)
            // The environment's is for other programs.
            .no_proxy()
            .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = self.proxy.clone() {
            let mirrors: Vec<String> = mirrors.iter().map(|mirror| mirror.to.clone()).collect();
            builder = builder.proxy(reqwest::Proxy::custom(move |url| {
                let mirrored = mirrors.iter().any(|mirror| url.as_str().starts_with(mirror));
                (!mirrored).then(|| proxy.clone())
            }));
        }
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path).map_err(|error| SetUpError::Authorities(path.clone(), error))?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(builder.build()?)
    }
}

/// The remotes of GitHub repositories, and mirrors that stand for them.
#[derive(Debug)]
pub struct HttpRemote {
    client: reqwest::Client,
    mirrors: Vec<Mirror>,
}

impl HttpRemote {
    /// With these mirrors.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(mirrors: Vec<Mirror>, outward: &Outward) -> Result<Self, SetUpError> {
        Ok(Self { client: outward.client(&mirrors, PATIENCE)?, mirrors })
    }

    async fn ask(&self, mut url: Url, authorization: Option<&str>) -> Result<Response, RemoteError> {
        let silent = |error: reqwest::Error| RemoteError::Silent(causes(&error.without_url()));
        for _ in 0..=REDIRECTS {
            let mut request = self
                .client
                .post(url.clone())
                .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
                .header(header::ACCEPT, "application/x-git-upload-pack-result")
                .header(HeaderName::from_static("git-protocol"), "version=2")
                .body(pkt::ls_head());
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let answer = request.send().await.map_err(silent)?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            // The header is for this host, and an answer from elsewhere is not
            // about this repository.
            match next.filter(|next| next.origin() == url.origin()) {
                Some(next) => url = next,
                None => return Err(RemoteError::Silent("redirected to another host".to_owned())),
            }
        }
        Err(RemoteError::Silent("too many redirects".to_owned()))
    }
}

#[async_trait]
impl Remote for HttpRemote {
    async fn tip(&self, repo: &GithubRepo, authorization: Option<&str>) -> Result<Tip, RemoteError> {
        let asked = format!("{}/git-upload-pack", repo.url());
        let url = mirrored(&self.mirrors, &asked).unwrap_or(asked);
        let url = Url::parse(&url).map_err(|error| RemoteError::Silent(error.to_string()))?;
        let mut answer = self.ask(url, authorization).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
                return Err(RemoteError::Unreadable);
            }
            status => return Err(RemoteError::Silent(format!("HTTP {status}"))),
        }
        let mut body = Vec::new();
        while let Some(part) =
            answer.chunk().await.map_err(|error| RemoteError::Silent(causes(&error.without_url())))?
        {
            body.extend_from_slice(&part);
            if body.len() > MAX_ANSWER {
                return Err(RemoteError::Silent("response too large".to_owned()));
            }
        }
        pkt::head(&body)
    }
}

/// An error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Bytes;
    use axum::http::{HeaderMap, Uri};
    use axum::response::IntoResponse as _;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A mirror that knows a repository, one that moved, and one that is not for
    /// everybody.
    async fn server() -> HttpRemote {
        // Another host, which would answer.
        let line = format!("{COMMIT} HEAD symref-target:refs/heads/evil\n");
        let head = format!("{:04x}{line}0000", line.len() + 4);
        let away = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        let elsewhere = format!("http://{}/x", away.local_addr().unwrap());
        let trap = Router::new().fallback(move || async move { head });
        tokio::spawn(async move { axum::serve(away, trap).await });
        let answer = move |uri: Uri, headers: HeaderMap, body: Bytes| async move {
            assert_eq!(headers["git-protocol"], "version=2");
            assert_eq!(headers[header::AUTHORIZATION], "Basic c2VjcmV0");
            assert!(body.starts_with(b"0013command=ls-refs"), "{body:?}");
            let line = format!("{COMMIT} HEAD symref-target:refs/heads/trunk\n");
            match uri.path() {
                "/acme/widgets/git-upload-pack" => {
                    format!("{:04x}{line}0000", line.len() + 4).into_response()
                }
                "/acme/old/git-upload-pack" => {
                    (StatusCode::MOVED_PERMANENTLY, [("location", "/acme/widgets/git-upload-pack")])
                        .into_response()
                }
                "/acme/away/git-upload-pack" => {
                    (StatusCode::FOUND, [("location", elsewhere)]).into_response()
                }
                "/acme/broken/git-upload-pack" => StatusCode::BAD_GATEWAY.into_response(),
                "/acme/odd/git-upload-pack" => "hello".into_response(),
                "/acme/empty/git-upload-pack" => "0000".into_response(),
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        HttpRemote::new(vec![Mirror { from: "https://github.com/".to_owned(), to }], &Outward::default())
            .unwrap()
    }

    #[tokio::test]
    async fn a_remote_tells_its_tip_or_why_not() {
        let remote = server().await;
        let tip = async |name: &str| {
            let repo = format!("https://github.com/acme/{name}").parse().unwrap();
            remote.tip(&repo, Some("Basic c2VjcmV0")).await
        };
        let expected = Ok(Tip { branch: "trunk".to_owned(), commit: COMMIT.to_owned() });
        assert_eq!(tip("widgets").await, expected);
        assert_eq!(tip("old").await, expected);
        assert_eq!(tip("missing").await, Err(RemoteError::Unreadable));
        assert_eq!(tip("empty").await, Err(RemoteError::NoBranch));
        for silent in ["away", "broken", "odd"] {
            assert!(matches!(tip(silent).await, Err(RemoteError::Silent(_))), "{silent}");
        }
    }

    /// Through the operator's proxy, but for mirrors (they are near).
    #[tokio::test]
    async fn the_proxy_is_asked_for_what_is_outside() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let outward = Outward { proxy: Some(proxy), ca_file: None };
        let (asked, mut heard) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut line = String::new();
                let mut stream = tokio::io::BufReader::new(stream);
                tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut line).await.unwrap();
                asked.send(line).unwrap();
            }
        });
        let repo = "https://github.com/acme/widgets".parse().unwrap();
        let remote = HttpRemote::new(Vec::new(), &outward).unwrap();
        assert!(matches!(remote.tip(&repo, None).await, Err(RemoteError::Silent(_))));
        assert_eq!(heard.recv().await.unwrap(), "CONNECT github.com:443 HTTP/1.1\r\n");
        let to = "http://127.0.0.1:9/".to_owned();
        let mirror = Mirror { from: "https://github.com/".to_owned(), to };
        let remote = HttpRemote::new(vec![mirror], &outward).unwrap();
        assert!(matches!(remote.tip(&repo, None).await, Err(RemoteError::Silent(_))));
        assert!(heard.try_recv().is_err());
    }
}
