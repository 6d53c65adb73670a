//! A git smart-HTTP server over `git http-backend`, on loopback, for tests and
//! the demo: `git-http ROOT [PORT]` serves `ROOT/owner/repo.git` as
//! `/owner/repo` and prints its address. What `hangs` owns is never answered,
//! what `slow` owns comes at 4 MB a second, and what `private` owns is for whoever has
//! the token in `GIT_HTTP_TOKEN`. Objects of Git LFS are files below
//! `repo.git/lfs`, by their names.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use base64::Engine as _;
use futures::TryStreamExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let root = PathBuf::from(args.next().context("usage: git-http ROOT [PORT]")?).canonicalize()?;
    let port: u16 = args.next().map_or(Ok(0), |port| port.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let line = format!("http://{}/\n", listener.local_addr()?);
    std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes())?;
    // Packs go out in many small writes.
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // Without it the server is only slower.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, Router::new().fallback(backend).with_state(root)).await?;
    Ok(())
}

async fn backend(State(root): State<PathBuf>, request: Request) -> Response<Body> {
    run(root, request).await.unwrap_or_else(|error| {
        let mut response = Response::new(Body::from(format!("{error:#}\n")));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Git LFS, as far as clients need it to get and to put objects ("Batch API").
async fn lfs(objects: &std::path::Path, rest: &str, url: &str, body: Body) -> anyhow::Result<Response<Body>> {
    let plain = rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    anyhow::ensure!(plain, "no object");
    let bytes = axum::body::to_bytes(body, 64 << 20).await?;
    let mut response = Response::new(Body::empty());
    if rest != "batch" {
        if bytes.is_empty() {
            *response.body_mut() = Body::from(tokio::fs::read(objects.join(rest)).await?);
        } else {
            tokio::fs::create_dir_all(objects).await?;
            tokio::fs::write(objects.join(rest), bytes).await?;
        }
        return Ok(response);
    }
    let asked: serde_json::Value = serde_json::from_slice(&bytes)?;
    let operation = asked["operation"].as_str().unwrap_or_default();
    let place = url.trim_end_matches("batch");
    let answers = asked["objects"].as_array().into_iter().flatten().map(|object| {
        let (id, size) = (object["oid"].as_str().unwrap_or_default(), &object["size"]);
        serde_json::json!({"oid": id, "size": size, "authenticated": true,
            "actions": {operation: {"href": format!("{place}{id}")}}})
    });
    let answer = serde_json::json!({"transfer": "basic", "objects": answers.collect::<Vec<_>>()});
    let kind = HeaderValue::from_static("application/vnd.git-lfs+json");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, kind);
    *response.body_mut() = Body::from(answer.to_string());
    Ok(response)
}

/// Runs the backend as CGI (RFC 3875).
async fn run(root: PathBuf, request: Request) -> anyhow::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let header =
        |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    // GitHub serves a repository with and without ".git".
    let mut path = parts.uri.path().trim_start_matches('/').splitn(3, '/');
    let (owner, repo, rest) =
        (path.next().unwrap_or(""), path.next().unwrap_or(""), path.next().unwrap_or(""));
    if owner == "hangs" {
        return std::future::pending().await;
    }
    let pause = Duration::from_millis(u64::from(owner == "slow"));
    if owner == "private" {
        let token = std::env::var("GIT_HTTP_TOKEN").unwrap_or_default();
        let pair = base64::prelude::BASE64_STANDARD.encode(format!("x-access-token:{token}"));
        if token.is_empty() || header("authorization") != format!("Basic {pair}") {
            let mut response = Response::new(Body::from("Bad credentials\n"));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            let realm = HeaderValue::from_static("Basic realm=\"GitHub\"");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, realm);
            return Ok(response);
        }
    }
    let repo = repo.trim_end_matches(".git");
    if let Some(rest) = rest.strip_prefix("info/lfs/objects/") {
        let objects = root.join(owner).join(format!("{repo}.git/lfs"));
        return lfs(&objects, rest, &format!("http://{}{}", header("host"), parts.uri.path()), body).await;
    }
    let mut child = tokio::process::Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", &root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "2")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_CONFIG_KEY_1", "http.receivepack")
        .env("GIT_CONFIG_VALUE_1", "true")
        .env("PATH_INFO", format!("/{owner}/{repo}.git/{rest}"))
        .env("QUERY_STRING", parts.uri.query().unwrap_or(""))
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("run git http-backend")?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
    tokio::spawn(async move {
        let mut body = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
        // The backend may read less than was sent.
        let _ = tokio::io::copy(&mut body, &mut stdin).await;
        let _ = stdin.shutdown().await;
    });
    let mut response = Response::new(Body::empty());
    loop {
        let mut line = String::new();
        if stdout.read_line(&mut line).await? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.trim().split_once(':').context("header without colon")?;
        if name.eq_ignore_ascii_case("status") {
            let code = value.trim().split(' ').next().unwrap_or("500");
            *response.status_mut() = StatusCode::from_bytes(code.as_bytes())?;
        } else {
            let (name, value) = (HeaderName::try_from(name)?, HeaderValue::try_from(value.trim())?);
            response.headers_mut().insert(name, value);
        }
    }
    let stream = ReaderStream::with_capacity(stdout, 4096);
    let stream = futures::StreamExt::then(stream, move |chunk| async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        chunk
    });
    // The child lives as long as its output is read.
    let held = futures::StreamExt::inspect(stream, move |_| {
        let _ = child.id();
    });
    *response.body_mut() = Body::from_stream(held);
    Ok(response)
}
