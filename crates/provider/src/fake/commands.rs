//! Commands of a run: what they printed, and how they ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_types::{CommandId, Timestamp};
use tokio::sync::{mpsc, watch};

use super::shell::{Output, Process};
use crate::{Command, CommandSpec, LogEvent};

/// A command, running or not.
#[derive(Debug)]
pub(super) struct Running {
    state: Mutex<State>,
    /// Grows with everything that happens.
    news: watch::Sender<u64>,
    pub(super) input: Mutex<Option<mpsc::UnboundedSender<Vec<u8>>>>,
    /// Bytes that were sent by then.
    pub(super) taken: std::sync::atomic::AtomicU64,
    task: Mutex<Option<tokio::task::AbortHandle>>,
    background: Arc<Mutex<tokio::task::JoinSet<i32>>>,
}

#[derive(Debug)]
struct State {
    command: Command,
    output: Vec<Output>,
}

impl Running {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command; `window`: on a terminal.
    pub(super) fn start(
        command: Command,
        spec: &CommandSpec,
        process: impl FnOnce(
            mpsc::UnboundedSender<Output>,
            mpsc::UnboundedReceiver<Vec<u8>>,
            Arc<Mutex<tokio::task::JoinSet<i32>>>,
        ) -> Process,
        answer: Option<(i32, String)>,
    ) -> Arc<Self> {
        let (output, mut printed) = mpsc::unbounded_channel();
        let (feed, input) = mpsc::unbounded_channel();
        let background: Arc<Mutex<tokio::task::JoinSet<i32>>> = Arc::default();
        let process = process(output.clone(), input, background.clone());
        let running = Arc::new(Self {
            state: Mutex::new(State { command, output: Vec::new() }),
            news: watch::channel(0).0,
            input: Mutex::new(Some(feed)),
            taken: std::sync::atomic::AtomicU64::new(0),
            task: Mutex::default(),
            background,
        });
        let (kept, limit, argv) = (running.clone(), spec.timeout, spec.argv.clone());
        let listening = running.clone();
        let listener = tokio::spawn(async move {
            while let Some(one) = printed.recv().await {
                listening.state().output.push(one);
                listening.news.send_modify(|count| *count += 1);
            }
        });
        let task = tokio::spawn(async move {
            let work = async {
                match answer {
                    Some((code, text)) => {
                        // Its own listener takes it.
                        let _ = output.send(Output::Stdout(text.into_bytes()));
                        drop((process, output));
                        code
                    }
                    None => {
                        drop(output);
                        process.exec(argv).await
                    }
                }
            };
            let (code, timed_out) = match limit {
                Some(limit) => match tokio::time::timeout(limit, work).await {
                    Ok(code) => (code, false),
                    Err(_) => (137, true),
                },
                None => (work.await, false),
            };
            kept.background.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
            // What it printed comes before its end.
            let _ = tokio::time::timeout(Duration::from_secs(1), listener).await;
            kept.end(code, timed_out);
        });
        *running.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        running
    }

    fn end(&self, code: i32, timed_out: bool) {
        let mut state = self.state();
        if state.command.exit_code.is_none() {
            state.command.exit_code = Some(code);
            state.command.timed_out = timed_out;
            state.command.duration = Some(Duration::ZERO);
        }
        drop(state);
        self.news.send_modify(|count| *count += 1);
    }

    /// Ends it by a signal.
    pub(super) fn kill(&self, signal: i32) {
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
        self.background.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.end(128 + signal, false);
    }

    pub(super) fn command(&self) -> Command {
        self.state().command.clone()
    }

    pub(super) async fn ended(&self) -> Command {
        let mut news = self.news.subscribe();
        loop {
            let command = self.command();
            // The sender lives as long as this does.
            if command.exit_code.is_some() || news.changed().await.is_err() {
                return command;
            }
        }
    }

    /// From the first byte to the end.
    pub(super) fn follow(self: Arc<Self>) -> crate::BoxStream<LogEvent> {
        let news = self.news.subscribe();
        let started = LogEvent::Started(self.command());
        let rest =
            futures::stream::unfold((self, news, 0, false), |(running, mut news, at, over)| async move {
                if over {
                    return None;
                }
                loop {
                    let (next, command) = {
                        let state = running.state();
                        (state.output.get(at).cloned(), state.command.clone())
                    };
                    match next {
                        Some(Output::Stdout(bytes)) => {
                            return Some((
                                Ok(LogEvent::Stdout(bytes.into())),
                                (running, news, at + 1, false),
                            ));
                        }
                        Some(Output::Stderr(bytes)) => {
                            return Some((
                                Ok(LogEvent::Stderr(bytes.into())),
                                (running, news, at + 1, false),
                            ));
                        }
                        None if command.exit_code.is_some() => {
                            return Some((Ok(LogEvent::Exited(command)), (running, news, at, true)));
                        }
                        None if news.changed().await.is_err() => return None,
                        None => {}
                    }
                }
            });
        use futures::StreamExt as _;
        Box::pin(futures::stream::iter([Ok(started)]).chain(rest))
    }
}

/// A command that has just begun.
pub(super) fn command(
    id: CommandId,
    run: dormouse_types::RunId,
    spec: &CommandSpec,
    cwd: String,
    now: Timestamp,
) -> Command {
    Command {
        id,
        argv: spec.argv.clone(),
        cwd,
        run,
        started_at: now,
        exit_code: None,
        duration: None,
        timed_out: false,
        output_lost: 0,
        oom: false,
    }
}

/// Commands of a run, by id, and so by age.
pub(super) type Commands = BTreeMap<CommandId, Arc<Running>>;
