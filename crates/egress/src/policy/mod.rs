//! A network policy as it is enforced: patterns and expressions compiled, and the
//! decisions that follow from it. Pure; whoever dials asks [`crate::ground`] too.
//!
//! Precedence (provider contract, section 6): denied networks, then allowed
//! networks, then domains. The domain that says most about a name counts alone.

mod rules;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use dormouse_provider::{DomainPattern, HostName, NetworkPolicy};
use dormouse_types::Cidr;

use crate::reason::Reason;

use rules::Rules;
pub(crate) use rules::{Asked, Injection, Outcome};

/// Ports on which a name is looked for in what the sandbox says first.
pub(crate) const HTTP: u16 = 80;
pub(crate) const HTTPS: u16 = 443;

/// What a new connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It goes to the address, byte for byte.
    Address,
    /// What it says first decides: [`Ruleset::named`].
    Name,
    /// Nothing.
    Refused(Reason),
}

/// What a connection may do that said which host it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// Byte for byte to the host.
    Splice,
    /// Request by request: there are rules.
    Terminate,
    /// Byte for byte to the address that was dialled, which the policy allows.
    Address,
    /// Nothing.
    Refused(Reason),
}

/// A domain of a policy.
#[derive(Debug, PartialEq, Eq)]
struct Domain {
    pattern: DomainPattern,
    rules: Rules,
}

