//! Commands: starting them, keeping their output, and knowing when they end.
//!
//! ```text
//!  start ──► running ──(main process reaped, pipes drained)──► finished
//!               │ time limit passed: SIGKILL to all that descends from it, then as above
//! ```
//!
//! A command leads its own session, so a signal reaches its whole group. It is
//! finished when its main process is; what a daemon that it left behind writes
//! later is read and dropped, so that it neither blocks nor dies of it.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dormouse_agent_protocol::{CommandStatus, MAX_DATA, Spawn, StdinMode, Stream};

use crate::boot::Start;
use crate::log::{Log, Room};
use crate::memory::MemoryEvents;
use crate::users::{self, User};
use crate::{sys, tree};

/// Search path of every command that does not bring its own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How often a tree is looked at until it stands still.
const MOST_ROUNDS: u32 = 8;

/// Added to `oom_score_adj` of commands and helpers: when the sandbox runs out of memory
/// the kernel should end a command, not the agent.
pub(crate) const OOM_ADJUSTMENT: &[u8] = b"300";

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) id: String,
    pid: i32,
    started: Instant,
    started_at: i64,
    deadline: Option<Instant>,
    timed_out: bool,
    /// Somebody asked for its SIGKILL.
    killed: bool,
    /// What [`MemoryEvents::kills`] was when it started, and whether it died of lack of memory.
    kills_before: u64,
    oom: bool,
    finished: Option<(i32, Duration)>,
    pub(crate) log: Log,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Writing end of standard input, until it is closed.
    pub(crate) stdin: Option<OwnedFd>,
    /// It was started with a standard input that can be written to.
    pub(crate) takes_input: bool,
    /// Bytes that its standard input has taken.
    pub(crate) taken: u64,
    /// Whose turn it is to write to standard input ([`crate::connection::Connection::token`]).
    pub(crate) feeder: Option<u64>,
    /// Our side of its terminal, until either side hangs up. What is on it is
    /// for one connection and goes into no log.
    pub(crate) terminal: Option<OwnedFd>,
    /// As it is told: see [`brief`].
    argv: Vec<String>,
    cwd: String,
}

/// Arguments that a command is remembered by, in bytes of JSON. A list of all
/// commands must fit into one frame.
const MAX_REMEMBERED: usize = 2048;

/// `argv`, or only the beginning of its first word where it is long.
fn brief(argv: &[String]) -> Vec<String> {
    if serde_json::to_string(argv).is_ok_and(|text| text.len() <= MAX_REMEMBERED) {
        return argv.to_vec();
    }
    argv.iter().take(1).map(|word| word.chars().take(MAX_REMEMBERED / 8).collect()).collect()
}

impl Command {
    /// Starts `spawn` in `cwd`. A missing executable is not an
    /// error here: like under a shell, the command starts and exits with 127
    /// (126: not executable).
    pub(crate) fn start(
        spawn: &Spawn,
        cwd: Start<'_>,
        room: &Rc<Room>,
        memory: &MemoryEvents,
    ) -> io::Result<Self> {
        let plan = Plan::new(spawn, cwd, false)?;
        let (stdout, stdout_end) = sys::pipe(true, plan.user.uid)?;
        let (stderr, stderr_end) = sys::pipe(true, plan.user.uid)?;
        let (stdin_end, stdin) = match spawn.stdin {
            StdinMode::Pipe => {
                let (read, write) = sys::pipe(false, plan.user.uid)?;
                (read, Some(write))
            }
            StdinMode::Null => (OwnedFd::from(std::fs::File::open("/dev/null")?), None),
        };
        let stdio = [stdin_end.as_raw_fd(), stdout_end.as_raw_fd(), stderr_end.as_raw_fd()];
        let kills_before = memory.kills();
        let Some(pid) = sys::fork()? else {
            plan.run(stdio);
        };
        let takes_input = stdin.is_some();
        let (stdout, stderr) = (Some(stdout), Some(stderr));
        Ok(Self { stdout, stderr, stdin, takes_input, kills_before, ..Self::started(spawn, pid, room) })
    }

    /// Starts `spawn` in `cwd`, on a terminal of its own.
    pub(crate) fn start_on_terminal(
        spawn: &Spawn,
        cwd: Start<'_>,
        room: &Rc<Room>,
        (cols, rows): (u16, u16),
    ) -> io::Result<Self> {
        let plan = Plan::new(spawn, cwd, true)?;
        let (ours, theirs) = sys::open_terminal(plan.user.uid)?;
        sys::resize_terminal(&ours, cols, rows)?;
        let Some(pid) = sys::fork()? else {
            plan.run([theirs.as_raw_fd(); 3]);
        };
        Ok(Self { terminal: Some(ours), ..Self::started(spawn, pid, room) })
    }

