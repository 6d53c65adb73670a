//! The host's disk is full, or breaks. Nobody is told that something was
//! written that was not, nobody else is broken, everybody is told why, and it
//! mends without a hand.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::files::inside;
use crate::world::{World, binary, eventually};

const SCRIPT: &str = "/var/tmp/fill.py";

/// A sandbox that can fill its disk.
fn filler(w: &World) -> anyhow::Result<(String, String)> {
    let (session, name) = w.sandbox()?;
    w.cli(&["sandbox", "cp", &inside("fill.py").to_string_lossy(), &format!("{name}:{SCRIPT}")])?;
    Ok((session, name))
}

/// What was acknowledged, and what the last write said.
fn fill(w: &World, name: &str, dir: &str, mib: &str) -> anyhow::Result<(String, String)> {
    let out = w.ok(name, &format!("python3 {SCRIPT} fill {dir} {mib}"))?;
    let (acknowledged, last) = out.rsplit_once('\n').unwrap_or(("", &out));
    Ok((format!("{acknowledged}\n"), last.to_owned()))
}

/// Everything that was acknowledged is there.
fn verify(w: &World, name: &str, dir: &str, acknowledged: &str) -> anyhow::Result<()> {
    let script = format!("python3 {SCRIPT} verify {dir}");
    let args = ["sandbox", "exec", "--interactive", name, "--", "bash", "-c", &script];
    let mut child = w.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(acknowledged.trim().as_bytes())?;
    let output = child.wait_with_output()?;
    let wrong = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && wrong.trim().is_empty(), "{dir} of {name}: {}", wrong.trim());
    Ok(())
}

fn health(w: &World) -> anyhow::Result<(StatusCode, Value)> {
    w.call(Method::GET, "/healthz", None, None)
}

fn until_well(w: &World) -> anyhow::Result<()> {
    eventually("all is well", Duration::from_secs(60), || Ok(health(w)?.1["status"] == "ok"))
}

fn doctor(w: &World) -> anyhow::Result<String> {
    Ok(String::from_utf8(w.command(&["doctor"]).stdin(Stdio::null()).output()?.stdout)?)
}

/// Both ways to a new sandbox are closed, with the reason.
fn nothing_new(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    let posts = [
        ("/api/sandbox", json!({"repoUrl": crate::world::REPO, "sessionId": session})),
        ("/api/v2/sandboxes", json!({})),
    ];
    for (path, body) in posts {
        let (status, reply) = w.call(Method::POST, path, Some(&w.key), Some(body))?;
        let text = reply.to_string();
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{path}: {status} {text}");
        ensure!(text.contains("disk") || text.contains("storage"), "{path}: {text}");
        ensure!(!text.contains(&*w.dir.to_string_lossy()), "{path} tells where: {text}");
    }
    Ok(())
}

/// Reads work, and a write works or says that there is no room.
fn only_lacks_room(w: &World, name: &str) -> anyhow::Result<()> {
    let look = "cat /tmp/small && { head -c 1M /dev/urandom > /tmp/more && sync -f /tmp/more; } 2>&1; true";
    let out = w.ok(name, look)?;
    let rest = out.strip_prefix("small").with_context(|| format!("{name}: {out:?}"))?;
    let fine = rest.is_empty() || rest.contains("No space left") || rest.contains("Disk quota exceeded");
    ensure!(fine, "{name}: {rest:?}");
    Ok(())
}

