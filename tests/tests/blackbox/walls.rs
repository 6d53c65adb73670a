//! Nothing inside changes what the kernel or the agent does for others, and the
//! host lets nobody have more than there is. Each is tried as the default user and as
//! root, beside a control that shows that the attack did something. What is used up
//! and not there for others any more is in [`crate::exhaust`].

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::files::inside;
use crate::world::{World, cgroups, eventually};

pub(crate) const SCRIPT: &str = "/var/tmp/walls.py";

pub(crate) fn put_script(w: &World, name: &str) -> anyhow::Result<()> {
    w.cli(&["sandbox", "cp", &inside("walls.py").to_string_lossy(), &format!("{name}:{SCRIPT}")]).map(drop)
}

/// The script inside, as who is asked for; what it printed.
pub(crate) fn act(w: &World, name: &str, who: &[&str], args: &[&str]) -> anyhow::Result<String> {
    let command: Vec<&str> = ["python3", SCRIPT].iter().chain(args).copied().collect();
    let (code, out, err) = w.exec(name, who, &command)?;
    ensure!(code == 0, "{who:?} {args:?}: {code} {out}{err}");
    Ok(out)
}

/// The script on the host itself.
pub(crate) fn on_the_host(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("python3").arg(inside("walls.py")).args(args).output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The default user, and root.
pub(crate) const BOTH: [&[&str]; 2] = [&[], &["--sudo"]];

/// Files outside of processes that may be opened for writing, by root as by
/// everybody.
const WRITABLE: [&str; 6] =
    ["/dev/full", "/dev/null", "/dev/pts/ptmx", "/dev/random", "/dev/urandom", "/dev/zero"];

/// Files of its own process that one may write to, and nobody else notices
/// (`proc(5)`).
const OF_A_PROCESS: [&str; 16] = [
    "autogroup",
    "clear_refs",
    "comm",
    "coredump_filter",
    "gid_map",
    "latency",
    "loginuid",
    "mem",
    "oom_adj",
    "oom_score_adj",
    "projid_map",
    "sched",
    "setgroups",
    "timens_offsets",
    "timerslack_ns",
    "uid_map",
];

pub(crate) fn writable_files(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    put_script(w, &name)?;
    for who in BOTH {
        let out = act(w, &name, who, &["writable"])?;
        let (own, shared): (Vec<&str>, Vec<&str>) =
            out.lines().partition(|path| path.starts_with("/proc/self/"));
        ensure!(shared == WRITABLE, "{who:?}: {shared:?} can be written to");
        let known = |path: &&&str| {
            let file = path.trim_start_matches("/proc/self/");
            OF_A_PROCESS.contains(&file) || file.starts_with("attr/")
        };
        let unknown: Vec<_> = own.iter().filter(|path| !known(path)).collect();
        ensure!(unknown.is_empty(), "{who:?}: {unknown:?} can be written to");
        ensure!(own.contains(&"/proc/self/comm"), "control: {out}");
        // What takes the host's kernel longest to take back.
        let trigger = "echo some 100000 2000000 > /proc/pressure/cpu";
        let (code, _, err) = w.exec(&name, who, &["bash", "-c", trigger])?;
        ensure!(code != 0, "{who:?}: a trigger on the host's pressure: {err}");
    }
    let host = on_the_host(&["writable"])?;
    ensure!(host.lines().count() > 100, "control: a host's root writes to {host}");
    w.delete(&name)
}

/// What `docs/system-calls.md` says of each number.
fn documented() -> BTreeMap<u32, String> {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/system-calls.md"));
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (number, _name, answer) = (cells.next()?.parse().ok()?, cells.next()?, cells.next()?);
        Some((number, answer.to_owned()))
    };
    page.lines().filter_map(row).collect()
}

/// Calls that the kernel itself refuses with -1 everywhere: `setgroups(2)` without
/// the capability, `futex(2)` for an unknown operation, memory policies without
/// NUMA, shadow stacks without the hardware.
const OF_THE_KERNEL: [u32; 7] = [116, 202, 237, 238, 239, 450, 453];

/// Calls that the kernel lets pass by every filter, since tracers put them into
/// programs (`uretprobe`, `uprobe`). Made by anything else, they do nothing.
const PASSING: [(u32, &str); 2] = [(335, "SIGILL"), (336, "ENXIO")];

