//! Control messages. Fields are only ever added, with a default, inside one
//! generation.

use serde::{Deserialize, Serialize};

/// Opens a connection, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest generation that the sender speaks.
    pub generation: u32,
    /// Oldest generation that the sender speaks.
    pub oldest: u32,
}

/// The one operation of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First message of a run: writes `files`, makes `workdir`, gives `/run` the
    /// directories of the image's own ([`crate::IMAGE_RUN_FD`]), then answers
    /// [`Reply::Ready`]. What cannot be done is a warning there.
    Boot {
        /// Small system files that the host decides (`/etc/resolv.conf` …).
        files: Vec<BootFile>,
        /// Default working directory, made when it is missing.
        workdir: String,
        /// Who owns the working directory when it is made.
        user: String,
    },
    /// Answers [`Reply::Health`].
    Health,
    /// Starts a command. Answers [`Reply::Started`]; with `follow`, output
    /// frames and [`Reply::Exited`] come after it. Starting an id that exists
    /// starts nothing and answers for the existing command.
    Start {
        /// What to run.
        spawn: Spawn,
        /// Stream its output on this connection until it exits.
        follow: bool,
        /// Generation 4: with `follow`, as [`Request::Follow`] has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        log: bool,
    },
    /// Output of a command from its first byte, then [`Reply::Exited`].
    Follow {
        /// Command id.
        id: String,
        /// Send output frames too, not only the exit.
        output: bool,
        /// Generation 4: answer with [`Reply::Log`] each time there is more, and with
        /// nothing else. An agent of before sends frames.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        log: bool,
    },
    /// [`Reply::Command`]: where a command stands.
    Inspect {
        /// Command id.
        id: String,
    },
    /// [`Reply::Commands`]: every command that the agent remembers.
    List,
    /// The data frames that follow are the command's standard input; `End` closes it.
    /// Writers take turns.
    Stdin {
        /// Command id.
        id: String,
        /// Generation 4: `End` does not close standard input, and the answer is
        /// [`Reply::Taken`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        counted: bool,
        /// Generation 4: where the data stands in all that the command was ever sent. What
        /// was taken before is passed over. `None`: behind what was taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// Generation 4: with `counted`, close standard input after this data.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        close: bool,
    },
    /// Generation 2. Starts a command on a terminal of its own. Answers
    /// [`Reply::Started`]; then data frames are what the user types, output
    /// frames what the screen gets, and [`Request::Resize`] may come between.
    /// Ends with [`Reply::Exited`]; `End`, or the end of the connection, hangs
    /// up.
    Terminal {
        /// What to run.
        spawn: Spawn,
        /// Columns of the window.
        cols: u16,
        /// Rows of the window.
        rows: u16,
    },
    /// Generation 2, within a [`Request::Terminal`]: the window has another size.
    Resize {
        /// Columns of the window.
        cols: u16,
        /// Rows of the window.
        rows: u16,
    },
    /// Generation 2. Connects to a TCP port of the sandbox's loopback. Answers
    /// [`Reply::Dialed`] with the socket attached (`SCM_RIGHTS`, `unix(7)`).
    Dial {
        /// Port.
        port: u16,
    },
    /// Generation 3. The run ends by itself after this time, as by
    /// [`Request::Shutdown`]: also where nobody is left to say so. The last one counts.
    /// Answers [`Reply::Noted`].
    Lifetime {
        /// Milliseconds from now.
        left_ms: u64,
        /// Time between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u64,
    },
    /// Sends a signal to the command's whole process group.
    Signal {
        /// Command id.
        id: String,
        /// Signal number, 1 to 64.
        signal: i32,
        /// Generation 4: and to every process that descends from the command, whatever
        /// group or session it made for itself.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        tree: bool,
    },
    /// The data frames that follow are a tar archive, unpacked below `cwd`.
    WriteTar {
        /// Directory that entry names are relative to; made when missing.
        cwd: String,
        /// The archive is gzip-compressed.
        gzip: bool,
        /// Whose rights apply and who owns the files.
        user: String,
    },
    /// Data frames with the content of a regular file, then `End`.
    ReadFile {
        /// Absolute, or relative to `cwd`.
        path: String,
        /// Working directory.
        cwd: String,
        /// Whose rights apply.
        user: String,
    },
    /// Makes a directory.
    Mkdir {
        /// Absolute, or relative to `cwd`.
        path: String,
        /// Working directory.
        cwd: String,
        /// Make parents too and accept an existing directory.
        recursive: bool,
        /// Whose rights apply and who owns the directory.
        user: String,
    },
    /// Ends every process: SIGTERM, after `grace_ms` SIGKILL; then
    /// answers [`Reply::Stopped`] and exits, which ends the run.
    Shutdown {
        /// Time between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u64,
    },
}

