//! The provider API where clients from the registry do not reach: owners,
//! answers that got lost, time that passes, ports, policies that hold.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::lifecycle::kill_first_process;
use crate::public::{ADDRESS, PublicServer};
use crate::world::{World, eventually};

const SANDBOXES: &str = "/api/v2/sandboxes";

fn make(w: &World, body: Value) -> anyhow::Result<Value> {
    w.good(Method::POST, SANDBOXES, Some(body))
}

fn id_of(reply: &Value) -> anyhow::Result<String> {
    Ok(reply["session"]["id"].as_str().context("no session id")?.to_owned())
}

fn json_cli(w: &World, args: &[&str]) -> anyhow::Result<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    Ok(serde_json::from_slice(&w.cli(&args)?.stdout)?)
}

/// One owner's sandboxes are not there for another; an organization's are
/// there for its members alone.
pub(crate) fn owners_and_teams(w: &World) -> anyhow::Result<()> {
    let made = make(w, json!({"name": "mine"}))?;
    let run = id_of(&made)?;
    let snapshot = {
        let reply = w.good(Method::POST, &format!("{SANDBOXES}/sessions/{run}/snapshot"), None)?;
        reply["snapshot"]["id"].as_str().context("snapshot")?.to_owned()
    };
    let command = json!({"command": "true"});
    for (method, path, body) in [
        (Method::GET, format!("{SANDBOXES}/mine"), None),
        (Method::GET, format!("{SANDBOXES}/mine?resume=true"), None),
        (Method::PATCH, format!("{SANDBOXES}/mine"), Some(json!({"timeout": 60_000}))),
        (Method::DELETE, format!("{SANDBOXES}/mine"), None),
        (Method::POST, format!("{SANDBOXES}/mine/fork"), Some(json!({}))),
        (Method::GET, format!("{SANDBOXES}/sessions/{run}"), None),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/stop"), None),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/cmd"), Some(command.clone())),
        (Method::GET, format!("{SANDBOXES}/sessions/{run}/cmd"), None),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/interactive"), Some(json!({}))),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/fs/read"), Some(json!({"path": "/etc/passwd"}))),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/extend-timeout"), Some(json!({"duration": 1000}))),
        (
            Method::POST,
            format!("{SANDBOXES}/sessions/{run}/network-policy"),
            Some(json!({"mode": "allow-all"})),
        ),
        (Method::GET, format!("{SANDBOXES}/snapshots/{snapshot}"), None),
        (Method::DELETE, format!("{SANDBOXES}/snapshots/{snapshot}"), None),
        (Method::GET, format!("{SANDBOXES}/snapshots/tree?snapshotId={snapshot}"), None),
        (Method::GET, format!("/api/v1/sandboxes/{run}"), None),
    ] {
        let (status, reply) = w.call(method.clone(), &path, Some(&w.other_key), body)?;
        ensure!(status == StatusCode::NOT_FOUND, "{method} {path}: {status} {reply}");
        ensure!(reply["error"]["code"].is_string(), "{reply}");
    }
    let from = json!({"name": "theirs", "source": {"type": "snapshot", "snapshotId": snapshot}});
    let (status, reply) = w.call(Method::POST, SANDBOXES, Some(&w.other_key), Some(from))?;
    ensure!(status == StatusCode::GONE && reply["error"]["code"] == "snapshot_not_found", "{status} {reply}");
    for list in ["", "/sessions", "/snapshots"] {
        let (_, reply) = w.call(Method::GET, &format!("{SANDBOXES}{list}"), Some(&w.other_key), None)?;
        ensure!(reply["pagination"]["count"] == 0, "{list}: {reply}");
    }

    // An organization: one of the two belongs to it.
    let org = json_cli(w, &["org", "create", "owls"])?["id"].as_str().context("org")?.to_owned();
    w.cli(&["org", "add-member", &org, &w.account])?;
    for team in [org.as_str(), "owls"] {
        let name = format!("of-{team}");
        w.good(Method::POST, &format!("{SANDBOXES}?teamId={team}"), Some(json!({"name": name})))?;
        w.good(Method::GET, &format!("{SANDBOXES}/{name}?teamId=owls"), None)?;
        let own = w.call(Method::GET, &format!("{SANDBOXES}/{name}"), Some(&w.key), None)?;
        ensure!(own.0 == StatusCode::NOT_FOUND, "it is the organization's, not the member's");
        let outside =
            w.call(Method::GET, &format!("{SANDBOXES}/{name}?teamId={team}"), Some(&w.other_key), None)?;
        ensure!(outside.0 == StatusCode::FORBIDDEN, "{outside:?}");
        w.good(Method::DELETE, &format!("{SANDBOXES}/{name}?slug=owls"), None)?;
    }
    let strangers =
        w.call(Method::GET, &format!("{SANDBOXES}?teamId={}", w.account), Some(&w.other_key), None)?;
    ensure!(strangers.0 == StatusCode::FORBIDDEN, "{strangers:?}");
    // Projects keep names apart.
    make(w, json!({"name": "mine", "projectId": "second"}))?;
    w.good(Method::DELETE, &format!("{SANDBOXES}/mine?projectId=second"), None)?;
    w.good(Method::DELETE, &format!("{SANDBOXES}/mine?deleteOrphanSnapshots=true"), None).map(drop)
}

