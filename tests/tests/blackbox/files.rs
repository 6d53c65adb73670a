//! Files behave as on a disk, whatever happened to their sandbox. What that
//! means stands in `inside/behaviour.py`, which runs inside.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::world::{World, binary, eventually};

const SCRIPT: &str = "/tmp/behaviour.py";

/// A file that runs inside a sandbox; `TEST_INSIDE` says where they lie on a
/// machine without this repository.
pub(crate) fn inside(name: &str) -> PathBuf {
    let given = std::env::var_os("TEST_INSIDE").map(PathBuf::from);
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("inside")).join(name)
}

/// Has the script do something and wants nothing bad; how much it looked at.
fn act(w: &World, sandbox: &str, action: &str) -> anyhow::Result<u64> {
    let out = w.ok(sandbox, &format!("python3 {SCRIPT} {action}"))?;
    let report: Value = serde_json::from_str(&out).with_context(|| out.clone())?;
    let bad: Vec<_> = report["bad"].as_array().context("bad")?.iter().filter_map(Value::as_str).collect();
    ensure!(bad.is_empty(), "{}", bad.join("\n      "));
    report["checks"].as_u64().context("checks")
}

fn check(w: &World, sandbox: &str, when: &str, action: &str) -> anyhow::Result<()> {
    let checks = act(w, sandbox, action).with_context(|| when.to_owned())?;
    ensure!(checks > 100, "{when}: only {checks} checks");
    Ok(())
}

/// Where `make` puts tools that it builds.
fn tool(name: &str) -> PathBuf {
    let tools = std::env::var_os("TEST_TOOLS");
    tools.map_or_else(|| binary("../tools/bin"), PathBuf::from).join(name)
}

/// Failures of pjdfstest that are meant: no sandbox makes device nodes, and
/// btrfs does not count the directories in a directory.
fn is_meant(name: &str) -> bool {
    name.ends_with("::block") || name.ends_with("::char") || name == "rename::updates_link_parent"
}

/// What others made to find file systems that are none: `pjdfstest` and `fsx`,
/// in the first run and in a later one.
pub(crate) fn posix(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    for (file, to) in
        [(tool("pjdfstest"), "pjdfstest"), (tool("fsx"), "fsx"), (inside("pjdfstest.toml"), "pjdfstest.toml")]
    {
        ensure!(file.is_file(), "{} is missing (make tools)", file.display());
        w.cli(&["sandbox", "cp", &file.to_string_lossy(), &format!("{name}:/var/tmp/{to}")])?;
    }
    w.ok(&name, "chmod 755 /var/tmp/pjdfstest /var/tmp/fsx; mkdir -m 777 /var/tmp/place")?;
    for run in 0..2 {
        if run > 0 {
            w.stop(&name)?;
            w.post(&session)?;
        }
        let suite = "cd /var/tmp && ./pjdfstest -c pjdfstest.toml -p place; true";
        let (_, out, err) = w.root_shell(&name, suite)?;
        let results: Vec<_> = out.lines().filter_map(|line| line.split_once(' ')).collect();
        let named =
            |word| results.iter().filter(move |(_, result)| result.trim() == word).map(|(name, _)| *name);
        let wrong: Vec<_> = named("FAILED").filter(|name| !is_meant(name)).collect();
        ensure!(wrong.is_empty(), "run {run}: {wrong:?}");
        let (failed, passed) = (named("FAILED").count(), named("ok").count());
        ensure!((86..=87).contains(&failed) && failed + passed == 381, "run {run}: {out}{err}");
        let exercise =
            format!("cd /var/tmp/place && for s in 1 2 3; do ../fsx -q -N 5000 -S {run}$s f$s; done");
        let done = w.ok(&name, &format!("set -e; {exercise} 2>&1"))?;
        ensure!(done.matches("A-OK").count() == 3, "run {run}: {done}");
    }
    w.delete(&name)
}

