//! The relay: takes connections that the gate let in, finds out which host they
//! are for where the policy asks, and passes them on, byte for byte or request by
//! request. When a policy changes, connections that it forbids are cut.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::HostName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::dial::{self, DialError};
use crate::gate::{Admitted, Claim, Gate, Plan};
use crate::hello::{self, Hello, MAX_HELLO};
use crate::http::{Conversation, Proxy};
use crate::io::Prefixed;
use crate::ledger::{Access, Underway, Way};
use crate::packet::Flow;
use crate::places::Place;
use crate::policy::{HTTP, Named, Opening, Ruleset};
use crate::reason::Reason;
use crate::sandboxes::{Member, is_stand_in};
use crate::splice;

/// How long the first bytes may take, and a TLS handshake.
const FIRST_WORDS: Duration = Duration::from_secs(15);
const HANDSHAKE: Duration = Duration::from_secs(15);

/// TLS says why it ends: a fatal alert, `access_denied` (RFC 8446, section 6.2).
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// What every connection needs.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) gate: Arc<Gate>,
    pub(crate) proxy: Arc<Proxy>,
}

impl Relay {
    /// Accepts connections for ever.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors: room comes when a connection ends.
                    tracing::warn!(%error, "accept from a sandbox");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // The listener is transparent: our end has the address that was dialled.
            let (Ok(SocketAddr::V4(target)), SocketAddr::V4(source)) = (stream.local_addr(), source) else {
                continue;
            };
            let Some(admitted) = self.gate.arrived(Flow { source, target }) else {
                splice::reset(&stream);
                continue;
            };
            let relay = self.clone();
            tokio::spawn(async move { relay.connection(stream, target, admitted).await });
        }
    }

    async fn connection(&self, mut stream: TcpStream, target: SocketAddrV4, admitted: Admitted) {
        let Admitted { member, plan, place } = admitted;
        // Both fail only for a socket that is none.
        let _ = stream.set_nodelay(true);
        dial::keep_alive(&stream);
        match plan {
            Plan::Dns => self.proxy.resolver.connection(&member, stream).await,
            Plan::Direct(upstream, claim) => {
                let host = match &claim {
                    Claim::Address => member.names_of(*target.ip()).into_iter().next(),
                    Claim::Name(name) => Some(name.clone()),
                };
                let line = Access::now(Way::Direct).address(target).host(host.as_ref());
                let asked = member.clone();
                let allowed = move |policy: &Ruleset| match &claim {
                    Claim::Address => is_allowed(&asked, policy, target),
                    Claim::Name(name) => policy.any_question() && policy.host(name).is_some(),
                };
                self.splice(&member, stream, upstream, &[], line, allowed).await;
            }
            Plan::Named { upstream, expected } => {
                let named = self.named(&member, &mut stream, target, upstream, expected);
                // Until it is known for whom it is.
                let next = guarded(&member, |policy| !policy.is_shut(), named).await;
                match next {
                    Some(Some(next)) => self.go_on(&member, stream, target, next, place).await,
                    _ => splice::reset(&stream),
                }
                return;
            }
        }
        drop(place);
    }

    /// Finds out what a connection is for.
    async fn named(
        &self,
        member: &Arc<Member>,
        stream: &mut TcpStream,
        target: SocketAddrV4,
        upstream: Option<TcpStream>,
        expected: Option<HostName>,
    ) -> Option<Next> {
        if target.port() == HTTP {
            return Some(Next::Http { upstream, first: Vec::new() });
        }
        let listening = self.listen(member, stream, target, upstream.as_ref());
        let heard = tokio::time::timeout(FIRST_WORDS, listening).await;
        let line = || Access::now(Way::Spliced).address(target);
        let (first, hello) = match heard {
            Ok(Ok(heard)) => heard,
            Ok(Err(_)) => return None,
            Err(_) => {
                member.ledger.note(line().denied(Reason::NoName));
                return None;
            }
        };
        let host = match hello {
            Hello::Tls(name) => Some(name),
            Hello::More | Hello::Nameless | Hello::Other => None,
        };
        let policy = member.policy();
        let mirrored = host.as_ref().is_some_and(|host| self.proxy.mirrors.covers(host));
        let stand_in = is_stand_in(*target.ip());
        let line = line().host(host.as_ref());
        match (policy.named(host.as_ref(), *target.ip()), host) {
            (Named::Refused(reason), _) => {
                // Whoever expects TLS is told in its words.
                let _ = stream.try_write(&ACCESS_DENIED);
                member.ledger.note(line.denied(reason));
                Some(Next::Nowhere)
            }
            (Named::Terminate, Some(host)) => Some(Next::Https { host, first, upstream }),
            (Named::Splice | Named::Address, Some(host)) if mirrored => {
                Some(Next::Https { host, first, upstream: None })
            }
            (named, Some(host)) if named == Named::Splice || stand_in => {
                // Reached before under this name, or at an address that it resolved to.
                let same = match &expected {
                    Some(expected) => *expected == host,
                    None => member.names_of(*target.ip()).contains(&host),
                };
                let upstream = match upstream.filter(|_| same) {
                    Some(upstream) => Ok(upstream),
                    None => self.proxy.dialer.host(&host, target.port(), Some(&policy)).await,
                };
                dialled(member, line, upstream, first, Some(host))
            }
            (_, host) => {
                let upstream = match upstream {
                    Some(upstream) => Ok(upstream),
                    None if stand_in => Err(DialError::Refused(Reason::NoName)),
                    None => self.proxy.dialer.address(target).await,
                };
                dialled(member, line, upstream, first, host)
            }
        }
    }

    /// Reads until it is clear what is spoken. Where the address is allowed and the
    /// other side speaks first, that is no TLS.
    async fn listen(
        &self,
        member: &Member,
        stream: &mut TcpStream,
        target: SocketAddrV4,
        upstream: Option<&TcpStream>,
    ) -> io::Result<(Vec<u8>, Hello)> {
        let mut heard = Vec::new();
        let by_address = matches!(member.policy().named(None, *target.ip()), Named::Address);
        loop {
            let (mut chunk, mut byte) = ([0; 4096], [0]);
            let read = match upstream.filter(|_| by_address && heard.is_empty()) {
                None => stream.read(&mut chunk).await?,
                Some(upstream) => tokio::select! {
                    biased;
                    read = stream.read(&mut chunk) => read?,
                    // A readiness alone may be of an event that was none.
                    spoken = upstream.peek(&mut byte) => {
                        spoken?;
                        return Ok((heard, Hello::Other));
                    }
                },
            };
            heard.extend_from_slice(&chunk[..read]);
            match hello::read(&heard) {
                // It ended before it was clear.
                Hello::More if read == 0 => return Ok((heard, Hello::Other)),
                Hello::More if heard.len() < MAX_HELLO => {}
                hello => return Ok((heard, hello)),
            }
        }
    }

    /// `place` is held until the connection has ended.
    async fn go_on(
        &self,
        member: &Arc<Member>,
        stream: TcpStream,
        target: SocketAddrV4,
        next: Next,
        place: Place,
    ) {
        match next {
            // What was said arrives, and the end is an end.
            Next::Nowhere => drop(stream),
            Next::Splice { upstream, first, host } => {
                let way = if host.is_some() { Way::Spliced } else { Way::Direct };
                let line = Access::now(way).address(target).host(host.as_ref());
                let allowed = move |policy: &Ruleset| policy.passes_unseen(host.as_ref(), *target.ip());
                self.splice(member, stream, upstream, &first, line, allowed).await;
            }
            Next::Http { upstream, first } => {
                let talk = Arc::new(Conversation::new(member.clone(), target, None, upstream, place));
                let serving = self.proxy.serve(Prefixed::new(first, stream), talk.clone());
                guarded(member, |policy| talk.allowed_by(policy), serving).await;
            }
            Next::Https { host, first, upstream } => {
                let Some(authority) = member.authority() else { return splice::reset(&stream) };
                let config = match authority.server(&host) {
                    Ok(config) => config,
                    Err(error) => {
                        tracing::error!(sandbox = member.sandbox, %host, %error, "make a certificate");
                        return splice::reset(&stream);
                    }
                };
                let accepting = TlsAcceptor::from(config).accept(Prefixed::new(first, stream));
                let talk =
                    Arc::new(Conversation::new(member.clone(), target, Some(host.clone()), upstream, place));
                let serving = async {
                    match tokio::time::timeout(HANDSHAKE, accepting).await {
                        Ok(Ok(tls)) => self.proxy.serve(tls, talk.clone()).await,
                        Ok(Err(error)) => {
                            tracing::debug!(sandbox = member.sandbox, %host, %error, "TLS with a sandbox");
                        }
                        Err(_) => {}
                    }
                };
                guarded(member, |policy| talk.allowed_by(policy), serving).await;
            }
        }
    }

    async fn splice(
        &self,
        member: &Member,
        mut stream: TcpStream,
        mut upstream: TcpStream,
        first: &[u8],
        line: Access,
        allowed: impl Fn(&Ruleset) -> bool,
    ) {
        let underway = Underway::new(member.ledger.clone(), line);
        let both = splice::both(&mut stream, &mut upstream, first, &underway);
        if guarded(member, allowed, both).await.is_none() {
            splice::reset(&stream);
            splice::reset(&upstream);
        }
    }
}

