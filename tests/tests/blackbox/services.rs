//! Databases and other services, stopped in the middle: what they committed is
//! there, and they start again.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::files::inside;
use crate::lifecycle::kill_first_process;
use crate::machine::connect;
use crate::world::{World, eventually};

/// Rounds of writing and stopping.
const ROUNDS: u32 = 8;

/// A command inside that goes on; what it printed is in `to`.
fn start(w: &World, name: &str, script: &str, to: &Path) -> anyhow::Result<Child> {
    let args = ["sandbox", "exec", name, "--", "bash", "-c", script];
    let out = fs::File::create(to)?;
    Ok(w.command(&args).stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn()?)
}

fn last_number(path: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path)?;
    // A line that was cut off was not acknowledged.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0))
}

pub(crate) fn restart(w: &World) -> anyhow::Result<()> {
    let name = "services";
    connect(w, name, &[])?;
    for (from, to) in
        [(inside("services.sh"), "/var/tmp/services.sh"), (inside("rows.py"), "/var/tmp/rows.py")]
    {
        w.cli(&["sandbox", "cp", &from.to_string_lossy(), &format!("{name}:{to}")])?;
    }
    let install = "set -e; apt-get -qq update
        apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends \
          postgresql redis-server xvfb gunicorn chromium python3-psycopg2
        echo 'host all all 127.0.0.1/32 trust' > /etc/postgresql/17/main/pg_hba.conf
        echo 'local all all trust' >> /etc/postgresql/17/main/pg_hba.conf";
    let (code, out, err) =
        w.exec(name, &["--sudo", "--env", "DEBIAN_FRONTEND=noninteractive"], &["bash", "-c", install])?;
    ensure!(code == 0, "install: {out}{err}");

    let databases = ["postgres", "/var/tmp/rows.db"];
    let mut acknowledged = [0, 0];
    for round in 0..ROUNDS {
        let which = if round % 5 == 0 { "all" } else { "postgres" };
        let (code, out, err) = w.shell(name, &format!("bash /var/tmp/services.sh {which}"))?;
        ensure!(code == 0 && out.trim() == "started", "round {round}: {out}{err}");
        let files: Vec<_> = (0..2).map(|n| w.dir.join(format!("rows-{n}"))).collect();
        let mut writers = Vec::new();
        for (n, database) in databases.iter().enumerate() {
            let found = w.ok(name, &format!("python3 /var/tmp/rows.py count {database}"))?;
            let (count, largest) = found.split_once(' ').context("count")?;
            let (count, largest): (u64, u64) = (count.parse()?, largest.parse()?);
            ensure!(
                count == largest && largest >= acknowledged[n],
                "round {round}: {database} has {count} rows up to {largest}; {} were acknowledged",
                acknowledged[n]
            );
            writers.push(start(w, name, &format!("python3 /var/tmp/rows.py write {database}"), &files[n])?);
        }
        for (n, file) in files.iter().enumerate() {
            eventually("rows are written", Duration::from_secs(30), || {
                Ok(last_number(file)? > acknowledged[n])
            })
            .with_context(|| format!("round {round}: {}", databases[n]))?;
        }
        std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 500)));
        // With notice and without.
        if round % 2 == 0 {
            w.stop(name)?;
        } else {
            kill_first_process(w, name)?;
        }
        for (n, mut writer) in writers.into_iter().enumerate() {
            writer.wait()?;
            let last = last_number(&files[n])?;
            ensure!(last > acknowledged[n], "round {round}: {} wrote nothing", databases[n]);
            acknowledged[n] = last;
        }
    }
    eprintln!("      {} rows in Postgres, {} in SQLite", acknowledged[0], acknowledged[1]);
    w.delete(name)
}
