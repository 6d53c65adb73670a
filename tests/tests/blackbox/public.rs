//! An address that the host takes for a public one: a network namespace of the
//! test's own, behind a link of its own, with a file server in it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::world::eventually;

/// Nobody of ours uses it, and no packet to it leaves the host.
pub(crate) const ADDRESS: &str = "45.66.77.88";

const NAMESPACE: &str = "dormouse-test-public";

/// `http.server` itself would ask a resolver for its own name first.
const SERVE: &str = "\
import http.server, socketserver, sys
socketserver.ThreadingTCPServer((sys.argv[1], 80), http.server.SimpleHTTPRequestHandler).serve_forever()
";

pub(crate) struct PublicServer {
    server: Option<Child>,
    files: PathBuf,
}

fn ip(args: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args.split(' ')).stdin(Stdio::null()).output().context("run ip")?;
    ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

impl PublicServer {
    /// Serves the files of a directory on port 80.
    pub(crate) fn start(files: &Path) -> anyhow::Result<Self> {
        // What a killed run of the tests left.
        let _ = ip(&format!("netns del {NAMESPACE}"));
        let _ = ip("link del dm-test-pub");
        std::fs::create_dir_all(files)?;
        let mut server = Self { server: None, files: files.to_owned() };
        ip(&format!("netns add {NAMESPACE}"))?;
        ip(&format!("link add dm-test-pub type veth peer name inside netns {NAMESPACE}"))?;
        ip("addr add 169.254.77.1/30 dev dm-test-pub")?;
        ip("link set dm-test-pub up")?;
        ip(&format!("-n {NAMESPACE} link set lo up"))?;
        ip(&format!("-n {NAMESPACE} addr add 169.254.77.2/30 dev inside"))?;
        ip(&format!("-n {NAMESPACE} addr add {ADDRESS}/32 dev lo"))?;
        ip(&format!("-n {NAMESPACE} link set inside up"))?;
        ip(&format!("-n {NAMESPACE} route add default via 169.254.77.1"))?;
        ip(&format!("route add {ADDRESS}/32 via 169.254.77.2 dev dm-test-pub"))?;
        let child = Command::new("ip")
            .args(["netns", "exec", NAMESPACE, "python3", "-c", SERVE, ADDRESS])
            .current_dir(&server.files)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        server.server = Some(child);
        eventually("the public server answers", Duration::from_secs(10), || {
            Ok(std::net::TcpStream::connect((ADDRESS, 80)).is_ok())
        })?;
        Ok(server)
    }
}

impl Drop for PublicServer {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            // Nothing is left to be told.
            let _ = server.kill();
            let _ = server.wait();
        }
        for args in [
            format!("route del {ADDRESS}/32"),
            format!("netns del {NAMESPACE}"),
            "link del dm-test-pub".into(),
        ] {
            // The link goes with its namespace, mostly.
            let _ = ip(&args);
        }
    }
}
