//! Attacks 61 to 73: addresses, protocols and connections, and policies that change.

use super::*;

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
    // Somebody listens on an address of this host, in a network that the operator allows.
    let here = std::net::TcpListener::bind((HOST, 0))?;
    std::net::TcpStream::connect(here.local_addr()?).context("the control: it is reached from here")?;
    here.accept()?;
    here.set_nonblocking(true)?;
    refused(w, "net-open", &[tcp(&HOST.to_string(), here.local_addr()?.port())], &["EHOSTUNREACH"])?;
    ensure!(here.accept().is_err(), "a sandbox reached this host");
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
    let changes = "import errno, fcntl, socket
s = socket.socket()
def ioctl(number, rest): fcntl.ioctl(s, number, b'eth0'.ljust(16, b'\\0') + rest.ljust(104, b'\\0'))
inet = b'\\x02\\x00\\x00\\x00' + bytes([10, 99, 0, 1])
tried = {
    'read flags': lambda: ioctl(0x8913, b''),
    'down': lambda: ioctl(0x8914, b''),
    'address': lambda: ioctl(0x8916, inet),
    'mtu': lambda: ioctl(0x8922, b'\\xdc\\x05'),
    'hardware address': lambda: ioctl(0x8924, b'\\x01\\x00' + bytes(6)),
    'route': lambda: fcntl.ioctl(s, 0x890b, bytes(8) + inet.ljust(112, b'\\0')),
    'packets': lambda: socket.socket(17, 3, 0x300),
    'raw': lambda: socket.socket(2, 3, 255),
    'filter': lambda: socket.socket(16, 3, 12),
}
for name, change in tried.items():
    try: change(); said = 'ok'
    except OSError as error: said = errno.errorcode[error.errno]
    print(name, said, sep='=')";
    let (_, said, err) = w.exec("net-open", &["--sudo"], &["python3", "-c", changes])?;
    let outcomes: Vec<&str> = said.lines().collect();
    ensure!(outcomes.first() == Some(&"read flags=ok") && outcomes.len() == 9, "{said}{err}");
    for outcome in &outcomes[1..6] {
        ensure!(outcome.ends_with("=EPERM"), "{outcome}");
    }
    for outcome in &outcomes[6..] {
        let refused = ["=EPERM", "=EAFNOSUPPORT", "=EPROTONOSUPPORT", "=EACCES"];
        ensure!(refused.iter().any(|errno| outcome.ends_with(errno)), "{outcome}");
    }
    // The link is for its own address alone (65): a question in a neighbour's name is
    // nobody's. As root of the host, since nobody inside can send it.
    let spoof = "import socket, struct, sys
source, target, name = sys.argv[1:]
query = struct.pack('>HHHHHH', 7, 256, 1, 0, 0, 0) + b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\\0' + struct.pack('>HH', 1, 1)
udp = struct.pack('>HHHH', 5353, 53, 8 + len(query), 0) + query
ip = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
s.sendto(ip + udp, (target, 0))";
    let pid = crate::lifecycle::first_process(w.instance, &w.run("net-open")?)?;
    let send = |source: &str, name: &str| {
        let args = ["-t", &pid, "-n", "python3", "-c", spoof, source, &server, name];
        let sent = std::process::Command::new("nsenter").args(args).output()?;
        ensure!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        Ok(())
    };
    outside.questions();
    send(&neighbour, "spoofed.test")?;
    send("203.0.113.9", "spoofed-too.test")?;
    send(&own, "own.test")?;
    let mut asked = Vec::new();
    eventually("the control: its own question arrives", Duration::from_secs(5), || {
        asked.extend(outside.questions());
        Ok(asked.iter().any(|name| name.starts_with("own.test")))
    })?;
    ensure!(!asked.iter().any(|name| name.contains("spoofed")), "{asked:?}");
    // Why, for whoever runs it.
    let seen = access(w, "net-open")?;
    let reasons: Vec<&str> =
        seen["recent"].as_array().into_iter().flatten().filter_map(|line| line["denied"].as_str()).collect();
    for reason in ["metadata", "private", "protocol", "operator", "no-unicast", "host"] {
        ensure!(reasons.contains(&reason), "{reason}: {reasons:?}");
    }
    ensure!(w.log().contains("metadata"), "the log does not say which rule");
    let metrics = w.call(Method::GET, "/metrics", None, None)?.1;
    let metrics = metrics.as_str().unwrap_or_default();
    ensure!(metrics.contains("dormouse_network_denied_total{rule=\"metadata\"}"), "{metrics}");
    ensure!(metrics.contains("dormouse_sandbox_sent_bytes_total{sandbox=\"box_"), "{metrics}");
    ensure!(!metrics.contains("{rule=\"metadata\"} 0\n"), "{metrics}");
    for name in ["net-open", "net-names", "net-shut", "net-other"] {
        w.delete(name)?;
    }
    Ok(())
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
    make(w, "net-cut", rules)?;
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

