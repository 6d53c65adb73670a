//! What must not be possible from inside. Every probe has a control: the same
//! thing without the sandbox, or a neighbour of it that is allowed, succeeds.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::world::World;

/// Calls made with `python3 -c`: name and code that exits 0 if it worked.
const FORBIDDEN: &[(&str, &str)] = &[
    ("unshare user", "c.unshare(0x10000000)"),
    ("unshare net", "c.unshare(0x40000000)"),
    ("unshare mount", "c.unshare(0x20000)"),
    ("clone user", "c.syscall(56, 0x10000011, 0, 0, 0, 0)"),
    ("clone3", "c.syscall(435, 0, 0)"),
    ("mount tmpfs", "c.mount(b't', b'/mnt', b'tmpfs', 0, None)"),
    ("bind mount", "c.mount(b'/', b'/mnt', None, 4096, None)"),
    ("remount /proc/sys", "c.mount(None, b'/proc/sys', None, 32, None)"),
    ("umount /proc/sys", "c.umount2(b'/proc/sys', 2)"),
    ("fsopen", "c.syscall(430, b'tmpfs', 0)"),
    ("open_tree", "c.syscall(428, -100, b'/', 1)"),
    ("setns", "c.setns(c.open(b'/proc/self/ns/net', 0), 0)"),
    ("bpf", "c.syscall(321, 0, 0, 0)"),
    ("perf_event_open", "c.syscall(298, 0, 0, -1, -1, 0)"),
    ("userfaultfd", "c.syscall(323, 1)"),
    ("io_uring", "c.syscall(425, 1, 0)"),
    ("keyctl", "c.syscall(250, 0, -3, 0)"),
    ("add_key", "c.syscall(248, b'user', b'k', b'v', 1, -3)"),
    ("init_module", "c.syscall(175, 0, 0, b'')"),
    ("kexec", "c.syscall(246, 0, 0, 0, 0)"),
    ("swapon", "c.syscall(167, b'/tmp', 0)"),
    ("reboot", "c.syscall(169, 0xfee1dead, 672274793, 0, 0)"),
    ("settimeofday", "c.settimeofday(b'0'*16, None)"),
    ("open_by_handle_at", "c.syscall(304, -100, b'0'*32, 0)"),
    ("mknod", "c.mknod(b'/tmp/sda', 0o60600, 0x800)"),
    ("packet socket", "c.socket(17, 3, 0)"),
    ("raw socket", "c.socket(2, 3, 1)"),
    ("vsock", "c.socket(40, 1, 0)"),
    ("alg socket", "c.socket(38, 5, 0)"),
    ("netfilter netlink", "c.socket(16, 3, 12)"),
    ("ptrace PID 1", "c.ptrace(16, 1, 0, 0)"),
    ("process_vm_readv", "c.syscall(310, 1, 0, 0, 0, 0, 0)"),
    ("open PID 1's memory", "c.open(b'/proc/1/mem', 0)"),
    ("write core_pattern", "c.open(b'/proc/sys/kernel/core_pattern', 1)"),
    ("write sysrq", "c.open(b'/proc/sysrq-trigger', 1)"),
    ("overlay xattr", "c.setxattr(b'/tmp', b'trusted.overlay.opaque', b'y', 1, 0)"),
];

const ALLOWED: &[(&str, &str)] = &[
    ("socket", "c.socket(2, 1, 0)"),
    ("unix socket", "c.socket(1, 1, 0)"),
    ("route netlink", "c.socket(16, 3, 0)"),
    ("open", "c.open(b'/etc/passwd', 0)"),
    ("unshare files", "c.unshare(0x400)"),
    ("xattr", "c.setxattr(b'/tmp/x', b'user.a', b'y', 1, 0)"),
];

fn probe(code: &str) -> String {
    format!(
        "import ctypes,sys,os; open('/tmp/x','w').close(); c=ctypes.CDLL(None,use_errno=True)\n\
         r={code}\nsys.exit(0 if r>=0 else 1)"
    )
}

