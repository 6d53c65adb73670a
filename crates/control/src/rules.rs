//! What may be asked for. Every rule names the field that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_provider::{
    GitSource, Mount, NetworkPolicy, ProviderError, Resources, ResourcesRequest, Result, Retention, Source,
    UpdateSandbox,
};
use dormouse_store::RouteRow;
use dormouse_types::{AccountId, OrgId, Quota};

use crate::stored::SandboxConfig;

/// Memory for each CPU that is asked for (provider contract, section 3), in MiB.
const MEMORY_PER_VCPU: u64 = 2048;

/// Ports, tags (provider contract, section 3).
const MAX_PORTS: usize = 15;
const MAX_TAGS: usize = 5;

/// Longest key or value of a tag, in bytes.
const MAX_TAG: usize = 256;

/// Largest environment of a sandbox, in bytes: it comes on top of every
/// command's own.
const MAX_ENV: usize = 256 << 10;

/// What a service gives and how much of it, by its configuration.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of sandboxes that name none.
    pub default_resources: Resources,
    /// Most CPUs that a sandbox may ask for.
    pub max_vcpus: u32,
    /// Hard lifetime of runs that name none.
    pub default_timeout: Duration,
    /// Longest hard lifetime.
    pub max_timeout: Duration,
    /// What one owner may have.
    pub quotas: Quotas,
}

/// What owners may have.
#[derive(Debug, Clone, Default)]
pub struct Quotas {
    /// Each account.
    pub account: Quota,
    /// Each organization.
    pub organization: Quota,
    /// One of them, by id, instead.
    pub owners: BTreeMap<String, Quota>,
}

impl Quotas {
    /// What `owner` may have. The service's own builders are nobody's.
    #[must_use]
    pub fn of(&self, owner: &str) -> Quota {
        let usual = if owner.parse::<AccountId>().is_ok() {
            self.account
        } else if owner.parse::<OrgId>().is_ok() {
            self.organization
        } else {
            Quota::default()
        };
        self.owners.get(owner).map_or(usual, |own| usual.with(own))
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid(message.into())
}

impl Limits {
    /// Resources that are asked for, checked.
    pub(crate) fn resources(&self, asked: Option<ResourcesRequest>) -> Result<Resources> {
        let Some(asked) = asked else { return Ok(self.default_resources) };
        let (vcpus, most) = (asked.vcpus, self.max_vcpus);
        if vcpus == 0 || vcpus > most || (vcpus > 1 && vcpus % 2 == 1) {
            return Err(invalid(format!("resources.vcpus must be 1 or an even number up to {most}")));
        }
        let memory_mib = u64::from(vcpus) * MEMORY_PER_VCPU;
        if asked.memory_mib.is_some_and(|memory| memory != memory_mib) {
            return Err(invalid(format!("resources.memory must be {memory_mib}: 2048 for each vcpu")));
        }
        Ok(Resources { vcpus, memory_mib, ..self.default_resources })
    }

    pub(crate) fn timeout_ms(&self, asked: Option<Duration>) -> Result<u64> {
        let timeout = asked.unwrap_or(self.default_timeout);
        if timeout < Duration::from_secs(1) || timeout > self.max_timeout {
            let most = dormouse_types::format_duration(self.max_timeout);
            return Err(ProviderError::TimeoutInvalid(format!("timeout must be from 1s to {most}")));
        }
        Ok(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
    }

    /// A lifetime that was made longer.
    ///
    /// # Errors
    /// [`ProviderError::TimeoutInvalid`] when it would be too long.
    pub fn extended(&self, timeout_ms: i64, by: Duration) -> Result<i64> {
        let timeout = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)) + by;
        if timeout > self.max_timeout {
            let most = dormouse_types::format_duration(self.max_timeout);
            return Err(ProviderError::TimeoutInvalid(format!("the total timeout must not be over {most}")));
        }
        Ok(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX))
    }
}

pub(crate) fn check_env(env: &BTreeMap<String, String>) -> Result<()> {
    let size: usize = env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if size > MAX_ENV {
        return Err(invalid(format!("env must not be over {MAX_ENV} bytes")));
    }
    let wrong = |text: &str| text.contains('\0');
    match env.iter().find(|(key, value)| key.is_empty() || key.contains('=') || wrong(key) || wrong(value)) {
        Some((key, _)) => Err(invalid(format!("env: {key:?} cannot stand in an environment"))),
        None => Ok(()),
    }
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<()> {
    if tags.len() > MAX_TAGS {
        return Err(invalid(format!("tags: at most {MAX_TAGS}")));
    }
    if tags.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
        return Err(invalid("tags: no NUL characters"));
    }
    match tags.iter().find(|(key, value)| key.is_empty() || key.len() > MAX_TAG || value.len() > MAX_TAG) {
        Some(_) => Err(invalid(format!("tags: a key has 1 to {MAX_TAG} bytes, a value at most {MAX_TAG}"))),
        None => Ok(()),
    }
}