    fn started(spawn: &Spawn, pid: i32, room: &Rc<Room>) -> Self {
        let started = Instant::now();
        Self {
            id: spawn.id.clone(),
            pid,
            started,
            started_at: sys::wall_ms(),
            deadline: spawn.timeout_ms.map(|limit| started + Duration::from_millis(limit)),
            timed_out: false,
            killed: false,
            kills_before: 0,
            oom: false,
            finished: None,
            log: Log::new(room),
            stdout: None,
            stderr: None,
            stdin: None,
            takes_input: false,
            taken: 0,
            feeder: None,
            terminal: None,
            argv: brief(&spawn.argv),
            cwd: spawn.cwd.chars().take(MAX_REMEMBERED / 8).collect(),
        }
    }

    pub(crate) fn status(&self) -> CommandStatus {
        CommandStatus {
            id: self.id.clone(),
            pid: self.pid,
            started_at: self.started_at,
            exit_code: self.finished.map(|(code, _)| code),
            duration_ms: self.finished.map(|(_, took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            timed_out: self.timed_out,
            output_truncated: self.log.lost() > 0,
            output_lost: self.log.lost(),
            oom: self.oom,
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.is_some()
    }

    /// When the loop must look at this command again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.is_finished())
    }

    /// Kills the command if its time is over.
    pub(crate) fn enforce_deadline(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timed_out = true;
            // Already gone: its exit is about to be reaped.
            let _ = self.signal(libc::SIGKILL, true);
        }
    }

    /// Sends `signal` to the whole process group, with `whole_tree` to all that descends from
    /// the command.
    pub(crate) fn signal(&mut self, signal: i32, whole_tree: bool) -> io::Result<()> {
        if self.is_finished() {
            return Ok(());
        }
        self.killed |= signal == libc::SIGKILL;
        if whole_tree {
            for pid in self.tree(signal == libc::SIGKILL) {
                let _ = sys::kill(pid, signal);
            }
        }
        // A stopped group takes SIGTERM only once it goes on.
        let sent = sys::kill(-self.pid, signal).or_else(|_| sys::kill(self.pid, signal));
        if signal == libc::SIGTERM {
            let _ = sys::kill(-self.pid, libc::SIGCONT);
        }
        sent
    }

    /// All that descends from the command. With `hold` they stand still from here on, so that
    /// none escapes by being born meanwhile.
    fn tree(&self, hold: bool) -> Vec<i32> {
        let mut found = tree::of(self.pid);
        let rounds = if hold { MOST_ROUNDS } else { 0 };
        for _ in 0..rounds {
            for pid in &found {
                let _ = sys::kill(*pid, libc::SIGSTOP);
            }
            let again = tree::of(self.pid);
            if again == found {
                break;
            }
            found = again;
        }
        found
    }

    /// Open output pipes, for the loop to watch.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (Stream, &OwnedFd)> {
        let stdout = self.stdout.as_ref().map(|fd| (Stream::Stdout, fd));
        let stderr = self.stderr.as_ref().map(|fd| (Stream::Stderr, fd));
        stdout.into_iter().chain(stderr)
    }

    /// Reads what one pipe holds, at most `rounds` buffers of it so that one
    /// command's flood does not starve the others.
    pub(crate) fn drain(&mut self, stream: Stream, rounds: usize) {
        let mut buffer = [0; MAX_DATA / 2];
        for _ in 0..rounds {
            let pipe = match stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            let Some(fd) = pipe else { return };
            match sys::read(fd, &mut buffer) {
                Ok(0) => *pipe = None,
                Ok(read) if self.finished.is_none() => self.log.append(stream, &buffer[..read]),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => *pipe = None,
            }
        }
    }

    /// The main process ended with `code`.
    pub(crate) fn finish(&mut self, code: i32, memory: &MemoryEvents) {
        // A pipe holds at most 1 MiB: this reads all that was written before
        // the exit and still ends when a background process keeps writing.
        self.drain(Stream::Stdout, 64);
        self.drain(Stream::Stderr, 64);
        self.finished = Some((code, self.started.elapsed()));
        // A shell reports the death of what it ran as its own exit.
        self.oom = code == 128 + libc::SIGKILL
            && !self.killed
            && !self.timed_out
            && memory.kills() > self.kills_before;
        self.stdin = None;
    }
}

/// Everything that the child needs, prepared before the fork.
struct Plan {
    user: User,
    cwd: CString,
    or_root: bool,
    argv: Vec<CString>,
    env: Vec<CString>,
    candidates: Vec<CString>,
    on_terminal: bool,
}

