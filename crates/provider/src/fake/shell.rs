//! The little of a shell that the conformance suite speaks: lists, pipes,
//! `for`, redirections, variables, and a dozen programs. What it does not know
//! exits with 127, as a shell does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::files::{Content, Files, absolute};

/// Where output goes.
#[derive(Debug, Clone)]
pub(super) enum Output {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// What a command runs in.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) files: Arc<Mutex<Files>>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: String,
    pub(super) user: String,
    pub(super) output: mpsc::UnboundedSender<Output>,
    /// Columns and rows, of a terminal.
    pub(super) window: Option<Arc<Mutex<(u16, u16)>>>,
    pub(super) input: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>>,
    /// How many programs of each name run in the sandbox.
    pub(super) running: Arc<Mutex<BTreeMap<String, u32>>>,
    /// What the command left running; it goes with the command.
    pub(super) background: Arc<Mutex<tokio::task::JoinSet<i32>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Vec<Part>),
    Sign(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
    Command(String),
}

const SIGNS: [&str; 10] = ["2>", ">&2", ">>", "&&", "||", ">", ";", "|", "&", "\n"];

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    'outer: while !rest.is_empty() {
        if let Some(blank) = rest.strip_prefix([' ', '\t']) {
            rest = blank;
            continue;
        }
        for sign in SIGNS {
            if let Some(after) = rest.strip_prefix(sign) {
                tokens.push(Token::Sign(sign));
                rest = after;
                continue 'outer;
            }
        }
        let (parts, after) = word(rest);
        tokens.push(Token::Word(parts));
        rest = after;
    }
    tokens
}

