//! Whether the host itself has room for one more run: memory and processes that are
//! there now, whatever sandboxes may take together by their limits. A host that has
//! run out of either ends what it should not, the server first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_provider::{ProviderError, Result};

/// What a run takes while it comes up, in bytes: namespaces, agent, page tables,
/// and the launcher beside it.
const OF_A_START: u64 = 16 << 20;

/// Processes and threads that a start takes, and that commands of the host need.
const TASKS: u64 = 256;

/// Memory that is kept free of new runs, in bytes: a sixteenth, from 256 MiB to 2 GiB.
fn usually_kept(total: u64) -> u64 {
    (total / 16).clamp(256 << 20, 2 << 30)
}

/// The host as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    memory: u64,
    available: u64,
    tasks: u64,
}

/// Who may begin.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Bytes; `None`: what is usual.
    kept: Option<u64>,
    /// Processes and threads that the host may have.
    most_tasks: u64,
    starting: Arc<AtomicU64>,
}

/// A start that is under way: what it will take is not there for another one.
#[derive(Debug)]
pub(crate) struct Starting(Arc<AtomicU64>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// After the host's limits were raised, which are read once.
    pub(crate) fn new(kept: Option<u64>) -> Self {
        Self { kept, most_tasks: most_tasks(), starting: Arc::default() }
    }

    /// Lets a start begin.
    ///
    /// # Errors
    /// [`ProviderError::Capacity`] with what is missing.
    pub(crate) fn begin(&self) -> Result<Starting> {
        let before = self.starting.fetch_add(1, Ordering::Relaxed);
        let starting = Starting(self.starting.clone());
        match look() {
            Ok(sight) => decide(sight, self.most_tasks, self.kept, before)
                .map_err(|missing| ProviderError::Capacity(missing.to_owned()))?,
            // Nobody is refused for what cannot be seen.
            Err(error) => tracing::warn!(%error, "look at the memory of the host"),
        }
        Ok(starting)
    }
}

fn decide(
    sight: Sight,
    most_tasks: u64,
    kept: Option<u64>,
    starting: u64,
) -> std::result::Result<(), &'static str> {
    let kept = kept.unwrap_or_else(|| usually_kept(sight.memory));
    if sight.available < kept.saturating_add((starting + 1).saturating_mul(OF_A_START)) {
        return Err("the memory of this server is nearly used up, so nothing new is begun");
    }
    if sight.tasks.saturating_add((starting + 1).saturating_mul(TASKS)) > most_tasks {
        return Err("this server is near its limit of processes, so nothing new is begun");
    }
    Ok(())
}

/// Processes and threads that the host may have (`proc_sys_kernel(5)`); one that
/// cannot be read does not bound.
fn most_tasks() -> u64 {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    ["pid_max", "threads-max"].into_iter().filter_map(limit).min().unwrap_or(u64::MAX)
}

/// Bytes of memory that the host has.
///
/// # Errors
/// What reading `/proc` says.
pub(crate) fn memory() -> std::io::Result<u64> {
    Ok(look()?.memory)
}

/// Looks at `/proc` (`proc_meminfo(5)`, `proc_loadavg(5)`).
fn look() -> std::io::Result<Sight> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| -> std::io::Result<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(invalid)?;
        let number = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        number.map(|kib| kib << 10).ok_or_else(invalid)
    };
    let loadavg = std::fs::read_to_string("/proc/loadavg")?;
    let tasks = loadavg.split_whitespace().nth(3).and_then(|word| word.split_once('/')?.1.parse().ok());
    Ok(Sight {
        memory: kib("MemTotal:")?,
        available: kib("MemAvailable:")?,
        tasks: tasks.ok_or_else(invalid)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_kept_is_kept_from_those_who_start_at_once() {
        let sight = |available| Sight { memory: 8192 * MIB, available, tasks: 100 };
        let decide = |sight, kept, starting| decide(sight, 32_768, kept, starting);
        assert!(decide(sight(528 * MIB), None, 0).is_ok(), "a sixteenth, and one start");
        assert!(decide(sight(527 * MIB), None, 0).is_err());
        assert!(decide(sight(528 * MIB), None, 1).is_err(), "two at once");
        assert!(decide(sight(20 * MIB), Some(0), 0).is_ok());
        assert_eq!([256, 512, 2048], [1, 8, 512].map(|gib| usually_kept(gib << 30) >> 20));
        let full = Sight { tasks: 32_600, ..sight(8000 * MIB) };
        assert!(decide(full, None, 0).unwrap_err().contains("processes"));
    }

    #[test]
    fn this_host_is_seen() {
        let sight = look().unwrap();
        assert!(sight.available <= sight.memory && sight.tasks > 1, "{sight:?}");
        assert!(most_tasks() > 1000 && most_tasks() < u64::MAX);
    }

    #[test]
    fn a_start_counts_until_it_is_over() {
        let admission = Admission::new(Some(0));
        let (one, other) = (admission.begin().unwrap(), admission.begin().unwrap());
        assert_eq!(admission.starting.load(Ordering::Relaxed), 2);
        drop((one, other));
        assert_eq!(admission.starting.load(Ordering::Relaxed), 0);
    }
}
