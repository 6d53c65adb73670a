//! The provider port by HTTP: the conformance suite on both of its sides, and a
//! server whose sessions run on another server of the protocol.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method as AxumMethod, Uri, header};
use axum::response::IntoResponse as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{REPO, World, binary};

fn conformance(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().context("run conformance")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failed: Vec<_> = out.lines().filter(|line| !line.starts_with("ok")).collect();
    ensure!(output.status.success(), "{}\n{err}", failed.join("\n"));
    Ok(())
}

/// The engine in a process of its own, on the world's data.
pub(crate) fn engine_conforms(w: &World) -> anyhow::Result<()> {
    w.end_server("-TERM")?;
    let data = w.dir.join("data");
    let instance = w.instance.to_string();
    let outcome = conformance(Command::new(binary("conformance")).arg("engine").arg(data).arg(instance));
    w.serve()?;
    outcome
}

/// How often one stop asks the database.
pub(crate) fn a_stop_is_frugal(w: &World) -> anyhow::Result<()> {
    w.end_server("-TERM")?;
    let data = w.dir.join("data");
    let instance = w.instance.to_string();
    let outcome = conformance(Command::new(binary("conformance")).arg("traffic").arg(data).arg(instance));
    w.serve()?;
    outcome
}

/// Client, server, engine.
pub(crate) fn client_conforms(w: &World) -> anyhow::Result<()> {
    let base = format!("{}/api", w.base);
    conformance(Command::new(binary("conformance")).args(["http", &base]).env("CONFORMANCE_TOKEN", &w.key))
}

/// A server whose sandboxes run elsewhere, with one account.
struct Front<'w> {
    w: &'w World,
    base: String,
    key: String,
    account: String,
    server: Child,
    dir: std::path::PathBuf,
    env: Vec<(&'static str, String)>,
}

