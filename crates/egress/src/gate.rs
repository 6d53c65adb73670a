//! The gate: a TUN device to which the packet filter routes the first packet of
//! every connection, and every packet that is none of TCP.
//!
//! ```text
//! sandbox --SYN--> gate --dial--> destination
//!            |                        |
//!            |   <-- RST, ICMP -- no  | yes
//!            v                        v
//!         relay  <---- the same SYN, written back
//! ```
//!
//! So `connect(2)` in a sandbox succeeds when the destination was reached, and fails
//! at once when it was not, or when a rule forbids it. Questions to a name server,
//! whichever, are answered from here too; everything else is refused with ICMP.
//! When this process is gone, so is the device, and the sandbox reaches nothing.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_provider::HostName;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use crate::dial::{DialError, Dialer};
use crate::dns::Resolver;
use crate::ledger::{Access, Way};
use crate::mirror::Mirrors;
use crate::packet::{self, Flow, Seen, Unreachable};
use crate::places::{Most, Place, Places};
use crate::policy::{HTTP, HTTPS, Opening};
use crate::reason::Reason;
use crate::sandboxes::{Member, Sandboxes, is_stand_in};

/// The port of DNS.
const DNS: u16 = 53;

/// How long a connection that was let in may take to arrive at the relay: three
/// times the first retransmission (RFC 6298).
const ARRIVAL: Duration = Duration::from_secs(10);

/// Questions of one sandbox under way at once, of one account, and of all.
const QUESTIONS: Most = Most { sandbox: 64, account: 1024, all: 4096 };

/// What the relay is to do with a connection.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Answer questions.
    Dns,
    /// Pass bytes to a destination that was reached.
    Direct(TcpStream, Claim),
    /// Look at what is said first.
    Named {
        /// The destination, where it could be reached before.
        upstream: Option<TcpStream>,
        /// The name that the sandbox was given this address for.
        expected: Option<HostName>,
    },
}

/// By what a direct connection is allowed.
#[derive(Debug, Clone)]
pub(crate) enum Claim {
    /// Its address.
    Address,
    /// Its name.
    Name(HostName),
}

/// A connection that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) member: Arc<Member>,
    pub(crate) plan: Plan,
    pub(crate) place: Place,
}

#[derive(Debug)]
enum Waiting {
    /// For its destination.
    Dialling,
    /// For the relay, since then.
    Admitted(Box<Admitted>, Instant),
}

/// The gate of one instance.
#[derive(Debug)]
pub(crate) struct Gate {
    device: AsyncFd<OwnedFd>,
    /// In whose name ICMP is sent.
    address: Ipv4Addr,
    sandboxes: Arc<Sandboxes>,
    dialer: Arc<Dialer>,
    mirrors: Arc<Mirrors>,
    resolver: Arc<Resolver>,
    connections: Places,
    questions: Places,
    waiting: Mutex<HashMap<Flow, Waiting>>,
}

/// What the gate does with a SYN.
#[derive(Debug)]
enum Decision {
    Refuse(Reason),
    LetIn(Plan),
    DialAddress,
    DialName(HostName),
    /// Dial first where that is possible; what is said first decides.
    DialForName(Option<Target>),
}

#[derive(Debug)]
enum Target {
    Address,
    Name(HostName),
}

