//! Real keys, a real key server, and every way in which a token can be wrong.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::get;
use dormouse_jobs::Clock;
use dormouse_store::Db;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::{JwtConfig, JwtVerifier};

const ISSUER: &str = "https://issuer.test";

fn signer(kid: &str) -> (EncodingKey, Jwk) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let key = EncodingKey::from_ec_der(pair.serialized_der());
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    (key, jwk)
}

fn token(key: &EncodingKey, kid: &str, change: impl FnOnce(&mut Value)) -> String {
    #[expect(clippy::disallowed_methods, reason = "the library compares with the host's clock")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut claims =
        json!({"iss": ISSUER, "aud": "dormouse", "sub": "u1", "exp": now + 600, "email": "u@x.test"});
    change(&mut claims);
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(kid.to_owned());
    encode(&header, &claims, key).unwrap()
}

#[tokio::test]
async fn only_the_right_tokens_get_in() {
    let (key, jwk) = signer("k1");
    let (stranger, _) = signer("k1");
    let keys = JwkSet { keys: vec![jwk] };
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let jwks_url = format!("http://{}/jwks", server.local_addr().unwrap());
    let routes = Router::new().route("/jwks", get(move || async move { Json(keys) }));
    tokio::spawn(async move { axum::serve(server, routes).await });
    let config = |create_accounts| JwtConfig {
        jwks_url: jwks_url.clone(),
        issuer: ISSUER.to_owned(),
        audience: vec!["dormouse".to_owned()],
        algorithms: vec![Algorithm::ES256],
        create_accounts,
    };
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open_file(&dir.path().join("db")).await.unwrap();
    let clock = Clock::system();
    let verifier = JwtVerifier::new(config(true)).unwrap();

    let good = token(&key, "k1", |_| {});
    let first = verifier.identity(&good, &db, &clock).await.map(|found| found.account).unwrap();
    assert_eq!(
        verifier.identity(&good, &db, &clock).await.map(|found| found.account).unwrap(),
        first,
        "one subject, one account"
    );
    let other = token(&key, "k1", |claims| claims["sub"] = json!("u2"));
    assert_ne!(verifier.identity(&other, &db, &clock).await.map(|found| found.account).unwrap(), first);

    // In the shape of the platform's own token: it names its team and project.
    let platform = token(&key, "k1", |claims| {
        claims["sub"] = json!("owner:acme:project:web:environment:development");
        (claims["owner_id"], claims["project_id"]) = (json!("team_x"), json!("prj_x"));
    });
    let found = verifier.identity(&platform, &db, &clock).await.unwrap();
    let claims = found.platform.unwrap();
    assert_eq!((claims.owner_id.as_str(), claims.project_id.as_deref()), ("team_x", Some("prj_x")));
    assert_ne!(found.account, first);

    let mut wrong = vec![
        token(&stranger, "k1", |_| {}),
        token(&key, "unknown", |_| {}),
        token(&key, "k1", |claims| claims["iss"] = json!("https://evil.test")),
        token(&key, "k1", |claims| claims["aud"] = json!("other")),
        token(&key, "k1", |claims| claims["exp"] = json!(1000)),
        token(&key, "k1", |claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
        token(&key, "k1", |claims| drop(claims.as_object_mut().unwrap().remove("aud"))),
        "a.b.c".to_owned(),
        String::new(),
    ];
    // Signed with "no algorithm", or with the public key as a shared secret.
    let (_, body) = good.split_once('.').unwrap();
    wrong.push(format!("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{}.", body.split('.').next().unwrap()));
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("k1".to_owned());
    wrong.push(encode(&header, &json!({"sub": "u1"}), &EncodingKey::from_secret(b"x")).unwrap());
    for token in wrong {
        assert!(verifier.identity(&token, &db, &clock).await.map(|found| found.account).is_err(), "{token}");
    }
    let closed = JwtVerifier::new(config(false)).unwrap();
    assert!(
        closed.identity(&good, &db, &clock).await.map(|found| found.account).is_ok(),
        "known subjects stay welcome"
    );
    let unknown = token(&key, "k1", |claims| claims["sub"] = json!("u3"));
    assert!(closed.identity(&unknown, &db, &clock).await.map(|found| found.account).is_err());
}

/// How the issuer answers.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Failing,
    Hanging,
}

