//! `dormouse doctor`: one line for each thing that a server needs, one remedy
//! for each that is missing.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use dormouse_node::{
    StorageKind, crashes_go_to_a_socket, detect_cgroups, disk_usage, low_limits, pool_trouble, probe_images,
};
use serde_json::json;

use crate::cli::DataArgs;
use crate::config::Config;
use crate::output::Output;

struct Finding {
    name: &'static str,
    ok: bool,
    /// Whether the server cannot do without.
    needed: bool,
    found: String,
    remedy: &'static str,
}

pub(crate) fn run(args: &DataArgs, output: &Output) -> anyhow::Result<ExitCode> {
    let config = Config::load_data(args)?;
    let findings = examine(&config);
    let healthy = findings.iter().all(|finding| finding.ok || !finding.needed);
    let json: Vec<_> = findings
        .iter()
        .map(|f| json!({"name": f.name, "ok": f.ok, "needed": f.needed, "found": f.found, "remedy": (!f.ok).then_some(f.remedy)}))
        .collect();
    let lines: Vec<String> = findings
        .iter()
        .map(|f| {
            let mark = match (f.ok, f.needed) {
                (true, _) => "ok  ",
                (false, true) => "FAIL",
                (false, false) => "note",
            };
            let remedy = if f.ok { String::new() } else { format!("\n       -> {}", f.remedy) };
            format!("{mark}  {:<18} {}{remedy}", f.name, f.found)
        })
        .collect();
    output.data(&json!({"ok": healthy, "findings": json}), &lines.join("\n"));
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![root(), kernel(), user_namespaces(), cgroups(), overlay()];
    findings.push(tool("erofs-utils", "mkfs.erofs", "apt-get install erofs-utils"));
    findings.push(images());
    findings.push(tool("nftables", "nft", "apt-get install nftables"));
    findings.push(tun());
    findings.push(transparent_proxy());
    if config.storage.driver == StorageKind::Btrfs {
        let btrfs = filesystem("btrfs");
        findings.push(Finding {
            name: "btrfs",
            ok: btrfs,
            needed: true,
            found: if btrfs { "in the kernel" } else { "not in this kernel" }.to_owned(),
            remedy: "load it (modprobe btrfs), or set storage.driver = \"plain\", which cannot limit disks",
        });
        findings.push(tool("btrfs-progs", "mkfs.btrfs", "apt-get install btrfs-progs"));
        findings.push(loop_devices());
    }
    let recipe = tool(
        "mmdebstrap",
        "mmdebstrap",
        "apt-get install mmdebstrap, or give `image build` a tar, a layout or a reference",
    );
    findings.push(Finding { needed: false, ..recipe });
    let runtimes = tool("npm", "npm", "apt-get install npm, if images of Node.js runtimes are to be built");
    findings.push(Finding { needed: false, ..runtimes });
    findings.push(kernel_limits(config));
    findings.push(core_dumps());
    findings.push(lxcfs(config));
    findings.push(pool(config));
    findings.push(room(config));
    findings.push(port(config));
    findings
}

fn root() -> Finding {
    let uid = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ok = uid.lines().any(|line| line.starts_with("Uid:\t0\t"));
    let found = if ok { "running as root" } else { "not running as root" }.to_owned();
    Finding {
        name: "privileges",
        ok,
        needed: true,
        found,
        remedy: "run the server as root; sandboxes never are",
    }
}

/// Oldest kernel whose mount interface is enough: `lowerdir+` came with 6.8.
const OLDEST: (u32, u32) = (6, 8);

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Finding {
        name: "kernel",
        ok: version >= OLDEST,
        needed: true,
        found: release.trim().to_owned(),
        remedy: "use Linux 6.8 or newer: an overlay over id-mapped mounts needs it",
    }
}

/// Limits that the server raises when it starts.
fn kernel_limits(config: &Config) -> Finding {
    let low = low_limits(&config.sandbox.kernel);
    let said = low.iter().map(|low| format!("{} (now {})", low.assignment(), low.found));
    Finding {
        name: "kernel limits",
        ok: low.is_empty(),
        needed: false,
        found: if low.is_empty() {
            "high enough for many sandboxes".to_owned()
        } else {
            format!("to be {}", said.collect::<Vec<_>>().join(", "))
        },
        remedy: "start the server, which raises them, or set them with sysctl where it may not",
    }
}

/// Whether crashes in sandboxes stay there.
fn core_dumps() -> Finding {
    let socket = crashes_go_to_a_socket();
    Finding {
        name: "core dumps",
        ok: !socket,
        needed: false,
        found: if socket { "kernel.core_pattern is a socket" } else { "none of sandboxes" }.to_owned(),
        remedy: "set kernel.core_pattern to a file or a program: the server of a socket gets every crash in a sandbox",
    }
}

/// Optional: without it a sandbox is told its limits, and not what it uses of them.
fn lxcfs(config: &Config) -> Finding {
    let place = &config.sandbox.lxcfs;
    let ok = place.join("proc/meminfo").exists();
    let found = if ok { "answers at" } else { "is not at" };
    Finding {
        name: "lxcfs",
        ok,
        needed: false,
        found: format!("{found} {}", place.display()),
        remedy: "apt-get install lxcfs, and restart the server, for a /proc that tells what a sandbox uses",
    }
}

fn user_namespaces() -> Finding {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let most: u64 = most.trim().parse().unwrap_or(0);
    Finding {
        name: "user namespaces",
        ok: most > 0,
        needed: true,
        found: format!("at most {most}"),
        remedy: "sysctl user.max_user_namespaces=65536",
    }
}

