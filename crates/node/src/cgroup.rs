//! Limits: one cgroup per run, on version 1 (one hierarchy per controller) and
//! version 2 (one for all). Detection looks at what is mounted; nothing is
//! mounted where others see it.
//!
//! ```text
//! v1  /sys/fs/cgroup/{memory,pids,cpu,freezer,cpuacct}/dormouse-N/RUN
//!     /sys/fs/cgroup/cpuset/dormouse-N   all runs
//! v2  /sys/fs/cgroup/dormouse-N/RUN
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_provider::Resources;
use dormouse_types::RunId;

use crate::sys;
use crate::sys::mount::{Setting, mount_detached};

/// Period of the CPU quota in microseconds, the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// How the host's cgroups are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// One hierarchy per controller, also on hybrid hosts.
    V1,
    /// One hierarchy.
    V2,
}

/// The cgroups of one instance.
#[derive(Debug)]
pub(crate) struct Cgroups {
    version: CgroupVersion,
    /// Parent directories: one per controller on v1, one on v2.
    parents: Vec<PathBuf>,
    /// Version 1: groups that all runs are in.
    shared: Vec<PathBuf>,
    /// Version 1: keeps moves between groups fast while it is open.
    _fast_moves: Option<OwnedFd>,
}

/// Has the kernel move processes between groups without waiting for an RCU
/// grace period, 5 to 20 ms of a start on version 1; on version 2 processes are
/// born in their group. The kernel has one switch for this (`favordynmods`),
/// which is on while any hierarchy is mounted that asks for it: one without
/// controllers does, and goes with the last server (since Linux 6.18 a part
/// stays until the host restarts). In exchange forks and exits on the whole host
/// take a slower lock; what that costs was less than the noise of a measurement.
fn favor_moves() -> io::Result<OwnedFd> {
    let settings =
        [Setting::Flag(c"none"), Setting::Text(c"name", c"dormouse"), Setting::Flag(c"favordynmods")];
    let mut waited = Duration::ZERO;
    loop {
        match mount_detached(c"cgroup", Path::new("none"), &settings, 0) {
            // That of a server that ended just now is on its way out.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && waited < MOUNT_PATIENCE => {
                let pause = Duration::from_millis(20);
                std::thread::sleep(pause);
                waited += pause;
            }
            other => return other,
        }
    }
}

/// Controllers that carry our limits.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Version 1 hierarchies that a run joins: the controllers, and the one that
/// stops its processes for a moment (in version 2 every group can).
const V1_HIERARCHIES: [&str; 4] = ["memory", "pids", "cpu", "freezer"];

/// Version 1 hierarchies that limit nothing here. The JVM believes in no limit unless
/// it finds itself in these, too (`CgroupSubsystemFactory` of OpenJDK). What one counts
/// is each run's own; one group of the other serves all runs, so a start only joins it.
const V1_COUNTING: &str = "cpuacct";
const V1_SHARED: &str = "cpuset";

/// Of its memory, what a run may have besides in buffers of sockets, where version 1
/// counts them by themselves.
const SOCKETS_SHARE: u64 = 8;

/// How long the processes of a run may take to stand still.
const FREEZE_PATIENCE: Duration = Duration::from_secs(1);

/// How long the hierarchy of an earlier server may take to go.
const MOUNT_PATIENCE: Duration = Duration::from_millis(500);

/// What the host has, or why that is not enough.
pub fn detect() -> io::Result<CgroupVersion> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        let found = fs::read_to_string(root.join("cgroup.controllers"))?;
        let missing: Vec<_> =
            CONTROLLERS.iter().filter(|wanted| !found.split_whitespace().any(|c| c == **wanted)).collect();
        return if missing.is_empty() {
            Ok(CgroupVersion::V2)
        } else {
            Err(io::Error::other(format!("cgroup v2 lacks the controllers {missing:?}")))
        };
    }
    let missing: Vec<_> =
        V1_HIERARCHIES.iter().filter(|c| !root.join(c).join("cgroup.procs").exists()).collect();
    if missing.is_empty() {
        Ok(CgroupVersion::V1)
    } else {
        Err(io::Error::other(format!("no cgroup v2, and cgroup v1 lacks {missing:?}")))
    }
}

