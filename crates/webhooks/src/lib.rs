//! Tells organizations what happens to the sessions of their members: each event is
//! posted to the organization's webhooks, signed, in order, and again until it
//! arrives or is given up. The form is that of Standard Webhooks 1.0 (headers
//! `webhook-id`, `webhook-timestamp`, `webhook-signature`), so its libraries verify
//! it, and refuse what is sent a second time.
//!
//! What is to be delivered is written where it happens, by the store. Here it is
//! sent.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormouse_jobs::{Backoff, Claim, Clock, Handler, Jobs, Kind, Outcome};
use dormouse_store::{Db, DeliveryRow, Move, WebhookRow};
use dormouse_types::{DeliveryState, Timestamp};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// How often it is looked for what waits.
const PERIOD: Duration = Duration::from_secs(1);

/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(5), most: Duration::from_secs(3600) };

/// After this time a delivery that fails again is given up.
const GIVE_UP: Duration = Duration::from_secs(86_400);

/// Deliveries to one webhook before others have their turn.
const ROUND: usize = 100;

/// For as long, at most.
const TURN: Duration = Duration::from_secs(30);

/// Webhooks that are dealt with at once.
const WIDTH: usize = 8;

/// What deliveries to a webhook are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Not a secret of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretError;

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a webhook's secret is whsec_ and base64")
    }
}

impl std::error::Error for SecretError {}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let text = text.strip_prefix("whsec_").ok_or(SecretError)?;
        STANDARD.decode(text).map(Self).map_err(|_| SecretError)
    }
}

