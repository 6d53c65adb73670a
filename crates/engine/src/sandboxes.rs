//! Sandboxes: making one from an image, a snapshot or another sandbox, and
//! what may be asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_provider::{
    CreateSandbox, Environment, ForkSandbox, ListSandboxes, Namespace, NetworkPolicy, Order, ProviderError,
    Resources, ResourcesRequest, Result, Resumed, Retention, Sandbox, SandboxKey, SandboxSort,
    SnapshotStatus, Source, UpdateSandbox,
};
use dormouse_store::{
    Garbage, GarbageKind, ImageRow, RouteRow, SandboxFilter, SandboxOrder, SandboxRow, SnapshotRow,
    VolumeState,
};
use dormouse_types::{SandboxId, SnapshotId, VolumeId};

use crate::config::{DEFAULT_CWD, DEFAULT_USER, EngineConfig, ImageConfig, RunConfig, parse, write};
use crate::copies::CopyTo;
use crate::host::{internal, pool};
use crate::machine::{Boot, Order as MachineOrder, pending_run};
use crate::present;
use crate::standing::Files;
use crate::{Engine, Recipe, launch};

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

fn invalid(message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid(message.into())
}

/// Limits that are asked for, checked.
fn resources(config: &EngineConfig, asked: Option<ResourcesRequest>) -> Result<Resources> {
    let Some(asked) = asked else { return Ok(config.default_resources) };
    let (vcpus, most) = (asked.vcpus, config.max_vcpus);
    if vcpus == 0 || vcpus > most || (vcpus > 1 && vcpus % 2 == 1) {
        return Err(invalid(format!("resources.vcpus must be 1 or an even number up to {most}")));
    }
    let memory_mib = u64::from(vcpus) * MEMORY_PER_VCPU;
    if asked.memory_mib.is_some_and(|memory| memory != memory_mib) {
        return Err(invalid(format!("resources.memory must be {memory_mib}: 2048 for each vcpu")));
    }
    Ok(Resources { vcpus, memory_mib, ..config.default_resources })
}

