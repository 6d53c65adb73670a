//! Commands and files through the command line and the provider API.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::World;

pub(crate) fn exit_codes(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        ensure!(w.shell(&name, script)?.0 == code, "{script}");
    }
    let (code, _, err) = w.exec(&name, &[], &["no-such-program"])?;
    ensure!(code == 127 && err.contains("no-such-program"), "{code} {err}");
    ensure!(w.exec(&name, &[], &["/etc/passwd"])?.0 == 126);
    ensure!(w.exec(&name, &["--cwd", "/nowhere"], &["true"])?.0 == 126);
    ensure!(
        w.exec(&name, &["--env", "A=b c", "--cwd", "/tmp"], &["sh", "-c", "echo $A; pwd"])?.1
            == "b c\n/tmp\n"
    );
    w.delete(&name)
}

pub(crate) fn streams(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, out, err) = w.shell(&name, "echo out; echo err >&2; printf 'no newline'")?;
    ensure!(out == "out\nno newline" && err == "err\n", "{out:?} {err:?}");
    // Often: a reader as fast as the writer is one that nothing needs to wake.
    for _ in 0..40 {
        let (_, out, _) = w.shell(&name, "head -c 5000000 /dev/zero | tr '\\0' x")?;
        ensure!(out.len() == 5_000_000, "{}", out.len());
    }
    // Input larger than any buffer on the way, to a slow reader.
    let mut child = w
        .command(&["sandbox", "exec", &name, "--interactive", "--", "sh", "-c", "sleep 0.3; wc -c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(&vec![b'x'; 3_000_000])?;
    let output = child.wait_with_output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).trim() == "3000000");
    // What stays behind in the background does not hold the command up.
    let started = Instant::now();
    ensure!(w.ok(&name, "sleep 60 & echo done")? == "done" && started.elapsed() < Duration::from_secs(30));
    w.delete(&name)
}

pub(crate) fn timeout_and_signals(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let started = Instant::now();
    let (code, ..) = w.exec(&name, &["--timeout", "300ms"], &["bash", "-c", "sleep 100; sleep 100"])?;
    ensure!(code == 137 && started.elapsed() < Duration::from_secs(30), "{code}");
    ensure!(w.ok(&name, "pgrep -c sleep || true")? == "0", "the group was not killed");

    let run = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
    let run = run["session"]["id"].as_str().context("id")?.to_owned();
    let base = format!("/api/v2/sandboxes/sessions/{run}/cmd");
    let started =
        w.good(Method::POST, &base, Some(json!({"command": "sh", "args": ["-c", "echo hi; sleep 100"]})))?;
    ensure!(started["command"]["exitCode"].is_null(), "{started}");
    let id = started["command"]["id"].as_str().context("id")?.to_owned();
    w.good(Method::POST, &format!("{base}/{id}/kill"), Some(json!({"signal": 15})))?;
    let ended = w.good(Method::GET, &format!("{base}/{id}?wait=true"), None)?;
    ensure!(ended["command"]["exitCode"] == 143, "{ended}");
    for _ in 0..2 {
        let logs = w.good(Method::GET, &format!("{base}/{id}/logs"), None)?;
        ensure!(logs["data"] == "hi\n" && logs["stream"] == "stdout", "logs replay: {logs}");
    }
    let (status, _) = w.call(Method::POST, &base, Some(&w.other_key), Some(json!({"command": "true"})))?;
    ensure!(status == StatusCode::NOT_FOUND, "another account's run: {status}");
    w.stop(&name)?;
    let (status, reply) = w.call(Method::POST, &base, Some(&w.key), Some(json!({"command": "true"})))?;
    ensure!(status == StatusCode::GONE && reply["error"]["code"] == "sandbox_stopped", "{status} {reply}");
    w.delete(&name)
}

/// What whoever started the server has set for its children reaches nobody
/// inside: signals that it ignores or blocks, limits, priority, processors, mask.
pub(crate) fn nothing_of_the_starter(w: &World) -> anyhow::Result<()> {
    const STARTER: &str = "
import os, resource, signal, sys
for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, 40):
    signal.signal(ignored, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTSTP})
