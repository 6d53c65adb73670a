//! Drives.

pub(crate) mod delete;
pub(crate) mod fork;
pub(crate) mod get;
pub(crate) mod have;
pub(crate) mod list;