/// A client that never saw the answer to its creation sends it again.
pub(crate) fn lost_answers(w: &World) -> anyhow::Result<()> {
    let body = json!({"name": "lost", "timeout": 60_000}).to_string();
    let address = w.base.trim_start_matches("http://");
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "POST {SANDBOXES} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            w.key,
            body.len()
        )?;
        // Gone before the answer.
        drop(stream);
    }
    let first = make(w, serde_json::from_str(&body)?)?;
    let runs = w.good(Method::GET, &format!("{SANDBOXES}/sessions?name=lost"), None)?;
    ensure!(runs["pagination"]["count"] == 1, "made more than once: {runs}");
    ensure!(runs["sessions"][0]["id"] == first["session"]["id"], "{runs}");
    // Now that somebody has the answer, the name is taken.
    let (status, _) = w.call(Method::POST, SANDBOXES, Some(&w.key), Some(serde_json::from_str(&body)?))?;
    ensure!(status == StatusCode::CONFLICT, "{status}");
    w.delete("lost")
}

/// Snapshots go when their time has come, and are recorded as gone.
pub(crate) fn snapshots_expire(w: &World) -> anyhow::Result<()> {
    let run = id_of(&make(w, json!({"name": "fleeting"}))?)?;
    let path = format!("{SANDBOXES}/sessions/{run}/snapshot");
    let reply = w.good(Method::POST, &path, Some(json!({"expiration": 1000})))?;
    ensure!(reply["snapshot"]["expiresAt"].is_i64(), "{reply}");
    let id = reply["snapshot"]["id"].as_str().context("id")?.to_owned();
    eventually("it expires", Duration::from_secs(40), || {
        Ok(w.good(Method::GET, &format!("{SANDBOXES}/snapshots/{id}"), None)?["snapshot"]["status"]
            == "deleted")
    })?;
    let resume = format!("{SANDBOXES}/fleeting?resume=true");
    let (status, reply) = w.call(Method::GET, &resume, Some(&w.key), None)?;
    ensure!(status == StatusCode::GONE && reply["error"]["code"] == "snapshot_not_found", "{status} {reply}");
    w.delete("fleeting")
}

