//! Two servers on one database, each with a data directory and an instance of
//! its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{Footprint, REPO, World, binary, image_cache, start_server};

/// Instance of the second server.
const INSTANCE: u8 = 6;

/// Sessions that are made while both servers run, and while one is killed.
const SESSIONS: usize = 12;

/// The second server.
struct Second<'w> {
    w: &'w World,
    dir: PathBuf,
    base: String,
    server: Option<Child>,
}

impl<'w> Second<'w> {
    fn start(w: &'w World) -> anyhow::Result<Self> {
        let dir = w.dir.join("second");
        fs::create_dir(&dir)?;
        let listen = format!("127.0.0.1:{}", 7700 + u16::from(INSTANCE));
        let config = fs::read_to_string(w.dir.join("config.toml"))?
            .replace(w.base.trim_start_matches("http://"), &listen)
            .replace(&format!("instance = {}\n", w.instance), &format!("instance = {INSTANCE}\n"));
        fs::write(dir.join("config.toml"), config)?;
        // Servers of one database have one key. The directory is made as a server makes it.
        fs::create_dir(dir.join("data"))?;
        fs::copy(w.dir.join("data/secret.key"), dir.join("data/secret.key"))?;
        let mut second = Self { w, dir, base: format!("http://{listen}"), server: None };
        let built = second.command(&["image", "build"]).output()?;
        ensure!(built.status.success(), "image build: {}", String::from_utf8_lossy(&built.stderr));
        second.serve()?;
        Ok(second)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("dormouse"));
        command.args(args).arg("--config").arg(self.dir.join("config.toml"));
        command.arg("--data-dir").arg(self.dir.join("data")).env("DORMOUSE_IMAGES__CACHE", image_cache());
        command
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let answers = || ask(self.w, &self.base, Method::GET, "/healthz", None).is_ok();
        self.server = Some(start_server(&mut self.command(&["serve"]), &self.dir, answers)?);
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
        }
        Ok(())
    }

    /// Ends it with all that it has on the host.
    fn finish(mut self) -> anyhow::Result<()> {
        self.kill()?;
        let evacuated = self.command(&["evacuate"]).output()?;
        ensure!(evacuated.status.success(), "evacuate: {}", String::from_utf8_lossy(&evacuated.stderr));
        Ok(())
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        // After a failure too: nothing may stay.
        if self.server.is_some() {
            let _ = self.kill();
            let _ = self.command(&["evacuate"]).output();
        }
    }
}

