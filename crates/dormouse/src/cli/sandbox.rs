//! The grammar of `dormouse sandbox` and `dormouse snapshot`.

use clap::{Args, Subcommand};

/// Which server, and as whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoteArgs {
    /// Server.
    #[arg(long, global = true, env = "DORMOUSE_SERVER", default_value = "http://127.0.0.1:7700")]
    pub(crate) server: String,
    /// API key.
    #[arg(long, global = true, env = "DORMOUSE_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// Organization, by id or name; the key's account when it is left out.
    #[arg(long, global = true, env = "DORMOUSE_TEAM")]
    pub(crate) team: Option<String>,
    /// Project; `default` when it is left out.
    #[arg(long, global = true, env = "DORMOUSE_PROJECT")]
    pub(crate) project: Option<String>,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it is read once")]
pub(crate) enum SandboxAction {
    /// Make a sandbox and print its name.
    Create(CreateArgs),
    /// Make a sandbox from the files and settings of another, and print its
    /// name. The files are those of the source's last snapshot; of a source that
    /// keeps none, those that it has now.
    Fork(ForkArgs),
    /// Keep the files of a sandbox in a snapshot, and print the snapshot's id.
    /// It stops the sandbox, unless it is a live one.
    Snapshot {
        /// Sandbox.
        name: String,
        /// When the snapshot goes, after its last use, such as 7d; `never` is
        /// the default.
        #[arg(long, value_name = "DURATION")]
        expires_in: Option<String>,
        /// Leave the sandbox running; its processes stand still for a moment.
        #[arg(long)]
        live: bool,
    },
    /// Give a sandbox the files of a snapshot or of its image, from its next start on.
    /// What it wrote since then and no snapshot holds is gone.
    Rollback {
        /// Sandbox.
        name: String,
        /// Snapshot, of it or of another sandbox on the same image.
        #[arg(value_name = "ID", required_unless_present = "image")]
        snapshot: Option<String>,
        /// Its image, as when it was made.
        #[arg(long, conflicts_with = "snapshot")]
        image: bool,
    },
    /// Open a shell on a terminal; wakes the sandbox if it sleeps.
    Shell {
        /// Sandbox.
        name: String,
        /// As root.
        #[arg(long)]
        sudo: bool,
        /// Working directory.
        #[arg(long)]
        cwd: Option<String>,
        /// Environment, as NAME=VALUE.
        #[arg(long, short, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// Another command than a login shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Print what a command of the current run has printed, from the start, and
    /// follow it to its end.
    Logs {
        /// Sandbox.
        name: String,
        /// Command id; the newest command when it is left out.
        command: Option<String>,
    },
    /// Show what a sandbox did on the network since it woke: bytes, and the last accesses
    /// with the rule that denied each.
    Network {
        /// Sandbox.
        name: String,
    },
    /// List the published ports of a sandbox, or publish others.
    Ports {
        /// Sandbox.
        name: String,
        /// Publish exactly these (may be repeated).
        #[arg(long = "set", value_name = "PORT", conflicts_with = "none")]
        set: Vec<u16>,
        /// Publish none.
        #[arg(long)]
        none: bool,
    },
    /// List sandboxes.
    List,
    /// Show one sandbox.
    Show {
        /// Its name.
        name: String,
    },
    /// Run a command and exit with its code; wakes the sandbox if it sleeps. Control-C
    /// interrupts the command, a second one kills it.
    Exec {
        /// Sandbox.
        name: String,
        /// Run as root.
        #[arg(long)]
        sudo: bool,
        /// Working directory.
        #[arg(long)]
        cwd: Option<String>,
        /// Environment, as NAME=VALUE.
        #[arg(long, short, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// Kill the command after this long, such as 10m.
        #[arg(long, value_name = "DURATION")]
        timeout: Option<String>,
        /// Pass standard input on; without this the command reads nothing.
        #[arg(long, short)]
        interactive: bool,
        /// Run it on a terminal, as `shell` does.
        #[arg(long, short, conflicts_with = "timeout")]
        tty: bool,
        /// Print the command's id and leave it running; see `logs`, `ps` and `kill`.
        #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
        detach: bool,
        /// Command and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// List the commands that the current run remembers, oldest first.
    Ps {
        /// Sandbox.
        name: String,
        /// Those too that have ended.
        #[arg(long, short)]
        all: bool,
    },
    /// Send a signal to a command of the current run.
    Kill {
        /// Sandbox.
        name: String,
        /// Command id; the newest command that runs when it is left out.
        command: Option<String>,
        /// Signal, by name or number.
        #[arg(long, short, default_value = "TERM")]
        signal: String,
        /// Send it to everything that descends from the command too, whatever group or
        /// session it made for itself.
        #[arg(long)]
        tree: bool,
    },
    /// Copy a file or directory into a sandbox, or out of it. The side in the sandbox is
    /// written NAME:PATH.
    Cp {
        /// From.
        from: String,
        /// To.
        to: String,
    },
    /// Stop a sandbox; a persistent one keeps everything.
    Stop {
        /// Its name.
        name: String,
    },
    /// Delete a sandbox with everything in it.
    Delete {
        /// Its name.
        name: String,
    },
}

/// A sandbox to make.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name; made up when it is left out.
    pub(crate) name: Option<String>,
    /// Base image.
    #[arg(long, conflicts_with = "runtime")]
    pub(crate) image: Option<String>,
    /// Runtime, such as node24.
    #[arg(long)]
    pub(crate) runtime: Option<String>,
    /// Start from this snapshot.
    #[arg(long, value_name = "ID", conflicts_with_all = ["git", "tarball", "image", "runtime"])]
    pub(crate) snapshot: Option<String>,
    /// Clone this repository into it.
    #[arg(long, value_name = "URL", conflicts_with = "tarball")]
    pub(crate) git: Option<String>,
    /// Branch, tag or commit to check out.
    #[arg(long, requires = "git")]
    pub(crate) revision: Option<String>,
    /// Commits of history; 1 when it is left out.
    #[arg(long, requires = "git")]
    pub(crate) depth: Option<u32>,
    /// Unpack this archive (tar, also compressed) in it.
    #[arg(long, value_name = "URL")]
    pub(crate) tarball: Option<String>,
    /// Keep nothing when it stops.
    #[arg(long)]
    pub(crate) temporary: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    #[command(flatten)]
    pub(crate) retention: RetentionArgs,
}

/// A sandbox to make from another.
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// Source.
    pub(crate) source: String,
    /// Name of the new one; made up when it is left out.
    pub(crate) name: Option<String>,
    /// Copy the source's files as they are now, running or not.
    #[arg(long)]
    pub(crate) live: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    #[command(flatten)]
    pub(crate) retention: RetentionArgs,
}

