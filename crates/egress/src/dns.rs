//! The resolver of sandboxes: which questions are answered, and how. What a name
//! resolves to grants nothing: whoever dials judges again.
//!
//! Names that the policy does not allow are refused without a word to anybody
//! outside; every refusal says why (extended DNS errors, RFC 8914). There is no
//! IPv6, so AAAA is always empty, as are HTTPS and SVCB: they would lead to QUIC
//! and to encrypted names.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use dormouse_provider::HostName;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::dial::Dialer;
use crate::ledger::{Access, Way};
use crate::mirror::Mirrors;
use crate::names::Unresolved;
use crate::reason::Reason;
use crate::sandboxes::Member;

/// How long a name keeps an address that stands for it, in seconds.
const STAND_IN_TTL: u32 = 60;

/// Largest answer over UDP, in bytes: what no network cuts in pieces (DNS Flag Day
/// 2020), and what whoever does not say more can take (RFC 1035, section 4.2.1).
const MAX_UDP: u16 = 1232;
const MIN_UDP: u16 = 512;

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// Code of an extended error, and its codes for us (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
const BLOCKED: u16 = 15;
const FILTERED: u16 = 17;
const PROHIBITED: u16 = 18;

/// Questions that are passed on where every name is allowed.
const PASSED_ON: [RecordType; 12] = [
    RecordType::CAA,
    RecordType::CNAME,
    RecordType::MX,
    RecordType::NAPTR,
    RecordType::NS,
    RecordType::OPENPGPKEY,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::SSHFP,
    RecordType::TLSA,
    RecordType::TXT,
];

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) mirrors: Arc<Mirrors>,
}

/// An answer in the making.
struct Answer {
    code: ResponseCode,
    records: Vec<Record>,
    /// Code and reason of a denial.
    denied: Option<(u16, Reason)>,
}

impl Answer {
    fn empty(code: ResponseCode) -> Self {
        Self { code, records: Vec::new(), denied: None }
    }

    fn refused(info: u16, reason: Reason) -> Self {
        Self { code: ResponseCode::Refused, records: Vec::new(), denied: Some((info, reason)) }
    }
}

impl Resolver {
    /// The answer to a question that came in a datagram. `None`: it is no question.
    pub(crate) async fn datagram(&self, member: &Member, question: &[u8]) -> Option<Vec<u8>> {
        self.answer(member, question, true).await
    }

    /// Answers questions of one connection (RFC 7766).
    pub(crate) async fn connection<S: AsyncRead + AsyncWrite + Unpin>(&self, member: &Member, mut stream: S) {
        let _ = self.converse(member, &mut stream).await;
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        member: &Member,
        stream: &mut S,
    ) -> Option<()> {
        loop {
            let reading = async {
                let mut message = vec![0; usize::from(stream.read_u16().await.ok()?)];
                stream.read_exact(&mut message).await.ok()?;
                Some(message)
            };
            let question = tokio::time::timeout(SILENCE, reading).await.ok()??;
            let answer = self.answer(member, &question, false).await?;
            let mut framed = u16::try_from(answer.len()).ok()?.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            tokio::time::timeout(SILENCE, stream.write_all(&framed)).await.ok()?.ok()?;
        }
    }

    async fn answer(&self, member: &Member, question: &[u8], udp: bool) -> Option<Vec<u8>> {
        let message = Message::from_vec(question).ok()?;
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let edns = message.edns.clone();
        let answer = self.decide(member, &message).await;
        let mut reply = message.into_response();
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = answer.code;
        reply.answers = answer.records;
        reply.edns = None;
        if let Some(asked) = &edns {
            let mut ours = Edns::new();
            ours.set_max_payload(MAX_UDP).set_version(0);
            if let Some((info, reason)) = answer.denied {
                let mut data = info.to_be_bytes().to_vec();
                data.extend_from_slice(b"dormouse: ");
                data.extend_from_slice(reason.sentence().as_bytes());
                ours.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
            }
            if asked.version() != 0 {
                reply.metadata.response_code = ResponseCode::BADVERS;
                reply.answers.clear();
            }
            reply.edns = Some(ours);
        }
        let limit = edns.map_or(MIN_UDP, |edns| edns.max_payload().clamp(MIN_UDP, MAX_UDP));
        let bytes = reply.to_vec().ok()?;
        if !udp || bytes.len() <= usize::from(limit) {
            return Some(bytes);
        }
        // The rest is to be had over TCP.
        reply.metadata.truncation = true;
        reply.answers.clear();
        reply.to_vec().ok()
    }

