//! Clients from the registry, unmodified, against the real server.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::world::World;

/// Runs the tests of one file in `tests/clients`; its output is the message of
/// a failure.
fn node(w: &World, file: &str) -> anyhow::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    ensure!(dir.join("node_modules").is_dir(), "run `npm ci` in {}", dir.display());
    let output = Command::new("timeout")
        .args(["300", "node", "--test", "--test-reporter=tap", file])
        .current_dir(&dir)
        .env("DORMOUSE_SERVER", &w.base)
        .env("DORMOUSE_KEY", &w.key)
        .env("DORMOUSE_OTHER_KEY", &w.other_key)
        .env("DORMOUSE_TEAM", &w.account)
        .env("FORCE_COLOR", "0")
        .stdin(Stdio::null())
        .output()
        .context("run node")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{file}:\n{}\n{text}", String::from_utf8_lossy(&output.stderr));
    ensure!(!text.contains("# tests 0"), "{file} tests nothing:\n{text}");
    Ok(())
}

pub(crate) fn sdk(w: &World) -> anyhow::Result<()> {
    node(w, "sdk.test.mjs")
}

pub(crate) fn older_sdk(w: &World) -> anyhow::Result<()> {
    node(w, "beta.test.mjs")
}

pub(crate) fn command_line(w: &World) -> anyhow::Result<()> {
    node(w, "cli.test.mjs")
}

pub(crate) fn computesdk(w: &World) -> anyhow::Result<()> {
    w.cli(&["image", "build", "--recipe", "node24", "--if-missing"])?;
    node(w, "computesdk.test.mjs")
}
