//! The dialogues that go on after a request: output, standard input, terminals. Each function
//! moves one connection one step.

use std::io;

use dormouse_agent_protocol::{Frame, Reply};

use crate::command::Command;
use crate::connection::{Connection, HIGH_WATER, State, Told};
use crate::server::{Server, no_command};
use crate::sys;

fn why_closed(command: &Command) -> String {
    if command.is_finished() {
        "the command has ended".to_owned()
    } else if command.takes_input {
        "standard input of the command is closed".to_owned()
    } else {
        "the command was started without standard input".to_owned()
    }
}

impl Server {
    /// Passes on what the user types.
    pub(crate) fn type_in(&mut self, connection: &mut Connection) {
        let State::Terminal { id, waiting } = &mut connection.state else { return };
        let command = self.commands.iter_mut().find(|command| &command.id == id);
        let Some(terminal) = command.and_then(|command| command.terminal.as_ref()) else {
            waiting.clear();
            return;
        };
        while !waiting.is_empty() {
            match sys::write(terminal, waiting) {
                Ok(written) => drop(waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody has the terminal open any more.
                Err(_) => waiting.clear(),
            }
        }
    }

    /// Passes on what is to be shown, and the end.
    pub(crate) fn show(&mut self, connection: &mut Connection) {
        let State::Terminal { id, .. } = &connection.state else { return };
        let Some(command) = self.commands.iter_mut().find(|command| &command.id == id) else { return };
        let mut buffer = [0; 16 << 10];
        let mut dry = command.terminal.is_none();
        while let Some(terminal) = &command.terminal
            && !dry
            && connection.unsent() < HIGH_WATER
        {
            match sys::read(terminal, &mut buffer) {
                Ok(read) if read > 0 => connection.send(&Frame::Stdout(buffer[..read].to_vec())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => dry = true,
                // EIO: every process has closed its side (`pty(7)`); whether the
                // command has ended too, its exit tells.
                _ => {
                    command.terminal = None;
                    dry = true;
                }
            }
        }
        if dry && command.is_finished() {
            command.terminal = None;
            connection.send(&Frame::Reply(Reply::Exited(command.status())));
            connection.finish(&Frame::End);
        }
    }

    /// The user has gone: the command's session gets SIGHUP.
    pub(crate) fn hang_up(&mut self, connection: &Connection) {
        if let State::Terminal { id, .. } = &connection.state
            && let Some(command) = self.commands.iter_mut().find(|command| &command.id == id)
        {
            command.terminal = None;
        }
    }

    /// Passes standard input on. Writers take turns, each with all that it has.
    pub(crate) fn feed(&mut self, connection: &mut Connection) {
        let State::Feeding(feeding) = &mut connection.state else { return };
        let Some(command) = self.commands.iter_mut().find(|command| command.id == feeding.id) else {
            connection.state = State::Draining;
            return;
        };
        if *command.feeder.get_or_insert(connection.token) != connection.token {
            return;
        }
        if let Some(offset) = feeding.offset
            && offset > command.taken
        {
            let message =
                format!("offset: it is {offset}, but standard input has had {} bytes", command.taken);
            return self.fail_feeding(connection, libc::EINVAL, message);
        }
        while !feeding.waiting.is_empty() {
            if let Some(offset) = &mut feeding.offset {
                // What was taken before is not written again.
                let known = command.taken.saturating_sub(*offset).min(feeding.waiting.len() as u64);
                feeding.waiting.drain(..usize::try_from(known).unwrap_or(usize::MAX));
                *offset += known;
                if feeding.waiting.is_empty() {
                    break;
                }
            }
            let Some(stdin) = &command.stdin else {
                let message = why_closed(command);
                return self.fail_feeding(connection, libc::EPIPE, message);
            };
            match sys::write(stdin, &feeding.waiting) {
                Ok(written) => {
                    feeding.waiting.drain(..written);
                    command.taken += written as u64;
                    feeding.offset = feeding.offset.map(|offset| offset + written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => command.stdin = None,
            }
        }
        if !feeding.ended {
            return;
        }
        // Whoever has nothing to say to a command that takes nothing is told so too; a
        // repeated last part of what was closed after it is none of that.
        if command.stdin.is_none()
            && !(feeding.close && command.takes_input && feeding.offset == Some(command.taken))
        {
            let message = why_closed(command);
            return self.fail_feeding(connection, libc::EPIPE, message);
        }
        if feeding.close {
            command.stdin = None;
        }
        command.feeder = None;
        self.again = true;
        let taken = Frame::Reply(Reply::Taken { total: command.taken });
        let last = if feeding.counted { taken } else { Frame::End };
        connection.finish(&last);
    }

    fn fail_feeding(&mut self, connection: &mut Connection, errno: i32, message: String) {
        self.leave(connection);
        connection.fail(errno, message);
    }

    /// The writer of a standard input goes: it is the next one's turn.
    pub(crate) fn leave(&mut self, connection: &Connection) {
        if let State::Feeding(feeding) = &connection.state
            && let Some(command) = self.commands.iter_mut().find(|command| command.id == feeding.id)
            && command.feeder == Some(connection.token)
        {
            command.feeder = None;
            self.again = true;
        }
    }

    /// Tells how much of a log there is, with the file itself where it is another one.
    pub(crate) fn watch(&self, connection: &mut Connection) {
        let State::Watching { id, told } = &mut connection.state else { return };
        let Some(command) = self.find(id) else {
            let id = id.clone();
            return no_command(connection, &id);
        };
        let (length, ended) = (command.log.length(), command.is_finished());
        if told.length == Some(length) && !ended {
            return;
        }
        let reply = Frame::Reply(Reply::Log { length, status: command.status() });
        let new = command.log.file().filter(|(_, number)| *number != told.file);
        let number = new.map_or(told.file, |(_, number)| number);
        // Nothing may be before a descriptor that belongs to what comes after it.
        connection.flush();
        if connection.unsent() > 0 || connection.blocked {
            return;
        }
        match new {
            Some((file, _)) if !connection.send_with(&reply, file) => return,
            Some(_) => {}
            None => connection.send(&reply),
        }
        if ended {
            connection.finish(&Frame::End);
        } else if let State::Watching { told, .. } = &mut connection.state {
            *told = Told { length: Some(length), file: number };
        }
    }

    /// Passes output on, up to the high-water mark.
    pub(crate) fn follow(&self, connection: &mut Connection) {
        let State::Following { id, offset, output } = &connection.state else { return };
        let (id, mut offset, output) = (id.clone(), *offset, *output);
        let Some(command) = self.find(&id) else {
            return no_command(connection, &id);
        };
        while output && connection.unsent() < HIGH_WATER {
            let Some((frame, next)) = command.log.frame_at(offset) else {
                if offset < command.log.length() {
                    // Waiting would not make it readable.
                    return connection.fail(libc::EIO, "output that was kept cannot be read");
                }
                break;
            };
            connection.send(&frame);
            offset = next;
        }
        if command.is_finished() && (!output || offset >= command.log.length()) {
            connection.send(&Frame::Reply(Reply::Exited(command.status())));
            connection.finish(&Frame::End);
        } else {
            connection.state = State::Following { id, offset, output };
        }
    }
}
