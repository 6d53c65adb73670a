//! Lists: pages, order, filters.

use std::collections::BTreeMap;

use super::{Bench, Outcome, check};
use crate::{Direction, ListOf, ListSandboxes, Page, SandboxSort, StopReason};

pub(super) async fn pages_of_sandboxes(bench: &Bench) -> Outcome {
    let mut names = Vec::new();
    for name in ["a", "b", "c"] {
        names.push(bench.sandbox(name).await?.sandbox.name);
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let list = ListSandboxes {
            page: Page { limit: 1, cursor },
            sort: SandboxSort::Name,
            order: Direction::Ascending,
            name_prefix: Some(bench.prefix.clone()),
            ..ListSandboxes::default()
        };
        let (page, next) = bench.provider.list(&bench.namespace, list).await?;
        check!(page.len() == 1, "a page of one has {}", page.len());
        seen.extend(page.into_iter().map(|sandbox| sandbox.name));
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    check!(seen == names, "{seen:?}");
    // Newest first, unless asked otherwise.
    let (page, _) = bench.provider.list(&bench.namespace, ListSandboxes::default()).await?;
    let newest: Vec<_> =
        page.into_iter().map(|sandbox| sandbox.name).filter(|name| names.contains(name)).collect();
    names.reverse();
    check!(newest == names, "{newest:?}");
    Ok(())
}

pub(super) async fn filters(bench: &Bench) -> Outcome {
    let tag = |name: &str| (name.to_owned(), bench.prefix.clone());
    let both = BTreeMap::from([tag("one"), tag("two")]);
    let first = bench.sandbox_with("a", |request| request.tags = BTreeMap::from([tag("one")])).await?;
    let second = bench.sandbox_with("b", |request| request.tags = both.clone()).await?;
    let by = async |tags: BTreeMap<String, String>| {
        let list = ListSandboxes { tags, ..ListSandboxes::default() };
        let (page, _) = bench.provider.list(&bench.namespace, list).await?;
        Ok::<_, super::Failure>(page.into_iter().map(|sandbox| sandbox.name).collect::<Vec<_>>())
    };
    let found = by(BTreeMap::from([tag("one")])).await?;
    check!(found == [second.sandbox.name.clone(), first.sandbox.name], "one label: {found:?}");
    let found = by(both).await?;
    check!(found == [second.sandbox.name], "two labels: {found:?}");
    let found = by(BTreeMap::from([tag("three")])).await?;
    check!(found.is_empty(), "a label that nobody has: {found:?}");
    Ok(())
}

pub(super) async fn runs_of_a_sandbox(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let other = bench.sandbox("b").await?;
    bench.provider.stop(&bench.run_ref(&made.run), StopReason::Requested).await?;
    let resumed = bench.provider.resume(&bench.key_of(&made)).await?;
    let list = ListOf { sandbox: Some(made.sandbox.name.to_string()), ..ListOf::default() };
    let (runs, next) = bench.provider.runs(&bench.namespace, list).await?;
    let ids: Vec<_> = runs.iter().map(|run| run.id.clone()).collect();
    check!(ids == [resumed.run.id, made.run.id] && next.is_none(), "{ids:?} {next:?}");
    check!(runs.iter().all(|run| run.sandbox == made.sandbox.name), "{runs:?}");
    check!(!ids.contains(&other.run.id), "another sandbox's run");
    Ok(())
}
