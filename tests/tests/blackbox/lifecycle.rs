//! Sleep, waking, restarts.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{REPO, World, binary, cgroup_file, cgroups, eventually};

fn state(w: &World, session: &str) -> anyhow::Result<String> {
    let status = w.good(Method::GET, &format!("/api/sandbox/status?sessionId={session}"), None)?;
    Ok(status["lifecycle"]["state"].as_str().unwrap_or_default().to_owned())
}

pub(crate) fn stop_ends_everything(w: &World) -> anyhow::Result<()> {
    let before = cgroups(w.instance).len();
    let (_, name) = w.sandbox()?;
    w.ok(&name, "setsid sh -c 'trap \"\" TERM; sleep 1000' >/dev/null 2>&1 & (setsid sleep 1000 &) ; echo")?;
    w.stop(&name)?;
    eventually("its cgroup is gone", Duration::from_secs(10), || Ok(cgroups(w.instance).len() <= before))?;
    w.delete(&name)
}

pub(crate) fn restart_keeps_sandboxes(w: &World) -> anyhow::Result<()> {
    for signal in ["-TERM", "-KILL"] {
        let (session, name) = w.sandbox()?;
        let run = |w: &World| -> anyhow::Result<String> {
            let found = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
            Ok(found["session"]["id"].as_str().context("id")?.to_owned())
        };
        let before = run(w)?;
        w.ok(&name, "nohup sleep 1000 >/dev/null 2>&1 & echo x > /tmp/x")?;
        w.end_server(signal)?;
        w.serve()?;
        ensure!(w.ok(&name, "pgrep -c sleep; cat /tmp/x")? == "1\nx", "after {signal}");
        ensure!(run(w)? == before, "the run went on");
        ensure!(state(w, &session)? == "active");
        w.stop(&name)?;
        w.post(&session)?;
        ensure!(w.ok(&name, "cat /tmp/x")? == "x");
        w.delete(&name)?;
    }
    Ok(())
}

