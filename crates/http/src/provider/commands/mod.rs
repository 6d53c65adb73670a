//! Commands.

pub(crate) mod get;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod start;
pub(crate) mod stdin;
mod stream;

use dormouse_types::CommandId;

use super::error::{WireError, WireResult};

fn command_id(text: &str) -> WireResult<CommandId> {
    text.parse().map_err(|_| WireError::not_found(format!("command {text} not found")))
}
