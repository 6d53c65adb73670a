//! Files of `/proc` that tell a sandbox its limits where the host has no lxcfs. One
//! text serves every sandbox of the same size, so it is made once: the host's own
//! files take long to read where there are many processors.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use dormouse_provider::Resources;

/// The files of a sandbox, on the host.
#[derive(Debug)]
pub(crate) struct SeenLimits {
    pub(crate) meminfo: PathBuf,
    /// `None`: it may use every processor of the host, and sees its file.
    pub(crate) cpuinfo: Option<PathBuf>,
}

/// The directory of an instance's files. In memory: who sleeps wakes also where the
/// data directory's disk is full.
pub(crate) fn dir(instance: u8) -> PathBuf {
    PathBuf::from(format!("/run/dormouse-{instance}.limits"))
}

/// One maker at a time: a file is read as soon as it has its name.
static MAKING: Mutex<()> = Mutex::new(());

/// The files for `resources`, made where they are missing.
///
/// # Errors
/// What the file system says.
pub(crate) fn seen_limits(instance: u8, resources: &Resources) -> io::Result<SeenLimits> {
    let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let (dir, memory, vcpus) = (dir(instance), resources.memory_mib, resources.vcpus);
    let have = |name: String, host: &str, text: &dyn Fn(&str) -> String| -> io::Result<PathBuf> {
        let path = dir.join(name);
        if !path.exists() {
            std::fs::create_dir_all(&dir)?;
            crate::sys::write_durably(&path, &text(&std::fs::read_to_string(host)?))?;
        }
        Ok(path)
    };
    Ok(SeenLimits {
        meminfo: have(format!("meminfo-{memory}"), "/proc/meminfo", &|host| meminfo(host, memory << 20))?,
        cpuinfo: (processors() > vcpus as usize)
            .then(|| have(format!("cpuinfo-{vcpus}"), "/proc/cpuinfo", &|host| cpuinfo(host, vcpus)))
            .transpose()?,
    })
}

fn processors() -> usize {
    static FOUND: OnceLock<usize> = OnceLock::new();
    *FOUND.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// `/proc/meminfo` of a machine with so much memory (`proc_meminfo(5)`): all of it
/// is free, and there is no swap.
fn meminfo(host: &str, bytes: u64) -> String {
    let of_machine = host.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let of_machine = of_machine.and_then(|value| value.split_whitespace().next()?.parse().ok());
    // A limit may be more than there is.
    let total = (bytes >> 10).min(of_machine.unwrap_or(u64::MAX));
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let of_host: u64 = value.split_whitespace().next()?.parse().ok()?;
        let shown = match name {
            "MemTotal" | "MemFree" | "MemAvailable" => total,
            "Hugepagesize" => of_host,
            _ if name.starts_with("Vmalloc") => of_host,
            _ => 0,
        };
        let unit = if value.ends_with("kB") { " kB" } else { "" };
        // In as many columns as the kernel has them.
        Some(format!("{:<16}{shown:>8}{unit}\n", format!("{name}:")))
    };
    host.lines().filter_map(line).collect()
}

/// `/proc/cpuinfo` with at most so many processors.
fn cpuinfo(host: &str, vcpus: u32) -> String {
    let blocks: Vec<&str> = host.split("\n\n").filter(|block| !block.trim().is_empty()).collect();
    blocks.into_iter().take(vcpus.max(1) as usize).map(|block| format!("{}\n\n", block.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::{cpuinfo, meminfo};

    #[test]
    fn files_tell_the_limits() {
        let host = "MemTotal:       24684100 kB\nMemFree:          858708 kB\nCached:   12345608 kB\n\
                    HugePages_Total:       3\nHugepagesize:       2048 kB\n";
        let shown = meminfo(host, 1 << 30);
        let line = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(line("MemTotal:"), "MemTotal:        1048576 kB");
        assert_eq!(line("MemFree:"), "MemFree:         1048576 kB");
        assert!(meminfo(host, 1 << 40).starts_with("MemTotal:       24684100 kB\n"), "no more than there is");
        assert_eq!(line("Cached:"), "Cached:                0 kB");
        assert_eq!(line("HugePages_Total:"), "HugePages_Total:       0");
        assert_eq!(line("Hugepagesize:"), "Hugepagesize:       2048 kB");
        let host = "processor\t: 0\nflags\t: a\n\nprocessor\t: 1\nflags\t: a\n\n";
        assert_eq!(cpuinfo(host, 1), "processor\t: 0\nflags\t: a\n\n");
        assert_eq!(cpuinfo(host, 8), host);
    }
}
