//! What an agent finds checked out, and does with it next.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{World, eventually};

/// The interval in which a remote is asked where it stands, in this world.
const TIP_INTERVAL: Duration = Duration::from_secs(1);

impl World {
    /// A new session with a sandbox for a repository of `acme`; what was
    /// answered.
    fn post_repo(&self, repo: &str) -> anyhow::Result<(String, StatusCode, Value)> {
        let session = self.new_session()?;
        let body = json!({"repoUrl": format!("https://github.com/acme/{repo}"), "sessionId": session});
        let (status, reply) = self.call(Method::POST, "/api/sandbox", Some(&self.key), Some(body))?;
        Ok((format!("session-{session}"), status, reply))
    }

    /// The same, with success expected: the sandbox and the branch.
    fn checked_out(&self, repo: &str) -> anyhow::Result<(String, String)> {
        let (name, status, reply) = self.post_repo(repo)?;
        ensure!(status == StatusCode::OK, "{repo}: {status} {reply}");
        Ok((name, reply["currentBranch"].as_str().unwrap_or_default().to_owned()))
    }

    /// How often an org snapshot of a repository was published.
    fn published(&self, repo: &str) -> usize {
        let (key, log) = (format!("acme/{repo} ("), self.log());
        log.lines().filter(|line| line.contains("published") && line.contains(&key)).count()
    }
}

/// The second sandbox of a repository starts from a snapshot and has the same;
/// what the remote gets afterwards, the next one has.
pub(crate) fn warm(w: &World) -> anyhow::Result<()> {
    w.remote(
        "git init -q -b main work-warm; cd work-warm
         git config user.name Test; git config user.email test@example.test
         for i in 1 2 3; do echo $i > file$i; git add .; git commit -qm \"commit $i\"; done
         git switch -qc other; echo other > other; git add .; git commit -qm other; git switch -q main
         git clone -q --bare . ../git/acme/warm.git; git remote add origin ../git/acme/warm.git",
    )?;
    let push = |script: &str| w.remote(&format!("cd work-warm; {script}"));
    let (first, branch) = w.checked_out("warm")?;
    ensure!(branch == "main" && w.published("warm") == 1, "{branch}, {} published", w.published("warm"));
    w.ok(&first, "echo secret > untracked; echo secret >> file1; echo secret > ~/.netrc")?;
    for _ in 0..2 {
        let (name, branch) = w.checked_out("warm")?;
        ensure!(branch == "main", "{branch}");
        agents_need(w, &name)?;
        w.delete(&name)?;
    }
    ensure!(w.published("warm") == 1, "it was built again");
    // What moved is there for the next one, and the older snapshot is replaced.
    let moves = [
        ("echo 4 > file4; git add .; git commit -qm 'commit 4'; git push -q origin main", "main", "commit 4"),
        ("git commit -q --amend -m 'commit five'; git push -qf origin main", "main", "commit five"),
        (
            "git branch -qm main trunk; git push -q origin trunk
             git -C ../git/acme/warm.git symbolic-ref HEAD refs/heads/trunk; git push -q origin :main",
            "trunk",
            "commit five",
        ),
    ];
    for (round, (script, branch, subject)) in moves.into_iter().enumerate() {
        push(script)?;
        std::thread::sleep(TIP_INTERVAL);
        let (name, found) = w.checked_out("warm")?;
        ensure!(found == branch, "{found}, not {branch}");
        ensure!(w.ok(&name, "git log -1 --format=%s")? == subject, "not {subject}");
        ensure!(w.ok(&name, "git status --porcelain")?.is_empty(), "it is not clean");
        ensure!(
            w.ok(&name, "git rev-parse --abbrev-ref @{u} origin/HEAD")?
                .lines()
                .all(|line| { line == format!("origin/{branch}") })
        );
        w.delete(&name)?;
        let published = || Ok(w.published("warm") == round + 2);
        eventually("a newer org snapshot is published", Duration::from_secs(20), published)?;
    }
    // A sandbox that is there keeps what is in it.
    ensure!(w.ok(&first, "cat untracked && tail -n 1 file1")? == "secret\nsecret");
    w.delete(&first)
}

