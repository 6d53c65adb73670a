//! What each sandbox may reach. The engine says it before a sandbox's first
//! instruction; an address that nobody spoke for reaches nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_types::Cidr;
use tokio::sync::watch;

/// What one sandbox may reach, on top of what none may (private, link-local and
/// host addresses).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressPolicy {
    /// Everything public, and names.
    AllowAll,
    /// Nothing.
    DenyAll,
    /// These networks, without those. No names: a question to a resolver is a
    /// way out too.
    Networks {
        /// May be reached.
        allowed: Vec<Cidr>,
        /// May not, whatever `allowed` says.
        denied: Vec<Cidr>,
    },
}

impl EgressPolicy {
    pub(crate) fn allows(&self, address: Ipv4Addr) -> bool {
        let holds = |networks: &[Cidr]| networks.iter().any(|network| network.contains(IpAddr::V4(address)));
        match self {
            Self::AllowAll => true,
            Self::DenyAll => false,
            Self::Networks { allowed, denied } => holds(allowed) && !holds(denied),
        }
    }

    pub(crate) fn allows_names(&self) -> bool {
        matches!(self, Self::AllowAll)
    }
}

/// Policies by the sandboxes' own addresses.
#[derive(Debug, Default)]
pub struct Policies(Mutex<HashMap<IpAddr, watch::Sender<EgressPolicy>>>);

impl Policies {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, watch::Sender<EgressPolicy>>> {
        // A map only: a panic elsewhere cannot tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a policy in force. Connections that it forbids are cut.
    pub fn set(&self, sandbox: Ipv4Addr, policy: EgressPolicy) {
        let mut policies = self.lock();
        match policies.get(&IpAddr::V4(sandbox)) {
            Some(sender) => drop(sender.send_replace(policy)),
            None => drop(policies.insert(sandbox.into(), watch::Sender::new(policy))),
        }
    }

    /// The sandbox is gone; so are its connections.
    pub fn remove(&self, sandbox: Ipv4Addr) {
        self.lock().remove(&IpAddr::V4(sandbox));
    }

    pub(crate) fn of(&self, sandbox: IpAddr) -> Option<watch::Receiver<EgressPolicy>> {
        self.lock().get(&sandbox).map(watch::Sender::subscribe)
    }

    pub(crate) fn allow_names(&self, sandbox: IpAddr) -> bool {
        self.lock().get(&sandbox).is_some_and(|policy| policy.borrow().allows_names())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_network_wins() {
        let policy = EgressPolicy::Networks {
            allowed: vec!["1.0.0.0/8".parse().unwrap()],
            denied: vec!["1.2.0.0/16".parse().unwrap()],
        };
        assert!(policy.allows("1.1.1.1".parse().unwrap()));
        assert!(!policy.allows("1.2.3.4".parse().unwrap()));
        assert!(!policy.allows("8.8.8.8".parse().unwrap()));
    }

    #[test]
    fn who_is_not_known_reaches_nothing() {
        let (policies, address) = (Policies::default(), Ipv4Addr::new(10, 200, 0, 2));
        assert!(policies.of(address.into()).is_none() && !policies.allow_names(address.into()));
        policies.set(address, EgressPolicy::AllowAll);
        let watched = policies.of(address.into()).unwrap();
        policies.set(address, EgressPolicy::DenyAll);
        assert_eq!(*watched.borrow(), EgressPolicy::DenyAll);
        policies.remove(address);
        assert!(watched.has_changed().is_err());
    }
}
