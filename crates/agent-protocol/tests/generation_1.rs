//! Freezes generation 1 of the wire byte by byte, and attacks the decoder.
//! A failing case here means that running agents would stop understanding us.

#![allow(clippy::unwrap_used, reason = "a test")]

use dormouse_agent_protocol::*;
use proptest::prelude::*;

fn check(frame: Frame, kind: u8, payload: &str) {
    let bytes = frame.to_bytes();
    assert_eq!(bytes[4], kind);
    assert_eq!(std::str::from_utf8(&bytes[5..]).unwrap(), payload);
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    assert_eq!(decoder.next_frame().unwrap(), Some(frame));
    assert_eq!(decoder.pending(), 0);
}

#[test]
fn generation_1_is_frozen() {
    check(Frame::Hello(Hello { generation: 1, oldest: 1 }), 0, r#"{"generation":1,"oldest":1}"#);
    check(
        Frame::Request(Request::Start {
            spawn: Spawn {
                id: "cmd_1".into(),
                argv: vec!["true".into()],
                cwd: "/".into(),
                env: vec![("A".into(), "b".into())],
                user: "ubuntu".into(),
                stdin: StdinMode::Null,
                timeout_ms: Some(5),
                sudo_user: None,
            },
            follow: true,
            log: false,
        }),
        1,
        r#"{"op":"start","spawn":{"id":"cmd_1","argv":["true"],"cwd":"/","env":[["A","b"]],"user":"ubuntu","stdin":"null","timeout_ms":5},"follow":true}"#,
    );
    check(Frame::Request(Request::Shutdown { grace_ms: 9 }), 1, r#"{"op":"shutdown","grace_ms":9}"#);
    check(
        Frame::Request(Request::ReadFile { path: "a".into(), cwd: "/".into(), user: "root".into() }),
        1,
        r#"{"op":"read_file","path":"a","cwd":"/","user":"root"}"#,
    );
    // An agent of before says no more than this.
    let ready = Reply::Ready { warnings: Vec::new(), workdir: String::new() };
    check(Frame::Reply(ready), 2, r#"{"reply":"ready"}"#);
    let ready = Reply::Ready { warnings: vec!["w".into()], workdir: "/".into() };
    check(Frame::Reply(ready), 2, r#"{"reply":"ready","warnings":["w"],"workdir":"/"}"#);
    check(
        Frame::Reply(Reply::Exited(CommandStatus {
            id: "c".into(),
            pid: 2,
            started_at: 3,
            exit_code: Some(137),
            duration_ms: Some(4),
            timed_out: true,
            output_truncated: false,
            output_lost: 0,
            oom: false,
            argv: Vec::new(),
            cwd: String::new(),
        })),
        2,
        r#"{"reply":"exited","id":"c","pid":2,"started_at":3,"exit_code":137,"duration_ms":4,"timed_out":true,"output_truncated":false}"#,
    );
    check(Frame::Stdout(b"hi".to_vec()), 3, "hi");
    check(Frame::Stderr(b"hi".to_vec()), 4, "hi");
    check(Frame::Data(b"hi".to_vec()), 5, "hi");
    check(Frame::End, 6, "");
    check(Frame::Error(Errno { errno: 2, message: "no".into() }), 7, r#"{"errno":2,"message":"no"}"#);
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_is_buffered_for_it() {
    let mut decoder = Decoder::default();
    decoder.push(&[0xff, 0xff, 0xff, 0xff, 3]);
    assert!(matches!(decoder.next_frame(), Err(FrameError::TooLarge(_))));
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        cut in 1_usize..64,
    ) {
        let frames: Vec<Frame> = chunks.into_iter().map(Frame::Data).chain([Frame::End]).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for piece in bytes.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert_eq!(seen, frames);
    }
}
