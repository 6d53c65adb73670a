//! What must not be possible from inside. Every probe has a control: the same
//! thing without the sandbox, or a neighbour of it that is allowed, succeeds.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::files::inside;
use crate::world::World;

/// What is refused inside: name, what is said there, and the call, as an
/// expression of Python on the C library. A host's root gets another answer.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("unshare user", &["EPERM"], "c.unshare(0x10000000)"),
    ("unshare net", &["EPERM"], "c.unshare(0x40000000)"),
    ("unshare mount", &["EPERM"], "c.unshare(0x20000)"),
    ("unshare pid", &["EPERM"], "c.unshare(0x20000000)"),
    ("unshare ipc", &["EPERM"], "c.unshare(0x8000000)"),
    ("unshare uts", &["EPERM"], "c.unshare(0x4000000)"),
    ("unshare cgroup", &["EPERM"], "c.unshare(0x2000000)"),
    ("unshare time", &["EPERM"], "c.unshare(0x80)"),
    ("move_mount", &["EPERM"], "c.syscall(429, -100, b'/none', -100, b'/mnt', 0)"),
    ("mount_setattr", &["EPERM"], "c.syscall(442, -100, b'/', 0, 0, 0)"),
    ("fsconfig", &["EPERM"], "c.syscall(431, -1, 0, 0, 0, 0)"),
    ("finit_module", &["EPERM"], "c.syscall(313, -1, b'', 0)"),
    ("clock_settime", &["EPERM"], "c.syscall(227, 0, 0)"),
    ("acct", &["EPERM"], "c.syscall(163, b'/none')"),
    ("pidfd_getfd", &["EPERM"], "c.syscall(438, -1, 0, 0)"),
    ("character device", &["EPERM"], "c.mknod(b'/tmp/mem', 0o20600, 0x101)"),
    ("whiteout", &["EPERM"], "c.mknod(b'/tmp/white', 0o20600, 0)"),
    ("audit netlink", &["EPROTONOSUPPORT"], "c.socket(16, 3, 9)"),
    ("real time", &["EPERM"], "c.sched_setscheduler(0, 1, ctypes.byref(ctypes.c_int(1)))"),
    ("a better place", &["EACCES"], "c.setpriority(0, 0, -20)"),
    ("MPTCP", &["EPROTONOSUPPORT"], "c.socket(2, 1, 262)"),
    ("UDP-Lite", &["EPROTONOSUPPORT"], "c.socket(2, 2, 136)"),
    ("READ_IMPLIES_EXEC", &["EPERM"], "c.personality(0x400000)"),
    ("clone user", &["EPERM"], "c.syscall(56, 0x10000011, 0, 0, 0, 0)"),
    ("clone3", &["ENOSYS"], "c.syscall(435, 0, 0)"),
    ("mount tmpfs", &["EPERM"], "c.mount(b't', b'/mnt', b'tmpfs', 0, None)"),
    ("bind mount", &["EPERM"], "c.mount(b'/', b'/mnt', None, 4096, None)"),
    ("remount /proc/sys", &["EPERM"], "c.mount(None, b'/proc/sys', None, 32, None)"),
    ("umount /proc/sys", &["EPERM"], "c.umount2(b'/proc/sys', 2)"),
    ("fsopen", &["EPERM"], "c.syscall(430, b'tmpfs', 0)"),
    ("open_tree", &["EPERM"], "c.syscall(428, -100, b'/', 1)"),
    ("setns", &["EPERM"], "c.setns(c.open(b'/proc/self/ns/net', 0), 0)"),
    ("bpf", &["EPERM"], "c.syscall(321, 0, 0, 0)"),
    ("perf_event_open", &["EPERM"], "c.syscall(298, 0, 0, -1, -1, 0)"),
    ("userfaultfd", &["EPERM"], "c.syscall(323, 1)"),
    ("io_uring", &["ENOSYS"], "c.syscall(425, 1, 0)"),
    ("keyctl", &["EPERM"], "c.syscall(250, 0, -3, 0)"),
    ("add_key", &["EPERM"], "c.syscall(248, b'user', b'k', b'v', 1, -3)"),
    ("init_module", &["EPERM"], "c.syscall(175, 0, 0, b'')"),
    ("kexec", &["EPERM"], "c.syscall(246, 0, 0, 0, 0)"),
    ("swapon", &["EPERM"], "c.syscall(167, b'/tmp', 0)"),
    ("reboot", &["EPERM"], "c.syscall(169, 0xfee1dead, 672274793, 0, 0)"),
    ("settimeofday", &["EPERM"], "c.syscall(164, 0, 0)"),
    ("open_by_handle_at", &["EPERM"], "c.syscall(304, -100, b'0'*32, 0)"),
    ("mknod", &["EPERM"], "c.mknod(b'/tmp/sda', 0o60600, 0x800)"),
    ("packet socket", &["EAFNOSUPPORT"], "c.socket(17, 3, 0)"),
    ("raw socket", &["EPERM"], "c.socket(2, 3, 1)"),
    ("vsock", &["EAFNOSUPPORT"], "c.socket(40, 1, 0)"),
    ("alg socket", &["EAFNOSUPPORT"], "c.socket(38, 5, 0)"),
    ("netfilter netlink", &["EPROTONOSUPPORT"], "c.socket(16, 3, 12)"),
    ("ptrace PID 1", &["EPERM"], "c.ptrace(0x4206, 1, 0, 0)"),
    ("process_vm_readv", &["EPERM"], "c.syscall(310, 1, 0, 0, 0, 0, 0)"),
    ("open PID 1's memory", &["EACCES"], "c.open(b'/proc/1/mem', 0)"),
    ("write core_pattern", &["EACCES", "EROFS"], "c.open(b'/proc/sys/kernel/core_pattern', 1)"),
    ("write sysrq", &["EACCES", "EROFS", "ENOENT"], "c.open(b'/proc/sysrq-trigger', 1)"),
    ("overlay redirect", &["EPERM"], "c.setxattr(b'/tmp', b'trusted.overlay.redirect', b'/', 1, 0)"),
    ("overlay xattr", &["EPERM"], "c.setxattr(b'/tmp', b'trusted.overlay.opaque', b'y', 1, 0)"),
];

