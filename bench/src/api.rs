//! The same operations as a caller meets them: the real binary over HTTP.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::timing::timed;

const BASE: &str = "http://127.0.0.1:7712";

/// Sessions, and so operations of each kind at each width.
const COUNT: usize = 32;

/// How many at once.
const WIDTHS: [usize; 3] = [1, 8, 32];

/// A server over a data directory.
pub(crate) struct Server<'a> {
    data: &'a Path,
    url: &'a str,
    child: std::sync::Mutex<Child>,
}

/// Calls to it, by one account.
pub(crate) struct Api {
    http: reqwest::Client,
    key: String,
}

impl Api {
    /// One call, which succeeds: the body of its answer.
    pub(crate) async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Value,
    ) -> anyhow::Result<String> {
        let request = self.http.request(method, format!("{BASE}{path}")).header("x-api-key", &self.key);
        let answer = request.json(&body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(text)
    }
}

fn dormouse(data: &Path, url: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("dormouse"));
    let mirrors = format!("[{{from=\"https://github.com/\", to=\"{url}\"}}]");
    command
        .env("DORMOUSE_DATA_DIR", data)
        .env("DORMOUSE_INSTANCE", "12")
        .env("DORMOUSE_LISTEN", "127.0.0.1:7712")
        .env("DORMOUSE_LOG", "error")
        .env("DORMOUSE_GIT__MIRRORS", mirrors)
        .stdin(Stdio::null());
    Ok(command)
}

impl<'a> Server<'a> {
    pub(crate) fn start(data: &'a Path, url: &'a str, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut command = dormouse(data, url)?;
        let child = command.arg("serve").envs(env.iter().copied()).spawn().context("start the server")?;
        Ok(Self { data, url, child: child.into() })
    }

    fn text(&self, args: &[&str]) -> anyhow::Result<String> {
        text(self.data, self.url, args)
    }

    fn has_ended(&self) -> anyhow::Result<bool> {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(child.try_wait()?.is_some())
    }

    /// Calls by a new account, once it answers.
    pub(crate) async fn api(&self, name: &str) -> anyhow::Result<Api> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?;
        while http.get(format!("{BASE}/healthz")).send().await.is_err() {
            ensure!(!self.has_ended()?, "the server ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let account = self.text(&["account", "create", name])?;
        let key = self.text(&["key", "create", "--account", &account])?;
        Ok(Api { http, key })
    }

    /// Ends it, and takes what it had off the host.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let mut child = self.child.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = Command::new("kill").arg(child.id().to_string()).status();
        child.wait()?;
        told?;
        ensure!(dormouse(self.data, self.url)?.arg("evacuate").status()?.success(), "evacuate");
        Ok(())
    }
}

/// What the command line prints.
pub(crate) fn text(data: &Path, url: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = dormouse(data, url)?.args(args).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Times the session API over the data directory `data`, which has an image.
pub(crate) async fn measure(data: &Path, url: &str) -> anyhow::Result<()> {
    let server = Server::start(data, url, &[])?;
    let measured = async {
        calls(&server).await?;
        sdk(&server).await
    };
    let measured = measured.await;
    server.end().await?;
    measured
}

/// The provider API through the SDK: `provider.mjs` prints its own rows.
async fn sdk(server: &Server<'_>) -> anyhow::Result<()> {
    let account = server.text(&["account", "create", "Sdk"])?;
    let key = server.text(&["key", "create", "--account", &account])?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("provider.mjs");
    let status = tokio::process::Command::new("node")
        .arg(script)
        .env("DORMOUSE_SERVER", BASE)
        .env("DORMOUSE_KEY", key)
        .env("DORMOUSE_TEAM", account)
        .stdin(Stdio::null())
        .status()
        .await
        .context("run node")?;
    ensure!(status.success(), "provider.mjs: {status}");
    Ok(())
}

async fn calls(server: &Server<'_>) -> anyhow::Result<()> {
    let api = server.api("Api").await?;
    let call = async |method, path: String, body| api.call(method, &path, body).await;
    use reqwest::Method;
    for width in WIDTHS {
        let mut ids: Vec<String> = Vec::new();
        for _ in 0..COUNT {
            let made: Value =
                serde_json::from_str(&call(Method::POST, "/api/sessions".to_owned(), json!({})).await?)?;
            ids.push(made["id"].as_str().or(made["session"]["id"].as_str()).context("id")?.to_owned());
        }
        let post = |n: usize| {
            let body = json!({"repoUrl": "https://github.com/dormouse/dormouse", "sessionId": ids[n]});
            call(Method::POST, "/api/sandbox".to_owned(), body)
        };
        timed("API: create, from the org snapshot", width, COUNT, async |n| post(n).await.map(drop)).await?;
        timed("API: post for a live sandbox", width, COUNT, async |n| post(n).await.map(drop)).await?;
        let mut runs = Vec::new();
        for id in &ids {
            let found = call(Method::GET, format!("/api/v2/sandboxes/session-{id}"), Value::Null).await?;
            let found: Value = serde_json::from_str(&found)?;
            runs.push(found["session"]["id"].as_str().context("run id")?.to_owned());
        }
        timed("API: command round trip", width, COUNT * 4, async |n| {
            let path = format!("/api/v2/sandboxes/sessions/{}/cmd", runs[n % COUNT]);
            let events =
                call(Method::POST, path, json!({"command": "true", "args": [], "wait": true})).await?;
            ensure!(events.contains("\"exitCode\":0"), "{events}");
            Ok(())
        })
        .await?;
        timed("API: stop", width, COUNT, async |n| {
            call(Method::POST, "/api/sandbox/snapshot".to_owned(), json!({"sessionId": ids[n]}))
                .await
                .map(drop)
        })
        .await?;
        timed("API: resume", width, COUNT, async |n| {
            call(Method::PUT, "/api/sandbox/snapshot".to_owned(), json!({"sessionId": ids[n]}))
                .await
                .map(drop)
        })
        .await?;
        for id in &ids {
            call(Method::DELETE, "/api/sandbox".to_owned(), json!({"sessionId": id})).await?;
        }
    }
    Ok(())
}
