//! A sandbox always starts, whatever its files look like; and what a boot makes
//! anew is new.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{World, eventually};

/// What root does to a sandbox; what a command says after a stop and a start,
/// and words of the warning that the run then has.
struct Harm {
    name: &'static str,
    script: &'static str,
    look: &'static str,
    expected: &'static str,
    warning: Option<&'static str>,
}

const HARMS: &[Harm] = &[
    Harm {
        name: "a dangling link at the working directory",
        script: "cd /; rm -rf /vercel/sandbox; ln -s /no/such/place /vercel/sandbox",
        look: "pwd; id -un",
        expected: "/\nubuntu",
        warning: Some("/vercel/sandbox"),
    },
    Harm {
        name: "a file at the working directory",
        script: "cd /; rm -rf /vercel/sandbox; echo mine > /vercel/sandbox",
        look: "pwd; cat /vercel/sandbox",
        expected: "/\nmine",
        warning: Some("/vercel/sandbox"),
    },
    Harm {
        name: "no working directory",
        script: "cd /; rm -rf /vercel",
        look: "pwd; stat -c %U .; touch here; ls",
        // It is there again, and the repository in it.
        expected: "/vercel/sandbox\nubuntu\nfile1\nfile2\nfile3\nhere",
        warning: None,
    },
    Harm {
        name: "a working directory that nobody may enter",
        script: "chmod 0 /vercel/sandbox",
        look: "pwd; sudo chmod 755 /vercel/sandbox; cd /vercel/sandbox && git log -1 --format=%s",
        expected: "/\ncommit 3",
        warning: None,
    },
    Harm {
        name: "directories where small files belong",
        script: "for f in hosts hostname resolv.conf gitconfig machine-id; do rm -rf /etc/$f; mkdir /etc/$f; done",
        look: "ls -d /etc/hosts/",
        expected: "/etc/hosts/",
        warning: Some("/etc/hosts"),
    },
    Harm {
        name: "no /etc",
        script: "mv /etc /gone",
        look: "id -u; ls /etc/hosts; sudo -n true 2>/dev/null || echo no sudo",
        expected: "1000\n/etc/hosts\nno sudo",
        warning: Some("no user \"ubuntu\""),
    },
    Harm {
        name: "another name for the user",
        script: "sed -i s/^ubuntu:/renamed:/ /etc/passwd",
        look: "id -un; echo $HOME",
        expected: "renamed\n/home/ubuntu",
        warning: Some("no user \"ubuntu\""),
    },
    Harm {
        name: "no users at all",
        script: "rm /etc/passwd /etc/group /etc/shadow",
        look: "id -u; id -g",
        expected: "1000\n1000",
        warning: Some("uid 1000"),
    },
    Harm { name: "no home", script: "rm -rf /home", look: "id -un", expected: "ubuntu", warning: None },
    Harm {
        name: "links and files where mounts belong",
        script: "rm -rf /tmp /mnt; echo x > /tmp; for d in /var/run /run.old; do rm -rf $d; ln -s /nowhere $d; done",
        look: "id -un; ls -l /proc/self/exe > /dev/null && ls /dev/null",
        expected: "ubuntu\n/dev/null",
        warning: None,
    },
];

fn shown(w: &World, name: &str) -> anyhow::Result<Value> {
    w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)
}

