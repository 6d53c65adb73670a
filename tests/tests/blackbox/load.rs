//! Sandboxes under every operation that there is, and what has to be found in
//! them whenever the server, or the host, dies in the middle.
//!
//! Each writes a number that only grows and notes which ones may be found: the
//! last one that was acknowledged to be kept, and what it has begun since.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{REPO, World};

/// Bytes that go with each number.
const DATA: usize = 200_000;

const SANDBOXES: &str = "/api/v2/sandboxes";

/// A generator of numbers that a seed repeats (Numerical Recipes' constants).
pub(crate) struct Dice(u32);

impl Dice {
    pub(crate) fn new(seed: u32) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, sides: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % sides
    }
}

/// How the server's life was cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its process was killed: sandboxes live on.
    Server,
    /// The host lost power: what nobody synced is gone.
    Power,
}

/// One sandbox, and everything that was made of it.
#[derive(Default)]
struct Known {
    /// Numbers that may be found in it; empty before it was acknowledged.
    numbers: Vec<u64>,
    /// A write was cut off, which removes the data of the number before first.
    torn: bool,
    /// Whether a host that loses power may not forget it any more.
    lasts: bool,
    /// Snapshots that were acknowledged, and the number in each.
    snapshots: BTreeMap<String, u64>,
    /// Forks, and the number in each.
    forks: BTreeMap<String, u64>,
    /// Forks whose deletion was begun.
    doomed: Vec<String>,
}

impl Known {
    /// It was acknowledged that this number is kept.
    fn keep(&mut self, number: u64) {
        (self.numbers, self.lasts) = (vec![number], true);
    }
}

pub(crate) struct Load {
    sandboxes: Vec<(String, Mutex<Known>)>,
    next: Mutex<u64>,
    /// How often each operation was acknowledged.
    done: Mutex<BTreeMap<&'static str, u32>>,
    /// Answers of a server that lived.
    refusals: Mutex<Vec<String>>,
}

impl Load {
    /// Half of them belong to sessions: those make no snapshot when they stop.
    pub(crate) fn new(w: &World, count: usize) -> anyhow::Result<Self> {
        let sandboxes = (0..count).map(|n| {
            let session = w.new_session()?;
            let name = if n % 2 == 0 { format!("load-{n}") } else { format!("session-{session}") };
            Ok((name, Mutex::default()))
        });
        let sandboxes = sandboxes.collect::<anyhow::Result<_>>()?;
        Ok(Self { sandboxes, next: Mutex::new(1), done: Mutex::default(), refusals: Mutex::default() })
    }

    fn number(&self) -> u64 {
        let mut next = held(&self.next);
        *next += 1;
        *next
    }

    fn count(&self, operation: &'static str) {
        *held(&self.done).entry(operation).or_default() += 1;
    }

    /// Every operation was under way more than once.
    pub(crate) fn was_enough(&self) -> anyhow::Result<()> {
        let done = held(&self.done);
        eprintln!("      {done:?}");
        let wanted = ["stop", "snapshot", "live snapshot", "fork", "rollback", "delete", "delete snapshot"];
        for operation in wanted {
            ensure!(done.get(operation).is_some_and(|count| *count > 1), "too few of {operation}: {done:?}");
        }
        Ok(())
    }

    /// Works until the server is gone.
    pub(crate) async fn run(&self, w: &World, seed: u32) {
        let workers = self.sandboxes.iter().enumerate().map(|(n, (name, known))| async move {
            let mut dice = Dice::new(seed.wrapping_add(n as u32 * 7919));
            loop {
                if let Err(error) = self.step(w, name, known, &mut dice).await {
                    // No connection is what a killed server gives.
                    if !error.is::<reqwest::Error>() {
                        held(&self.refusals).push(format!("{name}: {error:#}"));
                    }
                    return;
                }
            }
        });
        futures::future::join_all(workers).await;
    }

