//! What is put into a new sandbox before it is handed over: a clone or an
//! archive. All of it runs inside, as the default user, so whatever the other
//! side sends can harm nobody else. It may reach everything public, with what the
//! sandbox's policy puts on requests, and with the credentials of the source, which the
//! proxy adds: they are never inside. The policy itself comes into force when it is
//! done: nothing but these commands has run until then.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dormouse_agent_protocol::{Frame, Reply, Request, Spawn, StdinMode};
use dormouse_control::SandboxConfig;
use dormouse_egress::Ruleset;
use dormouse_provider::{
    Action, CloneDirectory, CustomPolicy, DomainPolicy, GitSource, NetworkPolicy, ProviderError, Result,
    Rule, Source, checkout, shown_url,
};
use dormouse_store::RunRow;
use dormouse_types::CommandId;

use crate::agent::Agent;
use crate::host::Host;
use crate::{launch, trust};

/// Words of git or tar that are kept for an error message, in bytes.
const MAX_WORDS: usize = 2048;

/// `$1` URL. tar finds out how it is packed.
const UNPACK: &str = r#"set -e
file=$(mktemp /tmp/.source.XXXXXX)
trap 'rm -f "$file"' EXIT
curl --silent --show-error --fail --location --proto =http,https --output "$file" -- "$1"
tar --extract --no-same-owner --file="$file"
"#;

/// Name of the directory that git would give a clone.
fn directory(git: &GitSource) -> String {
    match git.directory {
        CloneDirectory::Workdir => ".".to_owned(),
        CloneDirectory::Named => {
            let last = git.url.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            let name = last.strip_suffix(".git").unwrap_or(last);
            // Never out of the working directory.
            if matches!(name, "" | "." | "..") { "repository".to_owned() } else { format!("./{name}") }
        }
    }
}

/// Puts the source into a run that nobody else can reach yet.
pub(crate) async fn put_in(
    host: &Host,
    run: &RunRow,
    config: &SandboxConfig,
    slot: u32,
    source: &Source,
) -> Result<()> {
    let (what, argv) = match source {
        Source::Snapshot(_) | Source::SnapshotOf(..) => return Ok(()),
        Source::Git(git) => {
            let clone = checkout::Clone {
                url: &git.url,
                directory: &directory(git),
                depth: git.depth.unwrap_or(1),
                revision: git.revision.as_deref(),
                identity: None,
                new_branch: None,
                progress: false,
            };
            (format!("clone {}", shown_url(&git.url)), clone.argv())
        }
        Source::Tarball { url } => {
            let argv = ["sh", "-c", UNPACK, "sh", url].map(str::to_owned).to_vec();
            (format!("unpack {}", shown_url(url)), argv)
        }
    };
    let rules = with_credentials(&config.network, source);
    let rules = Ruleset::new(&rules).map_err(|error| ProviderError::Invalid(format!("source: {error}")))?;
    launch::put_rules(host, slot, run, rules.widened());
    let spawn = Spawn {
        id: CommandId::generate().to_string(),
        argv,
        cwd: run.cwd.clone(),
        env: trust::environment().into_iter().chain(config.image_env.clone()).collect(),
        user: config.user.clone(),
        stdin: StdinMode::Null,
        sudo_user: None,
        timeout_ms: Some(u64::try_from(host.config.source_timeout.as_millis()).unwrap_or(u64::MAX)),
    };
    let agent = Agent::in_dir(&host.socket_dir(run.id.as_str()));
    // The agent ends the command; this is for one that does not.
    let limit = host.config.source_timeout + Duration::from_secs(20);
    let outcome = tokio::time::timeout(limit, run_command(&agent, spawn)).await;
    let (code, timed_out, words) = outcome.map_err(|_| ProviderError::internal(&*what, "no answer"))??;
    launch::put_policy(host, slot, run, &config.network);
    if timed_out {
        let limit = dormouse_types::format_duration(host.config.source_timeout);
        return Err(ProviderError::Invalid(format!("{what}: it took longer than {limit}")));
    }
    if code != 0 {
        return Err(ProviderError::Invalid(format!("{what}: {}", words.trim())));
    }
    Ok(())
}

/// The policy with the credentials of the source as one more rule for its host. They
/// win over what the policy sets there.
fn with_credentials(policy: &NetworkPolicy, source: &Source) -> NetworkPolicy {
    let Source::Git(GitSource { url, credentials: Some((user, password)), .. }) = source else {
        return policy.clone();
    };
    let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let headers = BTreeMap::from([("authorization".to_owned(), Some(format!("Basic {pair}")))]);
    let rule = Rule { matches: None, action: Action::SetHeaders(headers) };
    let host = url.strip_prefix("https://").unwrap_or(url).split(['/', ':']).next().unwrap_or_default();
    let mut custom = match policy {
        NetworkPolicy::Custom(custom) => custom.clone(),
        NetworkPolicy::AllowAll | NetworkPolicy::DenyAll => CustomPolicy::default(),
    };
    let host = host.to_ascii_lowercase();
    match custom.domains.iter_mut().find(|domain| domain.domain.eq_ignore_ascii_case(&host)) {
        Some(domain) => domain.rules.push(rule),
        None => custom.domains.push(DomainPolicy { domain: host, rules: vec![rule] }),
    }
    NetworkPolicy::Custom(custom)
}

/// Runs a command to its end: exit code, whether its time ran out, its words.
async fn run_command(agent: &Agent, spawn: Spawn) -> Result<(i32, bool, String)> {
    let mut dialogue = agent.open(Request::Start { spawn, follow: true, log: false }).await?;
    let mut words = Vec::new();
    loop {
        match dialogue.expect().await? {
            Frame::Stderr(data) => {
                words.extend_from_slice(&data);
                let over = words.len().saturating_sub(MAX_WORDS);
                words.drain(..over);
            }
            Frame::Reply(Reply::Exited(status)) => {
                let text = String::from_utf8_lossy(&words).into_owned();
                return Ok((status.exit_code.unwrap_or(-1), status.timed_out, text));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(url: &str) -> GitSource {
        GitSource {
            url: url.to_owned(),
            depth: None,
            revision: None,
            credentials: None,
            directory: CloneDirectory::Named,
        }
    }

    #[test]
    fn clones_go_where_git_would_put_them() {
        assert_eq!(directory(&git("https://github.com/acme/widgets.git")), "./widgets");
        assert_eq!(directory(&git("https://github.com/acme/widgets/")), "./widgets");
        assert_eq!(directory(&git("https://github.com/acme/..")), "repository");
        assert_eq!(directory(&git("https://github.com/acme/--upload-pack=x")), "./--upload-pack=x");
    }
}
