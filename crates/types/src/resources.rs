//! Limits of a sandbox.

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// CPUs' worth of time.
    pub vcpus: u32,
    /// Memory in MiB, page cache and tmpfs included.
    pub memory_mib: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Disk in MiB on top of the base image; `None`: not limited.
    pub disk_mib: Option<u64>,
}

impl Resources {
    /// The limit of the disk in bytes; `None`: not limited.
    #[must_use]
    pub fn disk_bytes(&self) -> Option<u64> {
        self.disk_mib.map(|mib| mib << 20)
    }
}
