//! A sandbox, or a caller, that means harm: it harms itself only. Every
//! scenario has a control that shows that its probe works.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};

use crate::world::{World, binary, cgroup_file, eventually};

/// Sets an entry's name as it is: the builder would refuse these.
fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(data.len() as u64);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    // A Vec does not fail.
    let _ = builder.append(&header, data);
}

/// Name, kind, link target, content.
type Entry<'a> = (&'a str, tar::EntryType, &'a str, &'a [u8]);

/// Archives that reach for the host, or for what the user may not touch.
pub(crate) fn archives(w: &World) -> anyhow::Result<()> {
    use tar::EntryType;
    let (_, name) = w.sandbox()?;
    let run = w.run(&name)?;
    let canary = w.dir.join("canary-archive");
    fs::create_dir_all(&canary)?;
    fs::write(canary.join("file"), "untouched")?;
    let outside = canary.to_string_lossy().into_owned();
    let upload = |entries: &[Entry<'_>]| -> anyhow::Result<StatusCode> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, link, data) in entries {
            entry(&mut builder, name, *kind, link, data);
        }
        let body = builder.into_inner()?;
        let request = w
            .http
            .post(format!("{}/api/v2/sandboxes/sessions/{run}/fs/write", w.base))
            .header("x-api-key", &w.key)
            .header("content-type", "application/x-tar")
            .body(body);
        Ok(w.block_on(async { request.send().await })?.status())
    };
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    ensure!(upload(&[("plain", file, "", b"fine")])? == StatusCode::OK, "control");
    ensure!(w.ok(&name, "cat plain")? == "fine");

    let refused: &[&[Entry<'_>]] = &[
        &[("../../escape", file, "", b"x")],
        &[("a/../../escape", file, "", b"x")],
        &[("hard", hard, "../../etc/shadow", b"")],
        &[("hard", hard, "/etc/shadow", b"")],
        &[("node", EntryType::Char, "", b"")],
        &[("node", EntryType::Block, "", b"")],
        &[("pipe", EntryType::Fifo, "", b"")],
        // The default user may not write there, through whatever link.
        &[("etc", link, "/etc", b""), ("etc/passwd", file, "", b"x")],
    ];
    for entries in refused {
        let status = upload(entries)?;
        ensure!(status.is_client_error(), "{:?}: {status}", entries[0].0);
    }
    // Inside, a link to a path of the host leads to nothing of the host.
    upload(&[("out", link, &outside, b""), ("out/file", file, "", b"changed")])?;
    upload(&[("one", link, &format!("{outside}/file"), b""), ("one", file, "", b"changed")])?;
    upload(&[(&format!("{outside}/file"), file, "", b"changed")])?;
    ensure!(fs::read_to_string(canary.join("file"))? == "untouched", "the host was written");
    ensure!(fs::read_dir(&canary)?.count() == 1, "the host has new files");
    ensure!(w.ok(&name, "ls /escape /vercel/escape 2>/dev/null | wc -l")? == "0");
    ensure!(w.ok(&name, "id -un; head -1 /etc/passwd | cut -d: -f1")? == "ubuntu\nroot");
    // One that says it is larger than anything, and one that is larger than the disk.
    let mut lying = tar::Header::new_gnu();
    lying.set_path("lying")?;
    lying.set_size(1 << 62);
    lying.set_mode(0o644);
    lying.set_cksum();
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut header = tar::Header::new_gnu();
    header.set_path("bomb")?;
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    {
        use std::io::Write as _;
        bomb.write_all(header.as_bytes())?;
        for _ in 0..1024 {
            bomb.write_all(&[0; 1 << 20])?;
        }
    }
    for (kind, body) in
        [("application/x-tar", lying.as_bytes().to_vec()), ("application/gzip", bomb.finish()?)]
    {
        let request = w
            .http
            .post(format!("{}/api/v2/sandboxes/sessions/{run}/fs/write", w.base))
            .header("x-api-key", &w.key)
            .header("content-type", kind)
            .body(body);
        let status = w.block_on(async { request.send().await })?.status();
        ensure!(status.is_client_error(), "{kind}: {status}");
        ensure!(w.ok(&name, "ls lying bomb 2>/dev/null | wc -l; echo fine")? == "0\nfine", "{kind}");
    }
    // Not a tar at all, and one that ends in the middle.
    for body in [vec![0xff; 4096], b"short".to_vec()] {
        let request = w
            .http
            .post(format!("{}/api/v2/sandboxes/sessions/{run}/fs/write", w.base))
            .header("x-api-key", &w.key)
            .header("content-type", "application/gzip")
            .body(body);
        let status = w.block_on(async { request.send().await })?.status();
        ensure!(status == StatusCode::BAD_REQUEST, "garbage: {status}");
    }
    w.delete(&name)
}

