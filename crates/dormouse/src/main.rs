//! The binary: command line, configuration, wiring. What a command does is one
//! file in `commands`; the work itself is done by the crates below.
//!
//! Data goes to standard output, everything else to standard error. Exit
//! codes: 0 done, 1 failed, 2 wrong usage, and for `sandbox exec` the command's
//! own.

mod cli;
mod client;
mod commands;
mod config;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    // One TLS implementation, also for libraries that look for a default.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        output.warn("a TLS implementation was installed twice");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&anyhow::Error::new(error).context("start the runtime"));
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(run(cli.command, &output));
    // A blocking read of standard input must not hold the exit up.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        // Whoever reads us has had enough, as `head` has: what SIGPIPE would say.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn run(command: Command, output: &Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Quickstart(args) => commands::quickstart::run(args, output).await,
        Command::Serve(args) => commands::serve::run(args).await,
        Command::Evacuate(args) => commands::serve::evacuate(args).await,
        Command::Config { action } => commands::config::run(action, output),
        Command::Account { action } => commands::accounts::account(action, output).await,
        Command::Key { action } => commands::accounts::key(action, output).await,
        Command::Org { action } => commands::accounts::org(action, output).await,
        Command::Secret { action } => commands::secret::secret(action, output).await,
        Command::Webhook { action } => commands::webhook::webhook(action, output).await,
        Command::Session { action } => commands::accounts::session(action, output).await,
        Command::Image { action } => commands::image::run(action, output).await,
        Command::Doctor(args) => commands::doctor::run(&args, output),
        Command::Env(remote) => commands::env::run(&remote, output).await,
        Command::Sandbox { remote, action } => commands::sandbox::run(&remote, action, output).await,
        Command::OrgSnapshot { remote, action } => commands::org_snapshot::run(&remote, action, output).await,
        Command::Snapshot { remote, action } => commands::snapshot::run(&remote, action, output).await,
    }
}