/// What is done in a session's sandbox through this API is use of the session.
pub(crate) fn use_of_a_session(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let row = |w: &World| w.good(Method::GET, &format!("/api/sessions/{session}"), None);
    let mut last = row(w)?["session"]["lastActivityAt"].clone();
    let run = id_of(&w.good(Method::GET, &format!("{SANDBOXES}/{name}"), None)?)?;
    let uses = [
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/cmd"), Some(json!({"command": "true"}))),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/fs/mkdir"), Some(json!({"path": "made"}))),
        (Method::POST, format!("{SANDBOXES}/sessions/{run}/interactive"), Some(json!({}))),
    ];
    for (method, path, body) in uses {
        std::thread::sleep(Duration::from_millis(20));
        w.good(method, &path, body)?;
        let now = row(w)?["session"]["lastActivityAt"].clone();
        ensure!(now != last, "{path} is no use: {now}");
        last = now;
    }
    // To look is not to use.
    std::thread::sleep(Duration::from_millis(20));
    w.good(Method::GET, &format!("{SANDBOXES}/{name}"), None)?;
    ensure!(row(w)?["session"]["lastActivityAt"] == last, "a look counts as use");
    // Woken here, it is awake there.
    w.stop(&name)?;
    w.good(Method::GET, &format!("{SANDBOXES}/{name}?resume=true"), None)?;
    let status = w.good(Method::GET, &format!("/api/sandbox/status?sessionId={session}"), None)?;
    ensure!(status["status"] == "active", "{status}");
    w.delete(&name)
}

