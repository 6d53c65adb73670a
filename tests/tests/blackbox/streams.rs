//! Output and input of commands, and files on their way: nothing is lost without a word,
//! whoever is slow, full, busy or gone.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{World, eventually};

/// The path of a sandbox's commands.
fn commands(w: &World, name: &str) -> anyhow::Result<String> {
    Ok(format!("/api/v2/sandboxes/sessions/{}/cmd", w.run(name)?))
}

/// Starts a command and leaves it; its path.
fn start(w: &World, name: &str, body: Value) -> anyhow::Result<String> {
    let base = commands(w, name)?;
    let started = w.good(Method::POST, &base, Some(body))?;
    Ok(format!("{base}/{}", started["command"]["id"].as_str().context("no id")?))
}

fn bash(script: &str) -> Value {
    json!({"command": "bash", "args": ["-c", script]})
}

/// The lines of an answer in NDJSON.
fn lines(w: &World, path: &str) -> anyhow::Result<Vec<Value>> {
    w.block_on(async {
        let answer = w.http.get(format!("{}{path}", w.base)).header("x-api-key", &w.key).send().await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", answer.status());
        let text = answer.text().await?;
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    })
}

fn ended(w: &World, path: &str) -> anyhow::Result<Value> {
    Ok(w.good(Method::GET, &format!("{path}?wait=true"), None)?["command"].clone())
}

/// A command that fills the sandbox's disk still says what it has to say.
pub(crate) fn a_full_disk_loses_no_output(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let script = "head -c 600000 /dev/zero | tr '\\0' a; echo
        dd if=/dev/zero of=/tmp/fill bs=1M 2>&1 | tail -n 1; dd if=/dev/zero of=/tmp/more bs=4k 2>/dev/null
        head -c 600000 /dev/zero | tr '\\0' b; echo; rm /tmp/fill /tmp/more; echo after";
    let (code, out, err) = w.shell(&name, script)?;
    ensure!(code == 0, "{code} {err}");
    let count = |letter: char| out.chars().filter(|c| *c == letter).count();
    ensure!(
        count('a') >= 600_000 && count('b') >= 600_000 && out.ends_with("after\n"),
        "{} bytes",
        out.len()
    );
    ensure!(out.contains("copied"), "the disk was not filled: {}", out.trim_matches(['a', 'b']));
    w.delete(&name)
}

/// More output than is kept is cut, and what is missing is said: in the output, where it is
/// missing, and in the record.
pub(crate) fn what_is_lost_is_said(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    const BYTES: u64 = 80 << 20;
    let command = start(w, &name, bash(&format!("head -c {BYTES} /dev/zero | tr '\\0' x; echo end >&2")))?;
    let record = ended(w, &command)?;
    let lost = record["__outputLost"].as_u64().context("the record does not say it")?;
    let mut kept = 0;
    let mut told = 0;
    for line in lines(w, &format!("{command}/logs"))? {
        match line["__lost"].as_u64() {
            Some(count) => {
                told += count;
                ensure!(
                    line["stream"] == "stderr" && line["data"].as_str().unwrap_or("").contains("lost here")
                );
            }
            None => kept += line["data"].as_str().unwrap_or("").len() as u64,
        }
    }
    ensure!(told == lost && kept + lost == BYTES + 4, "{kept} kept, {lost} lost, {told} told");
    ensure!(kept > 60 << 20, "only {kept} bytes were kept");
    // The room is for others once it is forgotten; a short one fits beside it.
    ensure!(w.ok(&name, "echo small")? == "small");
    w.delete(&name)
}

