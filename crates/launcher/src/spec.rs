//! What to make, as `key=value` arguments. The engine writes them, so a
//! malformed one is a bug of ours and ends the launch.

use std::collections::BTreeSet;

use crate::error::Error;

/// Ids in a sandbox's user namespace: 0 to 65535.
pub(crate) const IDS: u32 = 65_536;

/// A drive to mount.
#[derive(Debug, Default)]
pub(crate) struct Drive {
    /// Directory of its files.
    pub(crate) files: String,
    /// Absolute path inside.
    pub(crate) place: String,
    /// The sandbox may write to it.
    pub(crate) writable: bool,
}

/// What a sandbox may have of things that the kernel counts by user namespace,
/// by its file system of terminals, or by its IPC namespace.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Pending signals and timers of all processes (`RLIMIT_SIGPENDING`).
    pub(crate) pending_signals: u64,
    /// Bytes of POSIX message queues (`RLIMIT_MSGQUEUE`).
    pub(crate) queue_bytes: u64,
    /// Terminals that are open at once (`max` of devpts).
    pub(crate) terminals: u64,
    /// Bytes of System V shared memory (`kernel.shmall`), which outlives the
    /// processes that made it.
    pub(crate) shared_bytes: u64,
}

/// One sandbox to make. Paths are host paths.
#[derive(Debug, Default)]
pub(crate) struct Spec {
    /// Agent binary, mode 0711 and owned by the host's root: it can be
    /// executed but not read inside, which also keeps PID 1 untraceable.
    pub(crate) agent: String,
    /// Directory in which `agent.sock` and `control.sock` are made.
    pub(crate) socket_dir: String,
    /// Root directory of the mounted image.
    pub(crate) lower: String,
    /// Directory of the volume, which holds `u` (upper) and `w` (work).
    pub(crate) volume: String,
    /// First host id of the range.
    pub(crate) uid_base: u32,
    /// Network namespace to live in; without one, a new and empty one.
    pub(crate) netns: Option<String>,
    /// cgroup v1 directories to join.
    pub(crate) cgroups: Vec<String>,
    /// cgroup v2 directory to be born in.
    pub(crate) cgroup2: Option<String>,
    /// File with the compiled seccomp filter.
    pub(crate) seccomp: String,
    /// Directory of the host's for logs of commands.
    pub(crate) output: String,
    /// File in which the kernel counts what it killed for lack of memory.
    pub(crate) memory_events: String,
    /// Drives, in the order of their arguments.
    pub(crate) drives: Vec<Drive>,
    /// Host name inside.
    pub(crate) hostname: String,
    /// What it may have of the kernel.
    pub(crate) account: Account,
    /// File with the text of its `/proc/meminfo`; without one the host's is seen.
    pub(crate) meminfo: Option<String>,
    /// File with the text of its `/proc/cpuinfo`; likewise.
    pub(crate) cpuinfo: Option<String>,
    /// Where lxcfs is mounted, if the host has it.
    pub(crate) lxcfs: Option<String>,
    /// What it takes for the id of the machine's boot, a UUID.
    pub(crate) boot_id: String,
    /// Size of /dev/shm in bytes.
    pub(crate) shm_bytes: u64,
    /// Size of /run in bytes.
    pub(crate) run_bytes: u64,
    /// How often the files of this sandbox were booted before: decides where
    /// its process numbers begin.
    pub(crate) boots: u64,
}

