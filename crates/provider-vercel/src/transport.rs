//! One call over HTTP: credentials, time limits, repetition, errors by type.
//!
//! What may be repeated is a property of the call, not of the error. A call
//! that would do something twice is repeated only when the other side cannot
//! have begun it: the connection was never made, or the answer was 429.

use std::time::Duration;

use bytes::Bytes;
use dormouse_provider::{ProviderError, Result};
use dormouse_wire as wire;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::VercelConfig;

/// Times that a call is made at most, as the protocol's own clients do
/// (provider contract, section 1).
pub(crate) const ATTEMPTS: u32 = 3;

/// Before the second attempt; doubled before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(400);

/// A longer `Retry-After` is for the caller to wait out.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How often a silent connection is asked whether the other side is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Largest answer that is read as JSON, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Whether a call may be made again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Twice is as good as once.
    Idempotent,
    /// Only when it surely was not begun.
    NotSent,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// A row is read or written.
    Short,
    /// A machine is started or stopped, or a command waited for.
    Long,
}

/// A call to make.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// After `/api`, such as `/v2/sandboxes`.
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Option<Bytes>,
    pub(crate) repeat: Repeat,
    pub(crate) patience: Patience,
    /// What it is about, for errors, such as `sandbox a`.
    pub(crate) subject: String,
}

impl Call {
    /// A call that reads.
    pub(crate) fn get(path: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            query: Vec::new(),
            body: None,
            repeat: Repeat::Idempotent,
            patience: Patience::Short,
            subject: subject.into(),
        }
    }

    /// A call that does something, once.
    pub(crate) fn post(path: impl Into<String>, subject: impl Into<String>) -> Self {
        Self { method: Method::POST, repeat: Repeat::NotSent, ..Self::get(path, subject) }
    }

    pub(crate) fn method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(crate) fn json(self, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|error| {
            ProviderError::internal(format!("write the request about {}", self.subject), error)
        })?;
        Ok(Self { body: Some(body.into()), ..self })
    }

    pub(crate) fn idempotent(self) -> Self {
        Self { repeat: Repeat::Idempotent, ..self }
    }

    pub(crate) fn patient(self) -> Self {
        Self { patience: Patience::Long, ..self }
    }

    fn operation(&self) -> String {
        format!("{} /api{} about {}", self.method, self.path, self.subject)
    }
}

/// An operation that the other side began and did not end in time.
pub(crate) fn late(subject: &str) -> ProviderError {
    ProviderError::internal(format!("wait for {subject}"), "it took too long")
}

/// Why one attempt did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The other side never saw it.
    #[error("not reached")]
    NotSent(#[source] reqwest::Error),
    /// It may have been done: the connection broke, time passed, or the other
    /// side broke.
    #[error("{0}")]
    Unknown(String),
    /// Too many calls; it was not begun.
    #[error("too many requests")]
    Throttled(Option<Duration>),
    /// A refusal that another attempt would not change.
    #[error("{status} {code}: {message}")]
    Refused { status: StatusCode, code: String, message: String },
}

impl Failure {
    /// Whether another attempt is right, and after which pause.
    pub(crate) fn pause(&self, repeat: Repeat, attempt: u32) -> Option<Duration> {
        let usual = FIRST_PAUSE * 2_u32.pow(attempt);
        match self {
            Self::NotSent(_) => Some(jittered(usual)),
            Self::Unknown(_) => (repeat == Repeat::Idempotent).then(|| jittered(usual)),
            Self::Throttled(None) => Some(jittered(usual)),
            Self::Throttled(Some(asked)) => (*asked <= LONGEST_PAUSE).then_some(*asked),
            Self::Refused { .. } => None,
        }
    }

    /// What the caller of the port is told. Statuses and codes decide; the
    /// words of the other side only travel along.
    pub(crate) fn into_provider(self, call: &Call) -> ProviderError {
        let (status, code, message) = match self {
            Self::Refused { status, code, message } => (status, code, message),
            Self::Throttled(_) => {
                return ProviderError::Capacity(
                    "the sandbox provider has too many requests, or runs too much".to_owned(),
                );
            }
            other => return ProviderError::internal(call.operation(), other),
        };
        match (status, code.as_str()) {
            (StatusCode::BAD_REQUEST, "sandbox_timeout_invalid") => ProviderError::TimeoutInvalid(message),
            (StatusCode::BAD_REQUEST, "command_stdin_unavailable") => ProviderError::InputRefused(message),
            (StatusCode::TOO_MANY_REQUESTS, "sandbox_busy") => ProviderError::Busy(message),
            // Ours over there, whoever's it would be here.
            (StatusCode::FORBIDDEN, "quota_exceeded") => ProviderError::Capacity(message),
            (StatusCode::NOT_FOUND, _) => ProviderError::NotFound(call.subject.clone()),
            (StatusCode::CONFLICT, _) => ProviderError::Conflict(call.subject.clone()),
            (StatusCode::GONE, "snapshot_not_found") => {
                ProviderError::SnapshotGone(format!("of {}", call.subject))
            }
            (StatusCode::GONE, _) => ProviderError::Stopped,
            (StatusCode::UNPROCESSABLE_ENTITY, "sandbox_stopping" | "sandbox_snapshotting") => {
                ProviderError::Stopping
            }
            // Our credentials, not the caller's request.
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PAYMENT_REQUIRED, _) => {
                ProviderError::internal(call.operation(), format!("{status} {code}: {message}"))
            }
            _ => ProviderError::Invalid(message),
        }
    }
}

