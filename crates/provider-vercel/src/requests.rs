//! From domain types to the wire.

use dormouse_provider::{
    Action, CommandSpec, CustomPolicy, Direction, Expiration, KeepLast, Mount, NetworkPolicy, ProviderError,
    ResourcesRequest, Result, Retention, Rule, SandboxSort, Source, StartFrom, StdinSource, UpdateSandbox,
};
use dormouse_wire as wire;
use std::collections::BTreeMap;

pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn order(order: Direction) -> &'static str {
    match order {
        Direction::Ascending => "asc",
        Direction::Descending => "desc",
    }
}

pub(crate) fn sort(sort: SandboxSort) -> &'static str {
    match sort {
        SandboxSort::CreatedAt => "createdAt",
        SandboxSort::Name => "name",
        SandboxSort::StatusUpdatedAt => "statusUpdatedAt",
    }
}

pub(crate) fn expiration(expiration: Expiration) -> u64 {
    match expiration {
        Expiration::Never => 0,
        Expiration::After(ms) => ms,
    }
}

pub(crate) fn resources(resources: ResourcesRequest) -> wire::Resources {
    wire::Resources { vcpus: resources.vcpus, memory: resources.memory_mib }
}

/// The wire knows two: the last ones, or all of them.
pub(crate) fn retention(retention: Retention) -> Option<wire::KeepLastSnapshots> {
    match retention {
        // Snapshots that nobody starts from cost the other side's room only;
        // one is kept, which is the current one.
        Retention::Current => {
            Some(wire::KeepLastSnapshots { count: 1, expiration: Some(0), delete_evicted: Some(true) })
        }
        Retention::Expiry => None,
        Retention::KeepLast(KeepLast { count, expiration: of_kept, delete_evicted }) => {
            Some(wire::KeepLastSnapshots {
                count,
                expiration: of_kept.map(expiration),
                delete_evicted: Some(delete_evicted),
            })
        }
    }
}

pub(crate) fn source(source: &Source) -> wire::Source {
    match source {
        Source::Git(git) => {
            let (username, password) = git.credentials.clone().unzip();
            wire::Source::Git {
                url: git.url.clone(),
                depth: git.depth,
                revision: git.revision.clone(),
                username,
                password,
            }
        }
        Source::Tarball { url } => wire::Source::Tarball { url: url.clone() },
        // A project of Vercel's is one namespace.
        Source::Snapshot(id) | Source::SnapshotOf(_, id) => {
            wire::Source::Snapshot { snapshot_id: id.to_string() }
        }
    }
}

pub(crate) fn mounts(mounts: BTreeMap<String, Mount>) -> wire::Mounts {
    let mount = |(path, Mount { drive, mode }): (String, Mount)| {
        (path, wire::Mount { drive, mode: Some(mode.as_str().to_owned()) })
    };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn changes(changes: UpdateSandbox) -> Result<wire::UpdateRequest> {
    let current_snapshot_id = match changes.start_from {
        None => None,
        Some(StartFrom::Snapshot(id)) => Some(Some(id.to_string())),
        Some(StartFrom::Image) => {
            return Err(ProviderError::Invalid(
                "this sandbox provider cannot start a sandbox from its image again".to_owned(),
            ));
        }
    };
    Ok(wire::UpdateRequest {
        persistent: changes.persistent,
        resources: changes.resources.map(resources),
        timeout: changes.timeout.map(millis),
        network_policy: changes.network.as_ref().map(policy).transpose()?,
        tags: changes.tags,
        ports: changes.ports,
        snapshot_expiration: changes.snapshot_expiration.map(expiration),
        keep_last_snapshots: changes.retention.map(retention),
        current_snapshot_id,
        mounts: changes.mounts.map(mounts),
        ..wire::UpdateRequest::default()
    })
}

pub(crate) fn command(spec: &CommandSpec) -> Result<wire::CommandRequest> {
    let (name, args) =
        spec.argv.split_first().ok_or_else(|| ProviderError::Invalid("the command is empty".to_owned()))?;
    Ok(wire::CommandRequest {
        command: name.clone(),
        args: args.to_vec(),
        cwd: spec.cwd.clone(),
        env: spec.env.clone(),
        sudo: spec.sudo,
        timeout: spec.timeout.map(millis),
        attach_stdin: spec.stdin == StdinSource::Stream,
        ..wire::CommandRequest::default()
    })
}

/// The current form of a policy.
///
/// # Errors
/// [`ProviderError::Invalid`] for a policy that came from a reply, where the
/// values of headers are hidden: writing it back would destroy them.
pub(crate) fn policy(policy: &NetworkPolicy) -> Result<wire::NetworkPolicyRequest> {
    let mode = |mode: &str| wire::NetworkPolicyRequest {
        mode: Some(mode.to_owned()),
        ..wire::NetworkPolicyRequest::default()
    };
    let CustomPolicy { domains, allowed_networks, denied_networks } = match policy {
        NetworkPolicy::AllowAll => return Ok(mode("allow-all")),
        NetworkPolicy::DenyAll => return Ok(mode("deny-all")),
        NetworkPolicy::Custom(custom) => custom,
    };
    let mut allow = std::collections::BTreeMap::new();
    for domain in domains {
        let rules: Vec<_> = domain.rules.iter().map(rule).collect::<Result<_>>()?;
        allow.entry(domain.domain.clone()).or_insert_with(Vec::new).extend(rules);
    }
    let some = |list: &[dormouse_types::Cidr]| {
        (!list.is_empty()).then(|| list.iter().map(ToString::to_string).collect())
    };
    let subnets = wire::Subnets { allow: some(allowed_networks), deny: some(denied_networks) };
    let subnets = (subnets.allow.is_some() || subnets.deny.is_some()).then_some(subnets);
    Ok(wire::NetworkPolicyRequest {
        allow: Some(wire::AllowedDomains::Rules(allow)),
        subnets,
        ..wire::NetworkPolicyRequest::default()
    })
}

fn rule(rule: &Rule) -> Result<wire::PolicyRule> {
    let json = |value: serde_json::Result<serde_json::Value>| {
        value.map_err(|error| ProviderError::internal("write a rule of a network policy", error))
    };
    let matches = rule.matches.as_ref().map(|matches| json(serde_json::to_value(matches))).transpose()?;
    let mut wire = wire::PolicyRule { matches, ..wire::PolicyRule::default() };
    match &rule.action {
        Action::SetHeaders(headers) => {
            let mut set = std::collections::BTreeMap::new();
            for (name, value) in headers {
                let value = value.clone().ok_or_else(|| {
                    ProviderError::Invalid(format!(
                        "networkPolicy: the value of header {name} is hidden; give it again"
                    ))
                })?;
                set.insert(name.clone(), value);
            }
            wire.transform = Some(vec![wire::Transform { headers: set }]);
        }
        Action::Swap(_) => {
            return Err(ProviderError::Invalid(
                "networkPolicy: placeholders of secrets are swapped on this server's own hosts only"
                    .to_owned(),
            ));
        }
        Action::Forward(url) => wire.forward_url = Some(url.clone()),
        Action::Respond(response) => wire.response = Some(json(serde_json::to_value(response))?),
    }
    Ok(wire)
}
