//! One error type: what was done, to what, and the kernel's answer.

use std::fmt;
use std::io;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Error {
    step: String,
    source: Option<io::Error>,
    /// What the engine tells its caller of it.
    pub(crate) kind: Kind,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody's inside.
    Other,
    /// There was no room for the little that a mount writes.
    NoRoom,
    /// A drive cannot be where it is to be.
    Place,
}

impl Kind {
    /// The first word of the report.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Other => "error",
            Self::NoRoom => "no-room",
            Self::Place => "place",
        }
    }
}

impl Error {
    pub(crate) fn new(step: impl Into<String>, source: io::Error) -> Self {
        Self { step: step.into(), source: Some(source), kind: Kind::Other }
    }

    /// A failure without an errno of its own, or one that the child reported.
    pub(crate) fn reported(step: impl Into<String>) -> Self {
        Self { step: step.into(), source: None, kind: Kind::Other }
    }

    /// The root file system came up without writes.
    pub(crate) fn no_room(step: impl Into<String>) -> Self {
        Self { step: step.into(), source: None, kind: Kind::NoRoom }
    }

    /// A drive cannot be where it is to be.
    pub(crate) fn place(step: impl Into<String>) -> Self {
        Self { step: step.into(), source: None, kind: Kind::Place }
    }

    /// The report of a child, as [`Self::to_report`] wrote it.
    pub(crate) fn from_report(text: &str) -> Self {
        match text.strip_prefix("place ") {
            Some(step) => Self::place(step),
            None => Self::reported(text.strip_prefix("error ").unwrap_or(text)),
        }
    }

    /// The failure in a line, for whoever reads it.
    pub(crate) fn to_report(&self) -> String {
        format!("{} {self}", self.kind.word())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.step),
            None => f.write_str(&self.step),
        }
    }
}

/// Adds the step to an `io::Error`.
pub(crate) trait Context<T> {
    fn context(self, step: &str) -> Result<T, Error>;
    fn context_with(self, step: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, step: &str) -> Result<T, Error> {
        self.map_err(|source| Error::new(step, source))
    }

    fn context_with(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::new(step(), source))
    }
}
