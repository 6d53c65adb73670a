//! What counts as use of a session's sandbox, where a request goes on for long.
//!
//! Bytes count, silence does not. What a sandbox says counts only for a while
//! after its client said something: the stream of a forgotten tab would keep it
//! awake for ever.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use dormouse_provider::SandboxKey;
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::App;

/// Use is noted this often at most.
const NOTED: Duration = Duration::from_secs(10);

/// When use was last noted, by sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted(Arc<Mutex<HashMap<SandboxKey, Instant>>>);

/// Use of a sandbox.
#[derive(Clone)]
pub(crate) struct Activity {
    app: App,
    key: SandboxKey,
}

impl Activity {
    pub(crate) fn new(app: &App, key: SandboxKey) -> Self {
        Self { app: app.clone(), key }
    }

    /// Well before the sandbox would fall asleep.
    fn often(&self) -> Duration {
        NOTED.min(self.app.sessions.idle_timeout() / 4)
    }

    /// It is used now.
    pub(crate) fn note(&self) {
        if self.key.name.session().is_none() {
            return;
        }
        {
            let often = self.often();
            let mut noted = self.app.noted.0.lock().unwrap_or_else(PoisonError::into_inner);
            if noted.get(&self.key).is_some_and(|at| at.elapsed() < often) {
                return;
            }
            noted.retain(|_, at| at.elapsed() < often);
            noted.insert(self.key.clone(), Instant::now());
        }
        let (app, key) = (self.app.clone(), self.key.clone());
        tokio::spawn(async move { crate::provider::note_use(&app, &key).await });
    }

    /// It is used for as long as somebody waits for `work`.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(self.often()) => self.note(),
            }
        }
    }

    /// It is used for as long as somebody follows `stream`.
    pub(crate) fn while_followed<T>(
        self,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> impl Stream<Item = T> + Send + 'static
    where
        T: Send,
    {
        futures::stream::unfold((Box::pin(stream), self), |(mut stream, activity)| async move {
            let next = activity.during(stream.next()).await;
            // One that says something all the time is used all the time.
            activity.note();
            next.map(|item| (item, (stream, activity)))
        })
    }

    /// It is used by a stream that its client may forget.
    pub(crate) fn stream(self) -> StreamUse {
        StreamUse { activity: self, client: Arc::new(Mutex::new(Instant::now())) }
    }
}

/// Use by a stream between a client and a sandbox.
#[derive(Clone)]
pub(crate) struct StreamUse {
    activity: Activity,
    /// When the client last said something.
    client: Arc<Mutex<Instant>>,
}

impl StreamUse {
    /// The client said something.
    pub(crate) fn client(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.activity.note();
    }

    /// The sandbox did.
    pub(crate) fn sandbox(&self) {
        let client = *self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if client.elapsed() < self.activity.app.ports.unattended {
            self.activity.note();
        }
    }

    /// Counts silence too, for as long after the client's last word: who reads what
    /// stands on a terminal is there. Never returns.
    pub(crate) async fn open(&self) {
        loop {
            tokio::time::sleep(self.activity.often()).await;
            self.sandbox();
        }
    }
}

/// A connection whose incoming bytes are told.
pub(crate) struct Watched<C, F> {
    connection: C,
    heard: F,
}

impl<C, F: FnMut(&[u8]) + Unpin> Watched<C, F> {
    pub(crate) fn new(connection: C, heard: F) -> Self {
        Self { connection, heard }
    }
}

impl<C: AsyncRead + Unpin, F: FnMut(&[u8]) + Unpin> AsyncRead for Watched<C, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.connection).poll_read(context, buffer);
        if buffer.filled().len() > before {
            (self.heard)(&buffer.filled()[before..]);
        }
        read
    }
}

impl<C: AsyncWrite + Unpin, F: Unpin> AsyncWrite for Watched<C, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

/// Tells data in a WebSocket's frames from pings, pongs and goodbyes, which
/// programs send by themselves (RFC 6455, sections 5.2 and 5.5).
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// What has come of the next frame's head.
    head: Vec<u8>,
    /// What is still to come of this frame.
    left: u64,
    data: bool,
}

impl Frames {
    /// Whether there is data in the next bytes.
    pub(crate) fn have_data(&mut self, mut bytes: &[u8]) -> bool {
        let mut any = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                any |= self.data;
                self.left -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            let [first, second, ..] = self.head[..] else { continue };
            let length = match second & 0x7f {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let mask = if second & 0x80 == 0 { 0 } else { 4 };
            if self.head.len() < 2 + length + mask {
                continue;
            }
            self.left = match length {
                0 => u64::from(second & 0x7f),
                _ => self.head[2..2 + length].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            };
            self.data = first & 0x08 == 0;
            any |= self.data;
            self.head.clear();
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::Frames;

    #[test]
    fn pings_are_no_data() {
        let ping = [0x89, 0x84, 1, 2, 3, 4, 9, 9, 9, 9];
        let text = [0x81, 0x82, 1, 2, 3, 4, 9, 9];
        let mut long = vec![0x82, 126, 1, 0];
        long.extend([0; 256]);
        let mut frames = Frames::default();
        assert!(!frames.have_data(&ping));
        assert!(frames.have_data(&text));
        assert!(frames.have_data(&long));
        assert!(!frames.have_data(&ping));
        // In pieces of any size, also within one frame.
        let all = [&ping[..], &ping, &text, &long, &ping].concat();
        for size in 1..20 {
            let mut frames = Frames::default();
            let heard: Vec<bool> = all.chunks(size).map(|piece| frames.have_data(piece)).collect();
            assert!(!heard[0] && heard.iter().any(|data| *data), "{size}");
            assert!(frames.left == 0 && frames.head.is_empty());
        }
        let mut frames = Frames::default();
        assert!(ping.iter().all(|byte| !frames.have_data(&[*byte])));
    }
}
