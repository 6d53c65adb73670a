//! Bytes from one connection to another, both ways, until both have ended: an end
//! is passed on as an end, a reset as a reset, so that what was cut off never looks
//! whole.
//!
//! A buffer is only held while there is something in it: an idle connection costs
//! its two sockets and this task.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::ledger::Underway;

/// Bytes that are moved at once, and so many that a connection holds whose other side
/// takes nothing.
const CHUNK: usize = 64 << 10;

thread_local! {
    /// One buffer for all connections of a thread: it is empty whenever a task waits.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Passes bytes until both sides have ended. `first` goes to `upstream` first.
pub(crate) async fn both(
    sandbox: &mut TcpStream,
    upstream: &mut TcpStream,
    first: &[u8],
    underway: &Underway,
) -> io::Result<()> {
    let moved = async {
        upstream.write_all(first).await?;
        underway.sent(first.len());
        let (mut sandbox_read, mut sandbox_write) = sandbox.split();
        let (mut upstream_read, mut upstream_write) = upstream.split();
        tokio::try_join!(
            one_way(&mut sandbox_read, &mut upstream_write, |bytes| underway.sent(bytes)),
            one_way(&mut upstream_read, &mut sandbox_write, |bytes| underway.received(bytes)),
        )
    }
    .await;
    if let Err(error) = moved {
        reset(sandbox);
        reset(upstream);
        return Err(error);
    }
    Ok(())
}

/// Has the connection end with a reset when it is dropped.
pub(crate) fn reset(stream: &TcpStream) {
    // Fails only for a socket that is none.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

enum Moved {
    Nothing,
    All,
    /// What could not be written at once.
    Rest(Vec<u8>),
    End,
}

async fn one_way(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, count: impl Fn(usize)) -> io::Result<()> {
    loop {
        from.ready(Interest::READABLE).await?;
        let moved = BUFFER.with_borrow_mut(|buffer| {
            let length = match from.try_read(buffer) {
                Ok(0) => return Ok(Moved::End),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::Nothing),
                Err(error) => return Err(error),
            };
            count(length);
            let written = match to.try_write(&buffer[..length]) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            Ok(if written == length { Moved::All } else { Moved::Rest(buffer[written..length].to_vec()) })
        })?;
        match moved {
            Moved::Nothing | Moved::All => {}
            Moved::Rest(rest) => to.write_all(&rest).await?,
            Moved::End => return to.shutdown().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::ledger::{Access, Ledger, Way};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (one, other) = tokio::join!(connecting, listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    async fn spliced() -> (TcpStream, TcpStream, tokio::task::JoinHandle<(io::Result<()>, u64, u64)>) {
        let ((inside, mut here), (mut there, outside)) = (pair().await, pair().await);
        let task = tokio::spawn(async move {
            let ledger = Arc::new(Ledger::new("sbx_1".to_owned(), (0, 0), Arc::default()));
            let underway = Underway::new(ledger.clone(), Access::now(Way::Direct));
            let done = both(&mut here, &mut there, b"first ", &underway).await;
            (done, ledger.sums().sent, ledger.sums().received)
        });
        (inside, outside, task)
    }

    #[tokio::test]
    async fn each_side_ends_by_itself_and_all_is_counted() {
        let (mut inside, mut outside, task) = spliced().await;
        inside.write_all(b"request").await.unwrap();
        inside.shutdown().await.unwrap();
        let mut text = String::new();
        outside.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first request");
        // Half closed: the answer still comes, more than fits anywhere at once.
        let answer = vec![7; 8 << 20];
        let (_, read) = tokio::join!(
            async {
                outside.write_all(&answer).await.unwrap();
                outside.shutdown().await.unwrap();
            },
            async {
                let mut read = Vec::new();
                inside.read_to_end(&mut read).await.unwrap();
                read
            }
        );
        assert!(read == answer);
        let (done, sent, received) = task.await.unwrap();
        done.unwrap();
        assert_eq!((sent, received), (13, 8 << 20));
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_both_ways() {
        for from_inside in [true, false] {
            let (inside, outside, task) = spliced().await;
            let (gone, mut left) = if from_inside { (inside, outside) } else { (outside, inside) };
            let mut head = [0; 6];
            if from_inside {
                left.read_exact(&mut head).await.unwrap();
            }
            reset(&gone);
            drop(gone);
            let error = left.read(&mut [0; 16]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            task.await.unwrap().0.unwrap_err();
        }
    }
}