/// One sandbox may have more than there is, and takes it.
pub(crate) fn one_fills_the_disk(w: &World) -> anyhow::Result<()> {
    let (quiet_session, quiet) = filler(w)?;
    let (kept, last) = fill(w, &quiet, "/tmp/kept", "64")?;
    ensure!(last == "done", "{last}");
    w.ok(&quiet, "echo small > /tmp/small")?;
    w.stop(&quiet)?;
    let (_, neighbour) = w.sandbox()?;
    w.ok(&neighbour, "echo small > /tmp/small; sync -f /tmp/small")?;
    let (hog_session, hog) = filler(w)?;
    w.ok(&hog, "echo small > /tmp/small; sync -f /tmp/small")?;

    let (acknowledged, last) = fill(w, &hog, "/tmp/hog", "")?;
    ensure!(last == "ENOSPC" || last == "EDQUOT", "the writer gets {last}");
    ensure!(acknowledged.lines().count() > 40, "it had room for more: {acknowledged}");

    for killed in [false, true] {
        if killed {
            w.end_server("-KILL")?;
            // Less than is used, as where the file system itself took more than
            // its part: the server comes back to a pool that refuses every write.
            let pool = w.dir.join("data/pool");
            let limited = Command::new("btrfs").args(["qgroup", "limit", "1M", "2/1"]).arg(pool).status()?;
            ensure!(limited.success(), "btrfs qgroup limit");
            w.serve()?;
        }
        eventually("health says so", Duration::from_secs(10), || {
            let (status, found) = health(w)?;
            let storage = &found["checks"]["storage"];
            let says =
                storage["detail"].as_str().is_some_and(|detail| detail.contains("are left for sandboxes"));
            Ok(status == StatusCode::OK && storage["status"] == "degraded" && says)
        })?;
        let found = doctor(w)?;
        ensure!(found.contains("are left for sandboxes"), "doctor: {found}");
        nothing_new(w)?;
        only_lacks_room(w, &neighbour)?;
        only_lacks_room(w, &hog)?;
        verify(w, &hog, "/tmp/hog", &acknowledged)?;
        // Who sleeps wakes, and falls asleep again.
        w.post(&quiet_session)?;
        only_lacks_room(w, &quiet)?;
        verify(w, &quiet, "/tmp/kept", &kept)?;
        w.stop(&quiet)?;
        w.stop(&hog)?;
        w.post(&hog_session)?;
        verify(w, &hog, "/tmp/hog", &acknowledged)?;
    }
    // Files deleted inside make room too.
    w.ok(&hog, "rm /tmp/hog/1? && sync -f /tmp")?;
    eventually("there is room again", Duration::from_secs(60), || {
        Ok(w.shell(&neighbour, "head -c 50M /dev/urandom > /tmp/more && sync -f /tmp/more")?.0 == 0)
    })?;
    let (_, last) = fill(w, &hog, "/tmp/again", "")?;
    ensure!(last == "ENOSPC" || last == "EDQUOT", "the writer gets {last}");

    w.delete(&hog)?;
    eventually("doctor finds nothing", Duration::from_secs(20), || {
        Ok(doctor(w)?.contains("nothing is wrong with it"))
    })?;
    until_well(w)?;
    let (_, new) = w.sandbox()?;
    for name in [&new, &neighbour] {
        w.ok(name, "head -c 300M /dev/urandom > /tmp/more && sync -f /tmp/more")?;
    }
    w.post(&quiet_session)?;
    verify(w, &quiet, "/tmp/kept", &kept)?;
    ensure!(!w.log().contains("pool is broken"), "the pool broke");
    for name in [&new, &neighbour, &quiet] {
        w.delete(name)?;
    }
    Ok(())
}

/// Something else on the host's disk.
struct Ballast(PathBuf);

