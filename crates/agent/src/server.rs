//! The loop: waits for connections, output, exits and deadlines, and moves
//! each thing one step. Nothing in here blocks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dormouse_agent_protocol::{
    CONTROL_FD, Frame, IMAGE_RUN_FD, LISTEN_FD, MEMORY_EVENTS_FD, OUTPUT_FD, Reply, Request, Stream,
};

use crate::command::Command;
use crate::connection::{Connection, Feeding, HIGH_WATER, State, Told};
use crate::log::Room;
use crate::memory::MemoryEvents;
use crate::sys::{self, Reaped};
use crate::{boot, files};

/// Finished commands whose output can still be replayed.
const MAX_FINISHED: usize = 256;

/// Connections at once; more wait in the listener's backlog. The server keeps to fewer.
const MAX_CONNECTIONS: usize = 1024;

/// The same for those that control the run.
const MAX_CONTROL: usize = 16;

/// After SIGKILL, how long processes may take to disappear.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long those are waited for who do not read what they asked for, once nothing runs
/// any more.
const TELL_PATIENCE: Duration = Duration::from_secs(1);

/// Serves until a shutdown is complete or the listener breaks.
pub(crate) fn run() -> io::Result<()> {
    sys::guard_limits();
    let mut server = Server {
        listeners: [Some(sys::inherited(LISTEN_FD)?), sys::inherited(CONTROL_FD).ok()],
        // Used once.
        image_run: sys::inherited(IMAGE_RUN_FD).ok(),
        room: Room::new(sys::inherited(OUTPUT_FD).ok()),
        memory: MemoryEvents::new(sys::inherited(MEMORY_EVENTS_FD).ok()),
        tokens: 0,
        again: false,
        workdir: None,
        signals: sys::child_signal()?,
        connections: Vec::new(),
        commands: VecDeque::new(),
        shutdown: None,
        ends_at: None,
    };
    while !server.is_over() {
        server.turn()?;
    }
    Ok(())
}

pub(crate) struct Server {
    /// For everything, and for control.
    listeners: [Option<OwnedFd>; 2],
    /// For the logs of commands.
    room: Rc<Room>,
    memory: MemoryEvents,
    /// Connections so far.
    tokens: u64,
    /// Something became possible for a connection that has had its turn.
    pub(crate) again: bool,
    signals: OwnedFd,
    /// The image's own `/run`, until the boot.
    image_run: Option<OwnedFd>,
    /// Set by the boot.
    workdir: Option<boot::Workdir>,
    connections: Vec<Connection>,
    /// Oldest first.
    pub(crate) commands: VecDeque<Command>,
    shutdown: Option<Shutdown>,
    /// When the run ends by itself, and the grace of that.
    ends_at: Option<(Instant, Duration)>,
}

/// A shutdown under way.
struct Shutdown {
    kill_at: Instant,
    killed: bool,
    /// Since when nothing else runs.
    alone: Option<Instant>,
}

/// What a watched descriptor belongs to.
enum Source {
    Listener(usize),
    Signals,
    Connection(usize),
    Output(usize, Stream),
    Input,
}

impl Server {
    fn is_over(&self) -> bool {
        let Some(alone) = self.shutdown.as_ref().and_then(|shutdown| shutdown.alone) else { return false };
        let told = self.connections.iter().all(|c| !matches!(c.state, State::Ending) && c.unsent() == 0);
        // Who does not read what a command said is not waited for.
        told || alone.elapsed() >= TELL_PATIENCE
    }