pub(crate) fn every_call(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    put_script(w, &name)?;
    let documented = documented();
    ensure!(documented.len() > 370, "only {} calls are documented", documented.len());
    let newest = documented.keys().max().context("no calls")? + 40;
    // Of x32 some: its own, and those that it shares.
    let x32 = [0, 1, 57, 59, 165, 512, 520, 547].map(|number| 0x4000_0000 | number);
    let asked: Vec<String> = (0..=newest).chain(x32).map(|number: u32| number.to_string()).collect();
    let args: Vec<&str> = std::iter::once("calls").chain(asked.iter().map(String::as_str)).collect();
    for who in BOTH {
        let out = act(w, &name, who, &args)?;
        let (mut seen, mut wrong) = (0, Vec::new());
        for line in out.lines() {
            let (number, answer) = line.split_once(' ').context("a line without an answer")?;
            let number: u32 = number.parse()?;
            let wanted = documented.get(&number).map_or("ENOSYS", String::as_str);
            let right = match wanted {
                "EPERM" | "ENOSYS" => answer == wanted || PASSING.contains(&(number, answer)),
                "allowed" => !matches!(answer, "EPERM" | "ENOSYS") || OF_THE_KERNEL.contains(&number),
                // By its arguments: all -1 are every flag, no family, no request, the question.
                _ => matches!(
                    (number, answer),
                    (56 | 272, "EPERM")
                        | (41 | 53, "EAFNOSUPPORT")
                        | (16 | 54, "EBADF")
                        | (135, "done")
                        | (9, "ENOMEM")
                        | (157 | 317, "EINVAL")
                        | (160 | 302, "EFAULT")
                        | (319, "ENOSYS")
                ),
            };
            if !right {
                wrong.push(format!("{number} says {answer}, not {wanted}"));
            }
            seen += 1;
        }
        ensure!(wrong.is_empty(), "{who:?}: {wrong:?}");
        ensure!(seen == asked.len(), "{who:?}: {seen} of {} answers", asked.len());
        ensure!(act(w, &name, who, &["int80"])?.trim() == "SIGSYS", "{who:?}: int 0x80");
    }
    // The control: without the filter an unprivileged process gets to the kernel.
    let refused: Vec<&str> = args[1..]
        .iter()
        .copied()
        .filter(|number| documented.get(&number.parse().unwrap_or(0)).is_some_and(|a| a == "EPERM"))
        .collect();
    let script = std::fs::read_to_string(inside("walls.py"))?;
    let control = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", &script])
        .arg("calls")
        .args(&refused)
        .output()?;
    ensure!(control.status.success(), "control: {}", String::from_utf8_lossy(&control.stderr));
    let out = String::from_utf8(control.stdout)?;
    let other = out.lines().filter(|line| !line.ends_with("EPERM")).count();
    ensure!(other > refused.len() / 2, "control: only {other} of {} are anything else: {out}", refused.len());
    w.delete(&name)
}

/// Limits of PID 1 are its own, and what it reads of the sandbox does not hold it
/// up, now and after the next start.
pub(crate) fn the_agent_goes_on(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    // Of PID 1, and of one's own child.
    let limit = "
import resource, subprocess
for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
    try:
        resource.prlimit(1, what, (1, 1))
        print('PID 1 is limited:', what)
    except PermissionError:
        pass
child = subprocess.Popen(['sleep', '9'])
resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (9, 9))
print('control')
child.kill()";
    let (code, out, err) = w.exec(&name, &["--sudo"], &["python3", "-c", limit])?;
    ensure!(code == 0 && out == "control\n", "{code} {out}{err}");
    ensure!(w.ok(&name, "echo fine")? == "fine");

    // Nobody writes into them, so who opens one and waits, waits for ever.
    let replaced = "for f in passwd group hosts resolv.conf machine-id profile.d/dormouse.sh gitconfig; do \
                    rm -f /etc/$f; mkfifo /etc/$f; done; rm -rf /tmp/pipe; mkfifo /tmp/pipe";
    w.root_shell(&name, replaced)?;
    for again in [false, true] {
        if again {
            w.stop(&name)?;
            w.post(&session)?;
        }
        let (code, out, err) = w.exec(&name, &["--timeout", "9s"], &["echo", "fine"])?;
        ensure!((code, out.as_str()) == (0, "fine\n"), "{again}: {code} {out}{err}");
        let path = format!("/api/v2/sandboxes/sessions/{}/fs/read", w.run(&name)?);
        let (status, reply) =
            w.call(Method::POST, &path, Some(&w.key), Some(json!({"path": "/tmp/pipe"})))?;
        ensure!(status.is_client_error(), "a pipe is read: {status} {reply}");
        put_script(w, &name)?;
    }
    w.delete(&name)
}

