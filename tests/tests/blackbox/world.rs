//! A world: a data directory with a base image, a git server, a server, two
//! accounts. And what a world must not leave behind.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

pub(crate) use dormouse_tests::outside::SERVICE_TOKEN;

/// The repository that scenarios clone.
pub(crate) const REPO: &str = "https://github.com/acme/widgets";

pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) instance: u8,
    pub(crate) base: String,
    pub(crate) account: String,
    pub(crate) key: String,
    pub(crate) other_key: String,
    runtime: tokio::runtime::Runtime,
    pub(crate) http: reqwest::Client,
    server: RefCell<Option<Child>>,
    git: RefCell<Child>,
    finished: Cell<bool>,
}

/// Where built recipes are kept between runs.
pub(crate) fn image_cache() -> PathBuf {
    std::env::var_os("TEST_IMAGE_CACHE").map_or_else(|| "/var/cache/dormouse-test".into(), PathBuf::from)
}

pub(crate) fn binary(name: &str) -> PathBuf {
    // The tests lie in target/PROFILE/deps, the binaries one up.
    let here = std::env::current_exe().unwrap_or_default();
    here.ancestors().nth(2).unwrap_or(Path::new(".")).join(name)
}

fn sh(script: &str, dir: &Path) -> anyhow::Result<()> {
    let mut bash = Command::new("bash");
    // Nothing of this machine's own git.
    bash.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C");
    let status = bash.args(["-euc", script]).current_dir(dir).status()?;
    ensure!(status.success(), "set-up script failed");
    Ok(())
}

/// What a world's files lie on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Disk {
    /// The host's own.
    Host,
    /// A small file system for the data directory; its size in MiB.
    Small(u32),
    /// A block device for the pool.
    Device(u32),
    /// A btrfs that the operator has mounted for the pool.
    Mounted(u32),
    /// A small file system that loses power ([`World::cut_power`]).
    Unreliable(u32),
}

impl Disk {
    /// Makes it in `dir`; what the server's configuration has to say of it.
    fn make(self, dir: &Path) -> anyhow::Result<String> {
        let (mib, script) = match self {
            Self::Host => return Ok(String::new()),
            Self::Small(mib) => (mib, "mkfs.ext4 -q disk && mkdir data && mount -o loop disk data"),
            Self::Device(mib) => (mib, "losetup --find --show disk > device"),
            Self::Mounted(mib) => {
                (mib, "mkfs.btrfs -q disk && mkdir -p data/pool && mount -o loop,noatime disk data/pool")
            }
            // On a btrfs, which copies a file as it is at one instant.
            Self::Unreliable(mib) => (
                mib,
                "truncate -s 32G disk && mkfs.btrfs -q disk && mkdir host data && mount -o loop disk host &&
                 truncate -s \"$0\"M host/disk && mkfs.ext4 -q host/disk && mount -o loop host/disk data",
            ),
        };
        let script = format!("truncate -s \"$0\"M disk && {script}");
        let made =
            Command::new("bash").args(["-euc", &script, &mib.to_string()]).current_dir(dir).output()?;
        ensure!(made.status.success(), "make {self:?}: {}", String::from_utf8_lossy(&made.stderr));
        Ok(match fs::read_to_string(dir.join("device")) {
            Ok(device) => format!("storage.device = \"{}\"\n", device.trim()),
            Err(_) => String::new(),
        })
    }

    /// Gives up what [`Disk::make`] made in `dir`.
    fn give_back(dir: &Path) -> anyhow::Result<()> {
        let script = "[ -e disk ] || exit 0
            for place in data/pool data host; do ! mountpoint -q $place || umount $place; done
            [ ! -e device ] || losetup --detach \"$(cat device)\"";
        let done = Command::new("bash").args(["-euc", script]).current_dir(dir).output()?;
        let words = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "give back the disk: {}", words.trim());
        Ok(())
    }
}

