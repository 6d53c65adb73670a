//! Clients from the registry, unmodified, against the real server.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::world::{SERVICE_TOKEN, World};

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
        .env("DORMOUSE_PRIVATE_TOKEN", SERVICE_TOKEN)
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

pub(crate) fn policies(w: &World) -> anyhow::Result<()> {
    node(w, "policy.test.mjs")
}

pub(crate) fn command_line(w: &World) -> anyhow::Result<()> {
    node(w, "cli.test.mjs")
}

pub(crate) fn computesdk(w: &World) -> anyhow::Result<()> {
    w.cli(&["image", "build", "--recipe", "node24", "--if-missing"])?;
    node(w, "computesdk.test.mjs")
}

/// Every block of code in `docs/clients.md`, as it stands there but for the
/// address of the server.
pub(crate) fn documentation(w: &World) -> anyhow::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(here.join("../docs/clients.md"))?;
    let mut ran = 0;
    for block in text.split("```").skip(1).step_by(2) {
        let (language, code) = block.split_once('\n').context("a block without a language")?;
        let code = code.replace("http://127.0.0.1:7700", &w.base);
        // Modules are looked for beside the file.
        let file = here.join("clients").join(format!("documentation-{}.{language}", std::process::id()));
        std::fs::write(&file, code)?;
        let program = match language {
            "js" | "mjs" => "node",
            "sh" => "sh",
            "python" => "python3",
            other => anyhow::bail!("docs/clients.md has a block of {other}, which nobody runs"),
        };
        let mut command = Command::new("timeout");
        command.args(["120", program]);
        if program == "sh" {
            command.arg("-eu");
        }
        let path = format!("{}:{}", here.join("clients/node_modules/.bin").display(), std::env::var("PATH")?);
        let output = command
            .arg(&file)
            .current_dir(here.join("clients"))
            .env("PATH", path)
            .env("DORMOUSE_KEY", &w.key)
            .env("DORMOUSE_TEAM", &w.account)
            .stdin(Stdio::null())
            .output();
        std::fs::remove_file(&file)?;
        let output = output?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "the {language} block: {}\n{out}{err}", output.status);
        ensure!(out.contains("git version") || out.contains("Linux"), "the {language} block printed {out:?}");
        ran += 1;
    }
    ensure!(ran >= 3, "only {ran} blocks");
    Ok(())
}