/// Memory that no process has to hold is bounded, and a small program that holds
/// much goes before the agent does.
pub(crate) fn memory_of_nobody(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    put_script(w, &name)?;
    let started = "cut -d' ' -f22 /proc/1/stat";
    let before = w.ok(&name, started)?;
    let path = format!("/api/v2/sandboxes/sessions/{}/cmd", w.run(&name)?);
    act(w, &name, &[], &["hold", "/tmp/hold"])?;
    let body = json!({"command": "/tmp/hold", "cwd": "/", "env": {}});
    let command = w.good(Method::POST, &path, Some(body))?;
    let id = command["command"]["id"].as_str().context("no command")?;
    let ended = w.good(Method::GET, &format!("{path}/{id}?wait=true"), None)?;
    ensure!(ended["command"]["exitCode"] == 137 && ended["command"]["__oom"] == true, "{ended}");
    ensure!(w.ok(&name, started)? == before, "PID 1 is another one");

    // What outlives its maker, and every file system in memory, full.
    for kind in ["semaphores", "full_messages", "files"] {
        let (_, end) = crate::exhaust::exhaust(w, &name, &[], kind)?;
        ensure!(end == "ENOSPC", "{kind}: {end}");
    }
    w.ok(&name, "rm -rf /dev/shm/files/*[0-4]; true")?;
    let (taken, end) = crate::exhaust::exhaust(w, &name, &[], "segments")?;
    ensure!(end == "ENOSPC" && taken == 128, "{taken} segments of 1 MiB, then {end}");
    ensure!(act(w, &name, &[], &["touch"])?.trim() == "128");
    let fill = "head -c 4G /dev/zero > /dev/shm/full; sudo sh -c 'head -c 4G /dev/zero > /run/full'; true";
    w.ok(&name, fill)?;
    for _ in 0..20 {
        ensure!(w.ok(&name, "echo fine")? == "fine");
    }
    ensure!(w.ok(&name, started)? == before, "PID 1 is another one");
    // Who goes first: commands, then the agent, and the server after all of them.
    let adjustment = |script: &str| -> anyhow::Result<i32> { Ok(w.ok(&name, script)?.parse()?) };
    let own = adjustment("cat /proc/self/oom_score_adj")?;
    let agent = adjustment("cat /proc/1/oom_score_adj")?;
    let of_server = |file: &str| -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", w.server_pid()?))?)
    };
    let server: i32 = of_server("oom_score_adj")?.trim().parse()?;
    ensure!(own > agent && agent >= server, "{own}, {agent}, {server}");
    let status = of_server("status")?;
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("CapEff")?;
    const SYS_RESOURCE: u64 = 1 << 24;
    // Without it nobody may lower it; the virtual machine has it.
    if u64::from_str_radix(capabilities.trim(), 16)? & SYS_RESOURCE != 0 {
        ensure!(server <= -900, "the server would be ended like anybody: {server}");
    }

    // Who makes itself as dear as the agent ends its own run, and is told why.
    let (_, rash) = w.sandbox()?;
    let run = w.run(&rash)?;
    put_script(w, &rash)?;
    act(w, &rash, &[], &["hold", "/tmp/hold"])?;
    w.shell(&rash, "echo 0 > /proc/self/oom_score_adj; exec /tmp/hold")?;
    let path = format!("/api/v2/sandboxes/sessions/{run}");
    eventually("the run is over", Duration::from_secs(20), || {
        Ok(w.good(Method::GET, &path, None)?["session"]["status"] == "stopped")
    })?;
    let ended = w.good(Method::GET, &path, None)?.to_string();
    ensure!(ended.contains("ran out of memory"), "{ended}");
    ensure!(w.ok(&name, "echo fine")? == "fine", "the neighbour");
    w.delete(&rash)?;
    w.delete(&name)
}

/// A program of the host's that joins the processes of a sandbox and takes the
/// kernel a minute to end: each of these triggers costs it milliseconds that no
/// signal interrupts (`Documentation/accounting/psi.rst`).
const SLOW_TO_DIE: &str = "
import os, time
held = []
for _ in range(10000):
    held.append(os.open('/proc/pressure/cpu', os.O_RDWR | os.O_NONBLOCK))
    os.write(held[-1], b'some 100000 2000000\\0')
print('ready', flush=True)
time.sleep(600)";

