//! Limits hold, and what runs into one harms itself only.

use std::time::Duration;

use anyhow::ensure;

use crate::world::{World, eventually};

pub(crate) fn processes(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    let bomb = "
import os, time
n = 0
try:
    while n < 5000:
        if os.fork() == 0: time.sleep(15); os._exit(0)
        n += 1
except BlockingIOError: pass
print(n, flush=True)
os.kill(-1, 9)";
    for who in [&[][..], &["--sudo"][..]] {
        let (_, out, err) = w.exec(&name, who, &["python3", "-c", bomb])?;
        let forked = out.trim().parse::<u32>().unwrap_or(0);
        ensure!((1000..2100).contains(&forked), "{who:?}: {out}{err}: 2,048 are allowed");
        ensure!(w.ok(&other, "echo fine")? == "fine");
        eventually("they are gone", Duration::from_secs(20), || Ok(w.shell(&name, "true")?.0 == 0))?;
    }
    w.delete(&name)?;
    w.delete(&other)
}

pub(crate) fn memory(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let fits = "python3 -c 'x=bytearray(256<<20); print(len(x)>>20)'";
    ensure!(w.ok(&name, fits)? == "256", "control");
    let (code, ..) = w.exec(
        &name,
        &[],
        &["python3", "-c", "x=bytearray(1280<<20)\nfor i in range(0,len(x),4096): x[i]=1"],
    )?;
    ensure!(code == 137, "over the limit: {code}");
    ensure!(w.ok(&name, "echo alive")? == "alive", "the agent survives");
    // What the kernel holds for a process counts too.
    let (_, other) = w.sandbox()?;
    let pipes = "
import os, fcntl
held = []
while True:
    a, b = os.pipe(); os.set_blocking(b, False); held += [a, b]
    try:
        fcntl.fcntl(b, 1031, 1 << 20)
    except OSError: pass
    try:
        while True: os.write(b, b'x' * 65536)
    except BlockingIOError: pass";
    let sockets = "
import socket
held = []
while True:
    a, b = socket.socketpair(); a.setblocking(False); held += [a, b]
    try:
        while True: a.send(b'x' * 65536)
    except BlockingIOError: pass";
    for who in [&[][..], &["--sudo"][..]] {
        for (what, script) in [("pipes", pipes), ("sockets", sockets)] {
            let (code, _, err) = w.exec(&name, who, &["python3", "-c", script])?;
            let refused = code == 1
                && (err.contains("Errno 24")
                    || err.contains("MemoryError")
                    || err.contains("Errno 12")
                    || err.contains("Errno 105"));
            ensure!(code == 137 || refused, "{who:?} {what}: {code} {err}");
            ensure!(w.ok(&name, "echo alive")? == "alive", "{what}: the agent survives");
            ensure!(w.ok(&other, "echo fine")? == "fine", "{what}: the neighbour");
        }
    }
    w.delete(&other)?;
    w.delete(&name)
}

pub(crate) fn disk(w: &World) -> anyhow::Result<()> {
    let (_, other) = w.sandbox()?;
    let free = || -> anyhow::Result<u64> {
        let df = std::process::Command::new("df")
            .args(["--block-size=1M", "--output=avail"])
            .arg(w.dir.join("data/pool"))
            .output()?;
        let text = String::from_utf8(df.stdout)?;
        Ok(text.lines().nth(1).unwrap_or_default().trim().parse()?)
    };
    for who in [&[][..], &["--sudo"][..]] {
        let (_, name) = w.sandbox()?;
        let before = free()?;
        let run = |script: &str| w.exec(&name, who, &["bash", "-c", script]);
        ensure!(run("head -c 100M /dev/urandom > /tmp/fits && sync -f /tmp")?.0 == 0, "control");
        let (code, _, err) = run("head -c 600M /dev/urandom > /tmp/big && sync -f /tmp/big")?;
        ensure!(code != 0 && (err.contains("quota") || err.contains("No space")), "{who:?}: {code} {err}");
        run("sync -f /tmp")?;
        // The limit of this world, and what the pool needs to keep it.
        let taken = before.saturating_sub(free()?);
        ensure!((90..256 + 256 / 20 + 32).contains(&taken), "{who:?}: the pool lost {taken} MiB");
        ensure!(w.shell(&other, "head -c 50M /dev/zero > /tmp/fits")?.0 == 0, "the neighbour still writes");
        w.delete(&name)?;
    }
    w.delete(&other)
}

/// The limit is on what a sandbox holds, however often it was stopped; what it
/// deleted gives its room back at once, whichever run wrote it.
pub(crate) fn disk_across_stops(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let again = |w: &World| -> anyhow::Result<()> {
        w.stop(&name)?;
        w.post(&session).map(drop)
    };
    w.ok(&name, "head -c 150M /dev/urandom > /tmp/first && sync -f /tmp/first")?;
    again(w)?;
    let write = "head -c 150M /dev/urandom > /tmp/second && sync -f /tmp/second";
    let (code, _, err) = w.shell(&name, write)?;
    ensure!(
        code != 0 && (err.contains("quota") || err.contains("No space")),
        "150 + 150 of 256: {code} {err}"
    );
    w.ok(&name, "rm /tmp/second /tmp/first; sync -f /tmp")?;
    w.ok(&name, write)?;
    again(w)?;
    ensure!(w.ok(&name, "stat -c %s /tmp/second")? == (150 << 20).to_string());
    w.delete(&name)
}

/// A tree deeper than any path is long harms nobody who has to walk it: a
/// stop, a snapshot, a fork, a deletion.
pub(crate) fn deep_trees(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let dig = "import os
os.mkdir('/tmp/deep'); os.chdir('/tmp/deep')
for _ in range(6000): os.mkdir('d'); os.chdir('d')
open('end', 'w').write('here')";
    w.ok(&name, &format!("python3 -c \"{dig}\""))?;
    w.cli(&["sandbox", "snapshot", &name])?;
    w.post(&session)?;
    let fork = format!("{name}-fork");
    w.cli(&["sandbox", "fork", &name, &fork])?;
    let look = "import os
os.chdir('/tmp/deep')
for _ in range(6000): os.chdir('d')
print(open('end').read())";
    for sandbox in [&name, &fork] {
        ensure!(w.ok(sandbox, &format!("python3 -c \"{look}\""))? == "here", "{sandbox}");
    }
    w.delete(&fork)?;
    w.delete(&name)
}
