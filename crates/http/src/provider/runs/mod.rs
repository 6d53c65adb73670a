//! Runs, which the wire calls sessions.

pub(crate) mod extend;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod set_policy;
pub(crate) mod snapshot;
pub(crate) mod stop;