impl Gate {
    pub(crate) fn new(
        device: AsyncFd<OwnedFd>,
        address: Ipv4Addr,
        sandboxes: Arc<Sandboxes>,
        resolver: Arc<Resolver>,
    ) -> Self {
        Self {
            device,
            address,
            sandboxes,
            dialer: resolver.dialer.clone(),
            mirrors: resolver.mirrors.clone(),
            resolver,
            connections: Places::new(Most::by_descriptors()),
            questions: Places::new(QUESTIONS),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Flow, Waiting>> {
        // A map only: a panic elsewhere cannot tear it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that the relay has just accepted, if it was let in.
    pub(crate) fn arrived(&self, flow: Flow) -> Option<Admitted> {
        let mut waiting = self.waiting();
        match waiting.remove(&flow)? {
            Waiting::Admitted(admitted, _) => Some(*admitted),
            dialling @ Waiting::Dialling => {
                waiting.insert(flow, dialling);
                None
            }
        }
    }

    /// Reads packets for ever.
    pub(crate) async fn serve(self: Arc<Self>) {
        let mut buffer = vec![0; 1 << 16];
        let mut swept = Instant::now();
        loop {
            let read = self.device.readable().await.map(|mut ready| {
                ready.try_io(|device| Ok(rustix::io::read(device.get_ref(), &mut buffer[..])?))
            });
            match read {
                Ok(Ok(Ok(length))) => self.clone().packet(&buffer[..length]),
                // Not readable after all.
                Ok(Err(_)) => {}
                Ok(Ok(Err(error))) | Err(error) => {
                    tracing::warn!(%error, "read from the gate");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            if swept.elapsed() > ARRIVAL {
                swept = Instant::now();
                self.waiting().retain(|_, waiting| match waiting {
                    Waiting::Admitted(_, since) => since.elapsed() < ARRIVAL,
                    Waiting::Dialling => true,
                });
            }
        }
    }

    fn write(&self, packet: &[u8]) {
        // A full queue loses packets, as networks do; the sender sends again.
        if let Err(error) = rustix::io::write(self.device.get_ref(), packet) {
            tracing::debug!(%error, "write to the gate");
        }
    }

    fn prohibit(&self, packet: &[u8]) {
        if let Some(answer) = packet::unreachable(packet, self.address, Unreachable::Prohibited) {
            self.write(&answer);
        }
    }

    fn packet(self: Arc<Self>, packet: &[u8]) {
        match packet::read(packet) {
            Seen::Syn(flow) => {
                let Some(member) = self.sandboxes.at(*flow.source.ip()) else { return };
                self.syn(member, flow, packet);
            }
            Seen::Datagram(flow, question) if flow.target.port() == DNS => {
                let Some(member) = self.sandboxes.at(*flow.source.ip()) else { return };
                // Too many at once: lost, as in a busy network.
                let Some(place) = self.questions.take(*flow.source.ip(), &member.account) else { return };
                let question = question.to_vec();
                tokio::spawn(async move {
                    if let Some(answer) = self.resolver.datagram(&member, &question).await {
                        self.write(&packet::datagram(flow.target, flow.source, &answer));
                    }
                    drop(place);
                });
            }
            Seen::Datagram(flow, _) => self.refuse_packet(packet, *flow.source.ip(), flow.target),
            Seen::Other { source, target, .. } => {
                self.refuse_packet(packet, source, SocketAddrV4::new(target, 0))
            }
            Seen::Nonsense => {}
        }
    }

    fn refuse_packet(&self, packet: &[u8], source: Ipv4Addr, target: SocketAddrV4) {
        let Some(member) = self.sandboxes.at(source) else { return };
        member.ledger.note(Access::now(Way::Packet).address(target).denied(Reason::Protocol));
        self.prohibit(packet);
    }

    /// What follows from policy and address alone.
    fn decide(&self, member: &Member, target: SocketAddrV4) -> Decision {
        let policy = member.policy();
        let by_name = matches!(target.port(), HTTP | HTTPS);
        if target.port() == DNS {
            return Decision::LetIn(Plan::Dns);
        }
        let stand_ins = self.dialer.by_name_only() || !self.mirrors.hosts().is_empty();
        let name = || member.names_of(*target.ip()).into_iter().next();
        if is_stand_in(*target.ip()) && (stand_ins || name().is_some()) {
            return match name() {
                Some(name) => match policy.host(&name) {
                    None => Decision::Refuse(Reason::NotAllowed),
                    Some(_) if by_name && (self.mirrors.covers(&name) || policy.answers_for(&name)) => {
                        Decision::LetIn(Plan::Named { upstream: None, expected: Some(name) })
                    }
                    Some(_) if by_name => Decision::DialForName(Some(Target::Name(name))),
                    // Other ports are for who may reach everything.
                    Some(_) if policy.any_question() => Decision::DialName(name),
                    Some(_) => Decision::Refuse(Reason::NotAllowed),
                },
                // A program has kept it longer than this server: what it says decides.
                None if by_name => Decision::DialForName(None),
                None => Decision::Refuse(Reason::NoAddress),
            };
        }
        if let Err(reason) = self.dialer.ground.check(*target.ip()) {
            return Decision::Refuse(reason);
        }
        match policy.opening(target) {
            Opening::Refused(reason) => Decision::Refuse(reason),
            Opening::Address => Decision::DialAddress,
            Opening::Name => {
                // Only what we resolved ourselves, or the policy allows by address, is
                // dialled before a name was said.
                let names = member.names_of(*target.ip());
                let allowed = |name: &HostName| policy.host(name).is_some() && !policy.answers_for(name);
                let known = policy.any_question() || names.iter().any(allowed);
                Decision::DialForName(known.then_some(Target::Address))
            }
        }
    }

    fn syn(self: Arc<Self>, member: Arc<Member>, flow: Flow, packet: &[u8]) {
        // Sent again, since nobody has answered yet.
        match self.waiting().get(&flow) {
            Some(Waiting::Dialling) => return,
            // The one that was written back was lost.
            Some(Waiting::Admitted(..)) => return self.write(packet),
            None => {}
        }
        let line = move || Access::now(Way::Direct).address(flow.target);
        let decision = self.decide(&member, flow.target);
        let place = match decision {
            Decision::Refuse(reason) => {
                member.ledger.note(line().denied(reason));
                return self.prohibit(packet);
            }
            _ => self.connections.take(*flow.source.ip(), &member.account),
        };
        let Some(place) = place else {
            member.ledger.note(line().denied(Reason::Busy));
            return self.prohibit(packet);
        };
        let packet = packet.to_vec();
        self.waiting().insert(flow, Waiting::Dialling);
        tokio::spawn(async move {
            let target = flow.target;
            let plan = match decision {
                Decision::Refuse(reason) => Err(DialError::Refused(reason)),
                Decision::LetIn(plan) => Ok(plan),
                Decision::DialAddress => {
                    self.dialer.address(target).await.map(|upstream| Plan::Direct(upstream, Claim::Address))
                }
                Decision::DialName(name) => {
                    let dialled = self.dialer.host(&name, target.port(), Some(&member.policy())).await;
                    dialled.map(|upstream| Plan::Direct(upstream, Claim::Name(name)))
                }
                Decision::DialForName(None) => Ok(Plan::Named { upstream: None, expected: None }),
                Decision::DialForName(Some(Target::Address)) => {
                    let dialled = self.dialer.address(target).await;
                    dialled.map(|upstream| Plan::Named { upstream: Some(upstream), expected: None })
                }
                Decision::DialForName(Some(Target::Name(name))) => {
                    let dialled = self.dialer.host(&name, target.port(), Some(&member.policy())).await;
                    dialled.map(|upstream| Plan::Named { upstream: Some(upstream), expected: Some(name) })
                }
            };
            match plan {
                Ok(plan) => {
                    let admitted = Box::new(Admitted { member, plan, place });
                    self.waiting().insert(flow, Waiting::Admitted(admitted, Instant::now()));
                    self.write(&packet);
                }
                Err(error) => {
                    self.waiting().remove(&flow);
                    member.ledger.note(line().denied(error.reason()));
                    let answer = match error {
                        DialError::Closed => packet::reset(&packet),
                        DialError::Unreachable => {
                            packet::unreachable(&packet, self.address, Unreachable::Host)
                        }
                        DialError::Refused(_) => {
                            packet::unreachable(&packet, self.address, Unreachable::Prohibited)
                        }
                    };
                    if let Some(answer) = answer {
                        self.write(&answer);
                    }
                }
            }
        });
    }
}
