//! The session API.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{REPO, World, eventually};

pub(crate) fn main_job(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    let made = w.post(&session)?;
    ensure!(made["mode"] == "vercel" && made["timeout"] == 1_800_000, "{made}");
    ensure!(made["currentBranch"] == "main" && made["createdAt"].is_i64(), "{made}");
    ensure!(made["timing"]["readyMs"].is_i64(), "{made}");
    let name = format!("session-{session}");
    ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3");
    ensure!(w.ok(&name, "git rev-list --count HEAD")? == "1", "the clone is shallow");
    ensure!(
        w.ok(&name, "git fetch -q --unshallow && git rev-list --count HEAD")? == "3",
        "and deepens on demand"
    );
    ensure!(w.ok(&name, "git remote get-url origin")? == REPO);
    ensure!(w.ok(&name, "git config user.name; git config user.email")? == "Ada\nada@example.test");
    ensure!(w.ok(&name, "pwd; id -un; sudo id -un")? == "/vercel/sandbox\nubuntu\nroot");
    ensure!(
        w.ok(&name, "node --version | cut -c1; python3 -c 'print(1+1)'; jq --version | cut -c1-2")?
            == "v\n2\njq"
    );
    for round in 0..3 {
        w.ok(&name, &format!("for d in /tmp ~ /vercel/sandbox; do echo {round} > $d/round; done; sudo sh -c 'echo {round} > /etc/round'"))?;
        w.stop(&name)?;
        // Stopped behind the session's back: a probe finds out.
        let found = w.good(Method::GET, &format!("/api/sandbox/reconnect?sessionId={session}"), None)?;
        ensure!(found["status"] == "expired" && found["lifecycle"]["state"] == "hibernated", "{found}");
        let again = w.post(&session)?;
        ensure!(again["currentBranch"] == "main", "{again}");
        let read = w.ok(&name, "cat /tmp/round ~/round round /etc/round | sort -u")?;
        ensure!(read == round.to_string(), "after resume {round}: {read}");
    }
    ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3", "the checkout was not touched");
    w.delete(&name)
}

pub(crate) fn branches(w: &World) -> anyhow::Result<()> {
    for (repo, branch) in [("trunk", "trunk"), ("empty", "main"), ("unborn", "unborn")] {
        let session = w.new_session()?;
        let body = json!({"repoUrl": format!("https://github.com/acme/{repo}.git"), "sessionId": session});
        let made = w.good(Method::POST, "/api/sandbox", Some(body))?;
        ensure!(made["currentBranch"] == branch, "{repo}: {made}");
        w.delete(&format!("session-{session}"))?;
    }
    Ok(())
}

fn is_error(reply: &Value) -> bool {
    reply["status"] == "error" && reply["error"].as_str().is_some_and(|text| !text.is_empty())
}

