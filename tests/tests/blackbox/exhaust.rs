//! What one sandbox uses up of the kernel, another sandbox, another account's and the
//! host still have. Each kind is taken to its end inside, as the default user and as
//! root, and then used by the others; what nobody inside may have at all is asked for
//! beside a control on the host.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::files::inside;
use crate::walls::{BOTH, SCRIPT, act, on_the_host, put_script};
use crate::world::{World, eventually};

/// Has a program inside take all of a kind and keep it; how much, and the errno
/// beyond.
pub(crate) fn exhaust(w: &World, name: &str, who: &[&str], kind: &str) -> anyhow::Result<(u64, String)> {
    let script = format!(
        "sudo rm -f /tmp/held; setsid python3 {SCRIPT} exhaust {kind} > /tmp/held 2>&1 < /dev/null & \
         for i in $(seq 400); do [ -s /tmp/held ] && break; sleep 0.1; done; cat /tmp/held"
    );
    let (code, said, err) = w.exec(name, who, &["bash", "-c", &script])?;
    ensure!(code == 0, "{kind}: {said}{err}");
    let (taken, end) = said.split_once(' ').with_context(|| format!("{kind}: {said}"))?;
    Ok((taken.parse().with_context(|| format!("{kind}: {said}"))?, end.trim().to_owned()))
}

fn let_go(w: &World, name: &str) -> anyhow::Result<()> {
    w.root_shell(
        name,
        &format!("pkill -9 -f '{SCRIPT} [e]xhaust'; ipcrm --all; rm -rf /dev/shm/files; true"),
    )?;
    // Those of a user are that user's to remove.
    w.shell(name, "ipcrm --all; true").map(drop)
}

/// What is counted for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// By user, which the host has, too.
    ByUser,
    /// By a namespace or a mount of the sandbox's own.
    InSandbox,
}
use Counted::{ByUser, InSandbox};

/// Kinds, how many of each one sandbox of 1 GiB gets at least and at most, and the errno
/// beyond. Bytes of queues are counted, so a small one may still fit. Of watches a host
/// may allow more, as the kernel sets it by the host's memory.
const KINDS: [(&str, RangeInclusive<u64>, &str, Counted); 9] = [
    ("inotify", 1024..=1024, "EMFILE", ByUser),
    ("watches", 524_288..=1_048_576, "ENOSPC", ByUser),
    ("timers", 32_000..=32_768, "EAGAIN", ByUser),
    ("queues", 1..=64, "EMFILE", ByUser),
    ("terminals", 250..=256, "ENOSPC", ByUser),
    ("segments", 128..=128, "ENOSPC", InSandbox),
    ("semaphores", 8..=8, "ENOSPC", InSandbox),
    ("messages", 32..=32, "ENOSPC", InSandbox),
    ("files", 30_000..=40_000, "ENOSPC", InSandbox),
];

pub(crate) fn accounts_of_the_kernel(w: &World) -> anyhow::Result<()> {
    let (_, one) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    // Another account's.
    let created = json!({"name": "neighbour"});
    let (status, reply) = w.call(Method::POST, "/api/v2/sandboxes", Some(&w.other_key), Some(created))?;
    ensure!(status == StatusCode::OK, "{status} {reply}");
    let as_other = |args: &[&str]| -> anyhow::Result<String> {
        let output = w.command(args).env("DORMOUSE_KEY", &w.other_key).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    put_script(w, &one)?;
    put_script(w, &other)?;
    as_other(&["sandbox", "cp", &inside("walls.py").to_string_lossy(), &format!("neighbour:{SCRIPT}")])?;
    for (who, (kind, range, errno, counted)) in BOTH.into_iter().flat_map(|who| KINDS.map(|kind| (who, kind)))
    {
        eventually(&format!("{who:?} {kind}: {range:?} to have"), Duration::from_secs(60), || {
            let (taken, end) = exhaust(w, &one, who, kind)?;
            ensure!(end == errno && taken <= *range.end(), "{who:?} {kind}: {taken}, then {end}");
            if taken >= *range.start() {
                return Ok(true);
            }
            // The kernel takes a while to take back what was held before.
            let_go(w, &one)?;
            Ok(false)
        })?;
        let same = act(w, &one, &[], &["use", kind])?;
        ensure!(same.trim() == errno || kind == "queues", "control: {kind} of the same sandbox: {same}");
        ensure!(act(w, &other, &[], &["use", kind])?.trim() == "done", "{kind} of another sandbox");
        let theirs = as_other(&["sandbox", "exec", "neighbour", "--", "python3", SCRIPT, "use", kind])?;
        ensure!(theirs.trim() == "done", "{kind} of another account: {theirs}");
        if counted == ByUser {
            ensure!(on_the_host(&["use", kind])?.trim() == "done", "{kind} of the host");
        }
        // The agent has what it needs.
        ensure!(w.ok(&one, "echo fine")? == "fine", "{kind}: a command");
        let_go(w, &one)?;
    }
    as_other(&["sandbox", "delete", "neighbour"])?;
    w.delete(&one)?;
    w.delete(&other)
}

/// What the host's `core_pattern` makes in [`core_dumps`].
const CORE_SEEN: &str = "/run/dormouse-test-core-";

/// A limit of the host that the test changes, as it was when this goes.
struct Changed {
    path: &'static str,
    before: String,
}

impl Changed {
    fn to(path: &'static str, value: &str) -> anyhow::Result<Self> {
        let mut before = std::fs::read_to_string(path)?;
        // What a test left that was interrupted.
        if before.contains(CORE_SEEN) {
            "core".clone_into(&mut before);
        }
        let changed = Self { path, before };
        std::fs::write(path, value).with_context(|| format!("write {path}"))?;
        Ok(changed)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path, self.before.trim_end());
    }
}