/// Sessions hear how far a clone is, whoever makes it: both wait for the one that
/// the org snapshot is made with.
pub(crate) fn progress(w: &World) -> anyhow::Result<()> {
    w.remote(
        "mkdir -p git/slow; git init -q -b main work-slow; cd work-slow
         git config user.name Test; git config user.email test@example.test
         for i in $(seq 12); do head -c 500000 /dev/urandom > file$i; done; git add .; git commit -qm large
         git clone -q --bare . ../git/slow/large.git",
    )?;
    let post = || -> anyhow::Result<_> {
        let session = w.new_session()?;
        let body = json!({"repoUrl": "https://github.com/slow/large", "sessionId": session});
        let request = w.http.post(format!("{}/api/sandbox", w.base)).header("x-api-key", &w.key).json(&body);
        Ok((session, w.spawn(async move { request.send().await.map(|answer| answer.status()) })))
    };
    for (session, post) in [post()?, post()?] {
        ensure!(w.block_on(post)?? == StatusCode::OK);
        let page = w.good(Method::GET, &format!("/api/sandbox/events?sessionId={session}"), None)?;
        let told = page["events"].as_array().context("events")?;
        let reasons: Vec<_> = told.iter().filter_map(|event| event["reason"].as_str()).collect();
        ensure!(reasons.first() == Some(&"provision") && reasons.last() == Some(&"ready"), "{reasons:?}");
        let percents: Vec<u8> = told
            .iter()
            .filter(|event| event["reason"] == "clone")
            .filter_map(|event| event["detail"].as_str()?.strip_suffix('%')?.parse().ok())
            .collect();
        ensure!(!percents.is_empty() && percents.is_sorted(), "{percents:?} of {page}");
        w.delete(&format!("session-{session}"))?;
    }
    Ok(())
}

/// What an agent does first in a checkout.
fn agents_need(w: &World, name: &str) -> anyhow::Result<()> {
    ensure!(
        w.ok(name, "git status --porcelain; ls ~/.netrc 2>/dev/null || :")?.is_empty(),
        "somebody else's"
    );
    ensure!(
        w.ok(name, "git config --get-all user.name; git config --get-all user.email")?
            == "Ada\nada@example.test"
    );
    ensure!(w.ok(name, "git log -1 --format=%s; git rev-list --count HEAD")? == "commit 3\n1");
    ensure!(w.ok(name, "git fetch -q && git switch -q other && git log -1 --format=%s")? == "other");
    w.ok(name, "git fetch -q --deepen=1 && git diff --quiet origin/main...HEAD; [ $? = 1 ]")?;
    ensure!(w.ok(name, "git fetch -q --unshallow && git rev-list --count origin/main")? == "3");
    w.ok(
        name,
        "git switch -qc mine && git commit -q --allow-empty -m mine && git worktree add -q /tmp/tree main",
    )?;
    ensure!(w.ok(name, "cat /tmp/tree/file3 && git -C /tmp/tree status --porcelain | wc -l")? == "3\n0");
    Ok(())
}

