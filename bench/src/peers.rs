//! The peers: `runc run` of the same root file system, and podman over runc,
//! both from Debian's packages. They are measured as their users run them, as
//! whole commands; podman without a network, which only helps it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::Ours;
use crate::timing::{ratio, timed};

/// Operations of each kind at each width.
const COUNT: usize = 32;

/// How many at once.
const WIDTHS: [usize; 3] = [1, 8, 32];

pub(crate) async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().await.context("run a peer")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Times the peers over the root file system at `root`, beside our own medians
/// in `ours`; their scratch files lie in `dir`. A peer's `run` makes a
/// container, runs one command and removes it, so it stands beside our create,
/// command and delete together.
pub(crate) async fn measure(dir: &Path, root: &Path, ours: &Ours) -> anyhow::Result<()> {
    runc(dir, root, ours).await?;
    podman(dir, root, ours).await
}

async fn runc(dir: &Path, root: &Path, ours: &Ours) -> anyhow::Result<()> {
    let (bundle, state) = (dir.join("bundle"), dir.join("runc"));
    std::fs::create_dir_all(&bundle)?;
    run(Command::new("runc").arg("spec").arg("--bundle").arg(&bundle)).await?;
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["true"]);
    config["root"] = serde_json::json!({"path": root, "readonly": true});
    std::fs::write(&path, config.to_string())?;
    for width in WIDTHS {
        let theirs = timed("runc run (true)", width, COUNT, |number| {
            let (state, bundle) = (&state, &bundle);
            async move {
                let mut command = Command::new("runc");
                command.arg("--root").arg(state).arg("run").arg("--bundle").arg(bundle);
                run(command.arg(format!("bench-{width}-{number}"))).await
            }
        })
        .await?;
        ratio("  ours to it", width, ours.whole(width), theirs);
    }
    Ok(())
}

/// podman with all its state in `dir`.
pub(crate) fn podman_command(dir: &Path, storage: &str) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(dir.join("podman")).arg("--runroot").arg(dir.join("podman-run"));
    command.args(["--storage-driver", storage, "--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
    command
}

/// Limits that may be set without `CAP_SYS_RESOURCE`.
pub(crate) const ULIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];

async fn podman(dir: &Path, root: &Path, ours: &Ours) -> anyhow::Result<()> {
    // Writable by an overlay of podman's own over the same files.
    let root: PathBuf = format!("{}:O", root.display()).into();
    for width in WIDTHS {
        let theirs = timed("podman run --rm (true)", width, COUNT, |_| {
            let root = &root;
            async move {
                let mut command = podman_command(dir, "vfs");
                command.args(["run", "--rm", "--network", "none"]).args(ULIMITS);
                run(command.arg("--rootfs").arg(root).arg("true")).await
            }
        })
        .await?;
        ratio("  ours to it", width, ours.whole(width), theirs);
    }
    let mut command = podman_command(dir, "vfs");
    command.args(["run", "--detach", "--network", "none", "--name", "bench"]).args(ULIMITS);
    run(command.arg("--rootfs").arg(&root).args(["sleep", "1000"])).await?;
    let mut measured = Ok(());
    for width in WIDTHS {
        measured = timed("podman exec (true)", width, COUNT, |_| async move {
            run(podman_command(dir, "vfs").args(["exec", "bench", "true"])).await
        })
        .await
        .map(|theirs| ratio("  ours to it", width, ours.command(width), theirs));
        if measured.is_err() {
            break;
        }
    }
    run(podman_command(dir, "vfs").args(["rm", "--force", "--time", "0", "bench"])).await?;
    measured
}
