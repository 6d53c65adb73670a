//! `dormouse org-snapshot …`, over the session API.

use std::process::ExitCode;

use anyhow::Context as _;
use dormouse_types::{GithubRepo, OrgSnapshotId};
use reqwest::Method;
use serde_json::{Value, json};

use super::snapshot::age;
use crate::cli::{OrgSnapshotAction, RemoteArgs};
use crate::client::Client;
use crate::output::{Output, hint};

/// Below `/api`.
const PATH: &str = "/org-snapshots";

/// Characters of a commit that are shown.
const SHORT: usize = 10;

pub(crate) async fn run(
    remote: &RemoteArgs,
    action: OrgSnapshotAction,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let client = Client::of_sessions(remote)?;
    match action {
        OrgSnapshotAction::List { repo } => list(&client, repo.as_deref(), output).await?,
        OrgSnapshotAction::Show { repo } => show(&client, &repo, output).await?,
        OrgSnapshotAction::Build { repo } => {
            let body = json!({"repoUrl": url(&repo)?});
            let reply: Value = client.json(client.request(Method::POST, PATH).json(&body)).await?;
            output.data(
                &reply,
                &format!("{repo} is queued for a build; follow it with `dormouse org-snapshot log {repo}`"),
            );
        }
        OrgSnapshotAction::Log { repo } => log(&client, &repo, output).await?,
        OrgSnapshotAction::Delete { id } => {
            let id: OrgSnapshotId = id.parse()?;
            let reply: Value = client.json(client.request(Method::DELETE, &format!("{PATH}/{id}"))).await?;
            output.data(&reply, &format!("{id} deleted"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The URL of a repository that may be written as `owner/name`.
fn url(repo: &str) -> anyhow::Result<String> {
    let whole = if repo.contains("://") { repo.to_owned() } else { format!("https://github.com/{repo}") };
    let repo: GithubRepo = whole.parse().with_context(|| format!("{repo:?}"))?;
    Ok(repo.url())
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn ago(value: &Value, key: &str) -> String {
    value[key].as_i64().map(age).unwrap_or_default()
}

async fn find(client: &Client, repo: Option<&str>) -> anyhow::Result<Value> {
    let query = repo.map(url).transpose()?.map(|url| [("repoUrl", url)]);
    let request = client.request(Method::GET, PATH);
    let request = match &query {
        Some(query) => request.query(query),
        None => request,
    };
    Ok(client.json(request).await?)
}

async fn list(client: &Client, repo: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let found = find(client, repo).await?;
    let row = |one: &Value| {
        let short: String = text(one, "commit").chars().take(SHORT).collect();
        let set_up = text(one, "setUp").to_owned();
        let (id, repo, access) = (text(one, "id"), text(one, "repo"), text(one, "access"));
        let at = format!("{} {short}", text(one, "branch"));
        vec![id.to_owned(), repo.to_owned(), access.to_owned(), at, set_up, ago(one, "createdAt")]
    };
    let rows: Vec<_> = found["orgSnapshots"].as_array().into_iter().flatten().map(row).collect();
    output.table(&found, &["ID", "REPOSITORY", "ACCESS", "AT", "SET-UP", "AGE"], &rows);
    Ok(())
}

async fn builds(client: &Client, repo: &str) -> anyhow::Result<Value> {
    let request = client.request(Method::GET, &format!("{PATH}/builds"));
    Ok(client.json(request.query(&[("repoUrl", url(repo)?)])).await?)
}

async fn show(client: &Client, repo: &str, output: &Output) -> anyhow::Result<()> {
    let (mut found, builds) = (find(client, Some(repo)).await?, builds(client, repo).await?);
    let mut lines = Vec::new();
    for one in found["orgSnapshots"].as_array().into_iter().flatten() {
        lines.push(format!("{} ({})", text(one, "id"), text(one, "access")));
        lines.push(format!("  at        {} {}", text(one, "branch"), text(one, "commit")));
        lines.push(format!("  set-up    {}", text(one, "setUp")));
        lines.push(format!(
            "  made      {} ago, last used {} ago",
            ago(one, "createdAt"),
            ago(one, "lastUsedAt")
        ));
    }
    if lines.is_empty() {
        lines.push(format!("no org snapshot of {repo}"));
    }
    for one in builds["builds"].as_array().into_iter().flatten() {
        let (id, phase) = (text(one, "id"), text(one, "phase"));
        lines.push(format!("{id}: {phase}, begun {} ago", ago(one, "startedAt")));
    }
    found["builds"] = builds["builds"].clone();
    output.data(&found, &lines.join("\n"));
    Ok(())
}

async fn log(client: &Client, repo: &str, output: &Output) -> anyhow::Result<()> {
    let found = builds(client, repo).await?;
    let Some(newest) = found["builds"].as_array().and_then(|builds| builds.first()) else {
        return Err(hint(
            format!("no build of {repo} is known"),
            format!("`dormouse org-snapshot build {repo}` asks for one"),
        ));
    };
    output.data(newest, text(newest, "log"));
    Ok(())
}