/// Copies wait for who starts from a snapshot that many start from. They are like any
/// other: one's own, limited, and gone with their sandbox.
pub(crate) fn ready_copies(w: &World) -> anyhow::Result<()> {
    w.remote(
        "git init -q -b main work-often; cd work-often
         git config user.name Test; git config user.email test@example.test
         echo 1 > file; git add .; git commit -qm first
         git clone -q --bare . ../git/acme/often.git",
    )?;
    let waiting = || -> anyhow::Result<BTreeSet<String>> {
        let names = std::fs::read_dir(w.dir.join("data/pool/scratch"))?;
        let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<anyhow::Result<BTreeSet<_>>>()?;
        Ok(names.into_iter().filter(|name| name.starts_with("ready-")).collect())
    };
    let before = waiting()?;
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(w.checked_out("often")?.0);
    }
    let copies =
        || -> anyhow::Result<BTreeSet<String>> { Ok(waiting()?.difference(&before).cloned().collect()) };
    eventually("copies wait", Duration::from_secs(20), || Ok(copies()?.len() >= 3))?;
    let there = copies()?;
    for _ in 0..2 {
        names.push(w.checked_out("often")?.0);
    }
    ensure!(there.difference(&copies()?).count() >= 2, "they were not used");
    // Each its own.
    for (number, name) in names.iter().enumerate() {
        ensure!(w.ok(name, "cat file; git status --porcelain")? == "1", "{name}");
        w.ok(name, &format!("echo {number} > file; echo {number} > mine"))?;
    }
    for (number, name) in names.iter().enumerate() {
        ensure!(w.ok(name, "cat file mine")? == format!("{number}\n{number}"), "{name}");
    }
    let last = names.last().context("none")?;
    w.stop(last)?;
    w.good(
        Method::POST,
        "/api/sandbox",
        Some(json!({"repoUrl": "https://github.com/acme/often",
        "sessionId": last.trim_start_matches("session-")})),
    )?;
    ensure!(w.ok(last, "cat mine")? == (names.len() - 1).to_string(), "lost in a stop");
    let (code, _, error) = w.shell(last, "head -c 400M /dev/zero > /tmp/large")?;
    ensure!(code == 1 && error.contains("Disk quota exceeded"), "no limit: {code} {error}");
    ensure!(w.shell(&names[0], "head -c 50M /dev/zero > /tmp/fits")?.0 == 0, "the neighbour's limit");
    for name in &names {
        w.delete(name)?;
    }
    Ok(())
}