/// A compiled policy.
#[derive(Debug, PartialEq, Eq)]
pub struct Ruleset {
    default: Default,
    /// What says most comes first.
    domains: Vec<Domain>,
    allowed: Vec<Cidr>,
    denied: Vec<Cidr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Default {
    Allow,
    /// Nothing at all, for the sake of a better sentence.
    DenyAll,
    Deny,
}

impl Ruleset {
    /// Compiles a policy.
    ///
    /// # Errors
    /// What [`NetworkPolicy::check`] refuses.
    pub fn new(policy: &NetworkPolicy) -> Result<Self, String> {
        policy.check()?;
        let plain = |default| Self { default, domains: Vec::new(), allowed: Vec::new(), denied: Vec::new() };
        let custom = match policy {
            NetworkPolicy::AllowAll => return Ok(plain(Default::Allow)),
            NetworkPolicy::DenyAll => return Ok(plain(Default::DenyAll)),
            NetworkPolicy::Custom(custom) => custom,
        };
        let mut domains = custom
            .domains
            .iter()
            .map(|domain| Ok(Domain { pattern: domain.domain.parse()?, rules: Rules::new(&domain.rules)? }))
            .collect::<Result<Vec<_>, String>>()?;
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.pattern.precision()));
        let everything = domains.iter().any(|domain| domain.pattern.is_everything());
        Ok(Self {
            default: if everything { Default::Allow } else { Default::Deny },
            domains,
            allowed: custom.allowed_networks.clone(),
            denied: custom.denied_networks.clone(),
        })
    }

    /// The policy with everything public on top of it: for what the server itself
    /// runs in a sandbox before anybody else does.
    #[must_use]
    pub fn widened(mut self) -> Self {
        self.default = Default::Allow;
        self.denied.clear();
        self
    }

    /// Nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { default: Default::DenyAll, domains: Vec::new(), allowed: Vec::new(), denied: Vec::new() }
    }

    /// Nothing at all is allowed.
    pub(crate) fn is_shut(&self) -> bool {
        *self == Self::nothing()
    }

    /// Names are judged here: there is at least one entry that is not `*` alone
    /// without rules.
    fn looks_at_names(&self) -> bool {
        self.domains.iter().any(|domain| !domain.pattern.is_everything() || !domain.rules.is_empty())
    }

    fn domain(&self, host: &HostName) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.pattern.matches(host))
    }

    fn holds(networks: &[Cidr], address: Ipv4Addr) -> bool {
        networks.iter().any(|network| network.contains(IpAddr::V4(address)))
    }

    fn refusal(&self) -> Reason {
        match self.default {
            Default::DenyAll => Reason::DenyAll,
            Default::Allow | Default::Deny => Reason::NotAllowed,
        }
    }

    /// Whether the address alone is enough.
    fn allows_address(&self, address: Ipv4Addr) -> bool {
        self.default == Default::Allow || Self::holds(&self.allowed, address)
    }

    /// Whether the policy denies the network of an address that is to be dialled,
    /// for whatever name.
    pub(crate) fn denies(&self, address: Ipv4Addr) -> bool {
        Self::holds(&self.denied, address)
    }

    /// What a new connection to `target` may do.
    pub(crate) fn opening(&self, target: SocketAddrV4) -> Opening {
        if self.denies(*target.ip()) {
            return Opening::Refused(Reason::DeniedNetwork);
        }
        let by_name = match target.port() {
            HTTPS => self.looks_at_names(),
            // What is only passed on needs no look where the address is enough.
            HTTP if self.allows_address(*target.ip()) => {
                self.domains.iter().any(|domain| domain.rules.concern_plain_http())
            }
            HTTP => self.looks_at_names(),
            _ => false,
        };
        if by_name {
            Opening::Name
        } else if self.allows_address(*target.ip()) {
            Opening::Address
        } else {
            Opening::Refused(self.refusal())
        }
    }

    /// What a connection to `dialled` may do that is for `host`, or says no name.
    pub(crate) fn named(&self, host: Option<&HostName>, dialled: Ipv4Addr) -> Named {
        if self.denies(dialled) {
            return Named::Refused(Reason::DeniedNetwork);
        }
        match host.map(|host| self.domain(host)) {
            Some(Some(domain)) if !domain.rules.is_empty() => Named::Terminate,
            Some(Some(_)) => Named::Splice,
            _ if self.allows_address(dialled) => Named::Address,
            Some(None) => Named::Refused(self.refusal()),
            None if self.default == Default::DenyAll => Named::Refused(Reason::DenyAll),
            None => Named::Refused(Reason::NoName),
        }
    }

    /// Whether a connection to `dialled` may go on whose requests nobody looks at: not
    /// where a rule would answer them, or send them elsewhere.
    pub(crate) fn passes_unseen(&self, host: Option<&HostName>, dialled: Ipv4Addr) -> bool {
        match self.named(host, dialled) {
            Named::Refused(_) => false,
            Named::Splice | Named::Address => true,
            Named::Terminate => {
                host.and_then(|host| self.domain(host)).is_some_and(|domain| !domain.rules.answer_alone())
            }
        }
    }

    /// Whether requests to `host` are allowed at all, and its rules, if it has some.
    pub(crate) fn host(&self, host: &HostName) -> Option<Option<&Rules>> {
        match self.domain(host) {
            Some(domain) => Some((!domain.rules.is_empty()).then_some(&domain.rules)),
            None => (self.default == Default::Allow).then_some(None),
        }
    }

    /// Whether a sandbox may ask what `host` resolves to.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn resolves(&self, host: &HostName) -> Result<(), Reason> {
        if self.default == Default::Allow || self.domain(host).is_some() {
            Ok(())
        } else {
            Err(self.refusal())
        }
    }

    /// Whether other questions than those for addresses may be asked: they are a
    /// way out with more room.
    pub(crate) fn any_question(&self) -> bool {
        self.default == Default::Allow
    }

    /// Whether a request to `host` can be answered without it.
    pub(crate) fn answers_for(&self, host: &HostName) -> bool {
        self.domain(host).is_some_and(|domain| domain.rules.answer_alone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dormouse_provider::{Action, CustomPolicy, DomainPolicy, Rule};

    use super::*;

    fn rules() -> Vec<Rule> {
        let headers = BTreeMap::from([("authorization".to_owned(), Some("Bearer s3cret".to_owned()))]);
        vec![Rule { matches: None, action: Action::SetHeaders(headers) }]
    }

    fn custom(domains: &[(&str, bool)], allowed: &[&str], denied: &[&str]) -> Ruleset {
        let domains = domains
            .iter()
            .map(|(domain, ruled)| DomainPolicy {
                domain: (*domain).to_owned(),
                rules: if *ruled { rules() } else { Vec::new() },
            })
            .collect();
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let (allowed_networks, denied_networks) = (networks(allowed), networks(denied));
        Ruleset::new(&NetworkPolicy::Custom(CustomPolicy { domains, allowed_networks, denied_networks }))
            .unwrap()
    }

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn a_denied_network_wins_over_an_allowed_one_and_that_over_domains() {
        let policy = custom(&[("a.test", false)], &["1.0.0.0/8"], &["1.2.0.0/16"]);
        assert_eq!(policy.opening(at("1.1.1.1:22")), Opening::Address);
        assert_eq!(policy.opening(at("1.2.1.1:22")), Opening::Refused(Reason::DeniedNetwork));
        assert_eq!(policy.opening(at("1.2.1.1:443")), Opening::Refused(Reason::DeniedNetwork));
        assert_eq!(policy.opening(at("8.8.8.8:22")), Opening::Refused(Reason::NotAllowed));
        assert_eq!(policy.opening(at("8.8.8.8:443")), Opening::Name);
        let dialled = Ipv4Addr::new(1, 1, 1, 1);
        assert!(matches!(policy.named(Some(&name("b.test")), dialled), Named::Address));
        assert!(matches!(policy.named(None, dialled), Named::Address));
        let elsewhere = Ipv4Addr::new(8, 8, 8, 8);
        assert!(matches!(policy.named(Some(&name("A.test")), elsewhere), Named::Splice));
        assert!(matches!(policy.named(Some(&name("b.test")), elsewhere), Named::Refused(Reason::NotAllowed)));
        assert!(matches!(policy.named(None, elsewhere), Named::Refused(Reason::NoName)));
        let denied = Ipv4Addr::new(1, 2, 3, 4);
        assert!(matches!(policy.named(Some(&name("a.test")), denied), Named::Refused(Reason::DeniedNetwork)));
    }

    #[test]
    fn everything_and_a_rule_for_one_host() {
        let policy = custom(&[("github.com", true), ("*", false)], &[], &[]);
        assert_eq!(policy.opening(at("8.8.8.8:22")), Opening::Address);
        assert_eq!(policy.opening(at("8.8.8.8:80")), Opening::Address);
        assert_eq!(policy.opening(at("8.8.8.8:443")), Opening::Name);
        let dialled = Ipv4Addr::new(8, 8, 8, 8);
        assert!(matches!(policy.named(Some(&name("github.com")), dialled), Named::Terminate));
        assert!(matches!(policy.named(Some(&name("api.github.com")), dialled), Named::Splice));
        assert!(matches!(policy.named(None, dialled), Named::Address));
        assert!(policy.resolves(&name("x.test")).is_ok() && policy.any_question());
    }

    #[test]
    fn the_domain_that_says_most_counts_alone() {
        let policy = custom(&[("*", true), ("*.a.test", false), ("b.a.test", true)], &[], &[]);
        let terminates = |host: &str| policy.host(&name(host)).unwrap().is_some();
        assert!(terminates("x.test") && terminates("b.a.test"));
        assert!(!terminates("c.a.test") && !terminates("x.b.a.test"));
    }

    #[test]
    fn nothing_is_nothing() {
        for policy in [Ruleset::new(&NetworkPolicy::DenyAll).unwrap(), Ruleset::nothing()] {
            for target in ["1.1.1.1:443", "1.1.1.1:80", "1.1.1.1:22"] {
                assert_eq!(policy.opening(at(target)), Opening::Refused(Reason::DenyAll));
            }
            assert_eq!(policy.resolves(&name("a.test")), Err(Reason::DenyAll));
            assert!(policy.host(&name("a.test")).is_none() && !policy.any_question());
        }
        let empty = custom(&[], &[], &[]);
        assert_eq!(empty.opening(at("1.1.1.1:443")), Opening::Refused(Reason::NotAllowed));
    }

    #[test]
    fn what_the_server_runs_reaches_everything_with_the_rules_in_force() {
        let policy = custom(&[("github.com", true)], &[], &["1.1.1.0/24"]).widened();
        assert_eq!(policy.opening(at("1.1.1.1:22")), Opening::Address);
        let dialled = Ipv4Addr::new(1, 1, 1, 1);
        assert!(matches!(policy.named(Some(&name("github.com")), dialled), Named::Terminate));
        assert!(matches!(policy.named(Some(&name("x.test")), dialled), Named::Address));
    }

    /// A policy as it is stored compiles or is refused in a sentence, and a host is allowed
    /// only where an entry says so by the plainest reading of it.
    #[test]
    fn nothing_breaks_the_compiler() {
        let hosts = ["github.com", "evil-github.com", "a.github.com", "github.com.evil.test", "b.api.test"];
        let literally = |pattern: &str, host: &str| {
            let labels = regex::escape(pattern.trim_end_matches('.')).replace(r"\*", "[^.]*");
            let labels =
                labels.strip_prefix(r"[^.]*\.").map_or(labels.clone(), |rest| format!(r".+\.{rest}"));
            pattern == "*" || regex::Regex::new(&format!("^{labels}$")).unwrap().is_match(host)
        };
        dormouse_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/policy"), |bytes| {
            let Ok(policy) = serde_json::from_slice::<NetworkPolicy>(bytes) else { return };
            let compiled = Ruleset::new(&policy);
            assert_eq!(compiled.is_ok(), policy.check().is_ok());
            let (Ok(rules), NetworkPolicy::Custom(custom)) = (compiled, &policy) else { return };
            for host in hosts {
                let says_so =
                    custom.domains.iter().any(|domain| literally(&domain.domain.to_ascii_lowercase(), host));
                assert_eq!(rules.resolves(&name(host)).is_ok(), says_so, "{host} under {custom:?}");
            }
        });
    }
}
