//! Output as lines of JSON.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use dormouse_provider::{BoxStream, LogEvent};
use dormouse_wire as wire;
use futures::StreamExt as _;

use super::super::error::WireError;
use super::super::present;

/// The protocol's clients compare this letter by letter.
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// After this much silence something is sent that says nothing: clients and what stands
/// between take a silent connection for a dead one, some after five minutes.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

/// What an answer has in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// Output.
    pub(super) logs: bool,
    /// The command, at its start and at its end.
    pub(super) commands: bool,
    /// How output is written.
    pub(super) encoding: wire::Encoding,
}

/// Text is cut only between characters; bytes that
/// are no UTF-8 become replacement characters, as the protocol has text only.
#[derive(Default)]
struct Utf8Tail {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Utf8Tail {
    fn take(tail: &mut Vec<u8>, data: &[u8], last: bool) -> String {
        tail.extend_from_slice(data);
        let keep = if last { 0 } else { incomplete_suffix(tail) };
        let rest = tail.split_off(tail.len() - keep);
        let text = String::from_utf8_lossy(tail).into_owned();
        *tail = rest;
        text
    }
}

/// Length of a character that has begun at the end of `bytes` and may go on.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        if byte & 0xc0 == 0xc0 {
            let length = if byte >= 0xf0 {
                4
            } else if byte >= 0xe0 {
                3
            } else {
                2
            };
            return if back < length { back } else { 0 };
        }
        if byte & 0x80 == 0 {
            return 0;
        }
    }
    0
}

fn line(value: &impl serde::Serialize) -> Bytes {
    // Strings and numbers: their JSON cannot fail.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn log_line(stream: &str, data: serde_json::Value) -> wire::LogLine {
    wire::LogLine { stream: stream.to_owned(), data, lost: None, encoding: None }
}

fn output(stream: &str, text: String) -> Option<Bytes> {
    (!text.is_empty()).then(|| line(&log_line(stream, text.into())))
}

fn bytes(stream: &str, data: &[u8]) -> Bytes {
    let text = BASE64_STANDARD.encode(data);
    line(&wire::LogLine { encoding: Some(wire::Encoding::Base64), ..log_line(stream, text.into()) })
}

/// What a reader sees where output was lost.
fn lost(count: u64, encoding: wire::Encoding) -> Bytes {
    let text = format!("\n[dormouse: {count} bytes of output were lost here: over the limit, or no room]\n");
    let text = match encoding {
        wire::Encoding::Utf8 => text,
        wire::Encoding::Base64 => BASE64_STANDARD.encode(text),
    };
    let encoding = Some(encoding).filter(|encoding| *encoding != wire::Encoding::Utf8);
    line(&wire::LogLine { lost: Some(count), encoding, ..log_line("stderr", text.into()) })
}

/// Lines of JSON about a command.
pub(super) fn stream(events: BoxStream<LogEvent>, form: Form) -> Response {
    let Form { logs, commands, encoding } = form;
    let raw = encoding == wire::Encoding::Base64;
    let lines = events.scan(Utf8Tail::default(), move |tail, event| {
        let lines: Vec<Bytes> = match event {
            Ok(LogEvent::Started(command) | LogEvent::Exited(command)) => {
                let mut lines = Vec::new();
                if command.exit_code.is_some() && logs {
                    lines.extend(output("stdout", Utf8Tail::take(&mut tail.stdout, b"", true)));
                    lines.extend(output("stderr", Utf8Tail::take(&mut tail.stderr, b"", true)));
                }
                if commands {
                    lines.push(line(&wire::CommandReply { command: present::command(command) }));
                }
                lines
            }
            Ok(LogEvent::Stdout(data)) if logs && raw => vec![bytes("stdout", &data)],
            Ok(LogEvent::Stderr(data)) if logs && raw => vec![bytes("stderr", &data)],
            Ok(LogEvent::Lost(count)) if logs => vec![lost(count, encoding)],
            Ok(LogEvent::Stdout(data)) if logs => {
                output("stdout", Utf8Tail::take(&mut tail.stdout, &data, false)).into_iter().collect()
            }
            Ok(LogEvent::Stderr(data)) if logs => {
                output("stderr", Utf8Tail::take(&mut tail.stderr, &data, false)).into_iter().collect()
            }
            Ok(_) => Vec::new(),
            Err(error) => {
                let detail = serde_json::to_value(WireError::from(error).detail()).unwrap_or_default();
                vec![line(&log_line("error", detail))]
            }
        };
        futures::future::ready(Some(futures::stream::iter(lines)))
    });
    // An answer that ends with a line may have spaces before it; one that may end without has
    // empty lines.
    let filler = Bytes::from_static(if commands { b" " } else { b"\n" });
    let lines = never_silent(lines.flatten(), filler).map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, NDJSON);
    response
}

/// `items`, and `filler` after each [`SILENCE`].
pub(super) fn never_silent(
    items: impl futures::Stream<Item = Bytes> + Send + 'static,
    filler: Bytes,
) -> impl futures::Stream<Item = Bytes> + Send + 'static {
    futures::stream::unfold((Box::pin(items), filler), |(mut items, filler)| async move {
        match tokio::time::timeout(SILENCE, items.next()).await {
            Ok(item) => item.map(|item| (item, (items, filler))),
            Err(_) => Some((filler.clone(), (items, filler))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_command_is_heard_of() {
        let late = futures::stream::once(async {
            tokio::time::sleep(2 * SILENCE + Duration::from_secs(1)).await;
            Bytes::from_static(b"{}\n")
        });
        let heard: Vec<_> = never_silent(late, Bytes::from_static(b" ")).collect().await;
        assert_eq!(heard.concat(), b"  {}\n");
    }

    #[test]
    fn characters_are_never_cut() {
        for character in ["ä", "€", "🐭"] {
            let text = format!("a{character}b");
            for cut in 0..=text.len() {
                let mut tail = Vec::new();
                let mut seen = Utf8Tail::take(&mut tail, &text.as_bytes()[..cut], false);
                seen += &Utf8Tail::take(&mut tail, &text.as_bytes()[cut..], false);
                seen += &Utf8Tail::take(&mut tail, b"", true);
                assert_eq!(seen, text);
            }
        }
    }

    #[test]
    fn what_is_no_text_does_not_wait_for_ever() {
        let mut tail = Vec::new();
        let text = Utf8Tail::take(&mut tail, &[0xff, 0x80, 0x80, 0x80, 0x80], false);
        assert!(text.starts_with('\u{fffd}') && tail.len() < 4);
    }
}
