//! Base images from elsewhere: a registry of the test's own, a layout.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::world::{World, eventually, image_cache};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What the registry has: by path, a media type and a file.
type Content = HashMap<String, (String, PathBuf)>;

/// A pull-only registry (OCI distribution specification) that wants a token.
async fn registry(State((content, base)): State<(Arc<Content>, String)>, request: Request) -> Response<Body> {
    let answer = |status, kind: &str, body: Body| {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        if let Ok(kind) = kind.parse() {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    };
    let path = request.uri().path();
    if path == "/token" {
        return answer(StatusCode::OK, "application/json", Body::from(r#"{"token":"let-me-in"}"#));
    }
    if request.headers().get(header::AUTHORIZATION).is_none_or(|value| value != "Bearer let-me-in") {
        let mut response = answer(StatusCode::UNAUTHORIZED, "application/json", Body::from("{}"));
        if let Ok(value) = format!("Bearer realm=\"{base}/token\",service=\"test\"").parse() {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        return response;
    }
    match content.get(path) {
        Some((kind, file)) => match tokio::fs::File::open(file).await {
            Ok(file) => {
                answer(StatusCode::OK, kind, Body::from_stream(tokio_util::io::ReaderStream::new(file)))
            }
            Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Body::empty()),
        },
        None => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            answer(StatusCode::NOT_FOUND, "application/json", Body::from(body))
        }
    }
}

fn digest(path: &Path) -> anyhow::Result<String> {
    let (mut hash, mut file, mut buffer) = (Sha256::new(), File::open(path)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finalize().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

/// A layer with these files of root's.
fn layer(files: &[(&str, &str)]) -> anyhow::Result<Vec<u8>> {
    layer_of(0, files)
}

/// A layer with these files of `owner`'s.
fn layer_of(owner: u64, files: &[(&str, &str)]) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_uid(owner);
        header.set_gid(owner);
        builder.append_data(&mut header, name, content.as_bytes())?;
    }
    Ok(builder.into_inner()?)
}

struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    fn add(&self, bytes: &[u8]) -> anyhow::Result<(String, u64)> {
        let path = self.dir.join("new");
        fs::write(&path, bytes)?;
        self.keep(&path)
    }

    fn keep(&self, path: &Path) -> anyhow::Result<(String, u64)> {
        let digest = digest(path)?;
        fs::rename(path, self.dir.join(digest.trim_start_matches("sha256:")))?;
        let size = fs::metadata(self.path(&digest))?.len();
        Ok((digest, size))
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(digest.trim_start_matches("sha256:"))
    }

    /// A manifest over these layers; its descriptor in an index.
    fn manifest(&self, layers: &[&(String, u64)]) -> anyhow::Result<Value> {
        self.configured(layers, json!({}))
    }

    /// The same with a configuration.
    fn configured(&self, layers: &[&(String, u64)], config: Value) -> anyhow::Result<Value> {
        let config = self.add(config.to_string().as_bytes())?;
        let layers: Vec<_> = layers
            .iter()
            .map(|(digest, size)| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1},
        });
        let (digest, size) = self.add(manifest.to_string().as_bytes())?;
        Ok(json!({"mediaType": MANIFEST, "digest": digest, "size": size}))
    }
}

