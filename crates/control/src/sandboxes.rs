//! Sandboxes: making one from an image, a snapshot or another sandbox; lists.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_provider::{
    CreateSandbox, Direction, Environment, ForkSandbox, ListSandboxes, Namespace, NetworkPolicy,
    ProviderError, Result, Retention, Sandbox, SandboxKey, SandboxSort, SandboxView, SnapshotStatus, Source,
    UpdateSandbox,
};
use dormouse_store::{ImageRow, SandboxFilter, SandboxOrder, SandboxRow, SandboxWithRun, SnapshotRow};
use dormouse_types::{RunId, RunStatus, SandboxId, SnapshotId, Timestamp};

use crate::ground::{Files, Ground};
use crate::order::{CopyTo, Creation};
use crate::present::{self, take_page};
use crate::record::{SandboxRecord, pending_run};
use crate::rules::{self, check_env, invalid};
use crate::stored::{DEFAULT_CWD, DEFAULT_USER, ImageConfig, SandboxConfig, Stored as _};
use crate::{Control, internal};

/// How long an answer that nobody took is kept: longer than clients repeat.
const KEPT: Duration = Duration::from_secs(60);

/// Between two looks at a creation that somebody else carries out.
const LOOK: Duration = Duration::from_millis(20);

/// What a new sandbox stands on.
struct Foundation {
    id: SandboxId,
    image: ImageRow,
    ground: Ground,
    /// What its files were copied from.
    snapshot: Option<SnapshotId>,
}

impl Foundation {
    fn image(image: ImageRow) -> Self {
        let ground = Ground::image(&image, 0);
        Self { id: SandboxId::generate(), image, ground, snapshot: None }
    }

    fn snapshot(image: ImageRow, snapshot: SnapshotRow) -> Self {
        let ground = Ground::snapshot(&snapshot, 0);
        Self { id: SandboxId::generate(), image, ground, snapshot: Some(snapshot.id) }
    }

    /// The files of another namespace's snapshot, of which nothing else shows.
    fn foreign(image: ImageRow, snapshot: &SnapshotRow) -> Self {
        let mut ground = Ground::snapshot(snapshot, 0);
        ground.state.descends_from = None;
        Self { id: SandboxId::generate(), image, ground, snapshot: None }
    }
}

/// What else a new sandbox is.
struct Wanted {
    key: SandboxKey,
    persistent: bool,
    config: SandboxConfig,
    source: Option<Source>,
    retry_key: Option<String>,
}

impl Control {
    /// The image that is asked for, with the name it is asked for by.
    async fn image(&self, environment: &Environment) -> Result<(ImageRow, Option<String>)> {
        let (name, runtime) = match environment {
            Environment::Default => (self.config.default_image.clone(), None),
            Environment::Image(name) => (name.clone(), None),
            Environment::Runtime(name) => (name.clone(), Some(name.clone())),
        };
        let found = self.db.image(&self.config.host, &name).await.map_err(internal("read image"))?;
        match found {
            Some(image) => Ok((image, runtime)),
            None if runtime.is_some() => Err(invalid(if self.config.recipes.contains(&name.as_str()) {
                format!(
                    "runtime {name:?} is not installed on this server; `dormouse image build --recipe {name}` \
                     installs it"
                )
            } else {
                format!("this server has no runtime {name:?}; it knows {}", self.config.recipes.join(", "))
            })),
            None if *environment == Environment::Default => {
                let missing =
                    || format!("this server has no base image {name:?} yet; `dormouse image build` makes it");
                Err(ProviderError::Unready(self.waits_for().unwrap_or_else(missing)))
            }
            None => Err(invalid(format!(
                "there is no image {name:?} on this server; `dormouse image list` shows those that are"
            ))),
        }
    }

    /// The snapshot, if `namespace` has it, it is still there, and here.
    async fn living_snapshot(&self, namespace: &Namespace, id: &SnapshotId) -> Result<SnapshotRow> {
        let found = self.db.snapshot(id).await.map_err(internal("read snapshot"))?;
        let found = found
            .filter(|row| &row.namespace == namespace && row.status == SnapshotStatus::Created)
            .ok_or_else(|| ProviderError::SnapshotGone(id.to_string()))?;
        self.here(&found.host_id, || format!("snapshot {id}")).await?;
        Ok(found)
    }