/// Changes one row of the server's database behind its back.
fn change_row(w: &World, sql: &str) -> anyhow::Result<()> {
    let config = std::fs::read_to_string(w.dir.join("config.toml"))?;
    let url = config.lines().find_map(|line| line.strip_prefix("database_url = "));
    let (output, expected) = match url {
        Some(url) => {
            (Command::new("psql").args([url.trim_matches('"'), "--command", sql]).output()?, "UPDATE 1\n")
        }
        None => {
            let script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
                          print(db.execute(sys.argv[2]).rowcount); db.commit()";
            let database = w.dir.join("data/dormouse.db");
            (Command::new("python3").args(["-c", script]).arg(database).arg(sql).output()?, "1\n")
        }
    };
    ensure!(output.stdout == expected.as_bytes(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A run whose end was cut off is not ended because nobody here runs it: a stop
/// finishes it.
pub(crate) fn a_stop_finishes_what_was_left(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    w.ok(&name, "echo kept > /tmp/kept")?;
    let run = w.run(&name)?;
    w.stop(&name)?;
    change_row(w, &format!("UPDATE runs SET status = 'running', ending = NULL WHERE id = '{run}'"))?;
    let path = format!("/api/v2/sandboxes/{name}");
    let status = || anyhow::Ok(w.good(Method::GET, &path, None)?["session"]["status"].clone());
    ensure!(status()? == "running", "control");
    w.good(Method::POST, &format!("/api/v2/sandboxes/sessions/{run}/stop"), Some(json!({})))?;
    ensure!(status()? == "stopped", "{}", status()?);
    ensure!(w.ok(&name, "cat /tmp/kept")? == "kept");
    w.delete(&name)
}

/// A row that cannot be read harms its own sandbox alone: the server starts, lists
/// show it, and it can be deleted.
pub(crate) fn a_spoiled_record(w: &World) -> anyhow::Result<()> {
    let before = cgroups(w.instance).len();
    let (_, spoiled) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    let run = w.run(&spoiled)?;
    w.end_server("-KILL")?;
    change_row(w, &format!("UPDATE sandboxes SET config = 'spoiled' WHERE name = '{spoiled}'"))?;
    change_row(w, &format!("UPDATE runs SET network = 'spoiled' WHERE id = '{run}'"))?;
    w.serve()?;
    ensure!(w.ok(&other, "echo fine")? == "fine");
    let listed = w.good(Method::GET, "/api/v2/sandboxes", None)?;
    for name in [&spoiled, &other] {
        let found =
            listed["sandboxes"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == **name));
        ensure!(found, "{name} is not in {listed}");
    }
    let (status, reply) =
        w.call(Method::GET, &format!("/api/v2/sandboxes/{spoiled}?resume=true"), Some(&w.key), None)?;
    ensure!(status == StatusCode::BAD_GATEWAY, "it does not run: {status} {reply}");
    w.delete(&spoiled)?;
    let (status, _) = w.call(Method::GET, &format!("/api/v2/sandboxes/{spoiled}"), Some(&w.key), None)?;
    ensure!(status == StatusCode::NOT_FOUND, "{status}");
    w.delete(&other)?;
    eventually("nothing of them runs", Duration::from_secs(10), || Ok(cgroups(w.instance).len() <= before))
}

/// New sandboxes are on the new image, not on what somebody kept of the old one.
pub(crate) fn a_replaced_image_starts_cold(w: &World) -> anyhow::Result<()> {
    let snapshot = || -> anyhow::Result<String> {
        let found = w.good(Method::GET, &format!("/api/org-snapshots?repoUrl={REPO}"), None)?;
        Ok(found["orgSnapshots"][0]["id"].as_str().unwrap_or_default().to_owned())
    };
    let (_, before) = w.sandbox()?;
    let old = snapshot()?;
    ensure!(!old.is_empty(), "there is no org snapshot");
    w.end_server("-KILL")?;
    change_row(w, "UPDATE images SET replaced_at = 1 WHERE name = 'default' AND replaced_at IS NULL")?;
    change_row(
        w,
        "INSERT INTO images (id, host_id, name, digest, size_bytes, config, source, created_at)
         SELECT 'img_again', host_id, name, digest, size_bytes, config, source, created_at FROM images
         WHERE name = 'default' AND replaced_at = 1",
    )?;
    w.serve()?;
    let (_, cold) = w.sandbox()?;
    ensure!(w.ok(&cold, "git log -1 --format=%s")? == "commit 3");
    ensure!(snapshot()?.is_empty(), "it is still what others start from");
    let (_, again) = w.sandbox()?;
    ensure!(![String::new(), old].contains(&snapshot()?), "no newer one");
    // What stands on the old one goes on.
    w.stop(&before)?;
    ensure!(w.ok(&before, "git log -1 --format=%s")? == "commit 3");
    for name in [before, cold, again] {
        w.delete(&name)?;
    }
    Ok(())
}

/// A server that died while it put a session to sleep, or woke it: whoever uses
/// its sandbox before the next one has a look at it keeps it awake.
pub(crate) fn used_after_a_crash(w: &World) -> anyhow::Result<()> {
    for cut_off in ["hibernating", "restoring"] {
        let (session, name) = w.sandbox()?;
        w.end_server("-KILL")?;
        let changed = format!("lifecycle_state = '{cut_off}', lifecycle_version = lifecycle_version + 1");
        change_row(w, &format!("UPDATE sessions SET {changed} WHERE id = '{session}'"))?;
        w.serve()?;
        let found = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}?resume=true"), None)?;
        let run = found["session"]["id"].as_str().context("id")?;
        // Longer than the server waits between two looks at its sessions.
        std::thread::sleep(Duration::from_secs(5));
        let path = format!("/api/v2/sandboxes/sessions/{run}/cmd");
        let command = json!({"command": "true", "wait": true});
        let (status, reply) = w.call(Method::POST, &path, Some(&w.key), Some(command))?;
        ensure!(status == StatusCode::OK, "{cut_off}: {status} {reply}");
        ensure!(state(w, &session)? == "active", "{cut_off}: {}", state(w, &session)?);
        w.delete(&name)?;
    }
    Ok(())
}

pub(crate) fn idle_sandboxes_sleep(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.ok(&name, "echo kept > /tmp/kept")?;
    eventually("it falls asleep", Duration::from_secs(20), || Ok(state(w, &session)? == "hibernated"))?;
    w.post(&session)?;
    ensure!(w.ok(&name, "cat /tmp/kept")? == "kept");
    w.delete(&name)
}

/// Clones that hang keep nobody else awake.
pub(crate) fn others_sleep_beside_hanging_clones(w: &World) -> anyhow::Result<()> {
    let mut clones = Vec::new();
    for n in 0..5 {
        let session = w.new_session()?;
        let body = json!({"repoUrl": format!("https://github.com/hangs/{n}"), "sessionId": session});
        let request = w.http.post(format!("{}/api/sandbox", w.base)).header("x-api-key", &w.key).json(&body);
        clones.push((session, w.spawn(async move { request.send().await.map(|answer| answer.status()) })));
    }
    for (session, _) in &clones {
        eventually("it clones", Duration::from_secs(10), || Ok(state(w, session)? == "restoring"))?;
    }
    let (session, name) = w.sandbox()?;
    eventually(
        "the other falls asleep",
        Duration::from_secs(20),
        || Ok(state(w, &session)? == "hibernated"),
    )?;
    for (session, clone) in clones {
        ensure!(!clone.is_finished(), "a clone did not hang");
        // The git that waits is the sandbox's, which is made when the remote has
        // not told its tip for a while.
        let name = format!("session-{session}");
        eventually("it is made", Duration::from_secs(20), || {
            let path = format!("/api/v2/sandboxes/{name}");
            Ok(w.call(Method::GET, &path, Some(&w.key), None)?.1["session"]["status"] == "running")
        })?;
        kill_first_process(w, &name)?;
        ensure!(w.block_on(clone)?? != StatusCode::OK);
    }
    w.delete(&name)
}

pub(crate) fn a_running_command_defers_sleep(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    ensure!(w.ok(&name, "sleep 7; echo finished")? == "finished", "cut off by sleep");
    eventually("then it falls asleep", Duration::from_secs(20), || Ok(state(w, &session)? == "hibernated"))?;
    w.delete(&name)
}

/// Requests to a published port are use; a terminal that is open keeps the
/// sandbox awake although nobody types.
pub(crate) fn traffic_and_terminals_defer_sleep(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let path = format!("/api/v2/sandboxes/{name}");
    let changed = w.good(Method::PATCH, &path, Some(json!({"ports": [8000]})))?;
    let host = format!("{}.localhost", changed["routes"][0]["subdomain"].as_str().context("subdomain")?);
    w.ok(&name, "(python3 -m http.server 8000 >/dev/null 2>&1 &); sleep 0.5")?;
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        let request = w.http.get(format!("{}/", w.base)).header("host", &host);
        let status = w.block_on(async { anyhow::Ok(request.send().await?.status()) })?;
        ensure!(status == StatusCode::OK, "{status}: asleep under traffic");
        std::thread::sleep(Duration::from_millis(400));
    }
    ensure!(state(w, &session)? == "active");
    // `script` is the terminal of a shell that does nothing for a while.
    let shell =
        format!("{} sandbox shell {name} -- sh -c 'sleep 6; echo still here'", binary("dormouse").display());
    let output = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &shell, "/dev/null"])
        .env("DORMOUSE_SERVER", &w.base)
        .env("DORMOUSE_KEY", &w.key)
        .stdin(std::process::Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("still here") && output.status.success(), "the terminal was cut: {text:?}");
    eventually("then it falls asleep", Duration::from_secs(20), || Ok(state(w, &session)? == "hibernated"))?;
    w.delete(&name)
}