    /// One stop, and nothing else that would have the pool written: whoever
    /// cuts the power now finds what the stop itself made last.
    pub(crate) async fn stop_alone(&self, w: &World) -> anyhow::Result<()> {
        let (name, known) = self.sandboxes.last().context("sandboxes")?;
        let (run, number) = self.write(w, name, known).await?;
        ask(w, Method::POST, format!("{SANDBOXES}/sessions/{run}/stop"), json!({})).await?;
        held(known).keep(number);
        self.count("stop alone");
        Ok(())
    }

    /// Has a sandbox run and writes its next number; the run, and the number.
    async fn write(&self, w: &World, name: &str, known: &Mutex<Known>) -> anyhow::Result<(String, u64)> {
        let post = |path: String, body: Value| ask(w, Method::POST, path, body);
        if held(known).numbers.is_empty() {
            let (path, body) = match name.strip_prefix("session-") {
                Some(session) => ("/api/sandbox", json!({"repoUrl": REPO, "sessionId": session})),
                None => (SANDBOXES, json!({"name": name})),
            };
            let (status, reply) = w.ask(Method::POST, path, Some(&w.key), Some(body)).await?;
            ensure!(status == StatusCode::OK || reply.to_string().contains("exists"), "{status} {reply}");
            held(known).numbers = vec![0];
        }
        let awake = ask(w, Method::GET, format!("{SANDBOXES}/{name}?resume=true"), Value::Null).await?;
        let run = awake["session"]["id"].as_str().context("session")?.to_owned();
        let number = self.number();
        held(known).numbers.push(number);
        // Data first, in a file that no heuristic of a file system writes early.
        let script = format!(
            "rm -f /tmp/data.*; yes {number} | head -c {DATA} > /tmp/data.{number} && \
             echo {number} > /tmp/new && mv /tmp/new /tmp/number"
        );
        let command = json!({"command": "sh", "args": ["-c", script], "wait": true});
        let done = post(format!("{SANDBOXES}/sessions/{run}/cmd"), command).await?;
        ensure!(done.as_str().is_some_and(|lines| lines.contains("\"exitCode\":0")), "{done}");
        held(known).torn = false;
        Ok((run, number))
    }

    async fn step(&self, w: &World, name: &str, known: &Mutex<Known>, dice: &mut Dice) -> anyhow::Result<()> {
        let post = |path: String, body: Value| ask(w, Method::POST, path, body);
        let (run, number) = self.write(w, name, known).await?;
        let keep = |number| held(known).keep(number);
        match dice.below(8) {
            0 | 1 => {
                post(format!("{SANDBOXES}/sessions/{run}/stop"), json!({})).await?;
                keep(number);
                self.count("stop");
            }
            kind @ (2 | 3) => {
                let body = if kind == 2 { json!({"__live": true}) } else { json!({}) };
                let made = post(format!("{SANDBOXES}/sessions/{run}/snapshot"), body).await?;
                let id = made["snapshot"]["id"].as_str().context("snapshot")?.to_owned();
                keep(number);
                held(known).snapshots.insert(id, number);
                self.count(if kind == 2 { "live snapshot" } else { "snapshot" });
            }
            4 => {
                let fork = format!("{name}-{number}");
                post(format!("{SANDBOXES}/{name}/fork"), json!({"name": fork, "__live": true})).await?;
                held(known).forks.insert(fork, number);
                self.count("fork");
            }
            5 => {
                let chosen = held(known).snapshots.iter().next_back().map(|(id, n)| (id.clone(), *n));
                if let Some((id, old)) = chosen {
                    post(format!("{SANDBOXES}/sessions/{run}/stop"), json!({})).await?;
                    keep(number);
                    held(known).numbers.push(old);
                    let change = json!({"currentSnapshotId": id});
                    ask(w, Method::PATCH, format!("{SANDBOXES}/{name}"), change).await?;
                    keep(old);
                    self.count("rollback");
                }
            }
            6 => {
                let fork = held(known).forks.keys().next().cloned();
                if let Some(fork) = fork {
                    held(known).doomed.push(fork.clone());
                    ask(w, Method::DELETE, format!("{SANDBOXES}/{fork}"), Value::Null).await?;
                    held(known).forks.remove(&fork);
                    self.count("delete");
                }
            }
            _ => {
                let id = held(known).snapshots.keys().next().cloned();
                if let Some(id) = id.filter(|_| dice.below(2) == 0) {
                    held(known).snapshots.remove(&id);
                    ask(w, Method::DELETE, format!("{SANDBOXES}/snapshots/{id}"), Value::Null).await?;
                    self.count("delete snapshot");
                }
            }
        }
        Ok(())
    }