/// The branch that a request names, cold and warm; what is no branch is told.
pub(crate) fn branches(w: &World) -> anyhow::Result<()> {
    w.remote(
        "git init -q -b main work-branches; cd work-branches
         git config user.name Test; git config user.email test@example.test
         echo 1 > file; git add .; git commit -qm first; git tag v1
         git switch -qc feature/x; echo 2 > file; git commit -qam second; git switch -q main
         git clone -q --bare . ../git/acme/branches.git",
    )?;
    let ask = |body: Value| {
        let session = w.new_session()?;
        let mut whole = json!({"repoUrl": "https://github.com/acme/branches", "sessionId": session});
        whole
            .as_object_mut()
            .into_iter()
            .for_each(|all| all.extend(body.as_object().cloned().unwrap_or_default()));
        let (status, reply) = w.call(Method::POST, "/api/sandbox", Some(&w.key), Some(whole))?;
        anyhow::Ok((session, status, reply))
    };
    for (body, words) in [
        (json!({"branch": "a..b"}), "branch must be"),
        (json!({"branch": "--upload-pack=x"}), "branch must be"),
        (json!({"branch": ""}), "branch must be"),
        (json!({"isNewBranch": true}), "isNewBranch needs a branch"),
    ] {
        let (_, status, reply) = ask(body)?;
        ensure!(status == StatusCode::BAD_REQUEST, "{status} {reply}");
        ensure!(reply["error"].as_str().is_some_and(|error| error.contains(words)), "{reply}");
    }
    // Cold the first time, from the org snapshot afterwards.
    for round in 0..2 {
        for (branch, new, file) in [("feature/x", false, "2"), ("mine", true, "1"), ("main", false, "1")] {
            let (session, status, reply) = ask(json!({"branch": branch, "isNewBranch": new}))?;
            ensure!(status == StatusCode::OK && reply["currentBranch"] == branch, "{round} {status} {reply}");
            let name = format!("session-{session}");
            ensure!(w.ok(&name, "cat file; git rev-parse --abbrev-ref HEAD")? == format!("{file}\n{branch}"));
            ensure!(
                w.ok(&name, "git status --porcelain; git rev-parse --abbrev-ref origin/HEAD")?
                    == "origin/main"
            );
            if !new {
                let upstream = w.ok(&name, "git rev-parse --abbrev-ref @{u}")?;
                ensure!(upstream == format!("origin/{branch}"), "{upstream}");
            }
            // It counts once: what is there stays on its branch.
            let body = json!({"repoUrl": "https://github.com/acme/branches", "sessionId": session, "branch": "main"});
            let (status, reply) = w.call(Method::POST, "/api/sandbox", Some(&w.key), Some(body))?;
            ensure!(status == StatusCode::OK && reply["currentBranch"] == branch, "{status} {reply}");
            w.delete(&name)?;
        }
        for (branch, words) in [("missing", "missing"), ("v1", "v1")] {
            let (session, status, reply) = ask(json!({"branch": branch}))?;
            ensure!(status == StatusCode::BAD_GATEWAY, "{branch}: {status} {reply}");
            ensure!(reply["error"].as_str().is_some_and(|error| error.contains(words)), "{reply}");
            let path = format!("/api/v2/sandboxes/session-{session}");
            ensure!(w.call(Method::GET, &path, Some(&w.key), None)?.0 == 404, "something is left");
        }
    }
    ensure!(w.published("branches") == 1, "a wrong branch is no fault of the org snapshot");
    // Without a session, and sent again.
    let body = json!({"repoUrl": "https://github.com/acme/branches", "branch": "feature/x"});
    let once = |key: &'static str, body: Value| {
        w.call_with(Method::POST, "/api/sandbox", &[("idempotency-key", key)], Some(body))
    };
    let (status, first) = once("one", body.clone())?;
    ensure!(status == StatusCode::OK && first["currentBranch"] == "feature/x", "{status} {first}");
    let count = || -> anyhow::Result<usize> {
        let all = w.good(Method::GET, "/api/v2/sandboxes?limit=100", None)?;
        Ok(all["sandboxes"].as_array().map_or(0, Vec::len))
    };
    let before = count()?;
    let (status, again) = once("one", body.clone())?;
    ensure!(status == StatusCode::OK && again["createdAt"] == first["createdAt"], "{status} {again}");
    ensure!(count()? == before, "there are more");
    let (status, reply) = once("one", json!({"repoUrl": "https://github.com/acme/branches"}))?;
    ensure!(status == StatusCode::UNPROCESSABLE_ENTITY, "{status} {reply}");
    let (status, _) = once("two", body)?;
    ensure!(status == StatusCode::OK && count()? == before + 1, "another key is another request");
    Ok(())
}