    fn turn(&mut self) -> io::Result<()> {
        let (mut fds, sources) = self.watched();
        match sys::poll(&mut fds, self.patience()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let ready = fds.iter().zip(sources).filter(|(fd, _)| fd.revents != 0);
        let mut accept = [false; 2];
        self.again = false;
        for (fd, source) in ready {
            match source {
                Source::Listener(which) => accept[which] = true,
                Source::Signals => self.reap(),
                Source::Output(index, stream) => self.commands[index].drain(stream, 4),
                Source::Connection(index) => {
                    let connection = &mut self.connections[index];
                    connection.blocked &= fd.revents & libc::POLLOUT == 0;
                    if fd.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
                        connection.receive();
                    }
                }
                Source::Input => {}
            }
        }
        let now = Instant::now();
        for command in &mut self.commands {
            command.enforce_deadline(now);
        }
        if let Some((_, grace)) = self.ends_at.take_if(|(at, _)| *at <= now) {
            self.begin_shutdown(grace);
        }
        self.advance_shutdown(now);
        let mut index = 0;
        while index < self.connections.len() {
            // A helper takes its connection along, so it leaves the list.
            let mut connection = self.connections.swap_remove(index);
            let kept = self.advance(&mut connection);
            if connection.closed {
                self.hang_up(&connection);
                self.leave(&connection);
            }
            if kept && !connection.closed {
                self.connections.push(connection);
                let last = self.connections.len() - 1;
                self.connections.swap(index, last);
                index += 1;
            }
        }
        for which in [1, 0] {
            if accept[which] {
                self.accept(which);
            }
        }
        self.forget_old();
        Ok(())
    }

    fn watched(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let mut fds = Vec::with_capacity(8);
        let mut sources = Vec::with_capacity(8);
        let mut watch = |fd: RawFd, events: i16, source: Source| {
            fds.push(libc::pollfd { fd, events, revents: 0 });
            sources.push(source);
        };
        for (which, listener) in self.listeners.iter().enumerate() {
            if let Some(listener) = listener.as_ref().filter(|_| self.has_place(which)) {
                watch(listener.as_raw_fd(), libc::POLLIN, Source::Listener(which));
            }
        }
        watch(self.signals.as_raw_fd(), libc::POLLIN, Source::Signals);
        for (index, connection) in self.connections.iter().enumerate() {
            let mut events = 0;
            if connection.wants_read() {
                events |= libc::POLLIN;
            }
            if connection.unsent() > 0 || connection.blocked {
                events |= libc::POLLOUT;
            }
            watch(connection.socket.as_raw_fd(), events, Source::Connection(index));
            if let State::Terminal { id, waiting } = &connection.state
                && let Some(terminal) = self.find(id).and_then(|command| command.terminal.as_ref())
            {
                let mut events = 0;
                if connection.unsent() < HIGH_WATER {
                    events |= libc::POLLIN;
                }
                if !waiting.is_empty() {
                    events |= libc::POLLOUT;
                }
                watch(terminal.as_raw_fd(), events, Source::Input);
            }
            if let State::Feeding(Feeding { id, waiting, .. }) = &connection.state
                && !waiting.is_empty()
                && let Some(command) = self.find(id)
                && command.feeder == Some(connection.token)
                && let Some(stdin) = &command.stdin
            {
                watch(stdin.as_raw_fd(), libc::POLLOUT, Source::Input);
            }
        }
        for (index, command) in self.commands.iter().enumerate() {
            for (stream, fd) in command.outputs() {
                watch(fd.as_raw_fd(), libc::POLLIN, Source::Output(index, stream));
            }
        }
        (fds, sources)
    }

    /// Whether output waits for a connection that waits for nothing: its socket
    /// took everything up to the high-water mark at once, so no event will tell
    /// that it takes more.
    fn has_more_for(&self, connection: &Connection) -> bool {
        let State::Following { id, offset, output: true } = &connection.state else { return false };
        connection.unsent() == 0 && self.find(id).is_some_and(|command| *offset < command.log.length())
    }