/// What has to work inside.
const ALLOWED: &[(&str, &[&str], &str)] = &[
    ("socket", &["done"], "c.socket(2, 1, 0)"),
    ("unix socket", &["done"], "c.socket(1, 1, 0)"),
    ("route netlink", &["done"], "c.socket(16, 3, 0)"),
    ("open", &["done"], "c.open(b'/etc/passwd', 0)"),
    ("unshare files", &["done"], "c.unshare(0x400)"),
    ("trace me", &["done"], "c.ptrace(0, 0, 0, 0)"),
    ("socket of IPv6", &["done"], "c.socket(10, 1, 0)"),
    ("personality", &["done"], "c.personality(0xffffffff)"),
    ("xattr", &["done"], "c.setxattr(b'/tmp/x', b'user.a', b'y', 1, 0)"),
];

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

/// What the prober printed: name and answer.
fn answers(output: &str) -> BTreeMap<String, String> {
    let lines = output.lines().filter_map(|line| line.split_once('\t'));
    lines.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect()
}

pub(crate) fn syscalls(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let calls: Vec<_> = FORBIDDEN.iter().chain(ALLOWED).collect();
    let asked: Vec<_> = calls.iter().map(|(name, _, code)| (name, code)).collect();
    let asked = serde_json::to_string(&asked)?;
    let script = std::fs::read_to_string(inside("probe.py"))?;
    for sudo in [&[][..], &["--sudo"][..]] {
        let (exit, out, err) = w.exec(&name, sudo, &["python3", "-c", &script, &asked])?;
        ensure!(exit == 0, "{exit} {out}{err}");
        let found = answers(&out);
        let wrong: Vec<_> = calls
            .iter()
            .map(|(call, wanted, _)| (call, wanted, found.get(*call)))
            .filter(|(_, wanted, got)| !got.is_some_and(|got| wanted.contains(&got.as_str())))
            .collect();
        ensure!(wrong.is_empty(), "{sudo:?}: call, wanted, found: {wrong:?}");
    }
    // The control: without the sandbox each does something else. In namespaces
    // of its own, since much of it works there.
    let around =
        "cd / && mount -t tmpfs tmpfs /mnt && mount -t tmpfs tmpfs /tmp && python3 -c \"$1\" \"$2\"; exit";
    let mut control = Command::new("unshare");
    control
        .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", around, "sh", &script, &asked]);
    let output = control.output()?;
    let found = answers(&String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.success(), "control: {}", String::from_utf8_lossy(&output.stderr));
    for (call, wanted, _) in FORBIDDEN {
        let got = found.get(*call).with_context(|| format!("control: no answer to {call}"))?;
        // What this kernel does not have.
        let absent = [("alg socket", "EAFNOSUPPORT"), ("vsock", "EAFNOSUPPORT"), ("write sysrq", "ENOENT")];
        let absent = absent.contains(&(*call, got));
        ensure!(absent || !wanted.contains(&got.as_str()), "control: {call} is {got} without a sandbox too");
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
    ensure!(w.root_shell(&name, "ls /proc/acpi")?.1.is_empty());
    // Of /sys what programs size themselves by, read-only, and nothing else.
    let known = r"^/sys/\(devices/system/\(cpu\|node\)\|kernel/mm/transparent_hugepage\|fs/cgroup\)/";
    let others = w.root_shell(&name, &format!("find /sys ! -type d | grep -v '{known}'"))?.1;
    ensure!(others.is_empty(), "{others}");
    let (code, _, err) = w.root_shell(&name, "echo never > /sys/kernel/mm/transparent_hugepage/enabled")?;
    ensure!(code != 0 && err.contains("Read-only"), "{code} {err}");
    ensure!(w.ok(&name, "cat /sys/devices/system/cpu/online")?.starts_with('0'), "the control");
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

/// Ends with the test.
struct Canary(std::process::Child);

impl Drop for Canary {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No process, path, socket or descriptor of the host shows, to whoever looks and in
/// whatever way the command was started.
pub(crate) fn nothing_of_the_host(w: &World) -> anyhow::Result<()> {
    let (_, name) = w.sandbox()?;
    let canary = Command::new("sleep").arg("617.25").spawn()?;
    let _canary = Canary(canary);
    let look = "grep -lsa '617[.]25' /proc/[0-9]*/cmdline; true";
    let host = Command::new("bash").args(["-c", look]).output()?;
    ensure!(!host.stdout.is_empty(), "control: the host does not see its own process");
    let files = "for f in kcore kallsyms modules slabinfo vmallocinfo kpageflags cmdline interrupts keys key-users iomem; do \
                 n=$(head -c 99 /proc/$f 2>/dev/null | wc -c); [ $n = 0 ] || echo $f; done";
    let host = Command::new("bash").args(["-c", files]).output()?;
    ensure!(host.stdout.split(|byte| *byte == b'\n').count() > 5, "control: a host's root reads them");
    let descriptors = "import os
for f in sorted(os.listdir('/proc/self/fd')):
    try: print(f, os.readlink('/proc/self/fd/' + f))
    except OSError: pass
try: os.listdir('/proc/1/fd'); print('those of PID 1')
except PermissionError: pass";
    for who in [&[][..], &["--sudo"][..]] {
        let ask = |script: &str| -> anyhow::Result<String> {
            let (code, out, err) = w.exec(&name, who, &["bash", "-c", script])?;
            ensure!(code == 0, "{who:?} {script}: {code} {out}{err}");
            Ok(out)
        };
        // Its own command line has the words too, so that is one of one.
        let seen = ask(&format!("{look} | grep -v \"/$$/\" | wc -l"))?;
        ensure!(
            seen.trim() == "0" || ask(look)?.lines().count() <= 1,
            "{who:?}: a process of the host: {seen}"
        );
        ensure!(ask(files)?.is_empty(), "{who:?}: {}", ask(files)?);
        ensure!(ask("head -c 9 /proc/version | wc -c")?.trim() == "9", "control");
        let mounts = ask("cat /proc/self/mountinfo /proc/self/mounts")?;
        for word in ["vol_", "box_", "img_", "sbx_", "dormouse", "subvol"] {
            ensure!(!mounts.contains(word), "{who:?}: {word} in {mounts}");
        }
        let groups = ask("cat /proc/1/cgroup /proc/self/cgroup | grep -v ':/$'; true")?;
        ensure!(groups.is_empty(), "{who:?}: {groups}");
        let sockets = ask(
            "find / -xdev -type s 2>/dev/null; find /run /dev /tmp -type s 2>/dev/null; grep -a '@' /proc/net/unix; true",
        )?;
        ensure!(sockets.is_empty(), "{who:?}: {sockets}");
        ensure!(ask("env | grep -iE 'docker|containerd|_sock'; true")?.is_empty());
        for how in [&[][..], &["--interactive"], &["--tty"]] {
            let options: Vec<&str> = who.iter().chain(how).copied().collect();
            let (code, out, err) = w.exec(&name, &options, &["python3", "-c", descriptors])?;
            let own = out.lines().filter(|line| !line.contains("/proc/")).all(|line| {
                let number = line.split(' ').next().unwrap_or_default();
                ["0", "1", "2"].contains(&number)
            });
            ensure!(code == 0 && own && !out.contains("PID 1"), "{options:?}: {out}{err}");
        }
    }
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

    // The agent forks for each command and file: none of those can be written to either
    // (the class of CVE-2019-5736).
    let binary = || -> anyhow::Result<Vec<u8>> {
        let dir = std::fs::read_dir(w.dir.join("data/bin"))?.flatten();
        let mut agents: Vec<_> =
            dir.map(|e| e.path()).filter(|path| path.to_string_lossy().contains("agent")).collect();
        agents.sort();
        agents
            .iter()
            .map(std::fs::read)
            .collect::<Result<Vec<_>, _>>()
            .map(|all| all.concat())
            .map_err(Into::into)
    };
    let before = binary()?;
    w.root_shell(
        &name,
        "printf '#!/proc/self/exe\\n' > /tmp/again; chmod 755 /tmp/again; cp /bin/sleep /tmp/idle; \
         (: >> /tmp/idle) && echo written > /tmp/control; \
         (while :; do for p in /proc/[0-9]*/exe; do case $(readlink $p) in */bash|*/sleep|*/true|*/cat|*/dormouse*|'') \
          case $p in /proc/$$/*) ;; *) (: >> $p) 2>/dev/null && readlink $p >> /tmp/opened;; esac;; esac; done; done) \
          >/dev/null 2>&1 &",
    )?;
    ensure!(w.ok(&name, "cat /tmp/control")? == "written", "control: an idle program can be written to");
    for _ in 0..40 {
        w.exec(&name, &["--sudo"], &["/tmp/again"])?;
        w.exec(&name, &[], &["true"])?;
        let _ = w.read(&name, "/etc/hosts");
    }
    let opened = w.ok(&name, "cat /tmp/opened 2>/dev/null; true")?;
    ensure!(!opened.contains("dormouse") && binary()? == before, "the agent was opened: {opened}");
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
        w.ok(&name, "getent ahostsv4 github.com | head -1 | cut -d. -f1")? == "198",
        "the address that stands for the mirror"
    );
    let mirror = "curl -s -o /dev/null -w '%{http_code}' https://github.com";
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

pub(crate) fn previous(address: &str) -> anyhow::Result<String> {
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
    let change = "set -e; echo changed > /etc/debian_version; ln /usr/bin/env /tmp/link; echo changed > /tmp/link; rm -rf /opt";
    let (code, out, err) = w.root_shell(&a, change)?;
    ensure!(code == 0, "control: {out}{err}");
    for file in ["/etc/debian_version", "/usr/bin/env"] {
        ensure!(w.ok(&a, &format!("cat {file}"))? == "changed", "control: {file} is as it was");
    }
    ensure!(w.ok(&b, sum)? == before, "another sandbox sees the change");
    w.delete(&a)?;
    let (_, fresh) = w.sandbox()?;
    ensure!(w.ok(&fresh, sum)? == before, "a fresh sandbox sees the change");
    w.delete(&b)?;
    w.delete(&fresh)
}

/// Files that the launcher, the agent or a command would write to.
const LINKED: [&str; 13] = [
    "dev/null",
    "dev/ptmx",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "etc/resolv.conf",
    "etc/hosts",
    "etc/passwd",
    "etc/group",
    "etc/machine-id",
    "etc/hostname",
    "etc/gitconfig",
    "etc/profile.d",
];

/// An image in which each of those is a link to the host: by its absolute path, and
/// by one that climbs. It starts, twice, and nothing of the host is another.
pub(crate) fn linked_files(w: &World) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let canary = w.dir.join("canary-links");
    std::fs::create_dir_all(&canary)?;
    let seen = || -> anyhow::Result<Vec<_>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&canary)? {
            let entry = entry?;
            let (of, text) = (entry.metadata()?, std::fs::read_to_string(entry.path())?);
            found.push((entry.file_name(), of.uid(), of.mode(), of.mtime_nsec(), of.ino(), text));
        }
        found.sort();
        Ok(found)
    };
    for path in LINKED {
        std::fs::write(canary.join(path.replace('/', "-")), "untouched")?;
    }
    let before = seen()?;
    // Users are made in the image's own files when it is built: where those are links it is none.
    let of_users = |path: &str| ["etc/passwd", "etc/group"].contains(&path);
    for (kind, up, users) in
        [("absolute", "", false), ("climbing", "../../../../../..", false), ("users", "", true)]
    {
        let (root, tar) = (w.dir.join("linked"), w.dir.join("linked.tar"));
        for path in LINKED.into_iter().filter(|path| users || !of_users(path)) {
            let place = root.join(path);
            std::fs::create_dir_all(place.parent().context("no parent")?)?;
            let target = format!("{up}{}", canary.join(path.replace('/', "-")).display());
            std::os::unix::fs::symlink(&target, &place)?;
            ensure!(!up.is_empty() || std::fs::read_to_string(&place)? == "untouched", "control: {path}");
        }
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status()?;
        ensure!(packed.success());
        std::fs::remove_dir_all(&root)?;
        let name = format!("linked-{kind}");
        let built = w.cli(&["image", "build", "--name", &name, "--tar", &tar.to_string_lossy()]);
        if users {
            ensure!(built.is_err() && seen()? == before, "{kind}: {:?}", seen()?);
            continue;
        }
        built?;
        w.good(Method::POST, "/api/v2/sandboxes", Some(json!({"name": name, "image": name})))?;
        w.stop(&name)?;
        let woken = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}?resume=true"), None)?;
        ensure!(woken["session"]["status"] == "running", "{kind}: {woken}");
        w.delete(&name)?;
        ensure!(seen()? == before, "{kind}: {:?}", seen()?);
    }
    Ok(())
}