/// Where a connection goes whose name is known.
enum Next {
    /// Nowhere; what there was to say is said.
    Nowhere,
    Splice {
        upstream: TcpStream,
        first: Vec<u8>,
        host: Option<HostName>,
    },
    Http {
        upstream: Option<TcpStream>,
        first: Vec<u8>,
    },
    Https {
        host: HostName,
        first: Vec<u8>,
        upstream: Option<TcpStream>,
    },
}

/// A connection goes on to what was dialled for it, if it was reached.
fn dialled(
    member: &Member,
    line: Access,
    upstream: Result<TcpStream, DialError>,
    first: Vec<u8>,
    host: Option<HostName>,
) -> Option<Next> {
    match upstream {
        Ok(upstream) => Some(Next::Splice { upstream, first, host }),
        Err(error) => {
            member.ledger.note(line.denied(error.reason()));
            None
        }
    }
}

/// Whether a connection that was let in by its address may go on: by that, or by one of
/// the names that the sandbox has for it.
fn is_allowed(member: &Member, policy: &Ruleset, target: SocketAddrV4) -> bool {
    let names = || member.names_of(*target.ip());
    let named = |host| policy.passes_unseen(host, *target.ip());
    match policy.opening(target) {
        Opening::Refused(_) => false,
        Opening::Address => true,
        Opening::Name => named(None) || names().iter().any(|host| named(Some(host))),
    }
}

/// Runs `work` for as long as the policy allows it. `None`: it no longer does.
async fn guarded<T>(
    member: &Member,
    allowed: impl Fn(&Ruleset) -> bool,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut policy = member.watch();
    tokio::select! {
        biased;
        _ = policy.wait_for(|policy| !allowed(policy)) => None,
        done = work => Some(done),
    }
}