    /// Milliseconds until the next deadline, -1 for none.
    fn patience(&self) -> i32 {
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.alone.is_some()) {
            // Somebody is still to be told, as soon as they read.
            return 10;
        }
        if self.again || self.connections.iter().any(|connection| self.has_more_for(connection)) {
            return 0;
        }
        let shutdown = self.shutdown.as_ref().filter(|s| s.alone.is_none()).map(|s| s.kill_at);
        let end = self.ends_at.map(|(at, _)| at);
        let next = self.commands.iter().filter_map(Command::deadline).chain(shutdown).chain(end).min();
        next.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        })
    }

    fn has_place(&self, which: usize) -> bool {
        let control = which == 1;
        let taken = self.connections.iter().filter(|connection| connection.control == control).count();
        taken < if control { MAX_CONTROL } else { MAX_CONNECTIONS }
    }

    fn accept(&mut self, which: usize) {
        while self.has_place(which) {
            let Some(listener) = &self.listeners[which] else { return };
            // EAGAIN ends the round; so does a lack of descriptors, which
            // passes when an operation ends.
            let Ok(socket) = sys::accept(listener) else { return };
            self.tokens += 1;
            self.connections.push(Connection::new(socket, self.tokens, which == 1));
        }
    }

    fn reap(&mut self) {
        let mut buffer = [0; 512];
        while sys::read(&self.signals, &mut buffer).is_ok() {}
        loop {
            match sys::reap() {
                Reaped::Child { pid, code } => {
                    let running = |c: &&mut Command| c.pid() == pid && !c.is_finished();
                    if let Some(command) = self.commands.iter_mut().find(running) {
                        command.finish(code, &self.memory);
                    }
                }
                Reaped::NoneYet => return,
                Reaped::NoChildren => {
                    if let Some(shutdown) = &mut self.shutdown {
                        shutdown.alone.get_or_insert_with(Instant::now);
                    }
                    return;
                }
            }
        }
    }

    fn forget_old(&mut self) {
        let mut finished = self.commands.iter().filter(|command| command.is_finished()).count();
        while finished > MAX_FINISHED || (finished > 0 && self.room.is_tight()) {
            let known = |command: &Command| command.is_finished() && !self.is_followed(&command.id);
            let Some(oldest) = self.commands.iter().position(known) else { return };
            self.commands.remove(oldest);
            finished -= 1;
        }
    }

    /// Whether somebody is still to be told of the command.
    fn is_followed(&self, id: &str) -> bool {
        self.connections.iter().any(|connection| match &connection.state {
            State::Watching { id: of, .. } | State::Following { id: of, .. } => of == id,
            _ => false,
        })
    }

    pub(crate) fn find_mut(&mut self, id: &str) -> Option<&mut Command> {
        self.commands.iter_mut().find(|command| command.id == id)
    }

    pub(crate) fn find(&self, id: &str) -> Option<&Command> {
        self.commands.iter().find(|command| command.id == id)
    }

    /// Moves a connection one step. `false`: it is gone.
    fn advance(&mut self, connection: &mut Connection) -> bool {
        loop {
            // First what waits, since frames behind it may be here already and
            // no event would tell of them again.
            self.feed(connection);
            self.type_in(connection);
            let wants_frames = match &connection.state {
                State::Greeting => true,
                State::Feeding(Feeding { waiting, .. }) | State::Terminal { waiting, .. } => {
                    waiting.is_empty()
                }
                _ => false,
            };
            if !wants_frames {
                break;
            }
            match connection.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if !self.take(connection, frame) {
                        return false;
                    }
                }
                Err(error) => connection.fail(libc::EPROTO, error.to_string()),
            }
        }
        self.watch(connection);
        self.follow(connection);
        self.show(connection);
        connection.flush();
        true
    }

    /// Takes in one frame. `false`: a helper has the connection now.
    fn take(&mut self, connection: &mut Connection, frame: Frame) -> bool {
        match (&mut connection.state, frame) {
            (State::Greeting, Frame::Hello(hello)) if !connection.greeted => connection.greet(&hello),
            (State::Greeting, Frame::Request(request)) if connection.greeted => {
                return self.begin(connection, request);
            }
            (State::Feeding(feeding), Frame::Data(data)) => feeding.waiting = data,
            (State::Feeding(feeding), Frame::End) => feeding.ended = true,
            (State::Terminal { waiting, .. }, Frame::Data(data)) => *waiting = data,
            (State::Terminal { id, .. }, Frame::Request(Request::Resize { cols, rows })) => {
                let id = id.clone();
                if let Some(terminal) = self.find(&id).and_then(|command| command.terminal.as_ref()) {
                    // A window of no size is the user's own business.
                    let _ = sys::resize_terminal(terminal, cols, rows);
                }
            }
            (State::Terminal { .. }, Frame::End) => {
                self.hang_up(connection);
            }
            _ => connection.fail(libc::EPROTO, "frame out of order"),
        }
        true
    }

    fn begin(&mut self, connection: &mut Connection, request: Request) -> bool {
        match request {
            Request::Boot { files, workdir, user } => {
                let booted = boot::prepare(&files, &workdir, &user, self.image_run.take());
                let ready = Reply::Ready {
                    warnings: booted.warnings,
                    workdir: booted.workdir.resolve(&workdir).dir.to_owned(),
                };
                self.workdir = Some(booted.workdir);
                connection.finish(&Frame::Reply(ready));
            }
            Request::Health => {
                let processes = std::fs::read_dir("/proc").map_or(0, |entries| {
                    entries
                        .flatten()
                        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
                        .count()
                });
                connection.finish(&Frame::Reply(Reply::Health {
                    processes: u32::try_from(processes).unwrap_or(u32::MAX),
                    running: u32::try_from(self.commands.iter().filter(|c| !c.is_finished()).count())
                        .unwrap_or(u32::MAX),
                }));
            }
            Request::Start { spawn, follow, log } => self.start(connection, &spawn, follow, log),
            Request::Follow { id, output, log } => match self.find(&id) {
                Some(_) => connection.state = following(id, output, log),
                None => no_command(connection, &id),
            },
            Request::Inspect { id } => match self.find(&id) {
                Some(command) => {
                    let status = command.status();
                    connection.finish(&Frame::Reply(Reply::Command(status)));
                }
                None => no_command(connection, &id),
            },
            Request::List => {
                let commands = self.commands.iter().map(Command::status).collect();
                connection.finish(&Frame::Reply(Reply::Commands { commands }));
            }
            Request::Terminal { spawn, cols, rows } => self.open_terminal(connection, &spawn, cols, rows),
            Request::Resize { .. } => connection.fail(libc::EPROTO, "there is no terminal to resize"),
            Request::Dial { port } => self.dial(connection, port),
            Request::Stdin { id, counted, offset, close } => match self.find(&id) {
                Some(_) => {
                    let close = close || !counted;
                    let feeding = Feeding { id, waiting: Vec::new(), ended: false, offset, close, counted };
                    connection.state = State::Feeding(feeding);
                }
                None => no_command(connection, &id),
            },
            Request::Signal { id, signal, tree } => match self.find_mut(&id) {
                Some(command) if (1..=64).contains(&signal) => {
                    let _ = command.signal(signal, tree);
                    let status = command.status();
                    connection.finish(&Frame::Reply(Reply::Command(status)));
                }
                Some(_) => connection.fail(libc::EINVAL, format!("no signal has number {signal}")),
                None => no_command(connection, &id),
            },
            Request::Lifetime { left_ms, grace_ms } => {
                let at = Instant::now().checked_add(Duration::from_millis(left_ms));
                self.ends_at = at.map(|at| (at, Duration::from_millis(grace_ms)));
                connection.finish(&Frame::Reply(Reply::Noted));
            }
            Request::Shutdown { grace_ms } => {
                self.begin_shutdown(Duration::from_millis(grace_ms));
                connection.state = State::Ending;
            }
            file @ (Request::WriteTar { .. } | Request::ReadFile { .. } | Request::Mkdir { .. }) => {
                return self.begin_file(connection, &file);
            }
        }
        true
    }

    /// Where a command starts.
    fn cwd<'a>(&self, spawn: &'a dormouse_agent_protocol::Spawn) -> boot::Start<'a> {
        let plain = boot::Start { dir: &spawn.cwd, is_default: false };
        self.workdir.as_ref().map_or(plain, |workdir| workdir.resolve(&spawn.cwd))
    }

    fn start(
        &mut self,
        connection: &mut Connection,
        spawn: &dormouse_agent_protocol::Spawn,
        follow: bool,
        log: bool,
    ) {
        let status = match self.find(&spawn.id) {
            Some(command) => command.status(),
            None if self.shutdown.is_some() => {
                return connection.fail(libc::ESHUTDOWN, "the sandbox is stopping");
            }
            None => match Command::start(spawn, self.cwd(spawn), &self.room, &self.memory) {
                Ok(command) => {
                    let status = command.status();
                    self.commands.push_back(command);
                    status
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    return connection.fail(libc::EAGAIN, "the sandbox is at its limit of processes");
                }
                Err(error) => return connection.finish(&Frame::Error(files::errno(&error))),
            },
        };
        let id = status.id.clone();
        connection.send(&Frame::Reply(Reply::Started(status)));
        if follow {
            connection.state = following(id, true, log);
        } else {
            connection.finish(&Frame::End);
        }
    }

    fn open_terminal(
        &mut self,
        connection: &mut Connection,
        spawn: &dormouse_agent_protocol::Spawn,
        cols: u16,
        rows: u16,
    ) {
        if self.shutdown.is_some() {
            return connection.fail(libc::ESHUTDOWN, "the sandbox is stopping");
        }
        if self.find(&spawn.id).is_some() {
            return connection.fail(libc::EEXIST, format!("command {} exists already", spawn.id));
        }
        match Command::start_on_terminal(spawn, self.cwd(spawn), &self.room, (cols, rows)) {
            Ok(command) => {
                connection.send(&Frame::Reply(Reply::Started(command.status())));
                connection.state = State::Terminal { id: command.id.clone(), waiting: Vec::new() };
                self.commands.push_back(command);
            }
            Err(error) => connection.finish(&Frame::Error(files::errno(&error))),
        }
    }

    /// Hands a connection to one of the sandbox's own ports over.
    fn dial(&self, connection: &mut Connection, port: u16) {
        match sys::connect_local(port) {
            Ok(socket) => {
                // The hello must be out before the descriptor.
                connection.flush();
                let reply = Frame::Reply(Reply::Dialed).to_bytes();
                if connection.unsent() > 0 || sys::send_with(&connection.socket, &reply, &socket).is_err() {
                    connection.closed = true;
                }
                connection.state = State::Draining;
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                connection.fail(errno, format!("connect to port {port}: {error}"));
            }
        }
    }

    fn begin_file(&mut self, connection: &mut Connection, request: &Request) -> bool {
        // What was received so far goes along; the hello must be out first.
        connection.flush();
        match sys::fork() {
            Ok(None) => files::serve(&connection.socket, std::mem::take(&mut connection.decoder), request),
            Ok(Some(_)) => false,
            Err(_) => {
                connection.fail(libc::EAGAIN, "the sandbox is at its limit of processes");
                true
            }
        }
    }

    fn begin_shutdown(&mut self, grace: Duration) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown = Some(Shutdown { kill_at: Instant::now() + grace, killed: false, alone: None });
        // No process left to signal is fine: reap() sees that we are alone.
        let _ = sys::kill(-1, libc::SIGTERM);
        let _ = sys::kill(-1, libc::SIGCONT);
        self.reap();
    }

    fn advance_shutdown(&mut self, now: Instant) {
        let Some(shutdown) = &mut self.shutdown else { return };
        if shutdown.alone.is_none() && now >= shutdown.kill_at {
            if shutdown.killed {
                // Unkillable (in the kernel): the end of this namespace waits
                // for it, we do not.
                shutdown.alone = Some(now);
            } else {
                shutdown.killed = true;
                shutdown.kill_at = now + KILL_PATIENCE;
                let _ = sys::kill(-1, libc::SIGKILL);
            }
        }
        if shutdown.alone.is_some() {
            let killed = u32::from(shutdown.killed);
            for connection in &mut self.connections {
                if matches!(connection.state, State::Ending) {
                    connection.finish(&Frame::Reply(Reply::Stopped { killed }));
                    connection.flush();
                }
            }
        }
    }
}

fn following(id: String, output: bool, log: bool) -> State {
    if log {
        State::Watching { id, told: Told::default() }
    } else {
        State::Following { id, offset: 0, output }
    }
}

pub(crate) fn no_command(connection: &mut Connection, id: &str) {
    connection.fail(libc::ESRCH, format!("command {id} of this run"));
}