/// Files of Git LFS: pointers at first, and what they point to when it is asked for.
pub(crate) fn large_files(w: &World) -> anyhow::Result<()> {
    let content = "large\n".repeat(50_000);
    let id = sha256(content.as_bytes());
    w.remote(&format!(
        "git init -q -b main work-lfs; cd work-lfs
         git config user.name Test; git config user.email test@example.test
         echo '*.bin filter=lfs diff=lfs merge=lfs -text' > .gitattributes
         printf 'version https://git-lfs.github.com/spec/v1\noid sha256:{id}\nsize {}\n' > data.bin
         git -c filter.lfs.required=false -c filter.lfs.clean=cat add .; git commit -qm first
         git clone -q --bare . ../git/acme/lfs.git; mkdir ../git/acme/lfs.git/lfs
         yes large | head -n 50000 > ../git/acme/lfs.git/lfs/{id}",
        content.len()
    ))?;
    for _ in 0..2 {
        let (name, _) = w.checked_out("lfs")?;
        ensure!(w.ok(&name, "head -n 1 data.bin")? == "version https://git-lfs.github.com/spec/v1");
        ensure!(w.ok(&name, "git status --porcelain")?.is_empty(), "it is not clean");
        w.ok(&name, "git lfs pull 2>&1")?;
        ensure!(w.ok(&name, "sha256sum data.bin | cut -c1-64")? == id);
        ensure!(w.ok(&name, "git status --porcelain")?.is_empty(), "it is not clean");
        // One's own goes back.
        w.ok(&name, "git switch -qc mine; echo mine > mine.bin; git add .; git commit -qm mine; git push -q origin mine 2>&1")?;
        w.ok(&name, "git push -q origin :mine")?;
        w.delete(&name)?;
    }
    let mine = sha256(b"mine\n");
    ensure!(w.dir.join(format!("git/acme/lfs.git/lfs/{mine}")).exists(), "it did not arrive");
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Remotes that are not what one expects: checked out, or a sentence that says
/// why not; never an empty directory.
pub(crate) fn odd_remotes(w: &World) -> anyhow::Result<()> {
    w.remote(
        "git init -q -b main work-odd; cd work-odd
         git config user.name Test; git config user.email test@example.test
         echo 1 > file; git add .; git commit -qm first
         for name in gone tags detached both; do git clone -q --bare . ../git/acme/$name.git; done
         cd ../git/acme
         git -C gone.git branch -q -m main work; git -C gone.git symbolic-ref HEAD refs/heads/main
         git -C tags.git tag v1 main; git -C tags.git update-ref -d refs/heads/main
         export GIT_AUTHOR_NAME=Test GIT_AUTHOR_EMAIL=test@example.test
         export GIT_COMMITTER_NAME=Test GIT_COMMITTER_EMAIL=test@example.test
         git -C detached.git update-ref --no-deref HEAD $(git -C detached.git commit-tree -m alone main^{tree})
         git -C both.git tag main $(git -C both.git commit-tree -m tagged main^{tree})
         cd ../..; git init -q --object-format=sha256 -b main work-sha256; cd work-sha256
         git config user.name Test; git config user.email test@example.test
         echo 1 > file; git add .; git commit -qm first; git clone -q --bare . ../git/acme/sha256.git
         cd ../git/acme; git clone -q --bare ../../work-odd many.git
         commit=$(git -C many.git rev-parse main)
         { echo '# pack-refs with: peeled fully-peeled sorted'; echo \"$commit refs/heads/main\"
           seq -f \"$commit refs/heads/many/%05g\" 50000; } > many.git/packed-refs
         rm -f many.git/refs/heads/main",
    )?;
    for (repo, words) in [("gone", "heads/work"), ("tags", "tags/v1")] {
        for _ in 0..2 {
            let (name, status, reply) = w.post_repo(repo)?;
            ensure!(status == StatusCode::BAD_GATEWAY, "{repo}: {status} {reply}");
            let error = reply["error"].as_str().unwrap_or_default();
            ensure!(error.contains("HEAD") && error.contains(words), "{repo}: {reply}");
            ensure!(w.call(Method::GET, &format!("/api/v2/sandboxes/{name}"), Some(&w.key), None)?.0 == 404);
        }
    }
    for repo in ["both", "sha256", "many"] {
        for _ in 0..2 {
            let (name, branch) = w.checked_out(repo)?;
            ensure!(branch == "main", "{repo}: {branch}");
            ensure!(w.ok(&name, "cat file; git log -1 --format=%s")? == "1\nfirst", "{repo}");
            ensure!(w.ok(&name, "git symbolic-ref HEAD")? == "refs/heads/main", "{repo}");
            w.delete(&name)?;
        }
        // A remote of SHA-256 does not tell its tip to who asks in SHA-1.
        let expected = usize::from(repo != "sha256");
        ensure!(w.published(repo) == expected, "{repo}: {} published", w.published(repo));
    }
    let (name, commit) = w.checked_out("detached")?;
    ensure!(w.ok(&name, "git rev-parse HEAD; cat file")? == format!("{commit}\n1"), "{commit}");
    w.delete(&name)
}

/// A repository's own set-up has been run in what the next sandbox starts from,
/// without credentials, and what it said can be read; one that fails is told.
pub(crate) fn set_up(w: &World) -> anyhow::Result<()> {
    w.remote(
        "for name in script container fails; do
           git init -q -b main work-$name; cd work-$name
           git config user.name Test; git config user.email test@example.test
           mkdir .dormouse .devcontainer
           case $name in
           script) printf '#!/bin/sh\\necho from the script; echo made > made; echo home > ~/home; env > env; id -un > who\\n' > .dormouse/setup;;
           container) printf '{ // a comment\\n\"onCreateCommand\": [\"touch\", \"one\"],\\n\"updateContentCommand\": {\"a\": \"ls one && echo two > two\"},}' > .devcontainer/devcontainer.json;;
           fails) printf 'echo begun; echo begun > begun; exit 3\\n' > .dormouse/setup;;
           esac
           git add .; git commit -qm first; git clone -q --bare . ../git/acme/$name.git; cd ..
         done",
    )?;
    for (repo, state, said) in [
        ("script", "done", "from the script"),
        ("container", "done", "$ touch one"),
        ("fails", "failed", "exited with 3"),
    ] {
        let (first, _) = w.checked_out(repo)?;
        w.delete(&first)?;
        let name = format!("acme/{repo}");
        let show = || w.text(&["org-snapshot", "list", &name]);
        eventually("the set-up was run", Duration::from_secs(30), || Ok(show()?.contains(state)))?;
        ensure!(show()?.lines().count() == 2, "{}", show()?);
        let log = w.text(&["org-snapshot", "log", &name])?;
        ensure!(log.contains("== set_up") && log.contains(said), "{repo}: {log}");
    }
    let (script, _) = w.checked_out("script")?;
    ensure!(
        w.ok(&script, "cat made ~/home who; git status --porcelain | sort")?
            == "made\nhome\nubuntu\n?? env\n?? made\n?? who"
    );
    ensure!(w.ok(&script, "grep -ci -e token -e DORMOUSE_ -e authorization env || :")? == "0");
    let (container, _) = w.checked_out("container")?;
    ensure!(w.ok(&container, "cat two; ls one")? == "two\none");
    let (fails, _) = w.checked_out("fails")?;
    ensure!(w.ok(&fails, "cat begun")? == "begun");
    // Only those who claim it delete what others start from.
    let list = w.good(Method::GET, "/api/org-snapshots?repoUrl=https://github.com/acme/script", None)?;
    let id = list["orgSnapshots"][0]["id"].as_str().unwrap_or_default().to_owned();
    let (status, reply) = w.call(Method::DELETE, &format!("/api/org-snapshots/{id}"), Some(&w.key), None)?;
    ensure!(status == StatusCode::FORBIDDEN, "{status} {reply}");
    ensure!(
        w.good(Method::GET, "/api/org-snapshots", None)?["orgSnapshots"] == json!([]),
        "others' are shown"
    );
    let org = w.id(&["org", "create", "setups"])?;
    w.cli(&["org", "add-member", &org, &w.account])?;
    w.cli(&["org", "claim", &org, "acme/script"])?;
    ensure!(
        w.text(&["org-snapshot", "list"])?.contains(&id),
        "those that one's organizations claim are not shown"
    );
    w.cli(&["org-snapshot", "delete", &id])?;
    ensure!(!w.text(&["org-snapshot", "list"])?.contains(&id), "it is there");
    // Asked for, it is built, and with the set-up at once.
    w.cli(&["org-snapshot", "build", "acme/script"])?;
    eventually("it is built anew", Duration::from_secs(30), || {
        Ok(w.text(&["org-snapshot", "show", "acme/script"])?.contains("set-up    done"))
    })?;
    for name in [script, container, fails] {
        w.delete(&name)?;
    }
    Ok(())
}
