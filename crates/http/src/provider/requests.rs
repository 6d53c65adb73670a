//! From the wire to domain types, with errors that name the field.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_provider::{
    Action, CloneDirectory, CustomPolicy, DomainPolicy, Environment, Expiration, GitSource, KeepLast, Mount,
    MountMode, NetworkPolicy, ResourcesRequest, Retention, Rule, Source, StartFrom, UpdateSandbox,
};
use dormouse_types::{Cidr, SandboxName};
use dormouse_wire as wire;

use super::error::{WireError, WireResult};
use super::present::REGION;

/// Image of the protocol's clients that name none; here the host's default.
const UNIVERSAL: &str = "vercel/sandbox/universal";

fn bad(message: impl Into<String>) -> WireError {
    WireError::bad_request(message)
}

pub(crate) fn name(name: Option<String>) -> WireResult<SandboxName> {
    match name {
        None => Ok(SandboxName::generate()),
        // A sandbox of such a name could be made, and never be asked for again.
        Some(name) if PATHS.contains(&name.as_str()) => Err(bad(format!(
            "name: {name} stands for something else in the paths of this API; choose another"
        ))),
        Some(name) => name.parse().map_err(|error| bad(format!("name: {error}"))),
    }
}

/// What follows `/sandboxes/` and is no sandbox's name.
const PATHS: [&str; 3] = ["sessions", "snapshots", "drives"];

/// Refuses what this server does not have, by name: nothing is accepted and
/// then left out.
pub(crate) fn refuse_unsupported(
    region: Option<&str>,
    failover: Option<&[String]>,
    network_id: Option<&str>,
) -> WireResult<()> {
    if let Some(region) = region.filter(|region| *region != REGION) {
        return Err(bad(format!("region: this server has {REGION} only, not {region:?}")));
    }
    if failover.is_some_and(|regions| !regions.is_empty()) {
        return Err(bad(format!("failoverRegions: this server has no region but {REGION}")));
    }
    if network_id.is_some() {
        return Err(bad("networkId: private networks are not supported by this server"));
    }
    Ok(())
}

