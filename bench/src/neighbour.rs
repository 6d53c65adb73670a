//! A noisy neighbour: what a command, a write with a sync, and the status of a
//! sandbox take in B, alone and while A does one thing as hard as it may. The floor
//! of the write is the same on the host's own disk, under the same noise.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dormouse_control::Control;
use dormouse_provider::{CommandSpec, RunRef, SandboxProvider};
use dormouse_types::CommandId;

use crate::files::{output, script};
use crate::timing::{ratio, show};
use crate::{create, key, round_trip};

/// Commands, writes and looks of each round.
const ROUND: usize = 200;

/// What A does, as its default user.
const NOISES: [(&str, &str); 12] = [
    ("fork bomb", "f() { f | f & f & }; for i in 1 2 3; do f; done; sleep 60"),
    ("memory hog", "while :; do head -c 4G /dev/zero | tail -c 3G > /dev/null; done"),
    ("eight spinning threads", "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait"),
    (
        "fsync storm",
        "for i in 1 2 3 4; do (while :; do dd if=/dev/zero of=/tmp/s$i bs=4k count=64 oflag=dsync 2>/dev/null; done) & done; wait",
    ),
    (
        "small files",
        "while :; do mkdir -p /tmp/d; for i in $(seq 2000); do echo x > /tmp/d/$i; done; sync -f /tmp; rm -rf /tmp/d; done",
    ),
    ("writes without a sync", "while :; do dd if=/dev/zero of=/tmp/w bs=1M count=1500 2>/dev/null; done"),
    ("syncs of everything", "for i in 1 2 3 4; do (while :; do echo x > /tmp/s$i; sync; done) & done; wait"),
    ("output flood", "exec cat /dev/zero"),
    (
        "connection flood",
        "python3 -c \"
import socket
while True:
    try:
        s = socket.socket(); s.settimeout(0.2); s.connect(('192.0.2.1', 80)); s.close()
    except OSError: pass\"",
    ),
    (
        "DNS flood",
        "python3 -c \"
import socket, os
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); n = 0
while True:
    n += 1; name = b'n%d' % n
    q = os.urandom(2) + b'\\x01\\x00\\x00\\x01' + bytes(6) + bytes([len(name)]) + name + b'\\x04test\\x00\\x00\\x01\\x00\\x01'
    try: s.sendto(q, ('192.0.2.53', 53))
    except OSError: pass\"",
    ),
    (
        "inotify",
        "python3 -c \"
import ctypes
c = ctypes.CDLL(None)
while True:
    fds = []
    while (fd := c.inotify_init1(0)) >= 0: fds.append(fd)
    for fd in fds: c.close(fd)\"",
    ),
    (
        "terminals",
        "python3 -c \"
import os
while True:
    fds = []
    try:
        while True: fds.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
    except OSError: pass
    for fd in fds: os.close(fd)\"",
    ),
];

/// What B noticed: medians of commands, and 99th percentiles of its writes.
struct Noticed {
    command: Duration,
    write: Duration,
}

async fn notice(engine: &Control, b: &RunRef, dir: &Path, beside: &str) -> anyhow::Result<Noticed> {
    let (mut commands, mut looks) = (Vec::new(), Vec::new());
    for _ in 0..ROUND {
        let started = Instant::now();
        round_trip(engine, b).await?;
        commands.push(started.elapsed());
        let started = Instant::now();
        engine.run(b).await?;
        looks.push(started.elapsed());
    }
    // Timed inside: a command's own time is not the disk's.
    let writes = "python3 - <<'E'
import os, time
f = os.open('/var/tmp/written', os.O_RDWR | os.O_CREAT)
for _ in range(200):
    t = time.perf_counter(); os.pwrite(f, b'x' * 4096, 0); os.fsync(f); print(time.perf_counter() - t)
E";
    let mut inside = output(engine, b, script(writes))
        .await?
        .lines()
        .map(|line| Ok(Duration::from_secs_f64(line.parse()?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(inside.len() == ROUND, "{} writes", inside.len());
    let floor = {
        let path = dir.join("floor");
        tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<Duration>> {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::File::create(&path)?;
            let block = [1; 4096];
            (0..ROUND)
                .map(|_| {
                    let started = Instant::now();
                    file.write_all_at(&block, 0)?;
                    file.sync_all()?;
                    Ok(started.elapsed())
                })
                .collect()
        })
        .await??
    };
    let command = show(&format!("command in B, {beside}"), 1, commands);
    show(&format!("write and fsync in B, {beside}"), 1, inside.clone());
    show(&format!("write and fsync on the host, {beside}"), 1, floor);
    show(&format!("status of B, {beside}"), 1, looks);
    inside.sort();
    let write = inside.get(inside.len() * 99 / 100).copied().context("no write")?;
    Ok(Noticed { command, write })
}

pub(crate) async fn measure(engine: &Arc<Control>, dir: &Path) -> anyhow::Result<()> {
    let (a, mut b) = (key("noisy", 0)?, key("quiet", 0)?);
    // Another account's.
    b.namespace = dormouse_provider::Namespace::default_of("neighbour");
    let noisy = create(engine, &a).await?;
    let quiet = create(engine, &b).await?;
    let alone = notice(engine, &quiet, dir, "alone").await?;
    for (name, noise) in NOISES {
        let id = CommandId::generate();
        engine.start(&noisy, id.clone(), CommandSpec::new(script(noise))).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let noticed = notice(engine, &quiet, dir, &format!("beside {name}")).await;
        // A is at its limits: what it does may not leave room to be told to stop.
        let _ = engine.kill(&noisy, &id, 9, true).await;
        let noticed = noticed?;
        ratio("  command: median beside / alone", 1, noticed.command, alone.command);
        ratio("  write and fsync: p99 beside / alone", 1, noticed.write, alone.write);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    engine.delete(&a, true).await?;
    engine.delete(&b, true).await?;
    Ok(())
}