pub(crate) fn identity(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let map = w.ok(&name, "cat /proc/self/uid_map")?;
    let fields: Vec<u64> = map.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    ensure!(fields[0] == 0 && fields[1] >= 65_536 && fields[2] == 65_536, "{map}");
    let (_, status, _) = w.root_shell(&name, "cat /proc/self/status")?;
    let field = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("").trim().to_owned();
    ensure!(field("CapBnd:") == "00000000800405fb" && field("Seccomp:") == "2", "{status}");
    ensure!(w.root_shell(&name, "ls /proc/self/fd")?.1.lines().count() <= 4, "descriptors leak in");
    ensure!(
        w.ok(&name, "cat /proc/self/cgroup | grep -v ':/$' || true")?.is_empty(),
        "cgroup path of the host"
    );
    let mounts = w.ok(&name, "cat /proc/self/mountinfo /proc/mounts")?;
    ensure!(!mounts.contains("dormouse") && !mounts.contains("sbx_"), "{mounts}");
    ensure!(w.ok(&name, "cat /proc/1/cmdline | tr -d '\\0'")? == "dormouse-agent");
    ensure!(w.ok(&name, "ls -d /proc/[0-9]* | wc -l")?.parse::<u32>()? < 12, "only its own processes");
    let environment = w.ok(&name, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")?;
    ensure!(!environment.contains("dormouse_sk_") && !environment.contains("DORMOUSE"), "{environment}");
    w.delete(&name)
}

pub(crate) fn syscalls(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    for sudo in [&[][..], &["--sudo"][..]] {
        for (what, code) in ALLOWED {
            let (exit, out, err) = w.exec(&name, sudo, &["python3", "-c", &probe(code)])?;
            ensure!(exit == 0, "control {what} {sudo:?}: {exit} {out}{err}");
        }
        for (what, code) in FORBIDDEN {
            let (exit, out, err) = w.exec(&name, sudo, &["python3", "-c", &probe(code)])?;
            ensure!(exit == 1 && err.is_empty(), "{what} {sudo:?} was not refused: {exit} {out}{err}");
        }
    }
    ensure!(w.root_shell(&name, "useradd -m eve && su eve -c 'id -un'")?.1.trim() == "eve", "useradd works");
    w.delete(&name)
}

pub(crate) fn kernel_files(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    for path in
        ["/proc/kcore", "/proc/kallsyms", "/proc/timer_list", "/proc/keys", "/proc/iomem", "/proc/kmsg"]
    {
        ensure!(w.root_shell(&name, &format!("head -c 100 {path} | wc -c"))?.1.trim() == "0", "{path}");
    }
    ensure!(w.root_shell(&name, "ls -A /sys; ls /proc/acpi")?.1.is_empty());
    // By stat(2): directory entries show what lies under a mount.
    let list = "find / -xdev \\( -type b -o -type c \\); \
                find /dev -mindepth 1 -exec stat -c '%F=%n' {} + | grep special | cut -d= -f2";
    let devices = w.root_shell(&name, list)?.1;
    for device in devices.lines() {
        let known = ["null", "zero", "full", "random", "urandom", "tty", "pts/ptmx", "ptmx"];
        ensure!(known.iter().any(|k| device == format!("/dev/{k}")), "unexpected device {device}");
    }
    ensure!(devices.contains("/dev/null"), "the control found nothing");
    ensure!(w.root_shell(&name, "dmesg")?.0 != 0);
    ensure!(w.root_shell(&name, "ip link set eth0 down || sysctl -w net.core.somaxconn=1")?.0 != 0);
    ensure!(w.root_shell(&name, "hostname evil")?.0 != 0);
    w.delete(&name)
}

pub(crate) fn agent(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    w.root_shell(
        &name,
        "kill -9 1; kill -STOP 1; kill -TERM 1; ls /proc/1/fd /proc/1/root; cat /proc/1/exe > /tmp/agent",
    )?;
    ensure!(
        w.ok(&name, "stat -c %s /tmp/agent 2>/dev/null || echo 0")? == "0",
        "the agent's binary was read"
    );
    ensure!(w.ok(&name, "echo alive")? == "alive");
    ensure!(
        w.ok(&name, "cat /proc/net/unix | grep -c agent.sock || true")? == "0",
        "the agent's socket shows"
    );
    let (code, ..) = w.root_shell(&name, "echo > /proc/1/exe")?;
    ensure!(code != 0);
    w.delete(&name)
}

/// Connects from inside; exits 0 if it worked.
fn connect(address: &str, port: u16) -> String {
    format!("timeout 1 bash -c 'exec 3<>/dev/tcp/{address}/{port} && head -c1 <&3 | grep -q .'")
}

pub(crate) fn network(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let (_, other) = w.sandbox()?;
    // A honeypot on every address of this host.
    let honeypot = TcpListener::bind("0.0.0.0:0")?;
    let port = honeypot.local_addr()?.port();
    honeypot.set_nonblocking(true)?;
    let control =
        Command::new("bash").args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]).status()?;
    ensure!(control.success() && honeypot.accept().is_ok(), "the honeypot works");
    let own = w.ok(&name, "hostname -I")?;
    let neighbour = w.ok(&other, "hostname -I")?;
    let gateway = w.ok(&name, "ip route 2>/dev/null | awk '/default/{print $3}' || true")?;
    let gateway = if gateway.is_empty() { previous(&own)? } else { gateway };
    let listener = w.ok(&name, "awk '/nameserver/{print $2}' /etc/resolv.conf")?;
    for address in [
        &gateway,
        &listener,
        &"169.254.169.254".to_owned(),
        &"10.0.0.1".to_owned(),
        &"192.168.1.1".to_owned(),
    ] {
        for port in [port, 22, 80, 7700 + u16::from(w.instance)] {
            ensure!(w.root_shell(&name, &connect(address, port))?.0 != 0, "{address}:{port} answered");
        }
    }
    ensure!(honeypot.accept().is_err(), "the honeypot saw a sandbox");
    // A neighbour that listens on everything.
    w.ok(&other, "(python3 -m http.server 8000 >/dev/null 2>&1 &); for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; curl -s localhost:8000 >/dev/null && break; done")?;
    ensure!(w.ok(&other, "curl -s -o /dev/null -w '%{http_code}' localhost:8000")? == "200", "control");
    ensure!(
        w.root_shell(&name, &format!("curl -s -m 3 http://{neighbour}:8000/"))?.0 != 0,
        "the neighbour answered"
    );
    // UDP to the host is dropped, DNS is ours whatever server is named.
    let udp = UdpSocket::bind("0.0.0.0:0")?;
    udp.set_nonblocking(true)?;
    let udp_port = udp.local_addr()?.port();
    w.root_shell(&name, &format!("echo x > /dev/udp/{gateway}/{udp_port}"))?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure!(udp.recv(&mut [0; 8]).is_err(), "UDP reached the host");
    ensure!(
        w.ok(&name, "getent ahostsv4 github.com | head -1 | cut -d. -f1")? == "10",
        "the mirror's address"
    );
    let mirror = "curl -s -o /dev/null -w '%{http_code}' --cacert /etc/dormouse/ca.crt https://github.com";
    ensure!(w.ok(&name, &format!("{mirror}/acme/widgets/info/refs?service=git-upload-pack"))? == "200");
    ensure!(
        w.ok(&name, &format!("{mirror}/acme/widgets/HEAD"))? == "404",
        "only git goes through the mirror"
    );
    ensure!(
        w.ok(&name, "cat /proc/net/if_inet6 2>/dev/null | grep -v ' lo$' | grep -cv '^fe80' || true")? == "0"
    );
    w.delete(&name)?;
    w.delete(&other)
}

