//! The fake is a provider: it passes the suite that every provider is put
//! through.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_provider::conformance::{CASES, Suite};
use dormouse_provider::fake::{Call, Fake, Fault};
use dormouse_provider::{CreateSandbox, ProviderError, RunRef, SandboxKey, SandboxProvider, StopReason};
use dormouse_types::{Namespace, Timestamp};

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_millis()).unwrap())
}

#[tokio::test]
async fn conforms() {
    let suite = Suite::new(Arc::new(Fake::new(now)), Namespace::default_of("acc_1"));
    let mut failed = Vec::new();
    for case in CASES {
        if let Err(failure) = suite.run(case).await {
            failed.push(format!("{}: {failure}", case.name));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn fails_where_it_is_told_to() {
    let fake = Fake::new(now);
    let key = SandboxKey { namespace: Namespace::default_of("a"), name: "one".parse().unwrap() };
    fake.plan(Call::Create, Fault::Error(ProviderError::Capacity("full".to_owned())));
    assert!(matches!(fake.create(CreateSandbox::new(key.clone())).await, Err(ProviderError::Capacity(_))));
    assert!(fake.sandboxes().is_empty());
    let made = fake.create(CreateSandbox::new(key.clone())).await.unwrap();
    let run = RunRef { namespace: key.namespace.clone(), id: made.run.id };
    fake.plan(Call::Stop, Fault::LostAnswer);
    assert!(fake.stop(&run, StopReason::Requested).await.is_err());
    assert!(fake.get(&key).await.unwrap().run.status.is_ended(), "the answer was lost, not the stop");
    assert_eq!((fake.count(Call::Create), fake.count(Call::Stop)), (2, 1));
}
