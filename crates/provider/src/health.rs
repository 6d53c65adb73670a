//! Health of what a server stands on, for its operator and for whoever routes
//! requests to it.

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthState {
    /// All is well.
    Ok,
    /// What is there works; something new may be refused.
    Degraded,
    /// It does not work.
    Failing,
}

impl HealthState {
    /// Word of the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// What it is, in one word.
    pub name: &'static str,
    /// How it is.
    pub state: HealthState,
    /// Why it is not well; fit to show to anybody who may reach the server.
    pub detail: Option<String>,
}

/// Something that is counted since the server started.
#[derive(Debug, Clone)]
pub struct Count {
    /// Its name, as Prometheus wants it.
    pub name: &'static str,
    /// What is counted.
    pub help: &'static str,
    /// Name and value of what tells several of the same name apart.
    pub label: Option<(&'static str, String)>,
    /// How many.
    pub value: u64,
}

/// Knows how something is, without asking anybody: an answer takes no time.
pub trait HealthSource: Send + Sync + std::fmt::Debug + 'static {
    /// What it looked at last.
    fn health(&self) -> Vec<HealthCheck>;

    /// What it counts.
    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }
}
