//! One error type: what was done, to what, and the kernel's answer.

use std::fmt;
use std::io;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Error {
    step: String,
    source: Option<io::Error>,
    /// There was no room for the little that a mount writes.
    pub(crate) no_room: bool,
}

impl Error {
    pub(crate) fn new(step: impl Into<String>, source: io::Error) -> Self {
        Self { step: step.into(), source: Some(source), no_room: false }
    }

    /// A failure without an errno of its own, or one that the child reported.
    pub(crate) fn reported(step: impl Into<String>) -> Self {
        Self { step: step.into(), source: None, no_room: false }
    }

    /// The root file system came up without writes.
    pub(crate) fn no_room(step: impl Into<String>) -> Self {
        Self { step: step.into(), source: None, no_room: true }
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
