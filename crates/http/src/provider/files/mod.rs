//! Files.

pub(crate) mod mkdir;
pub(crate) mod read;
pub(crate) mod write;
