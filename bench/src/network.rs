//! The network of a sandbox beside a plain veth and beside HAProxy, in one run: the same
//! client and the same server, with our proxy, another, or none between them.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dormouse_control::{Control, ControlConfig};
use dormouse_egress::{AuthoritySecret, EgressConfig, Ground};
use dormouse_node::{ImageSource, Images, Node, NodeConfig, Recipe, host_id};
use dormouse_provider::{
    Action, CommandSpec, CreateSandbox, CustomPolicy, DomainPolicy, LogEvent, NetworkPolicy, Rule, RunRef,
    SandboxProvider,
};
use dormouse_store::Db;
use dormouse_tests::outside::{API, Outside, RESOLVER, SERVICE_TOKEN};
use dormouse_types::CommandId;
use futures::StreamExt as _;
use tokio::process::Command;

use crate::timing::{ratio, show};

/// What a client does; it prints seconds, one a line, and then bytes a second.
const CLIENT: &str = r#"
import http.client, socket, ssl, sys, time
host, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl._create_unverified_context()
def connection():
    c = http.client.HTTPSConnection(name, port, context=context)
    c._create_connection = lambda *a, **k: socket.create_connection((host, port), 10)
    return c
def ask(c, path="/"):
    c.request("GET", path, headers={"Host": name})
    return c.getresponse().read()
for i in range(200):
    began = time.perf_counter(); c = connection(); ask(c); c.close()
    print("new", time.perf_counter() - began)
c = connection(); ask(c)
for i in range(1000):
    began = time.perf_counter(); ask(c)
    print("kept", time.perf_counter() - began)
size = 512 << 20
for i in range(3):
    c = connection(); c.request("GET", "/bytes/%d" % size, headers={"Host": name})
    r = c.getresponse(); began = time.perf_counter(); got = 0
    buffer = bytearray(1 << 20)
    while n := r.readinto(buffer): got += n
    assert got == size
    print("rate", size / (time.perf_counter() - began))
"#;

/// A bare clone of a private repository.
const CLONE: &str = "for i in 1 2 3 4 5 6 7 8 9; do rm -rf /tmp/c; s=$(date +%s.%N); \
    git -c http.sslVerify=false $AUTH clone -q --depth 1 https://github.com/private/dormouse /tmp/c || exit 1; \
    e=$(date +%s.%N); echo clone $(echo \"$e - $s\" | python3 -c 'print(eval(input()))'); done";

const PLAIN: &str = "dormouse-bench-plain";

/// What one way took.
#[derive(Debug, Default)]
struct Times {
    new: Vec<Duration>,
    kept: Vec<Duration>,
    clone: Vec<Duration>,
    /// Bytes a second.
    rates: Vec<f64>,
}

impl Times {
    fn read(text: &str) -> Self {
        let mut times = Self::default();
        for (kind, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            let Ok(value) = value.trim().parse::<f64>() else { continue };
            match kind {
                "new" => times.new.push(Duration::from_secs_f64(value)),
                "kept" => times.kept.push(Duration::from_secs_f64(value)),
                "clone" => times.clone.push(Duration::from_secs_f64(value)),
                "rate" => times.rates.push(value),
                _ => {}
            }
        }
        times.rates.sort_by(f64::total_cmp);
        times
    }

    fn rate(&self) -> f64 {
        self.rates.get(self.rates.len() / 2).copied().unwrap_or_default()
    }
}

/// Ends a program when it is dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace with a link to the outside and one to this host.
struct Plain;

impl Drop for Plain {
    fn drop(&mut self) {
        // Its links go with it.
        let _ = std::process::Command::new("ip").args(["netns", "del", PLAIN]).status();
    }
}

async fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), words.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Plain {
    async fn make() -> anyhow::Result<Self> {
        let outside = "dormouse-test-outside";
        for args in [
            format!("netns add {PLAIN}"),
            format!("link add direct netns {PLAIN} type veth peer name plain netns {outside}"),
            format!("-n {outside} addr add 169.254.79.1/30 dev plain"),
            format!("-n {outside} link set plain up"),
            format!("-n {PLAIN} addr add 169.254.79.2/30 dev direct"),
            format!("-n {PLAIN} link set direct up"),
            format!("-n {PLAIN} link set lo up"),
            format!("-n {PLAIN} route add 198.51.100.0/24 via 169.254.79.1"),
            format!("link add dm-bench-host type veth peer name host netns {PLAIN}"),
            "addr add 169.254.80.1/30 dev dm-bench-host".to_owned(),
            "link set dm-bench-host up".to_owned(),
            format!("-n {PLAIN} addr add 169.254.80.2/30 dev host"),
            format!("-n {PLAIN} link set host up"),
        ] {
            run("ip", &args.split(' ').collect::<Vec<_>>()).await?;
        }
        Ok(Self)
    }

    async fn client(host: &str, port: u16, name: &str) -> anyhow::Result<Times> {
        let port = port.to_string();
        let args = ["netns", "exec", PLAIN, "python3", "-c", CLIENT, host, &port, name];
        Ok(Times::read(&run("ip", &args).await?))
    }
}