/// Opens connections in `net-change`, has `change` happen, and tells which of them answer.
fn over_a_change(w: &World, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<String> {
    let hold = "import http.client, socket, ssl, sys
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
def tls(h):
    return c.wrap_socket(socket.create_connection((h, 443), 5), server_hostname=h)
def ws(h):
    s = socket.create_connection((h, 80), 5)
    s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: ' + h.encode() + b'\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')
    head = b''
    while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)
    assert b' 101 ' in head, head
    return s
def alive(h, kind, s):
    try:
        s.settimeout(3)
        if kind == 'ws':
            s.sendall(bytes([0x81, 0x82, 0, 0, 0, 0]) + b'hi'); return b'hi' in s.recv(100)
        s.sendall(b'GET / HTTP/1.1\\r\\nHost: ' + h.encode() + b'\\r\\n\\r\\n')
        answer = http.client.HTTPResponse(s); answer.begin(); answer.read(); return answer.status == 200
    except (OSError, http.client.HTTPException): return False
held = [(h, k.__name__, k(h)) for h in ('api.test', 'other.test') for k in (tls, ws)]
for one in held: assert alive(*one), one
print('open', flush=True)
sys.stdin.readline()
# A connection that was reset leaves its error to OpenSSL's next one: those last.
found = {(h, k): alive(h, k, s) for h, k, s in sorted(held, key=lambda one: one[0] == 'api.test')}
print(*('%s:%s=%s' % (h, k, found[h, k]) for h, k, s in held), flush=True)";
    let mut child = w
        .command(&["sandbox", "exec", "net-change", "-i", "--", "python3", "-c", hold])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut output = std::io::BufReader::new(child.stdout.take().context("stdout")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    ensure!(line == "open\n", "{line}");
    change()?;
    std::thread::sleep(Duration::from_millis(300));
    std::io::Write::write_all(child.stdin.as_mut().context("stdin")?, b"\n")?;
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    child.wait()?;
    Ok(line.trim().to_owned())
}

/// Attacks 71 and 72: a change is in force at once, in every run from its first
/// instruction on, and without a server nothing is let out.
pub(crate) fn policies_change(w: &World) -> anyhow::Result<()> {
    let outside = outside(w)?;
    let run = make(w, "net-change", json!({"allow": ["api.test", "other.test"]}))?;
    // Connections to two hosts, with TLS and as WebSockets without: one host is forbidden
    // by a change, from each kind of policy to another.
    let rule = json!([{"transform": [{"headers": {"x-added": "s3cret-s3cret"}}]}]);
    let everywhere = json!({"allow": ["api.test", "other.test"]});
    let there = json!({"allow": ["other.test"]});
    let by_rule = json!({"allow": {"api.test": rule, "other.test": rule}});
    let all_but = json!({"allow": ["*"], "subnets": {"deny": [format!("{API}/32")]}});
    for (from, to) in [
        (&json!({"mode": "allow-all"}), &there),
        (&by_rule, &json!({"allow": {"other.test": rule}})),
        (&by_rule, &all_but),
        (&json!({"mode": "allow-all"}), &all_but),
        (&everywhere, &there),
    ] {
        set_policy(w, &run, from.clone())?;
        let stayed = over_a_change(w, || set_policy(w, &run, to.clone()).map(drop))?;
        let expected = "api.test:tls=False api.test:ws=False other.test:tls=True other.test:ws=True";
        ensure!(stayed == expected, "from {from} to {to}: {stayed}");
    }
    ensure!(status(w, "net-change", "-k https://api.test/")?.contains("exit"), "new ones are let out");
    ensure!(status(w, "net-change", "-k https://other.test/")? == "200");
    // The next run has it before anything runs in it.
    w.stop("net-change")?;
    outside.requests();
    ensure!(status(w, "net-change", "-k https://api.test/")?.contains("exit"));
    ensure!(status(w, "net-change", "-k https://other.test/")? == "200");
    ensure!(outside.requests().iter().all(|request| request.host == "other.test"));
    // So has the next server, for a run that goes on.
    w.end_server("-KILL")?;
    w.serve()?;
    ensure!(status(w, "net-change", "-k https://api.test/")?.contains("exit"), "let out by the next server");
    ensure!(status(w, "net-change", "-k https://other.test/")? == "200");
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
    let seconds = || dormouse_jobs::Clock::system().now().as_millis() as f64 / 1000.0;
    let down = seconds();
    std::thread::sleep(Duration::from_secs(3));
    let up = seconds();
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