    /// Everything that has to be there is, and nothing else is in it.
    pub(crate) fn check(&self, w: &World, cut: Cut) -> anyhow::Result<()> {
        let refusals = held(&self.refusals);
        ensure!(refusals.is_empty(), "refused: {refusals:?}");
        for (name, known) in &self.sandboxes {
            let mut known = held(known);
            if known.numbers.is_empty() {
                continue;
            }
            let path = format!("{SANDBOXES}/{name}?resume=true");
            let (status, reply) = w.call(Method::GET, &path, Some(&w.key), None)?;
            if status == StatusCode::NOT_FOUND && cut == Cut::Power && !known.lasts {
                *known = Known::default();
                continue;
            }
            ensure!(status == StatusCode::OK, "{name}: {status} {reply}");
            let found = number_in(w, name)?;
            let may_be = known.numbers.contains(&found);
            ensure!(may_be, "{name} has {found}, not one of {:?}", known.numbers);
            known.torn |= known.numbers != [found];
            if !known.torn {
                has_data(w, name, found)?;
            }
            known.numbers = vec![found];

            for (id, number) in known.snapshots.clone() {
                let copy = format!("{name}-look");
                let body = json!({"name": copy, "source": {"type": "snapshot", "snapshotId": id}});
                let (status, reply) = w.call(Method::POST, SANDBOXES, Some(&w.key), Some(body))?;
                ensure!(status == StatusCode::OK, "snapshot {id} of {name}: {status} {reply}");
                let found = number_in(w, &copy)?;
                ensure!(found == number, "snapshot {id} of {name} has {found}, not {number}");
                has_data(w, &copy, number)?;
                w.delete(&copy)?;
            }
            for (fork, number) in known.forks.clone() {
                let path = format!("{SANDBOXES}/{fork}?resume=true");
                let (status, reply) = w.call(Method::GET, &path, Some(&w.key), None)?;
                let may_be_gone = known.doomed.contains(&fork);
                if status == StatusCode::NOT_FOUND && may_be_gone {
                    known.forks.remove(&fork);
                    continue;
                }
                ensure!(status == StatusCode::OK, "{fork}: {status} {reply}");
                let found = number_in(w, &fork)?;
                ensure!(found == number, "{fork} has {found}, not {number}");
                has_data(w, &fork, number)?;
            }
            known.doomed.clear();
            // Few enough to look at after every cut.
            while known.forks.len() > 3 {
                let (fork, _) = known.forks.pop_first().context("forks")?;
                w.delete(&fork)?;
            }
            while known.snapshots.len() > 4 {
                let (id, _) = known.snapshots.pop_first().context("snapshots")?;
                w.good(Method::DELETE, &format!("{SANDBOXES}/snapshots/{id}"), None)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn held<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(w: &World, method: Method, path: String, body: Value) -> anyhow::Result<Value> {
    let body = (!body.is_null()).then_some(body);
    let (status, reply) = w.ask(method.clone(), &path, Some(&w.key), body).await?;
    if status != StatusCode::OK {
        bail!("{method} {path}: {status} {reply}");
    }
    Ok(reply)
}

/// The number in a sandbox; 0 where it never wrote one.
fn number_in(w: &World, name: &str) -> anyhow::Result<u64> {
    let text = w.ok(name, "cat /tmp/number 2>/dev/null || echo 0")?;
    text.parse().with_context(|| format!("{name}: {text:?}"))
}

/// The bytes that go with a number are in a sandbox.
fn has_data(w: &World, name: &str, number: u64) -> anyhow::Result<()> {
    if number > 0 {
        let compare = format!("yes {number} | head -c {DATA} | cmp - /tmp/data.{number} 2>&1; true");
        let found = w.ok(name, &compare)?;
        ensure!(found.is_empty(), "{name}: {found}");
    }
    Ok(())
}