async fn inside(engine: &Control, sandbox: &RunRef, argv: Vec<String>) -> anyhow::Result<Times> {
    let mut events = engine.exec(sandbox, CommandId::generate(), CommandSpec::new(argv)).await?;
    let (mut out, mut code) = (Vec::new(), None);
    while let Some(event) = events.next().await {
        match event? {
            LogEvent::Stdout(data) => out.extend_from_slice(&data),
            LogEvent::Stderr(data) => eprint!("{}", String::from_utf8_lossy(&data)),
            LogEvent::Exited(command) => code = command.exit_code,
            _ => {}
        }
    }
    ensure!(code == Some(0), "a client inside ended with {code:?}");
    Ok(Times::read(&String::from_utf8_lossy(&out)))
}

fn policy(rules: bool) -> NetworkPolicy {
    use base64::Engine as _;
    let header = |value: String| {
        let headers = std::collections::BTreeMap::from([("authorization".to_owned(), Some(value))]);
        vec![Rule { matches: None, action: Action::SetHeaders(headers) }]
    };
    let pair = base64::prelude::BASE64_STANDARD.encode(format!("x-access-token:{SERVICE_TOKEN}"));
    let domain = |domain: &str, rules| DomainPolicy { domain: domain.to_owned(), rules };
    let own = if rules { header("Bearer s3cret-s3cret".to_owned()) } else { Vec::new() };
    let domains = vec![domain("api.test", own), domain("github.com", header(format!("Basic {pair}")))];
    NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() })
}

/// HAProxy on this host, passing bytes on (port 8443) and ending TLS (9443).
async fn haproxy(dir: &Path) -> anyhow::Result<Peer> {
    let pem = dir.join("haproxy.pem");
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=api.test",
            "-keyout",
            &dir.join("key.pem").to_string_lossy(),
            "-out",
            &dir.join("crt.pem").to_string_lossy(),
        ],
    )
    .await?;
    let text = std::fs::read_to_string(dir.join("crt.pem"))? + &std::fs::read_to_string(dir.join("key.pem"))?;
    std::fs::write(&pem, text)?;
    let config = format!(
        "global\n nbthread 2\ndefaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen splice\n bind 169.254.80.1:8443\n mode tcp\n option splice-auto\n server s {API}:443\n\
         listen terminate\n bind 169.254.80.1:9443 ssl crt {} alpn h2,http/1.1\n mode http\n\
         http-request set-header authorization s3cret\n server s {API}:443 ssl verify none\n",
        pem.display()
    );
    let path = dir.join("haproxy.cfg");
    std::fs::write(&path, config)?;
    let child = std::process::Command::new("haproxy").arg("-f").arg(&path).stdin(Stdio::null()).spawn();
    let peer = Peer(child.context("start haproxy")?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(peer)
}