impl Cgroups {
    /// Makes the parent groups of `instance`.
    pub(crate) fn open(instance: u8) -> io::Result<Self> {
        let version = detect()?;
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("dormouse-{instance}");
        let parents: Vec<PathBuf> = match version {
            CgroupVersion::V1 => {
                let counting = is_apart(root, V1_COUNTING).then_some(V1_COUNTING);
                V1_HIERARCHIES.into_iter().chain(counting).map(|c| root.join(c).join(&name)).collect()
            }
            CgroupVersion::V2 => {
                // Children of a group get only the controllers that it passes on.
                fs::write(root.join("cgroup.subtree_control"), "+memory +pids +cpu")?;
                vec![root.join(&name)]
            }
        };
        for parent in &parents {
            make(parent)?;
        }
        let shared = match version {
            CgroupVersion::V1 if is_apart(root, V1_SHARED) => shared_group(root, &name)
                .inspect_err(|error| tracing::warn!(%error, "the JVM will not see limits of sandboxes"))
                .into_iter()
                .collect(),
            CgroupVersion::V1 | CgroupVersion::V2 => Vec::new(),
        };
        if version == CgroupVersion::V1 {
            // Where it is on for one group the kernel has to look at every socket; where it
            // stays on, no start waits for the kernel to change its code.
            bound_sockets(&parents[0], None)?;
            // Runs that a server from before started, which bounded none.
            for run in groups_in(&parents[0]) {
                // Not while it has more than that in use (EBUSY), nor if it is going: no
                // reason for the server not to come up.
                if let Err(error) = bound_sockets_of(&run) {
                    tracing::warn!(run = %run.display(), %error, "bound the buffers of sockets of a run");
                }
            }
        }
        if version == CgroupVersion::V2 {
            fs::write(parents[0].join("cgroup.subtree_control"), "+memory +pids +cpu")?;
        }
        let _fast_moves = match version {
            CgroupVersion::V1 => favor_moves()
                .inspect_err(|error| tracing::info!(%error, "sandboxes start slower: favordynmods"))
                .ok(),
            CgroupVersion::V2 => None,
        };
        Ok(Self { version, parents, shared, _fast_moves })
    }

    pub(crate) fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Directories of the groups that a run is in besides its own.
    pub(crate) fn shared(&self) -> &[PathBuf] {
        &self.shared
    }

    /// Directories of a run's groups.
    pub(crate) fn paths(&self, run: &str) -> Vec<PathBuf> {
        self.parents.iter().map(|parent| parent.join(run)).collect()
    }

    /// Makes the groups of a run and sets its limits.
    pub(crate) fn create(&self, run: &RunId, limits: &Resources) -> io::Result<()> {
        let paths = self.paths(run.as_str());
        for path in &paths {
            make(path)?;
        }
        let memory = limits.memory_mib << 20;
        let quota = u64::from(limits.vcpus) * CPU_PERIOD;
        match self.version {
            CgroupVersion::V1 => {
                set(&paths[0], "memory.limit_in_bytes", memory)?;
                // Memory and swap together; absent where swap is not counted.
                let swap = paths[0].join("memory.memsw.limit_in_bytes");
                if swap.exists() {
                    set(&paths[0], "memory.memsw.limit_in_bytes", memory)?;
                }
                bound_sockets(&paths[0], Some(memory / SOCKETS_SHARE))?;
                set(&paths[1], "pids.max", limits.pids)?;
                set(&paths[2], "cpu.cfs_period_us", CPU_PERIOD)?;
                set(&paths[2], "cpu.cfs_quota_us", quota)
            }
            CgroupVersion::V2 => {
                let path = &paths[0];
                set(path, "memory.max", memory)?;
                if path.join("memory.swap.max").exists() {
                    set(path, "memory.swap.max", 0)?;
                }
                set(path, "pids.max", limits.pids)?;
                fs::write(path.join("cpu.max"), format!("{quota} {CPU_PERIOD}"))
            }
        }
    }

    /// Where the kernel counts the processes of a run that it killed for lack of memory.
    pub(crate) fn memory_events(&self, run: &str) -> PathBuf {
        let file = match self.version {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        };
        self.parents[0].join(run).join(file)
    }

    /// What the processes of a run have used of processors, where the host counts
    /// it.
    pub(crate) fn processor_time(&self, run: &RunId) -> Option<Duration> {
        let paths = self.paths(run.as_str());
        match self.version {
            // A group that only counts (`cpuacct`) would cost each start its time.
            CgroupVersion::V1 => Some(processes(&paths[1]).into_iter().filter_map(time_of).sum()),
            CgroupVersion::V2 => {
                let counts = fs::read_to_string(paths[0].join("cpu.stat")).ok()?;
                let microseconds = counts.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                microseconds.parse().ok().map(Duration::from_micros)
            }
        }
    }