/// Drives of a sandbox (provider contract, section 3).
pub(crate) fn mounts(mounts: wire::Mounts) -> WireResult<BTreeMap<String, Mount>> {
    let mount = |(path, wire::Mount { drive, mode }): (String, wire::Mount)| match MountMode::from_word(
        mode.as_deref(),
    ) {
        Some(mode) => Ok((path, Mount { drive, mode })),
        None => Err(bad(format!(
            "mounts: mode of {path:?} is {:?}; it must be read-write or snapshot",
            mode.unwrap_or_default()
        ))),
    };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn environment(runtime: Option<String>, image: Option<String>) -> WireResult<Environment> {
    match (runtime, image) {
        (Some(_), Some(_)) => Err(bad("runtime and image cannot be used together")),
        (Some(runtime), None) => Ok(Environment::Runtime(runtime)),
        (None, Some(image)) => {
            let repository = image.strip_prefix("vcr.vercel.com/").unwrap_or(&image);
            let repository = repository.split([':', '@']).next().unwrap_or_default();
            Ok(if repository == UNIVERSAL { Environment::Default } else { Environment::Image(image) })
        }
        (None, None) => Ok(Environment::Default),
    }
}

pub(crate) fn source(source: wire::Source, directory: CloneDirectory) -> WireResult<Source> {
    Ok(match source {
        wire::Source::Git { url, depth, revision, username, password } => {
            let credentials = match (username, password) {
                (None, None) => None,
                (user, Some(password)) => Some((user.unwrap_or_default(), password)),
                (Some(_), None) => return Err(bad("source.password is missing beside source.username")),
            };
            Source::Git(GitSource { url, depth, revision, credentials, directory })
        }
        wire::Source::Tarball { url } => Source::Tarball { url },
        wire::Source::Snapshot { snapshot_id } => {
            // What is no id names no snapshot: clients act on that code.
            let gone = || dormouse_provider::ProviderError::SnapshotGone(snapshot_id.clone());
            Source::Snapshot(snapshot_id.parse().map_err(|_| gone())?)
        }
    })
}

pub(crate) fn resources(resources: wire::Resources) -> ResourcesRequest {
    ResourcesRequest { vcpus: resources.vcpus, memory_mib: resources.memory }
}

/// Time to add to a lifetime: a second or more (provider contract, section 9).
pub(crate) fn extension(ms: u64) -> WireResult<Duration> {
    if ms < 1000 {
        let message = "duration must be at least 1000 milliseconds".to_owned();
        return Err(dormouse_provider::ProviderError::TimeoutInvalid(message).into());
    }
    Ok(Duration::from_millis(ms))
}

/// The longest expiration that is not for ever, in milliseconds: a hundred years.
const LONGEST_EXPIRATION: u64 = 100 * 365 * 24 * 3600 * 1000;

/// How long a snapshot stays; 0 is for ever (provider contract, section 9).
pub(crate) fn expiration(ms: u64) -> WireResult<Expiration> {
    match ms {
        0 => Ok(Expiration::Never),
        1..=LONGEST_EXPIRATION => Ok(Expiration::After(ms)),
        _ => Err(bad(format!(
            "an expiration of {ms} milliseconds is too long; it may be at most {LONGEST_EXPIRATION}, or 0 for none"
        ))),
    }
}

pub(crate) fn retention(keep: Option<wire::KeepLastSnapshots>) -> WireResult<Retention> {
    let Some(keep) = keep else { return Ok(Retention::Expiry) };
    Ok(Retention::KeepLast(KeepLast {
        count: keep.count,
        expiration: keep.expiration.map(expiration).transpose()?,
        delete_evicted: keep.delete_evicted.unwrap_or(true),
    }))
}

/// Fields beside those that can change, which clients of the protocol send with them.
const HARMLESS: [&str; 3] = ["projectId", "teamId", "slug"];

pub(crate) fn changes(body: wire::UpdateRequest) -> WireResult<UpdateSandbox> {
    let mut unknown = body.unknown.keys().filter(|name| !HARMLESS.contains(&name.as_str()));
    if let Some(name) = unknown.next() {
        let why = match name.as_str() {
            "name" => "a sandbox keeps its name",
            "env" => "it is set when a sandbox is made; make or fork another",
            "vcpus" | "memory" => "give it in `resources`",
            "image" | "source" => "it is decided when a sandbox is made",
            _ => "there is no such field",
        };
        return Err(bad(format!("{name}: it cannot change here: {why}")));
    }
    refuse_unsupported(body.region.as_deref(), body.failover_regions.as_deref(), body.network_id.as_deref())?;
    let start_from = |id: Option<String>| {
        let Some(id) = id else { return Ok(StartFrom::Image) };
        let unknown = |_| WireError::not_found(format!("currentSnapshotId: snapshot {id} not found"));
        id.parse().map(StartFrom::Snapshot).map_err(unknown)
    };
    Ok(UpdateSandbox {
        persistent: body.persistent,
        resources: body.resources.map(resources),
        timeout: body.timeout.map(Duration::from_millis),
        tags: body.tags,
        ports: body.ports,
        network: body.network_policy.map(policy).transpose()?,
        grant: None,
        snapshot_expiration: body.snapshot_expiration.map(expiration).transpose()?,
        retention: body.keep_last_snapshots.map(retention).transpose()?,
        mounts: body.mounts.map(mounts).transpose()?,
        start_from: body.current_snapshot_id.map(start_from).transpose()?,
    })
}

/// A policy in any of its forms (provider contract, section 6).
pub(crate) fn policy(policy: wire::NetworkPolicyRequest) -> WireResult<NetworkPolicy> {
    match policy.mode.as_deref() {
        Some("allow-all") => return Ok(NetworkPolicy::AllowAll),
        Some("deny-all") => return Ok(NetworkPolicy::DenyAll),
        Some("custom") | None => {}
        Some(other) => {
            return Err(bad(format!(
                "networkPolicy.mode is {other:?}; it must be allow-all, deny-all or custom"
            )));
        }
    }
    let mut domains: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    match policy.allow {
        Some(wire::AllowedDomains::List(list)) => {
            domains.extend(list.into_iter().map(|domain| (domain, Vec::new())));
        }
        Some(wire::AllowedDomains::Rules(rules)) => {
            for (domain, rules) in rules {
                let rules = rules.into_iter().map(rule).collect::<WireResult<Vec<_>>>()?;
                domains.insert(domain, rules.into_iter().flatten().collect());
            }
        }
        None => {}
    }
    for domain in policy.allowed_domains.unwrap_or_default() {
        // Its rules may stand in the newer form beside it.
        domains.entry(domain).or_default();
    }
    for rule in policy.injection_rules.unwrap_or_default() {
        let action = set_headers(rule.headers.unwrap_or_default());
        let matches = rule.matches.map(request_match).transpose()?;
        domains.entry(rule.domain).or_default().push(Rule { matches, action });
    }
    for rule in policy.forward_rules.unwrap_or_default() {
        let action = Action::Forward(forward_url(rule.forward_url)?);
        let matches = rule.matches.map(request_match).transpose()?;
        domains.entry(rule.domain).or_default().push(Rule { matches, action });
    }
    if let Some(domain) = domains.keys().find(|domain| !is_pattern(domain)) {
        return Err(bad(format!("networkPolicy: {domain:?} is no domain")));
    }
    let subnets = policy.subnets.unwrap_or_default();
    let networks = |lists: [Option<Vec<String>>; 2]| {
        let texts = lists.into_iter().flatten().flatten();
        texts
            .map(|text| text.parse::<Cidr>().map_err(|error| bad(format!("networkPolicy.subnets: {error}"))))
            .collect::<WireResult<Vec<_>>>()
    };
    let allowed_networks = networks([subnets.allow, policy.allowed_cidrs])?;
    let denied_networks = networks([subnets.deny, policy.denied_cidrs])?;
    // "*" alone is everything, which is what the mode says too.
    if denied_networks.is_empty() && domains.len() == 1 && domains.get("*").is_some_and(Vec::is_empty) {
        return Ok(NetworkPolicy::AllowAll);
    }
    let domains = domains.into_iter().map(|(domain, rules)| DomainPolicy { domain, rules }).collect();
    Ok(NetworkPolicy::Custom(CustomPolicy { domains, allowed_networks, denied_networks }))
}

fn is_pattern(domain: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
    !domain.is_empty() && domain.len() <= 253 && domain.bytes().all(fits)
}

/// A rule of the wire; each of its transforms is one of ours.
fn rule(rule: wire::PolicyRule) -> WireResult<Vec<Rule>> {
    let matches = rule.matches.map(request_match).transpose()?;
    let one = |action| vec![Rule { matches: matches.clone(), action }];
    match (rule.transform, rule.forward_url, rule.response) {
        (Some(transforms), None, None) => {
            Ok(transforms.into_iter().flat_map(|transform| one(set_headers(transform.headers))).collect())
        }
        (None, Some(url), None) => Ok(one(Action::Forward(forward_url(url)?))),
        (None, None, Some(response)) => {
            let response: dormouse_provider::DirectResponse = serde_json::from_value(response)
                .map_err(|error| bad(format!("networkPolicy: wrong response: {error}")))?;
            if !(200..=599).contains(&response.status) {
                return Err(bad("networkPolicy: response.statusCode must be from 200 to 599"));
            }
            Ok(one(Action::Respond(response)))
        }
        _ => Err(bad("networkPolicy: a rule has exactly one of transform, forwardURL and response")),
    }
}

fn set_headers(headers: BTreeMap<String, String>) -> Action {
    Action::SetHeaders(headers.into_iter().map(|(name, value)| (name, Some(value))).collect())
}

fn forward_url(url: String) -> WireResult<String> {
    let plain = url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
    if plain && !url.contains(['?', '#']) {
        Ok(url)
    } else {
        Err(bad("networkPolicy: forwardURL must be an https URL without query and fragment"))
    }
}

fn request_match(value: serde_json::Value) -> WireResult<dormouse_provider::RequestMatch> {
    serde_json::from_value(value).map_err(|error| bad(format!("networkPolicy: wrong match: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> WireResult<NetworkPolicy> {
        policy(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn every_form_of_a_policy_is_read() {
        assert_eq!(read(json!({"mode": "allow-all"})).unwrap(), NetworkPolicy::AllowAll);
        assert_eq!(read(json!({"mode": "deny-all", "x": 1})).unwrap(), NetworkPolicy::DenyAll);
        assert_eq!(read(json!({})).unwrap(), NetworkPolicy::Custom(CustomPolicy::default()));
        assert_eq!(read(json!({"allow": ["*"]})).unwrap(), NetworkPolicy::AllowAll);
        let new = read(json!({
            "allow": {"a.test": [{"transform": [{"headers": {"k": "v"}}]}], "b.test": []},
            "subnets": {"allow": ["1.0.0.0/8"], "deny": ["1.2.3.4"]}
        }));
        let old = read(json!({
            "mode": "custom", "allowedDomains": ["a.test", "b.test"], "allowedCIDRs": ["1.0.0.0/8"],
            "deniedCIDRs": ["1.2.3.4/32"], "injectionRules": [{"domain": "a.test", "headers": {"k": "v"}}]
        }));
        assert_eq!(new.unwrap(), old.unwrap());
        let matched = read(json!({"allow": {"a.test": [
            {"match": {"path": {"startsWith": "/v1"}, "method": ["GET"]}, "forwardURL": "https://p.test/x"}
        ]}}));
        let NetworkPolicy::Custom(custom) = matched.unwrap() else { panic!("custom") };
        assert_eq!(custom.domains[0].rules[0].matches.as_ref().unwrap().method, ["GET"]);
    }

    #[test]
    fn what_is_wrong_in_a_policy_is_said() {
        for bad in [
            json!({"mode": "some"}),
            json!({"subnets": {"allow": ["10.0.0/8"]}}),
            json!({"allow": ["no domain"]}),
            json!({"allow": {"a.test": [{}]}}),
            json!({"allow": {"a.test": [{"forwardURL": "http://x"}]}}),
            json!({"allow": {"a.test": [{"response": {"statusCode": 99}}]}}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }

    /// Whatever is asked for is refused in a sentence, or stored and read the same, and
    /// shown without the values of headers.
    #[test]
    fn nothing_breaks_the_reader() {
        dormouse_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/policy"), |bytes| {
            let Ok(asked) = serde_json::from_slice(bytes) else { return };
            let Ok(read) = policy(asked) else { return };
            if read.check().is_err() {
                return;
            }
            let stored = serde_json::to_vec(&read).unwrap();
            assert_eq!(serde_json::from_slice::<NetworkPolicy>(&stored).unwrap(), read);
            let shown = super::super::present::policy(read.clone());
            assert!(shown.injection_rules.into_iter().flatten().all(|rule| rule.headers.is_none()));
            let NetworkPolicy::Custom(custom) = read.without_values() else { return };
            for rule in custom.domains.into_iter().flat_map(|domain| domain.rules) {
                if let Action::SetHeaders(headers) = rule.action {
                    assert!(headers.values().all(Option::is_none));
                }
            }
        });
    }

    #[test]
    fn the_older_form_takes_no_rule_of_the_newer_away() {
        let mixed = read(json!({
            "allow": {"a.test": [{"transform": [{"headers": {"k": "v"}}]}]}, "allowedDomains": ["a.test", "b.test"]
        }));
        let NetworkPolicy::Custom(custom) = mixed.unwrap() else { panic!("custom") };
        let rules: Vec<_> = custom.domains.iter().map(|domain| domain.rules.len()).collect();
        assert_eq!(rules, [1, 0]);
    }
}