/// A run whose PID 1 lives is not over: it keeps its place, says why, no other one
/// begins, and `evacuate` says so. It ends when the kernel lets it, and the sandbox
/// starts again with what it had.
pub(crate) fn a_run_that_does_not_end(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.ok(&name, "echo kept > /tmp/kept; sync -f /tmp")?;
    let run = w.run(&name)?;
    let agent = crate::world::cgroup_file(w.instance, &run, "pids", "cgroup.procs")?;
    let agent = agent.lines().next().context("no process")?.to_owned();
    let mut slow = Command::new("nsenter")
        .args(["--target", &agent, "--pid", "--", "python3", "-c", SLOW_TO_DIE])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(slow.stdout.take().context("stdout")?).read_line(&mut said)?;
    ensure!(said == "ready\n", "{said}");

    let stop = format!("/api/v2/sandboxes/sessions/{run}/stop");
    let (status, reply) = w.call(Method::POST, &stop, Some(&w.key), None)?;
    ensure!(status == StatusCode::UNPROCESSABLE_ENTITY, "{status} {reply}");
    ensure!(reply["error"]["code"] == "sandbox_stopping", "{reply}");
    let shown = || -> anyhow::Result<(String, String)> {
        let found = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
        let session = &found["session"];
        Ok((session["status"].as_str().unwrap_or_default().to_owned(), session.to_string()))
    };
    let (state, all) = shown()?;
    ensure!(state == "stopping" && all.contains("does not end"), "{all}");
    ensure!(cgroups(w.instance).contains(&run), "its place was given away");
    let body = json!({"repoUrl": crate::world::REPO, "sessionId": session});
    let (status, reply) = w.call(Method::POST, "/api/sandbox", Some(&w.key), Some(body))?;
    ensure!(!status.is_success(), "a second run: {status} {reply}");
    ensure!(w.shell(&name, "true")?.0 != 0, "a command in a run that is stopping");

    // A server that comes after a crash sees it as it is.
    w.end_server("-KILL")?;
    let evacuated = w.command(&["evacuate"]).stdin(Stdio::null()).output()?;
    let words = String::from_utf8_lossy(&evacuated.stderr).into_owned();
    ensure!(!evacuated.status.success() && words.contains(&name), "evacuate: {words}");
    w.serve()?;
    ensure!(w.run(&name)? == run && shown()?.0 == "stopping", "{:?}", shown()?);
    eventually("it is over", Duration::from_secs(300), || Ok(shown()?.0 == "stopped"))?;
    slow.wait()?;
    w.post(&session)?;
    ensure!(w.ok(&name, "cat /tmp/kept")? == "kept", "what it wrote");
    w.delete(&name)
}

/// What a session is told of its branch is read, not asked of a program that the
/// sandbox may have replaced; and nobody waits behind who does.
pub(crate) fn a_replaced_shell(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let control = w.post(&session)?;
    ensure!(control["currentBranch"] == "main", "control: {control}");
    let waits = "rm /bin/sh; printf '#!/bin/bash\nexec sleep 600\n' > /bin/sh; chmod 755 /bin/sh";
    let (code, out, err) = w.root_shell(&name, waits)?;
    ensure!(code == 0, "{out}{err}");
    ensure!(w.exec(&name, &["--timeout", "2s"], &["sh", "-c", "true"])?.0 != 0, "control: sh still works");
    let bring_up = || {
        let body = json!({"repoUrl": crate::world::REPO, "sessionId": session});
        let post = w.ask(Method::POST, "/api/sandbox", Some(&w.key), Some(body));
        w.block_on(async { tokio::time::timeout(Duration::from_secs(30), post).await })
    };
    w.stop(&name)?;
    let (status, reply) = bring_up().context("the branch is asked of sh")??;
    ensure!(status == StatusCode::OK && reply["currentBranch"] == "main", "{status} {reply}");

    // No name of a branch has 50 MB, and what is no commit's id is none.
    w.ok(&name, "head -c 50M /dev/zero | tr '\\0' a > .git/HEAD")?;
    w.stop(&name)?;
    let (status, reply) = bring_up().context("a large HEAD")??;
    ensure!(status == StatusCode::OK && reply["currentBranch"] == "", "{status} {reply}");

    // Who looks waits for the script now, for a while; who deletes does not wait for them.
    w.ok(&name, "rm .git/HEAD")?;
    w.stop(&name)?;
    let posting = w
        .http
        .post(format!("{}/api/sandbox", w.base))
        .header("x-api-key", &w.key)
        .json(&json!({"repoUrl": crate::world::REPO, "sessionId": session}))
        .timeout(Duration::from_secs(30));
    let posting = w.spawn(async move { posting.send().await });
    eventually("it runs", Duration::from_secs(10), || {
        let found = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
        Ok(found["session"]["status"] == "running")
    })?;
    w.delete(&name)?;
    let answer = w.block_on(posting)?.context("a POST whose sandbox was deleted")?;
    ensure!(answer.status() != StatusCode::INTERNAL_SERVER_ERROR, "{}", answer.status());
    Ok(())
}