    async fn image_with_id(&self, id: &dormouse_types::ImageId) -> Result<ImageRow> {
        let image = self.db.image_by_id(id).await.map_err(internal("read image"))?;
        image.ok_or_else(|| ProviderError::internal("read image", format!("there is no image {id}")))
    }

    pub(crate) async fn create_sandbox(&self, request: CreateSandbox) -> Result<SandboxView> {
        self.count_creation(&request.key.namespace)?;
        loop {
            if let Some(made) = self.try_create(request.clone()).await? {
                return Ok(made);
            }
        }
    }

    fn count_creation(&self, namespace: &Namespace) -> Result<()> {
        let quota = self.config.limits.quotas.of(&namespace.owner);
        self.used.create(&namespace.owner, &quota, self.clock.now())
    }

    /// `None`: the creation that this one repeats failed meanwhile.
    async fn try_create(&self, request: CreateSandbox) -> Result<Option<SandboxView>> {
        self.runner.ready().await?;
        let limits = &self.config.limits;
        let (foundation, runtime, source) = match request.source {
            Some(Source::Snapshot(id)) => {
                let snapshot = self.living_snapshot(&request.key.namespace, &id).await?;
                let image = self.image_with_id(&snapshot.image_id).await?;
                (Foundation::snapshot(image, snapshot), None, None)
            }
            Some(Source::SnapshotOf(namespace, id)) => {
                let snapshot = self.living_snapshot(&namespace, &id).await?;
                let (image, _) = self.image(&Environment::Default).await?;
                if image.id != snapshot.image_id {
                    return Err(ProviderError::SnapshotGone(id.to_string()));
                }
                (Foundation::foreign(image, &snapshot), None, None)
            }
            source => {
                let (image, runtime) = self.image(&request.environment).await?;
                (Foundation::image(image), runtime, source)
            }
        };
        check_env(&request.env)?;
        if let Some(source) = &source {
            rules::check_source(source)?;
        }
        let of_image = ImageConfig::read(&foundation.image.config)?;
        let mut config = SandboxConfig {
            resources: limits.resources(request.resources)?,
            image: foundation.image.name.clone(),
            cwd: of_image.workdir.unwrap_or_else(|| DEFAULT_CWD.to_owned()),
            user: of_image.user.unwrap_or_else(|| DEFAULT_USER.to_owned()),
            image_env: of_image.env,
            env: request.env,
            tags: BTreeMap::new(),
            timeout_ms: limits.timeout_ms(request.timeout)?,
            network: NetworkPolicy::default(),
            grant: None,
            ephemeral: request.ephemeral,
            runtime,
            ports: Vec::new(),
            snapshot_expiration: None,
            retention: Retention::default(),
            mounts: BTreeMap::new(),
        };
        let changes = UpdateSandbox {
            tags: Some(request.tags),
            ports: Some(request.ports),
            network: Some(request.network),
            grant: request.grant,
            snapshot_expiration: request.snapshot_expiration,
            retention: Some(request.retention),
            mounts: Some(request.mounts),
            ..UpdateSandbox::default()
        };
        config.change(limits, changes)?;
        self.check_drives(&request.key.namespace, &config.mounts).await?;
        let wanted = Wanted {
            key: request.key,
            persistent: request.persistent,
            config,
            source,
            retry_key: request.retry_key,
        };
        self.make(wanted, foundation).await
    }

    pub(crate) async fn fork_sandbox(&self, request: ForkSandbox) -> Result<SandboxView> {
        self.count_creation(&request.key.namespace)?;
        loop {
            if let Some(made) = self.try_fork(request.clone()).await? {
                return Ok(made);
            }
        }
    }

