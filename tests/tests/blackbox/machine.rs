//! A day's work on the default image: what is in it, what is installed into it
//! from the registries, services and dev servers, before and after a stop.

use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::files::inside;
use crate::world::{World, image_cache};

/// What this host trusts, and sandboxes after [`connect`].
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A line of configuration: where the package registries of this host are, whatever
/// kind of network that is.
pub(crate) fn registries() -> anyhow::Result<String> {
    let text = |program: &str, args: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {program}"))?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let of_pip =
        "from pip._internal.models.index import PyPI as i; print(i.simple_url, i.file_storage_domain)";
    let mut found = text("apt-get", &["indextargets", "--format", "$(SITE)"])?;
    found += &text("npm", &["config", "get", "registry"])?;
    found += &text("/usr/bin/python3", &["-c", of_pip])?;
    let mut addresses = BTreeSet::new();
    for word in found.split_whitespace() {
        let host = word.split_once("://").map_or(word, |(_, rest)| rest);
        let host = host.split(['/', ':']).next().unwrap_or_default();
        let resolved = (host, 443).to_socket_addrs().with_context(|| format!("look up {host}"))?;
        addresses.extend(resolved.filter_map(|address| match address.ip() {
            IpAddr::V4(address) => Some(format!("{address}/32")),
            IpAddr::V6(_) => None,
        }));
    }
    ensure!(!addresses.is_empty(), "this host has no registries");
    let addresses: Vec<String> = addresses.into_iter().collect();
    Ok(format!("network.allow_private = {addresses:?}\n"))
}

/// Creates a sandbox that trusts the registries as this host does.
pub(crate) fn connect(w: &World, name: &str, options: &[&str]) -> anyhow::Result<()> {
    let env = ["NODE_EXTRA_CA_CERTS", "PIP_CERT", "SSL_CERT_FILE"].map(|name| format!("{name}={BUNDLE}"));
    let env: Vec<&str> = env.iter().flat_map(|one| ["--env", one]).collect();
    w.cli(&[&["sandbox", "create", name][..], options, &env].concat())?;
    let mut put =
        w.command(&["sandbox", "exec", "-i", "--sudo", name, "--", "sh", "-c", "cat > \"$0\"", BUNDLE]);
    let status = put.stdin(std::fs::File::open(BUNDLE)?).status()?;
    ensure!(status.success(), "{name} does not take {BUNDLE}");
    Ok(())
}

/// A part of `inside/day.sh`, by this starter.
fn day(w: &World, name: &str, starter: &[&str], part: &[&str]) -> anyhow::Result<()> {
    let command = [starter, &["bash", "/var/tmp/day.sh"], part].concat();
    let (code, out, err) = w.exec(name, &["--timeout", "10m"], &command)?;
    ensure!(
        code == 0 && out.trim_end().ends_with("done"),
        "{part:?} by {starter:?} exits {code}: {out}{err}"
    );
    Ok(())
}

pub(crate) fn a_days_work(w: &World) -> anyhow::Result<()> {
    let name = "day";
    connect(w, name, &["--vcpus", "2"])?;
    w.cli(&["sandbox", "cp", &inside("day.sh").to_string_lossy(), &format!("{name}:/var/tmp/day.sh")])?;
    // A server without CAP_SYS_RESOURCE cannot give more than it has.
    let hard = Command::new("bash").args(["-c", "ulimit -Hn"]).output()?;
    let hard: u64 = String::from_utf8(hard.stdout)?.trim().parse().unwrap_or(u64::MAX);
    let files = hard.min(65_536).to_string();
    day(w, name, &[], &["tools", &files])?;
    day(w, name, &[], &["install"])?;
    for round in 0..2 {
        for starter in [&[][..], &["sudo"], &["bash", "-l"], &["env", "-i", "bash", "-l"]] {
            // `env -i` is what a program that clears its environment starts.
            let starter: Vec<&str> = match starter {
                ["bash", "-l"] | ["env", "-i", "bash", "-l"] => {
                    [starter, &["-c", "exec \"$@\"", "-"]].concat()
                }
                other => other.to_vec(),
            };
            day(w, name, &starter, &["programs"]).with_context(|| format!("round {round}"))?;
        }
        day(w, name, &[], &["services"]).with_context(|| format!("round {round}"))?;
        day(w, name, &[], &["cron"]).with_context(|| format!("round {round}"))?;
        if round == 0 {
            day(w, name, &[], &["tools", &files])?;
            w.stop(name)?;
        }
    }
    day(w, name, &[], &["kept"])?;
    w.delete(name)
}

/// A browser on the image that has one, with what its users drive it by.
pub(crate) fn a_browser(w: &World) -> anyhow::Result<()> {
    w.cli(&["image", "build", "--recipe", "agent", "--if-missing"])?;
    let name = "browser";
    w.cli(&["sandbox", "create", name, "--image", "agent", "--vcpus", "2"])?;
    w.cli(&[
        "sandbox",
        "cp",
        &inside("browser.mjs").to_string_lossy(),
        &format!("{name}:/var/tmp/browser.mjs"),
    ])?;
    for _ in 0..2 {
        let found = w.ok(name, "cd /var/tmp && echo '<h1>seen</h1>' > page.html && timeout 60 chromium --headless --dump-dom file:///var/tmp/page.html 2>/dev/null")?;
        ensure!(found.contains("<h1>seen</h1>"), "chromium: {found}");
        let found = w.ok(name, "timeout 100 node /var/tmp/browser.mjs")?;
        ensure!(found == "clicked", "Playwright: {found}");
        let found = w.ok(
            name,
            "cd /var/tmp && (python3 -m http.server 8000 >/dev/null 2>&1 &) ; sleep 1;
             timeout 60 agent-browser open http://127.0.0.1:8000/page.html >/dev/null && timeout 60 agent-browser snapshot; agent-browser close >/dev/null",
        )?;
        ensure!(found.contains("seen"), "agent-browser: {found}");
        w.stop(name)?;
    }
    w.delete(name)
}

/// Vite and Next by their URL in a real browser; what is saved is seen without a reload.
pub(crate) fn dev_servers(w: &World) -> anyhow::Result<()> {
    crate::clients::node(w, "hmr.test.mjs")
}

/// Images of recipes: how large they are, and that nothing but what went into them
/// decides whether they are built again.
pub(crate) fn recipes(w: &World) -> anyhow::Result<()> {
    for recipe in ["slim", "node22", "python3.13"] {
        w.cli(&["image", "build", "--recipe", recipe, "--if-missing"])?;
        w.cli(&["sandbox", "create", "of-recipe", "--image", recipe])?;
        let found = w.ok("of-recipe", "git --version | cut -c1-11; id -un; pwd; sudo id -u")?;
        ensure!(found == "git version\nubuntu\n/vercel/sandbox\n0", "{recipe}: {found}");
        w.delete("of-recipe")?;
    }
    let listed = w.text(&["image", "list"])?;
    let begun = std::time::Instant::now();
    w.cli(&["image", "build", "--recipe", "slim", "--if-missing"])?;
    ensure!(
        w.text(&["image", "list"])? == listed && begun.elapsed() < Duration::from_secs(5),
        "it was built again"
    );
    let tars = std::fs::read_dir(image_cache())?.flatten();
    let slim = tars
        .into_iter()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("slim-base-"))
        .count();
    ensure!(slim >= 1, "the base of slim is not in the cache");
    Ok(())
}
