//! One file a command.

pub(crate) mod accounts;
pub(crate) mod base_image;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod env;
mod housekeeping;
pub(crate) mod image;
#[cfg(debug_assertions)]
mod mortal;
pub(crate) mod org_snapshot;
pub(crate) mod quickstart;
pub(crate) mod sandbox;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod webhook;
