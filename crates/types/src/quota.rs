//! What one owner may have at once, and the refusal of more. How it is counted is the
//! store's and the provider's; how much it is, the configuration's.

use std::fmt;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    /// Sandboxes with a live run.
    Running,
    /// CPUs of live runs.
    Vcpus,
    /// MiB of memory of live runs.
    MemoryMib,
    /// MiB of disk that sandboxes may fill, asleep ones too.
    DiskMib,
    /// Creations in a minute, forks included.
    CreationsPerMinute,
    /// Commands that run at once, in all sandboxes.
    Commands,
    /// Manual snapshots that there are.
    Snapshots,
}

impl QuotaKind {
    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Vcpus => "vcpus",
            Self::MemoryMib => "memory_mib",
            Self::DiskMib => "disk_mib",
            Self::CreationsPerMinute => "creations_per_minute",
            Self::Commands => "commands",
            Self::Snapshots => "snapshots",
        }
    }

    /// What it counts, in words.
    fn subject(self) -> &'static str {
        match self {
            Self::Running => "running sandboxes",
            Self::Vcpus => "vCPUs of running sandboxes",
            Self::MemoryMib => "MiB of memory of running sandboxes",
            Self::DiskMib => "MiB of disk of its sandboxes",
            Self::CreationsPerMinute => "creations a minute",
            Self::Commands => "commands at once",
            Self::Snapshots => "snapshots",
        }
    }

    /// Whether it is free again without anybody's deleting something.
    #[must_use]
    pub fn passes(self) -> bool {
        !matches!(self, Self::DiskMib | Self::Snapshots)
    }
}

/// More was asked for than a quota allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaExceeded {
    /// Which.
    pub kind: QuotaKind,
    /// How much the owner may have.
    pub limit: u64,
    /// How much they have.
    pub used: u64,
    /// How much more was asked for.
    pub asked: u64,
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, limit, used, asked } = self;
        write!(
            f,
            "quota {}: {limit} {} are allowed, {used} are in use, and {asked} more would be too many",
            kind.as_str(),
            kind.subject()
        )
    }
}

impl std::error::Error for QuotaExceeded {}

/// What an owner may have; `None`: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// [`QuotaKind::Running`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// [`QuotaKind::Vcpus`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// [`QuotaKind::MemoryMib`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// [`QuotaKind::DiskMib`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// [`QuotaKind::CreationsPerMinute`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creations_per_minute: Option<u64>,
    /// [`QuotaKind::Commands`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands: Option<u64>,
    /// [`QuotaKind::Snapshots`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
}

impl Quota {
    /// What there is of a kind.
    #[must_use]
    pub fn of(&self, kind: QuotaKind) -> Option<u64> {
        match kind {
            QuotaKind::Running => self.running,
            QuotaKind::Vcpus => self.vcpus,
            QuotaKind::MemoryMib => self.memory_mib,
            QuotaKind::DiskMib => self.disk_mib,
            QuotaKind::CreationsPerMinute => self.creations_per_minute,
            QuotaKind::Commands => self.commands,
            QuotaKind::Snapshots => self.snapshots,
        }
    }

    /// Whether `asked` more fit beside what is `used`.
    ///
    /// # Errors
    /// [`QuotaExceeded`].
    pub fn check(&self, kind: QuotaKind, used: u64, asked: u64) -> Result<(), QuotaExceeded> {
        match self.of(kind) {
            Some(limit) if used.saturating_add(asked) > limit => {
                Err(QuotaExceeded { kind, limit, used, asked })
            }
            _ => Ok(()),
        }
    }

    /// This, with what `other` says instead where it says something.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            running: other.running.or(self.running),
            vcpus: other.vcpus.or(self.vcpus),
            memory_mib: other.memory_mib.or(self.memory_mib),
            disk_mib: other.disk_mib.or(self.disk_mib),
            creations_per_minute: other.creations_per_minute.or(self.creations_per_minute),
            commands: other.commands.or(self.commands),
            snapshots: other.snapshots.or(self.snapshots),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Quota, QuotaKind};

    #[test]
    fn a_refusal_says_which_and_how_much() {
        let quota = Quota { running: Some(3), ..Quota::default() };
        assert!(quota.check(QuotaKind::Running, 2, 1).is_ok());
        assert!(quota.check(QuotaKind::Vcpus, u64::MAX, 1).is_ok(), "no limit");
        let refused = quota.check(QuotaKind::Running, 3, 1).unwrap_err().to_string();
        assert_eq!(
            refused,
            "quota running: 3 running sandboxes are allowed, 3 are in use, and 1 more would be too many"
        );
        let own = quota.with(&Quota { vcpus: Some(8), ..Quota::default() });
        assert_eq!((own.running, own.vcpus), (Some(3), Some(8)));
    }
}
