//! Commands and terminals.

use std::time::Duration;

use bytes::Bytes;
use dormouse_types::CommandId;
use futures::StreamExt as _;

use super::{Bench, Failure, Outcome, check, check_error};
use crate::{
    CommandSpec, Input, LogEvent, ProviderError, StdinSource, TerminalInput, TerminalOutput, TerminalSize,
};

pub(super) async fn exit_codes(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    for (script, code) in [("true", 0), ("exit 7", 7), ("missing-command-x", 127), ("kill -9 $$", 137)] {
        let ran = bench.sh(&made.run, script).await?;
        check!(ran.code == code, "{script:?} exited {}, not {code}", ran.code);
    }
    // A line of a shell is no executable.
    let (run, spec) = (bench.run_ref(&made.run), CommandSpec::new(["echo a b"]));
    match bench.provider.exec(&run, CommandId::generate(), spec).await {
        Err(ProviderError::Invalid(_) | ProviderError::Refused { .. } | ProviderError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(mut events) => {
            let mut code = None;
            while let Some(event) = events.next().await {
                if let LogEvent::Exited(command) = event? {
                    code = command.exit_code;
                }
            }
            check!(code.is_some_and(|code| code != 0), "an executable that is none exited {code:?}");
        }
    }
    Ok(())
}

pub(super) async fn output_comes_whole_and_again(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let ran = bench.sh(&made.run, "echo out; echo err >&2; printf 'end ä€🐭'").await?;
    check!(ran.stdout == "out\nend ä€🐭" && ran.stderr == "err\n", "{:?} {:?}", ran.stdout, ran.stderr);
    let ran = bench.sh(&made.run, "seq 1 100000").await?;
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    check!(ran.stdout == expected, "{} bytes of {}", ran.stdout.len(), expected.len());

    let run = bench.run_ref(&made.run);
    let spec = CommandSpec::new(["sh", "-c", "echo first; sleep 0.3; echo second"]);
    let started = bench.provider.start(&run, CommandId::generate(), spec).await?;
    check!(started.exit_code.is_none(), "a start waited: {started:?}");
    for round in 0..3 {
        let mut events = bench.provider.logs(&run, &started.id).await?;
        let (mut text, mut code) = (Vec::new(), None);
        while let Some(event) = events.next().await {
            match event? {
                LogEvent::Stdout(data) => text.extend_from_slice(&data),
                LogEvent::Exited(command) => code = command.exit_code,
                other => check!(matches!(other, LogEvent::Started(_)), "{other:?}"),
            }
        }
        check!(text == b"first\nsecond\n" && code == Some(0), "reader {round}: {text:?} {code:?}");
    }
    Ok(())
}

pub(super) async fn environment_directory_user(bench: &Bench) -> Outcome {
    let made = bench
        .sandbox_with("a", |request| {
            request.env = [("SET", "by the sandbox"), ("BOTH", "sandbox")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        })
        .await?;
    let mut spec = CommandSpec::new(["sh", "-c", "echo $SET,$BOTH,$ONE,$PWD,$(id -un)"]);
    spec.env = [("BOTH", "command"), ("ONE", "$HOME;")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    spec.cwd = Some("/tmp".to_owned());
    let ran = bench.exec(&made.run, spec.clone()).await?;
    check!(
        ran.stdout.trim() == "by the sandbox,command,$HOME;,/tmp,ubuntu",
        "{:?} {:?}",
        ran.stdout,
        ran.stderr
    );
    spec.sudo = true;
    let ran = bench.exec(&made.run, spec).await?;
    check!(
        ran.stdout.trim() == "by the sandbox,command,$HOME;,/tmp,root",
        "{:?} {:?}",
        ran.stdout,
        ran.stderr
    );
    let here = bench.ok(&made.run, "pwd").await?;
    check!(here == made.run.cwd, "{here} is not the default directory {}", made.run.cwd);
    Ok(())
}

pub(super) async fn time_limits_kill(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let mut spec = CommandSpec::new(["bash", "-c", "sleep 1000 & sleep 1000"]);
    spec.timeout = Some(Duration::from_millis(300));
    let mut events = bench.provider.exec(&run, CommandId::generate(), spec.clone()).await?;
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event?);
    }
    let Some(LogEvent::Exited(command)) = last else {
        return Err(Failure(format!("it ended with {last:?}")));
    };
    check!(command.exit_code == Some(137) && command.timed_out, "{command:?}");
    // Also when nobody follows.
    let started = bench.provider.start(&run, CommandId::generate(), spec).await?;
    let ended = bench.provider.wait(&run, &started.id).await?;
    check!(ended.exit_code == Some(137), "{ended:?}");
    let left = bench.sh(&made.run, "pgrep -c sleep").await?;
    check!(left.stdout.trim() == "0", "{} children outlived the limit", left.stdout.trim());
    Ok(())
}

pub(super) async fn signals_reach_the_group(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    for (signal, code) in [(15, 143), (9, 137), (2, 130)] {
        let spec = CommandSpec::new(["bash", "-c", "trap - INT TERM; sleep 1000"]);
        let started = bench.provider.start(&run, CommandId::generate(), spec).await?;
        bench.provider.kill(&run, &started.id, signal, false).await?;
        let ended = bench.provider.wait(&run, &started.id).await?;
        check!(ended.exit_code == Some(code), "signal {signal}: {ended:?}");
    }
    let unknown = CommandId::generate();
    check_error!(bench.provider.kill(&run, &unknown, 15, false).await, ProviderError::NotFound(_));
    check_error!(bench.provider.command(&run, &unknown).await, ProviderError::NotFound(_));
    check_error!(bench.provider.wait(&run, &unknown).await, ProviderError::NotFound(_));
    check_error!(bench.provider.logs(&run, &unknown).await, ProviderError::NotFound(_));
    Ok(())
}

pub(super) async fn standard_input(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let spec = CommandSpec { stdin: StdinSource::Stream, ..CommandSpec::new(["sha256sum"]) };
    let mut events = match bench.provider.exec(&run, CommandId::generate(), spec).await {
        Ok(events) => events,
        // The protocol has no words for it: a provider may refuse, not ignore.
        Err(ProviderError::Invalid(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let Some(LogEvent::Started(command)) = events.next().await.transpose()? else {
        return Err(Failure("the first event is no start".to_owned()));
    };
    let chunks = (0..64).map(|_| Ok(Bytes::from(vec![b'x'; 16 << 10])));
    let input = Box::pin(futures::stream::iter(chunks.collect::<Vec<_>>()));
    bench.provider.stdin(&run, &command.id, input).await?;
    let mut text = Vec::new();
    while let Some(event) = events.next().await {
        if let LogEvent::Stdout(data) = event? {
            text.extend_from_slice(&data);
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let here = bench.ok(&made.run, "head -c 1048576 /dev/zero | tr '\\0' x | sha256sum").await?;
    check!(text.trim() == here, "{text:?} is not {here:?}");
    Ok(())
}

pub(super) async fn input_by_offset(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let spec = CommandSpec { stdin: StdinSource::Stream, ..CommandSpec::new(["cat"]) };
    let started = match bench.provider.start(&run, CommandId::generate(), spec).await {
        Ok(started) => started,
        Err(ProviderError::Invalid(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let send = async |text: &'static str, offset, close| {
        let input = Input { data: Bytes::from_static(text.as_bytes()), offset, close };
        bench.provider.input(&run, &started.id, input).await
    };
    check!(send("", None, false).await? == 0, "something was taken before anything was sent");
    for (text, offset, total) in [("ab", Some(0), 2), ("ab", Some(0), 2), ("bc", Some(1), 3), ("d", None, 4)]
    {
        let taken = send(text, offset, false).await?;
        check!(taken == total, "{text:?} at {offset:?}: {taken} bytes were taken, not {total}");
    }
    check_error!(send("x", Some(9), false).await, ProviderError::Invalid(_));
    check!(send("e", Some(4), true).await? == 5, "the last part");
    let ended = bench.provider.wait(&run, &started.id).await?;
    check!(ended.exit_code == Some(0), "{ended:?}");
    check_error!(send("f", Some(5), false).await, ProviderError::InputRefused(_));
    let mut events = bench.provider.logs(&run, &started.id).await?;
    let mut text = Vec::new();
    while let Some(event) = events.next().await {
        if let LogEvent::Stdout(data) = event? {
            text.extend_from_slice(&data);
        }
    }
    check!(text == b"abcde", "{:?}", String::from_utf8_lossy(&text));
    let deaf = bench.provider.start(&run, CommandId::generate(), CommandSpec::new(["sleep", "1000"])).await?;
    let input = Input { data: Bytes::from_static(b"x"), offset: Some(0), close: false };
    check_error!(bench.provider.input(&run, &deaf.id, input).await, ProviderError::InputRefused(_));
    bench.provider.kill(&run, &deaf.id, 9, false).await?;
    Ok(())
}

pub(super) async fn commands_are_remembered(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let spec = CommandSpec::new(["sh", "-c", "exit 3"]);
    let started = bench.provider.start(&run, CommandId::generate(), spec).await?;
    let ended = bench.provider.wait(&run, &started.id).await?;
    check!(ended.exit_code == Some(3) && ended.id == started.id, "{ended:?}");
    check!(ended.argv == ["sh", "-c", "exit 3"] && ended.run == made.run.id, "{ended:?}");
    let all = bench.provider.commands(&run).await?;
    check!(all.iter().any(|command| command.id == started.id), "{all:?}");
    Ok(())
}

pub(super) async fn terminals(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let (typed, input) = futures::channel::mpsc::unbounded();
    let spec = CommandSpec::new(["sh", "-c", "tty; stty size; read line; stty size; echo got $line; exit 5"]);
    let size = TerminalSize { cols: 90, rows: 30 };
    let mut output = bench.provider.terminal(&run, spec, size, Box::pin(input)).await?;
    let mut text = String::new();
    let mut code = None;
    let mut answered = false;
    while let Some(event) = output.next().await {
        match event? {
            TerminalOutput::Data(data) => text.push_str(&String::from_utf8_lossy(&data)),
            TerminalOutput::Exited(exit) => code = Some(exit),
        }
        if !answered && text.contains("30 90") {
            answered = true;
            // The other end goes with the terminal.
            let resize = TerminalInput::Resize(TerminalSize { cols: 120, rows: 40 });
            let _ = typed.unbounded_send(resize);
            let _ = typed.unbounded_send(TerminalInput::Data(Bytes::from_static(b"hello\n")));
        }
    }
    check!(text.contains("/dev/pts/"), "no terminal: {text:?}");
    check!(text.contains("40 120") && text.contains("got hello"), "{text:?}");
    check!(code == Some(5), "it exited {code:?}");
    Ok(())
}
