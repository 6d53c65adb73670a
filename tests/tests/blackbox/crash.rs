//! kill -9 of the server, and power cuts, at random moments under load.
//! Afterwards: what was acknowledged is there, one run a sandbox, and nothing
//! that nobody owns.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::load::{Cut, Dice, Load, held};
use crate::world::{Footprint, REPO, World, cgroups, eventually};

/// Where the random moments start; `TEST_SEED` repeats a run.
fn first_seed() -> u32 {
    let given = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| std::process::id().wrapping_mul(2_654_435_761) | 1)
}

fn rounds(usual: u32) -> u32 {
    std::env::var("TEST_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Sandboxes that are under load in the scenarios of all operations.
const SANDBOXES: usize = 4;

/// Sessions that are posted and stopped.
pub(crate) fn kill_at_any_moment(w: &World) -> anyhow::Result<()> {
    let (kills, seed) = (rounds(30), first_seed());
    eprintln!("      {kills} kills, seed {seed}");
    let mut dice = Dice::new(seed);
    let sessions = (0..6).map(|_| w.new_session()).collect::<anyhow::Result<Vec<_>>>()?;
    let (kept, kept_name) = w.sandbox()?;
    for round in 0..kills {
        w.post(&kept)?;
        w.ok(&kept_name, &format!("echo {round} > /tmp/acknowledged; sync /tmp/acknowledged"))?;
        let pause = Duration::from_micros(u64::from(dice.below(400_000)));
        let refused = Mutex::new(Vec::new());
        let refused = &refused;
        w.block_on(async {
            let load =
                futures::future::join_all(sessions.iter().enumerate().map(|(n, session)| async move {
                    for turn in 0.. {
                        let body = json!({"repoUrl": REPO, "sessionId": session});
                        let (method, path) = match (n + turn) % 3 {
                            0 | 1 => (Method::POST, "/api/sandbox"),
                            _ => (Method::POST, "/api/sandbox/snapshot"),
                        };
                        // No connection is what a killed server gives.
                        let Ok((status, reply)) = w.ask(method, path, Some(&w.key), Some(body)).await else {
                            return;
                        };
                        if status.is_server_error() {
                            held(refused).push(format!("{path}: {status} {reply}"));
                        }
                    }
                }));
            let stop =
                w.ask(Method::POST, "/api/sandbox/snapshot", Some(&w.key), Some(json!({"sessionId": kept})));
            let kill = async {
                tokio::time::sleep(pause).await;
                w.end_server("-KILL")
            };
            let (killed, _, _) = tokio::join!(kill, load, stop);
            killed
        })?;
        ensure!(held(refused).is_empty(), "round {round}: {:?}", held(refused));
        w.serve()?;
        w.post(&kept)?;
        let read = w.ok(&kept_name, "cat /tmp/acknowledged")?;
        ensure!(read == round.to_string(), "round {round}: an acknowledged write is lost, {read:?}");
    }
    for session in sessions.iter().chain([&kept]) {
        let (status, reply) = w.call(
            Method::POST,
            "/api/sandbox",
            Some(&w.key),
            Some(json!({"repoUrl": REPO, "sessionId": session})),
        )?;
        ensure!(status == StatusCode::OK, "{status} {reply}");
        let name = format!("session-{session}");
        ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3", "{session}");
        w.good(Method::DELETE, &format!("/api/sessions/{session}"), None)?;
    }
    nothing_is_left(w)
}

/// kill -9 before every single write of a first provision, a sleep, a resume, an archive
/// and a deletion; one write later each time, until the call goes through.
pub(crate) fn kill_at_every_step(w: &World) -> anyhow::Result<()> {
    let order = w.dir.join("die");
    let path = order.to_str().context("path")?.to_owned();
    let calls: [(&str, Method, &str, serde_json::Value); 6] = [
        ("provision", Method::POST, "/api/sandbox", json!({"repoUrl": REPO})),
        ("sleep", Method::POST, "/api/sandbox/snapshot", json!({})),
        ("resume", Method::POST, "/api/sandbox", json!({"repoUrl": REPO})),
        ("archive", Method::PATCH, "/api/sessions", json!({"status": "archived"})),
        ("stop", Method::DELETE, "/api/sandbox", json!({})),
        ("delete", Method::DELETE, "/api/sessions", json!({})),
    ];
    let mut deaths = BTreeMap::new();
    for (what, method, path_of_call, body) in calls {
        for number in 1.. {
            ensure!(number < 60, "{what}: it never goes through");
            let session = w.new_session()?;
            let name = format!("session-{session}");
            if what != "provision" {
                w.post(&session)?;
                w.ok(&name, "echo kept > /tmp/kept; sync /tmp/kept")?;
            }
            if what == "resume" {
                w.good(Method::POST, "/api/sandbox/snapshot", Some(json!({"sessionId": session})))?;
            }
            w.end_server("-TERM")?;
            w.serve_with(&[("TEST_DIE_BY", &path)])?;
            std::fs::write(&order, number.to_string())?;
            let mut body = body.clone();
            let path_of_call = match what {
                "archive" | "delete" => format!("{path_of_call}/{session}"),
                _ => {
                    body["sessionId"] = json!(session);
                    path_of_call.to_owned()
                }
            };
            let answer = w.call(method.clone(), &path_of_call, Some(&w.key), Some(body));
            std::fs::remove_file(&order)?;
            w.end_server("-KILL")?;
            w.serve()?;
            let step = || format!("{what}, death before write {number}");
            if what == "archive"
                && w.good(Method::GET, &format!("/api/sessions/{session}"), None)?["session"]["status"]
                    == "archived"
            {
                eventually("it is archived", Duration::from_secs(20), || {
                    let state = w.good(Method::GET, &format!("/api/sessions/{session}"), None)?["session"]["lifecycleState"].clone();
                    Ok(state == "archived")
                })
                .with_context(step)?;
                w.good(
                    Method::PATCH,
                    &format!("/api/sessions/{session}"),
                    Some(json!({"status": "running"})),
                )?;
            }
            if what == "delete" {
                // Recorded or not: it can be said again.
                let again =
                    w.call(Method::DELETE, &format!("/api/sessions/{session}"), Some(&w.key), None)?.0;
                ensure!([StatusCode::OK, StatusCode::NOT_FOUND].contains(&again), "{}: {again}", step());
                if answer.is_ok_and(|(status, _)| status.is_success()) {
                    break;
                }
                *deaths.entry(what).or_insert(0) += 1;
                continue;
            }
            // The next request is served, with everything that was there.
            w.post(&session).with_context(step)?;
            ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3", "{}: no checkout", step());
            if what != "provision" {
                ensure!(w.ok(&name, "cat /tmp/kept")? == "kept", "{}: lost", step());
            }
            w.good(Method::DELETE, &format!("/api/sessions/{session}"), None).with_context(step)?;
            if answer.is_ok_and(|(status, _)| status.is_success()) {
                break;
            }
            *deaths.entry(what).or_insert(0) += 1;
        }
    }
    eprintln!("      deaths: {deaths:?}");
    // A test that kills nobody shows nothing.
    ensure!(deaths.len() == 6 && deaths.values().all(|count| *count >= 1), "{deaths:?}");
    nothing_is_left(w)
}

/// kill -9 under stops, snapshots, live ones, forks, rollbacks, deletions.
pub(crate) fn kill_under_all_operations(w: &World) -> anyhow::Result<()> {
    kill(w, rounds(20))
}

/// The same with rows in Postgres, which every round of the above is not worth.
pub(crate) fn kill_on_postgres(w: &World) -> anyhow::Result<()> {
    kill(w, rounds(12))
}

fn kill(w: &World, kills: u32) -> anyhow::Result<()> {
    let seed = first_seed();
    eprintln!("      {kills} kills, seed {seed}");
    let (mut dice, load) = (Dice::new(seed), Load::new(w, SANDBOXES)?);
    for round in 0..kills {
        let pause = Duration::from_millis(u64::from(200 + dice.below(600)));
        w.block_on(async {
            let kill = async {
                tokio::time::sleep(pause).await;
                w.end_server("-KILL")
            };
            tokio::join!(kill, load.run(w, seed.wrapping_add(round))).0
        })?;
        w.serve()?;
        load.check(w, Cut::Server).with_context(|| format!("round {round}"))?;
        quotas_come_to_add_up(w).with_context(|| format!("round {round}"))?;
    }
    load.was_enough()?;
    nothing_is_left(w)
}

/// The host loses power: what was not synced is gone.
pub(crate) fn power_cuts(w: &World) -> anyhow::Result<()> {
    let (cuts, seed) = (rounds(12), first_seed());
    eprintln!("      {cuts} power cuts, seed {seed}");
    let (mut dice, load) = (Dice::new(seed), Load::new(w, SANDBOXES)?);
    for round in 0..cuts {
        let pause = Duration::from_millis(u64::from(300 + dice.below(1200)));
        w.block_on(async {
            let cut = async {
                tokio::time::sleep(pause).await;
                tokio::task::block_in_place(|| w.cut_power())
            };
            tokio::join!(cut, load.run(w, seed.wrapping_add(round))).0
        })?;
        w.serve()?;
        load.check(w, Cut::Power).with_context(|| format!("round {round}"))?;
        quotas_come_to_add_up(w).with_context(|| format!("round {round}"))?;
        // Under load somebody else's work may save what a stop forgot.
        if round % 4 == 0 {
            w.block_on(load.stop_alone(w))?;
            w.cut_power()?;
            w.serve()?;
            load.check(w, Cut::Power).with_context(|| format!("after a stop alone, round {round}"))?;
        }
    }
    load.was_enough()?;
    made_a_while_ago(w)?;
    without_files(w)?;
    nothing_is_left(w)
}

/// A sandbox that was never stopped is there after a power cut, with what it
/// synced.
fn made_a_while_ago(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.ok(&name, "echo synced > /tmp/synced && sync /tmp/synced")?;
    // The server saves what was made more than five seconds ago.
    std::thread::sleep(Duration::from_secs(8));
    w.cut_power()?;
    w.serve()?;
    w.post(&session)?;
    let found = w.ok(&name, "cat /tmp/synced")?;
    ensure!(found.trim() == "synced", "{found:?}");
    w.delete(&name)
}

/// A sandbox whose files never reached the disk is gone, not an empty one: its
/// session gets another, with its repository.
fn without_files(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.ok(&name, "touch /tmp/lost")?;
    for volume in entries(w, "pool/volumes")? {
        let place = w.dir.join("data/pool/volumes").join(volume);
        let deleted = Command::new("btrfs").args(["--quiet", "subvolume", "delete"]).arg(place).status()?;
        ensure!(deleted.success());
    }
    w.cli(&["sandbox", "stop", &name])?;
    w.post(&session)?;
    w.ok(&name, "! test -e /tmp/lost && git rev-parse HEAD")?;
    w.delete(&name)
}

/// Groups are read one by one, while the server tidies up.
fn quotas_come_to_add_up(w: &World) -> anyhow::Result<()> {
    let mut last = Ok(0);
    let sums = eventually("quotas add up", Duration::from_secs(20), || {
        last = quotas_add_up(w);
        Ok(last.is_ok())
    });
    sums.with_context(|| format!("{last:?}"))
}

/// Every group of quotas holds what its members do; bytes of all.
fn quotas_add_up(w: &World) -> anyhow::Result<u64> {
    let show = Command::new("btrfs")
        .args(["qgroup", "show", "--sync", "--raw", "-p"])
        .arg(w.dir.join("data/pool"))
        .output()?;
    let text = String::from_utf8_lossy(&show.stdout);
    let (mut used, mut sums) = (BTreeMap::new(), BTreeMap::<String, u64>::new());
    for line in text.lines().skip(2) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [group, bytes, _, parent, ..] = words[..] else { continue };
        let bytes: u64 = bytes.parse()?;
        used.insert(group.to_owned(), bytes);
        *sums.entry(parent.to_owned()).or_default() += bytes;
    }
    for (group, bytes) in &used {
        if !group.starts_with("0/") {
            let sum = sums.get(group).copied().unwrap_or(0);
            let lines: Vec<_> = text.lines().filter(|line| line.contains(&**group)).collect();
            ensure!(
                sum == *bytes,
                "group {group} has {bytes} bytes, its members {sum}:\n{}",
                lines.join("\n")
            );
        }
    }
    used.get("2/1").copied().with_context(|| format!("no group of everything: {text}"))
}

/// Deletes every sandbox and snapshot. Then the pool has its image, and nothing
/// else is on disk, on the host, or in the quotas.
fn nothing_is_left(w: &World) -> anyhow::Result<()> {
    let list = |what: &str, all: &str, key: &str| -> anyhow::Result<Vec<String>> {
        let found = w.cli(&[what, "list", "--output", "json"])?.stdout;
        let found: serde_json::Value = serde_json::from_slice(&found)?;
        let all = found[all].as_array().cloned().context("no list")?.into_iter();
        let there = all.filter(|one| one["status"] != "deleted");
        Ok(there.filter_map(|one| Some(one[key].as_str()?.to_owned())).collect())
    };
    for name in list("sandbox", "sandboxes", "name")? {
        w.delete(&name)?;
    }
    for id in list("snapshot", "snapshots", "id")? {
        w.good(Method::DELETE, &format!("/api/v2/sandboxes/snapshots/{id}"), None)?;
    }
    let gone = eventually("nothing is left on the host", Duration::from_secs(30), || {
        Ok(cgroups(w.instance).is_empty() && Footprint::look(w.instance).live() == (0, 0))
    });
    gone.with_context(|| format!("{:?}", cgroups(w.instance)))?;
    let sockets = format!("/run/dormouse-{}", w.instance);
    let parts = ["pool/volumes", "pool/snapshots", "pool/scratch", &sockets];
    let left = || -> anyhow::Result<Vec<String>> {
        let names =
            parts.iter().map(|dir| Ok(entries(w, dir)?.into_iter().map(move |name| format!("{dir}/{name}"))));
        let names = names.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten();
        // Copies that wait for who starts next belong to the server.
        Ok(names.filter(|name| !name.starts_with("pool/scratch/ready-")).collect())
    };
    let tidy = eventually(
        "the pool has its image, an org snapshot, and nothing else",
        Duration::from_secs(30),
        || {
            // What sandboxes of the repository start from is to stay.
            let path = format!("/api/org-snapshots?repoUrl={REPO}");
            let org = w.good(Method::GET, &path, None)?["orgSnapshots"].as_array().map_or(0, Vec::len);
            let left = left()?;
            let snapshots = left.iter().filter(|name| name.starts_with("pool/snapshots/")).count();
            Ok(snapshots == org && left.len() == org && entries(w, "pool/images")?.len() == 1)
        },
    );
    tidy.with_context(|| format!("{:?}", left()))?;
    let image = std::fs::read_dir(w.dir.join("data/pool/images"))?.next().context("image")??;
    let image = image.metadata()?.len();
    eventually("the quotas count nothing but the image", Duration::from_secs(60), || {
        Ok(quotas_add_up(w).is_ok_and(|used| used.abs_diff(image) < 4 << 20))
    })
}

fn entries(w: &World, dir: &str) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(w.dir.join("data").join(dir))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