/// Capabilities and set-user-id bits give nothing that the sandbox lacks.
pub(crate) fn privileges(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    // VFS_CAP_REVISION_2, effective, permitted = CAP_SYS_ADMIN (capabilities(7)).
    let grant = "import os,struct,shutil
shutil.copy('/usr/bin/grep', '/tmp/grep'); os.chmod('/tmp/grep', 0o755)
os.setxattr('/tmp/grep', 'security.capability', struct.pack('<IIIII', 0x02000001, 1 << 21, 0, 0, 0))
print(os.getxattr('/tmp/grep', 'security.capability').hex())";
    let (code, out, err) = w.exec(&name, &["--sudo"], &["python3", "-c", grant])?;
    ensure!(code == 0 && out.starts_with("01000002"), "control: {out}{err}");
    // A set-user-id binary makes root of the sandbox, as sudo does, not more.
    w.root_shell(&name, "cp /usr/bin/grep /tmp/suid && chmod 4755 /tmp/suid")?;
    const OF_ROOT: &str = "CapEff:\t00000000800405fb";
    for (who, uids, own) in
        [(&[][..], "Uid:\t1000\t0", "CapEff:\t0000000000000000"), (&["--sudo"][..], "Uid:\t0\t0", OF_ROOT)]
    {
        let (code, out, err) = w.exec(&name, who, &["/tmp/grep", "CapEff", "/proc/self/status"])?;
        let refused = code != 0 && format!("{out}{err}").contains("not permitted");
        ensure!(refused || out.trim() == own, "{who:?}: file capability: {code} {out}{err}");
        let (_, out, _) =
            w.exec(&name, who, &["/tmp/suid", "-E", "^(Uid|CapEff|CapBnd)", "/proc/self/status"])?;
        ensure!(out.contains(uids), "{who:?}: control: {out}");
        ensure!(out.contains(OF_ROOT), "{who:?}: {out}");
    }
    w.delete(&name)
}

/// What is put in the place of devices while commands start changes nothing
/// on the host (the class of CVE-2025-31133).
pub(crate) fn device_races(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let pattern = || fs::read_to_string("/proc/sys/kernel/core_pattern");
    let before = pattern()?;
    // Each device is a mount of its own, which nobody inside can take away.
    let take_away = "
import errno, os
for place in ('/dev/null', '/dev/zero', '/dev/pts', '/dev/shm', '/dev', '/proc', '/sys'):
    for act in (lambda: os.rename(place, place + '.gone'), lambda: (os.rmdir if os.path.isdir(place) else os.unlink)(place)):
        try: act(); print(place, 'went')
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EROFS): print(place, error)
open('/tmp/there', 'w').close(); os.rename('/tmp/there', '/tmp/gone'); os.unlink('/tmp/gone')";
    let (code, out, err) = w.exec(&name, &["--sudo"], &["python3", "-c", take_away])?;
    ensure!(code == 0 && out.is_empty(), "{out}{err}");
    // What is a link there, or was not there, can be another link.
    w.root_shell(
        &name,
        "(while :; do ln -sfn /proc/sys/kernel/core_pattern /dev/console; ln -sfn /dev/console /dev/ptmx; \
          ln -sfn pts/ptmx /dev/ptmx; ln -sfn /proc/sys/kernel/core_pattern /dev/stdout; \
          echo >> /tmp/turns; done) >/tmp/race 2>&1 &",
    )?;
    let turns = || anyhow::Ok(w.ok(&name, "wc -l < /tmp/turns")?.parse::<u32>()?);
    let first = turns()?;
    for round in 0..60 {
        let terminal: &[&str] = if round % 3 == 0 { &["--tty"] } else { &[] };
        let write =
            "echo '|/tmp/owned' > /dev/null; (echo '|/tmp/owned' > /dev/console) 2>/dev/null; tty; true";
        let (_, out, _) = w.exec(&name, terminal, &["bash", "-c", write])?;
        ensure!(!out.contains("/proc") && !out.contains("/dev/console"), "a terminal is {out}");
    }
    ensure!(turns()? > first + 60, "control: the race did not run");
    let link = w.ok(&name, "readlink /dev/console")?;
    ensure!(link == "/proc/sys/kernel/core_pattern", "control: /dev/console is {link}");
    ensure!(pattern()? == before, "the host's core_pattern changed");
    w.delete(&name)
}