impl Plan {
    fn new(spawn: &Spawn, cwd: Start<'_>, on_terminal: bool) -> io::Result<Self> {
        let user = users::find(&spawn.user);
        let mut env: Vec<(String, String)> = vec![
            ("PATH".into(), PATH.into()),
            ("HOME".into(), user.home.clone()),
            ("USER".into(), user.name.clone()),
            ("LOGNAME".into(), user.name.clone()),
            ("SHELL".into(), user.shell.clone()),
            ("LANG".into(), "C.UTF-8".into()),
        ];
        if on_terminal {
            env.push(("TERM".into(), "xterm-256color".into()));
        }
        if let Some(by) = spawn.sudo_user.as_deref().map(users::find) {
            // As sudo(8) has it: git takes the files of this user for root's own.
            env.push(("SUDO_USER".into(), by.name));
            env.push(("SUDO_UID".into(), by.uid.to_string()));
            env.push(("SUDO_GID".into(), by.gid.to_string()));
        }
        for (key, value) in &spawn.env {
            env.retain(|(known, _)| known != key);
            env.push((key.clone(), value.clone()));
        }
        let path = env.iter().find(|(key, _)| key == "PATH").map_or(PATH, |(_, value)| value);
        let program = spawn.argv.first().filter(|program| !program.is_empty());
        let program = program.ok_or_else(|| invalid("the command is empty"))?;
        let candidates = if program.contains('/') {
            vec![c_string(program)?]
        } else {
            path.split(':')
                .map(|dir| c_string(&format!("{}/{program}", if dir.is_empty() { "." } else { dir })))
                .collect::<io::Result<_>>()?
        };
        Ok(Self {
            cwd: c_string(cwd.dir)?,
            or_root: cwd.is_default,
            argv: spawn.argv.iter().map(|arg| c_string(arg)).collect::<io::Result<_>>()?,
            env: env.iter().map(|(k, v)| c_string(&format!("{k}={v}"))).collect::<io::Result<_>>()?,
            candidates,
            user,
            on_terminal,
        })
    }

    fn run(&self, stdio: [i32; 3]) -> ! {
        let (code, message) = match self.enter(stdio) {
            Err(error) => (126, format!("{error}")),
            Ok(()) => self.exec(),
        };
        let _ = sys::write(&2, format!("dormouse: {message}\n").as_bytes());
        sys::exit_now(code)
    }

    fn enter(&self, stdio: [i32; 3]) -> io::Result<()> {
        sys::isolate_child(stdio)?;
        if self.on_terminal {
            sys::take_terminal()?;
        }
        // Worth a try only: the sandbox works without it.
        let _ = sys::adjust_oom_score(OOM_ADJUSTMENT);
        sys::become_user(self.user.uid, self.user.gid, &self.user.groups)?;
        let cwd = OsStr::from_bytes(self.cwd.as_bytes());
        match std::env::set_current_dir(cwd) {
            Err(_) if self.or_root => std::env::set_current_dir("/"),
            entered => entered,
        }
        .map_err(|error| io::Error::new(error.kind(), format!("chdir {}: {error}", cwd.display())))
    }

    fn exec(&self) -> (i32, String) {
        let program = self.argv.first().map(|arg| arg.to_string_lossy()).unwrap_or_default();
        let mut worst = None;
        for path in &self.candidates {
            let error = sys::exec(path, &self.argv, &self.env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {
                    // A file that is there and "not found" lacks what its
                    // first line, or its loader, names.
                    if std::path::Path::new(OsStr::from_bytes(path.as_bytes())).exists() {
                        worst = Some(format!("exec {program}: the interpreter that it asks for is missing"));
                    }
                }
                Some(libc::ENOEXEC) if is_binary(path) => {
                    return (126, format!("exec {program}: it is made for another kind of machine"));
                }
                Some(libc::ENOEXEC) => {
                    // A script without "#!" runs under sh, as execvp(3) does.
                    let Ok(sh) = c_string("/bin/sh") else { continue };
                    let mut argv = vec![sh.clone(), path.clone()];
                    argv.extend(self.argv.iter().skip(1).cloned());
                    let error = sys::exec(&sh, &argv, &self.env);
                    worst = Some(format!("exec {program}: it is a script, and /bin/sh: {error}"));
                }
                _ => return (126, format!("exec {program}: {error}")),
            }
        }
        let missing = || {
            if program.contains('/') {
                return format!("exec {program}: there is no such file");
            }
            let dirs: Vec<_> = self.candidates.iter().map(|path| path.to_string_lossy()).collect();
            let dirs: Vec<_> =
                dirs.iter().filter_map(|path| path.rsplit_once('/')).map(|(dir, _)| dir).collect();
            format!("exec {program}: not found in {}", dirs.join(":"))
        };
        (127, worst.unwrap_or_else(missing))
    }
}

/// Whether a file is no text, as shells tell it: by a NUL at its beginning.
fn is_binary(path: &CString) -> bool {
    use std::io::Read as _;
    let mut start = [0; 128];
    let opened = std::fs::File::open(OsStr::from_bytes(path.as_bytes()));
    let read = opened.and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    start[..read].contains(&0)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| invalid("a NUL byte is not allowed in a command"))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
