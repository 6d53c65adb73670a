//! kill -9 of the server at random moments under load. Afterwards: what was
//! acknowledged is there, one run a sandbox, and nothing that nobody owns.

use std::time::Duration;

use anyhow::ensure;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{Footprint, REPO, World, cgroups, eventually};

/// Where the random moments start; `TEST_SEED` repeats a run.
fn first_seed() -> u32 {
    let given = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| std::process::id().wrapping_mul(2_654_435_761) | 1)
}

/// Kills, unless `TEST_KILLS` says another number.
const KILLS: u32 = 100;

pub(crate) fn kill_at_any_moment(w: &World) -> anyhow::Result<()> {
    let kills = std::env::var("TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut seed = first_seed();
    eprintln!("      {kills} kills, seed {seed}");
    let sessions = (0..6).map(|_| w.new_session()).collect::<anyhow::Result<Vec<_>>>()?;
    let (kept, kept_name) = w.sandbox()?;
    for round in 0..kills {
        w.post(&kept)?;
        w.ok(&kept_name, &format!("echo {round} > /tmp/acknowledged; sync /tmp/acknowledged"))?;
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pause = Duration::from_micros(u64::from(seed % 400_000));
        w.block_on(async {
            let load =
                futures::future::join_all(sessions.iter().enumerate().map(|(n, session)| async move {
                    for turn in 0.. {
                        let body = json!({"repoUrl": REPO, "sessionId": session});
                        let (method, path) = match (n + turn) % 3 {
                            0 | 1 => (Method::POST, "/api/sandbox"),
                            _ => (Method::POST, "/api/sandbox/snapshot"),
                        };
                        // Errors are what a killed server gives.
                        if w.ask(method, path, Some(&w.key), Some(body)).await.is_err() {
                            return;
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
    let list = w.good(Method::GET, "/api/v2/sandboxes?limit=100", None)?;
    for sandbox in list["sandboxes"].as_array().into_iter().flatten() {
        w.delete(sandbox["name"].as_str().unwrap_or_default())?;
    }
    eventually("nothing is left on the host", Duration::from_secs(30), || {
        Ok(cgroups(w.instance).is_empty() && Footprint::look(w.instance).live() == (0, 0))
    })?;
    eventually("the pool has its image and nothing else", Duration::from_secs(30), || {
        Ok(entries(w, "pool/images")? == 1
            && ["pool/volumes", "pool/snapshots", "pool/scratch", "sockets"]
                .iter()
                .map(|dir| entries(w, dir))
                .sum::<anyhow::Result<usize>>()?
                == 0)
    })
}

fn entries(w: &World, dir: &str) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(w.dir.join("data").join(dir))?.count())
}
