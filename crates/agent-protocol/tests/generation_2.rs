//! Freezes what generation 2 added, byte by byte.

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
fn generation_2_is_frozen() {
    let spawn = Spawn {
        id: "cmd_1".into(),
        argv: vec!["bash".into()],
        cwd: "/".into(),
        env: Vec::new(),
        user: "ubuntu".into(),
        stdin: StdinMode::Null,
        timeout_ms: None,
        sudo_user: None,
    };
    check(
        Frame::Request(Request::Terminal { spawn, cols: 80, rows: 24 }),
        r#"{"op":"terminal","spawn":{"id":"cmd_1","argv":["bash"],"cwd":"/","env":[],"user":"ubuntu","stdin":"null","timeout_ms":null},"cols":80,"rows":24}"#,
    );
    check(Frame::Request(Request::Resize { cols: 1, rows: 2 }), r#"{"op":"resize","cols":1,"rows":2}"#);
    check(Frame::Request(Request::Dial { port: 3000 }), r#"{"op":"dial","port":3000}"#);
    check(Frame::Reply(Reply::Dialed), r#"{"reply":"dialed"}"#);
    check(
        Frame::Reply(Reply::Command(CommandStatus {
            id: "c".into(),
            pid: 2,
            started_at: 3,
            exit_code: None,
            duration_ms: None,
            timed_out: false,
            output_truncated: false,
            output_lost: 0,
            oom: false,
            argv: vec!["sh".into()],
            cwd: "/w".into(),
        })),
        r#"{"reply":"command","id":"c","pid":2,"started_at":3,"exit_code":null,"duration_ms":null,"timed_out":false,"output_truncated":false,"argv":["sh"],"cwd":"/w"}"#,
    );
}