/// A reader that takes its time gets all of it, with the exit, while hundreds of commands come
/// and go.
pub(crate) fn a_slow_reader_gets_everything(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    const BYTES: usize = 20_000_000;
    let base = commands(w, &name)?;
    let script = format!("head -c {BYTES} /dev/zero | tr '\\0' x; exit 7");
    let body = json!({"command": "bash", "args": ["-c", script], "wait": true, "logs": true});
    let (url, key) = (format!("{}{base}", w.base), w.key.clone());
    let text = w.block_on(async {
        let answer = w.http.post(&url).header("x-api-key", &key).json(&body).send().await?;
        let mut stream = answer.bytes_stream();
        let mut text = stream.next().await.context("nothing came")??.to_vec();
        let other = json!({"command": "true", "wait": true});
        for _ in 0..300 {
            let one = w.http.post(&url).header("x-api-key", &key).json(&other).send().await?;
            ensure!(one.status() == StatusCode::OK, "{}", one.status());
            one.bytes().await?;
        }
        while let Some(chunk) = stream.next().await {
            text.extend_from_slice(&chunk?);
        }
        anyhow::Ok(text)
    })?;
    let mut bytes = 0;
    let mut exit = None;
    for line in String::from_utf8(text)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        bytes += line["data"].as_str().map_or(0, str::len);
        exit = line["command"]["exitCode"].as_i64().or(exit);
    }
    ensure!(bytes == BYTES && exit == Some(7), "{bytes} bytes, exit {exit:?}");
    w.delete(&name)
}

/// Bytes that are no text come out as they went in.
pub(crate) fn bytes_stay_bytes(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    w.ok(&name, "mkdir -p /tmp/d/e; head -c 300000 /dev/urandom > /tmp/d/e/blob; ln -s e/blob /tmp/d/link")?;
    let sum = w.ok(&name, "sha256sum < /tmp/d/e/blob")?;
    let output = w
        .command(&["sandbox", "exec", &name, "--", "tar", "cz", "-C", "/tmp/d", "."])
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success());
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&output.stdout[..]));
    let target = w.dir.join("unpacked");
    archive.unpack(&target)?;
    let here = Command::new("sha256sum").stdin(std::fs::File::open(target.join("e/blob"))?).output()?;
    ensure!(String::from_utf8(here.stdout)?.trim() == sum);
    // A directory is copied as one.
    let copied = w.dir.join("copied");
    w.cli(&["sandbox", "cp", &format!("{name}:/tmp/d"), &copied.to_string_lossy()])?;
    let here = Command::new("sha256sum").stdin(std::fs::File::open(copied.join("link"))?).output()?;
    ensure!(String::from_utf8(here.stdout)?.trim() == sum && copied.join("link").is_symlink());
    std::fs::remove_dir_all(target)?;
    std::fs::remove_dir_all(copied)?;
    w.delete(&name)
}

/// Standard input is taken whole or refused: by offset, from several at once, after the end.
pub(crate) fn no_input_is_lost(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let command = start(w, &name, json!({"command": "wc", "args": ["-c"], "attachStdin": true}))?;
    let stdin = format!("{command}/stdin");
    // Base64 of a megabyte of zeros.
    let part = json!({"data": "A".repeat(4 * (1 << 20) / 3 / 4 * 4)});
    let size = part["data"].as_str().map_or(0, |data| data.len() / 4 * 3);
    let writers: Vec<_> =
        (0..4).map(|_| w.ask(Method::POST, &stdin, Some(&w.key), Some(part.clone()))).collect();
    for answer in w.block_on(futures::future::join_all(writers)) {
        let (status, reply) = answer?;
        ensure!(status == StatusCode::OK && reply["bytesWritten"].is_u64(), "{status} {reply}");
    }
    let (_, reply) = w.call(Method::POST, &stdin, Some(&w.key), Some(json!({})))?;
    ensure!(reply["bytesWritten"] == 4 * size, "{reply}");
    w.good(Method::POST, &stdin, Some(json!({"close": true})))?;
    ensure!(ended(w, &command)?["exitCode"] == 0);
    let counted = lines(w, &format!("{command}/logs"))?;
    ensure!(counted[0]["data"].as_str().unwrap_or("").trim() == (4 * size).to_string(), "{counted:?}");
    for (command, what) in [
        (command, "ended"),
        (start(w, &name, bash("sleep 1000"))?, "without"),
        (
            start(
                w,
                &name,
                json!({"command": "sh", "args": ["-c", "exec <&-; sleep 1000"], "attachStdin": true}),
            )?,
            "",
        ),
    ] {
        let written =
            || w.call(Method::POST, &format!("{command}/stdin"), Some(&w.key), Some(json!({"data": "eA=="})));
        // The last one closes it in a moment.
        eventually("input is refused", Duration::from_secs(10), || {
            let (status, reply) = written()?;
            let refused =
                status == StatusCode::BAD_REQUEST && reply["error"]["code"] == "command_stdin_unavailable";
            ensure!(refused || status == StatusCode::OK, "{status} {reply}");
            ensure!(!refused || reply["error"]["message"].as_str().unwrap_or("").contains(what), "{reply}");
            Ok(refused)
        })?;
    }
    let unknown = format!("{}/cmd_nothing/stdin", commands(w, &name)?);
    ensure!(w.call(Method::POST, &unknown, Some(&w.key), Some(json!({})))?.0 == StatusCode::NOT_FOUND);
    // A writer that goes away in the middle leaves the input to the next one.
    let command = start(w, &name, json!({"command": "cat", "attachStdin": true}))?;
    let half = tokio_util::io::ReaderStream::new(&b"half "[..]).chain(futures::stream::pending());
    let url = format!("{}{command}/stdin", w.base);
    let request = w.http.post(url).header("x-api-key", &w.key).body(reqwest::Body::wrap_stream(half));
    w.block_on(async { drop(tokio::time::timeout(Duration::from_secs(1), request.send()).await) });
    let body = json!({"data": "ZG9uZQ==", "close": true});
    w.good(Method::POST, &format!("{command}/stdin"), Some(body))?;
    ensure!(ended(w, &command)?["exitCode"] == 0);
    let text: String =
        lines(w, &format!("{command}/logs"))?.iter().filter_map(|line| line["data"].as_str()).collect();
    ensure!(text == "half done", "{text:?}");
    w.delete(&name)
}

