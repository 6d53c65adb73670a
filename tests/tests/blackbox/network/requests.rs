//! Attacks 84 to 88: requests, and all rules of the wire.

use super::*;

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
    make(w, "net-req", policy)?;
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
        ensure!(said.starts_with("HTTP/1.1 4"), "{raw}: {said}");
        let arrived = outside.requests();
        ensure!(arrived.is_empty(), "{raw}: {arrived:?}");
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
    // From a host with a secret it goes without, and tunnels are none (87).
    get("-k --location https://api.test/redirect/other.test/headers")?;
    let arrived = outside.requests();
    ensure!(arrived.len() == 2 && arrived[1].header("authorization").is_empty(), "{arrived:?}");
    for raw in [
        "CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test:443\\r\\n\\r\\n",
        "CONNECT other.test:443 HTTP/1.1\\r\\nHost: other.test:443\\r\\n\\r\\n",
    ] {
        ensure!(says(w, "net-req", raw)?.starts_with("HTTP/1.1 4"), "{raw}");
    }
    // A certificate that is not for its name is none.
    make(
        w,
        "net-cert",
        json!({"allow": {"alias.test": [{"transform": [{"headers": {"x-added": "s3cret-s3cret"}}]}]}}),
    )?;
    let said = curl(w, "net-cert", "--include https://alias.test/")?;
    ensure!(said.contains("502") && said.contains("x-dormouse-denied: certificate"), "{said}");
    ensure!(outside.requests().is_empty(), "something was sent to whoever it was");
    w.delete("net-cert")?;
    // Without TLS no secret goes out (92).
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
    // A reflected secret cannot be fetched in parts.
    outside.requests();
    get("-H 'Range: bytes=0-3' https://api.test/headers")?;
    ensure!(
        outside.requests().iter().all(|request| request.header("range").is_empty()),
        "a part was asked for"
    );
    let sent = || Ok::<_, anyhow::Error>(access(w, "net-req")?["sent"].as_u64().unwrap_or(0));
    let before = sent()?;
    ensure!(websocket(w, "net-req")? == "echoed");
    // Its frame: head, mask and six letters.
    eventually("the frame is counted", Duration::from_secs(5), || Ok(sent()? == before + 12))?;
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
