//! Drives: volumes of their own, which sandboxes mount (provider contract, section 2).

use dormouse_types::{DriveId, RunId, SandboxName, Timestamp};

use crate::{Direction, Page};

/// A drive as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its id.
    pub id: DriveId,
    /// Its name, unique in its namespace.
    pub name: String,
    /// The project that it is in.
    pub project: String,
    /// Bytes that it may hold.
    pub max_size: u64,
    /// The run that may write to it, and whose that is, while it lives.
    pub attached: Option<(RunId, SandboxName)>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed hands.
    pub updated_at: Timestamp,
}

/// How a sandbox has a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountMode {
    /// It writes to it, and nobody else does meanwhile.
    ReadWrite,
    /// It reads what was in it when the run began.
    Snapshot,
}

impl MountMode {
    /// The protocol's word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::Snapshot => "snapshot",
        }
    }

    /// Reads the protocol's word, which may be left out, or `read-only` for a snapshot. `None`:
    /// it is no such word.
    #[must_use]
    pub fn from_word(word: Option<&str>) -> Option<Self> {
        match word {
            None | Some("read-write") => Some(Self::ReadWrite),
            Some("snapshot" | "read-only") => Some(Self::Snapshot),
            Some(_) => None,
        }
    }
}

/// A drive in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    /// Name of the drive.
    pub drive: String,
    /// How the sandbox has it.
    pub mode: MountMode,
}

/// What a list of drives is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriveSort {
    /// When they were made.
    #[default]
    CreatedAt,
    /// When they last changed hands.
    UpdatedAt,
    /// Their names.
    Name,
}

/// Which drives to list.
#[derive(Debug, Clone, Default)]
pub struct ListDrives {
    /// How many, from where.
    pub page: Page,
    /// By what.
    pub sort: DriveSort,
    /// Which way.
    pub order: Direction,
    /// Only names that begin so.
    pub name_prefix: Option<String>,
}