/// Whether these ports can be published.
///
/// # Errors
/// [`ProviderError::Invalid`] that says what can.
pub fn check_ports(ports: &[u16]) -> Result<()> {
    let different: BTreeSet<u16> = ports.iter().copied().collect();
    if ports.len() > MAX_PORTS || different.len() != ports.len() || different.contains(&0) {
        return Err(invalid(format!("ports: at most {MAX_PORTS} different numbers from 1 to 65535")));
    }
    Ok(())
}

/// Drives of one sandbox, at most (provider contract, section 2).
const MAX_MOUNTS: usize = 4;

/// Places that are the system's own.
const NOT_FOR_DRIVES: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/etc"];

/// Whether a text is the name of a drive: 1 to 64 letters, digits, `-` and `_`.
pub(crate) fn check_drive_name(name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(invalid(format!("drive: {name:?} is no name of one: 1 to 64 letters, digits, - and _")))
}

/// Whether a sandbox can have these drives, as far as that can be said without looking at
/// them.
fn check_mounts(mounts: &BTreeMap<String, Mount>) -> Result<()> {
    if mounts.len() > MAX_MOUNTS {
        return Err(invalid(format!("mounts: at most {MAX_MOUNTS}")));
    }
    let mut drives = BTreeSet::new();
    for (path, mount) in mounts {
        let wrong = |why: &str| Err(invalid(format!("mounts: {path:?} {why}")));
        let parts = || path.split('/').skip(1);
        if !path.starts_with('/') || path.contains('\0') || path.len() > 1024 {
            return wrong("is no absolute path");
        }
        if parts().any(|part| part.is_empty() || part == "." || part == "..") {
            return wrong("must be a plain path below /, without //, . and ..");
        }
        let below =
            |outer: &str| path == outer || path.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        if NOT_FOR_DRIVES.iter().any(|place| below(place)) {
            return wrong("is the system's own");
        }
        if mounts.keys().any(|other| other != path && below(other)) {
            return wrong("lies in the place of another drive");
        }
        check_drive_name(&mount.drive)?;
        if !drives.insert(&mount.drive) {
            return Err(invalid(format!("mounts: drive {:?} is there twice", mount.drive)));
        }
    }
    Ok(())
}

fn check_retention(retention: Retention) -> Result<()> {
    match retention {
        Retention::KeepLast(keep) if !(1..=10).contains(&keep.count) => {
            Err(invalid("keepLastSnapshots.count must be from 1 to 10"))
        }
        _ => Ok(()),
    }
}

/// Refuses a policy of which a part would not be enforced.
fn check_policy(policy: &NetworkPolicy) -> Result<()> {
    policy.check().map_err(|error| invalid(format!("networkPolicy.{error}")))
}

/// Refuses a source that could not be got.
pub(crate) fn check_source(source: &Source) -> Result<()> {
    match source {
        Source::Git(git) => check_git(git),
        Source::Tarball { url } if !is_url(url, &["https://", "http://"]) => {
            Err(invalid("source.url must be an http or https URL"))
        }
        Source::Tarball { .. } | Source::Snapshot(_) | Source::SnapshotOf(..) => Ok(()),
    }
}

fn is_url(url: &str, schemes: &[&str]) -> bool {
    let host = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or("");
    !host.is_empty() && !host.starts_with('/') && url.bytes().all(|b| b.is_ascii_graphic())
}

fn check_git(git: &GitSource) -> Result<()> {
    if !is_url(&git.url, &["https://"]) {
        return Err(invalid("source.url must be an https URL"));
    }
    if git.url["https://".len()..].split('/').next().is_some_and(|host| host.contains('@')) {
        return Err(invalid("source.url must not hold credentials; use source.username and source.password"));
    }
    if git.depth == Some(0) {
        return Err(invalid("source.depth must be at least 1"));
    }
    let plain =
        |text: &str| !text.starts_with('-') && !text.is_empty() && !text.chars().any(char::is_control);
    if git.revision.as_deref().is_some_and(|revision| !plain(revision)) {
        return Err(invalid("source.revision must be a branch, a tag or a commit"));
    }
    if git.credentials.as_ref().is_some_and(|(user, password)| {
        [user, password].iter().any(|text| text.chars().any(char::is_control))
    }) {
        return Err(invalid("source.username and source.password must not hold control characters"));
    }
    Ok(())
}

