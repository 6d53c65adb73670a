//! Output as lines of JSON.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use dormouse_provider::{BoxStream, LogEvent};
use dormouse_wire as wire;
use futures::StreamExt as _;

use super::super::error::WireError;
use super::super::present;

/// The protocol's clients compare this letter by letter.
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

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

fn output(stream: &str, text: String) -> Option<Bytes> {
    (!text.is_empty()).then(|| line(&wire::LogLine { stream: stream.to_owned(), data: text.into() }))
}

pub(super) fn stream(events: BoxStream<LogEvent>, logs: bool, commands: bool) -> Response {
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
            Ok(LogEvent::Stdout(data)) if logs => {
                output("stdout", Utf8Tail::take(&mut tail.stdout, &data, false)).into_iter().collect()
            }
            Ok(LogEvent::Stderr(data)) if logs => {
                output("stderr", Utf8Tail::take(&mut tail.stderr, &data, false)).into_iter().collect()
            }
            Ok(_) => Vec::new(),
            Err(error) => {
                let detail = serde_json::to_value(WireError::from(error).detail()).unwrap_or_default();
                vec![line(&wire::LogLine { stream: "error".to_owned(), data: detail })]
            }
        };
        futures::future::ready(Some(futures::stream::iter(
            lines.into_iter().map(Ok::<_, std::convert::Infallible>),
        )))
    });
    let mut response = Response::new(Body::from_stream(lines.flatten()));
    response.headers_mut().insert(header::CONTENT_TYPE, NDJSON);
    response
}

#[cfg(test)]
mod tests {
    use super::Utf8Tail;

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