fn cgroups() -> Finding {
    let (ok, found) = match detect_cgroups() {
        Ok(version) => (true, format!("{version:?}").to_lowercase()),
        Err(error) => (false, error.to_string()),
    };
    Finding {
        name: "cgroups",
        ok,
        needed: true,
        found,
        remedy: "boot with the memory, pids and cpu controllers, and on v1 the freezer",
    }
}

fn filesystem(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let loaded = known.lines().any(|line| line.split_whitespace().last() == Some(name));
    loaded || command("modprobe", &["-n", name])
}

fn tun() -> Finding {
    let ok = std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok();
    let found = if ok { "/dev/net/tun" } else { "no /dev/net/tun" }.to_owned();
    let remedy = "load the driver (modprobe tun): connections of sandboxes are answered through it";
    Finding { name: "tun devices", ok, needed: true, found, remedy }
}

/// Has the kernel check rules like ours, and make none of them.
fn transparent_proxy() -> Finding {
    const RULES: &str = "table inet dormouse_doctor { chain c { type filter hook prerouting priority mangle; \
         socket transparent 1 accept; meta l4proto tcp tproxy ip to :1 accept; }; }";
    let ok = command("nft", &["--check", RULES]);
    Finding {
        name: "transparent proxy",
        ok,
        needed: true,
        found: if ok { "nftables takes such rules" } else { "nftables refuses such rules" }.to_owned(),
        remedy: "load nft_tproxy and nft_socket, or use a kernel that has them: CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET",
    }
}

fn loop_devices() -> Finding {
    let ok = Path::new("/dev/loop-control").exists();
    let found = if ok { "/dev/loop-control" } else { "no /dev/loop-control" }.to_owned();
    let remedy = "load the driver (modprobe loop): the pool is a file";
    Finding { name: "loop devices", ok, needed: true, found, remedy }
}

fn overlay() -> Finding {
    let ok = filesystem("overlay");
    let found = if ok { "in the kernel" } else { "not in this kernel" }.to_owned();
    Finding { name: "overlayfs", ok, needed: true, found, remedy: "load it: modprobe overlay" }
}

fn command(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn tool(name: &'static str, program: &str, remedy: &'static str) -> Finding {
    let path = std::env::var("PATH").unwrap_or_default();
    let place = path.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file());
    let found =
        place.as_ref().map_or_else(|| format!("{program} not found"), |path| path.display().to_string());
    Finding { name, ok: place.is_some(), needed: true, found, remedy }
}

/// Mounts a small image the way that base images are mounted.
fn images() -> Finding {
    let dir = std::env::temp_dir().join(format!("dormouse-doctor-{}", std::process::id()));
    let tried = (|| {
        let (tree, file, place) = (dir.join("tree"), dir.join("image"), dir.join("mount"));
        std::fs::create_dir_all(&tree)?;
        std::fs::create_dir_all(&place)?;
        let made =
            Command::new("mkfs.erofs").arg("--quiet").arg(&file).arg(&tree).stdout(Stdio::null()).status()?;
        if !made.success() {
            return Err(std::io::Error::other(format!("mkfs.erofs: {made}")));
        }
        probe_images(&file, &place)
    })();
    // Only our own scratch files are in there.
    let _ = std::fs::remove_dir_all(&dir);
    Finding {
        name: "erofs",
        ok: tried.is_ok(),
        needed: true,
        found: match tried {
            Ok(how) => format!("images are mounted {how}"),
            Err(error) => format!("images cannot be mounted: {error}"),
        },
        remedy: "load it (modprobe erofs), as root",
    }
}

/// The pool, if there is one here.
fn pool(config: &Config) -> Finding {
    let trouble = pool_trouble(&config.data_dir);
    let found = match &trouble {
        Ok(None) => "nothing is wrong with it".to_owned(),
        Ok(Some(trouble)) => trouble.clone(),
        Err(error) => error.to_string(),
    };
    Finding {
        name: "storage pool",
        ok: matches!(trouble, Ok(None)),
        needed: true,
        found,
        remedy: "make room on its disk; a running server mounts it anew by itself, else start one",
    }
}

/// What the pool's image takes, and whether it can grow to its size.
fn room(config: &Config) -> Finding {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    // The data directory may not be there yet: its file system is.
    let place = config.data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = disk_usage(place).map_or(0, |usage| usage.free_bytes);
    let taken = std::fs::metadata(config.data_dir.join("pool.img")).map_or(0, |found| found.len());
    let pool = config.pool();
    let wanted = match (pool.kind, &pool.device) {
        (StorageKind::Btrfs, None) => pool.pool_size.saturating_sub(taken),
        _ => 0,
    };
    Finding {
        name: "disk",
        ok: free > wanted,
        needed: false,
        found: format!(
            "the pool has {} reserved and may grow by {}; {} are free",
            gib(taken),
            gib(wanted),
            gib(free)
        ),
        remedy: "make room, or set a smaller storage.pool_gib: the pool grows only into what is free",
    }
}

fn port(config: &Config) -> Finding {
    let bound = std::net::TcpListener::bind(&config.listen);
    let found = match &bound {
        Ok(_) => format!("{} is free", config.listen),
        Err(error) => format!("{}: {error}", config.listen),
    };
    Finding {
        name: "port",
        ok: bound.is_ok(),
        needed: true,
        found,
        remedy: "stop what listens there, or set `listen`",
    }
}