pub(crate) fn registry_and_layout(w: &World) -> anyhow::Result<()> {
    let layout = w.dir.join("layout");
    let blobs = Blobs { dir: layout.join("blobs/sha256") };
    fs::create_dir_all(&blobs.dir)?;
    // The base is the recipe's own tar, so that the image can do the main job.
    let bases = fs::read_dir(image_cache())?.flatten().map(|entry| entry.path());
    let bases =
        bases.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("slim-base-")));
    let newest = bases.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok());
    let copy = w.dir.join("base.tar");
    fs::copy(newest.context("the base of the recipe is not in the cache")?, &copy)?;
    let base = blobs.keep(&copy)?;
    let second = layer(&[("etc/.wh.issue", ""), ("etc/marker", "second\n"), ("opt/hidden", "no\n")])?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::copy(&mut &second[..], &mut gzip)?;
    let second = blobs.add(&gzip.finish()?)?;
    let third = layer(&[("opt/.wh..wh..opq", ""), ("opt/third", "third\n")])?;
    let third = blobs.add(&zstd::encode_all(&third[..], 1)?)?;
    let wrong = blobs.manifest(&[])?;
    let right = blobs.manifest(&[&base, &second, &third])?;
    let small = blobs.manifest(&[&second, &third])?;
    let config = json!({"config": {
        "Env": ["GREETING=hello", "PATH=/opt/tools:/usr/bin:/bin"], "WorkingDir": "/srv/app", "User": "daemon",
    }});
    let tool = layer(&[("opt/tools/.keep", ""), ("etc/marker", "configured\n")])?;
    let configured = blobs.configured(&[&base, &blobs.add(&tool)?], config)?;
    let far = blobs.manifest(&[&second, &blobs.add(&layer_of(70_000, &[("srv/far", "x")])?)?])?;
    let platform = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    };
    let index = |manifest: &Value| {
        let manifests = json!([platform(wrong.clone(), "arm64"), platform(manifest.clone(), "amd64")]);
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    };
    fs::write(w.dir.join("index.json"), index(&right).to_string())?;
    fs::write(layout.join("index.json"), index(&small).to_string())?;
    fs::write(w.dir.join("damaged"), "not what the digest says")?;
    for (name, manifest) in [("configured", &configured), ("far", &far)] {
        fs::write(w.dir.join(name), index(manifest).to_string())?;
    }

    let mut content: Content = HashMap::new();
    for (tag, file) in [("1", "index.json"), ("configured", "configured"), ("far", "far")] {
        let path = format!("/v2/acme/base/manifests/{tag}");
        content.insert(path, (INDEX.to_owned(), w.dir.join(file)));
    }
    for entry in fs::read_dir(&blobs.dir)?.flatten() {
        let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
        content.insert(format!("/v2/acme/base/manifests/{digest}"), (MANIFEST.to_owned(), entry.path()));
        let blob = ("application/octet-stream".to_owned(), entry.path());
        content.insert(format!("/v2/acme/base/blobs/{digest}"), blob.clone());
        content.insert(format!("/v2/acme/damaged/blobs/{digest}"), (blob.0, w.dir.join("damaged")));
    }
    let digest = small["digest"].as_str().context("digest")?;
    let manifest = (MANIFEST.to_owned(), blobs.path(digest));
    content.insert("/v2/acme/damaged/manifests/1".to_owned(), manifest);

    let listener = w.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?.to_string();
    let app = Router::new().fallback(registry).with_state((Arc::new(content), format!("http://{address}")));
    let serving = w.spawn(async move { axum::serve(listener, app).await });

    let build = |name: &str, from: &[&str]| {
        let args: Vec<&str> = ["image", "build", "--name", name].iter().chain(from).copied().collect();
        w.cli(&args).map(drop)
    };
    let images = || anyhow::Ok(fs::read_dir(w.dir.join("data/pool/images"))?.count());
    let before = images()?;
    for (name, expected) in [("damaged", "1"), ("missing", "1")] {
        let error = build("bad", &["--from", &format!("{address}/acme/{name}:{expected}")]);
        let error = format!("{:#}", error.err().context("a bad image was taken")?);
        ensure!(error.contains(&format!("{address}/acme/{name}")) || error.contains("sha256"), "{error}");
    }
    let error = build("bad", &["--from", &format!("{address}/acme/base:far")]);
    let error = format!("{:#}", error.err().context("an owner out of range was taken")?);
    ensure!(error.contains("srv/far") && error.contains("70000"), "{error}");
    ensure!(images()? == before, "a failed build left an image");

    let layout_path = layout.to_string_lossy().into_owned();
    build("layout", &["--oci-layout", &layout_path])?;
    build("pulled", &["--from", &format!("{address}/acme/base:1")])?;
    build("configured", &["--from", &format!("{address}/acme/base:configured")])?;
    serving.abort();
    let scratch = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("pull-");
    ensure!(!fs::read_dir(image_cache())?.flatten().any(|entry| scratch(&entry)), "scratch files are left");
    // The layout is no system; a sandbox of it still gives its files.
    w.cli(&["sandbox", "create", "of-layout", "--image", "layout"])?;
    for (path, expected) in
        [("/etc/marker", Some("second\n")), ("/opt/third", Some("third\n")), ("/opt/hidden", None)]
    {
        ensure!(w.read("of-layout", path)?.as_deref() == expected, "{path}");
    }
    w.delete("of-layout")?;

    // What an image says of its commands counts.
    w.cli(&["sandbox", "create", "configured", "--image", "configured", "--env", "MINE=1"])?;
    let look = "echo $GREETING $MINE $PATH; pwd; id -un; stat -c %U .";
    let expected = "hello 1 /opt/tools:/usr/bin:/bin\n/srv/app\ndaemon\ndaemon";
    for _ in 0..2 {
        let found = w.ok("configured", look)?;
        ensure!(found == expected, "{found}");
        w.stop("configured")?;
    }
    let (_, out, _) = w.exec("configured", &["--env", "GREETING=mine"], &["sh", "-c", "echo $GREETING"])?;
    ensure!(out.trim() == "mine", "{out}");

    // An image is replaced by name; who stands on the old one keeps it.
    build("configured", &["--oci-layout", &layout_path])?;
    let with_both = images()?;
    w.stop("configured")?;
    ensure!(w.ok("configured", "cat /etc/marker")? == "configured", "it stands on another image");
    w.cli(&["sandbox", "create", "of-new", "--image", "configured"])?;
    ensure!(w.read("of-new", "/etc/marker")?.as_deref() == Some("second\n"));
    w.cli(&["sandbox", "fork", "--live", "configured", "of-old"])?;
    ensure!(w.ok("of-old", "cat /etc/marker")? == "configured", "a fork stands on its source's");
    w.delete("of-new")?;
    w.delete("configured")?;
    std::thread::sleep(Duration::from_secs(12));
    ensure!(images()? == with_both, "the image of a fork is gone");
    w.delete("of-old")?;
    for snapshot in snapshots_there(w)? {
        w.cli(&["snapshot", "delete", &snapshot])?;
    }
    eventually("the old image is gone", Duration::from_secs(30), || Ok(images()? == with_both - 1))?;

    w.end_server("-TERM")?;
    w.serve_with(&[("DORMOUSE_SANDBOX__IMAGE", "pulled")])?;
    let (_, name) = w.sandbox()?;
    let seen = w.ok(&name, "cat /etc/marker; ls /opt; ls /etc/issue 2>/dev/null || echo hidden; sudo id -un; git log -1 --format=%s")?;
    ensure!(seen == "second\nthird\nhidden\nroot\ncommit 3", "{seen}");
    w.delete(&name)?;
    w.end_server("-TERM")?;
    w.serve()
}