/// From half of `pause` to one and a half.
fn jittered(pause: Duration) -> Duration {
    // Without random bytes everybody waits the middle.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
}

/// Connections to one server, with one token.
#[derive(Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    base: String,
    scope: Vec<(&'static str, String)>,
    short: Duration,
    long: Duration,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client holds the token.
        write!(f, "Transport({})", self.base)
    }
}

impl Transport {
    pub(crate) fn new(config: &VercelConfig) -> Result<Self> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            ProviderError::internal("prepare calls to the sandbox provider", error)
        };
        let mut token = HeaderValue::from_str(&format!("Bearer {}", config.token.0))
            .map_err(|_| failed("the token has characters that no header can carry".into()))?;
        token.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, token);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(error.into()))?;
        let scope = config.team.iter().map(|team| ("teamId", team.clone())).collect();
        let base = config.base_url.trim_end_matches('/').to_owned();
        Ok(Self { http, base, scope, short: config.short_timeout, long: config.long_timeout })
    }

    fn limit(&self, call: &Call) -> Duration {
        match call.patience {
            Patience::Short => self.short,
            Patience::Long => self.long,
        }
    }

    fn request(&self, call: &Call) -> reqwest::RequestBuilder {
        let request = self
            .http
            .request(call.method.clone(), format!("{}{}", self.base, call.path))
            .query(&self.scope)
            .query(&call.query)
            .header(header::CONTENT_TYPE, "application/json");
        match &call.body {
            Some(body) => request.body(body.clone()),
            None => request,
        }
    }

    /// One attempt, up to the headers of a success.
    pub(crate) async fn send(
        &self,
        request: reqwest::RequestBuilder,
        limit: Duration,
    ) -> std::result::Result<Response, Failure> {
        let answer = match tokio::time::timeout(limit, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_connect() => return Err(Failure::NotSent(error)),
            Ok(Err(error)) => return Err(Failure::Unknown(describe(&error))),
            Err(_) => return Err(Failure::Unknown(format!("no answer within {} s", limit.as_secs()))),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let seconds = seconds.and_then(|text| text.trim().parse().ok());
            return Err(Failure::Throttled(seconds.map(Duration::from_secs)));
        }
        // The words are a courtesy: without them the status stands alone.
        let detail = tokio::time::timeout(self.short, collect(answer)).await.ok().and_then(|body| body.ok());
        let detail = detail.and_then(|body| serde_json::from_slice::<wire::ErrorReply>(&body).ok());
        let (code, message) = match detail {
            Some(wire::ErrorReply { error, .. }) => (error.code, error.message),
            None => (String::new(), format!("the sandbox provider answered {status}")),
        };
        if status.is_server_error() {
            return Err(Failure::Unknown(format!("{status} {code}: {message}")));
        }
        Err(Failure::Refused { status, code, message })
    }

    async fn attempt<T: DeserializeOwned>(&self, call: &Call) -> std::result::Result<T, Failure> {
        let limit = self.limit(call);
        let deadline = tokio::time::Instant::now() + limit;
        let answer = self.send(self.request(call), limit).await?;
        let body = tokio::time::timeout_at(deadline, collect(answer)).await;
        let body = body
            .map_err(|_| Failure::Unknown(format!("no whole answer within {} s", limit.as_secs())))?
            .map_err(|error| Failure::Unknown(format!("the answer was cut off: {error}")))?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Unknown(format!("the answer is no such JSON: {error}")))
    }

    /// JSON of the answer, after as many attempts as the call stands.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let mut attempt = 0;
        loop {
            let failure = match self.attempt(call).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            match failure.pause(call.repeat, attempt) {
                Some(pause) if attempt + 1 < ATTEMPTS => {
                    tracing::warn!(subject = call.subject, %failure, ?pause, "call the sandbox provider again");
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(failure.into_provider(call)),
            }
            attempt += 1;
        }
    }

    /// JSON of the answer to one attempt, for calls whose repetition needs
    /// more thought than [`Repeat`] holds.
    pub(crate) async fn once<T: DeserializeOwned>(&self, call: &Call) -> std::result::Result<T, Failure> {
        self.attempt(call).await
    }

    /// An answer whose body is read as it comes.
    pub(crate) async fn stream(&self, call: &Call) -> Result<Response> {
        let mut attempt = 0;
        loop {
            let failure = match self.send(self.request(call), self.limit(call)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match failure.pause(call.repeat, attempt) {
                Some(pause) if attempt + 1 < ATTEMPTS => tokio::time::sleep(pause).await,
                _ => return Err(failure.into_provider(call)),
            }
            attempt += 1;
        }
    }

    /// Sends a body that cannot be sent twice.
    pub(crate) async fn upload(
        &self,
        call: &Call,
        headers: HeaderMap,
        body: reqwest::Body,
        limit: Duration,
    ) -> Result<()> {
        let request = self.request(call).headers(headers).body(body);
        self.send(request, limit).await.map(drop).map_err(|failure| failure.into_provider(call))
    }
}

async fn collect(mut answer: Response) -> std::result::Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| describe(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err(format!("it is larger than {MAX_ANSWER} bytes"));
        }
    }
    Ok(body)
}

/// The chain of causes, without the URL: its query names the team.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() { "the request failed".to_owned() } else { text }
}
