//! Files: what stops, resumes and copies take at 100, 10,000 and 100,000 of
//! them, beside `podman commit` and `podman run`; how fast a sandbox's disk is
//! beside the host's own; and what a thousand sandboxes of one image cache.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dormouse_control::Control;
use dormouse_provider::{
    CommandSpec, CreateSandbox, ForkSandbox, LogEvent, RunRef, SandboxKey, SandboxProvider, SnapshotRequest,
    Source, StopReason, UpdateSandbox,
};
use dormouse_types::CommandId;
use futures::StreamExt as _;

use crate::peers::{ULIMITS, podman_command, run};
use crate::timing::{ratio, show};
use crate::{Launches, create, key};

/// How many files a sandbox has.
const COUNTS: [usize; 3] = [100, 10_000, 100_000];

/// Rounds of each operation of ours, and of podman's, which take long.
const ROUNDS: (usize, usize) = (15, 3);

/// Rounds of the disk's speed, inside and on the host by turns.
const SPEED_ROUNDS: usize = 5;

/// Sandboxes that share an image.
const SHARERS: usize = 1000;

const SPEED: &str = include_str!("../files.py");

/// A script that makes files of 100 bytes.
fn make_files(count: usize) -> String {
    format!(
        "mkdir -p /data; cd /data; for d in $(seq {}); do mkdir $d; done; \
         i=0; while [ $i -lt {count} ]; do echo {} > $((i % {} + 1))/$i; i=$((i+1)); done",
        count.div_ceil(100),
        "x".repeat(99),
        count.div_ceil(100),
    )
}

/// What a command prints, as root.
pub(crate) async fn output(engine: &Control, run: &RunRef, argv: Vec<String>) -> anyhow::Result<String> {
    let spec = CommandSpec { sudo: true, ..CommandSpec::new(argv) };
    let mut events = engine.exec(run, CommandId::generate(), spec).await?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(event) = events.next().await {
        match event? {
            LogEvent::Stdout(data) => out.extend_from_slice(&data),
            LogEvent::Stderr(data) => err.extend_from_slice(&data),
            LogEvent::Exited(command) => {
                ensure!(command.exit_code == Some(0), "{}", String::from_utf8_lossy(&err));
            }
            LogEvent::Started(_) | LogEvent::Lost(_) => {}
        }
    }
    Ok(String::from_utf8(out)?)
}

pub(crate) fn script(text: impl Into<String>) -> Vec<String> {
    vec!["bash".to_owned(), "-c".to_owned(), text.into()]
}

async fn resume(engine: &Control, key: &SandboxKey) -> anyhow::Result<RunRef> {
    let resumed = engine.resume(key).await?;
    Ok(RunRef { namespace: key.namespace.clone(), id: resumed.run.id })
}

/// Times `work` and keeps the time under `name`.
async fn kept<T>(
    times: &mut BTreeMap<&'static str, Vec<Duration>>,
    name: &'static str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let done = work.await?;
    times.entry(name).or_default().push(began.elapsed());
    Ok(done)
}

