//! What a provider can answer instead of success. Matched by variant, never
//! by text; the texts are fit to show to a caller.

use dormouse_types::QuotaExceeded;

/// Result of a provider call.
pub type Result<T> = std::result::Result<T, ProviderError>;

/// Why a provider call failed.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The request itself is wrong; the message names the field.
    #[error("{0}")]
    Invalid(String),
    /// A lifetime that is too long here.
    #[error("{0}")]
    TimeoutInvalid(String),
    /// No such sandbox, run, command, snapshot or file in the caller's
    /// namespace.
    #[error("{0} not found")]
    NotFound(String),
    /// The name is taken.
    #[error("{0} exists already")]
    Conflict(String),
    /// The run has ended; resume the sandbox and repeat the call.
    #[error("the sandbox is stopped")]
    Stopped,
    /// The run is ending; wait, resume, repeat.
    #[error("the sandbox is stopping")]
    Stopping,
    /// The snapshot to start from is gone.
    #[error("snapshot {0} is gone")]
    SnapshotGone(String),
    /// The sandbox's own rules refuse it: permissions, a full disk, a limit.
    #[error("{message}")]
    Refused {
        /// `errno` of the refusal inside the sandbox.
        errno: i32,
        /// Operation, path and reason.
        message: String,
    },
    /// Somebody else has it; the message says what and who.
    #[error("{0}")]
    InUse(String),
    /// Standard input that nobody takes: the command has ended, closed it, or never had one.
    #[error("{0}")]
    InputRefused(String),
    /// More is asked of the sandbox at once than it takes; the message says what.
    #[error("{0}")]
    Busy(String),
    /// Its owner may not have so much; the message says which quota, and how much.
    #[error("{0}")]
    Quota(QuotaExceeded),
    /// The sandbox lives on another server of the same service; calls that need
    /// its host go there.
    #[error("{subject} lives on another server: {url}")]
    Elsewhere {
        /// The sandbox, the run or the snapshot.
        subject: String,
        /// Where that server's API is.
        url: String,
    },
    /// This host has no room for another run now.
    #[error("no capacity: {0}")]
    Capacity(String),
    /// This host cannot make sandboxes yet; the message says what it lacks.
    #[error("{0}")]
    Unready(String),
    /// The provider broke. The detail is for the log, never for a caller.
    #[error("the sandbox provider failed")]
    Internal {
        /// Operation and subject, such as `create veth for run sbx_…`.
        operation: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ProviderError {
    /// An internal failure of `operation`.
    pub fn internal(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Internal { operation: operation.into(), source: source.into() }
    }

    /// The same error for another caller. The causes of an internal one become
    /// one text.
    #[must_use]
    pub fn repeated(&self) -> Self {
        match self {
            Self::Invalid(message) => Self::Invalid(message.clone()),
            Self::TimeoutInvalid(message) => Self::TimeoutInvalid(message.clone()),
            Self::NotFound(subject) => Self::NotFound(subject.clone()),
            Self::Conflict(subject) => Self::Conflict(subject.clone()),
            Self::Stopped => Self::Stopped,
            Self::Stopping => Self::Stopping,
            Self::SnapshotGone(snapshot) => Self::SnapshotGone(snapshot.clone()),
            Self::Refused { errno, message } => Self::Refused { errno: *errno, message: message.clone() },
            Self::Elsewhere { subject, url } => {
                Self::Elsewhere { subject: subject.clone(), url: url.clone() }
            }
            Self::InUse(message) => Self::InUse(message.clone()),
            Self::InputRefused(message) => Self::InputRefused(message.clone()),
            Self::Busy(message) => Self::Busy(message.clone()),
            Self::Quota(refused) => Self::Quota(refused.clone()),
            Self::Capacity(reason) => Self::Capacity(reason.clone()),
            Self::Unready(reason) => Self::Unready(reason.clone()),
            Self::Internal { operation, .. } => Self::internal(operation.clone(), self.causes()),
        }
    }

    /// The chain of causes, for the log.
    #[must_use]
    pub fn detail(&self) -> String {
        let what = match self {
            Self::Internal { operation, .. } => operation.clone(),
            other => other.to_string(),
        };
        let causes = self.causes();
        if causes.is_empty() { what } else { format!("{what}: {causes}") }
    }

    fn causes(&self) -> String {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        causes.join(": ")
    }
}
