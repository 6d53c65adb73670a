//! A Postgres for tests and the bench: Debian's programs in a
//! temporary directory, on a Unix socket there, without a port and without
//! syncing. It goes with the process that asked for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the server may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `$0` on the cluster in `$1` until it is told to end, and removes the
/// directory. It is told so when the thread that started it ends (`prctl(2)`,
/// `PR_SET_PDEATHSIG`), and so also when the process is killed.
const KEEPER: &str = r#"
trap : TERM INT QUIT HUP
"$0" -D "$1/data" -k "$1" -c listen_addresses= -c fsync=off -c max_connections=300 \
    -c shared_buffers=256MB -c unix_socket_permissions=0777 &
wait
kill -QUIT $! 2>/dev/null
wait
cd /
rm -rf "$1"
"#;

/// A cluster that runs.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    programs: PathBuf,
}

/// The newest Postgres of Debian's packages.
fn programs() -> Result<PathBuf, String> {
    let root = Path::new("/usr/lib/postgresql");
    let mut versions: Vec<u32> = std::fs::read_dir(root)
        .map_err(|_| "there is no Postgres here: apt-get install postgresql".to_owned())?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable();
    let newest = versions.last().ok_or("there is no Postgres in /usr/lib/postgresql")?;
    if *newest < 15 {
        return Err(format!("Postgres {newest} is older than 15"));
    }
    Ok(root.join(newest.to_string()).join("bin"))
}

