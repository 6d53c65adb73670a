//! The wire between the engine and the agent, PID 1 inside a sandbox.
//!
//! One Unix connection carries one operation: both sides open with a
//! [`Frame::Hello`], the engine sends one [`Request`], and what follows is
//! that operation's own dialogue, ended by [`Frame::End`] or
//! [`Frame::Error`]. Flow control is the socket's own buffer, so a slow
//! reader slows one operation and no other.
//!
//! A frame is `u32` little-endian payload length, one kind byte, payload.
//! Control payloads are JSON; data payloads are raw bytes.
//!
//! **Generations.** An agent is as old as the run that it serves: after an
//! upgrade of the server, agents of the previous release are still there.
//! Each side names the newest generation that it speaks and both use the lower
//! one. `tests/generation_N.rs` freeze them; a change that breaks one needs a new one.
//! 2 added terminals and connections, 3 the end of a run's lifetime.
//!
//! What does not live here: sockets, and any decision about what to do.

mod frame;
mod message;

pub use frame::{Decoder, Frame, FrameError, MAX_DATA, MAX_PAYLOAD};
pub use message::{BootFile, CommandStatus, Errno, Hello, Placing, Reply, Request, Spawn, StdinMode, Stream};

/// The newest generation that this build speaks.
pub const GENERATION: u32 = 3;

/// The oldest generation that this build still speaks.
pub const OLDEST_GENERATION: u32 = 1;

/// Descriptor on which the launcher leaves the listening socket for the agent.
pub const LISTEN_FD: i32 = 3;

/// Descriptor on which the launcher leaves the image's own `/run`, over which a
/// fresh one is mounted.
pub const IMAGE_RUN_FD: i32 = 4;
