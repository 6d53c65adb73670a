//! What leaves a sandbox: attacks from inside on every policy, each with a control
//! that succeeds, against a world of the test's own ([`dormouse_tests::outside`]).

mod connections;
mod names;
mod programs;
mod requests;
mod secrets;

pub(crate) use connections::{addresses, connections, policies_change};
pub(crate) use names::{names, resolver};
pub(crate) use programs::{programs, proxied};
pub(crate) use requests::requests;
pub(crate) use secrets::{credentials, secrets};

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dormouse_tests::outside::{API, Arrived, CDN, HONEYPOT, HOST, OTHER, Outside, TRAPS};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::files::inside;
use crate::world::{SERVICE_TOKEN, World, eventually};

const SANDBOXES: &str = "/api/v2/sandboxes";

/// The outside of the world that runs now.
static NOW: Mutex<Weak<Outside>> = Mutex::new(Weak::new());

/// Starts it; it ends with the last who holds it.
pub(crate) fn start_outside() -> anyhow::Result<Arc<Outside>> {
    let dir = format!("/tmp/dormouse-test-outside-{}", std::process::id());
    let outside = Arc::new(Outside::start(dir.as_ref())?);
    *NOW.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&outside);
    Ok(outside)
}

fn outside(w: &World) -> anyhow::Result<Arc<Outside>> {
    let outside =
        NOW.lock().unwrap_or_else(PoisonError::into_inner).upgrade().context("there is no outside")?;
    outside.set_git(&std::fs::read_to_string(w.dir.join("git.url"))?)?;
    outside.requests();
    outside.questions();
    Ok(outside)
}

/// A sandbox of the provider API under a policy; its name and the id of its session.
fn make(w: &World, name: &str, policy: Value) -> anyhow::Result<String> {
    let body = json!({"name": name, "networkPolicy": policy});
    let made = w.good(Method::POST, SANDBOXES, Some(body))?;
    Ok(made["session"]["id"].as_str().context("no session id")?.to_owned())
}

fn set_policy(w: &World, run: &str, policy: Value) -> anyhow::Result<Value> {
    w.good(Method::POST, &format!("{SANDBOXES}/sessions/{run}/network-policy"), Some(policy))
}

/// What became of attempts to reach places: kind, host, port.
fn reach(w: &World, name: &str, places: &[(&str, String, u16)]) -> anyhow::Result<Vec<(String, u64)>> {
    let script = std::fs::read_to_string(inside("reach.py"))?;
    let asked = serde_json::to_string(places)?;
    let (code, out, err) = w.exec(name, &["--sudo"], &["python3", "-c", &script, &asked])?;
    ensure!(code == 0, "{code} {out}{err}");
    let found: Vec<(String, u64)> = serde_json::from_str(&out)?;
    ensure!(found.len() == places.len(), "{out}");
    Ok(found)
}

/// Each place must be refused with one of these errors, at once.
fn refused(w: &World, name: &str, places: &[(&str, String, u16)], errors: &[&str]) -> anyhow::Result<()> {
    for ((kind, host, port), (outcome, ms)) in places.iter().zip(reach(w, name, places)?) {
        ensure!(errors.contains(&outcome.as_str()), "{kind} {host}:{port}: {outcome}");
        ensure!(ms < 1000, "{kind} {host}:{port} took {ms} ms to be refused");
    }
    Ok(())
}

/// curl inside; what it printed, whatever its exit code is.
fn curl(w: &World, name: &str, args: &str) -> anyhow::Result<String> {
    let script = format!("curl --silent --show-error --max-time 10 {args} 2>&1 || echo \"exit $?\"");
    w.ok(name, &script)
}

/// The status of a request.
fn status(w: &World, name: &str, args: &str) -> anyhow::Result<String> {
    curl(w, name, &format!("--output /dev/null --write-out '%{{http_code}}' {args}"))
}

/// What the server of `sandbox` says of its network.
fn access(w: &World, name: &str) -> anyhow::Result<Value> {
    w.good(Method::GET, &format!("{SANDBOXES}/{name}/network"), None)
}

/// A program inside, run to its end: its output.
fn python(w: &World, name: &str, script: &str) -> anyhow::Result<String> {
    let (code, out, err) = w.exec(name, &[], &["python3", "-c", script])?;
    ensure!(code == 0, "{code} {out}{err}");
    Ok(out.trim().to_owned())
}
