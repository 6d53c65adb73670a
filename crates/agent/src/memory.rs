//! How many processes of the sandbox the kernel has killed for lack of memory.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

/// The file that tells ([`dormouse_agent_protocol::MEMORY_EVENTS_FD`]).
#[derive(Debug)]
pub(crate) struct MemoryEvents(Option<File>);

impl MemoryEvents {
    pub(crate) fn new(file: Option<OwnedFd>) -> Self {
        Self(file.map(File::from))
    }

    /// Since the sandbox started; 0 where nobody tells.
    pub(crate) fn kills(&self) -> u64 {
        let mut buffer = [0; 512];
        let read = self.0.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(0);
        kills(&String::from_utf8_lossy(&buffer[..read]))
    }
}

fn kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::kills;

    #[test]
    fn both_versions_of_cgroups_are_read() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills("oom_kill_disable 0\n"), 0);
    }
}