impl Secret {
    /// A secret of these bytes, which nobody else knows.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes.to_vec())
    }

    /// As its owner gets it: `whsec_` and base64.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("whsec_{}", STANDARD.encode(&self.0))
    }

    /// The value of `webhook-signature` (Standard Webhooks, "Signature scheme").
    #[must_use]
    pub fn sign(&self, id: &str, seconds: i64, body: &str) -> String {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return String::new() };
        mac.update(format!("{id}.{seconds}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// Sends what waits for webhooks.
#[derive(Debug, Clone)]
pub struct Webhooks {
    db: Db,
    jobs: Jobs,
    clock: Clock,
    client: reqwest::Client,
}

/// How an attempt went.
enum Attempt {
    Arrived(String),
    Failed(String),
    /// The receiver does not want any more.
    Refused(String),
}

impl Webhooks {
    /// The webhooks in `db`.
    ///
    /// # Errors
    /// When the TLS library cannot be set up.
    pub fn new(db: Db, jobs: Jobs, clock: Clock) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            // The address is the operator's word; where it leads is not.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { db, jobs, clock, client })
    }

    /// Sends for ever.
    pub async fn run(self) {
        let look = dormouse_jobs::reconcile(PERIOD, Arc::default(), || async {
            match self.db.webhooks_due(self.clock.now(), 1000).await {
                Ok(due) => {
                    for hook in due {
                        let asked =
                            self.jobs.ask("webhook", hook.as_str(), "{}", self.clock.now(), Move::NotLater);
                        if let Err(error) = asked.await {
                            tracing::warn!(webhook = %hook, %error, "ask for deliveries");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "look for deliveries"),
            }
        });
        tokio::join!(look, self.jobs.clone().work(Arc::new(Deliver(self.clone()))));
    }

    /// Sends what waits for one webhook, in order, until something fails.
    async fn deliver(&self, hook: &WebhookRow) -> dormouse_store::Result<()> {
        let (begun, mut failures) = (self.clock.now(), hook.failures);
        for _ in 0..ROUND {
            // Others have their turn; the next look comes back to it.
            if self.clock.now().since(begun) > TURN {
                return Ok(());
            }
            let Some(delivery) = self.db.next_delivery(&hook.id).await? else { return Ok(()) };
            let attempt = self.send(hook, &delivery).await;
            let now = self.clock.now();
            if let Attempt::Refused(outcome) = &attempt {
                tracing::warn!(webhook = %hook.id, outcome, "the receiver wants no more; all that waits is given up");
                return self.db.give_deliveries_up(&hook.id, outcome, now).await;
            }
            let (state, outcome) = match attempt {
                Attempt::Arrived(outcome) => (DeliveryState::Delivered, outcome),
                Attempt::Failed(outcome) if now.since(delivery.created_at) < GIVE_UP => {
                    (DeliveryState::Waiting, outcome)
                }
                Attempt::Failed(outcome) | Attempt::Refused(outcome) => (DeliveryState::Failed, outcome),
            };
            let retry_at = match state {
                // By what failed since something arrived: who is down is down for all.
                DeliveryState::Waiting => now.plus(BACKOFF.after(failures + 1, self.clock.chance())),
                DeliveryState::Delivered | DeliveryState::Failed => now,
            };
            self.db.note_delivery(&delivery, state, &outcome, retry_at, now).await?;
            failures = if state == DeliveryState::Delivered { 0 } else { failures + 1 };
            if state != DeliveryState::Delivered {
                tracing::warn!(webhook = %hook.id, delivery = %delivery.id, %state, outcome, "deliver");
            }
            if state == DeliveryState::Waiting {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn send(&self, hook: &WebhookRow, delivery: &DeliveryRow) -> Attempt {
        let secret: Secret = match hook.secret.parse() {
            Ok(secret) => secret,
            Err(error) => return Attempt::Refused(SecretError::to_string(&error)),
        };
        let seconds = seconds(self.clock.now());
        let signature = secret.sign(delivery.id.as_str(), seconds, &delivery.body);
        let answer = self
            .client
            .post(&hook.url)
            .header("content-type", "application/json")
            .header("webhook-id", delivery.id.as_str())
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(delivery.body.clone())
            .send()
            .await;
        match answer {
            Ok(answer) if answer.status().is_success() => {
                Attempt::Arrived(format!("HTTP {}", answer.status().as_u16()))
            }
            // "Gone": the receiver is not there any more, and is not to be asked again.
            Ok(answer) if answer.status() == reqwest::StatusCode::GONE => {
                Attempt::Refused("HTTP 410".to_owned())
            }
            Ok(answer) => Attempt::Failed(format!("HTTP {}", answer.status().as_u16())),
            // Its address may have a secret in it.
            Err(error) => Attempt::Failed(error.without_url().to_string()),
        }
    }

    /// Forgets some of the deliveries that ended before `before`; whether there may be
    /// more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn prune(&self, before: Timestamp) -> dormouse_store::Result<bool> {
        const ROUND: i64 = 1000;
        let pruned = self.db.prune_deliveries(before, ROUND).await?;
        Ok(i64::try_from(pruned).is_ok_and(|pruned| pruned == ROUND))
    }
}

fn seconds(at: Timestamp) -> i64 {
    at.as_millis() / 1000
}

/// Deals with one webhook at a time, on whichever server.
struct Deliver(Webhooks);

#[async_trait]
impl Handler for Deliver {
    fn kind(&self) -> Kind {
        Kind {
            name: "webhook".into(),
            lease: Duration::from_secs(30),
            deadline: Duration::from_secs(ROUND as u64 * PATIENCE.as_secs()),
            // What waits is looked for again.
            attempts: 1,
            backoff: BACKOFF,
            width: WIDTH,
        }
    }

    async fn run(&self, claim: &Claim) -> Outcome {
        let Ok(id) = claim.key().parse() else { return Outcome::GaveUp("no webhook's id".to_owned()) };
        let done = async {
            match self.0.db.webhook(&id).await? {
                // Asked for while it was tried.
                Some(hook) if hook.retry_at > self.0.clock.now() => Ok(()),
                Some(hook) => self.0.deliver(&hook).await,
                None => Ok(()),
            }
        };
        match done.await {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use dormouse_store::{AccountRow, Cause, OrgRow, SessionRow};
    use dormouse_types::{AccountId, EventReason, HostId, OrgId, SessionId, WebhookId};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// The example of the specification (Standard Webhooks 1.0).
    #[test]
    fn signatures_are_those_of_the_specification() {
        let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(secret.reveal(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!("whsec_?".parse::<Secret>(), Err(SecretError));
        assert!(!format!("{secret:?}").contains("MfKQ"));
    }

    /// A receiver that answers with these statuses, and keeps what it got.
    async fn receiver(statuses: &[u16]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<String>>> = Arc::default();
        let (kept, mut statuses) = (got.clone(), statuses.iter().copied().collect::<VecDeque<_>>());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = String::new();
                let mut buffer = [0; 4096];
                while !request.ends_with('}') {
                    let read = stream.read(&mut buffer).await.unwrap();
                    request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                }
                kept.lock().unwrap().push(request);
                let status = statuses.pop_front().unwrap_or(204);
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, got)
    }

    struct Bench {
        db: Db,
        clock: Clock,
        webhooks: Webhooks,
        hook: WebhookRow,
        session: SessionRow,
        _dir: tempfile::TempDir,
    }

    async fn bench(url: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_file(&dir.path().join("dormouse.db")).await.unwrap();
        let clock = Clock::fixed(Timestamp(1_000_000));
        let (account, org, now) = (AccountId::generate(), OrgId::generate(), clock.now());
        let ada = AccountRow { id: account.clone(), name: "Ada".into(), email: None, created_at: now };
        db.insert_account(&ada).await.unwrap();
        db.insert_org(&OrgRow { id: org.clone(), name: "acme".into(), created_at: now }).await.unwrap();
        db.add_member(&org, &account).await.unwrap();
        db.insert_claim(&org, "acme/*").await.unwrap();
        let hook = WebhookRow {
            id: WebhookId::generate(),
            org_id: org,
            url: url.to_owned(),
            secret: Secret::new([7; 32]).reveal(),
            failures: 0,
            retry_at: Timestamp(0),
            created_at: now,
        };
        db.insert_webhook(&hook).await.unwrap();
        let session = SessionRow {
            clone_url: Some("https://github.com/Acme/widgets".into()),
            ..SessionRow::new(account, "x".into(), now)
        };
        db.insert_session(&session).await.unwrap();
        let host: HostId = "host_one".parse().unwrap();
        let webhooks = Webhooks::new(db.clone(), Jobs::new(db.clone(), clock.clone(), host), clock.clone());
        Bench { db, clock, webhooks: webhooks.unwrap(), hook, session, _dir: dir }
    }

    impl Bench {
        async fn happens(&self, reason: EventReason) {
            let cause = Cause { reason, actor: None, detail: None, repo: None };
            assert!(self.db.note_session_event(&self.session.id, &cause, self.clock.now()).await.unwrap());
        }

        async fn round(&self) {
            for id in self.db.webhooks_due(self.clock.now(), 10).await.unwrap() {
                let hook = self.db.webhook(&id).await.unwrap().unwrap();
                self.webhooks.deliver(&hook).await.unwrap();
            }
        }

        async fn states(&self) -> Vec<DeliveryState> {
            let mut all = self.db.deliveries(&self.hook.id, 100).await.unwrap();
            all.reverse();
            all.into_iter().map(|delivery| delivery.state).collect()
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order_and_again() {
        use DeliveryState::{Delivered, Waiting};
        let (url, got) = receiver(&[200, 500, 302]).await;
        let bench = bench(&url).await;
        for reason in [EventReason::Provision, EventReason::Ready, EventReason::Idle] {
            bench.happens(reason).await;
        }
        bench.round().await;
        assert_eq!(bench.states().await, [Delivered, Waiting, Waiting], "what comes after waits");
        bench.round().await;
        assert_eq!(got.lock().unwrap().len(), 2, "not before its time");
        bench.clock.advance(BACKOFF.first);
        bench.round().await;
        assert_eq!(bench.states().await, [Delivered, Waiting, Waiting], "a redirect is not followed");
        bench.clock.advance(BACKOFF.first * 2);
        bench.round().await;
        assert_eq!(bench.states().await, [Delivered; 3]);
        let got = got.lock().unwrap();
        let kinds: Vec<bool> =
            ["session.provision", "session.ready", "session.ready", "session.ready", "session.idle"]
                .iter()
                .zip(&*got)
                .map(|(kind, request)| request.contains(kind))
                .collect();
        assert_eq!(kinds, [true; 5], "{got:?}");
        // The same delivery, signed for its time.
        let header = |request: &str, name: &str| {
            let line = request.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
            line.unwrap().to_owned()
        };
        assert_eq!(header(&got[1], "webhook-id"), header(&got[2], "webhook-id"));
        let (id, at) = (header(&got[2], "webhook-id"), header(&got[2], "webhook-timestamp"));
        assert_eq!(at, "1005");
        let body = got[2].rsplit_once("\r\n\r\n").unwrap().1;
        assert_eq!(header(&got[2], "webhook-signature"), Secret::new([7; 32]).sign(&id, 1005, body));
    }

    #[tokio::test]
    async fn what_does_not_arrive_is_given_up() {
        let (url, got) = receiver(&[503; 40]).await;
        let bench = bench(&url).await;
        bench.happens(EventReason::Ready).await;
        for _ in 0..30 {
            bench.round().await;
            bench.clock.advance(BACKOFF.most);
        }
        assert_eq!(bench.states().await, [DeliveryState::Failed]);
        let sent = got.lock().unwrap().len();
        assert!((24..27).contains(&sent), "once an hour, for a day: {sent}");
        let log = bench.db.deliveries(&bench.hook.id, 1).await.unwrap();
        assert_eq!(log[0].outcome.as_deref(), Some("HTTP 503"));
        // What comes after it begins where that one ended.
        bench.happens(EventReason::Idle).await;
        bench.round().await;
        bench.clock.advance(BACKOFF.first * 4);
        bench.round().await;
        assert_eq!(got.lock().unwrap().len(), sent + 1, "who is down is not asked every few seconds");
        // Its receiver says that it is gone.
        let (url, got) = receiver(&[410]).await;
        let other = self::bench(&url).await;
        other.happens(EventReason::Ready).await;
        other.happens(EventReason::Idle).await;
        other.round().await;
        assert_eq!((other.states().await, got.lock().unwrap().len()), (vec![DeliveryState::Failed; 2], 1));
    }

    #[tokio::test]
    async fn others_are_told_nothing() {
        let bench = bench("http://127.0.0.1:1/").await;
        let repository = |url: Option<&str>| SessionRow {
            id: SessionId::generate(),
            clone_url: url.map(str::to_owned),
            ..bench.session.clone()
        };
        let stranger = AccountRow {
            id: AccountId::generate(),
            name: "Eve".into(),
            email: None,
            created_at: bench.clock.now(),
        };
        bench.db.insert_account(&stranger).await.unwrap();
        let of_stranger =
            SessionRow { account_id: stranger.id, ..repository(Some("https://github.com/acme/widgets")) };
        for row in [repository(Some("https://github.com/else/widgets")), repository(None), of_stranger] {
            bench.db.insert_session(&row).await.unwrap();
            let cause = Cause { reason: EventReason::Ready, actor: None, detail: None, repo: None };
            bench.db.note_session_event(&row.id, &cause, bench.clock.now()).await.unwrap();
        }
        assert!(bench.states().await.is_empty());
        bench.happens(EventReason::Ready).await;
        assert_eq!(bench.states().await, [DeliveryState::Waiting], "a control");
        assert!(bench.db.delete_webhook(&bench.hook.id).await.unwrap());
        assert!(bench.states().await.is_empty());
    }
}