#[tokio::test]
async fn an_issuer_that_is_away_refuses_nobody_who_is_known() {
    let [(key, jwk), (second_key, second)] = ["k1", "k2"].map(signer);
    let published = Arc::new(Mutex::new(vec![jwk]));
    let mood = Arc::new(Mutex::new(Mood::Well));
    let asked = Arc::new(AtomicU32::new(0));
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let jwks_url = format!("http://{}/jwks", server.local_addr().unwrap());
    let (said, felt, counted) = (published.clone(), mood.clone(), asked.clone());
    let answer = move || async move {
        counted.fetch_add(1, Ordering::SeqCst);
        let mood = *felt.lock().unwrap();
        match mood {
            Mood::Well => Json(JwkSet { keys: said.lock().unwrap().clone() }).into_response(),
            Mood::Failing => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Mood::Hanging => std::future::pending().await,
        }
    };
    let routes = Router::new().route("/jwks", get(answer));
    tokio::spawn(async move { axum::serve(server, routes).await });
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open_file(&dir.path().join("db")).await.unwrap();
    let clock = Clock::fixed(Clock::system().now());
    let config = JwtConfig {
        jwks_url,
        issuer: ISSUER.to_owned(),
        audience: vec!["dormouse".to_owned()],
        algorithms: vec![Algorithm::ES256],
        create_accounts: true,
    };
    let verifier = Arc::new(JwtVerifier::new(config).unwrap());
    let (known, unknown) = (token(&key, "k1", |_| {}), token(&second_key, "k2", |_| {}));
    let status = async |token: &str| match verifier.identity(token, &db, &clock).await {
        Ok(_) => StatusCode::OK,
        Err(error) => error.into_response().status(),
    };

    *mood.lock().unwrap() = Mood::Failing;
    assert_eq!(status(&known).await, StatusCode::SERVICE_UNAVAILABLE, "nothing is known yet");
    *mood.lock().unwrap() = Mood::Well;
    clock.advance(Duration::from_secs(31));
    assert_eq!(status(&known).await, StatusCode::OK);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    for _ in 0..3 {
        assert_eq!(status(&unknown).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "asked again and again");

    // Away for hours.
    *mood.lock().unwrap() = Mood::Failing;
    clock.advance(Duration::from_secs(5 * 3600));
    assert_eq!(status(&known).await, StatusCode::OK);
    clock.advance(Duration::from_secs(31));
    assert_eq!(status(&unknown).await, StatusCode::SERVICE_UNAVAILABLE);

    // Whoever needs a new key waits for an issuer that hangs, and nobody else.
    *mood.lock().unwrap() = Mood::Hanging;
    clock.advance(Duration::from_secs(31));
    let before = asked.load(Ordering::SeqCst);
    let (waiting, held, time) = (verifier.clone(), db.clone(), clock.clone());
    let waiting = tokio::spawn(async move { waiting.identity(&unknown, &held, &time).await.is_ok() });
    while asked.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    let soon = Duration::from_secs(5);
    assert_eq!(tokio::time::timeout(soon, status(&known)).await.unwrap(), StatusCode::OK);
    assert!(!waiting.is_finished());
    waiting.abort();
    let _ = waiting.await;

    // A key that is withdrawn counts no more, nor one that is too old to know.
    *mood.lock().unwrap() = Mood::Failing;
    clock.advance(Duration::from_secs(20 * 3600));
    assert_eq!(status(&known).await, StatusCode::SERVICE_UNAVAILABLE);
    *mood.lock().unwrap() = Mood::Well;
    *published.lock().unwrap() = vec![second];
    clock.advance(Duration::from_secs(31));
    assert_eq!(status(&known).await, StatusCode::UNAUTHORIZED);
}
