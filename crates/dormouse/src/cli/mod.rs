//! The grammar of the command line.

mod sandbox;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dormouse_node::{ImageReference, Recipe};

pub(crate) use sandbox::{
    CreateArgs, ForkArgs, RemoteArgs, RetentionArgs, SandboxAction, SettingsArgs, SnapshotAction,
};

/// A Linux sandbox for every agent session.
#[derive(Debug, Parser)]
#[command(
    name = "dormouse",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage; \
`sandbox exec` exits with the command's own code."
)]
pub(crate) struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines and tables.
    Text,
    /// For programs: one JSON document.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// From nothing to a server that answers: looks at the host, builds the base image,
    /// makes an account and a key, serves, and prints what to try.
    Quickstart(QuickstartArgs),
    /// Run the server.
    Serve(ServeArgs),
    /// Stop every sandbox (persistent ones keep everything) and take mounts,
    /// cgroups and packet filter off this host. The server must not run.
    Evacuate(ServeArgs),
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Accounts.
    Account {
        #[command(subcommand)]
        action: AccountAction,
    },
    /// API keys.
    Key {
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Organizations, their members and the repositories they claim.
    Org {
        #[command(subcommand)]
        action: OrgAction,
    },
    /// Webhooks of organizations.
    Webhook {
        #[command(subcommand)]
        action: WebhookAction,
    },
    /// Secrets of organizations, which are put on requests outside of sandboxes.
    Secret {
        #[command(subcommand)]
        action: SecretAction,
    },
    /// Agent sessions.
    Session {
        #[command(subcommand)]
        action: SessionAction,
    },
    /// Base images.
    Image {
        #[command(subcommand)]
        action: ImageAction,
    },
    /// What this host can and cannot do.
    Doctor(DataArgs),
    /// Print what a shell exports so that programs find a running server:
    /// `eval "$(dormouse env)"`.
    Env(RemoteArgs),
    /// Sandboxes of a running server.
    Sandbox {
        #[command(flatten)]
        remote: RemoteArgs,
        #[command(subcommand)]
        action: SandboxAction,
    },
    /// Snapshots with a repository in them, from which sandboxes of it start.
    OrgSnapshot {
        #[command(flatten)]
        remote: RemoteArgs,
        #[command(subcommand)]
        action: OrgSnapshotAction,
    },
    /// Snapshots of a running server.
    Snapshot {
        #[command(flatten)]
        remote: RemoteArgs,
        #[command(subcommand)]
        action: SnapshotAction,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OrgSnapshotAction {
    /// List those of a repository, or of all that your organizations claim.
    List {
        /// `owner/name`, or its URL.
        repo: Option<String>,
    },
    /// Show what sandboxes of a repository start from, and its last builds.
    Show {
        /// `owner/name`, or its URL.
        repo: String,
    },
    /// Have one built anew, with the repository's set-up.
    Build {
        /// `owner/name`, or its URL.
        repo: String,
    },
    /// Print the log of the newest build.
    Log {
        /// `owner/name`, or its URL.
        repo: String,
    },
    /// Delete one; the next sandbox of its repository starts cold.
    Delete {
        /// Org snapshot id.
        id: String,
    },
}

/// Where the configuration comes from; flags win over `DORMOUSE_…`, which wins
/// over the file.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DataArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "DORMOUSE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "DORMOUSE_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people, with colours on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// The recipe of the base image, if there is none yet.
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<Recipe>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Say whether the configuration is right.
    Check(ServeArgs),
    /// Print the configuration in force, without secrets.
    Show(ServeArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AccountAction {
    /// Make an account.
    Create {
        #[command(flatten)]
        data: DataArgs,
        /// Name, also of its git commits.
        name: String,
        /// E-mail, also of its git commits.
        #[arg(long)]
        email: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Make a key; it is shown this once.
    Create {
        #[command(flatten)]
        data: DataArgs,
        /// Whose key.
        #[arg(long)]
        account: String,
        /// Shown to users; never interpreted.
        #[arg(long, default_value = "default")]
        name: String,
        /// End of its validity from now, such as 90d.
        #[arg(long, value_name = "DURATION")]
        expires_in: Option<String>,
    },
    /// List an account's keys.
    List {
        #[command(flatten)]
        data: DataArgs,
        /// Whose keys.
        #[arg(long)]
        account: String,
    },
    /// End a key.
    Revoke {
        #[command(flatten)]
        data: DataArgs,
        /// Key id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OrgAction {
    /// Make an organization.
    Create {
        #[command(flatten)]
        data: DataArgs,
        /// Unique name.
        name: String,
    },
    /// Add an account to an organization.
    AddMember {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
        /// Account id.
        account: String,
    },
    /// Remove an account from an organization. What it reads of the organization's
    /// sandboxes ends within ten seconds.
    RemoveMember {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
        /// Account id.
        account: String,
    },
    /// Claim `owner/repo` or `owner/*` for an organization.
    Claim {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
        /// `owner/repo` or `owner/*`.
        pattern: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WebhookAction {
    /// Have the events of sessions in the repositories that an organization claims
    /// posted to a URL. Prints the webhook's id and the secret that deliveries are
    /// signed with, which is shown this once.
    Add {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
        /// https://…, or http:// on this host.
        url: String,
    },
    /// List webhooks.
    List {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Forget a webhook and its deliveries.
    Remove {
        #[command(flatten)]
        data: DataArgs,
        /// Webhook id.
        id: String,
    },
    /// Show what was sent to a webhook, newest first.
    Deliveries {
        #[command(flatten)]
        data: DataArgs,
        /// Webhook id.
        id: String,
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: u16,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretAction {
    /// Set a secret; its value comes from standard input. Sandboxes with a repository
    /// that the organization claims have a placeholder in DORMOUSE_SECRET_NAME, which is
    /// swapped for the value in one header of requests to those hosts.
    Set {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
        /// Name: capital letters, digits and underscores.
        name: String,
        /// Host that it is for, as often as needed; `*.` at the beginning stands for any
        /// subdomain.
        #[arg(long = "host", required = true)]
        hosts: Vec<String>,
        /// Header in which it goes there.
        #[arg(long, default_value = "authorization")]
        header: String,
    },
    /// List an organization's secrets, without their values.
    List {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
    },
    /// Delete a secret.
    Delete {
        #[command(flatten)]
        data: DataArgs,
        /// Organization id.
        org: String,
        /// Name of the secret.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionAction {
    /// Make a session.
    Create {
        #[command(flatten)]
        data: DataArgs,
        /// Whose session.
        #[arg(long)]
        account: String,
        /// Repository: https://github.com/owner/repo.
        #[arg(long)]
        repo: Option<String>,
        /// Shown to users; never interpreted.
        #[arg(long)]
        title: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it is read once")]
pub(crate) enum ImageAction {
    /// Make a base image, by default from the recipe of this release.
    Build {
        #[command(flatten)]
        data: DataArgs,
        /// Its name; that of the recipe when it is left out, else `default`.
        #[arg(long)]
        name: Option<String>,
        /// A recipe of this release: universal (the default), slim, node22, node24, python3.13 or
        /// agent.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["tar", "oci_layout", "from"])]
        recipe: Option<Recipe>,
        /// A tar of a root file system: plain, gzip or zstd.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["oci_layout", "from"])]
        tar: Option<PathBuf>,
        /// An OCI image layout directory.
        #[arg(long, value_name = "DIR", conflicts_with = "from")]
        oci_layout: Option<PathBuf>,
        /// An image of a registry, such as `docker.io/library/debian:12`.
        #[arg(long, value_name = "REFERENCE")]
        from: Option<ImageReference>,
        /// Do nothing when an image of this name exists.
        #[arg(long)]
        if_missing: bool,
    },
    /// List base images.
    List {
        #[command(flatten)]
        data: DataArgs,
    },
}