impl<'w> Front<'w> {
    fn start(
        w: &'w World,
        name: &str,
        port: u16,
        backend: &str,
        token: &str,
        more: &[(&'static str, &str)],
    ) -> anyhow::Result<Self> {
        let dir = w.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let mut env = vec![
            ("DORMOUSE_PROVIDER", "vercel".to_owned()),
            ("DORMOUSE_VERCEL__BASE_URL", backend.to_owned()),
            ("DORMOUSE_VERCEL__TOKEN", token.to_owned()),
            ("DORMOUSE_VERCEL__RUNTIME", String::new()),
            ("DORMOUSE_DATA_DIR", dir.join("data").to_string_lossy().into_owned()),
            ("DORMOUSE_LISTEN", format!("127.0.0.1:{port}")),
            // Nothing here is asked of GitHub itself.
            ("DORMOUSE_ORG_SNAPSHOTS__ENABLED", "false".to_owned()),
        ];
        env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let run = |args: &[&str]| -> anyhow::Result<Value> {
            let output = Command::new(binary("dormouse"))
                .args(args)
                .args(["--output", "json"])
                .envs(env.iter().cloned())
                .stdin(Stdio::null())
                .output()?;
            ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        let account = run(&["account", "create", "Grace"])?["id"].as_str().context("id")?.to_owned();
        let key = run(&["key", "create", "--account", &account])?["key"].as_str().context("key")?.to_owned();
        let org = run(&["org", "create", "acme"])?["id"].as_str().context("org")?.to_owned();
        run(&["org", "add-member", &org, &account])?;
        run(&["org", "claim", &org, "acme/*"])?;
        let log = std::fs::File::create(dir.join("server.log"))?;
        let server = Command::new(binary("dormouse"))
            .arg("serve")
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        let front = Self { w, base: format!("http://127.0.0.1:{port}"), key, account, server, dir, env };
        crate::world::eventually("the front answers", Duration::from_secs(20), || {
            Ok(front.call(Method::GET, "/healthz", None).is_ok())
        })?;
        Ok(front)
    }

    fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.w.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.w.block_on(async {
            let answer = request.send().await?;
            let status = answer.status();
            Ok((status, serde_json::from_str(&answer.text().await?).unwrap_or_default()))
        })
    }

    fn good(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, reply) = self.call(method.clone(), path, body)?;
        ensure!(status == StatusCode::OK, "{method} {path}: {status} {reply} {}", self.log());
        Ok(reply)
    }

    fn session(&self) -> anyhow::Result<String> {
        let output = Command::new(binary("dormouse"))
            .args(["session", "create", "--account", &self.account, "--output", "json"])
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .output()?;
        let made: Value = serde_json::from_slice(&output.stdout)?;
        Ok(made["id"].as_str().context("id")?.to_owned())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }
}

impl Drop for Front<'_> {
    fn drop(&mut self) {
        // It may have ended by itself, which the assertions will have told.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The whole session API over client, server and engine.
pub(crate) fn sessions_run_elsewhere(w: &World) -> anyhow::Result<()> {
    let front = Front::start(w, "front", 7790, &format!("{}/api", w.base), &w.key, &[])?;
    let session = front.session()?;
    let name = format!("session-{session}");
    let post = json!({"repoUrl": REPO, "sessionId": session});
    let made = front.good(Method::POST, "/api/sandbox", Some(post.clone()))?;
    ensure!(made["currentBranch"] == "main", "{made}");
    ensure!(w.ok(&name, "git log --format=%s -1; echo kept > /tmp/kept")? == "commit 3");
    let at = |part: &str| format!("/api/sandbox/{part}?sessionId={session}");
    ensure!(front.good(Method::GET, &at("status"), None)?["status"] == "active");
    let again = front.good(Method::POST, "/api/sandbox", Some(post.clone()))?;
    ensure!(again["currentBranch"] == "main", "{again}");
    front.good(Method::POST, "/api/sandbox/extend", Some(json!({"sessionId": session})))?;

    // What somebody set over there, no look of ours strips.
    let sandbox = format!("/api/v2/sandboxes/{name}");
    let run_of = || -> anyhow::Result<Value> { w.good(Method::GET, &sandbox, None) };
    let run = run_of()?["session"]["id"].as_str().context("id")?.to_owned();
    let policy = format!("/api/v2/sandboxes/sessions/{run}/network-policy");
    w.good(Method::POST, &policy, Some(json!({"mode": "deny-all"})))?;
    ensure!(front.good(Method::GET, &at("reconnect"), None)?["status"] == "connected");
    front.good(Method::GET, &at("status"), None)?;
    ensure!(run_of()?["session"]["networkPolicy"]["mode"] == "deny-all", "a look stripped the policy");

    // Asleep it stays, however often it is looked at.
    front.good(Method::POST, "/api/sandbox/snapshot", Some(json!({"sessionId": session})))?;
    for _ in 0..3 {
        front.good(Method::GET, &at("status"), None)?;
        ensure!(front.good(Method::GET, &at("reconnect"), None)?["status"] != "connected");
        let found = run_of()?;
        ensure!(found["session"]["id"] == run.as_str() && found["session"]["status"] == "stopped", "{found}");
    }
    let back = front.good(Method::POST, "/api/sandbox", Some(post))?;
    ensure!(back["currentBranch"] == "main", "{back}");
    ensure!(w.ok(&name, "cat /tmp/kept")? == "kept");
    ensure!(run_of()?["session"]["networkPolicy"]["mode"] == "deny-all", "a resume stripped the policy");

    // Its own provider API would be another service's.
    let (status, reply) = front.call(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
    ensure!(status == StatusCode::BAD_REQUEST, "{status} {reply}");

    // Twenty posts for one session at once: one sandbox.
    let session = front.session()?;
    let posts: Vec<_> = (0..20)
        .map(|_| {
            let body = json!({"repoUrl": REPO, "sessionId": session});
            let request =
                w.http.post(format!("{}/api/sandbox", front.base)).bearer_auth(&front.key).json(&body);
            w.spawn(async move { request.send().await.map(|answer| answer.status()) })
        })
        .collect();
    for post in posts {
        ensure!(w.block_on(post)?? == StatusCode::OK);
    }
    let list = w.good(Method::GET, &format!("/api/v2/sandboxes/sessions?name=session-{session}"), None)?;
    ensure!(list["sessions"].as_array().is_some_and(|runs| runs.len() == 1), "{list}");

    for session in [session.as_str(), name.trim_start_matches("session-")] {
        front.good(Method::DELETE, &format!("/api/sessions/{session}"), None)?;
        let path = format!("/api/v2/sandboxes/session-{session}");
        let (status, _) = w.call(Method::GET, &path, Some(&w.key), None)?;
        ensure!(status == StatusCode::NOT_FOUND, "a deleted session left its sandbox: {status}");
    }
    Ok(())
}

/// A provider that is away for a while tells nothing: no session is taken for
/// stopped, and none sleeps under its command.
pub(crate) fn elsewhere_is_away(w: &World) -> anyhow::Result<()> {
    let idle = [("DORMOUSE_LIFECYCLE__IDLE_TIMEOUT", "3s")];
    let front = Front::start(w, "front-away", 7791, &format!("{}/api", w.base), &w.key, &idle)?;
    let session = front.session()?;
    let name = format!("session-{session}");
    front.good(Method::POST, "/api/sandbox", Some(json!({"repoUrl": REPO, "sessionId": session})))?;
    w.ok(&name, "nohup sleep 1000 >/dev/null 2>&1 & echo")?;
    let run = w.run(&name)?;
    w.cli(&["sandbox", "exec", "--detach", &name, "--", "sleep", "1000"])?;
    let at = |part: &str| format!("/api/sandbox/{part}?sessionId={session}");
    ensure!(front.good(Method::GET, &at("reconnect"), None)?["status"] == "connected");

    w.end_server("-KILL")?;
    // Idle for more than one look of the reconciler.
    std::thread::sleep(Duration::from_secs(8));
    for (method, path, body) in [
        (Method::GET, at("reconnect"), None),
        (Method::DELETE, "/api/sandbox".to_owned(), Some(json!({"sessionId": session}))),
        (Method::POST, "/api/sandbox/extend".to_owned(), Some(json!({"sessionId": session}))),
    ] {
        let (status, reply) = front.call(method.clone(), &path, body)?;
        ensure!(status == StatusCode::BAD_GATEWAY, "{method} {path}: {status} {reply}");
    }
    let status = front.good(Method::GET, &at("status"), None)?;
    ensure!(status["lifecycle"]["state"] == "active", "{status}");

    w.serve()?;
    ensure!(front.good(Method::GET, &at("reconnect"), None)?["status"] == "connected");
    ensure!(w.run(&name)? == run, "it was stopped meanwhile");
    ensure!(w.ok(&name, "pgrep -cx sleep")? == "2");
    front.good(Method::DELETE, &format!("/api/sessions/{session}"), None).map(drop)
}

type Seen = Arc<Mutex<Vec<(AxumMethod, Uri, Value)>>>;

/// Answers in the shape of the real service and writes down what it is asked.
async fn record(
    State(seen): State<Seen>,
    method: AxumMethod,
    uri: Uri,
    body: Bytes,
) -> axum::response::Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let wait = body["wait"] == true;
    let stopped = {
        let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.push((method.clone(), uri.clone(), body));
        let last = |part: &str| seen.iter().rposition(|(_, uri, _)| uri.to_string().contains(part));
        last("/stop").is_some_and(|stop| last("resume=true").is_none_or(|resume| resume < stop))
    };
    let session = json!({
        "id": "sbx_q7", "memory": 4096, "vcpus": 2, "region": "iad1", "timeout": 18_000_000,
        "status": if stopped { "stopped" } else { "running" }, "requestedAt": 1, "createdAt": 1,
        "startedAt": 4_000_000_000_000_i64, "cwd": "/vercel/sandbox", "updatedAt": 1,
        "networkPolicy": {"mode": "custom",
            "allowedDomains": ["*", "api.github.com", "codeload.github.com", "github.com", "uploads.github.com"],
            "injectionRules": [{"domain": "github.com", "headerNames": ["authorization"],
                "match": {"path": {"regex": "(?i)^/acme/widgets(\\.git)?(/|$)"}}}]}
    });
    let name = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let sandbox = json!({
        "name": if name.starts_with("session-") { &name } else { "x" }, "persistent": true, "createdAt": 1,
        "updatedAt": 1, "currentSessionId": "sbx_q7", "status": "running", "currentSnapshotId": "snap_1"
    });
    let command = |exit: Option<i32>| {
        json!({"command": {"id": "cmd_1", "name": "sh", "args": [], "cwd": "/vercel/sandbox",
            "sessionId": "sbx_q7", "exitCode": exit, "startedAt": 1}})
    };
    if wait {
        let line = json!({"stream": "stdout", "data": "main\n0123\n"});
        let lines = format!("{}\n{line}\n{}\n", command(None), command(Some(0)));
        return ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response();
    }
    let made = method == AxumMethod::POST && uri.path().ends_with("/sandboxes");
    let known = made || {
        let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.iter().any(|(method, uri, _)| *method == AxumMethod::POST && uri.path().ends_with("/sandboxes"))
    };
    if !known {
        let body = json!({"error": {"code": "not_found", "message": "no such sandbox"}});
        return (axum::http::StatusCode::NOT_FOUND, axum::Json(body)).into_response();
    }
    axum::Json(json!({"sandbox": sandbox, "session": session, "routes": [], "resumed": true})).into_response()
}

/// The service token goes to the provider as a rule, for repositories that the
/// caller's organization claims, and nowhere else.
pub(crate) fn credentials_are_brokered(w: &World) -> anyhow::Result<()> {
    let seen = Seen::default();
    let listener = w.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let backend = format!("http://{}/api", listener.local_addr()?);
    let app = Router::new().fallback(record).with_state(seen.clone());
    let fake = w.spawn(async move { axum::serve(listener, app).await });
    let token = [("DORMOUSE_GITHUB__TOKEN", "ghs_s3cret")];
    let front = Front::start(w, "broker", 7791, &backend, "t0ken", &token)?;
    let asked = || seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let session = front.session()?;
    let post = |session: &str, repo: &str| {
        let body = json!({"repoUrl": repo, "sessionId": session});
        front.good(Method::POST, "/api/sandbox", Some(body))
    };
    post(&session, REPO)?;
    let created = asked().iter().find(|(_, uri, _)| uri.path().ends_with("/sandboxes")).cloned();
    let (_, _, body) = created.context("nothing was created")?;
    let rule = |name: &str| {
        body["networkPolicy"]["allow"][name][0]["transform"][0]["headers"]["authorization"].clone()
    };
    // base64 of x-access-token:ghs_s3cret
    ensure!(rule("github.com") == "Basic eC1hY2Nlc3MtdG9rZW46Z2hzX3MzY3JldA==", "{body}");
    ensure!(
        rule("api.github.com") == "Bearer ghs_s3cret" && body["networkPolicy"]["allow"]["*"] == json!([])
    );

    // Looks change nothing there and wake nothing.
    let before = asked().len();
    front.good(Method::GET, &format!("/api/sandbox/status?sessionId={session}"), None)?;
    front.good(Method::GET, &format!("/api/sandbox/reconnect?sessionId={session}"), None)?;
    front.good(Method::DELETE, "/api/sandbox", Some(json!({"sessionId": session})))?;
    front.good(Method::GET, &format!("/api/sandbox/reconnect?sessionId={session}"), None)?;
    for (method, uri, body) in &asked()[before..] {
        let probe = uri.path().ends_with("/cmd") && body["command"] == "pwd";
        let stop = uri.path().ends_with("/stop");
        ensure!(probe || stop || method == AxumMethod::GET, "a look did {method} {uri} {body}");
        ensure!(!uri.to_string().contains("resume=true"), "a look woke it: {uri}");
    }
    // A resume brings the credentials up to date.
    let before = asked().len();
    post(&session, REPO)?;
    let set = asked()[before..].iter().find(|(_, uri, _)| uri.path().ends_with("/network-policy")).cloned();
    ensure!(set.is_some_and(|(_, _, body)| body.to_string().contains("ghs_s3cret")), "not refreshed");

    // Nobody claims this one: no token.
    let before = asked().len();
    let other = front.session()?;
    post(&other, "https://github.com/other/public")?;
    ensure!(
        !asked()[before..].iter().any(|(_, _, body)| body.to_string().contains("s3cret")),
        "a confused deputy"
    );
    // And it is never in a command, nor in our log.
    for (_, uri, body) in asked().iter().filter(|(_, uri, _)| !uri.path().ends_with("/sandboxes")) {
        ensure!(
            uri.path().ends_with("/network-policy") || !body.to_string().contains("s3cret"),
            "{uri} {body}"
        );
    }
    ensure!(!front.log().contains("s3cret") && !front.log().contains("t0ken"));
    drop(front);
    fake.abort();
    Ok(())
}