/// An answer that waits for a silent command begins long before the command ends.
pub(crate) fn silence_is_no_death(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let command = start(w, &name, bash("sleep 18; exit 3"))?;
    let begun = Instant::now();
    let early = |path: String| {
        let request = w.http.get(format!("{}{path}", w.base)).header("x-api-key", &w.key);
        async move {
            let answer = request.send().await?;
            ensure!(answer.status() == StatusCode::OK, "{path}: {}", answer.status());
            let head = begun.elapsed();
            let mut stream = answer.bytes_stream();
            let mut text = Vec::new();
            let mut first = None;
            while let Some(chunk) = stream.next().await {
                first.get_or_insert(begun.elapsed());
                text.extend_from_slice(&chunk?);
            }
            anyhow::Ok((head, first, text))
        }
    };
    let (waited, logs) = (early(format!("{command}?wait=true")), early(format!("{command}/logs")));
    let (waited, logs) = w.block_on(async { tokio::join!(waited, logs) });
    let ((head, first, text), (logs_head, logs_first, _)) = (waited?, logs?);
    let over = Duration::from_secs(18);
    ensure!(begun.elapsed() >= over, "it did not wait");
    ensure!(
        head < over && first.is_some_and(|first| first < over),
        "the answer to `wait`: {head:?} {first:?}"
    );
    ensure!(logs_head < Duration::from_secs(5), "the head of the output came after {logs_head:?}");
    ensure!(logs_first.is_some_and(|first| first < over), "the first byte of the output: {logs_first:?}");
    let reply: Value = serde_json::from_slice(&text)?;
    ensure!(reply["command"]["exitCode"] == 3, "{reply}");
    w.delete(&name)
}

/// `/dev/stdout` and `/dev/stderr` can be opened, however a command was started.
pub(crate) fn streams_have_names(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let script = "echo out > /dev/stdout; echo err | tee /dev/stderr > /dev/null; cat < /dev/stdin";
    for options in [&[][..], &["--sudo"]] {
        let (code, out, err) = w.exec(&name, options, &["bash", "-c", script])?;
        ensure!(code == 0 && out == "out\n" && err == "err\n", "{options:?}: {code} {out:?} {err:?}");
    }
    let command = start(w, &name, bash(script))?;
    ensure!(ended(w, &command)?["exitCode"] == 0);
    let output = w.command(&["sandbox", "exec", "-t", &name, "--", "sh", "-c", "echo tty > /dev/stdout"]);
    let output = { output }.stdin(Stdio::null()).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("tty"), "{output:?}");
    w.delete(&name)
}

