//! The client against a server that answers in the shape of the real service
//! (provider contract, section 4) and misbehaves on order: 429, 5xx, silence,
//! answers cut off in the middle, before and after the thing was done.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use dormouse_provider::{
    Action, CommandSpec, CreateSandbox, CustomPolicy, DomainPolicy, LogEvent, Namespace, NetworkPolicy,
    ProviderError, Rule, RunRef, RunStatus, SandboxKey, SandboxProvider, StopReason,
};
use dormouse_provider_vercel::{Vercel, VercelConfig};
use dormouse_types::CommandId;
use futures::StreamExt as _;
use serde_json::{Value, json};

/// What the server does to the next request that fits.
#[derive(Debug, Clone)]
enum Fault {
    /// Answers this, and does nothing.
    Instead(StatusCode, &'static str, Option<u32>),
    /// Does it, then answers 502.
    After,
    /// Does it, then breaks the connection in the middle of the answer.
    CutAfter,
    /// Says nothing for long.
    Silence,
    /// Sends this much of the answer and breaks the connection.
    CutAt(usize),
    /// Sends this much of the answer, and ends it as if that were all.
    EndAt(usize),
}

#[derive(Debug, Default)]
struct Fake {
    faults: VecDeque<(Method, &'static str, Fault)>,
    sandboxes: HashMap<String, Value>,
    /// Until then what was made cannot be found, although its name is taken.
    hidden_until: Option<Instant>,
    /// Answers that the stop of a session needs to be complete.
    polls_to_stop: u32,
    status: &'static str,
    commands: u32,
    seen: Vec<(Method, String, Value)>,
}

type Shared = Arc<Mutex<Fake>>;

const OUTPUT: &str = "one\ntwo ä€🐭\nthree\n";

fn session(status: &str) -> Value {
    json!({
        "id": "sbx_3fT9kQ2mZ8wLrV5n", "memory": 4096, "vcpus": 2, "region": "iad1", "runtime": "node24",
        "timeout": 300_000, "status": status, "requestedAt": 1_790_000_000_000_i64,
        "createdAt": 1_790_000_000_000_i64, "startedAt": 1_790_000_000_200_i64, "cwd": "/vercel/sandbox",
        "updatedAt": 1_790_000_000_300_i64, "projectId": "prj_x", "activeCpuDurationMs": 12,
        "networkPolicy": {"mode": "custom", "allowedDomains": ["*", "github.com"],
            "injectionRules": [{"domain": "github.com", "headerNames": ["authorization"]}]}
    })
}

fn sandbox(name: &str, tags: &Value) -> Value {
    json!({
        "name": name, "persistent": true, "createdAt": 1_790_000_000_000_i64, "status": "running",
        "updatedAt": 1_790_000_000_300_i64, "currentSessionId": "sbx_3fT9kQ2mZ8wLrV5n", "tags": tags,
        "region": "iad1", "failoverRegions": ["sfo1"], "vcpus": 2, "memory": 4096, "totalIngressBytes": 7
    })
}

fn command(exit: Option<i32>) -> Value {
    json!({
        "id": "cmd_8sKq1", "name": "sh", "args": ["-c", "x"], "cwd": "/vercel/sandbox",
        "sessionId": "sbx_3fT9kQ2mZ8wLrV5n", "exitCode": exit, "startedAt": 1_790_000_001_000_i64
    })
}

fn error(status: StatusCode, code: &str) -> Response {
    // The words lie on purpose: nothing may be decided by them.
    let body = json!({"error": {"code": code, "message": "status code 404: sandbox not found, stopped"}});
    (status, axum::Json(body)).into_response()
}

fn lines(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

/// The answer of a server that behaves.
fn answer(fake: &mut Fake, method: &Method, path: &str, body: &Value) -> (StatusCode, String) {
    let ok = |value: Value| (StatusCode::OK, value.to_string());
    let missing = || {
        let body = json!({"error": {"code": "not_found", "message": "no"}});
        (StatusCode::NOT_FOUND, body.to_string())
    };
    let found = |fake: &Fake, name: &str| match fake.sandboxes.get(name) {
        Some(_)
            if *method == Method::GET && fake.hidden_until.is_some_and(|until| Instant::now() < until) =>
        {
            missing()
        }
        Some(tags) => {
            ok(json!({"sandbox": sandbox(name, tags), "session": session("running"), "routes": []}))
        }
        None => missing(),
    };
    let rest = path.trim_start_matches("/api/v2/sandboxes").trim_start_matches("/api/v3/sandboxes");
    match (method.as_str(), rest) {
        ("POST", "") => {
            let name = body["name"].as_str().unwrap_or_default().to_owned();
            if fake.sandboxes.contains_key(&name) {
                let body = json!({"error": {"code": "bad_request", "message": "taken"}});
                return (StatusCode::CONFLICT, body.to_string());
            }
            fake.sandboxes.insert(name.clone(), body["tags"].clone());
            found(fake, &name)
        }
        ("POST", path) if path.ends_with("/stop") => {
            fake.status = "stopping";
            ok(json!({"session": session("stopping")}))
        }
        ("POST", path) if path.ends_with("/network-policy") => ok(json!({"session": session("running")})),
        ("POST", path) if path.ends_with("/cmd") => {
            fake.commands += 1;
            if body["wait"] == true {
                let half = OUTPUT.len() / 2;
                let (a, b) =
                    OUTPUT.split_at(half - (0..4).find(|n| OUTPUT.is_char_boundary(half - n)).unwrap());
                return (
                    StatusCode::OK,
                    lines(&[
                        json!({"command": command(None)}),
                        json!({"stream": "stdout", "data": a}),
                        json!({"stream": "stdout", "data": b}),
                        json!({"command": command(Some(3))}),
                    ]),
                );
            }
            ok(json!({"command": command(None)}))
        }
        ("GET", path) if path.ends_with("/logs") => {
            let chunks = OUTPUT.split_inclusive(' ').map(|part| json!({"stream": "stdout", "data": part}));
            (StatusCode::OK, lines(&chunks.collect::<Vec<_>>()))
        }
        ("GET", path) if path.contains("/cmd/") => ok(json!({"command": command(Some(3))})),
        ("GET", path) if path.starts_with("/sessions/") => {
            if fake.status == "stopping" {
                fake.polls_to_stop = fake.polls_to_stop.saturating_sub(1);
                if fake.polls_to_stop == 0 {
                    fake.status = "stopped";
                }
            }
            ok(
                json!({"session": session(if fake.status.is_empty() { "running" } else { fake.status }), "routes": []}),
            )
        }
        ("DELETE", path) => match fake.sandboxes.remove(path.trim_start_matches('/')) {
            Some(tags) => ok(json!({"sandbox": sandbox(path.trim_start_matches('/'), &tags)})),
            None => missing(),
        },
        (_, path) => found(fake, path.trim_start_matches('/')),
    }
}

/// A body that breaks its connection after `text`.
fn cut(text: Vec<u8>) -> Body {
    let parts = futures::stream::iter([Ok(Bytes::from(text)), Err(std::io::Error::other("cut"))]);
    // The first part must be out before the connection goes.
    Body::from_stream(parts.then(|part| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        part
    }))
}

async fn serve(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = parts.uri.path().to_owned();
    assert_eq!(parts.headers[header::AUTHORIZATION], "Bearer s3cret");
    let fault = {
        let mut fake = shared.lock().unwrap();
        let whole = parts.uri.path_and_query().unwrap().to_string();
        fake.seen.push((parts.method.clone(), whole, body.clone()));
        let fits =
            |(method, ending, _): &(Method, &str, Fault)| parts.method == *method && path.ends_with(ending);
        let at = fake.faults.iter().position(fits);
        at.and_then(|at| fake.faults.remove(at)).map(|(_, _, fault)| fault)
    };
    let behave = |shared: &Shared| answer(&mut shared.lock().unwrap(), &parts.method, &path, &body);
    let content = if path.ends_with("/cmd") && body["wait"] == true || path.ends_with("/logs") {
        "application/x-ndjson"
    } else {
        "application/json"
    };
    let reply =
        |status: StatusCode, body: Body| (status, [(header::CONTENT_TYPE, content)], body).into_response();
    match fault {
        None => {
            let (status, text) = behave(&shared);
            reply(status, text.into())
        }
        Some(Fault::Instead(status, code, retry_after)) => {
            let mut response = error(status, code);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
        Some(Fault::After) => {
            behave(&shared);
            error(StatusCode::BAD_GATEWAY, "internal")
        }
        Some(Fault::CutAfter) => {
            let (status, text) = behave(&shared);
            reply(status, cut(text.as_bytes()[..text.len() / 2].to_vec()))
        }
        Some(Fault::Silence) => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            error(StatusCode::BAD_GATEWAY, "internal")
        }
        Some(Fault::EndAt(bytes)) => {
            let (status, text) = behave(&shared);
            reply(status, text.as_bytes()[..bytes.min(text.len())].to_vec().into())
        }
        Some(Fault::CutAt(bytes)) => {
            let (status, text) = behave(&shared);
            reply(status, cut(text.as_bytes()[..bytes.min(text.len())].to_vec()))
        }
    }
}

struct Setup {
    fake: Shared,
    client: Vercel,
}

impl Setup {
    async fn new(faults: &[(Method, &'static str, Fault)]) -> Self {
        let fake = Shared::default();
        fake.lock().unwrap().faults.extend(faults.iter().cloned());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config =
            VercelConfig::new(format!("http://{}/api", listener.local_addr().unwrap()), "s3cret");
        config.team = Some("team_x".to_owned());
        config.project = Some("prj_x".to_owned());
        (config.short_timeout, config.long_timeout) = (Duration::from_millis(300), Duration::from_secs(2));
        let app = Router::new().fallback(serve).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { fake, client: Vercel::new(&config).unwrap() }
    }

    /// How often the server was asked this.
    fn asked(&self, method: &Method, part: &str) -> usize {
        let fake = self.fake.lock().unwrap();
        fake.seen.iter().filter(|(of, path, _)| of == method && path.contains(part)).count()
    }

    fn commands(&self) -> u32 {
        self.fake.lock().unwrap().commands
    }
}

fn key() -> SandboxKey {
    SandboxKey { namespace: Namespace::default_of("any"), name: "one".parse().unwrap() }
}

fn run() -> RunRef {
    RunRef { namespace: Namespace::default_of("any"), id: "sbx_3fT9kQ2mZ8wLrV5n".parse().unwrap() }
}

fn spec() -> CommandSpec {
    CommandSpec::new(["sh", "-c", "x"])
}

const CREATE: &str = "/sandboxes";

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_recognised() {
    for fault in [Fault::After, Fault::CutAfter, Fault::Silence] {
        let setup = Setup::new(&[(Method::POST, CREATE, fault.clone())]).await;
        let made = setup.client.create(CreateSandbox::new(key())).await;
        let made = made.unwrap_or_else(|error| panic!("{fault:?}: {}", error.detail()));
        assert_eq!(made.run.status, RunStatus::Running);
        assert!(made.sandbox.tags.is_empty(), "our label shows: {:?}", made.sandbox.tags);
        assert_eq!(setup.fake.lock().unwrap().sandboxes.len(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_creation_that_cannot_be_seen_yet_is_waited_for() {
    let setup = Setup::new(&[(Method::POST, CREATE, Fault::After)]).await;
    setup.fake.lock().unwrap().hidden_until = Some(Instant::now() + Duration::from_secs(2));
    setup.client.create(CreateSandbox::new(key())).await.unwrap();
    assert_eq!(setup.fake.lock().unwrap().sandboxes.len(), 1);
}

#[tokio::test]
async fn somebody_elses_sandbox_is_neither_taken_nor_deleted() {
    // Taken from the start.
    let setup = Setup::new(&[]).await;
    setup.fake.lock().unwrap().sandboxes.insert("one".into(), json!({"theirs": "1"}));
    let refused = setup.client.create(CreateSandbox::new(key())).await;
    assert!(matches!(refused, Err(ProviderError::Conflict(_))));
    assert_eq!(setup.asked(&Method::POST, CREATE), 1, "a refusal was repeated");
    // Taken while an attempt of ours came to nothing.
    let setup =
        Setup::new(&[(Method::POST, CREATE, Fault::Instead(StatusCode::BAD_GATEWAY, "x", None))]).await;
    setup.fake.lock().unwrap().sandboxes.insert("one".into(), json!({"dormouse-creation": "theirs"}));
    let refused = setup.client.create(CreateSandbox::new(key())).await;
    assert!(matches!(refused, Err(ProviderError::Conflict(_))));
    assert_eq!(setup.asked(&Method::DELETE, ""), 0);
    assert_eq!(setup.fake.lock().unwrap().sandboxes.len(), 1);
}

#[tokio::test]
async fn a_creation_that_is_given_up_leaves_nothing() {
    let broken = (Method::POST, CREATE, Fault::Instead(StatusCode::INTERNAL_SERVER_ERROR, "x", None));
    let last = (Method::POST, CREATE, Fault::After);
    let setup = Setup::new(&[broken.clone(), broken, last]).await;
    let failed = setup.client.create(CreateSandbox::new(key())).await;
    assert!(matches!(failed, Err(ProviderError::Internal { .. })));
    assert!(setup.fake.lock().unwrap().sandboxes.is_empty(), "a sandbox that nobody knows of is left");
}

#[tokio::test]
async fn a_command_is_never_started_twice() {
    let failures = [
        Fault::Instead(StatusCode::SERVICE_UNAVAILABLE, "x", None),
        Fault::After,
        Fault::CutAfter,
        Fault::Silence,
    ];
    for fault in failures {
        let setup = Setup::new(&[(Method::POST, "/cmd", fault.clone())]).await;
        let started = setup.client.start(&run(), CommandId::generate(), spec()).await;
        assert!(matches!(started, Err(ProviderError::Internal { .. })), "{fault:?}: {started:?}");
        assert_eq!(setup.asked(&Method::POST, "/cmd"), 1, "{fault:?}");
    }
    // 429 means that it was not begun.
    let busy = (Method::POST, "/cmd", Fault::Instead(StatusCode::TOO_MANY_REQUESTS, "x", Some(1)));
    let setup = Setup::new(&[busy]).await;
    let began = Instant::now();
    setup.client.start(&run(), CommandId::generate(), spec()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After was not waited for");
    assert_eq!((setup.asked(&Method::POST, "/cmd"), setup.commands()), (2, 1));
}

#[tokio::test]
async fn a_long_retry_after_is_for_the_caller() {
    let busy = (Method::GET, "/one", Fault::Instead(StatusCode::TOO_MANY_REQUESTS, "x", Some(3600)));
    let setup = Setup::new(&[busy]).await;
    let refused = setup.client.get(&key()).await;
    assert!(matches!(refused, Err(ProviderError::Capacity(_))), "{refused:?}");
    assert_eq!(setup.asked(&Method::GET, "/one"), 1);
}

#[tokio::test]
async fn reading_is_repeated_and_ends() {
    let broken = |fault| (Method::GET, "/one", fault);
    let setup = Setup::new(&[broken(Fault::CutAfter), broken(Fault::Silence)]).await;
    setup.fake.lock().unwrap().sandboxes.insert("one".into(), json!({}));
    assert_eq!(setup.client.get(&key()).await.unwrap().sandbox.name, key().name);
    assert_eq!(setup.asked(&Method::GET, "/one"), 3);
    let down = broken(Fault::Instead(StatusCode::BAD_GATEWAY, "x", None));
    let setup = Setup::new(&[down.clone(), down.clone(), down.clone(), down]).await;
    assert!(matches!(setup.client.get(&key()).await, Err(ProviderError::Internal { .. })));
    assert_eq!(setup.asked(&Method::GET, "/one"), 3);
}

#[tokio::test]
async fn output_outlives_its_connection() {
    // Every place where an answer can be cut, the last of them being none, and
    // where something in between can end it as if it were whole.
    let cuts = (250..700).step_by(11).map(Fault::CutAt);
    for fault in cuts.chain((250..700).step_by(11).map(Fault::EndAt)) {
        let bytes = format!("{fault:?}");
        let setup = Setup::new(&[(Method::POST, "/cmd", fault)]).await;
        let mut events = setup.client.exec(&run(), CommandId::generate(), spec()).await.unwrap();
        let (mut text, mut code) = (String::new(), None);
        while let Some(event) = events.next().await {
            match event.unwrap_or_else(|error| panic!("cut at {bytes}: {}", error.detail())) {
                LogEvent::Stdout(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                LogEvent::Exited(command) => code = command.exit_code,
                _ => {}
            }
        }
        assert_eq!((text.as_str(), code), (OUTPUT, Some(3)), "cut at {bytes}");
        assert_eq!(setup.commands(), 1);
    }
}

#[tokio::test]
async fn errors_are_told_apart_by_status_and_code_alone() {
    let of = async |status: u16, code: &'static str| {
        let fault = Fault::Instead(StatusCode::from_u16(status).unwrap(), code, None);
        let setup = Setup::new(&[(Method::POST, "/cmd", fault)]).await;
        setup.client.start(&run(), CommandId::generate(), spec()).await.unwrap_err()
    };
    assert!(matches!(of(400, "bad_request").await, ProviderError::Invalid(_)));
    assert!(matches!(of(400, "sandbox_timeout_invalid").await, ProviderError::TimeoutInvalid(_)));
    assert!(matches!(of(401, "unauthorized").await, ProviderError::Internal { .. }));
    assert!(matches!(of(403, "forbidden").await, ProviderError::Internal { .. }));
    assert!(matches!(of(404, "sandbox_not_found").await, ProviderError::NotFound(_)));
    assert!(matches!(of(410, "sandbox_stopped").await, ProviderError::Stopped));
    assert!(matches!(of(410, "snapshot_not_found").await, ProviderError::SnapshotGone(_)));
    assert!(matches!(of(422, "sandbox_stopping").await, ProviderError::Stopping));
    assert!(matches!(of(422, "sandbox_snapshotting").await, ProviderError::Stopping));
    assert!(matches!(of(422, "anything").await, ProviderError::Invalid(_)));
}

#[tokio::test]
async fn looking_asks_for_nothing_else() {
    let setup = Setup::new(&[]).await;
    setup.fake.lock().unwrap().sandboxes.insert("one".into(), json!({}));
    setup.client.get(&key()).await.unwrap();
    setup.client.run(&run()).await.unwrap();
    let fake = setup.fake.lock().unwrap();
    for (method, path, _) in &fake.seen {
        assert_eq!(method, Method::GET, "{path}");
        assert!(!path.contains("resume=true"), "a look wakes: {path}");
        assert!(path.contains("teamId=team_x"), "{path}");
    }
    assert!(fake.seen[0].1.contains("projectId=prj_x"));
}

#[tokio::test]
async fn a_stop_that_is_answered_early_is_waited_for() {
    let setup = Setup::new(&[(Method::POST, "/stop", Fault::After)]).await;
    setup.fake.lock().unwrap().polls_to_stop = 2;
    let stopped = setup.client.stop(&run(), StopReason::Requested).await.unwrap();
    assert_eq!(stopped.run.status, RunStatus::Stopped);
}

#[tokio::test]
async fn hidden_values_are_not_written_back() {
    let setup = Setup::new(&[]).await;
    let shown = setup.client.run(&run()).await.unwrap().network;
    let NetworkPolicy::Custom(custom) = &shown else { panic!("{shown:?}") };
    let github = custom.domains.iter().find(|domain| domain.domain == "github.com").unwrap();
    assert_eq!(github.rules[0].action, Action::SetHeaders([("authorization".to_owned(), None)].into()));
    let refused = setup.client.set_network_policy(&run(), shown).await;
    assert!(matches!(refused, Err(ProviderError::Invalid(_))), "{refused:?}");
    assert_eq!(setup.asked(&Method::POST, ""), 0);

    let headers = [("authorization".to_owned(), Some("Bearer t0ken".to_owned()))].into();
    let rules = vec![Rule { matches: None, action: Action::SetHeaders(headers) }];
    let domains = vec![
        DomainPolicy { domain: "*".into(), rules: Vec::new() },
        DomainPolicy { domain: "github.com".into(), rules },
    ];
    let policy = NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() });
    setup.client.set_network_policy(&run(), policy).await.unwrap();
    let fake = setup.fake.lock().unwrap();
    let sent = &fake.seen.last().unwrap().2;
    let set = json!([{"transform": [{"headers": {"authorization": "Bearer t0ken"}}]}]);
    assert_eq!(*sent, json!({"allow": {"*": [], "github.com": set}}));
}

#[tokio::test]
async fn the_token_shows_nowhere() {
    let config = VercelConfig::new("http://127.0.0.1:1/api", "s3cret");
    let client = Vercel::new(&config).unwrap();
    let error = client.get(&key()).await.unwrap_err();
    let shown = format!("{config:?} {client:?} {error:?} {error} {}", error.detail());
    assert!(!shown.contains("s3cret"), "{shown}");
}
