//! Freezes what generation 4 added, byte by byte.

#![allow(clippy::unwrap_used, reason = "a test")]

use dormouse_agent_protocol::*;

fn check(frame: Frame, payload: &str) {
    let bytes = frame.to_bytes();
    assert_eq!(std::str::from_utf8(&bytes[5..]).unwrap(), payload);
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    assert_eq!(decoder.next_frame().unwrap(), Some(frame));
}

fn status() -> CommandStatus {
    CommandStatus {
        id: "c".into(),
        pid: 2,
        started_at: 3,
        exit_code: Some(137),
        duration_ms: Some(4),
        timed_out: false,
        output_truncated: true,
        output_lost: 5,
        oom: true,
        argv: Vec::new(),
        cwd: String::new(),
    }
}

#[test]
fn generation_4_is_frozen() {
    assert_eq!(GENERATION, 4);
    assert_eq!((OUTPUT_FD, CONTROL_FD, MEMORY_EVENTS_FD), (5, 6, 7));
    check(
        Frame::Request(Request::Follow { id: "c".into(), output: true, log: true }),
        r#"{"op":"follow","id":"c","output":true,"log":true}"#,
    );
    check(
        Frame::Request(Request::Stdin { id: "c".into(), counted: true, offset: Some(7), close: true }),
        r#"{"op":"stdin","id":"c","counted":true,"offset":7,"close":true}"#,
    );
    check(
        Frame::Request(Request::Signal { id: "c".into(), signal: 9, tree: true }),
        r#"{"op":"signal","id":"c","signal":9,"tree":true}"#,
    );
    check(
        Frame::Reply(Reply::Log { length: 10, status: status() }),
        r#"{"reply":"log","length":10,"status":{"id":"c","pid":2,"started_at":3,"exit_code":137,"duration_ms":4,"timed_out":false,"output_truncated":true,"output_lost":5,"oom":true}}"#,
    );
    check(Frame::Reply(Reply::Taken { total: 8 }), r#"{"reply":"taken","total":8}"#);
    let spawn = Spawn {
        id: "c".into(),
        argv: vec!["id".into()],
        cwd: "/".into(),
        env: Vec::new(),
        user: "root".into(),
        stdin: StdinMode::Pipe,
        timeout_ms: None,
        sudo_user: Some("ubuntu".into()),
    };
    check(
        Frame::Request(Request::Start { spawn, follow: true, log: true }),
        r#"{"op":"start","spawn":{"id":"c","argv":["id"],"cwd":"/","env":[],"user":"root","stdin":"pipe","timeout_ms":null,"sudo_user":"ubuntu"},"follow":true,"log":true}"#,
    );
}

/// What an agent of before is sent is what it was sent before.
#[test]
fn what_is_new_is_not_said_where_it_is_not_used() {
    check(
        Frame::Request(Request::Follow { id: "c".into(), output: false, log: false }),
        r#"{"op":"follow","id":"c","output":false}"#,
    );
    check(
        Frame::Request(Request::Stdin { id: "c".into(), counted: false, offset: None, close: false }),
        r#"{"op":"stdin","id":"c"}"#,
    );
    check(
        Frame::Request(Request::Signal { id: "c".into(), signal: 9, tree: false }),
        r#"{"op":"signal","id":"c","signal":9}"#,
    );
}

#[test]
fn the_header_of_a_record_is_frozen() {
    use record::{Kind, header, read_header};
    assert_eq!(header(Kind::Stdout, 258), [1, 2, 1, 0, 0]);
    assert_eq!(header(Kind::Stderr, 0), [2, 0, 0, 0, 0]);
    assert_eq!(header(Kind::Lost, 8), [3, 8, 0, 0, 0]);
    assert_eq!(read_header([3, 8, 0, 0, 0]), Some((Kind::Lost, 8)));
    assert_eq!(read_header([0; 5]), None);
}
