//! Owner and project: what keeps the sandboxes of different callers apart.

use std::fmt;

/// The project that a caller works in who names none (provider contract,
/// section 2).
pub const DEFAULT_PROJECT: &str = "default";

/// Whose a sandbox is. A name of a sandbox is unique in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace {
    /// An account or an organization, by id.
    pub owner: String,
    /// A project of that owner; it exists as soon as it is used.
    pub project: String,
}

impl Namespace {
    /// A project of an owner.
    pub fn new(owner: impl Into<String>, project: impl Into<String>) -> Self {
        Self { owner: owner.into(), project: project.into() }
    }

    /// The default project of an owner.
    pub fn default_of(owner: impl Into<String>) -> Self {
        Self::new(owner, DEFAULT_PROJECT)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.project)
    }
}