fn ask(
    w: &World,
    base: &str,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> anyhow::Result<(StatusCode, Value)> {
    w.block_on(w.ask_at(base, method, path, Some(&w.key), body))
}

/// Asks both servers for the sandbox of each session at once, twice each; on
/// which of them each lives. `kill` is done in the middle of it, after which the
/// second need not answer.
fn provision(
    w: &World,
    second: &mut Second<'_>,
    sessions: &[String],
    kill: bool,
) -> anyhow::Result<BTreeMap<String, String>> {
    let bases = [w.base.clone(), second.base.clone()];
    let mut asking = Vec::new();
    for (index, session) in sessions.iter().enumerate() {
        for turn in 0..4 {
            let base = bases[(index + turn) % 2].clone();
            let (http, key) = (w.http.clone(), w.key.clone());
            let body = json!({"repoUrl": REPO, "sessionId": session});
            let session = session.clone();
            asking.push(w.spawn(async move {
                let request = http.post(format!("{base}/api/sandbox")).header("x-api-key", key).json(&body);
                let answer = request.send().await.map(|answer| (answer.status(), base.clone()));
                match answer {
                    Ok((status, _)) => (session, base, Some(status)),
                    Err(_) => (session, base, None),
                }
            }));
        }
    }
    if kill {
        std::thread::sleep(Duration::from_millis(350));
        second.kill()?;
    }
    let mut homes: BTreeMap<String, String> = BTreeMap::new();
    for one in asking {
        let (session, base, status) = w.block_on(one)?;
        match status {
            Some(StatusCode::OK) => {
                if let Some(home) = homes.insert(session.clone(), base.clone()) {
                    ensure!(home == base, "{session} was handed out by {home} and by {base}");
                }
            }
            // The other one has it.
            Some(StatusCode::MISDIRECTED_REQUEST) => {}
            None if kill && base == second.base => {}
            other => anyhow::bail!("{session} at {base}: {other:?}"),
        }
    }
    Ok(homes)
}

fn new_sessions(w: &World) -> anyhow::Result<Vec<String>> {
    (0..SESSIONS).map(|_| w.new_session()).collect()
}

/// Runs a command in the sandbox of a session, on the server where it lives.
fn run(w: &World, base: &str, session: &str, script: &str) -> anyhow::Result<String> {
    let path = format!("/api/v2/sandboxes/session-{session}");
    let (status, found) = ask(w, base, Method::GET, &path, None)?;
    ensure!(status == StatusCode::OK, "{status} {found}");
    let id = found["session"]["id"].as_str().context("id")?;
    let path = format!("/api/v2/sandboxes/sessions/{id}/cmd");
    let body = json!({"command": "sh", "args": ["-c", script], "wait": true, "logs": true});
    let (status, lines) = ask(w, base, Method::POST, &path, Some(body))?;
    ensure!(status == StatusCode::OK, "{script:?}: {status} {lines}");
    let lines: Vec<Value> =
        lines.as_str().context("lines")?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let last = lines.last().context("no last line")?;
    ensure!(last["command"]["exitCode"] == 0, "{script:?}: {last}");
    let printed = lines.iter().filter(|line| line["stream"] == "stdout");
    Ok(printed.filter_map(|line| line["data"].as_str()).collect::<String>().trim().to_owned())
}

/// Under load, and with one of them killed: a session has one sandbox, nothing
/// that was acknowledged is lost, and what does not live on the dead host goes
/// on.
pub(crate) fn two_servers(w: &World) -> anyhow::Result<()> {
    let before = Footprint::take(INSTANCE);
    let mut second = Second::start(w)?;
    let sessions = new_sessions(w)?;
    let mut homes = provision(w, &mut second, &sessions, false)?;
    ensure!(homes.len() == SESSIONS, "not all sessions got a sandbox: {homes:?}");
    // The race may give all of them to one server: each gets one more, alone.
    for base in [&w.base, &second.base] {
        let session = w.new_session()?;
        let body = json!({"repoUrl": REPO, "sessionId": session});
        let (status, reply) = ask(w, base, Method::POST, "/api/sandbox", Some(body))?;
        ensure!(status == StatusCode::OK, "{session} at {base}: {status} {reply}");
        homes.insert(session, base.clone());
    }
    for (session, home) in &homes {
        run(w, home, session, &format!("echo {session} > /tmp/kept"))?;
    }
    let all = w.good(Method::GET, "/api/v2/sandboxes?limit=100", None)?;
    let named = |session: &String| {
        let name = format!("session-{session}");
        all["sandboxes"].as_array().map_or(0, |all| all.iter().filter(|one| one["name"] == *name).count())
    };
    ensure!(homes.keys().all(|session| named(session) == 1), "not one sandbox a session: {all}");

    // Whoever reaches the wrong one is told the right one, and nothing changes.
    let (session, home) = homes.iter().find(|(_, home)| **home == second.base).context("none")?;
    let body = json!({"sessionId": session});
    for (method, path) in [
        (Method::POST, "/api/sandbox/snapshot"),
        (Method::DELETE, "/api/sandbox"),
        (Method::POST, "/api/sandbox/extend"),
    ] {
        let (status, reply) = w.call(method, path, Some(&w.key), Some(body.clone()))?;
        ensure!(status == StatusCode::MISDIRECTED_REQUEST, "{path}: {status} {reply}");
        ensure!(reply["error"].as_str().is_some_and(|error| error.contains(home.as_str())), "{reply}");
    }
    ensure!(run(w, home, session, "cat /tmp/kept")? == *session, "a refused call did something");

    // One dies while sandboxes are made on both.
    let more = new_sessions(w)?;
    let after = provision(w, &mut second, &more, true)?;
    for (session, home) in homes.iter().chain(&after) {
        if *home == w.base {
            run(w, home, session, "true")
                .with_context(|| format!("{session}, which is not the dead one's"))?;
        }
    }
    let fresh = w.new_session()?;
    w.post(&fresh)?;
    let (session, _) = homes.iter().find(|(_, home)| **home == second.base).context("none")?;
    let (status, reply) = w.call(
        Method::POST,
        "/api/sandbox",
        Some(&w.key),
        Some(json!({"repoUrl": REPO, "sessionId": session})),
    )?;
    ensure!(status == StatusCode::MISDIRECTED_REQUEST, "{status} {reply}");

    // It comes back with all that it had handed out.
    second.serve()?;
    for (session, home) in &homes {
        ensure!(run(w, home, session, "cat /tmp/kept")? == *session, "{session} at {home}");
    }
    let again = provision(w, &mut second, &more, false)?;
    ensure!(again.len() == SESSIONS, "not all sessions got a sandbox: {again:?}");
    for (session, home) in &after {
        ensure!(
            again.get(session) == Some(home),
            "{session} was on {home}, and is on {:?}",
            again.get(session)
        );
    }
    for (session, home) in homes.iter().chain(&again).chain([(&fresh, &w.base)]) {
        let path = format!("/api/sessions/{session}");
        let (status, reply) = ask(w, home, Method::DELETE, &path, None)?;
        ensure!(status == StatusCode::OK, "delete {session} at {home}: {status} {reply}");
    }
    second.finish()?;
    let left = Footprint::take(INSTANCE);
    ensure!(left == before, "the second server left something: before {before:?}, after {left:?}");
    Ok(())
}