/// A sandbox that could never be asked for again is not made; a request with two
/// hosts is none.
pub(crate) fn names_and_hosts(w: &World) -> anyhow::Result<()> {
    for name in ["sessions", "snapshots", "drives"] {
        let body = json!({"name": name});
        let (status, reply) = w.call(Method::POST, "/api/v2/sandboxes", Some(&w.key), Some(body))?;
        ensure!(
            status == StatusCode::BAD_REQUEST && reply.to_string().contains(name),
            "{name}: {status} {reply}"
        );
    }
    let address = w.base.trim_start_matches("http://");
    let answer = |hosts: &[&str]| -> anyhow::Result<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address)?;
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        write!(stream, "GET /healthz HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ensure!(answer(&[address])?.starts_with("HTTP/1.1 200"), "control");
    let two = answer(&[address, "other.test"])?;
    ensure!(two.starts_with("HTTP/1.1 400"), "{two}");
    Ok(())
}

/// An archive that says that a name has 900 MB costs the helper that reads it, and
/// its sender is told so.
pub(crate) fn a_name_without_end(w: &World) -> anyhow::Result<()> {
    use std::io::Write as _;
    let (_, name) = w.sandbox()?;
    let before = w.ok(&name, "cut -d' ' -f22 /proc/1/stat")?;
    let size = 900_u64 << 20;
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink")?;
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut archive = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    archive.write_all(header.as_bytes())?;
    for _ in 0..size >> 20 {
        archive.write_all(&[b'a'; 1 << 20])?;
    }
    let body = archive.finish()?;
    let request = w
        .http
        .post(format!("{}/api/v2/sandboxes/sessions/{}/fs/write", w.base, w.run(&name)?))
        .header("x-api-key", &w.key)
        .header("content-type", "application/gzip")
        .body(body);
    let (status, text) = w.block_on(async {
        let answer = request.send().await?;
        anyhow::Ok((answer.status(), answer.text().await?))
    })?;
    ensure!(status.is_client_error() && !text.contains("stopped"), "{status} {text}");
    ensure!(w.ok(&name, "cut -d' ' -f22 /proc/1/stat")? == before, "PID 1 is another one");
    w.delete(&name)
}

/// Programs that size themselves find the sandbox's limits, not the host's: where
/// they look for those of a machine, and in their cgroup, which they only read.
pub(crate) fn limits_are_seen(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    let limit = 1024_u64 << 20;
    let total = |name: &str| -> anyhow::Result<u64> {
        Ok(w.ok(name, "awk '/^MemTotal/ {print $2}' /proc/meminfo")?.parse()?)
    };
    ensure!(total(&name)? == limit >> 10, "MemTotal is {} kB", total(&name)?);
    let host = std::fs::read_to_string("/proc/meminfo")?;
    ensure!(!host.contains(&format!("{:>8} kB", limit >> 10)), "control: the host has as much");
    let free = w.ok(&name, "free -b | awk '/^Mem/ {print $2}'")?;
    ensure!(free.parse::<u64>()? == limit, "free(1) says {free}");
    ensure!(w.ok(&name, "grep -c ^processor /proc/cpuinfo")?.parse::<u32>()? <= 2);
    let found = w.ok(
        &name,
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true",
    )?;
    ensure!(found == limit.to_string(), "the cgroup's limit is {found}");
    let node = w.ok(&name, "node -p 'process.constrainedMemory()'")?;
    ensure!(node.parse::<u64>()? == limit, "node takes {node}");
    for who in BOTH {
        let write = "for f in $(find /sys/fs/cgroup -type f); do (echo 1 > $f) 2>/dev/null && echo $f; done; \
                     (mkdir /sys/fs/cgroup/new /sys/fs/cgroup/*/new) 2>/dev/null && echo made; true";
        let (_, out, err) = w.exec(&name, who, &["bash", "-c", write])?;
        ensure!(out.is_empty(), "{who:?} writes to {out}{err}");
    }
    // Nothing of another run, nor of the host.
    let procs =
        w.ok(&name, "cat /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/cgroup.procs 2>/dev/null; true")?;
    ensure!(procs.lines().any(|pid| pid == "1") && !procs.lines().any(|pid| pid == "0"), "{procs}");
    ensure!(w.ok(&name, "find /sys/fs/cgroup -name 'dormouse*' -o -name 'run_*'")?.is_empty());
    let boot = |name: &str| w.ok(name, "cat /proc/sys/kernel/random/boot_id");
    let (own, others) = (boot(&name)?, boot(&other)?);
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure!(own.len() == 36 && own != others && own != host.trim(), "{own} {others} {host}");
    ensure!(boot(&name)? == own, "it changes while it runs");
    w.delete(&name)?;
    w.delete(&other)
}