pub(crate) async fn measure(dir: &Path, git: &str) -> anyhow::Result<()> {
    networks()?;
    let outside = Outside::start(&dir.join("outside"))?;
    outside.set_git(git)?;
    let _plain = Plain::make().await?;
    let _peer = haproxy(dir).await?;
    let data = dir.join("network");
    crate::api::text(&data, git, &["image", "list"])?;
    let db = Db::open_file(&data.join("dormouse.db")).await?;
    let clock = dormouse_jobs::Clock::system();
    let cache = std::env::var("DORMOUSE_IMAGES__CACHE").map_or_else(|_| data.join("cache"), Into::into);
    let images = Images::open(crate::pool(&data), &cache, db.clone())?;
    images.build("default", ImageSource::Recipe(Recipe::DEFAULT), clock.now(), |_| {}).await?;
    drop(images);
    let (host, limits) = (host_id(&data)?, crate::limits());
    let egress = EgressConfig {
        upstream: Some(RESOLVER.parse()?),
        proxy: None,
        ground: Ground {
            allow_private: vec!["198.51.100.0/24".parse().map_err(anyhow::Error::msg)?],
            deny: Vec::new(),
        },
        mirrors: Vec::new(),
        extra_roots: Some(dir.join("outside/ca.crt")),
        secret: AuthoritySecret::new([7; 32]),
        signer: None,
    };
    let config = NodeConfig { egress, ..crate::config(&data, git, limits.clone())? };
    let node = std::sync::Arc::new(Node::start(config, db.clone(), clock.clone()).await?);
    let control = ControlConfig {
        host,
        default_image: "default".to_owned(),
        recipes: Vec::new(),
        limits,
        creation_timeout: Duration::from_secs(60),
        history: Duration::from_secs(86_400),
    };
    let engine = Control::new(db, clock, node.clone(), control);
    let sandbox = async |name: &str, network| {
        let mut request = CreateSandbox::new(crate::key(name, 0)?);
        request.network = network;
        let made = engine.create(request).await?;
        Ok::<_, anyhow::Error>(RunRef { namespace: crate::key(name, 0)?.namespace, id: made.run.id })
    };
    let client = || {
        let argv = ["python3", "-c", CLIENT, "api.test", "443", "api.test"];
        argv.map(str::to_owned).to_vec()
    };
    let clone = |auth: &str| vec!["bash".to_owned(), "-c".to_owned(), format!("AUTH=\"{auth}\"; {CLONE}")];
    let (open, spliced, ended) = (
        sandbox("open", NetworkPolicy::AllowAll).await?,
        sandbox("spliced", policy(false)).await?,
        sandbox("ended", policy(true)).await?,
    );
    let ways = [
        ("plain veth, no proxy", Plain::client(&API.to_string(), 443, "api.test").await?),
        ("direct (allow-all)", inside(&engine, &open, client()).await?),
        ("spliced (by name)", inside(&engine, &spliced, client()).await?),
        ("haproxy, TCP", Plain::client("169.254.80.1", 8443, "api.test").await?),
        ("terminated (header set)", inside(&engine, &ended, client()).await?),
        ("haproxy, TLS and header", Plain::client("169.254.80.1", 9443, "api.test").await?),
    ];
    let mut floor = None;
    for (name, times) in &ways {
        let new = show(&format!("{name}: new connection"), 1, times.new.clone());
        let kept = show(&format!("{name}: kept connection"), 1, times.kept.clone());
        println!("{:<40} {:>5} {:>10.0} MB/s", format!("{name}: 512 MiB down"), 1, times.rate() / 1e6);
        let (floor_new, floor_kept, floor_rate) = *floor.get_or_insert((new, kept, times.rate()));
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        println!(
            "{:<40} {:>5} {:>+10.2} ms new, {:>+.2} ms kept, {:.2} of its rate",
            format!("{name}: beside the veth"),
            1,
            ms(new) - ms(floor_new),
            ms(kept) - ms(floor_kept),
            times.rate() / floor_rate
        );
    }
    // A private repository, by the policy and bare.
    let ours = inside(&engine, &ended, clone("")).await?;
    use base64::Engine as _;
    let pair = base64::prelude::BASE64_STANDARD.encode(format!("x-access-token:{SERVICE_TOKEN}"));
    let script = format!(
        "P='Basic {pair}'; AUTH=\"\"; git() {{ command git -c \"http.extraHeader=Authorization: $P\" -c http.curloptResolve=github.com:443:198.51.100.40 \"$@\"; }}; {CLONE}"
    );
    let bare = Times::read(&run("ip", &["netns", "exec", PLAIN, "bash", "-c", &script]).await?);
    let ours = show("clone of a private repository, inside", 1, ours.clone);
    let bare = show("the same, bare on a veth", 1, bare.clone);
    ratio("inside / bare", 1, ours, bare);
    idle(&engine, &spliced, "spliced").await?;
    idle(&engine, &ended, "terminated").await?;
    drop(engine);
    let node = std::sync::Arc::into_inner(node).context("somebody holds the node")?;
    node.evacuate().await?;
    drop(outside);
    Ok(())
}

/// A sandbox's network, as the pool makes it.
fn networks() -> anyhow::Result<()> {
    // Not the instance of the other measurements.
    let times = dormouse_node::measure_networks(13, 50).context("make networks")?;
    let (made, gone) = times.into_iter().unzip();
    show("network of a sandbox: made", 1, made);
    show("network of a sandbox: gone, slot free", 1, gone);
    Ok(())
}

/// Memory of this process for each idle connection. It is an upper bound: the server on
/// the other side is in the same process.
async fn idle(engine: &Control, sandbox: &RunRef, name: &str) -> anyhow::Result<()> {
    const HELD: u64 = 1000;
    let script = format!(
        "import socket, ssl, sys, time
context = ssl._create_unverified_context()
held = []
for i in range({HELD}):
    s = context.wrap_socket(socket.create_connection(('api.test', 443), 10), server_hostname='api.test')
    s.sendall(b'GET / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n'); s.recv(4096); held.append(s)
print('held', flush=True); time.sleep(4)"
    );
    let before = resident()?;
    let argv = vec!["python3".to_owned(), "-c".to_owned(), script];
    let mut events = engine.exec(sandbox, CommandId::generate(), CommandSpec::new(argv)).await?;
    let mut during = None;
    while let Some(event) = events.next().await {
        match event? {
            LogEvent::Stdout(_) => during = Some(resident()?),
            LogEvent::Stderr(data) => eprint!("{}", String::from_utf8_lossy(&data)),
            _ => {}
        }
    }
    let used = during.context("the connections were not made")?.saturating_sub(before);
    println!(
        "{:<40} {:>5} {:>10.1} KiB",
        format!("idle connection, {name}, both sides"),
        HELD,
        used as f64 / HELD as f64
    );
    Ok(())
}

/// Resident memory of this process, in KiB (`proc(5)`).
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