/// Ids of the snapshots that are there.
fn snapshots_there(w: &World) -> anyhow::Result<Vec<String>> {
    let found: Value = serde_json::from_slice(&w.cli(&["snapshot", "list", "--output", "json"])?.stdout)?;
    let all = found["snapshots"].as_array().cloned().context("snapshots")?.into_iter();
    let there = all.filter(|snapshot| snapshot["status"] != "deleted");
    Ok(there.filter_map(|snapshot| Some(snapshot["id"].as_str()?.to_owned())).collect())
}

/// The runtimes of this release are what their names say, and what is not one
/// is refused by name.
pub(crate) fn runtimes(w: &World) -> anyhow::Result<()> {
    let make = |name: &str, runtime: &str| {
        let body = json!({"name": name, "runtime": runtime});
        w.call(Method::POST, "/api/v2/sandboxes", Some(&w.key), Some(body))
    };
    let (status, reply) = make("runtime-early", "node22")?;
    let message = reply["error"]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(status == StatusCode::BAD_REQUEST && message.contains("--recipe node22"), "{status} {reply}");
    for (runtime, script, expected) in [
        ("node22", "node --version; npm --version; npx --version", "v22.23.3\n10.9.9\n10.9.9"),
        ("node24", "node --version; npm --version; which node", "v24.21.0\n11.21.2\n/usr/local/bin/node"),
        (
            "python3.13",
            "python3 --version | cut -d. -f1,2; python3 -m venv /tmp/v && /tmp/v/bin/python -c 'print(1)'",
            "Python 3.13\n1",
        ),
    ] {
        w.cli(&["image", "build", "--recipe", runtime])?;
        let name = format!("runtime-{}", runtime.replace('.', "-"));
        let (status, reply) = make(&name, runtime)?;
        ensure!(status == StatusCode::OK, "{status} {reply}");
        ensure!(reply["session"]["runtime"] == runtime && reply["sandbox"]["runtime"] == runtime, "{reply}");
        let found = w.ok(&name, script)?;
        ensure!(found == expected, "{runtime}: {found:?}, not {expected:?}");
        // The rest of the system is there too.
        ensure!(
            w.ok(&name, "git --version | cut -c1-3; id -un; sudo id -un; jq --version | cut -c1-2")?
                == "git\nubuntu\nroot\njq"
        );
        w.delete(&name)?;
    }
    let (status, reply) = make("runtime-none", "cobol61")?;
    let message = reply["error"]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(status == StatusCode::BAD_REQUEST && message.contains("\"cobol61\""), "{status} {reply}");
    ensure!(
        w.call(Method::GET, "/api/v2/sandboxes/runtime-none", Some(&w.key), None)?.0 == StatusCode::NOT_FOUND
    );
    Ok(())
}
