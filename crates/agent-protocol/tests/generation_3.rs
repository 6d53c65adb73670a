//! Freezes what generation 3 added, byte by byte.

#![allow(clippy::unwrap_used, reason = "a test")]

use dormouse_agent_protocol::*;

fn check(frame: Frame, payload: &str) {
    let bytes = frame.to_bytes();
    assert_eq!(std::str::from_utf8(&bytes[5..]).unwrap(), payload);
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    assert_eq!(decoder.next_frame().unwrap(), Some(frame));
}

#[test]
fn generation_3_is_frozen() {
    check(
        Frame::Request(Request::Lifetime { left_ms: 5, grace_ms: 6 }),
        r#"{"op":"lifetime","left_ms":5,"grace_ms":6}"#,
    );
    check(Frame::Reply(Reply::Noted), r#"{"reply":"noted"}"#);
}
