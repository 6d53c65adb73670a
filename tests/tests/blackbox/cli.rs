//! The command line's own sandbox commands, for people who have no Node.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::world::{World, binary, eventually, image_cache};

fn text(w: &World, args: &[&str]) -> anyhow::Result<String> {
    Ok(String::from_utf8(w.cli(args)?.stdout)?.trim().to_owned())
}

fn json(w: &World, args: &[&str]) -> anyhow::Result<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    Ok(serde_json::from_slice(&w.cli(&args)?.stdout)?)
}

/// What a failure prints, and its exit code.
fn failure(w: &World, args: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let output = w.command(args).stdin(Stdio::null()).output()?;
    ensure!(!output.status.success(), "{args:?} succeeded");
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Create, fork, snapshot, ports, logs; snapshot list, tree, delete.
pub(crate) fn sandboxes_and_snapshots(w: &World) -> anyhow::Result<()> {
    let made = [
        "sandbox",
        "create",
        "cli-a",
        "--env",
        "FROM=cli",
        "--tag",
        "team=blue",
        "--port",
        "3000",
        "--vcpus",
        "2",
        "--timeout",
        "20m",
        "--keep-last",
        "3",
        "--snapshots-expire-in",
        "7d",
        "--network",
        "deny-all",
    ];
    ensure!(text(w, &made)? == "cli-a");
    let shown = json(w, &["sandbox", "show", "cli-a"])?;
    let sandbox = &shown["sandbox"];
    ensure!(sandbox["tags"]["team"] == "blue" && sandbox["timeout"] == 1_200_000, "{shown}");
    ensure!(
        sandbox["keepLastSnapshots"]["count"] == 3 && sandbox["snapshotExpiration"] == 604_800_000_i64,
        "{shown}"
    );
    ensure!(sandbox["networkPolicy"]["mode"] == "deny-all" && sandbox["vcpus"] == 2, "{shown}");
    ensure!(w.ok("cli-a", "echo $FROM; echo kept > /tmp/kept")? == "cli");
    let (code, words) = failure(w, &["sandbox", "create", "cli-a"])?;
    ensure!(code == Some(1) && words.contains("exists already"), "{words}");

    let ports = text(w, &["sandbox", "ports", "cli-a"])?;
    ensure!(ports.contains("3000") && ports.contains("http://dm-"), "{ports}");
    let ports = json(w, &["sandbox", "ports", "cli-a", "--set", "4000", "--set", "5000"])?;
    ensure!(ports["routes"].as_array().is_some_and(|routes| routes.len() == 2), "{ports}");
    ensure!(json(w, &["sandbox", "ports", "cli-a", "--none"])?["routes"] == serde_json::json!([]));

    let id = text(
        w,
        &[
            "sandbox",
            "exec",
            "--detach",
            "cli-a",
            "--",
            "sh",
            "-c",
            "echo first; sleep 0.5; echo second >&2; exit 9",
        ],
    )?;
    for args in [vec!["sandbox", "logs", "cli-a", id.as_str()], vec!["sandbox", "logs", "cli-a"]] {
        let output = w.command(&args).stdin(Stdio::null()).output()?;
        ensure!(output.stdout == b"first\n" && output.stderr == b"second\n", "{output:?}");
        ensure!(output.status.code() == Some(9), "{output:?}");
    }

    let first = text(w, &["sandbox", "snapshot", "cli-a", "--expires-in", "30d"])?;
    ensure!(first.starts_with("snap_"), "{first}");
    // Again, from sleep.
    let second = text(w, &["sandbox", "snapshot", "cli-a"])?;
    let listed = json(w, &["snapshot", "list", "--sandbox", "cli-a"])?;
    let ids: Vec<_> =
        listed["snapshots"].as_array().context("list")?.iter().map(|s| s["id"].as_str()).collect();
    ensure!(ids == [Some(second.as_str()), Some(first.as_str())], "{listed}");
    let tree = text(w, &["snapshot", "tree", &second])?;
    let lines: Vec<_> = tree.lines().collect();
    ensure!(lines.len() == 3 && lines[1].contains(&first) && lines[2].starts_with('*'), "{tree}");

    ensure!(text(w, &["sandbox", "fork", "cli-a", "cli-b", "--env", "FROM=fork"])? == "cli-b");
    ensure!(w.ok("cli-b", "echo $FROM; cat /tmp/kept")? == "fork\nkept");
    ensure!(text(w, &["sandbox", "create", "cli-c", "--snapshot", &first, "--temporary"])? == "cli-c");
    ensure!(w.ok("cli-c", "cat /tmp/kept")? == "kept");
    ensure!(json(w, &["sandbox", "show", "cli-c"])?["sandbox"]["persistent"] == false);
    text(w, &["snapshot", "delete", &first])?;
    let (_, words) = failure(w, &["sandbox", "create", "cli-d", "--snapshot", &first])?;
    ensure!(words.contains("is gone"), "{words}");
    let (code, words) = failure(w, &["snapshot", "delete", "nonsense"])?;
    ensure!(code == Some(1) && words.contains("snap_"), "{words}");

    // Another team's is not there, and one that is none of ours is refused.
    let (_, words) = failure(w, &["sandbox", "show", "cli-a", "--project", "other"])?;
    ensure!(words.contains("not found"), "{words}");
    let (_, words) = failure(w, &["sandbox", "list", "--team", "strangers"])?;
    ensure!(words.contains("neither your account nor an organization"), "{words}");
    for name in ["cli-a", "cli-b", "cli-c"] {
        w.delete(name)?;
    }
    Ok(())
}

/// A shell under a pseudo-terminal.
pub(crate) fn shell(w: &World) -> anyhow::Result<()> {
    w.cli(&["sandbox", "create", "cli-shell"])?;
    w.stop("cli-shell")?;
    // script(1) is the terminal: it sets the size that it is told by stty.
    let dormouse = binary("dormouse");
    let shell = format!(
        "stty cols 91 rows 33; {} sandbox shell cli-shell --env WORD=hello; echo left with $?",
        dormouse.display()
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &shell, "/dev/null"])
        .env("DORMOUSE_SERVER", &w.base)
        .env("DORMOUSE_KEY", &w.key)
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run script")?;
    let mut input = child.stdin.take().context("stdin")?;
    let output = child.stdout.take().context("stdout")?;
    let shown = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let reader = std::thread::spawn({
        let shown = shown.clone();
        move || {
            let (mut output, mut buffer) = (output, [0; 4096]);
            while let Ok(read @ 1..) = std::io::Read::read(&mut output, &mut buffer) {
                let part = String::from_utf8_lossy(&buffer[..read]).into_owned();
                shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_str(&part);
            }
        }
    });
    let now = || shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let until = |what: &str, word: &str| {
        eventually(what, Duration::from_secs(20), || Ok(now().contains(word))).with_context(now)
    };
    until("a prompt", "$ ")?;
    std::io::Write::write_all(&mut input, b"echo $WORD-$((40+2)) $TERM; tty; stty size; id -un\n")?;
    until("an answer", "hello-42 xterm")?;
    until("a terminal", "/dev/pts/")?;
    until("its size", "33 91")?;
    until("the user", "ubuntu")?;
    // A control character reaches what runs inside, not us.
    std::io::Write::write_all(&mut input, b"sleep 1000\n")?;
    until("the sleep", "sleep 1000")?;
    std::thread::sleep(Duration::from_millis(300));
    std::io::Write::write_all(&mut input, b"\x03echo after $?\n")?;
    until("the interrupt", "after 130")?;
    std::io::Write::write_all(&mut input, b"exit 7\n")?;
    until("the exit code", "left with 7")?;
    drop(input);
    child.wait()?;
    // Its end is the reader's.
    let _ = reader.join();
    w.delete("cli-shell")
}