fn word(text: &str) -> (Vec<Part>, &str) {
    let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        let ends = " \t;|&>\n".contains(c) && !quoted;
        if ends {
            break;
        }
        match c {
            '\'' if !quoted => {
                let inner = rest[1..].split('\'').next().unwrap_or_default();
                plain.push_str(inner);
                rest = rest.get(inner.len() + 2..).unwrap_or_default();
            }
            '"' => {
                quoted = !quoted;
                rest = &rest[1..];
            }
            '$' => {
                parts.push(Part::Text(std::mem::take(&mut plain)));
                if let Some(inner) = rest.strip_prefix("$(") {
                    let inner = inner.split(')').next().unwrap_or_default();
                    parts.push(Part::Command(inner.to_owned()));
                    rest = rest.get(inner.len() + 3..).unwrap_or_default();
                } else if let Some(after) = rest.strip_prefix("$$") {
                    parts.push(Part::Text("$$".to_owned()));
                    rest = after;
                } else {
                    let name: String =
                        rest[1..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    rest = &rest[1 + name.len()..];
                    parts.push(Part::Variable(name));
                }
            }
            c => {
                plain.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    parts.push(Part::Text(plain));
    (parts, rest)
}

/// What a pipeline's last program gave.
struct Ran {
    code: i32,
    /// The script ends here.
    exits: bool,
}

impl Process {
    fn out(&self, text: impl Into<Vec<u8>>) {
        // Whoever listened may be gone.
        let _ = self.output.send(Output::Stdout(text.into()));
    }

    fn err(&self, text: impl Into<Vec<u8>>) {
        let _ = self.output.send(Output::Stderr(text.into()));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Files) -> T) -> T {
        work(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a command line that is no script; its exit code.
    pub(super) async fn exec(mut self, argv: Vec<String>) -> i32 {
        match argv.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["sh" | "bash", "-c", script, ..] => self.script(script.to_owned()).await.code,
            _ => {
                let (ran, printed) = self.program(argv, None).await;
                self.out(printed);
                ran.code
            }
        }
    }

    fn script(&mut self, script: String) -> BoxFuture<'_, Ran> {
        async move { self.list(tokens(&script)).await }.boxed()
    }

    fn list(&mut self, tokens: Vec<Token>) -> BoxFuture<'_, Ran> {
        async move {
            let mut code = 0;
            let mut rest = &tokens[..];
            while !rest.is_empty() {
                if rest[0] == Token::Word(vec![Part::Text("for".to_owned())]) {
                    let done = rest.iter().position(|token| is_word(token, "done")).unwrap_or(rest.len());
                    code = self.each(&rest[..done]).await;
                    rest = rest.get(done + 1..).unwrap_or_default();
                    rest = rest.strip_prefix(&[Token::Sign(";")]).unwrap_or(rest);
                    continue;
                }
                let end = rest
                    .iter()
                    .position(|t| matches!(t, Token::Sign(";" | "&" | "\n")))
                    .unwrap_or(rest.len());
                let (one, background) = (rest[..end].to_vec(), rest.get(end) == Some(&Token::Sign("&")));
                rest = rest.get(end + 1..).unwrap_or_default();
                if background {
                    let mut own = self.clone();
                    let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
                    background.spawn(async move { own.and_or(one).await.code });
                    continue;
                }
                let ran = self.and_or(one).await;
                code = ran.code;
                if ran.exits {
                    return ran;
                }
            }
            Ran { code, exits: false }
        }
        .boxed()
    }

    /// `for NAME in WORDS; do LIST`
    async fn each(&mut self, tokens: &[Token]) -> i32 {
        let body = tokens.iter().position(|token| is_word(token, "do")).unwrap_or(tokens.len());
        let mut words = Vec::new();
        for token in tokens.iter().take(body).skip(1) {
            if let Token::Word(parts) = token {
                words.push(self.expand(parts).await);
            }
        }
        let mut code = 0;
        let name = words.first().cloned().unwrap_or_default();
        for word in words.into_iter().skip(2) {
            self.env.insert(name.clone(), word);
            code = self.list(tokens.get(body + 1..).unwrap_or_default().to_vec()).await.code;
        }
        code
    }

    async fn and_or(&mut self, tokens: Vec<Token>) -> Ran {
        let mut ran = Ran { code: 0, exits: false };
        let mut before = "&&";
        let mut rest = &tokens[..];
        loop {
            let end = rest.iter().position(|t| matches!(t, Token::Sign("&&" | "||"))).unwrap_or(rest.len());
            if (before == "&&") == (ran.code == 0) {
                ran = self.pipeline(&rest[..end]).await;
                if ran.exits {
                    return ran;
                }
            }
            match rest.get(end) {
                Some(Token::Sign(sign)) => before = sign,
                _ => return ran,
            }
            rest = &rest[end + 1..];
        }
    }

    async fn pipeline(&mut self, tokens: &[Token]) -> Ran {
        let parts: Vec<&[Token]> = tokens.split(|token| *token == Token::Sign("|")).collect();
        let mut piped = None;
        let last = parts.len().saturating_sub(1);
        let mut ran = Ran { code: 0, exits: false };
        for (index, part) in parts.into_iter().enumerate() {
            let (mut argv, mut to, mut quiet, mut to_stderr) = (Vec::new(), None, false, false);
            let mut rest = part.iter();
            while let Some(token) = rest.next() {
                match token {
                    Token::Word(parts) => argv.push(self.expand(parts).await),
                    Token::Sign(">&2") => to_stderr = true,
                    Token::Sign(sign @ (">" | ">>" | "2>")) => {
                        if let Some(Token::Word(parts)) = rest.next() {
                            let path = self.expand(parts).await;
                            if *sign == "2>" {
                                quiet = true;
                            } else {
                                to = Some((absolute(&self.cwd, &path), *sign == ">>"));
                            }
                        }
                    }
                    Token::Sign(_) => {}
                }
            }
            let (done, mut printed) = if quiet {
                let mut own = self.clone();
                own.output = mpsc::unbounded_channel().0;
                own.program(argv, piped.take()).await
            } else {
                self.program(argv, piped.take()).await
            };
            ran = done;
            if let Some((path, append)) = to {
                let user = self.user.clone();
                let written = self.with(|files| files.write(&path, &printed, append, &user, 0o644));
                if let Err(error) = written {
                    self.err(format!("{}\n", error.message));
                    ran.code = 1;
                }
                printed = Vec::new();
            }
            if index < last {
                piped = Some(printed);
            } else if to_stderr {
                self.err(printed);
            } else if !printed.is_empty() {
                self.out(printed);
            }
        }
        ran
    }

    fn expand<'a>(&'a mut self, parts: &'a [Part]) -> BoxFuture<'a, String> {
        async move {
            let mut text = String::new();
            for part in parts {
                match part {
                    Part::Text(plain) => text.push_str(plain),
                    Part::Variable(name) if name == "PWD" => text.push_str(&self.cwd),
                    Part::Variable(name) => text.push_str(self.env.get(name).map_or("", String::as_str)),
                    Part::Command(script) => {
                        let (sender, mut printed) = mpsc::unbounded_channel();
                        let mut own = self.clone();
                        own.output = sender;
                        own.script(script.clone()).await;
                        drop(own);
                        while let Ok(Output::Stdout(bytes)) = printed.try_recv() {
                            text.push_str(String::from_utf8_lossy(&bytes).trim_end());
                        }
                    }
                }
            }
            text
        }
        .boxed()
    }

    /// One program; what it printed, unless it printed by itself.
    async fn program(&mut self, argv: Vec<String>, piped: Option<Vec<u8>>) -> (Ran, Vec<u8>) {
        let ok = |printed: Vec<u8>| (Ran { code: 0, exits: false }, printed);
        let code = |code| (Ran { code, exits: false }, Vec::new());
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let path = |path: &str| absolute(&self.cwd, path);
        match words[..] {
            [] | ["true" | "trap", ..] => ok(Vec::new()),
            ["echo", ref rest @ ..] => ok(format!("{}\n", rest.join(" ")).into_bytes()),
            ["printf", text] => ok(text.as_bytes().to_vec()),
            ["pwd"] => ok(format!("{}\n", self.cwd).into_bytes()),
            ["id", "-un"] => ok(format!("{}\n", self.user).into_bytes()),
            ["exit", number] => (Ran { code: number.parse().unwrap_or(2), exits: true }, Vec::new()),
            ["kill", signal, "$$"] => {
                let signal: i32 = signal.trim_start_matches('-').parse().unwrap_or(15);
                (Ran { code: 128 + signal, exits: true }, Vec::new())
            }
            ["sleep", seconds] => {
                let _counted = Counted::new(&self.running, "sleep");
                tokio::time::sleep(Duration::from_secs_f64(seconds.parse().unwrap_or(0.0))).await;
                ok(Vec::new())
            }
            ["pgrep", "-c", name] => {
                let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                let count = running.get(name).copied().unwrap_or(0);
                (Ran { code: i32::from(count == 0), exits: false }, format!("{count}\n").into_bytes())
            }
            ["seq", from, to] => {
                let (from, to): (u32, u32) = (from.parse().unwrap_or(1), to.parse().unwrap_or(0));
                ok((from..=to).map(|n| format!("{n}\n")).collect::<String>().into_bytes())
            }
            ["head", "-c", count, "/dev/zero"] => ok(vec![0; count.parse().unwrap_or(0)]),
            ["tr", "-d", "\\n"] => {
                ok(piped.unwrap_or_default().into_iter().filter(|byte| *byte != b'\n').collect())
            }
            ["tr", "\\0", to] => {
                let to = to.bytes().next().unwrap_or(0);
                ok(piped
                    .unwrap_or_default()
                    .into_iter()
                    .map(|byte| if byte == 0 { to } else { byte })
                    .collect())
            }
            ["sha256sum"] => {
                let bytes = match piped {
                    Some(piped) => piped,
                    None => self.rest_of_input().await,
                };
                let digest = dormouse_types::hex(&Sha256::digest(bytes));
                ok(format!("{digest}  -\n").into_bytes())
            }
            ["cat"] => match piped {
                Some(piped) => ok(piped),
                None => ok(self.rest_of_input().await),
            },
            ["cat", ref paths @ ..] => {
                let (mut printed, mut failed) = (Vec::new(), 0);
                for one in paths {
                    let (one, user) = (path(one), self.user.clone());
                    match self.with(|files| files.read(&one, &user)) {
                        Ok(bytes) => printed.extend(bytes),
                        Err(error) => {
                            self.err(format!("cat: {}\n", error.message));
                            failed = 1;
                        }
                    }
                }
                (Ran { code: failed, exits: false }, printed)
            }
            ["mkdir", dir] => {
                let (dir, user) = (path(dir), self.user.clone());
                self.done(self.with(|files| files.mkdir(&dir, false, &user)))
            }
            ["ln", from, to] => {
                let (from, to) = (path(from), path(to));
                self.done(self.with(|files| files.link(&from, &to)))
            }
            ["mv", from, to] => {
                let (from, to) = (path(from), path(to));
                self.done(self.with(|files| files.rename(&from, &to)))
            }
            ["ls", "-d", one] => match self.with(|files| files.get(&path(one)).map(drop)) {
                Ok(()) => ok(format!("{one}\n").into_bytes()),
                Err(_) => code(2),
            },
            ["ls", one] => {
                let place = path(one);
                let listed = self.with(|files| match files.get(&place)?.content {
                    Content::Dir => files.list(&place),
                    Content::File(_) => Ok(vec![one.to_owned()]),
                });
                match listed {
                    Ok(names) => {
                        ok(names.into_iter().map(|name| format!("{name}\n")).collect::<String>().into_bytes())
                    }
                    Err(_) => code(2),
                }
            }
            ["stat", "-c", format, one] => match self.with(|files| files.get(&path(one)).cloned()) {
                Ok(inode) => {
                    let kind = match inode.content {
                        Content::Dir => "directory",
                        Content::File(_) => "regular file",
                    };
                    let shown = format
                        .replace("%U", &inode.owner)
                        .replace("%a", &format!("{:o}", inode.mode & 0o7777))
                        .replace("%F", kind);
                    ok(format!("{shown}\n").into_bytes())
                }
                Err(_) => code(1),
            },
            ["tty"] if self.window.is_some() => ok(b"/dev/pts/0\n".to_vec()),
            ["stty", "size"] => match &self.window {
                Some(window) => {
                    let (cols, rows) = *window.lock().unwrap_or_else(PoisonError::into_inner);
                    ok(format!("{rows} {cols}\n").into_bytes())
                }
                None => code(1),
            },
            ["read", name] => {
                let name = name.to_owned();
                match self.input.lock().await.recv().await {
                    Some(line) => {
                        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                        self.env.insert(name, line);
                        ok(Vec::new())
                    }
                    None => code(1),
                }
            }
            [name, ..] => {
                self.err(format!("{name}: not found\n"));
                code(127)
            }
        }
    }

    fn done(&self, result: super::files::Result<()>) -> (Ran, Vec<u8>) {
        let code = match result {
            Ok(()) => 0,
            Err(error) => {
                self.err(format!("{}\n", error.message));
                1
            }
        };
        (Ran { code, exits: false }, Vec::new())
    }

    async fn rest_of_input(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut input = self.input.lock().await;
        while let Some(chunk) = input.recv().await {
            bytes.extend(chunk);
        }
        bytes
    }
}

fn is_word(token: &Token, word: &str) -> bool {
    *token == Token::Word(vec![Part::Text(word.to_owned())])
}

/// A program that runs, as long as this lives.
struct Counted {
    running: Arc<Mutex<BTreeMap<String, u32>>>,
    name: String,
}

impl Counted {
    fn new(running: &Arc<Mutex<BTreeMap<String, u32>>>, name: &str) -> Self {
        *running.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
        Self { running: running.clone(), name: name.to_owned() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(count) = self.running.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.name) {
            *count -= 1;
        }
    }
}