/// A death for lack of memory is called that, and no other is.
pub(crate) fn out_of_memory_is_said(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let hog = "exec python3 -c \"x = []\nwhile True: x.append(bytes(1 << 24))\"";
    // As the command itself, and below a shell.
    for script in [hog, &format!("({hog}); exit $?")] {
        let command = start(w, &name, bash(script))?;
        let record = ended(w, &command)?;
        ensure!(record["exitCode"] == 137 && record["__oom"] == true, "{script}: {record}");
    }
    let (code, _, err) = w.shell(&name, hog)?;
    ensure!(code == 137 && err.contains("out of memory"), "{code} {err}");
    let command = start(w, &name, bash("sleep 1000"))?;
    w.good(Method::POST, &format!("{command}/kill"), Some(json!({"signal": 9})))?;
    let record = ended(w, &command)?;
    ensure!(record["exitCode"] == 137 && record["__oom"].is_null(), "{record}");
    w.delete(&name)
}

/// A signal reaches those who left the group, where the caller asks for it, and a time limit
/// always does.
pub(crate) fn signals_reach_the_tree(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let script = "setsid sh -c 'sleep 7771 & exec sleep 7772' & sleep 7773";
    let sleeping = || w.ok(&name, "pgrep -xc sleep || true");
    let all_there = || eventually("they run", Duration::from_secs(10), || Ok(sleeping()? == "3"));
    let command = start(w, &name, bash(script))?;
    all_there()?;
    w.good(Method::POST, &format!("{command}/kill"), Some(json!({"signal": 9})))?;
    ended(w, &command)?;
    ensure!(sleeping()? == "2", "the control: those who left the group live");
    w.ok(&name, "pkill -x sleep")?;
    let command = start(w, &name, bash(script))?;
    all_there()?;
    w.good(Method::POST, &format!("{command}/kill"), Some(json!({"signal": 9, "__tree": true})))?;
    ensure!(ended(w, &command)?["exitCode"] == 137);
    eventually("the tree is gone", Duration::from_secs(5), || Ok(sleeping()? == "0"))?;
    let (code, _, err) = w.exec(&name, &["--timeout", "1s"], &["bash", "-c", script])?;
    ensure!(code == 137 && err.contains("time limit"), "{code} {err}");
    eventually("the limit takes the tree", Duration::from_secs(5), || Ok(sleeping()? == "0"))?;
    w.delete(&name)
}

/// Hundreds of calls at once are all answered, and beside them a stop still asks first.
pub(crate) fn a_burst_is_no_death(w: &World) -> anyhow::Result<()> {
    let (session, name) = w.sandbox()?;
    let base = commands(w, &name)?;
    let burst = |count: usize, body: Value| {
        let calls = (0..count).map(|_| w.ask(Method::POST, &base, Some(&w.key), Some(body.clone())));
        let calls: Vec<_> = calls.collect();
        w.block_on(futures::future::join_all(calls)).into_iter().collect::<anyhow::Result<Vec<_>>>()
    };
    for (status, reply) in burst(300, json!({"command": "true", "wait": true}))? {
        ensure!(status == StatusCode::OK, "{status} {reply}");
    }
    // More than there are places for: those who do not get one are told so.
    let answers = burst(900, json!({"command": "sleep", "args": ["9"], "wait": true}))?;
    let (served, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(status, _)| *status == StatusCode::OK);
    ensure!(served.len() >= 700 && !refused.is_empty(), "{} served, {} refused", served.len(), refused.len());
    for (status, reply) in refused {
        let said = reply["error"]["message"].as_str().unwrap_or("").contains("at once");
        ensure!(status == StatusCode::TOO_MANY_REQUESTS && said, "{status} {reply}");
    }
    // A program that wants to save before it goes, and more readers than the agent has places.
    let script =
        "trap 'echo saved > /vercel/sandbox/saved; exit' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    let command = start(w, &name, bash(script))?;
    eventually("it runs", Duration::from_secs(10), || Ok(w.read(&name, "/tmp/ready")?.is_some()))?;
    let readers: Vec<_> = (0..1100)
        .map(|_| {
            let request = w.http.get(format!("{}{command}/logs", w.base)).header("x-api-key", &w.key);
            w.spawn(async move { anyhow::Ok(request.send().await?.text().await?) })
        })
        .collect();
    let calls = (0..200).map(|_| {
        let request = w.http.post(format!("{}{base}", w.base)).header("x-api-key", &w.key);
        let request = request.json(&json!({"command": "sleep", "args": ["2"], "wait": true}));
        w.spawn(async move { anyhow::Ok(request.send().await?.text().await?) })
    });
    let calls: Vec<_> = calls.collect();
    std::thread::sleep(Duration::from_millis(700));
    w.stop(&name)?;
    for call in calls.into_iter().chain(readers) {
        // They end with the run, one way or the other.
        drop(w.block_on(call)?);
    }
    w.post(&session)?;
    ensure!(w.ok(&name, "cat saved")? == "saved", "SIGTERM was not sent");
    w.delete(&name)
}