/// Things of which the host has one number for everybody: nobody inside has any.
pub(crate) fn what_nobody_has(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    put_script(w, &name)?;
    let _pages = Changed::to("/proc/sys/vm/nr_hugepages", "4")?;
    for (kind, errno) in
        [("aio", "ENOSYS"), ("huge_pages", "ENOMEM"), ("huge_files", "ENOSYS"), ("socket_filters", "EPERM")]
    {
        for who in BOTH {
            let said = act(w, &name, who, &["use", kind])?;
            ensure!(said.trim() == errno, "{who:?} {kind}: {said}");
        }
        ensure!(on_the_host(&["use", kind])?.trim() == "done", "control: {kind}");
    }
    w.delete(&name)
}

/// Where the host runs a program on what crashed (`core(5)`), it does not for a sandbox,
/// whatever a program there makes of its limits.
pub(crate) fn core_dumps(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let seen = PathBuf::from(format!("{CORE_SEEN}{}", w.instance));
    let _ = std::fs::remove_file(&seen);
    let pattern = format!("|/usr/bin/touch {}", seen.display());
    let _pattern = Changed::to("/proc/sys/kernel/core_pattern", &pattern)?;
    let crash = "import os, resource, signal
for size in (0, 1, resource.RLIM_INFINITY):
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (size, size))
        except ValueError:
            pass
        os.kill(os.getpid(), signal.SIGSEGV)
    print(os.WTERMSIG(os.waitpid(pid, 0)[1]))";
    for who in BOTH {
        let (code, out, err) = w.exec(&name, who, &["python3", "-c", crash])?;
        ensure!(code == 0 && out == "11\n11\n11\n", "{who:?}: {code} {out}{err}");
        ensure!(!seen.exists(), "{who:?}: a program of the host's ran for a crash inside");
    }
    // A shell's own word for it, and that of sudo, which complains where it may not.
    let (code, out, err) = w.exec(&name, &[], &["bash", "-c", "ulimit -c 0 && sudo true && ulimit -c"])?;
    ensure!((code, out.as_str(), err.as_str()) == (0, "0\n", ""), "{code} {out}{err}");
    let control = Command::new("python3").args(["-c", crash]).output()?;
    ensure!(control.status.success(), "control: {}", String::from_utf8_lossy(&control.stderr));
    eventually("control: the host's program runs", Duration::from_secs(5), || Ok(seen.exists()))?;
    std::fs::remove_file(&seen)?;
    w.delete(&name)
}

/// Entries of the host's table of neighbours, which all namespaces share.
fn neighbours() -> anyhow::Result<u64> {
    let mut all = 0;
    for table in ["arp_cache", "ndisc_cache"] {
        let text = std::fs::read_to_string(format!("/proc/net/stat/{table}"))?;
        let first = text.lines().nth(1).and_then(|line| line.split_whitespace().next()).context(table)?;
        all += u64::from_str_radix(first, 16)?;
    }
    Ok(all)
}