impl Spec {
    /// Reads `key=value` arguments.
    pub(crate) fn from_args(args: impl Iterator<Item = String>) -> Result<Self, Error> {
        let (mut spec, mut given) = (Self::default(), BTreeSet::new());
        for arg in args {
            let Some((key, value)) = arg.split_once('=') else {
                return Err(Error::reported(format!("argument {arg:?} is not key=value")));
            };
            let number =
                || value.parse::<u64>().map_err(|_| Error::reported(format!("{key}={value}: not a number")));
            given.insert(key.to_owned());
            match key {
                "agent" => value.clone_into(&mut spec.agent),
                "socket-dir" => value.clone_into(&mut spec.socket_dir),
                "lower" => value.clone_into(&mut spec.lower),
                "volume" => value.clone_into(&mut spec.volume),
                "uid-base" => {
                    spec.uid_base = u32::try_from(number()?)
                        .map_err(|_| Error::reported(format!("{key}={value}: too large")))?;
                }
                "netns" => spec.netns = Some(value.to_owned()),
                "cgroup" => spec.cgroups.push(value.to_owned()),
                "cgroup2" => spec.cgroup2 = Some(value.to_owned()),
                "seccomp" => value.clone_into(&mut spec.seccomp),
                "output" => value.clone_into(&mut spec.output),
                "memory-events" => value.clone_into(&mut spec.memory_events),
                "drive" => spec.drives.push(Drive { files: value.to_owned(), ..Drive::default() }),
                "drive-place" | "drive-writable" => {
                    let Some(drive) = spec.drives.last_mut() else {
                        return Err(Error::reported(format!("argument {key} before drive")));
                    };
                    match key {
                        "drive-place" => value.clone_into(&mut drive.place),
                        _ => drive.writable = value == "1",
                    }
                }
                "hostname" => value.clone_into(&mut spec.hostname),
                "meminfo" => spec.meminfo = Some(value.to_owned()),
                "cpuinfo" => spec.cpuinfo = Some(value.to_owned()),
                "lxcfs" => spec.lxcfs = Some(value.to_owned()),
                "boot-id" => value.clone_into(&mut spec.boot_id),
                "pending-signals" => spec.account.pending_signals = number()?,
                "queue-bytes" => spec.account.queue_bytes = number()?,
                "terminals" => spec.account.terminals = number()?,
                "shared-bytes" => spec.account.shared_bytes = number()?,
                "shm-bytes" => spec.shm_bytes = number()?,
                "run-bytes" => spec.run_bytes = number()?,
                "boots" => spec.boots = number()?,
                _ => return Err(Error::reported(format!("unknown argument {key:?}"))),
            }
        }
        if let Some(drive) = spec.drives.iter().find(|drive| !drive.place.starts_with('/')) {
            return Err(Error::reported(format!("drive {} has no place", drive.files)));
        }
        // Range 0 would map the sandbox's root to the host's.
        if spec.uid_base < IDS || spec.uid_base > u32::MAX - IDS {
            return Err(Error::reported(format!("uid-base={} is not a sandbox's range", spec.uid_base)));
        }
        for (key, value) in [
            ("agent", &spec.agent),
            ("socket-dir", &spec.socket_dir),
            ("lower", &spec.lower),
            ("volume", &spec.volume),
            ("seccomp", &spec.seccomp),
            ("output", &spec.output),
            ("memory-events", &spec.memory_events),
            ("hostname", &spec.hostname),
            ("boot-id", &spec.boot_id),
        ] {
            if value.is_empty() {
                return Err(Error::reported(format!("argument {key} is missing")));
            }
        }
        for key in ["pending-signals", "queue-bytes", "terminals", "shared-bytes", "shm-bytes", "run-bytes"] {
            if !given.contains(key) {
                return Err(Error::reported(format!("argument {key} is missing")));
            }
        }
        for (key, value) in [
            ("terminals", spec.account.terminals),
            ("shm-bytes", spec.shm_bytes),
            ("run-bytes", spec.run_bytes),
        ] {
            if value == 0 {
                return Err(Error::reported(format!("{key}=0: the kernel takes that for no limit")));
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::Spec;

    fn parse(extra: &[&str]) -> Result<Spec, super::Error> {
        let args = [
            "agent=/a",
            "socket-dir=/s",
            "lower=/l",
            "volume=/v",
            "seccomp=/b",
            "output=/o",
            "memory-events=/m",
            "hostname=h",
            "boot-id=b",
            "pending-signals=1",
            "queue-bytes=1",
            "terminals=1",
            "shared-bytes=1",
            "shm-bytes=1",
            "run-bytes=1",
        ];
        Spec::from_args(args.iter().chain(extra).map(|s| (*s).to_owned()))
    }

    #[test]
    fn a_range_that_touches_the_hosts_ids_is_refused() {
        assert!(parse(&["uid-base=65536"]).is_ok());
        for base in ["0", "1000", "65535", "4294967295", "x"] {
            assert!(parse(&[&format!("uid-base={base}")]).is_err(), "{base}");
        }
    }

    #[test]
    fn unknown_and_missing_arguments_are_refused() {
        assert!(parse(&["uid-base=65536", "colour=red"]).is_err());
        assert!(parse(&["uid-base=65536", "terminals=0"]).is_err());
        assert!(parse(&["uid-base=65536", "queue-bytes=0"]).is_ok());
        assert!(parse(&["uid-base=65536", "drive-place=/a"]).is_err());
        assert!(parse(&["uid-base=65536", "drive=/d"]).is_err());
        assert!(parse(&["uid-base=65536", "drive=/d", "drive-place=/a", "drive-writable=1"]).is_ok());
        assert!(Spec::from_args(std::iter::once("uid-base=65536".to_owned())).is_err());
    }
}