/// Operations over trees of every size; `peers`: podman's too, in a directory,
/// on an image's tree.
pub(crate) async fn operations(
    engine: &Control,
    launches: &Launches,
    peers: Option<(&Path, &Path)>,
) -> anyhow::Result<()> {
    println!("{:<32} {:>5}", "operations by number of files", "files");
    if let Some((dir, root)) = peers {
        import(dir, root).await?;
    }
    for count in COUNTS {
        let mut times = BTreeMap::new();
        let own = key("files", count)?;
        let mut run = create(engine, &own).await?;
        output(engine, &run, script(make_files(count))).await?;
        for round in 0..ROUNDS.0 {
            let dirty = format!("echo {round} > /data/1/round; rm -f /data/1/x*; touch /data/1/x{round}");
            output(engine, &run, script(&dirty)).await?;
            let request = SnapshotRequest { live: true, ..SnapshotRequest::default() };
            let live =
                kept(&mut times, "snapshot, live", async { Ok(engine.snapshot(&run, request).await?) })
                    .await?;
            times.entry("  its stall").or_default().extend(live.stall);
            let (live_fork, key_of_fork) = (key("live-fork", round)?, key("fork", round)?);
            let key_of_copy = key("copy", round)?;
            let mut request = CreateSandbox::new(key_of_copy.clone());
            request.source = Some(Source::Snapshot(live.snapshot.id.clone()));
            kept(&mut times, "create from a snapshot", async { Ok(engine.create(request).await?) }).await?;
            let fork = |key: &SandboxKey, live| ForkSandbox {
                source: own.name.clone(),
                key: key.clone(),
                env: None,
                live,
                changes: UpdateSandbox::default(),
                retry_key: None,
            };
            let request = fork(&key_of_fork, false);
            kept(&mut times, "fork", async { Ok(engine.fork(request).await?) }).await?;
            let request = fork(&live_fork, true);
            kept(&mut times, "fork, live", async { Ok(engine.fork(request).await?) }).await?;
            for key in [&live_fork, &key_of_fork, &key_of_copy] {
                kept(&mut times, "delete", async { Ok(engine.delete(key, true).await?) }).await?;
            }
            output(engine, &run, script(&dirty)).await?;
            let made = engine.snapshot(&run, SnapshotRequest::default());
            kept(&mut times, "snapshot, and stop", async { Ok(made.await?) }).await?;
            launches.take();
            run = kept(&mut times, "resume", resume(engine, &own)).await?;
            times.entry("  launcher to exec").or_default().extend(launches.take());
            output(engine, &run, script(&dirty)).await?;
            kept(&mut times, "stop", async { Ok(engine.stop(&run, StopReason::Requested).await?) }).await?;
            run = kept(&mut times, "resume", resume(engine, &own)).await?;
        }
        let ours: BTreeMap<_, _> =
            times.into_iter().map(|(name, times)| (name, show(name, count, times))).collect();
        engine.delete(&own, true).await?;
        if let Some((dir, _)) = peers {
            podman(dir, count, &ours).await?;
        }
    }
    Ok(())
}

/// podman with its usual storage, for images of its own.
fn podman_overlay(dir: &Path) -> tokio::process::Command {
    podman_command(&dir.join("overlay"), "overlay")
}

async fn import(dir: &Path, root: &Path) -> anyhow::Result<()> {
    let tar = dir.join("image.tar");
    let mut packing = tokio::process::Command::new("tar");
    run(packing.arg("-C").arg(root).args(["--one-file-system", "-cf"]).arg(&tar).arg(".")).await?;
    run(podman_overlay(dir).arg("import").arg(&tar).arg("bench")).await?;
    Ok(std::fs::remove_file(tar)?)
}

async fn podman(dir: &Path, count: usize, ours: &BTreeMap<&'static str, Duration>) -> anyhow::Result<()> {
    let name = format!("bench-{count}");
    let mut command = podman_overlay(dir);
    command.args(["run", "--name", &name, "--network", "none"]).args(ULIMITS);
    run(command.arg("bench").args(script(make_files(count)))).await?;
    let mut times = BTreeMap::new();
    for round in 0..ROUNDS.1 {
        let image = format!("{name}-{round}");
        let mut commit = podman_overlay(dir);
        kept(&mut times, "podman commit", run(commit.args(["commit", "--quiet", &name, &image]))).await?;
        let mut command = podman_overlay(dir);
        command.args(["run", "--rm", "--network", "none"]).args(ULIMITS).args([&image, "true"]);
        kept(&mut times, "podman run of it", run(&mut command)).await?;
        run(podman_overlay(dir).args(["rmi", "--force", &image])).await?;
    }
    run(podman_overlay(dir).args(["rm", "--force", &name])).await?;
    for (name, mine) in [("podman commit", "snapshot, live"), ("podman run of it", "create from a snapshot")]
    {
        let theirs = show(name, count, times.remove(name).context("times")?);
        ratio("  ours to it", count, ours.get(mine).copied().unwrap_or_default(), theirs);
    }
    Ok(())
}