/// What `tar` inside packs for `sandbox cp` is the sandbox's to say: on the host it
/// stays where it was asked for, and makes no program of root's.
pub(crate) fn downloads(w: &World) -> anyhow::Result<()> {
    use tar::EntryType;
    let (_, name) = w.sandbox()?;
    let canary = w.dir.join("canary-download");
    fs::create_dir_all(&canary)?;
    fs::write(canary.join("file"), "untouched")?;
    let outside = canary.to_string_lossy().into_owned();
    w.ok(
        &name,
        "mkdir -p /tmp/d && echo fine > /tmp/d/plain && cp /bin/true /tmp/d/tool && chmod 4755 /tmp/d/tool",
    )?;
    let honest = w.dir.join("honest");
    w.cli(&["sandbox", "cp", &format!("{name}:/tmp/d"), &honest.to_string_lossy()])?;
    ensure!(fs::read_to_string(honest.join("plain"))? == "fine\n", "control");
    let mode = |path: &std::path::Path| -> anyhow::Result<u32> {
        use std::os::unix::fs::PermissionsExt as _;
        Ok(fs::symlink_metadata(path)?.permissions().mode() & 0o7777)
    };
    ensure!(mode(&honest.join("tool"))? == 0o755, "{:o}", mode(&honest.join("tool"))?);

    let archives: [&[Entry<'_>]; 5] = [
        &[("../escape", EntryType::Regular, "", b"x")],
        &[("l", EntryType::Symlink, &outside, b""), ("l/file", EntryType::Regular, "", b"changed")],
        &[("h", EntryType::Link, &format!("{outside}/file"), b""), ("h", EntryType::Regular, "", b"changed")],
        &[("node", EntryType::Block, "", b"")],
        &[(&format!("{outside}/file"), EntryType::Regular, "", b"changed")],
    ];
    for (number, entries) in archives.iter().enumerate() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, link, data) in *entries {
            entry(&mut builder, name, *kind, link, data);
        }
        let packed = w.dir.join("evil.tar");
        fs::write(&packed, builder.into_inner()?)?;
        w.cli(&["sandbox", "cp", &packed.to_string_lossy(), &format!("{name}:/tmp/evil.tar")])?;
        let replaced = "printf '#!/bin/sh\\nexec cat /tmp/evil.tar\\n' > /tmp/tar && chmod 755 /tmp/tar && mv /tmp/tar /usr/bin/tar";
        ensure!(w.root_shell(&name, replaced)?.0 == 0, "control");
        let target = w.dir.join(format!("download-{number}"));
        // It may fail; what it may not do is below.
        let _ = w.cli(&["sandbox", "cp", &format!("{name}:/tmp/d"), &target.to_string_lossy()]);
        ensure!(fs::read_to_string(canary.join("file"))? == "untouched", "{number}: the canary was written");
        ensure!(fs::read_dir(&canary)?.count() == 1 && !w.dir.join("escape").exists(), "{number}: outside");
        for found in fs::read_dir(&target).into_iter().flatten().flatten() {
            let kind = found.file_type()?;
            ensure!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{number}: {found:?}");
            ensure!(mode(&found.path())? & 0o7000 == 0 || kind.is_symlink(), "{number}: {found:?}");
        }
    }
    w.delete(&name)
}

