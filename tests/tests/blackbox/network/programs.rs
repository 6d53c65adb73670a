//! Programs that people run, and a host behind a proxy.

use super::*;

/// Real programs: package managers through an allow list, and refused without; gRPC;
/// a GiB each way.
pub(crate) fn programs(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    let run = make(w, "net-prog", json!({"mode": "allow-all"}))?;
    // Which hosts they ask, in their own words.
    let asks = "npm config get registry
        python3 -c 'from pip._internal.models.index import PyPI; print(PyPI.url); print(\"https://\" + PyPI.file_storage_domain)'
        grep -rhoE 'https?://[^ /]+' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | sort -u";
    let hosts: Vec<String> = w
        .ok("net-prog", asks)?
        .lines()
        .filter_map(|url| Some(url.split_once("://")?.1.split(['/', ':']).next()?.to_owned()))
        .collect();
    ensure!(hosts.len() >= 4, "{hosts:?}");
    let npm = "cd /tmp && rm -rf n && mkdir n && cd n && npm install --no-audit --no-fund --fetch-retries=0 is-odd 2>&1 && node -e 'require(\"is-odd\")'";
    let pip =
        "rm -rf /tmp/g && python3 -m pip install --quiet --no-input --retries 0 --target /tmp/g grpcio 2>&1";
    let apt = "apt-get update -qq -o Acquire::Retries=0 -o APT::Update::Error-Mode=any 2>&1 && cd /tmp && apt-get download -qq hello 2>&1 && ls hello_*.deb";
    // A header of the policy, so that TLS ends at the proxy, which verifies the registry
    // with the authorities of the host.
    let rule = json!([{"transform": [{"headers": {"x-through": "the proxy"}}]}]);
    let mut allow = serde_json::Map::new();
    for host in &hosts {
        allow.insert(host.clone(), rule.clone());
    }
    for host in ["api.test", "other.test"] {
        allow.insert(host.to_owned(), if host == "api.test" { rule.clone() } else { json!([]) });
    }
    set_policy(w, &run, json!({ "allow": allow }))?;
    for (name, sudo, script) in [("npm", false, npm), ("pip", false, pip), ("apt", true, apt)] {
        let (code, out, err) =
            if sudo { w.root_shell("net-prog", script)? } else { w.shell("net-prog", script)? };
        ensure!(code == 0, "{name} through the proxy: {code} {out}{err}");
    }
    // gRPC over HTTP/2, with its status in trailers.
    let grpc = "import sys; sys.path.insert(0, '/tmp/g')
import grpc
channel = grpc.secure_channel('api.test:443', grpc.ssl_channel_credentials())
say = channel.unary_unary('/test.Echo/Say', request_serializer=lambda b: b, response_deserializer=lambda b: b)
print(say(b'hello', timeout=20).decode())";
    ensure!(python(w, "net-prog", grpc)? == "hello");
    // A GiB each way, spliced and request by request.
    const GIB: &str = "1073741824";
    for host in ["other.test", "api.test"] {
        for (what, script) in [
            ("down", format!("curl -sSk https://{host}/bytes/{GIB} | wc -c")),
            ("up", format!("head -c {GIB} /dev/zero | curl -sSkT - https://{host}/count")),
        ] {
            let began = Instant::now();
            ensure!(w.ok("net-prog", &script)? == GIB, "{host} {what}");
            eprintln!("      1 GiB {what}, {host}: {:.1} s", began.elapsed().as_secs_f32());
        }
    }
    let counted = access(w, "net-prog")?;
    let counts = |name: &str| counted[name].as_u64().unwrap_or(0);
    ensure!(counts("sent") > 2 << 30 && counts("received") > 2 << 30, "{}", counts("sent"));
    // In the protocol's words, also once the session has ended.
    let transfer = || {
        Ok::<_, anyhow::Error>(
            w.good(Method::GET, &format!("{SANDBOXES}/sessions/{run}"), None)?["session"]["networkTransfer"]
                .clone(),
        )
    };
    let during = transfer()?;
    ensure!(
        during["egress"].as_u64() >= Some(2 << 30) && during["ingress"].as_u64() >= Some(2 << 30),
        "{during}"
    );
    // A server that ends leaves what it counted to the next one.
    w.end_server("-TERM")?;
    w.serve()?;
    let later = transfer()?;
    ensure!(
        later["egress"].as_u64() >= during["egress"].as_u64()
            && later["ingress"].as_u64() >= during["ingress"].as_u64(),
        "{during} became {later} with the next server"
    );
    // Without the list nothing is installed, and that is said at once.
    set_policy(w, &run, json!({"allow": ["api.test"]}))?;
    for (name, sudo, script) in [("npm", false, npm), ("pip", false, pip), ("apt", true, apt)] {
        let began = Instant::now();
        let cached = script.replace("npm install", "npm install --prefer-online --cache /tmp/none");
        let cached = cached.replace("pip install", "pip install --no-cache-dir");
        let (code, out, _) =
            if sudo { w.root_shell("net-prog", &cached)? } else { w.shell("net-prog", &cached)? };
        ensure!(code != 0, "{name} without the list: {out}");
        ensure!(began.elapsed() < Duration::from_secs(60), "{name} took {:?} to fail", began.elapsed());
    }
    w.stop("net-prog")?;
    let after = transfer()?;
    ensure!(after["egress"].as_u64() >= during["egress"].as_u64(), "{during} became {after}");
    drop(outside);
    w.delete("net-prog")
}