/// An account gets what it may have, and is told which quota ends it; another
/// account notices nothing.
pub(crate) fn quotas(w: &World) -> anyhow::Result<()> {
    let account = w.id(&["account", "create", "Small", "--email", "small@example.test"])?;
    let key = w.text(&["key", "create", "--account", &account])?;
    let quota = |kind: &str| format!("DORMOUSE_QUOTAS__OWNERS__{account}__{kind}");
    let (running, commands, snapshots) = (quota("RUNNING"), quota("COMMANDS"), quota("SNAPSHOTS"));
    w.end_server("-TERM")?;
    w.serve_with(&[(&running, "2"), (&commands, "2"), (&snapshots, "1")])?;
    let outcome = in_quotas(w, &account, &key);
    w.end_server("-TERM")?;
    w.serve()?;
    outcome
}

fn in_quotas(w: &World, account: &str, key: &str) -> anyhow::Result<()> {
    const SANDBOXES: &str = "/api/v2/sandboxes";
    let call = |method: Method, path: &str, body: Option<Value>| {
        w.call(method, &format!("{SANDBOXES}{path}"), Some(key), body)
    };
    let good = |method: Method, path: &str, body: Option<Value>| -> anyhow::Result<Value> {
        let (status, reply) = call(method, path, body)?;
        ensure!(status.is_success(), "{path}: {status} {reply}");
        Ok(reply)
    };
    let refused = |what: &str, found: (StatusCode, Value), status: StatusCode| -> anyhow::Result<()> {
        let (found, reply) = found;
        let text = reply.to_string();
        ensure!(found == status && text.contains(&format!("quota {what}")), "{what}: {found} {text}");
        Ok(())
    };
    // Ten at once: two places.
    let posts =
        (0..10).map(|n| w.ask(Method::POST, SANDBOXES, Some(key), Some(json!({"name": format!("many{n}")}))));
    let answers = w.block_on(futures::future::join_all(posts));
    let mut names = Vec::new();
    for (n, answer) in answers.into_iter().enumerate() {
        match answer? {
            (StatusCode::OK, _) => names.push(format!("many{n}")),
            other => refused("running", other, StatusCode::TOO_MANY_REQUESTS)?,
        }
    }
    ensure!(names.len() == 2, "{names:?} came up");
    let session = w.id(&["session", "create", "--account", account])?;
    let body = json!({"repoUrl": crate::world::REPO, "sessionId": session});
    let posted = w.call(Method::POST, "/api/sandbox", Some(key), Some(body))?;
    refused("running", posted, StatusCode::TOO_MANY_REQUESTS)?;
    // Another account's.
    let (_, theirs) = w.sandbox()?;
    w.delete(&theirs)?;
    // A place that is given back is another's, and who comes back needs one.
    let (first, second) = (&names[0], &names[1]);
    let run = |name: &str| -> anyhow::Result<String> {
        let found = good(Method::GET, &format!("/{name}"), None)?;
        Ok(found["session"]["id"].as_str().context("no session")?.to_owned())
    };
    good(Method::POST, &format!("/sessions/{}/stop", run(first)?), None)?;
    good(Method::POST, "", Some(json!({"name": "third"})))?;
    let resume = format!("/{first}?resume=true");
    refused("running", call(Method::GET, &resume, None)?, StatusCode::TOO_MANY_REQUESTS)?;
    good(Method::DELETE, "/third", None)?;
    good(Method::GET, &resume, None)?;

    // Commands of all sandboxes together.
    let sleep = |name: &str| -> anyhow::Result<(StatusCode, Value)> {
        let body = json!({"command": "sleep", "args": ["60"], "cwd": "/", "env": {}});
        call(Method::POST, &format!("/sessions/{}/cmd", run(name)?), Some(body))
    };
    let sleeping = sleep(first)?;
    ensure!(sleeping.0 == StatusCode::OK && sleep(second)?.0 == StatusCode::OK, "{sleeping:?}");
    refused("commands", sleep(second)?, StatusCode::TOO_MANY_REQUESTS)?;
    let id = sleeping.1["command"]["id"].as_str().context("no command")?.to_owned();
    let kill = format!("/sessions/{}/cmd/{id}/kill", run(first)?);
    good(Method::POST, &kill, Some(json!({"signal": 9})))?;
    eventually("one that ended counts no more", Duration::from_secs(5), || {
        Ok(sleep(first)?.0 == StatusCode::OK)
    })?;

    let snapshot = |name: &str| -> anyhow::Result<(StatusCode, Value)> {
        call(Method::POST, &format!("/sessions/{}/snapshot", run(name)?), Some(json!({"__live": true})))
    };
    let made = snapshot(first)?;
    ensure!(made.0.is_success(), "{made:?}");
    refused("snapshots", snapshot(first)?, StatusCode::FORBIDDEN)?;
    good(Method::DELETE, &format!("/{first}"), None)?;
    good(Method::DELETE, &format!("/{second}"), None).map(drop)
}

