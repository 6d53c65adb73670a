//! What many rows cost: status and activity calls, and a server that nobody
//! asks anything, with few rows and with many, on both databases.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dormouse_jobs::Clock;
use dormouse_store::testing::{Fill, Postgres};
use dormouse_store::{Address, Db};

use crate::timing::timed;

const LISTEN: &str = "127.0.0.1:7713";

/// Calls of each kind.
const CALLS: usize = 4000;

/// How long a server is watched that nobody asks anything.
const IDLE: Duration = Duration::from_secs(30);

/// Sessions and sandboxes.
const FEW: (i64, i64) = (100, 20);
const MANY: (i64, i64) = (1_000_000, 200_000);

struct Server<'a> {
    data: &'a Path,
    database: Option<&'a str>,
}

impl Server<'_> {
    fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?.with_file_name("dormouse"));
        command
            .args(args)
            .env("DORMOUSE_DATA_DIR", self.data)
            .env("DORMOUSE_INSTANCE", "13")
            .env("DORMOUSE_LISTEN", LISTEN)
            .env("DORMOUSE_LOG", "error")
            .env("DORMOUSE_STORAGE__DRIVER", "plain")
            .stdin(Stdio::null());
        if let Some(url) = self.database {
            command.env("DORMOUSE_DATABASE_URL", url);
        }
        Ok(command)
    }

    fn text(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args)?.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// Measures both databases, in `dir`.
pub(crate) async fn measure(dir: &Path) -> anyhow::Result<()> {
    for (name, shared) in [("SQLite", false), ("Postgres", true)] {
        for (sessions, sandboxes) in [FEW, MANY] {
            let data = dir.join(format!("rows-{name}-{sessions}"));
            let url = shared.then(|| Postgres::shared().database());
            let server = Server { data: &data, database: url.as_deref() };
            let account = server.text(&["account", "create", "Rows"])?;
            let key = server.text(&["key", "create", "--account", &account])?;
            server.text(&["image", "list"])?;
            let address: Address = match &url {
                Some(url) => url.parse()?,
                None => Address::Sqlite(data.join("dormouse.db")),
            };
            let db = Db::open(&address).await?;
            let host = dormouse_node::host_id(&data)?;
            let now = Clock::system().now().as_millis();
            let (account, host) = (&*account, host.as_str());
            Fill { account, host, sessions, sandboxes, now }.put_in(&db).await?;
            db.close().await;
            let mut child = server.command(&["serve"])?.spawn().context("start the server")?;
            let measured = calls(&format!("{name}, {sessions} sessions"), &key, sessions, &child).await;
            Command::new("kill").arg(child.id().to_string()).status()?;
            child.wait()?;
            ensure!(server.command(&["evacuate"])?.status()?.success(), "evacuate");
            measured?;
            std::fs::remove_dir_all(&data)?;
        }
    }
    Ok(())
}

async fn calls(name: &str, key: &str, sessions: i64, child: &Child) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
    let base = format!("http://{LISTEN}");
    let began = Instant::now();
    while http.get(format!("{base}/healthz")).send().await.is_err() {
        ensure!(began.elapsed() < Duration::from_secs(60), "the server does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{name}: answers after {:.2} s", began.elapsed().as_secs_f64());
    // Active ones, all over the table.
    let session = |n: usize| {
        let n = i64::try_from(n).unwrap_or(0).wrapping_mul(7919) % (sessions / 10);
        format!("ses_fill{}", (n + 1) * 10)
    };
    timed(&format!("{name}: status"), 1, CALLS, async |n| {
        let path = format!("{base}/api/sandbox/status?sessionId={}", session(n));
        ensure!(http.get(path).header("x-api-key", key).send().await?.status().is_success(), "status");
        Ok(())
    })
    .await?;
    timed(&format!("{name}: activity"), 1, CALLS, async |n| {
        let body = serde_json::json!({"sessionId": session(n)});
        let call = http.post(format!("{base}/api/sandbox/activity")).header("x-api-key", key).json(&body);
        ensure!(call.send().await?.status().is_success(), "activity");
        Ok(())
    })
    .await?;
    // What was begun by the start and by the calls is over by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = processor_time(child.id())?;
    tokio::time::sleep(IDLE).await;
    let used = processor_time(child.id())? - before;
    let share = used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!("{name}: idle, {share:.2} % of one core");
    Ok(())
}

/// User and system time of a process (`proc(5)`, fields 14 and 15 of `stat`).
fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("stat")?.1.split_whitespace().skip(11).take(2).collect();
    let ticks: u64 = fields.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    // A tick is a hundredth of a second (`USER_HZ`).
    Ok(Duration::from_millis(ticks * 10))
}