pub(crate) fn bad_input(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    for (body, word) in [
        (json!({}), "required"),
        (json!({"repoUrl": ""}), "empty"),
        (json!({"repoUrl": 5}), "string"),
        (json!({"repoUrl": null}), "string"),
        (json!([]), "object"),
        (json!({"repoUrl": "https://gitlab.com/o/r"}), "github.com"),
        (json!({"repoUrl": "https://u:p@github.com/o/r"}), "credentials"),
        (json!({"repoUrl": "http://github.com/o/r"}), "https"),
        (json!({"repoUrl": "https://github.com/o/r/tree/main"}), "exactly"),
        (json!({"repoUrl": REPO, "sessionId": 7}), "string"),
    ] {
        let (status, reply) = w.call(Method::POST, "/api/sandbox", Some(&w.key), Some(body.clone()))?;
        ensure!(status == StatusCode::BAD_REQUEST && is_error(&reply), "{body}: {status} {reply}");
        ensure!(reply["error"].as_str().unwrap_or("").contains(word), "{body}: {reply}");
    }
    let raw = |body: &'static str, kind: &'static str| {
        w.block_on(async {
            let url = format!("{}/api/sandbox", w.base);
            let request =
                w.http.post(url).header("x-api-key", &w.key).header("content-type", kind).body(body);
            let answer = request.send().await?;
            anyhow::Ok((answer.status(), answer.json::<Value>().await?))
        })
    };
    let (status, reply) = raw("{nope", "application/json")?;
    ensure!(
        status == StatusCode::BAD_REQUEST && reply["error"].as_str().unwrap_or("").contains("malformed JSON")
    );
    ensure!(raw("a=b", "application/x-www-form-urlencoded")?.0 == StatusCode::UNSUPPORTED_MEDIA_TYPE);
    // `fetch` says so where nobody named a type.
    let (status, reply) = raw("{}", "text/plain;charset=UTF-8")?;
    ensure!(status == StatusCode::BAD_REQUEST && reply["error"] == "repoUrl is required", "{reply}");
    ensure!(reply["missing_fields"] == json!(["repoUrl"]) && reply["path"] == json!(["repoUrl"]), "{reply}");
    // An answer that does not wait for the body still arrives, whoever is faster.
    for _ in 0..20 {
        let huge = || Some(json!({"repoUrl": "x".repeat(1 << 20)}));
        let (status, _) = w.call(Method::POST, "/api/sandbox", Some(&w.key), huge())?;
        ensure!(status == StatusCode::PAYLOAD_TOO_LARGE, "{status}");
        let (status, _) = w.call(Method::POST, "/api/sandbox", Some("dm_wrong"), huge())?;
        ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
    }
    ensure!(w.call(Method::PATCH, "/api/sandbox", Some(&w.key), None)?.0 == StatusCode::METHOD_NOT_ALLOWED);
    ensure!(w.call(Method::GET, "/nothing", Some(&w.key), None)?.0 == StatusCode::NOT_FOUND);

    let ask = |key: &str, session: &str, repo: &str| {
        w.call(Method::POST, "/api/sandbox", Some(key), Some(json!({"repoUrl": repo, "sessionId": session})))
    };
    ensure!(ask(&w.key, "ses_unknown", REPO)?.0 == StatusCode::NOT_FOUND);
    ensure!(ask(&w.other_key, &session, REPO)?.0 == StatusCode::FORBIDDEN);
    w.post(&session)?;
    let (status, reply) = ask(&w.key, &session, "https://github.com/acme/trunk")?;
    ensure!(status == StatusCode::CONFLICT && is_error(&reply), "{status} {reply}");
    ensure!(
        ask(&w.key, &session, "https://github.com/Acme/Widgets.git")?.0 == StatusCode::OK,
        "names have no case"
    );
    let path = format!("/api/sessions/{session}");
    w.good(Method::PATCH, &path, Some(json!({"status": "archived"})))?;
    ensure!(ask(&w.key, &session, REPO)?.0 == StatusCode::CONFLICT, "archived");
    w.good(Method::PATCH, &path, Some(json!({"status": "running"})))?;
    w.post(&session)?;
    w.good(Method::DELETE, &path, None)?;
    ensure!(ask(&w.key, &session, REPO)?.0 == StatusCode::NOT_FOUND);
    Ok(())
}

