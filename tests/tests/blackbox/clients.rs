//! Clients from the registry, unmodified, against the real server.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::world::{SERVICE_TOKEN, World, binary};

/// Runs the tests of one file in `tests/clients`; its output is the message of
/// a failure.
pub(crate) fn node(w: &World, file: &str) -> anyhow::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    ensure!(dir.join("node_modules").is_dir(), "run `npm ci` in {}", dir.display());
    let output = Command::new("timeout")
        .args(["900", "node", "--test", "--test-reporter=tap", file])
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

/// Programs that know nothing of us, by what `dormouse env` exports, in each runtime.
pub(crate) fn runtimes(w: &World) -> anyhow::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let home = w.dir.join("home");
    let exports = w.command(&["env", "--output", "json"]).env("XDG_DATA_HOME", &home).output()?;
    let exports: std::collections::BTreeMap<String, String> = serde_json::from_slice(&exports.stdout)
        .with_context(|| String::from_utf8_lossy(&exports.stderr).into_owned())?;
    let preload = exports["BUN_OPTIONS"].strip_prefix("--preload=").context("no preload")?;
    let common = "true\nserved /fetch?a=b\nserved /https\n";
    for (program, args) in [
        ("node", vec![]),
        ("bun", vec![]),
        ("deno", vec!["run", "--quiet", "--allow-all", "--preload", preload]),
    ] {
        let bin = dir.join("node_modules/.bin").join(program);
        let program = if bin.exists() { bin } else { program.into() };
        // From a directory that is not the package's.
        let output = Command::new("timeout")
            .arg("120")
            .arg(&program)
            .args(&args)
            .arg(dir.join("bare.mjs"))
            .envs(&exports)
            .current_dir("/")
            .stdin(Stdio::null())
            .output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {out}{err}", program.display());
        let rest = out.strip_prefix(common).with_context(|| format!("{}: {out}{err}", program.display()))?;
        // Node's own WebSocket and the package's undici want newer ones than some hosts have.
        let known = ["hello\n", "", "served /undici\nws hello\n", "hello\nserved /undici\nws hello\n"];
        ensure!(known.contains(&rest), "{}: {out}{err}", program.display());
        ensure!(program.ends_with("node") || rest == "hello\n", "{}: {out}", program.display());
    }
    Ok(())
}

/// Python's clients, each with the versions of its lock file in an environment of its own.
pub(crate) fn python(w: &World) -> anyhow::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python");
    for client in ["vercel", "langchain"] {
        let place = binary("python").join(client);
        let run = |program: &Path, args: &[&std::ffi::OsStr]| -> anyhow::Result<String> {
            let output = Command::new("timeout")
                .arg("300")
                .arg(program)
                .args(args)
                .env("DORMOUSE_SERVER", &w.base)
                .env("DORMOUSE_KEY", &w.key)
                .env("DORMOUSE_TEAM", &w.account)
                .current_dir(&dir)
                .stdin(Stdio::null())
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{client}: {text}{}", String::from_utf8_lossy(&output.stderr));
            Ok(text)
        };
        if !place.join("ready").exists() {
            run(
                Path::new("/usr/bin/python3"),
                &["-m".as_ref(), "venv".as_ref(), "--clear".as_ref(), place.as_ref()],
            )?;
            let lock = dir.join(format!("{client}.txt"));
            let args = ["-m", "pip", "install", "--quiet", "--require-hashes", "--requirement"];
            let args: Vec<&std::ffi::OsStr> =
                args.iter().map(std::ffi::OsStr::new).chain([lock.as_ref()]).collect();
            run(&place.join("bin/python"), &args)?;
            std::fs::write(place.join("ready"), "")?;
        }
        let script = dir.join(format!("{client}_client.py"));
        let out = run(&place.join("bin/python"), &[script.as_ref()])?;
        ensure!(out.trim_end().ends_with("done"), "{client}: {out}");
    }
    Ok(())
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
            "vercel" | "langchain" => "python",
            other => anyhow::bail!("docs/clients.md has a block of {other}, which nobody runs"),
        };
        let mut command = Command::new("timeout");
        command.args(["120", program]);
        if program == "sh" {
            command.arg("-eu");
        }
        // The clients of npm and Python, and this build.
        let mut path = vec![here.join("clients/node_modules/.bin"), binary("")];
        if program == "python" {
            path.push(binary("python").join(language).join("bin"));
        }
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let path = std::env::join_paths(path)?;
        let output = command
            .arg(&file)
            .current_dir(here.join("clients"))
            .env("PATH", path)
            .env("DORMOUSE_KEY", &w.key)
            .env("DORMOUSE_TEAM", &w.account)
            .env("XDG_DATA_HOME", w.dir.join("home"))
            .stdin(Stdio::null())
            .output();
        std::fs::remove_file(&file)?;
        let output = output?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "the {language} block: {}\n{out}{err}", output.status);
        ensure!(out.contains("git version") || out.contains("Linux"), "the {language} block printed {out:?}");
        ran += 1;
    }
    ensure!(ran >= 5, "only {ran} blocks");
    Ok(())
}
