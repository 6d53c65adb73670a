//! Who is at which address: policy, authority, ledger and the names that were
//! resolved. The engine says it before a sandbox's first instruction; an address
//! that nobody spoke for reaches nothing.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use dormouse_provider::HostName;
use rustls::crypto::CryptoProvider;
use tokio::sync::watch;

use crate::authority::{Authority, AuthoritySecret};
use crate::ledger::{Access, Ledger, Sums, Totals};
use crate::policy::Ruleset;

/// Addresses that are remembered with the names that resolved to them.
const REMEMBERED: usize = 2048;

/// Where names live that have no address of their own: the network for benchmarks
/// (RFC 2544), which is nobody's.
const STAND_INS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const STAND_IN_COUNT: u32 = 1 << 17;

/// Questions of one sandbox for names that it did not resolve before: a second, and at
/// once. A name that is made up says something to whoever owns its domain.
const QUESTIONS: f64 = 100.0;
const QUESTIONS_AT_ONCE: f64 = 1000.0;

/// Whether an address stands for a name.
pub(crate) fn is_stand_in(address: Ipv4Addr) -> bool {
    address.to_bits() & !(STAND_IN_COUNT - 1) == STAND_INS.to_bits()
}

/// The sandbox at an address.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) sandbox: String,
    pub(crate) account: Arc<str>,
    pub(crate) project: String,
    policy: watch::Sender<Arc<Ruleset>>,
    pub(crate) ledger: Arc<Ledger>,
    names: Mutex<VecDeque<(Ipv4Addr, HostName)>>,
    questions: Mutex<Bucket>,
    authority: OnceLock<Arc<Authority>>,
    trust: Arc<Trust>,
}

/// How many questions are left, and when that was true.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Who a sandbox is.
#[derive(Debug, Clone, Copy)]
pub struct Occupant<'a> {
    /// Its id.
    pub sandbox: &'a str,
    /// Whose it is: an account or an organization, whose sandboxes share one budget
    /// of connections.
    pub account: &'a str,
    /// In which project.
    pub project: &'a str,
    /// Bytes that left it before, under another server.
    pub sent: u64,
    /// Bytes that came then.
    pub received: u64,
}

/// What authorities are made of.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) secret: AuthoritySecret,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl Trust {
    fn authority(&self, sandbox: &str) -> Option<Arc<Authority>> {
        match Authority::new(&self.secret, sandbox, self.provider.clone()) {
            Ok(authority) => Some(Arc::new(authority)),
            Err(error) => {
                tracing::error!(sandbox, %error, "make the certificate authority of a sandbox");
                None
            }
        }
    }
}

impl Member {
    pub(crate) fn policy(&self) -> Arc<Ruleset> {
        self.policy.borrow().clone()
    }

    /// Changes of the policy, and the end of the sandbox.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Ruleset>> {
        self.policy.subscribe()
    }

    pub(crate) fn authority(&self) -> Option<Arc<Authority>> {
        if let Some(authority) = self.authority.get() {
            return Some(authority.clone());
        }
        let made = self.trust.authority(&self.sandbox)?;
        Some(self.authority.get_or_init(|| made).clone())
    }

    /// Whether the sandbox may ask one more question now.
    pub(crate) fn may_ask(&self) -> bool {
        let mut bucket = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let earned = now.duration_since(bucket.at).as_secs_f64() * QUESTIONS;
        bucket.left = (bucket.left + earned).min(QUESTIONS_AT_ONCE);
        bucket.at = now;
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }

    fn names(&self) -> std::sync::MutexGuard<'_, VecDeque<(Ipv4Addr, HostName)>> {
        // A list only: a panic elsewhere cannot tear it.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox was told that `host` is at these addresses.
    pub(crate) fn resolved(&self, host: &HostName, addresses: &[Ipv4Addr]) {
        let mut names = self.names();
        for address in addresses {
            names.retain(|(known, name)| known != address || name != host);
            if names.len() == REMEMBERED {
                names.pop_front();
            }
            names.push_back((*address, host.clone()));
        }
    }

    /// Whether it resolved the name before, not long ago.
    pub(crate) fn knows(&self, host: &HostName) -> bool {
        self.names().iter().any(|(_, known)| known == host)
    }

    /// Names that resolved to the address, the last first.
    pub(crate) fn names_of(&self, address: Ipv4Addr) -> Vec<HostName> {
        let names = self.names();
        names.iter().rev().filter(|(known, _)| *known == address).map(|(_, name)| name.clone()).collect()
    }

    /// The address that stands for `host` in this sandbox: the same one as long as
    /// it can be, also after a restart, for programs that keep it.
    pub(crate) fn stand_in(&self, host: &HostName) -> Ipv4Addr {
        let mut hasher = DefaultHasher::new();
        host.hash(&mut hasher);
        // The remainder is below 2^17.
        let start = (hasher.finish() % u64::from(STAND_IN_COUNT)) as u32;
        let names = self.names();
        let free = (0..STAND_IN_COUNT)
            .map(|step| Ipv4Addr::from_bits(STAND_INS.to_bits() | ((start + step) & (STAND_IN_COUNT - 1))));
        // There are far fewer names than addresses.
        free.into_iter()
            .find(|address| names.iter().all(|(known, name)| known != address || name == host))
            .unwrap_or(STAND_INS)
    }
}

/// Members by their addresses.
#[derive(Debug)]
pub struct Sandboxes {
    trust: Arc<Trust>,
    totals: Arc<Totals>,
    members: RwLock<HashMap<Ipv4Addr, Arc<Member>>>,
}