/// Resident memory of the server, in KiB.
fn server_memory(w: &World) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", w.server_pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// A terminal inside is the sandbox's own: nothing can be typed into it from
/// inside, it is no terminal of the host, and whoever does not look at it costs
/// nothing. When its user goes, so does what ran on it.
pub(crate) fn terminals(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let dormouse = binary("dormouse");
    let on_terminal = |command: &str| {
        let mut shell = Command::new("script");
        shell
            .args(["--quiet", "--return", "--command"])
            .arg(format!("{} sandbox shell --sudo {name} -- {command}", dormouse.display()))
            .arg("/dev/null")
            .env("DORMOUSE_SERVER", &w.base)
            .env("DORMOUSE_KEY", &w.key)
            .stdin(Stdio::null());
        shell
    };
    // TIOCSTI types, TIOCLINUX pastes (ioctl_tty(2)); the first is the control.
    let probe = "import fcntl,termios,array,os
print('size', len(fcntl.ioctl(0, termios.TIOCGWINSZ, b'12345678')))
for code, what in ((0x5412, b'x'), (0x541c, bytes([3]))):
    try: fcntl.ioctl(0, code, what); print('done', hex(code))
    except OSError as e: print('refused', hex(code))
print(os.ttyname(0), os.stat('/dev/pts').st_dev == os.stat(0).st_dev, os.path.exists('/dev/console'))";
    w.ok(&name, &format!("cat > /tmp/probe.py <<'E'\n{probe}\nE"))?;
    let output = on_terminal("python3 /tmp/probe.py").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("size 8"), "control: {text}");
    ensure!(text.contains("refused 0x5412") && text.contains("refused 0x541c"), "{text}");
    ensure!(text.contains("/dev/pts/") && text.contains("True False"), "{text}");

    let before = server_memory(w)?;
    let mut flood = on_terminal("yes").stdout(Stdio::piped()).spawn()?;
    eventually(
        "the flood runs",
        Duration::from_secs(10),
        || Ok(w.ok(&name, "pgrep -c yes || true")? == "1"),
    )?;
    std::thread::sleep(Duration::from_secs(2));
    let grown = server_memory(w)?.saturating_sub(before);
    ensure!(grown < 32 << 10, "a terminal that nobody reads cost {grown} KiB");
    flood.kill()?;
    flood.wait()?;
    // The command line goes with its terminal, and the command inside with it.
    eventually(
        "the flood ends",
        Duration::from_secs(20),
        || Ok(w.ok(&name, "pgrep -c yes || true")? == "0"),
    )?;
    w.delete(&name)
}

/// Output without end, from many commands at once, with nobody reading it.
pub(crate) fn floods(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    let run = w.run(&name)?;
    let before = server_memory(w)?;
    let start = |script: &str| {
        let body = serde_json::json!({"command": "bash", "args": ["-c", script]});
        w.good(Method::POST, &format!("/api/v2/sandboxes/sessions/{run}/cmd"), Some(body))
    };
    for _ in 0..16 {
        start("yes flood; sleep 100")?;
    }
    let deadline = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline {
        ensure!(w.ok(&other, "echo fine")? == "fine", "the neighbour answers");
    }
    let after = server_memory(w)?;
    ensure!(after < before + 200_000, "the server went from {before} to {after} KiB");
    ensure!(w.ok(&name, "echo alive")? == "alive", "its own agent answers");
    w.delete(&name)?;
    w.delete(&other)
}

/// A spinning sandbox gets its share of processors and no more.
pub(crate) fn processors(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.delete(&name)?;
    // The quota shows in what 4 spinning processes of one sandbox consume.
    w.end_server("-TERM")?;
    w.serve_with(&[("DORMOUSE_SANDBOX__VCPUS", "1")])?;
    w.post(&session)?;
    // The time from the first fork to the last end, since a throttled process
    // begins its three seconds when it first gets a processor.
    let spin = "import os,time
begin=time.time()
for _ in range(3):
    if os.fork() == 0:
        end=time.time()+3
        while time.time()<end: pass
        os._exit(0)
end=time.time()+3
while time.time()<end: pass
for _ in range(3): os.wait()
took=time.time()-begin
t=os.times(); print(t.user+t.system+t.children_user+t.children_system, took)";
    let (_, out, err) = w.exec(&name, &[], &["python3", "-c", spin])?;
    let (used, took) = out.trim().split_once(' ').with_context(|| err)?;
    let (used, took): (f64, f64) = (used.parse()?, took.parse()?);
    let group = cgroup_file(w.instance, &w.run(&name)?, "cpu", "cpu.stat")?;
    let throttled = group.lines().find_map(|line| line.strip_prefix("nr_throttled "));
    ensure!(throttled.is_some_and(|count| count != "0"), "the kernel never held it back: {group}");
    // One processor's time, what Python needed to start, and what a period of the
    // quota may add. Emulated processors take turns on the host, and the kernel in
    // there counts the time of those that wait.
    let emulated = std::fs::read_to_string("/proc/cpuinfo")?.contains("TCG");
    ensure!(
        used >= 0.5 && (emulated || used < took * 1.05 + 0.6),
        "4 processes used {used} s of processor in {took} s"
    );
    w.delete(&name)?;
    w.end_server("-TERM")?;
    w.serve()
}

