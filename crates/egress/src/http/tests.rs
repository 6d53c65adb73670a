//! Conversations over a pipe, answered by the policy: what is judged, request by
//! request, before anything is dialled.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dormouse_provider::{Action, CustomPolicy, DomainPolicy, NetworkPolicy, Rule};
use http_body_util::Empty;

use super::*;
use crate::ground::Ground;
use crate::names::Names;
use crate::places::{Most, Places};
use crate::policy::Ruleset;
use crate::sandboxes::Sandboxes;
use crate::sandboxes::tests::{occupant, sandboxes};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);

fn policy(hosts: &[&str]) -> Ruleset {
    let response = DirectResponse { status: 200, headers: BTreeMap::new(), body: None, content_type: None };
    let rules = vec![Rule { matches: None, action: Action::Respond(response) }];
    let domain = |host: &&str| DomainPolicy { domain: (*host).to_owned(), rules: rules.clone() };
    let domains = hosts.iter().map(domain).collect();
    Ruleset::new(&NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() })).unwrap()
}

/// The sandbox's end of a conversation with `secured`.
fn converse(sandboxes: &Sandboxes, secured: &str) -> tokio::io::DuplexStream {
    let dialer = Arc::new(Dialer {
        ground: Ground::default(),
        names: Names::new(Some("127.0.0.1:9".parse().unwrap())).unwrap(),
        proxy: None,
    });
    let mirrors = Arc::new(Mirrors::new(Vec::new()).unwrap());
    let resolver = Arc::new(Resolver { dialer: dialer.clone(), mirrors: mirrors.clone() });
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = Tls::new(rustls::RootCertStore::empty(), provider).unwrap();
    let proxy = Arc::new(Proxy { dialer, mirrors, resolver, tls, signer: None });
    let (inside, here) = tokio::io::duplex(1 << 16);
    let target = "1.1.1.1:443".parse().unwrap();
    let member = sandboxes.at(HERE).unwrap();
    let place = Places::new(Most { sandbox: 9, account: 9, all: 9 }).take(HERE, &member.account).unwrap();
    let talk = Conversation::new(member, target, Some(secured.parse().unwrap()), None, place);
    tokio::spawn(async move { proxy.serve(here, Arc::new(talk)).await });
    inside
}

/// Each stream of one connection is judged by itself (attack 84).
#[tokio::test]
async fn streams_of_one_connection_are_judged_each() {
    let sandboxes = sandboxes();
    sandboxes.put(HERE, occupant("sbx_1"), policy(&["api.test", "other.test"]));
    let stream = TokioIo::new(converse(&sandboxes, "api.test"));
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |uri: &str| {
        let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
        client.send_request(request).await.unwrap()
    };
    assert_eq!(ask("https://api.test/").await.status(), 200);
    let refused = ask("https://other.test/").await;
    assert_eq!(
        (refused.status().as_u16(), refused.headers()["x-dormouse-denied"].as_bytes()),
        (421, &b"other-name"[..])
    );
    assert_eq!(ask("https://api.test:8443/").await.status(), 421);
    assert_eq!(ask("https://API.test/").await.status(), 200);
    // A policy that is changed holds for the next request.
    sandboxes.put(HERE, occupant("sbx_1"), policy(&["other.test"]));
    assert_eq!(ask("https://api.test/").await.status(), 403);
    let denied = sandboxes.recent(HERE).iter().filter(|line| line.denied.is_some()).count();
    assert_eq!(denied, 3);
}

#[tokio::test]
async fn requests_on_one_connection_are_judged_each() {
    let sandboxes = sandboxes();
    sandboxes.put(HERE, occupant("sbx_1"), policy(&["api.test"]));
    let stream = TokioIo::new(converse(&sandboxes, "api.test"));
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |method: &str, uri: &str, host: &str| {
        let request = Request::builder().method(method).uri(uri).header("host", host);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        client.send_request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(ask("GET", "/", "api.test").await, 200);
    assert_eq!(ask("GET", "/", "other.test").await, 421);
    assert_eq!(ask("GET", "/", "api.test:443").await, 200);
    assert_eq!(ask("GET", "/", "1.1.1.1").await, 421);
    assert_eq!(ask("GET", "http://other.test/", "api.test").await, 400);
    assert_eq!(ask("TRACE", "/", "api.test").await, 405);
}