/// A terminal of the user's, with a program that says nothing.
fn silent_terminal(w: &World, key: &str, name: &str, extra: &[&str]) -> anyhow::Result<std::process::Child> {
    let options = extra.join(" ");
    let shell = format!("{} sandbox shell {options} {name} -- sleep 60", binary("dormouse").display());
    Ok(std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &shell, "/dev/null"])
        .env("DORMOUSE_SERVER", &w.base)
        .env("DORMOUSE_KEY", key)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()?)
}

/// What nobody waits for keeps a sandbox awake while it works, a connection while
/// something is said in it, and neither by being there.
pub(crate) fn silence_does_not(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let begin = |script: &str| {
        let body = json!({"command": "sh", "args": ["-c", script]});
        w.good(Method::POST, &format!("/api/v2/sandboxes/sessions/{}/cmd", w.run(&name)?), Some(body))
    };
    let stays_awake = |what: &str, time: Duration| -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            ensure!(state(w, &session)? == "active", "{what}: asleep");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    };
    let sleeps =
        |what: &str| eventually(what, Duration::from_secs(25), || Ok(state(w, &session)? == "hibernated"));
    begin("while :; do :; done")?;
    stays_awake("a detached command that works", Duration::from_secs(9))?;
    w.ok(&name, "pkill -x sh || :")?;
    begin("sleep 1000")?;
    sleeps("a detached command that waits keeps nothing awake")?;
    w.post(&session)?;

    let changed =
        w.good(Method::PATCH, &format!("/api/v2/sandboxes/{name}"), Some(json!({"ports": [8001]})))?;
    let host = format!("{}.localhost", changed["routes"][0]["subdomain"].as_str().context("subdomain")?);
    let server = "import socket,threading