impl Postgres {
    /// The one of this process, started by whoever asks first.
    ///
    /// # Panics
    /// Where there is no Postgres, or it does not start: what is tested on it
    /// must not pass by being left out.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (tell, told) = std::sync::mpsc::channel();
            // The server is told to end when the thread that started it does:
            // one that lives as long as the process.
            std::thread::spawn(move || {
                let started = Self::start();
                let failed = started.is_err();
                // The other end waits for it.
                let _ = tell.send(started);
                if failed {
                    return;
                }
                loop {
                    std::thread::park();
                }
            });
            match told.recv() {
                Ok(Ok(postgres)) => postgres,
                Ok(Err(error)) => panic!("start a Postgres: {error}"),
                Err(error) => panic!("start a Postgres: {error}"),
            }
        })
    }

    fn start() -> Result<Self, String> {
        let programs = programs()?;
        let dir = PathBuf::from(format!("/tmp/dormouse-postgres-{}", std::process::id()));
        // Left by a process of the same number.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
        let owned = Command::new("chown").arg("postgres:postgres").arg(&dir).status();
        owned.map_err(|error| format!("give {} to postgres: {error}", dir.display()))?;
        let data = dir.join("data");
        // It refuses to run as root.
        let as_postgres = || {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
            command.current_dir(&dir).stdin(Stdio::null());
            command
        };
        let made = as_postgres()
            .arg(programs.join("initdb"))
            .arg("--pgdata")
            .arg(&data)
            .args(["--auth=trust", "--username=dormouse", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"])
            .output()
            .map_err(|error| format!("run initdb: {error}"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)));
        }
        let log = std::fs::File::create(dir.join("log")).map_err(|error| format!("make its log: {error}"))?;
        as_postgres()
            .args(["--pdeathsig", "TERM", "sh", "-c", KEEPER])
            .arg(programs.join("postgres"))
            .arg(&dir)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("run postgres: {error}"))?;
        let postgres = Self { dir, programs };
        let began = Instant::now();
        while !postgres.run("psql", &["-d", "postgres", "-c", "SELECT 1"]).is_ok_and(|done| done) {
            if began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(postgres.dir.join("log")).unwrap_or_default();
                return Err(format!("it does not answer: {log}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(postgres)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<bool, String> {
        Command::new(self.programs.join(program))
            .arg("-h")
            .arg(&self.dir)
            .args(["-U", "dormouse"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map(|status| status.success())
            .map_err(|error| format!("run {program}: {error}"))
    }

    /// The URL of a new, empty database.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn database(&self) -> String {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        assert!(self.run("createdb", &[&name]).is_ok_and(|done| done), "createdb {name}");
        let host: String =
            url::form_urlencoded::byte_serialize(self.dir.as_os_str().as_encoded_bytes()).collect();
        format!("postgres://dormouse@localhost/{name}?host={host}")
    }

    /// Its directory, with its socket and its log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Has the database refuse every session that becomes active, as one that goes
/// away at the wrong moment does; or not any more.
///
/// # Errors
/// Those of the database.
pub async fn refuse_active(db: &crate::Db, refuse: bool) -> crate::Result<()> {
    let statement = match (db.is_shared(), refuse) {
        (false, true) => {
            "CREATE TRIGGER refuse_active BEFORE UPDATE ON sessions WHEN NEW.lifecycle_state = 'active'
             BEGIN SELECT RAISE(ABORT, 'refused'); END"
        }
        (false, false) => "DROP TRIGGER refuse_active",
        (true, true) => {
            "ALTER TABLE sessions ADD CONSTRAINT refuse_active CHECK (lifecycle_state <> 'active') NOT VALID"
        }
        (true, false) => "ALTER TABLE sessions DROP CONSTRAINT refuse_active",
    };
    let mut tx = db.write().await?;
    tx.sql("refuse active sessions", statement).execute().await?;
    tx.commit("refuse active sessions").await
}

/// Rows to fill a database with.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a> {
    /// Whose they are.
    pub account: &'a str,
    /// Where the sandboxes live.
    pub host: &'a str,
    /// Sessions: nine of ten sleep, the others are active and not due.
    pub sessions: i64,
    /// Sandboxes that are stopped, each with a run and a snapshot.
    pub sandboxes: i64,
    /// Milliseconds since the epoch.
    pub now: i64,
}

impl Fill<'_> {
    /// Fills the database.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_in(self, db: &crate::Db) -> crate::Result<()> {
        let numbers = |count: i64| {
            format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
        };
        let Self { account, host, now, sandboxes, .. } = self;
        let far = now + 86_400_000_000;
        let mut statements = vec![format!(
            "INSERT INTO sessions (id, account_id, title, status, sandbox_name, host_id, lifecycle_state,
               lifecycle_version, hibernate_after, due_at, created_at, updated_at) {}
             SELECT 'ses_fill' || i, '{account}', 'A session', 'running',
               CASE WHEN i <= {sandboxes} THEN 'session-ses_fill' || i END, '{host}',
               CASE WHEN i % 10 = 0 THEN 'active' ELSE 'hibernated' END, 1,
               CASE WHEN i % 10 = 0 THEN {far} + i END, CASE WHEN i % 10 = 0 THEN {far} + i END,
               {now} - i, {now} - i FROM n",
            numbers(self.sessions)
        )];
        if self.sandboxes > 0 {
            let n = numbers(self.sandboxes);
            statements.extend([
                format!(
                    "INSERT INTO images (id, host_id, name, digest, size_bytes, config, source, created_at)
                     VALUES ('img_fill', '{host}', 'fill', 'fill', 1, '{{}}', '', {now})"
                ),
                format!(
                    "INSERT INTO sandboxes (id, owner, project, name, persistent, image_id, config,
                       current_run, current_snapshot, volume_id, base_bytes, boots, created_at, updated_at,
                       status_updated_at) {n}
                     SELECT 'box_fill' || i, '{account}', 'default', 'session-ses_fill' || i, TRUE, 'img_fill', '{{}}',
                       'sbx_fill' || i, 'snap_fill' || i, 'vol_fill' || i, 1, 1, {now} - i, {now} - i,
                       {now} - i FROM n"
                ),
                format!(
                    "INSERT INTO runs (id, sandbox_id, host_id, owner, project, sandbox_name, status, number,
                       vcpus, memory_mib, pids, cwd, runtime, network, volume_id, made_volume, timeout_ms,
                       requested_at, stopped_at, warnings, updated_at) {n}
                     SELECT 'sbx_fill' || i, 'box_fill' || i, '{host}', '{account}', 'default', 'session-ses_fill' || i,
                       'stopped', 1, 2, 4096, 512, '/', 'default', '\"allow-all\"', 'vol_fill' || i, TRUE, 1,
                       {now} - i, {now} - i, '[]', {now} - i FROM n"
                ),
                format!(
                    "INSERT INTO snapshots (id, host_id, owner, project, sandbox_id, sandbox_name, source_run,
                       image_id, kind, status, size_bytes, boots, retired, created_at, updated_at) {n}
                     SELECT 'snap_fill' || i, '{host}', '{account}', 'default', 'box_fill' || i, 'session-ses_fill' || i,
                       'sbx_fill' || i, 'img_fill', 'automatic', 'created', 1, 1, FALSE, {now} - i, {now} - i
                     FROM n"
                ),
            ]);
        }
        for statement in statements {
            let mut tx = db.write().await?;
            if db.is_shared() {
                tx.sql("take time", "SET LOCAL statement_timeout = 0").execute().await?;
            }
            tx.sql("fill the database", statement).execute().await?;
            tx.commit("fill the database").await?;
        }
        let mut tx = db.write().await?;
        if db.is_shared() {
            tx.sql("take time", "SET LOCAL statement_timeout = 0").execute().await?;
        }
        tx.sql("look at what is there", "ANALYZE").execute().await?;
        tx.commit("look at what is there").await
    }
}
