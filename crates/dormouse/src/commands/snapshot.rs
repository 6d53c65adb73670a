//! `dormouse snapshot …`, over the provider API.

use std::process::ExitCode;

use dormouse_jobs::Clock;
use dormouse_types::{SnapshotId, Timestamp};
use dormouse_wire as wire;
use reqwest::Method;
use serde_json::json;

use crate::cli::{RemoteArgs, SnapshotAction};
use crate::client::Client;
use crate::output::Output;

/// Snapshots on one page.
const PAGE: &str = "100";

pub(crate) async fn run(
    remote: &RemoteArgs,
    action: SnapshotAction,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(remote)?;
    match action {
        SnapshotAction::List { sandbox } => list(&client, sandbox, output).await?,
        SnapshotAction::Tree { id } => tree(&client, &id.parse()?, output).await?,
        SnapshotAction::Delete { id } => {
            let id: SnapshotId = id.parse()?;
            let request = client.request(Method::DELETE, &format!("/snapshots/{id}"));
            let deleted: wire::SnapshotReply = client.json(request).await?;
            output.data(&serde_json::to_value(&deleted)?, &format!("{id} deleted"));
            for warning in &deleted.warnings {
                eprintln!("warning: {warning}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(snapshot: &wire::Snapshot) -> Vec<String> {
    vec![
        snapshot.id.clone(),
        snapshot.status.clone(),
        snapshot.creation_method.clone().unwrap_or_default(),
        format!("{} MiB", snapshot.size_bytes >> 20),
        age(snapshot.created_at),
    ]
}

/// How long ago, in the largest unit that fits.
pub(super) fn age(then: i64) -> String {
    let seconds = Clock::system().now().since(Timestamp(then)).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

async fn list(client: &Client, sandbox: Option<String>, output: &Output) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = vec![("limit", PAGE.to_owned())];
        query.extend(sandbox.clone().map(|name| ("name", name)));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let request = client.request(Method::GET, "/snapshots").query(&query);
        let page: wire::SnapshotList = client.json(request).await?;
        all.extend(page.snapshots);
        cursor = page.pagination.next;
        if cursor.is_none() {
            break;
        }
    }
    let rows: Vec<_> = all.iter().map(row).collect();
    output.table(&json!({"snapshots": all}), &["ID", "STATUS", "MADE", "SIZE", "AGE"], &rows);
    Ok(())
}

async fn tree(client: &Client, id: &SnapshotId, output: &Output) -> anyhow::Result<()> {
    let line = async |order: &str| {
        let mut all: Vec<wire::SnapshotNode> = Vec::new();
        let mut from = id.to_string();
        loop {
            let query = [("snapshotId", from.as_str()), ("sortOrder", order), ("limit", PAGE)];
            let request = client.request(Method::GET, "/snapshots/tree").query(&query);
            let part: wire::SnapshotTree = client.json(request).await?;
            all.extend(part.snapshots);
            match part.pagination.next {
                Some(next) => from = next,
                None => return Ok::<_, anyhow::Error>((all, part.anchor)),
            }
        }
    };
    let (mut ancestors, anchor) = line("desc").await?;
    let (descendants, _) = line("asc").await?;
    ancestors.reverse();
    let mut rows = Vec::new();
    for (mark, nodes) in
        [("", &ancestors), ("*", &anchor.clone().into_iter().collect::<Vec<_>>()), ("", &descendants)]
    {
        for node in nodes {
            let mut cells = vec![mark.to_owned()];
            cells.extend(row(&node.snapshot));
            cells.push(node.count.clone());
            rows.push(cells);
        }
    }
    let json = json!({"ancestors": ancestors, "anchor": anchor, "descendants": descendants});
    output.table(&json, &["", "ID", "STATUS", "MADE", "SIZE", "AGE", "SIBLINGS"], &rows);
    Ok(())
}
