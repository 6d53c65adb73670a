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
//! 2 added terminals and connections, 3 the end of a run's lifetime, 4 logs as files,
//! standard input by offset, signals to whole trees and a channel for the run's end.
//!
//! What does not live here: sockets, and any decision about what to do.

mod frame;
mod message;
pub mod record;

pub use frame::{Decoder, Frame, FrameError, MAX_DATA, MAX_PAYLOAD};
pub use message::{BootFile, CommandStatus, Errno, Hello, Placing, Reply, Request, Spawn, StdinMode, Stream};

/// The newest generation that this build speaks.
pub const GENERATION: u32 = 4;

/// The oldest generation that this build still speaks.
pub const OLDEST_GENERATION: u32 = 1;

/// Descriptor on which the launcher leaves the listening socket for the agent.
pub const LISTEN_FD: i32 = 3;

/// Descriptor on which the launcher leaves the image's own `/run`, over which a
/// fresh one is mounted.
pub const IMAGE_RUN_FD: i32 = 4;

/// Descriptor on which the launcher leaves the directory for logs that memory has no room
/// for. It is the host's, not the sandbox's: a full disk of the sandbox must not lose the
/// output of the command that looks what is full.
pub const OUTPUT_FD: i32 = 5;

/// Descriptor on which the launcher leaves a second listening socket. It takes the same
/// requests; the server uses it for boot, health and the end of the run, which must not
/// wait behind commands.
pub const CONTROL_FD: i32 = 6;

/// Descriptor on which the launcher leaves the file in which the kernel counts processes
/// that it killed for lack of memory (`memory.events` of cgroup v2, `memory.oom_control` of
/// v1: a line `oom_kill N`).
pub const MEMORY_EVENTS_FD: i32 = 7;