/// A sandbox's only neighbour is its gateway, whatever it sends to whom.
pub(crate) fn neighbours_are_few(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    put_script(w, &name)?;
    for who in BOTH {
        let before = neighbours()?;
        let said = act(w, &name, who, &["neighbours", "eth0"])?;
        act(w, &name, who, &["neighbours", "lo"])?;
        let made = neighbours()?.saturating_sub(before);
        ensure!(made < 300, "{who:?}: {made} neighbours for {said}");
        ensure!(said.contains("local=3000"), "control: {said}");
    }
    // Two programs of one sandbox still find each other by multicast.
    ensure!(act(w, &name, &[], &["group"])?.trim() == "heard heard", "multicast inside");
    // What scripts look for the gateway in has it once.
    let routes = w.ok(&name, "awk '$2 == \"00000000\"' /proc/net/route | wc -l")?;
    ensure!(routes == "1", "{routes} default routes");
    // It still reaches what it may.
    let port = "import socket; s = socket.socket(); s.settimeout(5); s.connect(('192.0.2.1', 80)); print('connected')";
    let (_, out, err) = w.exec(&name, &[], &["python3", "-c", port])?;
    ensure!(out == "connected\n" || err.contains("No route to host"), "{out}{err}");
    // The control, in a namespace that has an ordinary link.
    let script = format!(
        "ip link add eth0 type veth peer name other && ip addr add 100.64.0.1/30 dev eth0 && \
         ip link set other up && ip link set eth0 up && ip route add default via 100.64.0.2 && sleep 2 && \
         exec python3 {} neighbours eth0",
        inside("walls.py").display()
    );
    let before = neighbours()?;
    let mut control =
        Command::new("unshare").args(["--net", "sh", "-c", &script]).stdout(Stdio::piped()).spawn()?;
    let mut most = 0;
    while control.try_wait()?.is_none() {
        most = most.max(neighbours()?.saturating_sub(before));
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(control.wait()?.success() && most > 1000, "control: {most} neighbours");
    w.delete(&name)
}

/// What the host's kernel keeps for sockets of a family, in bytes.
fn buffers(family: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/sockstat")?;
    let line = text.lines().find(|line| line.starts_with(family)).context("no sockstat")?;
    let pages = line.split_whitespace().skip_while(|word| *word != "mem").nth(1).context("no mem")?;
    Ok(pages.parse::<u64>()? * 4096)
}

/// What lies in sockets is bounded, as memory of the sandbox or beside it.
pub(crate) fn buffers_of_sockets(w: &World) -> anyhow::Result<()> {
    const GIB: u64 = 1 << 30;
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    put_script(w, &name)?;
    put_script(w, &other)?;
    for (family, who) in ["TCP:", "UDP:"].into_iter().flat_map(|family| BOTH.map(|who| (family, who))) {
        let kind = if family == "TCP:" { "tcp" } else { "udp" };
        let before = buffers(family)?;
        // Whoever is out of memory ends; what counts is what was taken until then.
        let script = format!("setsid python3 {SCRIPT} fill {kind} > /tmp/held 2>&1 < /dev/null &");
        w.exec(&name, who, &["bash", "-c", &format!("sudo rm -f /tmp/held; {script}")])?;
        let mut most = 0;
        eventually("it is full", Duration::from_secs(60), || {
            most = most.max(buffers(family)?.saturating_sub(before));
            let full = w.ok(&name, "cat /tmp/held; pgrep -fc 'walls.py [f]ill'; true")?;
            Ok(full.contains("full") || full.trim() == "0")
        })?;
        ensure!(most > 16 << 20, "control: {who:?} {family} {most} bytes");
        ensure!(most < GIB, "{who:?} {family} {most} bytes, of a sandbox of 1 GiB");
        ensure!(act(w, &other, &[], &["use", kind])?.trim() == "done", "{kind} of another sandbox");
        ensure!(on_the_host(&["use", kind])?.trim() == "done", "{kind} of the host");
        if who.is_empty() {
            // A server that comes while all of it is in use.
            w.end_server("-TERM")?;
            w.serve()?;
            ensure!(w.ok(&other, "echo fine")? == "fine", "after a restart");
        }
        w.root_shell(&name, "pkill -9 -f 'walls.py [f]ill'; true")?;
        eventually(
            "it is given back",
            Duration::from_secs(20),
            || Ok(buffers(family)? < before + (8 << 20)),
        )?;
    }
    // Connections that are over take the host's memory for a minute more.
    let over = act(w, &name, &[], &["closed", "20000"])?;
    let over: u64 = over.trim().parse()?;
    ensure!((10_000..=16_384).contains(&over), "{over} of 20,000 are kept");
    w.delete(&name)?;
    w.delete(&other)
}

/// An operator who does not want programs' own filters has none.
pub(crate) fn own_filters(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    put_script(w, &name)?;
    let filters = |wanted: &str| -> anyhow::Result<()> {
        for kind in ["filters_by_seccomp", "filters_by_prctl"] {
            let said = act(w, &name, &[], &["use", kind])?;
            ensure!(said.trim() == wanted, "{kind}: {said}, not {wanted}");
        }
        Ok(())
    };
    filters("done").context("control")?;
    w.end_server("-TERM")?;
    w.serve_with(&[("DORMOUSE_SANDBOX__KERNEL__OWN_FILTERS", "false")])?;
    w.stop(&name)?;
    w.post(&session)?;
    filters("EINVAL")?;
    w.end_server("-TERM")?;
    w.serve()?;
    w.delete(&name)
}