/// Settings of a new sandbox; what is left out is the server's default, or
/// that of the source of a fork.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Environment of every command, as NAME=VALUE.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Label, as KEY=VALUE.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    pub(crate) tags: Vec<String>,
    /// Port to publish (may be repeated).
    #[arg(long = "port", short, value_name = "PORT")]
    pub(crate) ports: Vec<u16>,
    /// CPUs: 1 or an even number; each brings 2 GiB of memory.
    #[arg(long)]
    pub(crate) vcpus: Option<u32>,
    /// Hard lifetime of a run, such as 30m.
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// What it may reach: allow-all or deny-all.
    #[arg(long, value_name = "MODE", conflicts_with_all = ["allow_network", "deny_network"])]
    pub(crate) network: Option<String>,
    /// Reach nothing but this network, such as 192.0.2.0/24 (may be repeated).
    #[arg(long, value_name = "CIDR")]
    pub(crate) allow_network: Vec<String>,
    /// Not reach this network (may be repeated).
    #[arg(long, value_name = "CIDR")]
    pub(crate) deny_network: Vec<String>,
}

/// What becomes of its snapshots.
#[derive(Debug, Args)]
pub(crate) struct RetentionArgs {
    /// Keep this many snapshots: 1 to 10.
    #[arg(long, value_name = "COUNT")]
    pub(crate) keep_last: Option<u32>,
    /// When a snapshot goes, after its last use, such as 7d, or `never`.
    #[arg(long, value_name = "DURATION")]
    pub(crate) snapshots_expire_in: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotAction {
    /// List snapshots, newest first, deleted ones included.
    List {
        /// Only those of this sandbox.
        #[arg(long, value_name = "NAME")]
        sandbox: Option<String>,
    },
    /// Show what a snapshot was made on top of, and what was made on top of it.
    Tree {
        /// Snapshot id.
        id: String,
    },
    /// Delete a snapshot. Sandboxes that would start from it do not start any
    /// more.
    Delete {
        /// Snapshot id.
        id: String,
    },
}