fn warnings(w: &World, name: &str) -> anyhow::Result<Vec<String>> {
    let found = shown(w, name)?;
    let list = found["session"]["__warnings"].as_array().cloned().unwrap_or_default();
    Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// One bad file does not brick a sandbox.
pub(crate) fn always(w: &World) -> anyhow::Result<()> {
    for harm in HARMS {
        let result = || -> anyhow::Result<()> {
            let (session, name) = w.sandbox()?;
            ensure!(warnings(w, &name)?.is_empty(), "control");
            let (code, out, err) = w.root_shell(&name, harm.script)?;
            ensure!(code == 0, "{code} {out}{err}");
            w.stop(&name)?;
            w.post(&session)?;
            let found = warnings(w, &name)?;
            match harm.warning {
                Some(words) => ensure!(found.iter().any(|text| text.contains(words)), "{found:?}"),
                None => ensure!(found.is_empty(), "{found:?}"),
            }
            let (_, out, err) = w.shell(&name, harm.look)?;
            ensure!(out.trim() == harm.expected, "{out:?} {err:?}");
            w.delete(&name)
        };
        result().with_context(|| harm.name)?;
    }
    Ok(())
}

/// A root directory that nobody may enter is in nobody's way but the user's.
pub(crate) fn closed_root(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.root_shell(&name, "chmod 0 /")?;
    w.stop(&name)?;
    w.post(&session)?;
    let (code, _, err) = w.shell(&name, "true")?;
    ensure!(code == 126 && err.contains("Permission denied"), "{code} {err}");
    let (code, out, err) = w.root_shell(&name, "chmod 755 /")?;
    ensure!(code == 0, "{out}{err}");
    ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3");
    w.delete(&name)
}

/// `rm -rf /`: the API goes on, in words that help.
pub(crate) fn nothing_left(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.root_shell(&name, "rm -rf --no-preserve-root / 2>/dev/null; true")?;
    w.stop(&name)?;
    w.post(&session)?;
    let (code, _, err) = w.exec(&name, &[], &["sh", "-c", "true"])?;
    ensure!(code != 0 && err.contains("sh") && err.contains("not found"), "{code} {err:?}");
    let (code, _, err) = w.exec(&name, &["--sudo"], &["bash"])?;
    ensure!(code != 0 && err.contains("bash") && err.contains("not found"), "{code} {err:?}");

    // Files go in and out all the same.
    let local = w.dir.join("rescue");
    std::fs::write(&local, "rescued\n")?;
    w.cli(&["sandbox", "cp", &local.to_string_lossy(), &format!("{name}:/vercel/sandbox/rescue")])?;
    ensure!(w.read(&name, "/vercel/sandbox/rescue")?.as_deref() == Some("rescued\n"));
    let snapshot = String::from_utf8(w.cli(&["sandbox", "snapshot", "--live", &name])?.stdout)?;
    let fork = format!("{name}-fork");
    w.cli(&["sandbox", "fork", "--live", &name, &fork])?;
    ensure!(w.read(&fork, "/vercel/sandbox/rescue")?.as_deref() == Some("rescued\n"));
    w.delete(&fork)?;
    w.cli(&["snapshot", "delete", snapshot.trim()])?;
    w.stop(&name)?;
    w.post(&session)?;
    ensure!(w.read(&name, "/vercel/sandbox/rescue")?.as_deref() == Some("rescued\n"));
    w.delete(&name)
}

/// What users wrote into the files that boots write survives.
pub(crate) fn edits(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let edit = "echo '10.9.8.7 db.example.test' >> /etc/hosts; echo mine > /etc/hostname
        git config --system alias.mine status; chmod 600 /etc/gitconfig; chmod 644 /etc/gitconfig";
    let (code, out, err) = w.root_shell(&name, edit)?;
    ensure!(code == 0, "{out}{err}");
    for _ in 0..3 {
        w.stop(&name)?;
        w.post(&session)?;
    }
    let look = "grep -c db.example.test /etc/hosts; getent hosts db.example.test | cut -d' ' -f1
        grep -c localhost /etc/hosts; cat /etc/hostname; git config --system alias.mine
        grep -c 'dormouse: begin' /etc/hosts";
    let found = w.ok(&name, look)?;
    ensure!(found == "1\n10.9.8.7\n2\nmine\nstatus\n1", "{found}");
    ensure!(warnings(w, &name)?.is_empty());
    w.delete(&name)
}

/// Process numbers, `/run`, `/dev/shm`, the machine's number.
pub(crate) fn new_each_time(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let probe = "sh -c 'echo $$'";
    let mut pids: Vec<u32> = vec![w.ok(&name, probe)?.parse()?];
    let id = w.ok(&name, "cat /etc/machine-id")?;
    ensure!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let rule = "d /var/run/mine 2770 ubuntu sudo - -";
    w.ok(
        &name,
        &format!("sudo mkdir -p /etc/tmpfiles.d; echo '{rule}' | sudo tee /etc/tmpfiles.d/mine.conf"),
    )?;
    w.ok(
        &name,
        "echo $$ | sudo tee /run/stale.pid /dev/shm/stale > /dev/null; sudo mkdir -p /run/lock/mine",
    )?;
    for _ in 0..12 {
        w.stop(&name)?;
        w.post(&session)?;
        pids.push(w.ok(&name, probe)?.parse()?);
    }
    ensure!(w.ok(&name, "ls /run/stale.pid /dev/shm/stale 2>/dev/null; true")?.is_empty(), "old files");
    let run =
        w.ok(&name, "stat -f -c %T /run; readlink -f /var/run; stat -c '%a %U:%G' /run /run/lock /run/mine")?;
    ensure!(run == "tmpfs\n/run\n755 root:root\n1777 root:root\n2770 ubuntu:sudo", "{run}");
    // A pid file of any earlier run names nobody who lives now.
    let apart = |a: &u32, b: &u32| a.abs_diff(*b) > 500;
    for (n, pid) in pids.iter().enumerate() {
        ensure!(pids[..n].iter().all(|earlier| apart(earlier, pid)), "{pids:?}");
    }
    ensure!(w.ok(&name, "cat /etc/machine-id")? == id, "it is the same machine");

    let fork = format!("{name}-fork");
    w.cli(&["sandbox", "fork", "--live", &name, &fork])?;
    let ids = BTreeSet::from([id, w.ok(&fork, "cat /etc/machine-id")?]);
    ensure!(ids.len() == 2, "a fork is another machine: {ids:?}");
    w.delete(&fork)?;

    // Nine sixteenths of the memory (1,024 MiB), and counted there. Who fills
    // it gets an error, and is not killed.
    ensure!(w.ok(&name, "df -m --output=size /dev/shm | tail -1")? == "576");
    let (code, _, err) = w.shell(&name, "head -c 1100M /dev/zero > /dev/shm/over")?;
    ensure!(code == 1 && err.contains("No space left"), "{code} {err}");
    let counted =
        w.ok(&name, "stat -c %s /dev/shm/over; head -c 500M /dev/zero | tail -c 450M | wc -c; true")?;
    ensure!(counted.starts_with(&(576_u64 << 20).to_string()) && !counted.contains("471859200"), "{counted}");
    w.ok(&name, "rm /dev/shm/over")?;
    ensure!(w.ok(&name, "head -c 500M /dev/zero | tail -c 450M | wc -c")? == "471859200", "control");
    ensure!(w.ok(&name, "echo alive")? == "alive");
    w.delete(&name)
}

/// A sandbox whose disk is full starts, says so, and deletes its way out.
pub(crate) fn full(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.shell(&name, "head -c 400M /dev/urandom > /tmp/big; for i in $(seq 5000); do head -c 3000 /dev/urandom > /tmp/s$i || break; done 2>/dev/null; sync -f /tmp; true")?;
    w.stop(&name)?;
    w.post(&session)?;
    let run = w.run(&name)?;
    let write = format!("/api/v2/sandboxes/sessions/{run}/fs/mkdir");
    let mut refused = None;
    for n in 0..20_000 {
        let body = json!({"path": format!("/tmp/dir{n}/{}", "d".repeat(200)), "recursive": true});
        let (status, reply) = w.call(Method::POST, &write, Some(&w.key), Some(body))?;
        if status != StatusCode::OK {
            refused = Some((status, reply["error"]["message"].as_str().unwrap_or_default().to_owned()));
            break;
        }
    }
    let (status, message) = refused.context("there is no end to the room")?;
    ensure!(
        status == StatusCode::BAD_REQUEST && message.contains("Disk quota exceeded"),
        "{status} {message}"
    );
    ensure!(message.contains("of its 256 MiB: delete files in it"), "{message}");
    let disk = shown(w, &name)?["sandbox"]["__disk"].clone();
    let (used, limit) = (disk["usedBytes"].as_u64(), disk["limitBytes"].as_u64());
    ensure!(used.zip(limit).is_some_and(|(used, limit)| used > limit / 10 * 9), "{disk}");
    let text = String::from_utf8(w.cli(&["sandbox", "show", &name])?.stdout)?;
    ensure!(text.contains("nearly full: delete files in it"), "{text}");
    w.ok(&name, "rm -rf /tmp/*; sync -f /tmp; head -c 100M /dev/urandom > /tmp/again")?;
    // What a snapshot holds is not free, and the error says what frees it.
    let snapshot = String::from_utf8(w.cli(&["sandbox", "snapshot", "--live", &name])?.stdout)?;
    let fill = "rm /tmp/again; sync -f /tmp; head -c 400M /dev/urandom > /tmp/more; sync -f /tmp; echo $?";
    w.shell(&name, fill)?;
    let local = w.dir.join("large");
    std::fs::write(&local, vec![7; 64 << 20])?;
    let copy = ["sandbox", "cp", &local.to_string_lossy(), &format!("{name}:/tmp/large")];
    let failed = w.cli(&copy).err().context("more than there is")?.to_string();
    ensure!(failed.contains("snapshots of it (DELETE /v2/sandboxes/snapshots/ID), 1 of"), "{failed}");
    let text = String::from_utf8(w.cli(&["sandbox", "show", &name])?.stdout)?;
    ensure!(text.contains("dormouse snapshot delete"), "{text}");
    w.ok(&name, "rm /tmp/more")?;
    w.cli(&["snapshot", "delete", snapshot.trim()])?;
    eventually("what the snapshot held is free", Duration::from_secs(10), || {
        Ok(w.shell(&name, "head -c 200M /dev/urandom > /tmp/last && sync -f /tmp/last")?.0 == 0)
    })?;
    w.delete(&name)
}