    async fn decide(&self, member: &Member, message: &Message) -> Answer {
        if message.metadata.op_code != OpCode::Query {
            return Answer::empty(ResponseCode::NotImp);
        }
        let [query] = message.queries.as_slice() else { return Answer::empty(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return Answer::empty(ResponseCode::Refused);
        }
        let Ok(host) = query.name().to_ascii().parse::<HostName>() else {
            return Answer::empty(ResponseCode::NXDomain);
        };
        let kind = query.query_type();
        let policy = member.policy();
        if let Err(reason) = policy.resolves(&host) {
            return self.denied(member, &host, BLOCKED, reason);
        }
        match kind {
            RecordType::A => {}
            RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => {
                return Answer::empty(ResponseCode::NoError);
            }
            other if !policy.any_question() || !PASSED_ON.contains(&other) => {
                return self.denied(member, &host, PROHIBITED, Reason::Question);
            }
            _ => {}
        }
        // What it asked before is in the cache, or leaves this host once a second; what is
        // made up leaves it each time.
        let known = kind == RecordType::A && member.knows(&host);
        if !known && !member.may_ask() {
            return self.denied(member, &host, PROHIBITED, Reason::Busy);
        }
        if kind != RecordType::A {
            let records = self.dialer.names.records(&host, kind).await;
            member.ledger.note(Access::now(Way::Dns).host(Some(&host)));
            return match records {
                Ok(records) => Answer { records, ..Answer::empty(ResponseCode::NoError) },
                Err(error) => Answer::empty(code(error)),
            };
        }
        let stand_in = || {
            let address = member.stand_in(&host);
            (vec![address], STAND_IN_TTL)
        };
        let (addresses, ttl) = if self.mirrors.covers(&host) || self.dialer.by_name_only() {
            stand_in()
        } else {
            match self.dialer.names.addresses(&host).await {
                Ok(found) => {
                    let usable: Vec<Ipv4Addr> = found
                        .addresses
                        .iter()
                        .copied()
                        .filter(|ip| self.dialer.ground.check(*ip).is_ok())
                        .collect();
                    if usable.is_empty() {
                        // Why, by the first.
                        let first = found.addresses.first().map(|ip| self.dialer.ground.check(*ip));
                        let reason = first.and_then(Result::err).unwrap_or(Reason::Private);
                        return self.denied(member, &host, FILTERED, reason);
                    }
                    (usable, found.ttl)
                }
                // There is no such host, and there need not be one.
                Err(_) if policy.answers_for(&host) => stand_in(),
                Err(error) => return Answer::empty(code(error)),
            }
        };
        member.resolved(&host, &addresses);
        member.ledger.note(Access::now(Way::Dns).host(Some(&host)));
        let name = query.name();
        let record = |address: &Ipv4Addr| Record::from_rdata(name.clone(), ttl, RData::A((*address).into()));
        Answer { records: addresses.iter().map(record).collect(), ..Answer::empty(ResponseCode::NoError) }
    }

    fn denied(&self, member: &Member, host: &HostName, info: u16, reason: Reason) -> Answer {
        member.ledger.note(Access::now(Way::Dns).host(Some(host)).denied(reason));
        Answer::refused(info, reason)
    }
}

fn code(error: Unresolved) -> ResponseCode {
    match error {
        Unresolved::None { missing: true } => ResponseCode::NXDomain,
        Unresolved::None { missing: false } => ResponseCode::NoError,
        Unresolved::Failed => ResponseCode::ServFail,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ground::Ground;
    use crate::names::Names;
    use crate::policy::Ruleset;
    use crate::sandboxes::tests::{occupant, sandboxes};
    use dormouse_provider::{CustomPolicy, DomainPolicy, NetworkPolicy};
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);

    fn member(domains: &[&str]) -> Arc<Member> {
        let domain = |name: &&str| DomainPolicy { domain: (*name).to_owned(), rules: Vec::new() };
        let domains = domains.iter().map(domain).collect();
        let policy = NetworkPolicy::Custom(CustomPolicy { domains, ..CustomPolicy::default() });
        let sandboxes = sandboxes();
        sandboxes.put(HERE, occupant("sbx_1"), Ruleset::new(&policy).unwrap());
        sandboxes.at(HERE).unwrap()
    }

    /// A resolver whose own does not answer.
    fn resolver() -> Resolver {
        let mirrors = Mirrors::new(vec![crate::mirror::Mirror {
            from: "https://github.com/".to_owned(),
            to: "http://127.0.0.1:9/".to_owned(),
        }]);
        let names = Names::new(Some("127.0.0.1:9".parse().unwrap())).unwrap();
        let dialer = Arc::new(Dialer { ground: Ground::default(), names, proxy: None });
        Resolver { dialer, mirrors: Arc::new(mirrors.unwrap()) }
    }

    fn question(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if edns {
            message.edns = Some(Edns::new());
        }
        message.to_vec().unwrap()
    }

    async fn ask(member: &Member, name: &str, kind: RecordType) -> Message {
        let answer = resolver().datagram(member, &question(name, kind, true)).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    #[tokio::test]
    async fn a_denial_says_why() {
        let member = member(&["api.test", "github.com"]);
        let refused = ask(&member, "evil.test.", RecordType::A).await;
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
        let edns = refused.edns.unwrap();
        let Some(EdnsOption::Unknown(_, why)) = edns.option(EXTENDED_ERROR.into()) else {
            panic!("{edns:?}")
        };
        assert!(
            why[..2] == BLOCKED.to_be_bytes()
                && String::from_utf8_lossy(&why[2..]).contains("does not allow")
        );
        assert_eq!(
            ask(&member, "api.test.", RecordType::TXT).await.metadata.response_code,
            ResponseCode::Refused
        );
        let empty = ask(&member, "API.test.", RecordType::AAAA).await;
        assert_eq!((empty.metadata.response_code, empty.answers.len()), (ResponseCode::NoError, 0));
        // Allowed, and nobody answers.
        assert_eq!(
            ask(&member, "api.test.", RecordType::A).await.metadata.response_code,
            ResponseCode::ServFail
        );
        // Mirrored: an address that stands for it.
        assert_eq!(ask(&member, "github.com.", RecordType::A).await.answers.len(), 1);
        assert_eq!(
            ask(&member, "api.github.com.", RecordType::A).await.metadata.response_code,
            ResponseCode::Refused
        );
    }

    /// A program that resolves a name for each of its connections is not one that makes
    /// names up.
    #[tokio::test]
    async fn only_new_names_are_bounded() {
        let (resolver, member) = (resolver(), member(&["github.com", "*.wild.test"]));
        let ask = async |name: String, kind| {
            let question = question(&name, kind, true);
            let answer = resolver.datagram(&member, &question).await.unwrap();
            Message::from_vec(&answer).unwrap().metadata.response_code
        };
        assert_eq!(ask("github.com.".to_owned(), RecordType::A).await, ResponseCode::NoError);
        // All that it may ask for is asked for.
        while member.may_ask() {}
        for _ in 0..100 {
            assert_eq!(ask("github.com.".to_owned(), RecordType::A).await, ResponseCode::NoError);
            assert_eq!(ask("github.com.".to_owned(), RecordType::AAAA).await, ResponseCode::NoError);
        }
        while member.may_ask() {}
        assert_eq!(ask("new.wild.test.".to_owned(), RecordType::A).await, ResponseCode::Refused);
    }

    /// Whatever comes, there is one answer or none, it fits, and it lets nothing out but
    /// what is allowed.
    #[test]
    fn nothing_breaks_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolver = runtime.block_on(async { resolver() });
        dormouse_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/dns"), |question| {
            // A new one each time: questions of one are bounded.
            let member = member(&["github.com"]);
            let Some(answer) = runtime.block_on(resolver.datagram(&member, question)) else { return };
            assert!(answer.len() <= usize::from(MAX_UDP) && answer[..2] == question[..2]);
            let answer = Message::from_vec(&answer).unwrap();
            let stands_in = |record: &hickory_proto::rr::Record| matches!(&record.data, RData::A(address) if address.0.octets()[0] == 198);
            assert!(answer.answers.iter().all(stands_in), "{answer:?}");
        });
    }
}