/// A file that the host places before the first command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Absolute path inside the sandbox.
    pub path: String,
    /// What is to be in it.
    pub content: String,
    /// What becomes of what is there.
    #[serde(default)]
    pub placing: Placing,
}

/// What becomes of a file that the host places and that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placing {
    /// It is replaced.
    #[default]
    Whole,
    /// The content is a block between two marks; the lines around it are the
    /// sandbox's own and stay.
    Block,
    /// It stays as it is, unless it is empty.
    Absent,
    /// As [`Placing::Block`], in a file that is there; where there is none, none is
    /// made.
    BlockIfThere,
    /// It becomes a symbolic link to the first of the content's lines that is there,
    /// or else to the first.
    LinkToFirst,
}

/// A command to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Command id, chosen by the engine.
    pub id: String,
    /// Executable (looked up in `PATH` when it has no slash) and arguments.
    pub argv: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Environment on top of the user's own.
    pub env: Vec<(String, String)>,
    /// User name or numeric id.
    pub user: String,
    /// Whether standard input is empty or fed by [`Request::Stdin`].
    pub stdin: StdinMode,
    /// After this many milliseconds the command is killed with all that descends from it.
    pub timeout_ms: Option<u64>,
    /// Generation 4: the user on whose behalf root runs this, for `SUDO_USER`, `SUDO_UID`
    /// and `SUDO_GID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
}

/// Standard input of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdinMode {
    /// `/dev/null`.
    Null,
    /// Bytes sent with [`Request::Stdin`].
    Pipe,
}

/// One of the two outputs of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a command stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandStatus {
    /// Command id.
    pub id: String,
    /// Process id inside the sandbox.
    pub pid: i32,
    /// Milliseconds since the epoch.
    pub started_at: i64,
    /// Exit code, 128+n for signal n; absent while it runs.
    pub exit_code: Option<i32>,
    /// Milliseconds from start to exit; absent while it runs.
    pub duration_ms: Option<u64>,
    /// The command was killed because its time limit passed.
    #[serde(default)]
    pub timed_out: bool,
    /// Output was lost because the log reached its limit or had no room.
    #[serde(default)]
    pub output_truncated: bool,
    /// Generation 4: how many bytes of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_lost: u64,
    /// Generation 4: the kernel killed it, or a process of it, because the sandbox's memory
    /// was used up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// Executable and arguments; the executable alone where they are long.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cwd: String,
}

/// A structured answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The sandbox takes commands from now on.
    Ready {
        /// What could not be done, fit to show to a caller.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
        /// The working directory: the one that was asked for, or `/` where
        /// that cannot be. Empty: the one that was asked for.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        workdir: String,
    },
    /// The agent answers.
    Health {
        /// Processes in the sandbox, the agent included.
        processes: u32,
        /// Commands that have not exited.
        running: u32,
    },
    /// The command runs.
    Started(CommandStatus),
    /// The command ended.
    Exited(CommandStatus),
    /// Generation 4. Where a command stands, and how much of its log there is. Its exit
    /// comes only with the whole log. Where the log lies in another file than before, that
    /// file comes with this (`SCM_RIGHTS`), and what was read of the one before is in it at
    /// the same place. See [`crate::record`].
    Log {
        /// Bytes of the log.
        length: u64,
        /// Where the command stands.
        status: CommandStatus,
    },
    /// Generation 4. Standard input has taken this.
    Taken {
        /// Bytes of all that the command was sent, from the first on.
        total: u64,
    },
    /// Where a command stands.
    Command(CommandStatus),
    /// All commands.
    Commands {
        /// Oldest first.
        commands: Vec<CommandStatus>,
    },
    /// A connected socket comes with this.
    Dialed,
    /// So it will be.
    Noted,
    /// Nothing but the agent runs any more.
    Stopped {
        /// 1 when SIGTERM was not enough.
        killed: u32,
    },
}

/// A failed operation: an errno of Linux and a sentence for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errno {
    /// `errno` value, such as 2 for "no such file".
    pub errno: i32,
    /// What failed and on what, fit to show to the caller.
    pub message: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
