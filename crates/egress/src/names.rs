//! What names resolve to: one cache for all sandboxes and the proxy, over the
//! operator's resolver, by UDP and, where an answer is cut short, TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use dormouse_provider::HostName;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

/// How long one question to the operator's resolver may take; it is asked twice.
const PATIENCE: Duration = Duration::from_millis(2500);

/// Answers that are kept.
const CACHED: u64 = 8192;

/// How long an answer is kept at least: sandboxes that ask all the time are one question
/// a second to the operator's resolver.
const MIN_TTL: Duration = Duration::from_secs(1);

/// How long an answer is kept at most, and one that there is none.
const MAX_TTL: Duration = Duration::from_secs(3600);
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(60);

/// Why a name has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// It has none.
    None {
        /// There is no such name at all.
        missing: bool,
    },
    /// The resolver does not answer, or there is none.
    Failed,
}

/// Addresses of a name.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// How long they may be kept, in seconds.
    pub(crate) ttl: u32,
}

/// Resolves names.
#[derive(Debug)]
pub(crate) struct Names {
    resolver: Option<TokioResolver>,
}

impl Names {
    /// Over the resolver at `upstream`, or the host's own.
    pub(crate) fn new(upstream: Option<SocketAddr>) -> Result<Self, NetError> {
        let config = match upstream {
            Some(server) => {
                let mut server_config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut server_config.connections {
                    connection.port = server.port();
                }
                Some(ResolverConfig::from_parts(None, Vec::new(), vec![server_config]))
            }
            None => {
                let host = hickory_resolver::system_conf::read_system_conf();
                // A host without a resolver is a host without names.
                let host = host.inspect_err(|error| tracing::warn!(%error, "read /etc/resolv.conf")).ok();
                host.map(|(config, _)| {
                    ResolverConfig::from_parts(None, Vec::new(), config.name_servers().to_vec())
                })
            }
        };
        let Some(config) = config.filter(|config| !config.name_servers().is_empty()) else {
            return Ok(Self { resolver: None });
        };
        let mut options = ResolverOpts::default();
        options.timeout = PATIENCE;
        options.attempts = 1;
        options.cache_size = CACHED;
        options.positive_min_ttl = Some(MIN_TTL);
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        // Names are public ones: neither the host's file nor its search list counts.
        options.use_hosts_file = ResolveHosts::Never;
        options.ndots = 0;
        options.edns0 = true;
        options.preserve_intermediates = true;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Ok(Self { resolver: Some(builder.with_options(options).build()?) })
    }

    /// Records of a name, aliases on the way included.
    pub(crate) async fn records(&self, host: &HostName, kind: RecordType) -> Result<Vec<Record>, Unresolved> {
        let resolver = self.resolver.as_ref().ok_or(Unresolved::Failed)?;
        // Absolute: no search list.
        let name = Name::from_ascii(format!("{host}.")).map_err(|_| Unresolved::Failed)?;
        match resolver.lookup(name, kind).await {
            Ok(lookup) => {
                let left = lookup.valid_until().saturating_duration_since(Instant::now()).as_secs();
                let ttl = u32::try_from(left).unwrap_or(0);
                let mut records = lookup.answers().to_vec();
                for record in &mut records {
                    record.ttl = ttl.min(record.ttl);
                }
                Ok(records)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                Err(Unresolved::None { missing: none.response_code == ResponseCode::NXDomain })
            }
            Err(error) => {
                tracing::debug!(%host, %error, "resolve");
                Err(Unresolved::Failed)
            }
        }
    }

    /// IPv4 addresses of a name.
    pub(crate) async fn addresses(&self, host: &HostName) -> Result<Found, Unresolved> {
        let records = self.records(host, RecordType::A).await?;
        let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
        let addresses: Vec<Ipv4Addr> = records
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(address) => Some(address.0),
                _ => None,
            })
            .collect();
        if addresses.is_empty() {
            Err(Unresolved::None { missing: false })
        } else {
            Ok(Found { addresses, ttl })
        }
    }
}