/// A file is replaced whole or not at all, and stays what it is: mode, owner, links.
pub(crate) fn uploads_are_whole(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let write = format!("{}/api/v2/sandboxes/sessions/{}/fs/write", w.base, w.run(&name)?);
    let archive = |path: &str, content: &[u8], mode: u32| {
        let mut packed =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        packed.append_data(&mut header, path, content)?;
        anyhow::Ok(packed.into_inner()?.finish()?)
    };
    let upload = |cwd: &str, body: reqwest::Body| {
        let request = w.http.post(&write).header("x-api-key", &w.key).header("x-cwd", cwd.as_bytes());
        request.header("content-type", "application/gzip").body(body)
    };
    let put = |cwd: &str, path: &str, content: &[u8], mode: u32| {
        let body = archive(path, content, mode)?;
        w.block_on(async {
            let answer = upload(cwd, body.into()).send().await?;
            anyhow::Ok((answer.status(), answer.text().await?))
        })
    };
    let random: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    w.ok(
        &name,
        "mkdir /tmp/up; cd /tmp/up; echo old > file; chmod 600 file; ln -s file link; echo x > script
        chmod 755 script; ln script hard; mkfifo fifo; sudo sh -c 'echo root > roots; chmod 666 roots'",
    )?;
    // It breaks off in the middle.
    let body = archive("file", &random, 0o644)?;
    let half = body[..body.len() / 2].to_vec();
    let broken = futures::stream::iter([Ok(half), Err(std::io::Error::other("gone"))]);
    w.block_on(async { drop(upload("/tmp/up", reqwest::Body::wrap_stream(broken)).send().await) });
    let look = "cd /tmp/up; cat file; stat -c %a file; ls -A | wc -l";
    eventually("nothing is left beside it", Duration::from_secs(10), || {
        Ok(w.ok(&name, look)? == "old\n600\n6")
    })?;
    // Readers see one or the other, and writers do not fight.
    let mut readers = Vec::new();
    for _ in 0..4 {
        let script = "cd /tmp/up; for i in $(seq 300); do wc -c < link; done | sort -u";
        let base = format!("{}{}", w.base, commands(w, &name)?);
        let body = json!({"command": "bash", "args": ["-c", script], "wait": true, "logs": true});
        let request = w.http.post(base).header("x-api-key", &w.key).json(&body);
        readers.push(w.spawn(async move { anyhow::Ok(request.send().await?.text().await?) }));
    }
    let mut writers = Vec::new();
    for round in 0..12 {
        let content = if round % 2 == 0 { &random[..] } else { b"new\n" };
        let request = upload("/tmp/up", archive("link", content, 0o644)?.into());
        writers.push(async move { request.send().await });
    }
    for answer in w.block_on(futures::future::join_all(writers)) {
        ensure!(answer?.status() == StatusCode::OK);
    }
    for reader in readers {
        for line in w.block_on(reader)??.lines() {
            let line: Value = serde_json::from_str(line)?;
            for size in line["data"].as_str().unwrap_or("").lines() {
                ensure!(["4", "3000000"].contains(&size), "a reader saw {size} bytes");
            }
        }
    }
    for (path, mode) in [("link", 0o644), ("hard", 0o644), ("roots", 0o644)] {
        let (status, text) = put("/tmp/up", path, b"last\n", mode)?;
        ensure!(status == StatusCode::OK, "{path}: {text}");
    }
    let found =
        w.ok(&name, "cd /tmp/up; cat file script roots; stat -c '%a %U %h %F' file link script roots")?;
    let expected = "last\nlast\nlast\n600 ubuntu 1 regular file\n777 ubuntu 1 symbolic link\n\
        755 ubuntu 2 regular file\n666 root 1 regular file";
    ensure!(found == expected, "{found}");
    put("/tmp/up", "file", b"run\n", 0o755)?;
    ensure!(w.ok(&name, "stat -c %a /tmp/up/file")? == "755", "a mode that is meant");
    // Errors name the path and the cause.
    for (cwd, path, words) in [
        ("/tmp", "up", "Is a directory"),
        ("/etc", "passwd", "Permission denied"),
        ("/tmp/up", "file/below", "Not a directory"),
    ] {
        let (status, text) = put(cwd, path, b"x", 0o644)?;
        ensure!(
            status == StatusCode::BAD_REQUEST
                && text.contains(words)
                && text.contains(path.trim_end_matches("/below")),
            "{status} {text}"
        );
    }
    let (status, text) = put("/tmp/up", "huge", &vec![0; 300 << 20], 0o644)?;
    ensure!(status == StatusCode::BAD_REQUEST && text.contains("quota"), "{status} {text}");
    let (status, text) = put("/tmp/münchen", "datei", b"da", 0o644)?;
    ensure!(status == StatusCode::OK && w.ok(&name, "cat /tmp/münchen/datei")? == "da", "{status} {text}");
    let bad = w.block_on(async {
        let request =
            w.http.post(&write).header("x-api-key", &w.key).header("content-type", "application/gzip");
        let value = reqwest::header::HeaderValue::from_bytes(b"/tmp/\xff\xfe")?;
        anyhow::Ok(request.header("x-cwd", value).body(archive("x", b"x", 0o644)?).send().await?.status())
    })?;
    ensure!(bad == StatusCode::BAD_REQUEST, "{bad}");
    w.delete(&name)
}