impl World {
    /// Removes what a world of this instance left whose tests were killed.
    pub(crate) fn sweep(instance: u8) -> anyhow::Result<()> {
        let prefix = format!("dormouse-test-{instance}-");
        for name in names("/tmp").into_iter().filter(|name| name.starts_with(&prefix)) {
            let dir = Path::new("/tmp").join(name);
            eprintln!("      removing {}, which an earlier run left", dir.display());
            let killed = Command::new("pkill").args(["-KILL", "-f", &dir.to_string_lossy()]).status()?;
            ensure!(killed.code().is_some_and(|code| code < 2), "pkill: {killed}");
            let config = dir.join("config.toml");
            if config.is_file() {
                let data = dir.join("data");
                let evacuated = Command::new(binary("dormouse"))
                    .args(["evacuate", "--config"])
                    .args([config.as_os_str(), "--data-dir".as_ref(), data.as_os_str()])
                    .output()?;
                let words = String::from_utf8_lossy(&evacuated.stderr);
                ensure!(evacuated.status.success(), "evacuate {}: {}", dir.display(), words.trim());
            }
            Disk::give_back(&dir)?;
            fs::remove_dir_all(&dir)?;
        }
        Ok(())
    }

    pub(crate) fn start(instance: u8, config: &str, disk: Disk) -> anyhow::Result<Self> {
        let dir = PathBuf::from(format!("/tmp/dormouse-test-{instance}-{}", std::process::id()));
        fs::create_dir_all(dir.join("git/acme"))?;
        let storage = disk.make(&dir)?;
        sh(
            "git init -q --bare -b main git/acme/empty.git
             git init -q --bare -b unborn git/acme/unborn.git
             for branch in main trunk; do
               git init -q -b $branch work-$branch; cd work-$branch
               git config user.name Test; git config user.email test@example.test
               for i in 1 2 3; do echo $i > file$i; git add .; git commit -qm \"commit $i\"; done
               cd ..
             done
             git clone -q --bare work-main git/acme/widgets.git
             mkdir git/private
             git clone -q --bare work-main git/private/gadgets.git
             git clone -q --bare work-main git/private/others.git
             git clone -q --bare work-trunk git/acme/trunk.git",
            &dir,
        )?;
        let mut git = Command::new(binary("git-http"))
            .arg(dir.join("git"))
            .env("GIT_HTTP_TOKEN", SERVICE_TOKEN)
            .stdout(fs::File::create(dir.join("git.url"))?)
            .spawn()
            .context("start git-http (make build)")?;
        let mut url = String::new();
        while url.is_empty() {
            ensure!(git.try_wait()?.is_none(), "git-http ended");
            std::thread::sleep(Duration::from_millis(10));
            url = fs::read_to_string(dir.join("git.url"))?;
        }
        let listen = format!("127.0.0.1:{}", 7700 + u16::from(instance));
        let mut mirror =
            format!("[[git.mirrors]]\nfrom = \"https://github.com/\"\nto = \"{}\"\n", url.trim());
        if instance == crate::NETWORK {
            // There GitHub is where it says.
            mirror.clear();
        }
        // Where every recipe is built there must be room for them.
        let pool = if instance == crate::CLIENTS_WORLD { 24 } else { 8 };
        let head = format!("listen = \"{listen}\"\ninstance = {instance}\nstorage.pool_gib = {pool}\n");
        fs::write(dir.join("config.toml"), format!("{head}{storage}{config}{mirror}"))?;
        let mut world = Self {
            instance,
            base: format!("http://{listen}"),
            account: String::new(),
            key: String::new(),
            other_key: String::new(),
            runtime: tokio::runtime::Runtime::new()?,
            http: reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?,
            server: RefCell::new(None),
            git: RefCell::new(git),
            finished: Cell::new(false),
            dir,
        };
        // The default image is the largest: the worlds that use what is in it have it.
        let recipe =
            if [crate::CLIENTS_WORLD, crate::NETWORK].contains(&instance) { "universal" } else { "node24" };
        world.cli(&["image", "build", "--recipe", recipe, "--name", "default"])?;
        world.account = world.id(&["account", "create", "Ada", "--email", "ada@example.test"])?;
        world.key = world.text(&["key", "create", "--account", &world.account])?;
        let other = world.id(&["account", "create", "Mallory"])?;
        world.other_key = world.text(&["key", "create", "--account", &other])?;
        world.serve()?;
        Ok(world)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("dormouse"));
        let takes_data = !matches!(args.first(), Some(&("sandbox" | "snapshot" | "org-snapshot" | "env")));
        command.args(args);
        if takes_data {
            command
                .arg("--config")
                .arg(self.dir.join("config.toml"))
                .arg("--data-dir")
                .arg(self.dir.join("data"));
        }
        command
            .env("DORMOUSE_IMAGES__CACHE", image_cache())
            .env("DORMOUSE_SERVER", &self.base)
            .env("DORMOUSE_KEY", &self.key);
        command
    }

    /// Runs the command line; its output if it succeeds.
    pub(crate) fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        let output = self.command(args).stdin(Stdio::null()).output()?;
        ensure!(
            output.status.success(),
            "dormouse {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output)
    }

    pub(crate) fn text(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(String::from_utf8(self.cli(args)?.stdout)?.trim().to_owned())
    }

    pub(crate) fn id(&self, args: &[&str]) -> anyhow::Result<String> {
        let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        let reply: Value = serde_json::from_slice(&self.cli(&args)?.stdout)?;
        Ok(reply["id"].as_str().context("no id")?.to_owned())
    }

    /// Makes a key: its id, and itself.
    pub(crate) fn new_key(&self) -> anyhow::Result<(String, String)> {
        let made = self.cli(&["key", "create", "--account", &self.account, "--output", "json"])?;
        let reply: Value = serde_json::from_slice(&made.stdout)?;
        let text = |name: &str| reply[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        Ok((text("id")?, text("key")?))
    }

    pub(crate) fn new_session(&self) -> anyhow::Result<String> {
        self.id(&["session", "create", "--account", &self.account])
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn serve(&self) -> anyhow::Result<()> {
        self.serve_with(&[])
    }

    /// [`World::serve`] with these in its environment.
    pub(crate) fn serve_with(&self, env: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut command = self.command(&["serve"]);
        command.envs(env.iter().copied());
        self.serve_by(&mut command)
    }

    /// [`World::serve`] by a program that execs the server, which follows its
    /// own arguments.
    pub(crate) fn serve_under(&self, starter: &[&str]) -> anyhow::Result<()> {
        let serve = self.command(&["serve"]);
        let (program, args) = starter.split_first().context("no starter")?;
        let mut command = Command::new(program);
        command.args(args).arg(serve.get_program()).args(serve.get_args());
        command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.serve_by(&mut command)
    }

    fn serve_by(&self, command: &mut Command) -> anyhow::Result<()> {
        let child =
            start_server(command, &self.dir, || self.call(Method::GET, "/healthz", None, None).is_ok())?;
        *self.server.borrow_mut() = Some(child);
        Ok(())
    }

    pub(crate) fn server_pid(&self) -> anyhow::Result<u32> {
        Ok(self.server.borrow().as_ref().context("no server")?.id())
    }

    /// Ends the server with a signal and waits for it.
    pub(crate) fn end_server(&self, signal: &str) -> anyhow::Result<()> {
        if let Some(mut child) = self.server.borrow_mut().take() {
            Command::new("kill").args([signal, &child.id().to_string()]).status()?;
            child.wait()?;
        }
        Ok(())
    }

    /// The host loses power and starts again, without the server: whatever was
    /// not on its disk is gone.
    pub(crate) fn cut_power(&self) -> anyhow::Result<()> {
        // Nothing is acknowledged from the instant of the copy on.
        let pid = self.server_pid()?.to_string();
        Command::new("kill").args(["-STOP", &pid]).status()?;
        let run = |script: &str| sh(script, &self.dir);
        run("cp --reflink=always host/disk host/after")?;
        self.end_server("-KILL")?;
        self.cli(&["evacuate"])?;
        run("umount data && mv host/after host/disk && mount -o loop host/disk data")
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(future)
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// One request; status and JSON body.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        self.ask_at(&self.base, method, path, key, body).await
    }

    /// [`World::ask`] of another server.
    pub(crate) async fn ask_at(
        &self,
        base: &str,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{base}{path}"));
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(!text.contains(SERVICE_TOKEN), "the service's token is in the answer to {path}");
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    pub(crate) fn call(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        self.block_on(self.ask(method, path, key, body))
    }

    /// [`World::call`] with the first account's key and these headers.
    pub(crate) fn call_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        for (name, value) in headers.iter().copied().chain([("x-api-key", self.key.as_str())]) {
            request = request.header(name, value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.block_on(async {
            let answer = request.send().await?;
            let status = answer.status();
            let text = answer.text().await?;
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
        })
    }

    /// [`World::call`] with the first account's key, and success expected.
    pub(crate) fn good(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, reply) = self.call(method.clone(), path, Some(&self.key), body)?;
        ensure!(status == StatusCode::OK, "{method} {path}: {status} {reply}");
        Ok(reply)
    }

    /// Does something to the repositories that the git server serves: a script in
    /// the directory in which `git/OWNER/NAME.git` are.
    pub(crate) fn remote(&self, script: &str) -> anyhow::Result<()> {
        sh(script, &self.dir)
    }

    pub(crate) fn post(&self, session: &str) -> anyhow::Result<Value> {
        self.good(Method::POST, "/api/sandbox", Some(json!({"repoUrl": REPO, "sessionId": session})))
    }

    /// A session with a ready sandbox; session id and sandbox name.
    pub(crate) fn sandbox(&self) -> anyhow::Result<(String, String)> {
        let session = self.new_session()?;
        self.post(&session)?;
        let name = format!("session-{session}");
        Ok((session, name))
    }

    /// A shell script inside, as the default user: exit code, stdout, stderr.
    pub(crate) fn shell(&self, name: &str, script: &str) -> anyhow::Result<(i32, String, String)> {
        self.exec(name, &[], &["bash", "-c", script])
    }

    /// The same as root.
    pub(crate) fn root_shell(&self, name: &str, script: &str) -> anyhow::Result<(i32, String, String)> {
        self.exec(name, &["--sudo"], &["bash", "-c", script])
    }

    pub(crate) fn exec(
        &self,
        name: &str,
        options: &[&str],
        command: &[&str],
    ) -> anyhow::Result<(i32, String, String)> {
        let args: Vec<&str> =
            ["sandbox", "exec", name].iter().chain(options).chain(&["--"]).chain(command).copied().collect();
        let output = self.command(&args).stdin(Stdio::null()).output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
    }

    /// Success expected; what it printed.
    pub(crate) fn ok(&self, name: &str, script: &str) -> anyhow::Result<String> {
        let (code, out, err) = self.shell(name, script)?;
        ensure!(code == 0, "{script:?} exited {code}: {out}{err}");
        Ok(out.trim().to_owned())
    }

    pub(crate) fn stop(&self, name: &str) -> anyhow::Result<()> {
        self.cli(&["sandbox", "stop", name]).map(drop)
    }

    pub(crate) fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.cli(&["sandbox", "delete", name]).map(drop)
    }

    /// The session id of the sandbox's current or last run.
    pub(crate) fn run(&self, name: &str) -> anyhow::Result<String> {
        let found = self.good(Method::GET, &format!("/api/v2/sandboxes/{name}"), None)?;
        Ok(found["session"]["id"].as_str().context("no session")?.to_owned())
    }

    /// A file of a running sandbox, through the API; `None` if there is none.
    pub(crate) fn read(&self, name: &str, path: &str) -> anyhow::Result<Option<String>> {
        let url = format!("/api/v2/sandboxes/sessions/{}/fs/read", self.run(name)?);
        let request = self.http.post(format!("{}{url}", self.base)).header("x-api-key", &self.key);
        self.block_on(async {
            let answer = request.json(&json!({"path": path})).send().await?;
            match answer.status() {
                StatusCode::OK => Ok(Some(answer.text().await?)),
                StatusCode::NOT_FOUND => Ok(None),
                other => bail!("read {path} of {name}: {other} {}", answer.text().await?),
            }
        })
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }

    /// Its last lines, without those of a test that waits for a word of health.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().filter(|line| !line.contains("path=\"/healthz\"")).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Ends everything; nothing may be left.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        self.finished.set(true);
        let mut git = self.git.borrow_mut();
        git.kill()?;
        git.wait()?;
        self.end_server("-TERM")?;
        self.cli(&["evacuate"])?;
        Disk::give_back(&self.dir)?;
        fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.finished.get()
            && let Err(error) = self.finish()
        {
            eprintln!("clean up {}: {error:#}", self.dir.display());
        }
    }
}