/// A name for each port. It is all that a caller of the port needs, so it
/// cannot be guessed: 100 random bits.
///
/// # Errors
/// [`ProviderError::Internal`] when the operating system has no randomness.
pub fn new_routes(ports: &[u16]) -> Result<Vec<RouteRow>> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    ports
        .iter()
        .map(|port| {
            let mut bytes = [0_u8; 20];
            getrandom::fill(&mut bytes).map_err(|e| ProviderError::internal("name a route", e))?;
            let word: String = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
            Ok(RouteRow { subdomain: format!("dm-{word}"), port: *port })
        })
        .collect()
}

impl SandboxConfig {
    /// Applies changes; refuses what is wrong or cannot be enforced.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] that names the field; nothing is changed that
    /// the caller should keep.
    pub fn change(&mut self, limits: &Limits, changes: UpdateSandbox) -> Result<()> {
        let UpdateSandbox {
            persistent: _,
            resources,
            timeout,
            tags,
            ports,
            network,
            grant,
            snapshot_expiration,
            retention,
            mounts,
            start_from: _,
        } = changes;
        if resources.is_some() {
            self.resources = Resources { disk_mib: self.resources.disk_mib, ..limits.resources(resources)? };
        }
        if timeout.is_some() {
            self.timeout_ms = limits.timeout_ms(timeout)?;
        }
        if let Some(tags) = tags {
            check_tags(&tags)?;
            self.tags = tags;
        }
        if let Some(ports) = ports {
            check_ports(&ports)?;
            self.ports = ports;
        }
        if let Some(network) = network {
            check_policy(&network)?;
            self.network = network;
            self.grant = grant;
        }
        if let Some(retention) = retention {
            check_retention(retention)?;
            self.retention = retention;
        }
        if let Some(mounts) = mounts {
            check_mounts(&mounts)?;
            self.mounts = mounts;
        }
        self.snapshot_expiration = snapshot_expiration.or(self.snapshot_expiration);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dormouse_provider::CloneDirectory;

    use super::*;

    #[test]
    fn drives_have_places_of_their_own() {
        let mounts = |pairs: &[(&str, &str)]| {
            let mode = dormouse_provider::MountMode::ReadWrite;
            let mount = |drive: &str| Mount { drive: drive.to_owned(), mode };
            pairs.iter().map(|(path, drive)| ((*path).to_owned(), mount(drive))).collect::<BTreeMap<_, _>>()
        };
        check_mounts(&mounts(&[("/data", "a"), ("/data2", "b"), ("/home/ubuntu/x", "c")])).unwrap();
        for wrong in [
            &[("data", "a")][..],
            &[("/", "a")],
            &[("/a//b", "a")],
            &[("/a/../b", "a")],
            &[("/a/", "a")],
            &[("/proc/x", "a")],
            &[("/etc", "a")],
            &[("/a", "a"), ("/a/b", "b")],
            &[("/a", "a"), ("/b", "a")],
            &[("/a", "no name")],
            &[("/a", "1"), ("/b", "2"), ("/c", "3"), ("/d", "4"), ("/e", "5")],
        ] {
            assert!(check_mounts(&mounts(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn routes_are_names_that_a_browser_takes() {
        let routes = new_routes(&[80, 3000]).unwrap();
        assert_eq!(routes.len(), 2);
        assert_ne!(routes[0].subdomain, routes[1].subdomain);
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        assert!(routes.iter().all(|route| route.subdomain.len() < 64 && route.subdomain.bytes().all(fits)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(check_ports(&[1, 2, 2]).is_err() && check_ports(&[0]).is_err());
        assert!(check_ports(&(1..=16).collect::<Vec<u16>>()).is_err());
        assert!(check_ports(&[65535]).is_ok());
        let env = |key: &str| BTreeMap::from([(key.to_owned(), "x".to_owned())]);
        assert!(check_env(&env("A=B")).is_err() && check_env(&env("")).is_err());
        assert!(check_env(&env("PATH")).is_ok());
        assert!(check_tags(&env("")).is_err() && check_tags(&env("a")).is_ok());
    }

    #[test]
    fn only_sources_that_can_be_got_are_accepted() {
        let git = |url: &str| GitSource {
            url: url.to_owned(),
            depth: None,
            revision: None,
            credentials: None,
            directory: CloneDirectory::Named,
        };
        for bad in ["", "file:///etc", "http://x/y", "https://", "https://u:p@host/x", "https://a b/c", "-x"]
        {
            assert!(check_source(&Source::Git(git(bad))).is_err(), "{bad}");
        }
        let mut source = git("https://github.com/acme/widgets");
        assert!(check_source(&Source::Git(source.clone())).is_ok());
        source.revision = Some("--upload-pack=evil".to_owned());
        assert!(check_source(&Source::Git(source)).is_err());
        assert!(check_source(&Source::Tarball { url: "file:///etc/shadow".to_owned() }).is_err());
    }
}