/// Files without content use up the sandbox's own limit, not the host.
pub(crate) fn many_files(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    let make = "import os,sys
os.makedirs('/tmp/many', exist_ok=True); os.chdir('/tmp/many')
for n in range(2000000):
    try: os.close(os.open('f'*200+str(n), os.O_CREAT|os.O_WRONLY))
    except OSError as e: print(n, e.errno); sys.exit(3)";
    for who in [&["--timeout", "120s"][..], &["--sudo", "--timeout", "120s"]] {
        let (code, out, _) = w.exec(&name, who, &["python3", "-c", make])?;
        ensure!(code == 3, "2 million files of 200 bytes' names fit into 256 MiB: {code} {out}");
        let (count, errno) = out.trim().split_once(' ').context("count")?;
        ensure!(count.parse::<u64>()? > 1000 && (errno == "122" || errno == "28"), "{out}");
        let fits = "head -c 50M /dev/zero > /tmp/fits && rm /tmp/fits";
        ensure!(w.shell(&other, fits)?.0 == 0, "the neighbour still writes");
        w.root_shell(&name, "rm -rf /tmp/many")?;
    }
    w.delete(&name)?;
    w.delete(&other)
}

/// A drive is mounted at a place of the sandbox, whatever link its root has put
/// there: it is followed nowhere, and the start says why it is refused.
pub(crate) fn places_of_drives(w: &World) -> anyhow::Result<()> {
    use reqwest::Method;
    use serde_json::json;
    let canary = w.dir.join("canary-drive");
    fs::create_dir_all(canary.join("deep"))?;
    let outside = canary.to_string_lossy().into_owned();
    let (sandbox, drive) = ("/api/v2/sandboxes/of-drives", "/api/v2/sandboxes/drives/of-drives");
    let (status, reply) =
        w.call(Method::POST, drive, Some(&w.key), Some(json!({"maxSizeBytes": 64 << 20})))?;
    ensure!(status == StatusCode::CREATED, "{status} {reply}");
    w.good(Method::POST, "/api/v2/sandboxes", Some(json!({"name": "of-drives"})))?;
    let mount = |mounts: serde_json::Value| w.good(Method::PATCH, sandbox, Some(json!({"mounts": mounts})));
    let resume = || w.call(Method::GET, &format!("{sandbox}?resume=true"), Some(&w.key), None);
    let at = |place: &str| json!({place: {"drive": "of-drives", "mode": "read-write"}});
    for (place, link) in [
        ("/data", outside.clone()),
        ("/data/deep", outside.clone()),
        ("/data/deep/deeper", format!("../../../../../../..{outside}")),
        ("/data/fd", "/proc/1/root".to_owned()),
    ] {
        let made = format!("rm -rf /data && ln -s {link} /data");
        ensure!(w.root_shell("of-drives", &made)?.0 == 0, "control");
        w.stop("of-drives")?;
        mount(at(place))?;
        let (status, reply) = resume()?;
        let text = reply.to_string();
        ensure!(
            status == StatusCode::BAD_REQUEST && text.contains("symbolic link"),
            "{place}: {status} {text}"
        );
        ensure!(!text.contains(&outside), "{place} tells where: {text}");
        mount(json!({}))?;
        ensure!(resume()?.0 == StatusCode::OK, "{place}: without the drive");
    }
    let found: Vec<_> = fs::read_dir(&canary)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(found == ["deep"] && fs::read_dir(canary.join("deep"))?.count() == 0, "{found:?}");
    // The control: where there is no link it is mounted.
    ensure!(w.root_shell("of-drives", "rm -f /data")?.0 == 0);
    w.stop("of-drives")?;
    mount(at("/data/deep"))?;
    ensure!(resume()?.0 == StatusCode::OK, "control");
    ensure!(w.ok("of-drives", "echo x > /data/deep/file; stat -c %m /data/deep/file")? == "/data/deep");
    w.delete("of-drives")?;
    w.good(Method::DELETE, drive, None).map(drop)
}