/// The command line is what users of `ssh` and `docker exec` expect.
pub(crate) fn the_command_line(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let binary = crate::world::binary("dormouse");
    let piped = |script: &str, input: &str| {
        let mut child = Command::new("bash")
            .args(["-c", script, binary.to_str().unwrap_or_default(), &name])
            .envs(w.command(&["x"]).get_envs().filter_map(|(key, value)| Some((key, value?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        anyhow::Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
    };
    // Without -i the loop's input is the loop's.
    let out = piped("while read x; do $0 sandbox exec $1 -- echo got $x; done", "a\nb\nc\n")?;
    ensure!(out == "got a\ngot b\ngot c\n", "{out:?}");
    ensure!(piped("$0 sandbox exec $1 -- cat", "ignored")?.is_empty());
    ensure!(piped("$0 sandbox exec -i $1 -- tr a-z A-Z", "shout")? == "SHOUT");
    ensure!(piped("$0 sandbox exec $1 -- seq 1000000 | head -n 1", "")? == "1\n");
    // Control-C ends the command, not only the wait for it.
    let mut child = w
        .command(&[
            "sandbox",
            "exec",
            &name,
            "--",
            "bash",
            "-c",
            "trap 'echo bye; exit 5' INT; echo up; sleep 7781 & wait",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().context("stdout")?;
    let mut first = [0; 3];
    out.read_exact(&mut first)?;
    ensure!(&first == b"up\n");
    Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    ensure!(rest == "bye\n" && child.wait()?.code() == Some(5), "{rest:?}");
    // What is left running is found and ended.
    let id = w.text(&["sandbox", "exec", "-d", &name, "--", "sleep", "7782"])?;
    let listed = w.text(&["sandbox", "ps", &name])?;
    ensure!(listed.contains(&id) && listed.contains("running") && listed.contains("sleep 7782"), "{listed}");
    w.cli(&["sandbox", "kill", &name, &id, "--signal", "KILL"])?;
    eventually("it ends", Duration::from_secs(5), || Ok(!w.text(&["sandbox", "ps", &name])?.contains(&id)))?;
    ensure!(w.text(&["sandbox", "ps", "--all", &name])?.contains("exited 137"));
    // An executable of another machine is none of a shell's.
    w.ok(&name, "printf '\\177ELF\\2\\1\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\267\\0' > /tmp/arm; chmod +x /tmp/arm; echo 'echo script' > /tmp/plain; chmod +x /tmp/plain")?;
    let (code, _, err) = w.exec(&name, &[], &["/tmp/arm"])?;
    ensure!(code == 126 && err.contains("another kind of machine"), "{code} {err}");
    ensure!(w.exec(&name, &[], &["/tmp/plain"])?.1 == "script\n", "a script without #! still runs");
    // Root on somebody's behalf, as sudo has it.
    let (_, out, _) = w.exec(
        &name,
        &["--sudo"],
        &["sh", "-c", "echo $SUDO_USER $SUDO_UID $SUDO_GID; git log -1 --format=%s"],
    )?;
    ensure!(out == "ubuntu 1000 1000\ncommit 3\n", "{out:?}");
    // What was asked for at the creation holds in a login shell too.
    w.cli(&["sandbox", "create", "paths", "--env", "PATH=/opt/mine:/usr/bin:/bin", "--env", "MINE=yes"])?;
    for argv in [&["sh", "-c", "echo $PATH $MINE"][..], &["bash", "-lc", "echo $PATH $MINE"]] {
        let (_, out, _) = w.exec("paths", &[], argv)?;
        // Debian's `~/.profile` puts `~/.local/bin` in front.
        ensure!(out.trim_end().ends_with("/opt/mine:/usr/bin:/bin yes"), "{argv:?}: {out}");
    }
    w.delete("paths")?;
    w.delete(&name)
}

/// Refusals below the provider API have its shape, and nothing that cannot change is taken.
pub(crate) fn refusals(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let path = format!("/api/v2/sandboxes/{name}");
    for field in ["env", "name", "vcpus", "image", "colour"] {
        let (status, reply) = w.call(Method::PATCH, &path, Some(&w.key), Some(json!({field: "x"})))?;
        let said = reply["error"]["message"].as_str().unwrap_or("").starts_with(field);
        ensure!(status == StatusCode::BAD_REQUEST && said, "{field}: {status} {reply}");
    }
    let before = w.good(Method::GET, &path, None)?["sandbox"].clone();
    ensure!(w.good(Method::PATCH, &path, Some(json!({})))?["sandbox"]["name"] == before["name"]);
    let shape = |method, path: &str, body| {
        let (status, reply) = w.call(method, path, Some(&w.key), body)?;
        ensure!(
            reply["error"]["code"].is_string() && reply["error"]["message"].is_string(),
            "{path}: {status} {reply}"
        );
        anyhow::Ok(status)
    };
    let huge = json!({"command": "x".repeat(1 << 20)});
    ensure!(shape(Method::POST, &commands(w, &name)?, Some(huge))? == StatusCode::PAYLOAD_TOO_LARGE);
    ensure!(shape(Method::POST, &commands(w, &name)?, Some(json!([])))? == StatusCode::BAD_REQUEST);
    ensure!(shape(Method::GET, "/api/v2/nothing/here", None)? == StatusCode::NOT_FOUND);
    ensure!(shape(Method::PUT, &path, None)? == StatusCode::METHOD_NOT_ALLOWED);
    let (status, reply) = w.call(Method::GET, "/api/nothing", Some(&w.key), None)?;
    ensure!(
        status == StatusCode::NOT_FOUND && reply["status"] == "error",
        "the session API keeps its own: {reply}"
    );
    w.delete(&name)
}

/// Whoever deletes the snapshot that a sandbox would start from is told so, and the sandbox
/// starts from its image again once somebody says so.
pub(crate) fn a_sandbox_begins_again(w: &World) -> anyhow::Result<()> {
    let name = "again";
    w.cli(&["sandbox", "create", name])?;
    w.ok(name, "echo mine > /tmp/mine")?;
    let snapshot = w.text(&["sandbox", "snapshot", name])?;
    let deleted = w.cli(&["snapshot", "delete", &snapshot])?;
    let words = String::from_utf8_lossy(&deleted.stderr).into_owned();
    ensure!(words.contains(name) && words.contains("--image"), "{words}");
    let (code, _, err) = w.shell(name, "true")?;
    ensure!(code != 0 && err.contains("gone"), "{code} {err}");
    w.cli(&["sandbox", "rollback", name, "--image"])?;
    ensure!(w.ok(name, "cat /tmp/mine 2>/dev/null || echo nothing")? == "nothing");
    w.delete(name)
}
