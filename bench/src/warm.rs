//! What org snapshots are for: a first sandbox with its clone beside one from the
//! org snapshot and one that wakes, over HTTP, for repositories of growing size; and
//! many at once.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, Server};
use crate::timing::{ratio, show, times};

/// Files of the repositories.
const SIZES: [usize; 3] = [100, 10_000, 50_000];

/// Cold starts of each, and warm ones.
const COLD: usize = 8;
const WARM: usize = 48;

/// Warm ones at once.
const AT_ONCE: usize = 100;

/// A repository with so many files of some hundred bytes, fifty a directory.
fn make_repository(dir: &Path, files: usize) -> anyhow::Result<()> {
    let bare = dir.join(format!("git/files/n{files}.git"));
    let run = Command::new("git").args(["init", "--quiet", "--bare", "-b", "main"]).arg(&bare).status()?;
    ensure!(run.success(), "git init");
    let mut import = Command::new("git")
        .arg("-C")
        .arg(&bare)
        .args(["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut script = std::io::BufWriter::new(import.stdin.take().context("stdin")?);
    writeln!(script, "commit refs/heads/main\ncommitter Bench <bench@example.test> 0 +0000\ndata 4\nmany")?;
    for number in 0..files {
        let text = format!("file {number}\n").repeat(16 + number % 16);
        let (directory, length) = (number / 50, text.len());
        writeln!(script, "M 100644 inline d{directory}/f{number}\ndata {length}\n{text}")?;
    }
    script.flush()?;
    drop(script);
    ensure!(import.wait()?.success(), "git fast-import");
    let packed = Command::new("git").arg("-C").arg(&bare).args(["repack", "-adq"]).status()?;
    ensure!(packed.success(), "git repack");
    Ok(())
}

async fn sessions(api: &Api, count: usize) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let made: Value = serde_json::from_str(&api.call(Method::POST, "/api/sessions", json!({})).await?)?;
        ids.push(made["id"].as_str().or(made["session"]["id"].as_str()).context("id")?.to_owned());
    }
    Ok(ids)
}

async fn post(api: &Api, files: usize, session: &str) -> anyhow::Result<()> {
    let body = json!({"repoUrl": format!("https://github.com/files/n{files}"), "sessionId": session});
    api.call(Method::POST, "/api/sandbox", body).await.map(drop)
}

async fn delete(api: &Api, ids: &[String]) -> anyhow::Result<()> {
    for id in ids {
        api.call(Method::DELETE, &format!("/api/sessions/{id}"), Value::Null).await?;
    }
    Ok(())
}

/// Times all of it over the data directory `data`, which has an image.
pub(crate) async fn measure(dir: &Path, data: &Path, url: &str) -> anyhow::Result<()> {
    for files in SIZES {
        make_repository(dir, files)?;
    }
    let mut cold = Vec::new();
    let server = Server::start(data, url, &[("DORMOUSE_ORG_SNAPSHOTS__ENABLED", "false")])?;
    let measured = async {
        let api = server.api("Cold").await?;
        for files in SIZES {
            let ids = sessions(&api, COLD).await?;
            let took = times(1, 0..COLD, async |n| post(&api, files, &ids[n]).await).await?;
            cold.push(show(&format!("cold, {files} files"), 1, took));
            delete(&api, &ids).await?;
        }
        anyhow::Ok(())
    };
    let measured = measured.await;
    server.end().await?;
    measured?;
    // The remote is asked outside of what is timed.
    let server = Server::start(data, url, &[("DORMOUSE_ORG_SNAPSHOTS__TIP_INTERVAL", "10m")])?;
    let measured = async {
        let api = server.api("Warm").await?;
        for (files, cold) in SIZES.into_iter().zip(&cold) {
            let ids = sessions(&api, WARM + 1).await?;
            let first = times(1, 0..1, async |n| post(&api, files, &ids[n]).await).await?;
            show(&format!("first of a repository, {files} files"), 1, first);
            let took = times(1, 1..WARM + 1, async |n| post(&api, files, &ids[n]).await).await?;
            let warm = show(&format!("warm, {files} files"), 1, took);
            ratio("  cold in warm ones", 1, *cold, warm);
            for id in &ids {
                api.call(Method::POST, "/api/sandbox/snapshot", json!({"sessionId": id})).await?;
            }
            let took = times(1, 1..WARM + 1, async |n| post(&api, files, &ids[n]).await).await?;
            let resume = show(&format!("resume, {files} files"), 1, took);
            ratio("  cold in resumes", 1, *cold, resume);
            delete(&api, &ids).await?;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let ids = sessions(&api, AT_ONCE).await?;
        let took = times(AT_ONCE, 0..AT_ONCE, async |n| post(&api, SIZES[1], &ids[n]).await).await?;
        let slowest = took.iter().max().copied().unwrap_or_default();
        show(&format!("warm at once, {} files", SIZES[1]), AT_ONCE, took);
        show("  the slowest", AT_ONCE, vec![slowest]);
        delete(&api, &ids).await
    };
    let measured = measured.await;
    server.end().await?;
    measured
}