fn previous(address: &str) -> anyhow::Result<String> {
    let (head, last) = address.trim().rsplit_once('.').context("address")?;
    Ok(format!("{head}.{}", last.trim().parse::<u8>()? - 1))
}

pub(crate) fn two_sandboxes(w: &World) -> anyhow::Result<()> {
    let (_, a) = w.sandbox()?;
    let (_, b) = w.sandbox()?;
    let base = |name: &str| w.ok(name, "awk '{print $2}' /proc/self/uid_map");
    ensure!(base(&a)? != base(&b)?, "id ranges overlap");
    let sum = "md5sum /etc/debian_version /usr/bin/env";
    let before = w.ok(&b, sum)?;
    w.root_shell(&a, "echo changed > /etc/debian_version; ln /usr/bin/env /tmp/link; echo changed > /tmp/link; rm -rf /opt")?;
    ensure!(w.ok(&a, sum)? != before, "the control changed nothing");
    ensure!(w.ok(&b, sum)? == before, "another sandbox sees the change");
    w.delete(&a)?;
    let (_, fresh) = w.sandbox()?;
    ensure!(w.ok(&fresh, sum)? == before, "a fresh sandbox sees the change");
    w.delete(&b)?;
    w.delete(&fresh)
}

/// A session whose sandbox replaces the directories that the launcher mounts
/// over by links to a canary on the host.
pub(crate) fn hostile_image(w: &World) -> anyhow::Result<()> {
    let canary = w.dir.join("canary");
    std::fs::create_dir_all(&canary)?;
    std::fs::write(canary.join("file"), "untouched")?;
    let target = canary.to_string_lossy().into_owned();
    let tar = w.dir.join("hostile.tar");
    for dir in ["dev", "proc", "sys", "etc", "vercel"] {
        let root = w.dir.join("hostile");
        std::fs::create_dir_all(&root)?;
        std::os::unix::fs::symlink(&target, root.join(dir))?;
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(dir).status()?;
        ensure!(packed.success());
        std::fs::remove_dir_all(&root)?;
        // Building or starting may fail; the host must not change.
        let built =
            w.cli(&["image", "build", "--name", &format!("hostile-{dir}"), "--tar", &tar.to_string_lossy()]);
        if let Err(error) = built {
            ensure!(!format!("{error:#}").is_empty());
        }
        let entries: Vec<_> = std::fs::read_dir(&canary)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(
            entries == ["file"] && std::fs::read_to_string(canary.join("file"))? == "untouched",
            "{dir}: {entries:?}"
        );
    }
    Ok(())
}
