//! The resolver: answers for mirrored hosts itself and passes everything else
//! to the host's resolver, bytes in, bytes out. What a name resolves to grants
//! nothing: the relay judges the address that is dialled.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::places::Places;
use crate::policy::Policies;

/// How long the host's resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions under way at once of one sandbox; over TCP, its connections.
const PER_SANDBOX: u32 = 64;

/// The same of all sandboxes together: each may take a descriptor.
const TOGETHER: u32 = 4096;

/// Pause after an error that would come again at once.
const RESPITE: Duration = Duration::from_millis(50);

/// How long our own answers may be kept, in seconds.
const TTL: u32 = 60;

#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) policies: Arc<Policies>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) mirror_address: Ipv4Addr,
    pub(crate) mirrored: Vec<String>,
}

/// The first name server of the host.
pub(crate) fn host_resolver() -> Option<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    let server = text.lines().find_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    Some(SocketAddr::new(server?, 53))
}

impl Resolver {
    /// Our own answer, or `None` when the question is for the host's resolver.
    fn own_answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let message = Message::from_vec(question).ok()?;
        let [query] = message.queries.as_slice() else { return None };
        let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        if !self.mirrored.contains(&name) {
            return None;
        }
        let (kind, name) = (query.query_type(), query.name().clone());
        let mut answer = message.into_response();
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = ResponseCode::NoError;
        if kind == RecordType::A {
            answer.add_answer(Record::from_rdata(name, TTL, RData::A(self.mirror_address.into())));
        }
        answer.to_vec().ok()
    }

    async fn answer(&self, question: &[u8], tcp: bool, asker: IpAddr) -> Option<Vec<u8>> {
        if !self.policies.allow_names(asker) {
            return failure(question, ResponseCode::Refused);
        }
        if let Some(answer) = self.own_answer(question) {
            return Some(answer);
        }
        let asked = async {
            let upstream = self.upstream?;
            if tcp {
                let mut stream = TcpStream::connect(upstream).await.ok()?;
                write_framed(&mut stream, question).await?;
                read_framed(&mut stream).await
            } else {
                let bind: SocketAddr = if upstream.is_ipv4() {
                    (Ipv4Addr::UNSPECIFIED, 0).into()
                } else {
                    ([0_u16; 8], 0).into()
                };
                let socket = UdpSocket::bind(bind).await.ok()?;
                socket.connect(upstream).await.ok()?;
                socket.send(question).await.ok()?;
                let mut buffer = vec![0; 4096];
                let read = socket.recv(&mut buffer).await.ok()?;
                buffer.truncate(read);
                // Same transaction, or it is not an answer.
                (buffer.get(..2) == question.get(..2)).then_some(buffer)
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Some(answer)) => Some(answer),
            _ => failure(question, ResponseCode::ServFail),
        }
    }
}

/// An answer that is none, for a question that can be read.
fn failure(question: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let mut answer = Message::from_vec(question).ok()?.into_response();
    answer.metadata.response_code = code;
    answer.to_vec().ok()
}

pub(crate) async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let places = Places::new(PER_SANDBOX, TOGETHER);
    let mut buffer = vec![0; 4096];
    loop {
        let (read, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "receive a sandbox's question");
                tokio::time::sleep(RESPITE).await;
                continue;
            }
        };
        // Too many at once: the question is dropped, as a busy network would.
        let Some(place) = places.take(peer.ip()) else { continue };
        let (resolver, socket, question) = (resolver.clone(), socket.clone(), buffer[..read].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = resolver.answer(&question, false, peer.ip()).await {
                // The asker may be gone.
                let _ = socket.send_to(&answer, peer).await;
            }
            drop(place);
        });
    }
}

pub(crate) async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let places = Places::new(PER_SANDBOX, TOGETHER);
    loop {
        let (mut stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: room comes when a connection ends.
                tracing::warn!(%error, "accept a sandbox's question");
                tokio::time::sleep(RESPITE).await;
                continue;
            }
        };
        // Too many at once: refused, by closing.
        let Some(place) = places.take(peer.ip()) else { continue };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            let talk = async {
                while let Some(question) = read_framed(&mut stream).await {
                    let answer = resolver.answer(&question, true, peer.ip()).await?;
                    write_framed(&mut stream, &answer).await?;
                }
                Some(())
            };
            let _ = tokio::time::timeout(PATIENCE * 4, talk).await;
            drop(place);
        });
    }
}

async fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_u16().await.ok()?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> Option<()> {
    let mut framed = u16::try_from(message.len()).ok()?.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    fn ask(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn resolver() -> Resolver {
        Resolver {
            policies: Arc::default(),
            upstream: None,
            mirror_address: Ipv4Addr::new(10, 9, 8, 7),
            mirrored: vec!["github.com".into()],
        }
    }

    #[test]
    fn mirrored_hosts_are_ours() {
        let answer = resolver().own_answer(&ask("GitHub.com.", RecordType::A)).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.answers.len(), 1);
        let none = resolver().own_answer(&ask("github.com.", RecordType::AAAA)).unwrap();
        assert!(Message::from_vec(&none).unwrap().answers.is_empty());
        assert!(resolver().own_answer(&ask("api.github.com.", RecordType::A)).is_none());
        assert!(resolver().own_answer(&ask("github.com.evil.test.", RecordType::A)).is_none());
        assert!(resolver().own_answer(b"garbage").is_none());
    }

    /// Over TCP and UDP: whoever holds all of its places is alone with that.
    #[tokio::test]
    async fn one_sandbox_does_not_silence_the_others() {
        let policies = Arc::new(Policies::default());
        let [greedy, other] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
        for asker in [greedy, other] {
            policies.set(asker, crate::EgressPolicy::AllowAll);
        }
        // A resolver of the host that never answers.
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Some(silent.local_addr().unwrap());
        let resolver = Arc::new(Resolver { policies, upstream, ..resolver() });
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
        tokio::spawn(serve_udp(resolver.clone(), socket));
        tokio::spawn(serve_tcp(resolver, listener));

        let soon = Duration::from_secs(2);
        let ours = ask("github.com.", RecordType::A);
        let asker = async |from: Ipv4Addr| {
            let socket = UdpSocket::bind((from, 0)).await.unwrap();
            socket.connect(udp).await.unwrap();
            socket
        };
        let answers = async |socket: &UdpSocket| {
            socket.send(&ours).await.unwrap();
            tokio::time::timeout(soon, socket.recv(&mut [0; 512])).await.is_ok()
        };
        let (asking, neighbour) = (asker(greedy).await, asker(other).await);
        assert!(answers(&asking).await);
        for _ in 0..PER_SANDBOX {
            asking.send(&ask("example.test.", RecordType::A)).await.unwrap();
        }
        assert!(!answers(&asking).await, "it had more than its places");
        assert!(answers(&neighbour).await);

        let connect = async |from: Ipv4Addr| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            let mut stream = socket.connect(tcp).await.unwrap();
            write_framed(&mut stream, &ours).await;
            let answer = tokio::time::timeout(soon, read_framed(&mut stream)).await.unwrap();
            answer.is_some().then_some(stream)
        };
        let mut held = Vec::new();
        for _ in 0..PER_SANDBOX {
            held.push(connect(greedy).await.unwrap());
        }
        assert!(connect(greedy).await.is_none(), "it had more than its places");
        assert!(connect(other).await.is_some());
        drop(held.pop());
        let freed = async { while connect(greedy).await.is_none() {} };
        tokio::time::timeout(soon, freed).await.unwrap();
    }

    #[tokio::test]
    async fn without_a_resolver_the_answer_is_a_failure() {
        let (resolver, asker) = (resolver(), Ipv4Addr::new(10, 0, 0, 2));
        let question = ask("example.test.", RecordType::A);
        let code = async || {
            let answer = resolver.answer(&question, false, asker.into()).await.unwrap();
            Message::from_vec(&answer).unwrap().metadata.response_code
        };
        assert_eq!(code().await, ResponseCode::Refused);
        resolver.policies.set(asker, crate::EgressPolicy::AllowAll);
        assert_eq!(code().await, ResponseCode::ServFail);
        resolver.policies.set(asker, crate::EgressPolicy::DenyAll);
        assert_eq!(code().await, ResponseCode::Refused);
    }
}
