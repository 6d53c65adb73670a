//! `dormouse config check|show`.

use std::process::ExitCode;

use crate::cli::ConfigAction;
use crate::config::Config;
use crate::output::Output;

pub(crate) fn run(action: ConfigAction, output: &Output) -> anyhow::Result<ExitCode> {
    match action {
        ConfigAction::Check(args) => {
            Config::load(&args)?;
            output.data(&serde_json::json!({"ok": true}), "The configuration is right.");
        }
        ConfigAction::Show(args) => {
            let mut config = Config::load(&args)?;
            if let Some(url) = &mut config.database_url {
                // What is behind it is the operator's to look up.
                let scheme = url.split("://").next().unwrap_or_default().to_owned();
                *url = format!("{scheme}://…");
            }
            // A URL can carry a password.
            for mirror in &mut config.git.mirrors {
                if let Some((scheme, rest)) = mirror.to.split_once("://")
                    && let Some((_, host)) = rest.split_once('@')
                {
                    mirror.to = format!("{scheme}://…@{host}");
                }
            }
            if let Some(proxy) = &mut config.network.proxy
                && let Some((_, host)) = proxy.split_once('@')
            {
                *proxy = format!("http://…@{host}");
            }
            let owners = config.github.organizations.values_mut().map(|credential| &mut credential.token);
            let others = [&mut config.github.token, &mut config.vercel.token];
            for secret in owners.chain(others).flatten() {
                "…".clone_into(secret);
            }
            output.data(&serde_json::to_value(&config)?, &toml::to_string_pretty(&config)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}