    /// As [`Control::try_create`].
    async fn try_fork(&self, request: ForkSandbox) -> Result<Option<SandboxView>> {
        let from = SandboxKey { namespace: request.key.namespace.clone(), name: request.source };
        let source = SandboxRecord::new(self.find_here(&from).await?.sandbox);
        let mut config = SandboxConfig::clone(source.config()?);
        // One without a snapshot has its files in its volume alone.
        let keeps_none = source.row.current_snapshot.is_none();
        if let Some(env) = request.env {
            check_env(&env)?;
            config.env = env;
        }
        if request.changes.start_from.is_some() {
            return Err(invalid("currentSnapshotId: a fork starts from its source's"));
        }
        let persistent = request.changes.persistent.unwrap_or(source.row.persistent);
        config.ephemeral = false;
        // One writer has a drive, so a fork begins without.
        config.mounts.clear();
        config.change(&self.config.limits, request.changes)?;
        self.check_drives(&request.key.namespace, &config.mounts).await?;
        // Before files are copied for nothing.
        let taken = self.db.sandbox(&request.key.namespace, &request.key.name).await;
        if taken.map_err(internal("read sandbox"))?.is_some() {
            return match &request.retry_key {
                Some(retry_key) => self.join(&request.key, retry_key).await,
                None => Err(ProviderError::Conflict(format!("sandbox {}", request.key.name))),
            };
        }
        let copied =
            if request.live || keeps_none { self.copy_of(&source.row, &config).await? } else { None };
        let foundation = match (copied, &source.row.current_snapshot) {
            (Some(foundation), _) => foundation,
            (None, Some(id)) => {
                let snapshot = self.living_snapshot(&request.key.namespace, id).await?;
                Foundation::snapshot(self.image_with_id(&snapshot.image_id).await?, snapshot)
            }
            (None, None) => Foundation::image(self.image_with_id(&source.row.image_id).await?),
        };
        let retry_key = request.retry_key;
        let wanted = Wanted { key: request.key, persistent, config, source: None, retry_key };
        self.make(wanted, foundation).await
    }

    /// A copy of the files of `source` as they are now, for a sandbox that is
    /// to be made; `None`: it has none of its own.
    async fn copy_of(&self, source: &SandboxRow, config: &SandboxConfig) -> Result<Option<Foundation>> {
        let mut foundation = Foundation::image(self.image_with_id(&source.image_id).await?);
        let to = CopyTo {
            volume: foundation.ground.volume.clone(),
            sandbox: foundation.id.clone(),
            limit: config.resources.disk_bytes(),
        };
        let Some(state) = self.runner.copy(&source.id, to).await? else { return Ok(None) };
        foundation.ground.state = state;
        foundation.ground.files = Files::There;
        Ok(Some(foundation))
    }

    /// As [`Control::try_create`].
    async fn make(&self, wanted: Wanted, foundation: Foundation) -> Result<Option<SandboxView>> {
        let now = self.clock.now();
        let Wanted { key, persistent, config, source, retry_key } = wanted;
        let Foundation { id, image, ground, snapshot } = foundation;
        let sandbox = SandboxRow {
            id,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            persistent,
            image_id: image.id.clone(),
            config: config.write()?,
            current_run: RunId::generate(),
            current_snapshot: snapshot,
            volume_id: Some(ground.volume.clone()),
            descends_from: ground.state.descends_from,
            base_bytes: ground.state.base_bytes,
            boots: ground.state.boots,
            retry_key: retry_key.clone(),
            created_at: now,
            updated_at: now,
            status_updated_at: now,
        };
        let run = (sandbox.current_run.clone(), 1);
        // A copy goes with a run that does not come up, too.
        let run = pending_run(&self.config.host, &sandbox, &config, run, (ground.volume, true), now)?;
        let routes = rules::new_routes(&config.ports)?;
        let creation =
            Creation { sandbox, run, tags: config.tags, routes, files: ground.files, image, source };
        match (self.runner.create(creation).await, retry_key) {
            (Ok(made), _) => {
                let gone = || ProviderError::NotFound(format!("sandbox {}", key.name));
                self.view(&made.sandbox.ok_or_else(gone)?, &made.run, true).await.map(Some)
            }
            (Err(ProviderError::Conflict(_)), Some(retry_key)) => self.join(&key, &retry_key).await,
            (Err(error), _) => Err(error),
        }
    }