    /// Where a run is stopped and started again, the word for either, and where
    /// it is read that all of it stands still.
    fn freezer(&self, run: &str) -> (PathBuf, [&'static str; 2], PathBuf) {
        match self.version {
            CgroupVersion::V1 => {
                let state = self.parents[3].join(run).join("freezer.state");
                (state.clone(), ["FROZEN", "THAWED"], state)
            }
            CgroupVersion::V2 => {
                let group = self.parents[0].join(run);
                (group.join("cgroup.freeze"), ["1", "0"], group.join("cgroup.events"))
            }
        }
    }

    /// Has every process of a run stand still, until the returned value is
    /// dropped.
    ///
    /// # Errors
    /// `TimedOut` when one of them does not; all go on then.
    pub(crate) fn freeze(&self, run: &RunId) -> io::Result<Frozen> {
        let (place, [freeze, thaw], state) = self.freezer(run.as_str());
        // Open all the time: to let it go on must not take a descriptor.
        let mut switch = fs::OpenOptions::new().write(true).open(place)?;
        switch.write_all(freeze.as_bytes())?;
        // From here on it goes on again, whatever happens.
        let frozen = Frozen { switch, thaw };
        let mut waited = Duration::ZERO;
        let mut pause = Duration::from_micros(50);
        while !fs::read_to_string(&state)?.lines().any(|line| matches!(line, "FROZEN" | "frozen 1")) {
            if waited > FREEZE_PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a process does not stand still"));
            }
            std::thread::sleep(pause);
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        Ok(frozen)
    }

    /// Has every process of a run go on. Harmless where it does.
    pub(crate) fn thaw(&self, run: &str) {
        let (place, [_, thaw], _) = self.freezer(run);
        match fs::write(place, thaw) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(run, %error, "let the processes of a run go on");
            }
            _ => {}
        }
    }

    /// Ends every process of a run's groups and removes the groups. Waits for
    /// the processes, for at most five seconds.
    pub(crate) fn remove(&self, run: &str) -> io::Result<()> {
        // One that stands still takes no signal.
        self.thaw(run);
        let mut killed = std::collections::BTreeSet::new();
        for path in self.paths(run) {
            let mut pause = Duration::from_micros(100);
            let mut waited = Duration::ZERO;
            loop {
                match fs::remove_dir(&path) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if waited > Duration::from_secs(5) => return Err(error),
                    Err(_) => {}
                }
                for pid in processes(&path) {
                    sys::kill(pid);
                    killed.insert(pid);
                }
                std::thread::sleep(pause);
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
        // A process that has left its group is dead.
        killed.into_iter().for_each(sys::reap);
        Ok(())
    }

    /// Runs that have a group.
    pub(crate) fn runs(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .parents
            .iter()
            .flat_map(|parent| groups_in(parent))
            .filter_map(|group| Some(group.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Removes the parent groups, once no run is left.
    pub(crate) fn close(&self) {
        for parent in self.parents.iter().chain(&self.shared) {
            // Still in use by a run: it stays with it.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// A run whose processes stand still.
#[derive(Debug)]
pub(crate) struct Frozen {
    switch: File,
    thaw: &'static str,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The group is gone with its processes, or takes it.
        if let Err(error) = self.switch.write_all(self.thaw.as_bytes()) {
            tracing::warn!(%error, "let the processes of a run go on");
        }
    }
}

/// Whether the host has a hierarchy of version 1 that is none of those in which a run
/// has a group of its own: often several controllers share one (`cpu,cpuacct`), and a
/// process is in one group of each.
fn is_apart(root: &Path, controller: &str) -> bool {
    let place = |controller: &str| {
        let found = fs::metadata(root.join(controller)).ok()?;
        Some((found.dev(), found.ino()))
    };
    let found = place(controller).filter(|_| root.join(controller).join("cgroup.procs").exists());
    found.is_some_and(|found| !V1_HIERARCHIES.iter().any(|own| place(own) == Some(found)))
}

/// Makes the group that all runs share.
fn shared_group(root: &Path, name: &str) -> io::Result<PathBuf> {
    let hierarchy = root.join(V1_SHARED);
    let group = hierarchy.join(name);
    make(&group)?;
    // Empty at first, and nobody may join it then (`cpuset(7)`).
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fs::write(group.join(file), fs::read(hierarchy.join(file))?)?;
    }
    Ok(group)
}

/// The groups in a group.
fn groups_in(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Bounds the buffers of sockets, which version 1 counts only where it is told a bound:
/// else they are part of no group's memory, and of one number for the whole host
/// (`tcp(7)`, `tcp_mem`). Version 2 counts them as memory.
fn bound_sockets(group: &Path, bytes: Option<u64>) -> io::Result<()> {
    let file = "memory.kmem.tcp.limit_in_bytes";
    match bytes {
        // A kernel that is told to count no memory of its own has none.
        _ if !group.join(file).exists() => Ok(()),
        Some(bytes) => set(group, file, bytes),
        None => fs::write(group.join(file), "-1"),
    }
}

/// [`bound_sockets`] by the memory that a group may have.
fn bound_sockets_of(group: &Path) -> io::Result<()> {
    let limit = fs::read_to_string(group.join("memory.limit_in_bytes"))?;
    let limit: u64 = limit.trim().parse().map_err(io::Error::other)?;
    bound_sockets(group, Some(limit / SOCKETS_SHARE))
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn set(dir: &Path, file: &str, value: u64) -> io::Result<()> {
    let path = dir.join(file);
    fs::write(&path, value.to_string()).map_err(|error| {
        io::Error::new(error.kind(), format!("write {value} to {}: {error}", path.display()))
    })
}

fn processes(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// What a process and the children that it waited for have used of processors
/// (`proc_pid_stat(5)`, fields 14 to 17).
fn time_of(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in parentheses, may have anything in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(4).filter_map(|n| n.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)))
}

#[cfg(test)]
mod tests {
    use super::{CgroupVersion, detect, favor_moves};

    /// As root.
    #[test]
    fn moves_are_fast_while_a_server_runs() {
        if detect().unwrap() == CgroupVersion::V2 {
            return; // Nothing moves there.
        }
        let held = favor_moves().unwrap();
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(groups.contains(":name=dormouse:/"), "{groups}");
        // A second server of the same host.
        favor_moves().unwrap();
        drop(held);
    }
}