/// Before and after stops, kills, copies.
pub(crate) fn behaviour(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let text = |args: &[&str]| -> anyhow::Result<String> {
        Ok(String::from_utf8(w.cli(args)?.stdout)?.trim().to_owned())
    };
    if !w.dir.join("data/pool.img").exists() {
        // Its files are copies with numbers and times of their own: git looks once.
        w.ok(&name, "git status")?;
    }
    let script = inside("behaviour.py");
    w.cli(&["sandbox", "cp", &script.to_string_lossy(), &format!("{name}:{SCRIPT}")])?;
    act(w, &name, "make")?;
    check(w, &name, "before a stop", "check")?;
    for stops in 1..=25 {
        w.stop(&name)?;
        w.post(&session)?;
        match stops {
            1 | 2 | 25 => check(w, &name, &format!("after {stops} stops"), "check")?,
            _ => drop(act(w, &name, "age")?),
        }
    }

    w.end_server("-KILL")?;
    w.serve()?;
    check(w, &name, "after kill -9 of the server", "check")?;
    w.end_server("-TERM")?;
    w.cli(&["evacuate"])?;
    w.serve()?;
    w.post(&session)?;
    check(w, &name, "after the host let go of everything", "check")?;

    // A subvolume's copy has its inode numbers, a copy of file by file its own.
    let copied = if w.dir.join("data/pool.img").exists() { "check" } else { "check --copied" };
    // A session's own sandbox keeps no snapshots; a named one does.
    let copy = |kind: &str| format!("files-{kind}-{}", w.instance);
    let (live, fork, booted) = (copy("live"), copy("fork"), copy("booted"));
    w.cli(&["sandbox", "fork", "--live", &name, &live])?;
    check(w, &live, "in a live fork", copied)?;
    check(w, &name, "beside a live fork", "check")?;
    w.stop(&live)?;
    check(w, &live, "in a live fork after a stop", "check")?;

    let snapshot = text(&["sandbox", "snapshot", &live])?;
    check(w, &live, "after a snapshot", "check")?;
    w.cli(&["sandbox", "create", &booted, "--snapshot", &snapshot])?;
    check(w, &booted, "from a snapshot", copied)?;
    w.cli(&["sandbox", "fork", &live, &fork])?;
    check(w, &fork, "in a fork", copied)?;

    w.ok(&live, "echo later > /tmp/later")?;
    let of_running = text(&["sandbox", "snapshot", "--live", &live])?;
    w.ok(&live, "rm /tmp/later; touch /tmp/still-later")?;
    check(w, &live, "after a live snapshot", "check")?;
    for (id, expected) in [(&of_running, "later"), (&snapshot, "")] {
        w.stop(&live)?;
        w.cli(&["sandbox", "rollback", &live, id])?;
        let found = w.ok(&live, "cat /tmp/later 2>/dev/null; ls /tmp/still-later 2>/dev/null; true")?;
        ensure!(found == expected, "rolled back to {id}: {found:?}");
        check(w, &live, "after a rollback", copied)?;
        w.stop(&live)?;
        check(w, &live, "after a rollback and a stop", "check")?;
    }

    for sandbox in [&name, &live, &fork, &booted] {
        w.delete(sandbox)?;
    }
    let listed = text(&["snapshot", "list", "--output", "json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let ids: Vec<&str> = listed["snapshots"]
        .as_array()
        .context("snapshots")?
        .iter()
        .filter_map(|s| s["id"].as_str())
        .collect();
    for id in &ids {
        w.cli(&["snapshot", "delete", id])?;
    }
    eventually("their files are gone", Duration::from_secs(60), || {
        let there = |part: &str| fs::read_dir(w.dir.join("data/pool").join(part));
        // What repositories' sandboxes start from stays.
        let snapshots =
            there("snapshots")?.filter_map(|entry| Some(entry.ok()?.file_name())).collect::<Vec<_>>();
        Ok(there("volumes")?.count() == 0 && !snapshots.iter().any(|name| ids.iter().any(|id| name == *id)))
    })
}
