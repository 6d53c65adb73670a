//! Builds the two small static binaries that the engine starts, `launcher` and
//! `agent`, and hands their paths to `src/binaries.rs`, which embeds them: the
//! product stays one file.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    for part in ["agent", "agent-protocol", "launcher"] {
        println!("cargo::rerun-if-changed={}", here.join("..").join(part).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let target_dir = out.join("static");
    let status = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"))
        .current_dir(here.join("../.."))
        .args(["build", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .args(["--package", "dormouse-agent", "--package", "dormouse-launcher"])
        // Static: nothing of the image may decide what PID 1 loads. Small:
        // every sandbox maps it.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-Cpanic=abort"].join("\u{1f}"),
        )
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        // Clippy and rustdoc wrap the compiler; these two are for running.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "building the agent and the launcher failed");
    for binary in ["agent", "launcher"] {
        println!(
            "cargo::rustc-env=DORMOUSE_{}={}",
            binary.to_uppercase(),
            target_dir.join(TARGET).join("release").join(format!("dormouse-{binary}")).display()
        );
    }
}