def serve(c):
    data = b''
    while b'\\r\\n\\r\\n' not in data: data += c.recv(4096)
    c.sendall(b'HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n')
    while c.recv(4096): pass
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', 8001)); s.listen()
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()";
    w.exec(
        &name,
        &[],
        &["python3", "-c", "import sys; open('/tmp/server.py', 'w').write(sys.argv[1])", server],
    )?;
    w.ok(&name, "(python3 /tmp/server.py >/dev/null 2>&1 &); sleep 0.5")?;
    let address = w.base.trim_start_matches("http://").to_owned();
    let connect = || -> anyhow::Result<std::net::TcpStream> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )?;
        let mut answer = [0; 512];
        let read = stream.read(&mut answer)?;
        ensure!(answer[..read].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer[..read]));
        Ok(stream)
    };
    let mut socket = connect()?;
    let mut say = |frame: &[u8], time: Duration| -> anyhow::Result<bool> {
        use std::io::Write as _;
        let end = Instant::now() + time;
        while Instant::now() < end {
            // A sandbox that sleeps has hung up.
            if socket.write_all(frame).is_err() || state(w, &session)? != "active" {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(true)
    };
    ensure!(say(&[0x81, 0x81, 0, 0, 0, 0, b'x'], Duration::from_secs(7))?, "asleep under a WebSocket in use");
    ensure!(!say(&[0x89, 0x80, 0, 0, 0, 0], Duration::from_secs(25))?, "pings keep it awake");
    sleeps("pings are no use")?;

    // Who reads what stands on a terminal is there, for a while.
    w.post(&session)?;
    let mut terminal = silent_terminal(w, &w.key, &name, &[])?;
    std::thread::sleep(Duration::from_secs(2));
    stays_awake("a terminal that was just opened", Duration::from_secs(3))?;
    sleeps("a terminal that was left keeps nothing awake for ever")?;
    terminal.wait()?;
    w.delete(&name)
}

/// A run ends when its lifetime is over, also while no server is there; an extension
/// counts.
pub(crate) fn a_lifetime_ends_without_a_server(w: &World) -> anyhow::Result<()> {
    for (name, timeout) in [("alone", 6_000), ("longer", 6_000)] {
        let made = json!({"name": name, "timeout": timeout});
        w.good(Method::POST, "/api/v2/sandboxes", Some(made))?;
        w.ok(name, "echo kept > /tmp/kept")?;
    }
    let (run, longer) = (w.run("alone")?, w.run("longer")?);
    let extend = format!("/api/v2/sandboxes/sessions/{longer}/extend-timeout");
    w.good(Method::POST, &extend, Some(json!({"duration": 600_000})))?;
    w.end_server("-KILL")?;
    let lives = |run: &str| {
        let groups = [
            format!("/sys/fs/cgroup/pids/dormouse-{}/{run}", w.instance),
            format!("/sys/fs/cgroup/dormouse-{}/{run}", w.instance),
        ];
        groups.iter().any(|group| {
            std::fs::read_to_string(format!("{group}/cgroup.procs")).is_ok_and(|text| !text.trim().is_empty())
        })
    };
    std::thread::sleep(Duration::from_secs(2));
    ensure!(lives(&run) && lives(&longer), "they ended with the server");
    eventually("it ends by itself", Duration::from_secs(25), || Ok(!lives(&run)))?;
    ensure!(lives(&longer), "an extension does not count");
    w.serve()?;
    let ended = w.good(Method::GET, &format!("/api/v2/sandboxes/sessions/{run}"), None)?;
    ensure!(ended["session"]["status"] == "stopped", "{ended}");
    w.good(Method::GET, "/api/v2/sandboxes/alone?resume=true", None)?;
    ensure!(w.ok("alone", "cat /tmp/kept")? == "kept", "its files are lost");
    ensure!(w.ok("longer", "cat /tmp/kept")? == "kept" && w.run("longer")? == longer, "it was ended");
    w.delete("alone")?;
    w.delete("longer")
}

/// Who loses a key, or a membership, loses what is open by it.
pub(crate) fn a_right_ends_what_it_opened(w: &World) -> anyhow::Result<()> {
    let other = w.id(&["account", "create", "Grace"])?;
    let made = w.cli(&["key", "create", "--account", &other, "--output", "json"])?;
    let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    let (id, key) = (made["id"].as_str().context("id")?, made["key"].as_str().context("key")?);
    let org = w.id(&["org", "create", "rights"])?;
    for account in [&w.account, &other] {
        w.text(&["org", "add-member", &org, account])?;
    }
    let made = json!({"name": "shared", "timeout": 600_000});
    w.good(Method::POST, &format!("/api/v2/sandboxes?teamId={org}"), Some(made))?;
    let ends = |what: &str, mut terminal: std::process::Child| {
        eventually(what, Duration::from_secs(20), || Ok(terminal.try_wait()?.is_some()))
    };
    let lasts = |terminal: &mut std::process::Child| -> anyhow::Result<()> {
        std::thread::sleep(Duration::from_secs(7));
        ensure!(terminal.try_wait()?.is_none(), "it ended by itself");
        Ok(())
    };
    let team = ["--team", org.as_str()];
    let mut terminal = silent_terminal(w, key, "shared", &team)?;
    lasts(&mut terminal)?;
    w.text(&["org", "remove-member", &org, &other])?;
    ends("a membership that ended ends the terminal", terminal)?;
    ensure!(w.cli(&["org", "remove-member", &org, &other]).is_err(), "there is none any more");
    w.text(&["org", "add-member", &org, &other])?;
    let mut terminal = silent_terminal(w, key, "shared", &team)?;
    lasts(&mut terminal)?;
    w.text(&["key", "revoke", id])?;
    ends("a key that was revoked ends the terminal", terminal)?;
    w.good(Method::DELETE, &format!("/api/v2/sandboxes/shared?teamId={org}"), None).map(drop)
}

/// A stop that archiving began must not hit the sandbox that a quick way back
/// has resumed.
pub(crate) fn archive_and_back(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.ok(&name, "echo kept > /tmp/kept")?;
    let path = format!("/api/sessions/{session}");
    for _ in 0..5 {
        w.good(Method::PATCH, &path, Some(json!({"status": "archived"})))?;
        w.good(Method::PATCH, &path, Some(json!({"status": "running"})))?;
        w.post(&session)?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(state(w, &session)? == "active");
        ensure!(w.ok(&name, "cat /tmp/kept")? == "kept");
    }
    w.good(Method::PATCH, &path, Some(json!({"status": "archived"})))?;
    eventually("archiving stops it", Duration::from_secs(10), || {
        let found = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
        Ok(found["sandbox"]["status"] == "stopped")
    })?;
    w.good(Method::DELETE, &path, None).map(drop)
}

/// Who changes a session while somebody works in it is not refused for that.
pub(crate) fn changes_under_use(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let ask = |method: Method, path: String, body: serde_json::Value| async move {
        w.ask(method, &path, Some(&w.key), Some(body)).await
    };
    w.block_on(async {
        let used = futures::future::try_join_all((0..4).map(|_| async {
            loop {
                ask(Method::POST, "/api/sandbox/activity".into(), json!({"sessionId": session})).await?;
            }
            #[expect(unreachable_code, reason = "the type of an error")]
            anyhow::Ok(())
        }));
        let changed = async {
            for round in 0..40 {
                let title = json!({"title": format!("round {round}")});
                let (status, reply) = ask(Method::PATCH, format!("/api/sessions/{session}"), title).await?;
                ensure!(status == StatusCode::OK, "rename {round}: {status} {reply}");
                let body = json!({"sessionId": session});
                let (status, reply) = ask(Method::POST, "/api/sandbox/extend".into(), body.clone()).await?;
                ensure!(status == StatusCode::OK, "extend {round}: {status} {reply}");
                if round % 4 == 0 {
                    let (status, reply) = ask(Method::POST, "/api/sandbox/snapshot".into(), body).await?;
                    ensure!(status == StatusCode::OK, "pause {round}: {status} {reply}");
                    let body = json!({"repoUrl": REPO, "sessionId": session});
                    let (status, reply) = ask(Method::POST, "/api/sandbox".into(), body).await?;
                    ensure!(status == StatusCode::OK, "wake {round}: {status} {reply}");
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = used => ended.map(drop),
            done = changed => done,
        }
    })?;
    w.delete(&name)
}

/// Its first process dies with all others: that is noticed, and what was
/// written is there after the next post.
pub(crate) fn death_is_noticed(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    w.ok(&name, "echo kept > /tmp/kept")?;
    kill_first_process(w, &name)?;
    eventually("status says so", Duration::from_secs(10), || {
        let reply = w.good(Method::GET, &format!("/api/sandbox/reconnect?sessionId={session}"), None)?;
        Ok(reply["status"] != "connected")
    })?;
    w.post(&session)?;
    ensure!(w.ok(&name, "cat /tmp/kept")? == "kept");
    w.delete(&name)
}

/// Kills PID 1 of a sandbox, and with it everything that runs there.
pub(crate) fn kill_first_process(w: &World, name: &str) -> anyhow::Result<()> {
    let pid = first_process(w.instance, &w.run(name)?)?;
    let killed = std::process::Command::new("kill").args(["-9", &pid]).status()?;
    ensure!(killed.success(), "kill {pid}");
    Ok(())
}

/// The lowest pid in the run's cgroup.
pub(crate) fn first_process(instance: u8, run: &str) -> anyhow::Result<String> {
    let text = cgroup_file(instance, run, "memory", "cgroup.procs")?;
    let first = text.lines().filter_map(|line| line.parse::<u32>().ok()).min();
    Ok(first.context("no process")?.to_string())
}

/// Whoever wants a session gone, away or stopped does not wait for its clone, and
/// is not forgotten.
pub(crate) fn what_hangs_is_called_off(w: &World) -> anyhow::Result<()> {
    let hanging = |n: u32| -> anyhow::Result<_> {
        let session = w.new_session()?;
        let body = json!({"repoUrl": format!("https://github.com/hangs/off-{n}"), "sessionId": session});
        let request = w.http.post(format!("{}/api/sandbox", w.base)).header("x-api-key", &w.key).json(&body);
        let post = w.spawn(async move { request.send().await.map(|answer| answer.status()) });
        let path = format!("/api/v2/sandboxes/session-{session}");
        eventually("it clones", Duration::from_secs(20), || {
            Ok(w.call(Method::GET, &path, Some(&w.key), None)?.1["session"]["status"] == "running")
        })?;
        Ok((session, path, post))
    };
    let gone = |path: &str| w.call(Method::GET, path, Some(&w.key), None).map(|(status, _)| status == 404);
    let (deleted, away, stopped) = (hanging(1)?, hanging(2)?, hanging(3)?);
    let began = Instant::now();
    w.good(Method::DELETE, &format!("/api/sessions/{}", deleted.0), None)?;
    let (status, _) = w.call(Method::GET, &format!("/api/sessions/{}", deleted.0), Some(&w.key), None)?;
    ensure!(status == StatusCode::NOT_FOUND, "{status}");
    let archived =
        w.good(Method::PATCH, &format!("/api/sessions/{}", away.0), Some(json!({"status": "archived"})))?;
    ensure!(archived["session"]["lifecycleState"] == "archived", "{archived}");
    w.good(Method::DELETE, "/api/sandbox", Some(json!({"sessionId": stopped.0})))?;
    ensure!(began.elapsed() < Duration::from_secs(15), "they waited: {:?}", began.elapsed());
    for (_, path, post) in [deleted, away, stopped] {
        ensure!(w.block_on(post)?? == StatusCode::CONFLICT);
        ensure!(gone(&path)?, "{path} is there");
    }
    Ok(())
}

/// What is done to a session's sandbox without the session shows in the session.
pub(crate) fn a_session_says_what_is(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let path = format!("/api/v2/sandboxes/{name}");
    // Its name is its own, also before there is a sandbox.
    let next = w.new_session()?;
    let body = json!({"name": format!("session-{next}")});
    let (status, reply) = w.call(Method::POST, "/api/v2/sandboxes", Some(&w.key), Some(body))?;
    ensure!(status == StatusCode::CONFLICT && reply["error"]["code"] == "conflict", "{status} {reply}");
    let body = Some(json!({"name": format!("session-{next}")}));
    let (status, reply) = w.call(Method::POST, &format!("{path}/fork"), Some(&w.key), body)?;
    ensure!(status == StatusCode::CONFLICT, "{status} {reply}");
    w.post(&next)?;
    w.delete(&format!("session-{next}"))?;
    // One that keeps nothing has its checkout again.
    w.good(Method::PATCH, &path, Some(json!({"persistent": false})))?;
    w.stop(&name)?;
    for _ in 0..2 {
        let made = w.post(&session)?;
        ensure!(made["currentBranch"] == "main", "{made}");
        ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3");
    }
    // A lifetime beyond the maximum says what that is.
    let statuses = (0..40).map(|_| {
        let body = Some(json!({"sessionId": session}));
        w.call(Method::POST, "/api/sandbox/extend", Some(&w.key), body)
    });
    let refused = statuses.collect::<anyhow::Result<Vec<_>>>()?;
    let (status, reply) = refused.last().context("none")?;
    ensure!(*status == StatusCode::BAD_REQUEST, "{status} {reply}");
    ensure!(reply["error"].as_str().is_some_and(|error| error.contains("10h")), "{reply}");
    // Deleted over the other API, there is nothing to come back to.
    for state in ["active", "hibernated"] {
        if state == "hibernated" {
            w.good(Method::POST, "/api/sandbox/snapshot", Some(json!({"sessionId": session})))?;
        }
        w.delete(&name)?;
        let status = w.good(Method::GET, &format!("/api/sandbox/status?sessionId={session}"), None)?;
        ensure!(status["status"] == "no_sandbox" && status["hasSnapshot"] == false, "{state}: {status}");
        let body = || Some(json!({"sessionId": session}));
        let (put, reply) = w.call(Method::PUT, "/api/sandbox/snapshot", Some(&w.key), body())?;
        ensure!(put == StatusCode::NOT_FOUND, "{state}: {put} {reply}");
        let (paused, reply) = w.call(Method::POST, "/api/sandbox/snapshot", Some(&w.key), body())?;
        ensure!(paused == StatusCode::BAD_REQUEST, "{state}: {paused} {reply}");
        w.post(&session)?;
    }
    let (status, reply) = w.call(
        Method::POST,
        "/api/sandbox",
        Some(&w.key),
        Some(json!({"repoUrl": crate::world::REPO, "sessionId": ""})),
    )?;
    ensure!(status == StatusCode::BAD_REQUEST, "{status} {reply}");
    w.delete(&name)
}

/// A stream of events that somebody follows.
struct Followed {
    text: Arc<Mutex<String>>,
    reading: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Followed {
    fn start(w: &World, key: &str, session: &str, last: Option<&str>) -> anyhow::Result<Self> {
        let url = format!("{}/api/sandbox/events?sessionId={session}", w.base);
        let mut request = w.http.get(url).header("x-api-key", key).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let mut answer = w.block_on(async { request.send().await })?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        ensure!(answer.headers()["content-type"] == "text/event-stream");
        let text = Arc::new(Mutex::new(String::new()));
        let read = text.clone();
        let reading = w.spawn(async move {
            while let Some(part) = answer.chunk().await? {
                let part = String::from_utf8_lossy(&part).into_owned();
                read.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
            }
            Ok(())
        });
        Ok(Self { text, reading })
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tells(&self, what: &str) -> anyhow::Result<()> {
        let told = eventually("an event comes", Duration::from_secs(20), || Ok(self.text().contains(what)));
        told.with_context(|| format!("{what:?} is not in {}", self.text()))
    }

    /// Waits for its end; all that it told.
    fn ends(self, w: &World) -> anyhow::Result<String> {
        eventually("the stream ends", Duration::from_secs(30), || Ok(self.reading.is_finished()))?;
        let text = self.text();
        w.block_on(self.reading)??;
        Ok(text)
    }
}

/// Whoever watches a session is told what happens, goes on where they broke off,
/// and hears no more than they may.
pub(crate) fn events_are_told(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    let first = Followed::start(w, &w.key, &session, None)?;
    w.post(&session)?;
    first.tells(r#""reason":"ready""#)?;
    let told = first.text();
    ensure!(told.starts_with("id: 1\nevent: lifecycle\ndata: {"), "{told}");
    let page = w.good(Method::GET, &format!("/api/sandbox/events?sessionId={session}&limit=1"), None)?;
    ensure!(page["events"][0]["reason"] == "provision" && page["next"] == 1, "{page}");
    ensure!(page["events"][0]["actor"] == w.account.as_str(), "{page}");
    let last = told.matches("\nid: ").count() + 1;
    w.good(Method::DELETE, "/api/sandbox", Some(json!({"sessionId": session})))?;
    first.tells(r#""reason":"asleep""#)?;
    // One that broke off after what it knows.
    let again = Followed::start(w, &w.key, &session, Some(&last.to_string()))?;
    again.tells(r#""reason":"asleep""#)?;
    ensure!(!again.text().contains("provision"), "{}", again.text());
    let path = format!("/api/sandbox/events?sessionId={session}");
    for (key, refusal) in
        [(&*w.other_key, StatusCode::FORBIDDEN), ("dormouse_sk_wrong", StatusCode::UNAUTHORIZED)]
    {
        let (status, _) = w.call(Method::GET, &path, Some(key), None)?;
        ensure!(status == refusal, "{status}");
        ensure!(Followed::start(w, key, &session, None).is_err(), "a stream for {status}");
    }
    for wrong in ["&limit=0", "&limit=101", "&limit=x", "&after=-1", "&after=x"] {
        let (status, reply) = w.call(Method::GET, &format!("{path}{wrong}"), Some(&w.key), None)?;
        ensure!(status == StatusCode::BAD_REQUEST, "{wrong}: {status} {reply}");
    }
    let rest = w.good(Method::GET, &format!("{path}&after={last}"), None)?;
    ensure!(rest["next"].is_null() && rest["events"][0]["id"] == last + 1, "{rest}");
    // A key that ends takes its streams along.
    let key = w.new_key()?;
    let watched = Followed::start(w, &key.1, &session, None)?;
    watched.tells("provision")?;
    w.cli(&["key", "revoke", &key.0])?;
    watched.ends(w)?;
    w.good(Method::DELETE, &format!("/api/sessions/{session}"), None)?;
    for stream in [first, again] {
        let told = stream.ends(w)?;
        ensure!(told.trim_end().ends_with("event: deleted\ndata: {}"), "{told}");
    }
    Ok(())
}
