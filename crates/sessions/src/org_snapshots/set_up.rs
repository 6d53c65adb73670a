//! What a repository wants run once after it is cloned: its `.dormouse/setup`, or
//! `onCreateCommand` and `updateContentCommand` of its `devcontainer.json` (the
//! development container specification, "Lifecycle scripts").
//!
//! It runs as the default user, in the checkout, without credentials. What it
//! leaves behind is in the snapshot, also when it fails.

use std::time::Duration;

use dormouse_provider::{CommandSpec, LogEvent, ProviderError, RunRef};
use dormouse_types::{CommandId, SetUp};
use futures::StreamExt as _;
use serde_json::Value;

use super::log::BuildLog;
use crate::Sessions;

/// The repository's own script; it need not be executable.
const SCRIPT: &str = ".dormouse/setup";

/// Where a `devcontainer.json` may be.
const CONTAINERS: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];

/// Its commands that are run, in this order.
const COMMANDS: [&str; 2] = ["onCreateCommand", "updateContentCommand"];

/// Largest file that is read, in bytes.
const MAX_FILE: usize = 256 << 10;

/// A command of the set-up.
type Argv = Vec<String>;

impl Sessions {
    /// Runs the set-up that is in a run's checkout; how it went.
    pub(super) async fn run_set_up(
        &self,
        run: &RunRef,
        limit: Duration,
        log: &mut BuildLog,
    ) -> std::result::Result<SetUp, ProviderError> {
        let commands = match self.find_set_up(run).await? {
            Ok(commands) => commands,
            Err(words) => {
                log.line(&words);
                return Ok(SetUp::Failed);
            }
        };
        if commands.is_empty() {
            return Ok(SetUp::Nothing);
        }
        let until = tokio::time::Instant::now() + limit;
        for argv in commands {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            log.line(&format!("$ {}", argv.join(" ")));
            let mut spec = CommandSpec::new(argv);
            spec.timeout = Some(left.max(Duration::from_millis(1)));
            let mut events = self.provider.exec(run, CommandId::generate(), spec).await?;
            let mut words = Vec::new();
            loop {
                match events.next().await.transpose()? {
                    Some(LogEvent::Stdout(data) | LogEvent::Stderr(data)) => {
                        words.extend_from_slice(&data);
                        take_lines(&mut words, log);
                        log.step().await;
                    }
                    Some(LogEvent::Started(_) | LogEvent::Lost(_)) => {}
                    Some(LogEvent::Exited(command)) if command.exit_code == Some(0) => break,
                    Some(LogEvent::Exited(command)) => {
                        log.line(&String::from_utf8_lossy(&words));
                        log.line(&if command.timed_out {
                            format!("the set-up took longer than {}", dormouse_types::format_duration(limit))
                        } else {
                            format!("it exited with {}", command.exit_code.unwrap_or(-1))
                        });
                        return Ok(SetUp::Failed);
                    }
                    None => return Err(ProviderError::Stopped),
                }
            }
            log.line(&String::from_utf8_lossy(&words));
        }
        Ok(SetUp::Done)
    }

    /// The commands of the set-up, or what is wrong with its file.
    async fn find_set_up(
        &self,
        run: &RunRef,
    ) -> std::result::Result<std::result::Result<Vec<Argv>, String>, ProviderError> {
        if self.read_text(run, SCRIPT).await?.is_some() {
            let script = format!("if [ -x {SCRIPT} ]; then exec ./{SCRIPT}; else exec sh {SCRIPT}; fi");
            return Ok(Ok(vec![shell(&script)]));
        }
        for file in CONTAINERS {
            if let Some(text) = self.read_text(run, file).await? {
                return Ok(commands(&text).map_err(|why| format!("{file}: {why}")));
            }
        }
        Ok(Ok(Vec::new()))
    }

    /// A file of a checkout; `None`: there is none.
    async fn read_text(
        &self,
        run: &RunRef,
        path: &str,
    ) -> std::result::Result<Option<String>, ProviderError> {
        let mut parts = match self.provider.read_file(run, path, None).await {
            Ok(parts) => parts,
            Err(ProviderError::NotFound(_) | ProviderError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        while let Some(part) = parts.next().await.transpose()? {
            content.extend_from_slice(&part);
            if content.len() > MAX_FILE {
                return Ok(None);
            }
        }
        Ok(Some(String::from_utf8_lossy(&content).into_owned()))
    }
}

/// Moves whole lines to the log.
fn take_lines(words: &mut Vec<u8>, log: &mut BuildLog) {
    while let Some(end) = words.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = words.drain(..=end).collect();
        log.line(String::from_utf8_lossy(&line).trim_end());
    }
    // One that never ends.
    if words.len() > MAX_FILE {
        words.clear();
    }
}

fn shell(script: &str) -> Argv {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// The commands that a `devcontainer.json` names, in their order.
fn commands(text: &str) -> std::result::Result<Vec<Argv>, String> {
    let options = jsonc_parser::ParseOptions::default();
    let file: Value =
        jsonc_parser::parse_to_serde_value::<Value>(text, &options).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for name in COMMANDS {
        match file.get(name) {
            None | Some(Value::Null) => {}
            // Those of an object may run side by side; one after the other will do.
            Some(Value::Object(several)) => {
                for one in several.values() {
                    found.push(command(name, one)?);
                }
            }
            Some(one) => found.push(command(name, one)?),
        }
    }
    Ok(found)
}

fn command(name: &str, value: &Value) -> std::result::Result<Argv, String> {
    let wrong = || format!("{name} must be a string, an array of strings, or an object of those");
    match value {
        Value::String(script) => Ok(shell(script)),
        Value::Array(words) if !words.is_empty() => {
            words.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devcontainer_says_what_is_run() {
        let text = r#"{
            // Comments, and a comma too many, are usual.
            "image": "x",
            "updateContentCommand": ["npm", "ci"],
            "onCreateCommand": {"a": "make a", "b": ["make", "b"]},
            "postCreateCommand": "not now",
        }"#;
        let expected = [shell("make a"), vec!["make".into(), "b".into()], vec!["npm".into(), "ci".into()]];
        assert_eq!(commands(text).unwrap(), expected);
        assert_eq!(commands("{}").unwrap(), Vec::<Argv>::new());
        for wrong in ["{", r#"{"onCreateCommand": 5}"#, r#"{"onCreateCommand": []}"#] {
            commands(wrong).unwrap_err();
        }
    }
}