/// Who asks for a published port: status and body.
fn fetch(w: &World, headers: &[(&str, &str)], path: &str) -> anyhow::Result<(StatusCode, String)> {
    let mut request = w.http.get(format!("{}{path}", w.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    w.block_on(async {
        let answer = request.send().await?;
        Ok((answer.status(), answer.text().await?))
    })
}

/// Ports wake their sandbox when that is asked for, and the first label of the
/// host decides, as whoever is trusted says it.
pub(crate) fn ports_wake(w: &World) -> anyhow::Result<()> {
    let made = make(w, json!({"name": "served", "ports": [8000]}))?;
    let label = made["routes"][0]["subdomain"].as_str().context("subdomain")?.to_owned();
    let serve = "cd /tmp && echo hello > index.html && (python3 -m http.server 8000 >/dev/null 2>&1 &) && \
                 for i in 1 2 3 4 5 6 7 8 9; do curl -s -o /dev/null localhost:8000 && break; sleep 0.2; done";
    w.ok("served", serve)?;
    let anywhere = format!("{label}.sandboxes.example.test");
    for headers in [vec![("host", anywhere.as_str())], vec![("x-forwarded-host", anywhere.as_str())]] {
        let (status, text) = fetch(w, &headers, "/")?;
        ensure!(status == StatusCode::OK && text == "hello\n", "{headers:?}: {status} {text}");
    }
    // 64 MB through the proxy.
    w.ok(
        "served",
        "head -c 64000000 /dev/urandom > /tmp/large; sha256sum /tmp/large | cut -c1-64 > /tmp/sum",
    )?;
    let body = w.block_on(async {
        let request = w.http.get(format!("{}/large", w.base)).header("host", &anywhere);
        request.send().await?.bytes().await
    })?;
    let digest: String = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(&body))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(w.ok("served", "cat /tmp/sum")? == digest, "the download changed");
    // A program whose answer's head never ends is refused, and costs the server no memory.
    let endless = "import socket
server = socket.create_server(('', 8000))
print('listening', flush=True)
while True:
    one = server.accept()[0]
    try:
        one.recv(65536); one.sendall(b'HTTP/1.1 200 OK\\r\\n')
        for n in range(1 << 20): one.sendall(b'X-%d: %s\\r\\n' % (n, b'y' * 1000))
        print('took it all', flush=True)
    except OSError: print('cut', flush=True)";
    w.ok(
        "served",
        &format!(
            "pkill -f [h]ttp.server; cat > /tmp/endless.py <<'E'\n{endless}\nE\n\
             (setsid python3 /tmp/endless.py > /tmp/endless 2>&1 &); \
             for i in $(seq 50); do grep -q listening /tmp/endless && break; sleep 0.1; done"
        ),
    )?;
    let (status, text) = fetch(w, &[("host", &anywhere)], "/")?;
    ensure!(status == StatusCode::BAD_GATEWAY && text.contains("SANDBOX_UNREACHABLE"), "{status} {text}");
    eventually("its connection is cut", Duration::from_secs(5), || {
        Ok(w.ok("served", "tail -1 /tmp/endless")? == "cut")
    })?;
    w.stop("served")?;
    let (status, text) = fetch(w, &[("host", &anywhere)], "/")?;
    ensure!(status == StatusCode::GONE && text.contains("SANDBOX_STOPPED"), "{status} {text}");

    w.end_server("-TERM")?;
    w.serve_with(&[("DORMOUSE_PORTS__WAKE_ON_TRAFFIC", "true"), ("DORMOUSE_PORTS__TRUSTED_PROXIES", "[]")])?;
    let outcome = (|| {
        // Nobody is trusted any more: this is a request to the API.
        let (status, _) = fetch(w, &[("x-forwarded-host", &anywhere)], "/healthz")?;
        ensure!(status == StatusCode::OK, "an untrusted header decided: {status}");
        let (status, text) = fetch(w, &[("host", &anywhere)], "/")?;
        ensure!(
            status == StatusCode::BAD_GATEWAY && text.contains("SANDBOX_NOT_LISTENING"),
            "{status} {text}"
        );
        let found = w.good(Method::GET, &format!("{SANDBOXES}/served"), None)?;
        ensure!(found["session"]["status"] == "running", "traffic did not wake it: {found}");
        let unknown = fetch(w, &[("host", "dm-aaaaaaaaaaaaaaaaaaaa.localhost")], "/")?;
        ensure!(unknown.0 == StatusCode::NOT_FOUND && unknown.1.contains("SANDBOX_NOT_FOUND"), "{unknown:?}");
        traffic_wakes_a_session(w)
    })();
    w.end_server("-TERM")?;
    w.serve()?;
    outcome?;
    w.delete("served")
}

/// A session whose sandbox is woken by traffic is awake, also where nothing
/// listens; that of an archived one stays asleep, whoever asks.
fn traffic_wakes_a_session(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let sandbox = format!("{SANDBOXES}/{name}");
    let changed = w.good(Method::PATCH, &sandbox, Some(json!({"ports": [8000]})))?;
    let host = format!("{}.localhost", changed["routes"][0]["subdomain"].as_str().context("subdomain")?);
    let visit = || fetch(w, &[("host", &host)], "/");
    let says = |status: StatusCode, word: &str| -> anyhow::Result<()> {
        let (got, text) = visit()?;
        ensure!(got == status && text.contains(word), "{got} {text}, not {status} {word}");
        Ok(())
    };
    for _ in 0..2 {
        // Use that was noted a moment ago does not hide the one that wakes it.
        says(StatusCode::BAD_GATEWAY, "SANDBOX_NOT_LISTENING")?;
        let status = w.good(Method::GET, &format!("/api/sandbox/status?sessionId={session}"), None)?;
        ensure!(status["lifecycle"]["state"] == "active", "{status}");
        w.good(Method::POST, "/api/sandbox/snapshot", Some(json!({"sessionId": session})))?;
    }
    let path = format!("/api/sessions/{session}");
    w.good(Method::PATCH, &path, Some(json!({"status": "archived"})))?;
    says(StatusCode::GONE, "SANDBOX_STOPPED")?;
    let (status, body) = w.call(Method::GET, &format!("{sandbox}?resume=true"), Some(&w.key), None)?;
    ensure!(status == StatusCode::CONFLICT && body["error"]["code"] == "conflict", "{status} {body}");
    let found = w.good(Method::GET, &sandbox, None)?;
    ensure!(found["sandbox"]["status"] == "stopped", "{found}");
    w.good(Method::PATCH, &path, Some(json!({"status": "running"})))?;
    says(StatusCode::BAD_GATEWAY, "SANDBOX_NOT_LISTENING")?;
    w.delete(&name)
}

/// Policies by networks hold for what is public, from the first instruction
/// and for connections that are open.
pub(crate) fn policies_hold(w: &World) -> anyhow::Result<()> {
    let files = w.dir.join("public");
    let public = PublicServer::start(&files)?;
    std::fs::write(files.join("hello"), "hello\n")?;
    let reach = format!("curl -s -m 4 http://{ADDRESS}/hello");
    let reached = |name: &str| -> anyhow::Result<bool> { Ok(w.shell(name, &reach)?.1 == "hello\n") };
    let network = |rest: Value| json!({"subnets": rest});
    for (name, policy, expected) in [
        ("net-all", json!({"mode": "allow-all"}), true),
        ("net-none", json!({"mode": "deny-all"}), false),
        ("net-this", network(json!({"allow": ["45.66.77.0/24"]})), true),
        ("net-other", network(json!({"allow": ["45.66.78.0/24"]})), false),
        ("net-but", network(json!({"allow": ["45.66.0.0/16"], "deny": ["45.66.77.88/32"]})), false),
    ] {
        make(w, json!({"name": name, "networkPolicy": policy}))?;
        ensure!(reached(name)? == expected, "{name} under {policy}");
        // The next run has it too.
        w.stop(name)?;
        ensure!(reached(name)? == expected, "{name} under {policy}, after a resume");
        w.delete(name)?;
    }
    let run = id_of(&make(w, json!({"name": "net-change"}))?)?;
    ensure!(reached("net-change")?);
    // A connection that stays open and says nothing is cut by the change.
    let open = format!("exec 3<>/dev/tcp/{ADDRESS}/80; echo open; read -t 20 line <&3; echo cut $?");
    let mut child = w
        .command(&["sandbox", "exec", "net-change", "--", "bash", "-c", &open])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("stdout")?;
    let mut line = [0; 5];
    output.read_exact(&mut line)?;
    ensure!(&line == b"open\n");
    let began = std::time::Instant::now();
    let policy = format!("{SANDBOXES}/sessions/{run}/network-policy");
    w.good(Method::POST, &policy, Some(json!({"mode": "deny-all"})))?;
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    child.wait()?;
    ensure!(
        rest.trim() == "cut 1" && began.elapsed() < Duration::from_secs(15),
        "{rest:?} {:?}",
        began.elapsed()
    );
    ensure!(!reached("net-change")?);
    w.good(Method::POST, &policy, Some(json!({"mode": "allow-all"})))?;
    ensure!(reached("net-change")?);
    w.delete("net-change")?;
    drop(public);
    Ok(())
}

/// An archive behind a URL is put in before the sandbox is handed over, even
/// when its own policy would not let it out.
pub(crate) fn tarballs(w: &World) -> anyhow::Result<()> {
    let files = w.dir.join("archives");
    let public = PublicServer::start(&files)?;
    let script = "mkdir -p pack/deep && echo content > pack/deep/file && chmod 755 pack/deep/file && \
                  tar -czf pack.tgz -C pack . && tar -cJf pack.tar.xz -C pack . && tar -cf pack.tar -C pack . && echo no > bad.tgz";
    ensure!(Command::new("sh").args(["-c", script]).current_dir(&files).status()?.success());
    for (number, archive) in ["pack.tgz", "pack.tar.xz", "pack.tar"].iter().enumerate() {
        let name = format!("tar-{number}");
        let source = json!({"type": "tarball", "url": format!("http://{ADDRESS}/{archive}")});
        make(w, json!({"name": name, "source": source, "networkPolicy": {"mode": "deny-all"}}))?;
        let found = w.ok(&name, "cat deep/file; stat -c '%U %a' deep/file")?;
        ensure!(found == "content\nubuntu 755", "{archive}: {found}");
        w.delete(&name)?;
    }
    for archive in ["bad.tgz", "none.tgz"] {
        let source = json!({"type": "tarball", "url": format!("http://{ADDRESS}/{archive}")});
        let body = json!({"name": "tar-bad", "source": source});
        let (status, reply) = w.call(Method::POST, SANDBOXES, Some(&w.key), Some(body))?;
        ensure!(status == StatusCode::BAD_REQUEST, "{archive}: {status} {reply}");
        let (status, _) = w.call(Method::GET, &format!("{SANDBOXES}/tar-bad"), Some(&w.key), None)?;
        ensure!(status == StatusCode::NOT_FOUND, "{archive} left a sandbox");
    }
    drop(public);
    Ok(())
}

/// A server that is killed forgets neither whose a drive is nor what is in it, and leaves no
/// view behind.
pub(crate) fn drives_outlive_a_crash(w: &World) -> anyhow::Result<()> {
    let drive = "/api/v2/sandboxes/drives/crash";
    w.call(Method::POST, drive, Some(&w.key), Some(json!({"maxSizeBytes": 64 << 20})))?;
    let make = |name: &str, mode: &str| {
        let mounts = json!({"/data": {"drive": "crash", "mode": mode}});
        w.call(Method::POST, SANDBOXES, Some(&w.key), Some(json!({"name": name, "mounts": mounts})))
    };
    let (status, reply) = make("drive-writer", "read-write")?;
    ensure!(status == StatusCode::OK, "{reply}");
    w.ok("drive-writer", "echo before > /data/file && sync")?;
    let (status, reply) = make("drive-reader", "snapshot")?;
    ensure!(status == StatusCode::OK, "{reply}");
    let views = || anyhow::Ok(std::fs::read_dir(w.dir.join("data/pool/views"))?.count());
    ensure!(views()? == 1, "the control");
    w.end_server("-KILL")?;
    w.serve()?;
    // Both go on where they were, and the drive is still taken.
    ensure!(w.ok("drive-writer", "echo after >> /data/file; cat /data/file")? == "before\nafter");
    ensure!(
        w.ok("drive-reader", "cat /data/file; touch /data/x 2>&1 | grep -o 'Read-only file system'")?
            == "before\nRead-only file system"
    );
    let (status, reply) = make("drive-second", "read-write")?;
    ensure!(status == StatusCode::CONFLICT, "{status} {reply}");
    // A writer that dies gives it back, and a run that died with its server leaves no view.
    kill_first_process(w, "drive-writer")?;
    eventually("the drive is free", Duration::from_secs(10), || {
        Ok(w.good(Method::GET, drive, None)?["drive"]["currentSessionId"].is_null())
    })?;
    let (status, reply) = make("drive-second", "read-write")?;
    ensure!(status == StatusCode::OK, "{status} {reply}");
    ensure!(w.ok("drive-second", "cat /data/file")? == "before\nafter");
    w.end_server("-KILL")?;
    let reader = w.run("drive-reader").err();
    ensure!(reader.is_some(), "the control: nobody serves");
    w.serve()?;
    for name in ["drive-reader", "drive-second", "drive-writer"] {
        w.delete(name)?;
    }
    eventually("views go with their runs", Duration::from_secs(20), || Ok(views()? == 0))?;
    w.good(Method::DELETE, drive, None)?;
    let drives = || anyhow::Ok(std::fs::read_dir(w.dir.join("data/pool/drives"))?.count());
    eventually("its files go", Duration::from_secs(20), || Ok(drives()? == 0))
}

/// A storage driver without drives says so before anything is made.
pub(crate) fn no_drives(w: &World) -> anyhow::Result<()> {
    let (status, reply) =
        w.call(Method::POST, "/api/v2/sandboxes/drives/none", Some(&w.key), Some(json!({})))?;
    let said = reply["error"]["message"].as_str().unwrap_or_default().contains("btrfs");
    ensure!(status == StatusCode::BAD_REQUEST && said, "{status} {reply}");
    let body = json!({"name": "no-drives", "mounts": {"/data": {"drive": "none", "mode": "read-write"}}});
    let (status, reply) = w.call(Method::POST, SANDBOXES, Some(&w.key), Some(body))?;
    let said = reply["error"]["message"].as_str().unwrap_or_default().contains("btrfs");
    ensure!(status == StatusCode::BAD_REQUEST && said, "{status} {reply}");
    let (status, _) = w.call(Method::GET, &format!("{SANDBOXES}/no-drives"), Some(&w.key), None)?;
    ensure!(status == StatusCode::NOT_FOUND, "a sandbox was made");
    Ok(())
}