/// Many more at once than the host has memory for: each is served or refused in
/// words, and the host goes on.
pub(crate) fn more_than_fits(w: &World) -> anyhow::Result<()> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("meminfo")?;
    let available: u64 = available.trim().trim_end_matches(" kB").parse()?;
    // Room for some dozen.
    let keep = ((available >> 10) - 600).to_string();
    w.end_server("-TERM")?;
    w.serve_with(&[
        ("DORMOUSE_SANDBOX__KEEP_MEMORY_MIB", &keep),
        ("DORMOUSE_API__RATE", "100000"),
        ("DORMOUSE_API__BURST", "100000"),
    ])?;
    let posts = (0..500).map(|n| {
        let body = json!({"name": format!("fit{n}"), "persistent": false});
        w.ask(Method::POST, "/api/v2/sandboxes", Some(&w.key), Some(body))
    });
    let answers = w.block_on(futures::future::join_all(posts));
    let (mut made, mut refused) = (Vec::new(), 0);
    for (n, answer) in answers.into_iter().enumerate() {
        match answer? {
            (StatusCode::OK, _) => made.push(format!("fit{n}")),
            (StatusCode::SERVICE_UNAVAILABLE, reply) => {
                ensure!(reply.to_string().contains("memory"), "{reply}");
                refused += 1;
            }
            (status, reply) => anyhow::bail!("fit{n}: {status} {reply}"),
        }
    }
    ensure!(!made.is_empty() && refused > 100, "{} made, {refused} refused", made.len());
    ensure!(w.call(Method::GET, "/healthz", None, None)?.0 == StatusCode::OK);
    for name in &made {
        ensure!(w.shell(name, "true")?.0 == 0 || w.run(name).is_err(), "{name}");
        w.delete(name)?;
    }
    w.end_server("-TERM")?;
    w.serve()?;
    let (_, name) = w.sandbox()?;
    w.delete(&name)
}

