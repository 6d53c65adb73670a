//! Limits hold, and what runs into one harms itself only.

use anyhow::ensure;

use crate::world::World;

pub(crate) fn processes(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    let bomb = "for i in $(seq 3000); do sleep 20 & done 2>/dev/null; jobs -p | wc -l";
    let (_, out, _) = w.exec(&name, &["--timeout", "20s"], &["bash", "-c", bomb])?;
    ensure!(out.trim().parse::<u32>().unwrap_or(0) < 2100, "{out}");
    ensure!(w.ok(&other, "echo fine")? == "fine");
    w.delete(&name)?;
    w.delete(&other)
}

pub(crate) fn memory(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let fits = "python3 -c 'x=bytearray(256<<20); print(len(x)>>20)'";
    ensure!(w.ok(&name, fits)? == "256", "control");
    let (code, ..) =
        w.exec(&name, &[], &["python3", "-c", "x=bytearray(5<<30)\nfor i in range(0,len(x),4096): x[i]=1"])?;
    ensure!(code == 137, "over the limit: {code}");
    ensure!(w.ok(&name, "echo alive")? == "alive", "the agent survives");
    w.delete(&name)
}

pub(crate) fn disk(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    ensure!(w.shell(&name, "head -c 100M /dev/zero > /tmp/fits && sync")?.0 == 0, "control");
    let (code, _, err) = w.shell(&name, "head -c 600M /dev/urandom > /tmp/big && sync -f /tmp/big")?;
    ensure!(code != 0 && (err.contains("quota") || err.contains("No space")), "{code} {err}");
    ensure!(w.shell(&other, "head -c 50M /dev/zero > /tmp/fits")?.0 == 0, "the neighbour still writes");
    w.delete(&name)?;
    w.delete(&other)
}