impl Sandboxes {
    pub(crate) fn new(trust: Trust) -> Self {
        Self { trust: Arc::new(trust), totals: Arc::default(), members: RwLock::default() }
    }

    /// Puts a policy in force for the sandbox at `address`. Connections that it
    /// forbids are cut; others stay.
    pub fn put(&self, address: Ipv4Addr, occupant: Occupant<'_>, policy: Ruleset) {
        let Occupant { sandbox, account, project, sent, received } = occupant;
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        let policy = Arc::new(policy);
        match members.get(&address).filter(|member| member.sandbox == sandbox) {
            Some(member) => drop(member.policy.send_replace(policy)),
            None => {
                let member = Member {
                    sandbox: sandbox.to_owned(),
                    account: account.into(),
                    project: project.to_owned(),
                    policy: watch::Sender::new(policy),
                    ledger: Arc::new(Ledger::new(sandbox.to_owned(), (sent, received), self.totals.clone())),
                    names: Mutex::default(),
                    questions: Mutex::new(Bucket { left: QUESTIONS_AT_ONCE, at: Instant::now() }),
                    authority: OnceLock::new(),
                    trust: self.trust.clone(),
                };
                members.insert(address, Arc::new(member));
            }
        }
    }

    /// The sandbox is gone, and its connections end.
    pub fn remove(&self, address: Ipv4Addr) {
        let removed = self.members.write().unwrap_or_else(PoisonError::into_inner).remove(&address);
        if let Some(member) = removed {
            // Whoever still holds it sees that nothing is allowed.
            member.policy.send_replace(Arc::new(Ruleset::nothing()));
        }
    }

    pub(crate) fn at(&self, address: Ipv4Addr) -> Option<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// What all of them did since this server started.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// What the sandbox at `address` did: bytes since its run began, connections and
    /// requests since it was put there.
    #[must_use]
    pub fn sums(&self, address: Ipv4Addr) -> Option<Sums> {
        self.at(address).map(|member| member.ledger.sums())
    }

    /// The last of what it was allowed and denied, oldest first.
    #[must_use]
    pub fn recent(&self, address: Ipv4Addr) -> Vec<Access> {
        self.at(address).map(|member| member.ledger.recent()).unwrap_or_default()
    }

    /// Certificate, in PEM, of the authority that the sandbox at `address` is to
    /// believe in.
    #[must_use]
    pub fn certificate(&self, address: Ipv4Addr) -> Option<String> {
        self.at(address)?.authority().map(|authority| authority.certificate().to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dormouse_provider::NetworkPolicy;

    use super::*;
    use crate::policy::Opening;

    pub(crate) fn sandboxes() -> Sandboxes {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Sandboxes::new(Trust { secret: AuthoritySecret::new([1; 32]), provider })
    }

    pub(crate) fn occupant(sandbox: &str) -> Occupant<'_> {
        Occupant { sandbox, account: "team", project: "project", sent: 0, received: 0 }
    }

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);

    #[test]
    fn who_is_not_known_reaches_nothing() {
        let sandboxes = sandboxes();
        assert!(sandboxes.at(HERE).is_none());
        let everything = || Ruleset::new(&NetworkPolicy::AllowAll).unwrap();
        sandboxes.put(HERE, occupant("sbx_1"), everything());
        let member = sandboxes.at(HERE).unwrap();
        let target = "1.1.1.1:22".parse().unwrap();
        assert_eq!(member.policy().opening(target), Opening::Address);
        sandboxes.put(HERE, occupant("sbx_1"), Ruleset::nothing());
        assert!(matches!(member.policy().opening(target), Opening::Refused(_)));
        // Another sandbox has nothing of the one before.
        sandboxes.put(HERE, occupant("sbx_2"), everything());
        assert!(!Arc::ptr_eq(&member, &sandboxes.at(HERE).unwrap()));
        let second = sandboxes.at(HERE).unwrap();
        sandboxes.remove(HERE);
        assert!(
            sandboxes.at(HERE).is_none() && matches!(second.policy().opening(target), Opening::Refused(_))
        );
    }

    #[test]
    fn names_are_remembered_by_their_addresses() {
        let sandboxes = sandboxes();
        sandboxes.put(HERE, occupant("sbx_1"), Ruleset::nothing());
        let member = sandboxes.at(HERE).unwrap();
        let name = |text: &str| text.parse::<HostName>().unwrap();
        let address = Ipv4Addr::new(1, 1, 1, 1);
        member.resolved(&name("a.test"), &[address]);
        member.resolved(&name("b.test"), &[address]);
        assert_eq!(member.names_of(address), [name("b.test"), name("a.test")]);
        let stand_in = member.stand_in(&name("c.test"));
        assert!(is_stand_in(stand_in));
        member.resolved(&name("c.test"), &[stand_in]);
        assert_eq!(member.stand_in(&name("c.test")), stand_in);
        // Taken: somebody else gets another.
        member.resolved(&name("d.test"), &[stand_in]);
        member.resolved(&name("c.test"), &[Ipv4Addr::new(9, 9, 9, 9)]);
        for number in 0..2 * REMEMBERED {
            member.resolved(&name(&format!("n{number}.test")), &[Ipv4Addr::from_bits(number as u32)]);
        }
        assert_eq!(member.names().len(), REMEMBERED);
        assert!(!is_stand_in(Ipv4Addr::new(198, 20, 0, 1)) && is_stand_in(Ipv4Addr::new(198, 19, 255, 255)));
    }
}