/// With `network.proxy` everything goes through it, by name where there is one, and the
/// same rules hold before it is asked.
pub(crate) fn proxied(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    let asked = Arc::new(Mutex::new(Vec::<String>::new()));
    let listener = w.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let url = format!("http://me:pass@{}", listener.local_addr()?);
    let record = asked.clone();
    let proxy = w.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let record = record.clone();
            tokio::spawn(async move {
                // It is a test's: whatever fails, its client notices.
                let _ = connect_for(stream, &record).await;
            });
        }
    });
    let asked = || std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    w.end_server("-TERM")?;
    w.serve_with(&[("DORMOUSE_NETWORK__PROXY", &url)])?;
    let run = make(w, "net-proxy", json!({"mode": "allow-all"}))?;
    // A name that nobody resolves here.
    outside.questions();
    ensure!(status(w, "net-proxy", "-k https://only-there.test/")? == "200");
    ensure!(status(w, "net-proxy", "http://only-there.test/")? == "200");
    ensure!(status(w, "net-proxy", &format!("http://{API}/"))? == "200");
    let seen = asked();
    ensure!(seen == ["only-there.test:443", "only-there.test:80", &format!("{API}:80")], "{seen:?}");
    ensure!(outside.questions().is_empty(), "names were resolved here");
    // What is refused is refused before.
    let private = [("tcp", "10.0.0.1".to_owned(), 80), ("tcp", "169.254.169.254".to_owned(), 80)];
    refused(w, "net-proxy", &private, &["EHOSTUNREACH"])?;
    // By name, and with a header.
    let rule = json!([{"transform": [{"headers": {"authorization": "Bearer s3cret-s3cret"}}]}]);
    set_policy(w, &run, json!({"allow": {"api.test": rule, "only-there.test": []}}))?;
    outside.requests();
    ensure!(status(w, "net-proxy", "https://api.test/headers")? == "200");
    ensure!(outside.requests()[0].header("authorization") == "Bearer s3cret-s3cret");
    ensure!(status(w, "net-proxy", "-k https://only-there.test/")? == "200");
    asked();
    ensure!(status(w, "net-proxy", "-k https://other.test/")?.contains("exit"));
    ensure!(asked().is_empty(), "the proxy was asked for what is not allowed");
    // A proxy that is gone is an error at once.
    proxy.abort();
    let gone = status(w, "net-proxy", "-k https://only-there.test/")?;
    ensure!(gone.contains("exit 7"), "{gone}");
    w.delete("net-proxy")?;
    w.end_server("-TERM")?;
    w.serve()
}

/// One CONNECT of an HTTP proxy; every name is at one address.
async fn connect_for(mut stream: tokio::net::TcpStream, record: &Mutex<Vec<String>>) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    // me:pass
    if !head.starts_with("CONNECT ") || !head.contains("Basic bWU6cGFzcw==") {
        return stream.write_all(b"HTTP/1.1 407 no\r\n\r\n").await;
    }
    let port: u16 = target.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
    record.lock().unwrap_or_else(PoisonError::into_inner).push(target);
    let mut there = tokio::net::TcpStream::connect((API, port)).await?;
    stream.write_all(b"HTTP/1.1 200 ok\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut there).await.map(drop)
}