fn timeout_ms(config: &EngineConfig, asked: Option<Duration>) -> Result<u64> {
    let timeout = asked.unwrap_or(config.default_timeout);
    let most = config.max_timeout;
    if timeout < Duration::from_secs(1) || timeout > most {
        let most = dormouse_types::format_duration(most);
        return Err(ProviderError::TimeoutInvalid(format!("timeout must be from 1s to {most}")));
    }
    Ok(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

fn check_env(env: &BTreeMap<String, String>) -> Result<()> {
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
    match tags.iter().find(|(key, value)| key.is_empty() || key.len() > MAX_TAG || value.len() > MAX_TAG) {
        Some(_) => Err(invalid(format!("tags: a key has 1 to {MAX_TAG} bytes, a value at most {MAX_TAG}"))),
        None => Ok(()),
    }
}

fn check_ports(ports: &[u16]) -> Result<()> {
    let different: BTreeSet<u16> = ports.iter().copied().collect();
    if ports.len() > MAX_PORTS || different.len() != ports.len() || different.contains(&0) {
        return Err(invalid(format!("ports: at most {MAX_PORTS} different numbers from 1 to 65535")));
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

/// A name for each port. It is all that a caller of the port needs, so it
/// cannot be guessed: 100 random bits.
pub(crate) fn new_routes(ports: &[u16]) -> Result<Vec<RouteRow>> {
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

impl RunConfig {
    /// Applies changes; refuses what is wrong or cannot be enforced.
    pub(crate) fn change(&mut self, host: &EngineConfig, changes: UpdateSandbox) -> Result<()> {
        let UpdateSandbox {
            persistent: _,
            resources: limits,
            timeout,
            tags,
            ports,
            network,
            snapshot_expiration,
            retention,
            current_snapshot: _,
        } = changes;
        if limits.is_some() {
            self.resources = Resources { disk_mib: self.resources.disk_mib, ..resources(host, limits)? };
        }
        if timeout.is_some() {
            self.timeout_ms = timeout_ms(host, timeout)?;
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
            launch::enforceable(&network)?;
            self.network = network;
        }
        if let Some(retention) = retention {
            check_retention(retention)?;
            self.retention = retention;
        }
        self.snapshot_expiration = snapshot_expiration.or(self.snapshot_expiration);
        Ok(())
    }
}

/// What a new sandbox stands on.
struct Foundation {
    id: SandboxId,
    image: ImageRow,
    volume: VolumeId,
    files: Files,
    state: VolumeState,
    /// What its files were copied from.
    snapshot: Option<SnapshotId>,
}

impl Foundation {
    fn image(image: ImageRow) -> Self {
        let state = VolumeState { descends_from: None, base_bytes: image.size_bytes, boots: 1 };
        Self {
            id: SandboxId::generate(),
            image,
            volume: VolumeId::generate(),
            files: Files::Image,
            state,
            snapshot: None,
        }
    }

    fn snapshot(image: ImageRow, snapshot: SnapshotRow) -> Self {
        let state = VolumeState {
            descends_from: Some(snapshot.id.clone()),
            base_bytes: snapshot.size_bytes,
            boots: snapshot.boots + 1,
        };
        let files = Files::Snapshot(snapshot.id.clone());
        Self { files, state, snapshot: Some(snapshot.id), ..Self::image(image) }
    }
}

impl Engine {
    /// The image that is asked for, with the name it is asked for by.
    async fn image(&self, environment: &Environment) -> Result<(ImageRow, Option<String>)> {
        let (name, runtime) = match environment {
            Environment::Default => (self.host.config.default_image.clone(), None),
            Environment::Image(name) => (name.clone(), None),
            Environment::Runtime(name) => (name.clone(), Some(name.clone())),
        };
        let found = self.host.db.image(&name).await.map_err(internal("read image"))?;
        match found {
            Some(image) => Ok((image, runtime)),
            None if runtime.is_some() => Err(invalid(match name.parse::<Recipe>() {
                Ok(_) => format!(
                    "runtime {name:?} is not installed on this server; `dormouse image build --recipe {name}` \
                     installs it"
                ),
                Err(_) => {
                    format!("this server has no runtime {name:?}; it knows {}", Recipe::names().join(", "))
                }
            })),
            None => Err(invalid(format!(
                "there is no image {name:?} on this server; `dormouse image list` shows those that are"
            ))),
        }
    }

    /// The snapshot, if `namespace` has it and it is still there.
    async fn living_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<SnapshotRow> {
        let found = self.host.db.snapshot(id).await.map_err(internal("read snapshot"))?;
        found
            .filter(|row| row.namespace == namespace.0 && row.status == SnapshotStatus::Created.as_str())
            .ok_or_else(|| ProviderError::SnapshotGone(id.to_string()))
    }

    async fn image_with_id(&self, id: &dormouse_types::ImageId) -> Result<ImageRow> {
        let image = self.host.db.image_by_id(id).await.map_err(internal("read image"))?;
        image.ok_or_else(|| ProviderError::internal("read image", format!("there is no image {id}")))
    }

    pub(crate) async fn create_sandbox(&self, request: CreateSandbox) -> Result<Resumed> {
        self.wait_until_recovered().await?;
        self.host.admits()?;
        let host = &self.host.config;
        let (foundation, runtime, source) = match request.source {
            Some(Source::Snapshot(id)) => {
                let snapshot = self.living_snapshot(&request.key.namespace, &id).await?;
                let image = self.image_with_id(&snapshot.image_id).await?;
                (Foundation::snapshot(image, snapshot), None, None)
            }
            source => {
                let (image, runtime) = self.image(&request.environment).await?;
                (Foundation::image(image), runtime, source)
            }
        };
        check_env(&request.env)?;
        if let Some(source) = &source {
            crate::source::check(source)?;
        }
        let of_image: ImageConfig = parse(&foundation.image.config)?;
        let mut config = RunConfig {
            resources: resources(host, request.resources)?,
            image: foundation.image.name.clone(),
            cwd: of_image.workdir.unwrap_or_else(|| DEFAULT_CWD.to_owned()),
            user: of_image.user.unwrap_or_else(|| DEFAULT_USER.to_owned()),
            image_env: of_image.env,
            env: request.env,
            tags: BTreeMap::new(),
            timeout_ms: timeout_ms(host, request.timeout)?,
            network: NetworkPolicy::default(),
            ephemeral: request.ephemeral,
            runtime,
            ports: Vec::new(),
            snapshot_expiration: None,
            retention: Retention::default(),
        };
        let changes = UpdateSandbox {
            tags: Some(request.tags),
            ports: Some(request.ports),
            network: Some(request.network),
            snapshot_expiration: request.snapshot_expiration,
            retention: Some(request.retention),
            ..UpdateSandbox::default()
        };
        config.change(host, changes)?;
        self.insert_and_boot(request.key, request.persistent, foundation, config, source).await
    }

    pub(crate) async fn fork_sandbox(&self, request: ForkSandbox) -> Result<Resumed> {
        let from = SandboxKey { namespace: request.key.namespace.clone(), name: request.source };
        let row = self.find(&from).await?;
        self.host.admits()?;
        let mut config: RunConfig = parse(&row.config)?;
        // One without a snapshot has its files in its volume alone.
        let keeps_none = row.current_snapshot.is_none();
        if let Some(env) = request.env {
            check_env(&env)?;
            config.env = env;
        }
        if request.changes.current_snapshot.is_some() {
            return Err(invalid("currentSnapshotId: a fork starts from its source's"));
        }
        let persistent = request.changes.persistent.unwrap_or(row.persistent);
        config.ephemeral = false;
        config.change(&self.host.config, request.changes)?;
        // Before files are copied for nothing.
        let taken = self.host.db.sandbox(&request.key.namespace.0, &request.key.name).await;
        if taken.map_err(internal("read sandbox"))?.is_some() {
            return Err(ProviderError::Conflict(format!("sandbox {}", request.key.name)));
        }
        let foundation = if request.live || keeps_none { self.copy_of(&row, &config).await? } else { None };
        let foundation = match (foundation, &row.current_snapshot) {
            (Some(foundation), _) => foundation,
            (None, Some(id)) => {
                let snapshot = self.living_snapshot(&request.key.namespace, id).await?;
                Foundation::snapshot(self.image_with_id(&snapshot.image_id).await?, snapshot)
            }
            (None, None) => Foundation::image(self.image_with_id(&row.image_id).await?),
        };
        self.insert_and_boot(request.key, persistent, foundation, config, None).await
    }

    /// A copy of the files of `source` as they are now, for a sandbox that is
    /// to be made; `None`: it has none of its own.
    async fn copy_of(&self, source: &SandboxRow, config: &RunConfig) -> Result<Option<Foundation>> {
        let foundation = Foundation::image(self.image_with_id(&source.image_id).await?);
        let to = Box::new(CopyTo {
            volume: foundation.volume.clone(),
            sandbox: foundation.id.clone(),
            limit: config.resources.disk_mib.map(|mib| mib << 20),
        });
        let copied = self.order(&source.id, |reply| MachineOrder::Copy { to: to.clone(), reply }).await?;
        Ok(copied.map(|copied| Foundation { files: Files::There, state: copied.state, ..foundation }))
    }

    async fn insert_and_boot(
        &self,
        key: SandboxKey,
        persistent: bool,
        foundation: Foundation,
        config: RunConfig,
        source: Option<Source>,
    ) -> Result<Resumed> {
        let now = self.host.clock.now();
        let Foundation { id, image, volume, files, state, snapshot } = foundation;
        let row = SandboxRow {
            id,
            namespace: key.namespace.0,
            name: key.name,
            persistent,
            image_id: image.id,
            config: write(&config)?,
            current_snapshot: snapshot,
            volume_id: Some(volume.clone()),
            descends_from: state.descends_from,
            base_bytes: state.base_bytes,
            boots: state.boots,
            created_at: now,
            updated_at: now,
            status_updated_at: now,
        };
        let routes = new_routes(&config.ports)?;
        let run = pending_run(&row, &config, volume.clone(), now);
        self.registry.begin(&run.id);
        let inserted = self.host.db.insert_sandbox(&row, &run, &config.tags, &routes).await;
        if let Err(error) = inserted {
            self.registry.forget(&run.id, true);
            if files == Files::There {
                let garbage = Garbage { kind: GarbageKind::Volume, name: volume.to_string() };
                pool(&self.host, "drop a copy", move |storage| storage.delete(&garbage)).await?;
            }
            return Err(internal("insert sandbox")(error));
        }
        let boot = Box::new(Boot { run, image: image.digest, boots: state.boots, files, source });
        self.order(&row.id, |reply| MachineOrder::Boot { boot: boot.clone(), reply }).await?;
        self.present(&row, true).await
    }

    pub(crate) async fn list_sandboxes(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
        self.wait_until_recovered().await?;
        let order = match list.sort {
            SandboxSort::CreatedAt => SandboxOrder::Id,
            SandboxSort::Name => SandboxOrder::Name,
            SandboxSort::StatusUpdatedAt => SandboxOrder::StatusUpdatedAt,
        };
        // A cursor is what the list is sorted by, and the id.
        let after = list.page.cursor.as_deref().map(|cursor| match cursor.split_once('~') {
            Some((id, key)) => (key.to_owned(), id.to_owned()),
            None => (String::new(), cursor.to_owned()),
        });
        if let Some((_, id)) = &after {
            id.parse::<SandboxId>().map_err(|_| invalid("cursor: not one that this list gave"))?;
        }
        let filter = SandboxFilter {
            name_prefix: list.name_prefix.as_deref(),
            tags: &list.tags,
            order,
            ascending: list.order == Order::Ascending,
            after,
            limit: i64::from(list.page.limit) + 1,
        };
        let rows = self.host.db.sandboxes_of(&namespace.0, &filter).await;
        let mut rows = rows.map_err(internal("list sandboxes"))?;
        let next = present::take_page(&mut rows, list.page.limit, |row| match list.sort {
            SandboxSort::CreatedAt => row.id.to_string(),
            SandboxSort::Name => format!("{}~{}", row.id, row.name),
            SandboxSort::StatusUpdatedAt => format!("{}~{}", row.id, row.status_updated_at),
        });
        let mut sandboxes = Vec::with_capacity(rows.len());
        for row in &rows {
            match self.present(row, false).await {
                Ok(found) => sandboxes.push(found.sandbox),
                // Deleted between the two reads.
                Err(ProviderError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((sandboxes, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
