//! Why something was refused, in the one set of words that logs, answers and the
//! API use.

use std::fmt;

/// Why a sandbox did not get what it asked the network for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The policy is deny-all.
    DenyAll,
    /// The policy does not list the name or the address.
    NotAllowed,
    /// The policy denies the network.
    DeniedNetwork,
    /// A private, link-local or documentation address that the operator does not
    /// list.
    Private,
    /// A cloud's metadata service.
    Metadata,
    /// An address of this host.
    Host,
    /// No unicast address.
    NoUnicast,
    /// The operator denies the network.
    Operator,
    /// No UDP but DNS, no ICMP, no other protocol.
    Protocol,
    /// The policy judges by names, and none was said.
    NoName,
    /// Names on one connection that differ: TLS, `Host`, `:authority`.
    OtherName,
    /// A request that can be read in two ways, or not at all.
    Ambiguous,
    /// A method that the proxy does not pass on.
    Method,
    /// A kind of DNS question that the policy does not allow.
    Question,
    /// The sandbox, its account or the server has as many connections as it may.
    Busy,
    /// The name has no address.
    NoAddress,
    /// The destination refused or did not answer.
    Unreachable,
    /// The destination's certificate is not valid for its name.
    Certificate,
    /// A secret that was sent could not be found in the answer.
    Compressed,
}

impl Reason {
    /// All of them, each at its own place.
    pub(crate) const ALL: [Self; 19] = [
        Self::DenyAll,
        Self::NotAllowed,
        Self::DeniedNetwork,
        Self::Private,
        Self::Metadata,
        Self::Host,
        Self::NoUnicast,
        Self::Operator,
        Self::Protocol,
        Self::NoName,
        Self::OtherName,
        Self::Ambiguous,
        Self::Method,
        Self::Question,
        Self::Busy,
        Self::NoAddress,
        Self::Unreachable,
        Self::Certificate,
        Self::Compressed,
    ];

    /// The rule in a sentence, for whoever is in the sandbox.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::DenyAll => "the network policy of this sandbox denies everything",
            Self::NotAllowed => "the network policy of this sandbox does not allow it",
            Self::DeniedNetwork => "the network policy of this sandbox denies this network",
            Self::Private => "it is a private address, which the operator of this server does not allow",
            Self::Metadata => "metadata services cannot be reached from a sandbox",
            Self::Host => "the host cannot be reached from a sandbox",
            Self::NoUnicast => "it is no address of a host",
            Self::Operator => "the operator of this server denies this network",
            Self::Protocol => "only TCP and DNS leave a sandbox",
            Self::NoName => "the network policy allows names, and the connection does not say one",
            Self::OtherName => "the request names another host than its connection",
            Self::Ambiguous => "the request can be read in more than one way",
            Self::Method => "the proxy does not pass this method on",
            Self::Question => "the network policy allows questions for addresses only",
            Self::Busy => "the sandbox, its account or this server has too many connections",
            Self::NoAddress => "the name has no address",
            Self::Unreachable => "the destination cannot be reached",
            Self::Certificate => "the certificate of the destination is not valid",
            Self::Compressed => "the answer is compressed, so a secret in it could not be taken out",
        }
    }

    /// The word for logs and the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::DenyAll => "deny-all",
            Self::NotAllowed => "not-allowed",
            Self::DeniedNetwork => "denied-network",
            Self::Private => "private",
            Self::Metadata => "metadata",
            Self::Host => "host",
            Self::NoUnicast => "no-unicast",
            Self::Operator => "operator",
            Self::Protocol => "protocol",
            Self::NoName => "no-name",
            Self::OtherName => "other-name",
            Self::Ambiguous => "ambiguous",
            Self::Method => "method",
            Self::Question => "question",
            Self::Busy => "busy",
            Self::NoAddress => "no-address",
            Self::Unreachable => "unreachable",
            Self::Certificate => "certificate",
            Self::Compressed => "compressed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn each_is_at_its_own_place() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason}");
        }
    }
}