/// A host on which sandboxes run lacks nothing but the port, which the server has.
pub(crate) fn doctor(w: &World) -> anyhow::Result<()> {
    let output = w.command(&["doctor"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let missing: Vec<&str> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
    ensure!(missing.iter().all(|line| line.contains(" port ")), "{missing:?}");
    ensure!(text.contains("nftables takes such rules"), "{text}");
    Ok(())
}

/// One server of an instance runs on a host, whatever directory it has: a second one is
/// refused, and what the first runs goes on.
pub(crate) fn one_server_of_an_instance(w: &World) -> anyhow::Result<()> {
    let name = "cli-first";
    w.cli(&["sandbox", "create", name])?;
    w.cli(&["sandbox", "exec", "-d", name, "--", "sleep", "4712"])?;
    let other = w.dir.join("other");
    let config = w.dir.join("other.toml");
    std::fs::write(&config, format!("instance = {}\nlisten = \"127.0.0.1:0\"\n", w.instance))?;
    let serve = Command::new("timeout")
        .args(["60".as_ref(), binary("dormouse").as_os_str(), "serve".as_ref()])
        .args(["--config".as_ref(), config.as_os_str(), "--data-dir".as_ref(), other.as_os_str()])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&serve.stderr).into_owned();
    ensure!(serve.status.code() == Some(1) && said.contains("another server"), "{:?} {said}", serve.status);
    ensure!(w.ok(name, "pgrep -xc sleep")? == "1", "the first server's sandbox");
    w.delete(name)
}

/// From nothing to a sandbox, by what `quickstart` prints; a second start has the same key.
pub(crate) fn quickstart(w: &World) -> anyhow::Result<()> {
    // An instance that no world has.
    const INSTANCE: u8 = 2;
    let dir = w.dir.join("quickstart");
    std::fs::create_dir_all(&dir)?;
    let config = dir.join("config.toml");
    std::fs::write(
        &config,
        format!("instance = {INSTANCE}\nlisten = \"127.0.0.1:7702\"\nstorage.pool_gib = 4\n"),
    )?;
    let dormouse = binary("dormouse");
    let (mut keys, mut outcome) = (Vec::new(), anyhow::Ok(()));
    for round in 0..2 {
        let printed = dir.join(format!("printed-{round}"));
        let mut server = Command::new(&dormouse)
            .args(["quickstart", "--recipe", "node24", "--data-dir"])
            .arg(dir.join("data"))
            // By the variable rather than the flag.
            .env("DORMOUSE_CONFIG", &config)
            .env("DORMOUSE_IMAGES__CACHE", image_cache())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&printed)?)
            .stderr(std::fs::File::create(dir.join("server.log"))?)
            .spawn()?;
        let worked = (|| {
            eventually("it says what to try", Duration::from_secs(300), || {
                ensure!(server.try_wait()?.is_none(), "it ended");
                Ok(std::fs::read_to_string(&printed)?.contains("node your-program.mjs"))
            })?;
            let text = std::fs::read_to_string(&printed)?;
            // The lines of the command line, as they stand there.
            let lines = text.lines().map(str::trim);
            let lines: Vec<&str> =
                lines.filter(|l| l.starts_with("export ") || l.contains("sandbox create box")).collect();
            ensure!(lines.len() == 2, "{text}");
            // The sandbox is there the second time.
            let command =
                if round == 0 { lines[1] } else { lines[1].rsplit("&&").next().unwrap_or_default() };
            let script = format!("{}\n{command}", lines[0]);
            let output = Command::new("sh").args(["-euc", &script]).stdin(Stdio::null()).output()?;
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(
                output.status.success() && out.contains("Linux"),
                "{out}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            keys.push(std::fs::read_to_string(dir.join("data/quickstart.key"))?);
            anyhow::Ok(())
        })();
        Command::new("kill").args(["-TERM", &server.id().to_string()]).status()?;
        server.wait()?;
        let log = std::fs::read_to_string(dir.join("server.log"))?;
        outcome =
            outcome.and(worked.with_context(|| log.lines().rev().take(10).collect::<Vec<_>>().join("\n")));
    }
    let evacuated = Command::new(&dormouse)
        .args(["evacuate", "--data-dir"])
        .arg(dir.join("data"))
        .env("DORMOUSE_CONFIG", &config)
        .output()?;
    ensure!(evacuated.status.success(), "{}", String::from_utf8_lossy(&evacuated.stderr));
    std::fs::remove_dir_all(&dir)?;
    outcome?;
    ensure!(keys[0] == keys[1], "a second start made another key");
    Ok(())
}