/// Sandboxes of images that have links to a canary on the host where the
/// launcher mounts, the agent writes and commands start. Each starts, or says why
/// it does not, and the host stays as it is.
pub(crate) fn hostile_image(w: &World) -> anyhow::Result<()> {
    let canary = w.dir.join("canary");
    std::fs::create_dir_all(&canary)?;
    std::fs::write(canary.join("file"), "untouched")?;
    let target = canary.to_string_lossy().into_owned();
    let tar = w.dir.join("hostile.tar");
    let local = w.dir.join("hostile-local");
    std::fs::write(&local, "changed")?;
    for dir in ["dev", "proc", "sys", "run", "etc", "tmp", "vercel", "usr"] {
        let root = w.dir.join("hostile");
        std::fs::create_dir_all(&root)?;
        std::os::unix::fs::symlink(&target, root.join(dir))?;
        // The control: followed from outside, the link leads to the canary.
        ensure!(std::fs::read_to_string(root.join(dir).join("file"))? == "untouched");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(dir).status()?;
        ensure!(packed.success());
        std::fs::remove_dir_all(&root)?;
        let (image, name) = (format!("hostile-{dir}"), format!("of-hostile-{dir}"));
        w.cli(&["image", "build", "--name", &image, "--tar", &tar.to_string_lossy()])?;
        let path = "/api/v2/sandboxes";
        let (status, reply) =
            w.call(Method::POST, path, Some(&w.key), Some(json!({"name": name, "image": image})))?;
        ensure!(status == StatusCode::OK, "{dir}: {status} {reply}");
        // Through the link: into the sandbox's own tree, or refused.
        for file in ["file", "new"] {
            let _ = w.cli(&["sandbox", "cp", &local.to_string_lossy(), &format!("{name}:/{dir}/{file}")]);
        }
        let read = w.read(&name, &format!("/{dir}/file"));
        let read = read.unwrap_or_else(|refused| Some(refused.to_string()));
        ensure!(read.as_deref() != Some("untouched"), "{dir}: the host's file was read");
        w.stop(&name)?;
        let woken = w.good(Method::GET, &format!("{path}/{name}?resume=true"), None)?;
        ensure!(woken["session"]["status"] == "running", "{dir}: {woken}");
        w.delete(&name)?;
        let entries: Vec<_> = std::fs::read_dir(&canary)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(
            entries == ["file"] && std::fs::read_to_string(canary.join("file"))? == "untouched",
            "{dir}: {entries:?}"
        );
    }
    Ok(())
}