/// What an instance has on the host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    mounts: usize,
    cgroups: usize,
    links: usize,
    agents: usize,
    routers: usize,
    namespaced: Vec<String>,
    files: usize,
}

impl Footprint {
    pub(crate) fn take(instance: u8) -> Self {
        // Links go in the background when their namespace does.
        let mut footprint = Self::look(instance);
        for _ in 0..100 {
            if footprint.links == 0 && footprint.agents == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            footprint = Self::look(instance);
        }
        footprint
    }

    pub(crate) fn look(instance: u8) -> Self {
        let count = |text: String, word: &str| text.lines().filter(|line| line.contains(word)).count();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        // The router, which every link of a sandbox ends in.
        let router = format!("dormouse{instance}");
        let list = ["-n", &router, "-o", "link"];
        let links = Command::new("ip").args(list).output().map(|o| o.stdout).unwrap_or_default();
        Self {
            mounts: count(read("/proc/self/mounts"), &format!("dormouse-test-{instance}-")),
            cgroups: cgroups(instance).len(),
            links: count(String::from_utf8_lossy(&links).into_owned(), &format!("dm{instance}x")),
            agents: agents(instance),
            namespaced: namespaced(),
            files: names("/tmp")
                .iter()
                .filter(|name| name.starts_with(&format!("dormouse-test-{instance}-")))
                .count(),
            routers: usize::from(Path::new("/run/netns").join(router).exists()),
        }
    }