impl Ballast {
    /// Takes every free byte.
    fn load(w: &World) -> anyhow::Result<Self> {
        let path = w.dir.join("data/ballast");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let ballast = Self(path);
        for part in [4 << 20, 4096] {
            let bytes = vec![1; part];
            loop {
                match file.write_all(&bytes).and_then(|()| file.sync_data()) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(ballast)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

/// Something else takes the rest of the host's disk: the pool has what it
/// promised, and the database its reserve.
pub(crate) fn others_fill_the_disk(w: &World) -> anyhow::Result<()> {
    let (session, name) = filler(w)?;
    let (_, other) = w.sandbox()?;
    let (asleep_session, asleep) = w.sandbox()?;
    w.ok(&asleep, "echo small > /tmp/small")?;
    w.stop(&asleep)?;
    w.ok(&name, "echo small > /tmp/small")?;
    let ballast = Ballast::load(w)?;
    eventually("health says so", Duration::from_secs(10), || {
        Ok(health(w)?.1["checks"]["disk"]["status"] == "degraded")
    })?;
    // What the pool has reserved is there, on a disk without a free byte.
    let (acknowledged, last) = fill(w, &name, "/tmp/some", "256")?;
    ensure!(last == "done", "{last}");
    for _ in 0..20 {
        w.stop(&name)?;
        w.post(&session)?;
    }
    verify(w, &name, "/tmp/some", &acknowledged)?;
    // One more runs than before.
    w.post(&asleep_session)?;
    ensure!(w.ok(&asleep, "cat /tmp/small")? == "small");
    for _ in 0..200 {
        w.new_session()?;
    }
    w.delete(&other)?;
    w.end_server("-KILL")?;
    w.serve()?;
    w.post(&session)?;
    verify(w, &name, "/tmp/some", &acknowledged)?;

    drop(ballast);
    until_well(w)?;
    w.post(&session)?;
    verify(w, &name, "/tmp/some", &acknowledged)?;
    let (_, new) = w.sandbox()?;
    for name in [&new, &asleep, &name] {
        w.delete(name)?;
    }
    Ok(())
}

/// A server that cannot look at its pool knows nothing of it: sandboxes go on.
pub(crate) fn a_look_fails(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let started = "cut -d' ' -f22 /proc/1/stat";
    let before = w.ok(&name, started)?;
    let pid = w.server_pid()?.to_string();
    let prlimit = |args: &[&str]| -> anyhow::Result<String> {
        let done = Command::new("prlimit").args(["--pid", &pid]).args(args).output()?;
        ensure!(done.status.success(), "prlimit {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    };
    let hard = prlimit(&["--nofile", "--output=HARD", "--noheadings", "--raw"])?;
    prlimit(&["--nofile=3:"])?;
    // Eight looks.
    std::thread::sleep(Duration::from_secs(2));
    prlimit(&[&format!("--nofile={hard}:")])?;
    // Or somebody moves the image, whose file system goes on.
    let (image, away) = (w.dir.join("data/pool.img"), w.dir.join("data/pool.away"));
    fs::rename(&image, &away)?;
    std::thread::sleep(Duration::from_secs(2));
    fs::rename(&away, &image)?;
    until_well(w)?;
    ensure!(w.log().contains("look at the storage pool"), "no look failed");
    ensure!(w.ok(&name, started)? == before, "the sandbox was ended");
    w.delete(&name)
}

/// What a deleted sandbox had is free once nobody holds it, also where somebody
/// did for longer than it took to delete it, and nobody writes.
pub(crate) fn somebody_holds_a_file(w: &World) -> anyhow::Result<()> {
    let free = || -> anyhow::Result<u64> {
        let df = ["--block-size=1M", "--output=avail"];
        let output = Command::new("df").args(df).arg(w.dir.join("data/pool")).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().nth(1).context("df")?.trim().parse()?)
    };
    let (_, name) = filler(w)?;
    let (_, last) = fill(w, &name, "/tmp/kept", "512")?;
    ensure!(last == "done", "{last}");
    let volumes = w.dir.join("data/pool/volumes");
    let volume = fs::read_dir(&volumes)?.next().context("no volume")??.path();
    let held = fs::File::open(volume.join("u").join(&SCRIPT[1..]))?;
    w.delete(&name)?;
    eventually("the volume is deleted", Duration::from_secs(10), || Ok(!volume.try_exists()?))?;
    // Everything that the deletion began is over.
    std::thread::sleep(Duration::from_secs(3));
    let before = free()?;
    drop(held);
    // The kernel itself looks twice a minute.
    eventually("its room is free", Duration::from_secs(8), || Ok(free()? > before + 400))
}

/// Gives what the file system in the pool's image believes to be free back to
/// the host: what a discard did, before the pool refused them.
fn punch(w: &World) -> anyhow::Result<()> {
    let script = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR)
at, size, holes = 0, os.fstat(fd).st_size, 0
while at < size:
    try: data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError: data = size
    if data > at:
        # Never written: reserved, and empty.
        done = libc.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(data - at))
        assert done == 0, os.strerror(ctypes.get_errno())
        holes += data - at
    if data >= size: break
    at = os.lseek(fd, data, os.SEEK_HOLE)
print(holes >> 20)";
    let output = Command::new("python3").args(["-c", script]).arg(w.dir.join("data/pool.img")).output()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "punch: {words}");
    let mib: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
    ensure!(mib > 200, "only {mib} MiB were free");
    Ok(())
}

/// Does something while the server stands still.
fn paused<T>(w: &World, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let pid = w.server_pid()?.to_string();
    let signal = |signal: &str| Command::new("kill").args([signal, &pid]).status();
    signal("-STOP")?;
    let done = act();
    signal("-CONT")?;
    done
}

/// Two sandboxes with files that were acknowledged, one of them asleep.
struct Pair {
    awake: [String; 3],
    asleep: [String; 3],
}

impl Pair {
    fn make(w: &World) -> anyhow::Result<Self> {
        let one = || -> anyhow::Result<[String; 3]> {
            let (session, name) = filler(w)?;
            let (acknowledged, last) = fill(w, &name, "/tmp/kept", "64")?;
            ensure!(last == "done", "{last}");
            Ok([session, name, acknowledged])
        };
        let pair = Self { awake: one()?, asleep: one()? };
        w.stop(&pair.asleep[1])?;
        Ok(pair)
    }

    /// Both come back with everything and work, without a hand.
    fn check(&self, w: &World) -> anyhow::Result<()> {
        until_well(w)?;
        for [session, name, acknowledged] in [&self.awake, &self.asleep] {
            w.post(session)?;
            verify(w, name, "/tmp/kept", acknowledged)?;
            w.ok(name, "rm -rf /tmp/more; echo works > /tmp/works && sync -f /tmp/works")?;
        }
        w.stop(&self.asleep[1])
    }

    fn delete(&self, w: &World) -> anyhow::Result<()> {
        w.delete(&self.awake[1])?;
        w.delete(&self.asleep[1])
    }
}

/// The pool's file system takes no writes any more: noticed, said, mended.
pub(crate) fn the_pool_takes_no_writes(w: &World) -> anyhow::Result<()> {
    let pair = Pair::make(w)?;
    // The kernel refuses it while files are open for writing.
    w.stop(&pair.awake[1])?;
    for signal in ["-TERM", "-KILL"] {
        let known = w.log().matches("pool is broken").count();
        let pool = w.dir.join("data/pool");
        if signal == "-KILL" {
            w.end_server(signal)?;
        }
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&pool).status()?;
        ensure!(status.success(), "remount");
        if signal == "-KILL" {
            w.serve()?;
        }
        eventually("it is noticed", Duration::from_secs(10), || {
            Ok(w.log().matches("pool is broken").count() > known)
        })?;
        pair.check(w)?;
        w.stop(&pair.awake[1])?;
    }
    pair.delete(w)
}

/// The pool's image does not hold what it promised, and the disk is full.
pub(crate) fn the_pool_has_holes(w: &World) -> anyhow::Result<()> {
    let pair = Pair::make(w)?;
    for killed in [false, true] {
        let broken = w.log().matches("pool is broken").count();
        // Else the server has them filled at once.
        let ballast = paused(w, || {
            punch(w)?;
            Ballast::load(w)
        })?;
        eventually("health says that it has holes", Duration::from_secs(10), || {
            Ok(health(w)?.1["checks"]["storage"]["detail"]
                .as_str()
                .is_some_and(|text| text.contains("holes")))
        })?;
        // More than fits: bytes of files, and then their names.
        let writes = format!(
            "python3 {SCRIPT} fill /tmp/more; while sync -f /tmp; do mkdir -p /tmp/more/$RANDOM/$RANDOM/{{1..200}}; done"
        );
        let mut hog = Command::new(binary("dormouse"))
            .args(["sandbox", "exec", &pair.awake[1], "--", "bash", "-c", &writes])
            .envs([("DORMOUSE_SERVER", w.base.as_str()), ("DORMOUSE_KEY", &w.key)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        eventually("health says that it does not work", Duration::from_secs(60), || {
            let (status, found) = health(w)?;
            Ok(status == StatusCode::SERVICE_UNAVAILABLE && found["checks"]["storage"]["status"] == "failing")
        })?;
        hog.wait()?;
        ensure!(w.log().matches("pool is broken").count() > broken, "the log says nothing");
        nothing_new(w)?;
        let (status, reply) = w.call(
            Method::POST,
            "/api/sandbox",
            Some(&w.key),
            Some(json!({"repoUrl": crate::world::REPO, "sessionId": pair.asleep[0]})),
        )?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "wake on a broken pool: {status} {reply}");
        if killed {
            w.end_server("-KILL")?;
            w.serve()?;
            ensure!(health(w)?.0 == StatusCode::SERVICE_UNAVAILABLE, "it started as if all were well");
        }
        drop(ballast);
        pair.check(w)?;
    }
    pair.delete(w)
}
