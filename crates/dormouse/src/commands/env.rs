//! `dormouse env`: what a shell exports so that programs of others find the server.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::json;

use crate::cli::RemoteArgs;
use crate::client::Client;
use crate::output::Output;

/// The preload for JavaScript programs, which needs no package manager.
const PRELOAD: [(&str, &str); 3] = [
    ("index.js", include_str!("../../../../packages/client/index.js")),
    ("register.js", include_str!("../../../../packages/client/register.js")),
    ("package.json", include_str!("../../../../packages/client/package.json")),
];

pub(crate) async fn run(remote: &RemoteArgs, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Client::of_platform(remote)?;
    let user: serde_json::Value = client.json(client.request(Method::GET, "/v2/user")).await?;
    let account = user["user"]["id"].as_str().context("the server does not say whose the key is")?;
    let team = remote.team.as_deref().unwrap_or(account);
    let project = remote.project.as_deref().unwrap_or("default");
    let server = remote.server.trim_end_matches('/');
    let key = remote.key.as_deref().unwrap_or_default();
    let mut variables = vec![
        ("DORMOUSE_SERVER", server.to_owned()),
        ("DORMOUSE_KEY", key.to_owned()),
        ("DORMOUSE_TEAM", team.to_owned()),
        ("DORMOUSE_PROJECT", project.to_owned()),
        // What clients in other languages read.
        ("VERCEL_TOKEN", key.to_owned()),
        ("VERCEL_TEAM_ID", team.to_owned()),
        ("VERCEL_PROJECT_ID", project.to_owned()),
    ];
    variables.push(("VERCEL_OIDC_TOKEN", platform_token(key, team, project)));
    let preload = preload()?;
    let url = url::Url::from_file_path(&preload).ok().context("no URL of the preload")?;
    for (name, option) in [
        ("NODE_OPTIONS", format!("--import={url}")),
        ("BUN_OPTIONS", format!("--preload={}", preload.display())),
    ] {
        // Options that are there stay.
        let before = std::env::var(name).unwrap_or_default();
        let options =
            if before.contains(&option) { before } else { format!("{before} {option}").trim().to_owned() };
        variables.push((name, options));
    }
    let lines: Vec<_> =
        variables.iter().map(|(name, value)| format!("export {name}={}", quoted(value))).collect();
    let json: serde_json::Map<_, _> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    output.data(&json.into(), &lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// A key in the form that the platform's clients want where they are given none: a token of
/// three parts, of which they read the owner and the project, and the server the key
/// (`token` in `packages/client`).
fn platform_token(key: &str, team: &str, project: &str) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let claims = json!({"owner_id": team, "owner": team, "project_id": project, "project": project});
    let head = json!({"alg": "none", "typ": "JWT"});
    format!("{}.{}.{}", part(head.to_string()), part(claims.to_string()), part(key.to_owned()))
}

/// Puts the preload where it stays for as long as a shell may export it.
fn preload() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")));
    let home = home.context("set HOME or XDG_DATA_HOME: there is nowhere to put the preload")?;
    let dir = home.join("dormouse").join(format!("client-{}", env!("CARGO_PKG_VERSION")));
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    for (name, text) in PRELOAD {
        let path = dir.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
            continue;
        }
        // Programs may be reading it.
        let new = dir.join(format!(".{name}-{}", std::process::id()));
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
        written.with_context(|| format!("write {}", path.display()))?;
    }
    std::path::absolute(dir.join("register.js")).context("find the preload")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shell_reads_what_was_meant() {
        let word = "it's $HOME `x` \\ \"y\"";
        let printed =
            std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
        assert_eq!(String::from_utf8(printed.unwrap().stdout).unwrap(), word);
    }
}