/// With lxcfs a sandbox sees what it uses of its limits; where that has died, the
/// limits alone, and it starts all the same.
pub(crate) fn lxcfs(w: &World) -> anyhow::Result<()> {
    // Where everybody may walk to, as to that of Debian's package.
    let place = std::path::PathBuf::from(format!("/run/dormouse-test-lxcfs-{}", w.instance));
    std::fs::create_dir_all(&place)?;
    let log = std::fs::File::create(w.dir.join("lxcfs.log"))?;
    let mut lxcfs = Command::new("lxcfs")
        .args(["--foreground", "--pidfile"])
        .arg(w.dir.join("lxcfs.pid"))
        .arg(&place)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start lxcfs (Debian's package)")?;
    let outcome = with_lxcfs(w, &place, &mut lxcfs);
    let _ = lxcfs.kill();
    let _ = lxcfs.wait();
    // A file system whose program was killed stays until it is unmounted.
    Command::new("umount").args(["--lazy"]).arg(&place).stderr(Stdio::null()).status()?;
    std::fs::remove_dir(&place)?;
    w.end_server("-TERM")?;
    w.serve()?;
    outcome
}

fn with_lxcfs(w: &World, place: &std::path::Path, lxcfs: &mut std::process::Child) -> anyhow::Result<()> {
    eventually("lxcfs answers", Duration::from_secs(10), || Ok(place.join("proc/meminfo").exists()))?;
    w.end_server("-TERM")?;
    w.serve_with(&[("DORMOUSE_SANDBOX__LXCFS", &place.to_string_lossy())])?;
    let (_, name) = w.sandbox()?;
    let kib = |name: &str, what: &str| -> anyhow::Result<u64> {
        Ok(w.ok(name, &format!("awk '/^{what}/ {{print $2}}' /proc/meminfo"))?.parse()?)
    };
    ensure!(kib(&name, "MemTotal:")? == 1 << 20, "{} kB", kib(&name, "MemTotal:")?);
    let before = kib(&name, "MemFree:")?;
    w.ok(&name, "head -c 200M /dev/zero > /dev/shm/held")?;
    let after = kib(&name, "MemFree:")?;
    ensure!(after + (150 << 10) < before, "free: {before} kB, then {after}");
    w.ok(&name, "rm /dev/shm/held")?;
    let uptime: f64 = w.ok(&name, "cut -d' ' -f1 /proc/uptime")?.parse()?;
    ensure!(uptime < 120.0, "it is up for {uptime} s, as its host is");
    let (code, _, err) = w.root_shell(&name, "echo 1 > /proc/uptime")?;
    ensure!(code != 0, "{err}");

    lxcfs.kill()?;
    lxcfs.wait()?;
    let (_, other) = w.sandbox()?;
    ensure!(kib(&other, "MemTotal:")? == 1 << 20, "without lxcfs");
    w.delete(&other)?;
    w.delete(&name)
}

/// What root inside leaves on the disk is no program of root's on the host, and what
/// it leaves running ends with the run.
pub(crate) fn what_root_leaves(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let leave = "cp /bin/sh /var/left && chmod 4755 /var/left && \
                 for i in 1 2 3; do setsid bash -c '(sleep 718.25 &) &' ; done; sleep 0.5; pgrep -fc 'sleep 718[.]25'";
    let (code, out, err) = w.root_shell(&name, leave)?;
    ensure!(code == 0 && out.trim().parse::<u32>()? >= 3, "control: {out}{err}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let pool = w.dir.join("data/pool");
    let of_pool = mounts.lines().find(|line| line.contains(&*pool.to_string_lossy())).context("no pool")?;
    ensure!(of_pool.contains("nosuid") && of_pool.contains("nodev"), "{of_pool}");
    let volumes = pool.join("volumes");
    let mut left = Vec::new();
    for volume in std::fs::read_dir(&volumes)? {
        let path = volume?.path().join("u/var/left");
        if path.exists() {
            left.push(path);
        }
    }
    let path = left.first().context("control: the host's root finds it")?;
    let run = |user: &[&str]| Command::new("setpriv").args(user).arg(path).args(["-c", "id -u"]).output();
    let nobody = run(&["--reuid", "65534", "--regid", "65534", "--clear-groups"])?;
    ensure!(!nobody.status.success(), "it ran: {}", String::from_utf8_lossy(&nobody.stdout));
    let run_id = w.run(&name)?;
    w.stop(&name)?;
    let alive = Command::new("pgrep").args(["-fc", "sleep 718[.]25"]).output()?;
    ensure!(String::from_utf8(alive.stdout)?.trim() == "0", "processes outlive their run");
    ensure!(!cgroups(w.instance).contains(&run_id), "a cgroup outlives its run");

    // Attributes that an overlay of an unprivileged user would obey are but attributes.
    let (session, odd) = w.sandbox()?;
    let list = "ls -A /usr/share/misc; ls -A /etc | wc -l";
    let before = w.ok(&odd, list)?;
    let mark = "import os
for name, value in (('opaque', b'y'), ('redirect', b'/etc'), ('whiteouts', b'y'), ('metacopy', b'')):
    os.setxattr('/usr/share/misc', 'user.overlay.' + name, value)
print(len(os.listxattr('/usr/share/misc')))";
    let (code, out, err) = w.exec(&odd, &["--sudo"], &["python3", "-c", mark])?;
    ensure!(code == 0 && out.trim().parse::<u32>()? >= 4, "control: {code} {out}{err}");
    w.stop(&odd)?;
    w.post(&session)?;
    ensure!(w.ok(&odd, list)? == before, "{} after {before}", w.ok(&odd, list)?);
    w.delete(&odd)?;
    w.delete(&name)
}

/// The files API leads nowhere that its user may not go, by whatever link.
pub(crate) fn links_of_proc(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let path = format!("/api/v2/sandboxes/sessions/{}/fs/read", w.run(&name)?);
    let read = |file: &str| w.call(Method::POST, &path, Some(&w.key), Some(json!({"path": file})));
    ensure!(read("/etc/passwd")?.0 == StatusCode::OK, "control");
    for file in [
        "/proc/self/root/etc/shadow",
        "/proc/1/root/etc/shadow",
        "/proc/1/environ",
        "/proc/1/exe",
        "/proc/self/exe",
        "/proc/self/mem",
        "/proc/self/environ",
        "/proc/kcore",
        "/../../../../../../etc/shadow",
        "/dev/pts/ptmx",
        "/dev/zero",
    ] {
        let (status, reply) = read(file)?;
        ensure!(status.is_client_error(), "{file}: {status} {reply}");
    }
    w.delete(&name)
}