    /// The sandbox that a creation makes, or has made and not handed over, which
    /// had the same key; `None`: it failed.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] where the sandbox of this name is another.
    async fn join(&self, key: &SandboxKey, retry_key: &str) -> Result<Option<SandboxView>> {
        let until = self.clock.now().plus(self.config.creation_timeout);
        loop {
            let found = match self.find(key).await {
                Err(ProviderError::NotFound(_)) => return Ok(None),
                found => found?,
            };
            match joined(&found, retry_key, self.clock.now()) {
                Joined::Other => return Err(ProviderError::Conflict(format!("sandbox {}", key.name))),
                Joined::Made => {
                    let sandbox = SandboxRecord::new(found.sandbox);
                    return self.view(&sandbox, &found.run, true).await.map(Some);
                }
                Joined::Making if self.clock.now() < until => tokio::time::sleep(LOOK).await,
                Joined::Making => {
                    return Err(ProviderError::internal(
                        format!("create sandbox {}", key.name),
                        "the creation that this one repeats takes too long",
                    ));
                }
            }
        }
    }

    pub(crate) async fn list_sandboxes(
        &self,
        namespace: &Namespace,
        list: ListSandboxes,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
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
            ascending: list.order == Direction::Ascending,
            after,
            limit: i64::from(list.page.limit) + 1,
        };
        let rows = self.db.sandboxes_of(namespace, &filter).await;
        let mut rows = rows.map_err(internal("list sandboxes"))?;
        let next = take_page(&mut rows, list.page.limit, |found| match list.sort {
            SandboxSort::CreatedAt => found.sandbox.id.to_string(),
            SandboxSort::Name => format!("{}~{}", found.sandbox.id, found.sandbox.name),
            SandboxSort::StatusUpdatedAt => {
                format!("{}~{}", found.sandbox.id, found.sandbox.status_updated_at)
            }
        });
        let sandboxes = rows.into_iter().map(|found| {
            let run = present::run(&found.run);
            present::sandbox(&SandboxRecord::new(found.sandbox), &run)
        });
        Ok((sandboxes.collect(), next))
    }
}

/// What a repeated creation found under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joined {
    /// The one that it repeats is under way.
    Making,
    /// That one is done, and nobody took the answer.
    Made,
    /// Another sandbox.
    Other,
}

/// A sandbox that was started again was found by somebody, so its creation is
/// over, whether its answer arrived or not.
fn joined(found: &SandboxWithRun, retry_key: &str, now: Timestamp) -> Joined {
    if found.sandbox.retry_key.as_deref() != Some(retry_key) || found.run.number != 1 {
        return Joined::Other;
    }
    match (found.run.status, found.run.started_at) {
        (RunStatus::Pending, _) => Joined::Making,
        (RunStatus::Running, Some(started)) if now < started.plus(KEPT) => Joined::Made,
        _ => Joined::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{config, run, sandbox};

    #[test]
    fn a_repeated_creation_gets_what_nobody_took() {
        let mut found = {
            let sandbox = SandboxRow { retry_key: Some("k".to_owned()), ..sandbox(&config()) };
            let run = run(&sandbox);
            SandboxWithRun { sandbox, run }
        };
        let now = Timestamp(100_000);
        assert_eq!(joined(&found, "k", now), Joined::Making);
        assert_eq!(joined(&found, "other", now), Joined::Other);
        found.run.status = RunStatus::Running;
        found.run.started_at = Some(Timestamp(90_000));
        assert_eq!(joined(&found, "k", now), Joined::Made);
        assert_eq!(joined(&found, "k", Timestamp(150_000)), Joined::Other, "long ago");
        found.run.status = RunStatus::Stopped;
        assert_eq!(joined(&found, "k", now), Joined::Other, "it ended");
        (found.run.status, found.run.number) = (RunStatus::Running, 2);
        assert_eq!(joined(&found, "k", now), Joined::Other, "started again");
        found.run.number = 1;
        found.sandbox.retry_key = None;
        assert_eq!(joined(&found, "k", now), Joined::Other, "handed over");
    }
}