/// The speed of a disk inside, of the pool's file system without a sandbox, and
/// of the host's own under `dir`: the first ratio is what a sandbox adds, the
/// second is all.
pub(crate) async fn speed(engine: &Control, dir: &Path) -> anyhow::Result<()> {
    println!(
        "{:<34} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "disk, medians in ms", "inside", "pool", "host", "to pool", "to host"
    );
    let own = key("speed", 0)?;
    let sandbox = create(engine, &own).await?;
    let pool = dir.join("data/pool/bench");
    std::fs::create_dir(&pool)?;
    let mut all: [BTreeMap<String, Vec<f64>>; 3] = Default::default();
    for step in ["work", "remove"] {
        for round in 0..SPEED_ROUNDS {
            let place = format!("/var/tmp/{round}");
            let argv = ["python3", "-c", SPEED, &place, step].map(str::to_owned).to_vec();
            let mut printed = vec![output(engine, &sandbox, argv).await?];
            for outside in [&pool, dir] {
                let mut command = tokio::process::Command::new("python3");
                command.args(["-c", SPEED]).arg(outside.join(format!("speed-{round}"))).arg(step);
                let done = command.output().await?;
                ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                printed.push(String::from_utf8(done.stdout)?);
            }
            for (text, times) in printed.iter().zip(&mut all) {
                let found: BTreeMap<String, f64> = serde_json::from_str(text)?;
                for (name, seconds) in found {
                    times.entry(name).or_default().push(seconds);
                }
            }
        }
    }
    std::fs::remove_dir(&pool)?;
    for name in all[0].keys() {
        let [inside, pool, host] = [0, 1, 2].map(|place| {
            let mut times = all[place].get(name).cloned().unwrap_or_default();
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).map_or(f64::NAN, |seconds| seconds * 1000.0)
        });
        println!(
            "{name:<34} {inside:>8.1} {pool:>8.1} {host:>8.1} {:>8.2} {:>8.2}",
            inside / pool,
            inside / host
        );
    }
    engine.delete(&own, true).await?;
    Ok(())
}

/// Page cache, in MiB.
fn cached() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("Cached:")).context("Cached")?;
    Ok(line.split_whitespace().nth(1).context("Cached")?.parse::<u64>()? >> 10)
}

/// What reading the image in one sandbox caches, and in a thousand.
pub(crate) async fn page_cache(engine: &Control) -> anyhow::Result<()> {
    // What is cached of the image now would hide what reading it caches.
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    let read = || script("find /usr -xdev -type f -print0 | xargs -0 cat > /dev/null");
    let before = cached()?;
    let first = key("sharer", 0)?;
    let sandbox = create(engine, &first).await?;
    output(engine, &sandbox, read()).await?;
    let once = cached()?.saturating_sub(before);
    let mut keys = vec![first];
    for number in 1..SHARERS {
        let own = key("sharer", number)?;
        let sandbox = create(engine, &own).await?;
        // Each reads a part; every hundredth all of it.
        let part = if number % 100 == 0 {
            read()
        } else {
            script("cat /usr/lib/x86_64-linux-gnu/*.so* > /dev/null")
        };
        output(engine, &sandbox, part).await?;
        keys.push(own);
    }
    let all = cached()?.saturating_sub(before);
    println!("{:<32} {:>5} {once:>7} MiB", "page cache of the image", 1);
    println!("{:<32} {SHARERS:>5} {all:>7} MiB", "page cache of the image");
    for key in &keys {
        engine.delete(key, true).await?;
    }
    Ok(())
}