pub(crate) fn credentials(w: &World) -> anyhow::Result<()> {
    let with = |headers: &[(&'static str, String)]| {
        w.block_on(async {
            let mut request = w.http.get(format!("{}/api/keys", w.base));
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let answer = request.send().await?;
            let cors = answer.headers().get("access-control-allow-origin").is_some();
            ensure!(cors, "no CORS header");
            anyhow::Ok((answer.status(), answer.json::<Value>().await?))
        })
    };
    let key = w.key.clone();
    for headers in [
        vec![("x-api-key", key.clone())],
        vec![("authorization", format!("Bearer {key}"))],
        vec![("authorization", format!("bEaReR {key}"))],
    ] {
        ensure!(with(&headers)?.0 == StatusCode::OK, "{headers:?}");
    }
    for headers in [
        vec![],
        vec![("x-api-key", String::new())],
        vec![("x-api-key", "dormouse_sk_wrong".to_owned())],
        vec![("authorization", format!("Basic {key}"))],
        vec![("authorization", "Bearer a.b.c".to_owned())],
        vec![("x-api-key", key.clone()), ("authorization", format!("Bearer {key}"))],
        vec![("x-api-key", key.clone()), ("x-api-key", key.clone())],
    ] {
        let (status, reply) = with(&headers)?;
        ensure!(status == StatusCode::UNAUTHORIZED && is_error(&reply), "{headers:?}: {status} {reply}");
    }
    for path in ["/api/sandbox", "/api/keys", "/nothing"] {
        let asked = w.http.request(Method::OPTIONS, format!("{}{path}", w.base));
        let answer = w.block_on(async { asked.send().await })?;
        let methods = answer.headers().get("access-control-allow-methods");
        let methods = methods.and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(answer.status() == StatusCode::NO_CONTENT && methods.contains("PATCH"), "{path}: {methods}");
    }
    let made = w.good(Method::POST, "/api/keys", Some(json!({"key_name": "second"})))?;
    let second = made["key"].as_str().unwrap_or_default().to_owned();
    let listed = w.good(Method::GET, "/api/keys", None)?.to_string();
    ensure!(listed.contains("second") && !listed.contains(&second) && !listed.contains("hash"), "{listed}");
    ensure!(w.call(Method::GET, "/api/keys", Some(&second), None)?.0 == StatusCode::OK);
    let (status, _) =
        w.call(Method::DELETE, "/api/keys", Some(&w.other_key), Some(json!({"id": made["id"]})))?;
    ensure!(status == StatusCode::FORBIDDEN);
    w.good(Method::DELETE, "/api/keys", Some(json!({"id": made["id"]})))?;
    ensure!(w.call(Method::GET, "/api/keys", Some(&second), None)?.0 == StatusCode::UNAUTHORIZED);
    ensure!(!w.log().contains(&w.key), "the log holds a key");
    Ok(())
}

pub(crate) fn failed_clone_leaves_nothing(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    let body = json!({"repoUrl": "https://github.com/acme/missing", "sessionId": session});
    for _ in 0..2 {
        let (status, reply) = w.call(Method::POST, "/api/sandbox", Some(&w.key), Some(body.clone()))?;
        ensure!(status == StatusCode::BAD_GATEWAY && is_error(&reply), "{status} {reply}");
    }
    let (status, _) =
        w.call(Method::GET, &format!("/api/v2/sandboxes/session-{session}"), Some(&w.key), None)?;
    ensure!(status == StatusCode::NOT_FOUND);
    w.post(&session)?;
    w.delete(&format!("session-{session}"))
}

pub(crate) fn ephemeral(w: &World) -> anyhow::Result<()> {
    w.good(Method::POST, "/api/sandbox", Some(json!({"repoUrl": REPO})))?;
    let list = w.good(Method::GET, "/api/v2/sandboxes?limit=1", None)?;
    let sandbox = &list["sandboxes"][0];
    ensure!(sandbox["persistent"] == false && sandbox["status"] == "running", "{list}");
    let name = sandbox["name"].as_str().unwrap_or_default().to_owned();
    ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3");
    w.stop(&name)?;
    let (status, _) = w.call(Method::GET, &format!("/api/v2/sandboxes/{name}"), Some(&w.key), None)?;
    ensure!(status == StatusCode::NOT_FOUND, "gone when it stops: {status}");
    Ok(())
}

pub(crate) fn siblings(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    let query = format!("?sessionId={session}");
    let body = || Some(json!({"sessionId": session}));
    let status = |w: &World| w.good(Method::GET, &format!("/api/sandbox/status{query}"), None);
    let reconnect = |w: &World| w.good(Method::GET, &format!("/api/sandbox/reconnect{query}"), None);
    ensure!(status(w)?["status"] == "no_sandbox");
    ensure!(reconnect(w)?["status"] == "no_sandbox");
    ensure!(w.good(Method::POST, "/api/sandbox/activity", body())?["reason"] == "not-active");
    ensure!(w.call(Method::POST, "/api/sandbox/extend", Some(&w.key), body())?.0 == StatusCode::BAD_REQUEST);
    ensure!(w.call(Method::PUT, "/api/sandbox/snapshot", Some(&w.key), body())?.0 == StatusCode::NOT_FOUND);
    ensure!(w.good(Method::DELETE, "/api/sandbox", body())?["alreadyStopped"] == true);

    w.post(&session)?;
    let active = status(w)?;
    ensure!(active["status"] == "active" && active["hasSnapshot"] == false, "{active}");
    ensure!(reconnect(w)?["status"] == "connected");
    ensure!(w.good(Method::POST, "/api/sandbox/activity", body())?["success"] == true);
    ensure!(w.good(Method::POST, "/api/sandbox/extend", body())?["extendedBy"] == 1_200_000);
    ensure!(w.good(Method::PUT, "/api/sandbox/snapshot", body())?["alreadyRunning"] == true);

    let name = format!("session-{session}");
    w.ok(&name, "echo kept > /tmp/kept")?;
    ensure!(w.good(Method::POST, "/api/sandbox/snapshot", body())?["snapshotId"] == name);
    let asleep = status(w)?;
    ensure!(asleep["status"] == "no_sandbox" && asleep["hasSnapshot"] == true, "{asleep}");
    let probed = reconnect(w)?;
    ensure!(probed["status"] == "no_sandbox" && probed["hasSnapshot"] == true, "{probed}");
    let found = w.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
    ensure!(found["sandbox"]["status"] == "stopped", "a probe woke it: {found}");
    w.good(Method::PUT, "/api/sandbox/snapshot", body())?;
    ensure!(w.ok(&name, "cat /tmp/kept")? == "kept");
    ensure!(w.good(Method::DELETE, "/api/sandbox", body())?["success"] == true);

    // Others see nothing of it.
    let (found, _) = w.call(Method::GET, &format!("/api/v2/sandboxes/{name}"), Some(&w.other_key), None)?;
    ensure!(found == StatusCode::NOT_FOUND);
    let (found, _) = w.call(Method::GET, &format!("/api/sandbox/status{query}"), Some(&w.other_key), None)?;
    ensure!(found == StatusCode::FORBIDDEN);
    w.delete(&name)
}

async fn post_all(w: &World, sessions: &[String]) -> anyhow::Result<Vec<(StatusCode, Value)>> {
    let posts = sessions.iter().map(|session| {
        let body = json!({"repoUrl": REPO, "sessionId": session});
        w.ask(Method::POST, "/api/sandbox", Some(&w.key), Some(body))
    });
    futures::future::try_join_all(posts).await
}

pub(crate) fn one_session_200_posts(w: &World) -> anyhow::Result<()> {
    let session = w.new_session()?;
    let name = format!("session-{session}");
    for round in 0..2 {
        for (status, reply) in w.block_on(post_all(w, &vec![session.clone(); 200]))? {
            ensure!(status == StatusCode::OK, "{status} {reply}");
        }
        let runs = w.good(Method::GET, &format!("/api/v2/sandboxes/sessions?name={name}"), None)?;
        ensure!(runs["pagination"]["count"] == round + 1, "one run each time: {runs}");
        w.stop(&name)?;
    }
    w.delete(&name)
}

pub(crate) fn fifty_sessions(w: &World) -> anyhow::Result<()> {
    let sessions = (0..50).map(|_| w.new_session()).collect::<anyhow::Result<Vec<_>>>()?;
    for (status, reply) in w.block_on(post_all(w, &sessions))? {
        ensure!(status == StatusCode::OK, "{status} {reply}");
    }
    for session in &sessions {
        let name = format!("session-{session}");
        ensure!(w.ok(&name, "git log -1 --format=%s")? == "commit 3");
        w.delete(&name)?;
    }
    eventually("all cgroups are gone", Duration::from_secs(20), || {
        Ok(crate::world::cgroups(w.instance).is_empty())
    })
}

/// What a field of a session holds (session contract, section 10); `null` where a word ends in `?`.
const SESSION_FIELDS: &[(&str, &str)] = &[
    ("id", "text"),
    ("userId", "text"),
    ("title", "text"),
    ("status", "text"),
    ("repoOwner", "text?"),
    ("repoName", "text?"),
    ("branch", "text?"),
    ("cloneUrl", "text?"),
    ("isNewBranch", "flag"),
    ("organizationId", "text?"),
    ("sandboxState", "state"),
    ("lifecycleState", "text"),
    ("lifecycleVersion", "number"),
    ("lastActivityAt", "time?"),
    ("sandboxExpiresAt", "time?"),
    ("hibernateAfter", "time?"),
    ("lifecycleRunId", "text?"),
    ("lifecycleError", "text?"),
    ("linesAdded", "number?"),
    ("linesRemoved", "number?"),
    ("snapshotUrl", "text?"),
    ("snapshotCreatedAt", "time?"),
    ("snapshotSizeBytes", "number?"),
    ("createdAt", "time"),
    ("updatedAt", "time"),
];

fn is_iso(value: &Value) -> bool {
    // 2026-01-02T03:04:05.678Z
    let shape = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        19 => byte == b'.',
        23 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    value.as_str().is_some_and(|text| text.len() == 24 && text.bytes().enumerate().all(shape))
}

fn check_session(session: &Value) -> anyhow::Result<()> {
    for (name, kind) in SESSION_FIELDS {
        let value = session.get(name).with_context(|| format!("{name} is missing: {session}"))?;
        let (kind, optional) = kind.strip_suffix('?').map_or((*kind, false), |kind| (kind, true));
        let right = match kind {
            "text" => value.is_string(),
            "flag" => value.is_boolean(),
            "number" => value.is_i64(),
            "time" => is_iso(value),
            _ => value["type"] == "vercel",
        };
        ensure!(right || optional && value.is_null(), "{name} is no {kind}: {value}");
    }
    Ok(())
}

/// In each state, and by every way to get one; what clients send is taken.
pub(crate) fn sessions_have_the_fields_of_the_contract(w: &World) -> anyhow::Result<()> {
    let body = json!({
        "title": "Fields", "repoOwner": "acme", "repoName": "widgets", "branch": "main",
        "cloneUrl": REPO, "isNewBranch": false, "sandboxType": "vercel",
    });
    let made = w.good(Method::POST, "/api/sessions", Some(body))?["session"].clone();
    check_session(&made)?;
    ensure!(
        made["repoOwner"] == "acme" && made["repoName"] == "widgets" && made["branch"] == "main",
        "{made}"
    );
    let id = made["id"].as_str().context("id")?;
    let path = format!("/api/sessions/{id}");
    w.post(id)?;
    let active = w.good(Method::GET, &path, None)?["session"].clone();
    check_session(&active)?;
    ensure!(
        is_iso(&active["sandboxExpiresAt"])
            && active["sandboxState"]["sandboxName"] == format!("session-{id}"),
        "{active}"
    );
    let unchanged = w.good(Method::PATCH, &path, Some(json!({})))?["session"].clone();
    ensure!(unchanged["updatedAt"] == active["updatedAt"], "PATCH {{}} changed it: {unchanged}");
    w.good(Method::POST, "/api/sandbox/snapshot", Some(json!({"sessionId": id})))?;
    let asleep = w.good(Method::GET, &path, None)?["session"].clone();
    check_session(&asleep)?;
    ensure!(asleep["lifecycleState"] == "hibernated", "{asleep}");
    let listed = w.good(Method::GET, "/api/sessions", None)?;
    for session in listed["sessions"].as_array().context("sessions")? {
        check_session(session)?;
    }
    // Without a content type, as some clients send it.
    let request = w.http.post(format!("{}/api/sessions", w.base)).header("x-api-key", &w.key);
    let answer = w.block_on(async { request.body(r#"{"title": "Bare"}"#).send().await?.text().await })?;
    let bare: Value = serde_json::from_str(&answer)?;
    check_session(&bare["session"])?;
    ensure!(bare["session"]["title"] == "Bare", "{bare}");
    for (body, field) in [(json!({"sandboxType": "docker"}), "sandboxType"), (json!({"title": 5}), "title")] {
        let (status, reply) = w.call(Method::POST, "/api/sessions", Some(&w.key), Some(body))?;
        let named = reply.to_string().contains(field);
        ensure!(status == StatusCode::BAD_REQUEST && named, "{field}: {status} {reply}");
    }
    // Organizations are checked: one that the caller is no member of is not theirs to name.
    let body = json!({"organizationId": "org_019a21a2cc4b7d2b8a0edeb3dfbf2d4f"});
    let (status, reply) = w.call(Method::POST, "/api/sessions", Some(&w.key), Some(body))?;
    ensure!(
        [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST].contains(&status),
        "{status} {reply}"
    );
    let put = w.good(Method::PUT, "/api/sandbox/snapshot", Some(json!({"sessionId": id})))?;
    ensure!(put["sandboxId"].is_string(), "{put}");
    let ports = w.good(Method::GET, &format!("/api/v2/sandboxes/session-{id}"), None)?;
    let routes =
        ports["routes"].as_array().or(ports["sandbox"]["routes"].as_array()).cloned().unwrap_or_default();
    let found: Vec<_> = routes.iter().filter_map(|route| route["port"].as_u64()).collect();
    ensure!(found == [3000, 4321, 5173, 8000], "{ports}");
    for id in [id, bare["session"]["id"].as_str().context("id")?] {
        w.good(Method::DELETE, &format!("/api/sessions/{id}"), None)?;
    }
    Ok(())
}