    pub(crate) fn live(&self) -> (usize, usize) {
        (self.cgroups, self.agents)
    }
}

/// Starts a server, with its log in `dir`, and waits until it `answers`; one that
/// does not is ended.
pub(crate) fn start_server(
    command: &mut Command,
    dir: &Path,
    answers: impl Fn() -> bool,
) -> anyhow::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("server.log"))?;
    let mut child = command.stdin(Stdio::null()).stderr(log).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(90);
    while !answers() {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("the server ended: {status}");
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("the server does not answer");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

/// Cgroups of runs.
pub(crate) fn cgroups(instance: u8) -> Vec<String> {
    ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
        .iter()
        .filter_map(|root| fs::read_dir(format!("{root}/dormouse-{instance}")).ok())
        .flat_map(Iterator::flatten)
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A file of a run's cgroup: version 1 has one for each controller, version 2 one for
/// all.
pub(crate) fn cgroup_file(instance: u8, run: &str, controller: &str, file: &str) -> anyhow::Result<String> {
    let roots = [format!("/sys/fs/cgroup/{controller}"), "/sys/fs/cgroup".to_owned()];
    let read = |root: &String| fs::read_to_string(format!("{root}/dormouse-{instance}/{run}/{file}")).ok();
    roots.iter().find_map(read).with_context(|| format!("the cgroup of {run} has no {file}"))
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes that live in other namespaces than the test does.
fn namespaced() -> Vec<String> {
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let of = |process: &str| kinds.map(|kind| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok());
    let own = of("self");
    let differs = |process: &String| {
        // One that ended between two looks has none, and a kernel thread no user.
        of(process).iter().zip(&own).any(|(theirs, ours)| theirs.is_some() && theirs != ours)
    };
    // A run that outlived its server is for init to reap, which takes its time.
    let left_to_init = |process: &String| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with("Z 1 "))
    };
    let described = |process: String| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        // That a server runs somewhere changes nothing about a process.
        let groups = read("cgroup");
        let group = groups.lines().find(|line| !line.contains(":name=dormouse:")).unwrap_or_default();
        format!("{process} {} {group}", read("comm").trim())
    };
    let processes = names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    processes.filter(differs).filter(|p| !left_to_init(p)).map(described).collect()
}

/// Processes in cgroups of runs.
fn agents(instance: u8) -> usize {
    cgroups(instance)
        .iter()
        .map(|run| {
            ["memory/", ""]
                .iter()
                .map(|part| format!("/sys/fs/cgroup/{part}dormouse-{instance}/{run}/cgroup.procs"))
                .filter_map(|path| fs::read_to_string(path).ok())
                .map(|text| text.lines().count())
                .sum::<usize>()
        })
        .sum()
}

/// Waits for something to become true.
pub(crate) fn eventually(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