gib = 1 << 30
for limit, soft in ((resource.RLIMIT_FSIZE, 64 * gib), (resource.RLIMIT_DATA, 64 * gib), (resource.RLIMIT_STACK, gib),
                    (resource.RLIMIT_CPU, 10**6), (resource.RLIMIT_MEMLOCK, 4096), (resource.RLIMIT_NPROC, 30000),
                    (resource.RLIMIT_CORE, gib), (11, 999), (12, 999)):
    resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
os.nice(5)
os.sched_setaffinity(0, {0})
os.umask(0o77)
os.execv(sys.argv[1], sys.argv[1:])";
    const LOOK: &str = "grep -E '^(Sig(Blk|Ign)|Cpus_allowed)' /proc/self/status; \
         cut -d' ' -f19 /proc/self/stat; umask; cat /proc/self/limits";
    let look = |w: &World| -> anyhow::Result<String> {
        let (_, name) = w.sandbox()?;
        let seen = w.ok(&name, LOOK)?;
        // It ends by the signals that are sent to end it. (bash itself ignores SIGQUIT.)
        for (signal, number) in [("INT", 2), ("QUIT", 3), ("HUP", 1), ("USR2", 12)] {
            let (code, ..) = w.shell(&name, &format!("sh -c 'kill -{signal} $$; sleep 1; echo lived'"))?;
            ensure!(code == 128 + number, "SIG{signal}: {code}");
        }
        w.delete(&name)?;
        Ok(seen)
    };
    let usual = look(w)?;
    ensure!(usual.contains("SigIgn:\t0000000000000000"), "{usual}");
    w.end_server("-TERM")?;
    w.serve_under(&["python3", "-c", STARTER])?;
    let found = look(w);
    w.end_server("-TERM")?;
    w.serve()?;
    let found = found?;
    ensure!(found == usual, "{found}\nand usually\n{usual}");
    Ok(())
}

pub(crate) fn files(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let local = w.dir.join("blob");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&local, &bytes)?;
    let (local, back) = (local.to_string_lossy().into_owned(), w.dir.join("back"));
    w.cli(&["sandbox", "cp", &local, &format!("{name}:/tmp/deep/er/blob")])?;
    ensure!(w.ok(&name, "stat -c %U /tmp/deep/er/blob")? == "ubuntu");
    w.cli(&["sandbox", "cp", &format!("{name}:/tmp/deep/er/blob"), &back.to_string_lossy()])?;
    ensure!(std::fs::read(&back)? == bytes, "the file came back changed");

    let run = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
    let run = run["session"]["id"].as_str().context("id")?.to_owned();
    let fs = |path: &str| format!("/api/v2/sandboxes/sessions/{run}/fs/{path}");
    let read = |path: &str| w.call(Method::POST, &fs("read"), Some(&w.key), Some(json!({"path": path})));
    ensure!(read("/tmp/none")?.0 == StatusCode::NOT_FOUND);
    ensure!(read("/etc/shadow")?.0 == StatusCode::BAD_REQUEST, "read as the default user");
    ensure!(read("/etc")?.0 == StatusCode::BAD_REQUEST);
    w.ok(&name, "mkfifo /tmp/fifo; ln -s /proc/1/root/etc/passwd /tmp/escape")?;
    ensure!(read("/tmp/fifo")?.0 == StatusCode::BAD_REQUEST);
    ensure!(read("/tmp/escape")?.0 != StatusCode::OK, "PID 1's root is closed");
    w.good(Method::POST, &fs("mkdir"), Some(json!({"path": "made"})))?;
    ensure!(w.ok(&name, "stat -c %U:%F made")? == "ubuntu:directory");
    ensure!(
        w.call(Method::POST, &fs("mkdir"), Some(&w.key), Some(json!({"path": "a/b/c"})))?.0
            == StatusCode::BAD_REQUEST
    );
    w.good(Method::POST, &fs("mkdir"), Some(json!({"path": "a/b/c", "recursive": true})))?;
    w.delete(&name)
}
