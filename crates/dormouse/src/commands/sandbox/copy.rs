//! Copying files into sandboxes and out of them.

use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use dormouse_wire as wire;
use futures::StreamExt as _;
use reqwest::Method;

use super::awake;
use super::command::{Lines, Said, read};
use crate::client::{Client, Refused};

pub(super) async fn copy(client: &Client, from: &str, to: &str) -> anyhow::Result<()> {
    match (remote_side(from), remote_side(to)) {
        (None, Some((name, path))) => upload(client, Path::new(from), name, path).await,
        (Some((name, path)), None) => download(client, name, path, Path::new(to)).await,
        _ => anyhow::bail!("exactly one side must be in a sandbox, written NAME:PATH"),
    }
}

fn remote_side(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(name, path)| !name.contains('/') && !name.is_empty() && !path.is_empty())
}

async fn upload(client: &Client, from: &Path, name: &str, to: &str) -> anyhow::Result<()> {
    let to = Path::new(to);
    let (Some(parent), Some(file)) = (to.parent(), to.file_name()) else {
        anyhow::bail!("{} names no file", to.display());
    };
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    archive.follow_symlinks(false);
    let packed = if from.is_dir() {
        archive.append_dir_all(Path::new(file), from)
    } else {
        archive.append_path_with_name(from, Path::new(file))
    };
    packed.with_context(|| format!("read {}", from.display()))?;
    let body = Bytes::from(archive.into_inner()?.finish()?);
    let cwd = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // Headers are bytes.
    let cwd = reqwest::header::HeaderValue::from_bytes(cwd.as_os_str().as_encoded_bytes())
        .with_context(|| format!("{} cannot be a directory's name", cwd.display()))?;
    awake(client, name, |run| {
        let request = client
            .request(Method::POST, &format!("/sessions/{run}/fs/write"))
            .header("content-type", "application/gzip")
            .header("x-cwd", &cwd)
            .body(body.clone());
        async move { client.send(request).await }
    })
    .await
    .map(drop)
}

async fn download(client: &Client, name: &str, from: &str, to: &Path) -> anyhow::Result<()> {
    let request = wire::PathRequest { path: from.to_owned(), cwd: None, recursive: None };
    let request = &request;
    let answer = awake(client, name, |run| async move {
        client.send(client.request(Method::POST, &format!("/sessions/{run}/fs/read")).json(request)).await
    })
    .await;
    let answer = match answer {
        Err(error) if is_directory(&error) => return download_directory(client, name, from, to).await,
        other => other?,
    };
    let target = within(from, to);
    let mut out = std::fs::File::create(&target).with_context(|| format!("write {}", target.display()))?;
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        out.write_all(&chunk.context("read the server's answer")?)?;
    }
    Ok(())
}

/// Whether a file could not be read because it is a directory.
fn is_directory(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == "is_a_directory")
}

/// Where a copy of `from` goes.
fn within(from: &str, to: &Path) -> PathBuf {
    match Path::new(from).file_name() {
        Some(name) if to.is_dir() => to.join(name),
        _ => to.to_owned(),
    }
}

/// `tar` inside packs, we unpack as it comes.
async fn download_directory(client: &Client, name: &str, from: &str, to: &Path) -> anyhow::Result<()> {
    let request = wire::CommandRequest {
        command: "tar".to_owned(),
        args: ["-C", from, "-cf", "-", "."].map(str::to_owned).to_vec(),
        wait: true,
        logs: true,
        encoding: Some(wire::Encoding::Base64),
        ..wire::CommandRequest::default()
    };
    let request = &request;
    let answer = awake(client, name, |run| async move {
        client.send(client.request(Method::POST, &format!("/sessions/{run}/cmd")).json(request)).await
    })
    .await?;
    let target = within(from, to);
    let (packed, unpacking) = tokio::sync::mpsc::channel::<Bytes>(16);
    let unpacked = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
        let mut archive = tar::Archive::new(Packed { chunks: unpacking, rest: Bytes::new() });
        archive.set_preserve_permissions(true);
        // Whoever copies is often root: a program of the sandbox's must not run as root here.
        archive.set_mask(0o7000);
        archive.unpack(&target).with_context(|| format!("write {}", target.display()))
    });
    let (mut lines, mut words) = (Lines::new(answer), Vec::new());
    let code = loop {
        let Some(line) = lines.next().await? else {
            anyhow::bail!("the server ended the answer before the command did");
        };
        if let Ok(reply) = serde_json::from_str::<wire::CommandReply>(&line) {
            match reply.command.exit_code {
                Some(code) => break code,
                None => continue,
            }
        }
        match read(&line)? {
            // Whoever unpacks may have failed, and says why below.
            Said::Stdout(bytes) => drop(packed.send(bytes.into()).await),
            Said::Stderr(bytes) => words.extend(bytes),
        }
    };
    drop(packed);
    unpacked.await??;
    let words = String::from_utf8_lossy(&words);
    anyhow::ensure!(code == 0, "pack {from} in {name}: {}", words.trim());
    Ok(())
}

/// An archive as it comes.
struct Packed {
    chunks: tokio::sync::mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Packed {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = out.len().min(self.rest.len());
        out[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}
