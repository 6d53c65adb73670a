//! The port, method by method.

use std::io::Write as _;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use dormouse_provider::{
    BodyStream, BoxStream, Command, CommandSpec, CreateSandbox, Direction, Drive, DriveSort, Environment,
    Expiration, ForkSandbox, Input, ListDrives, ListOf, ListSandboxes, LogEvent, MadeSnapshot, Namespace,
    NetworkPolicy, Page, ProviderError, Result, Retention, Route, Run, RunRef, Sandbox, SandboxKey,
    SandboxProvider, SandboxView, Snapshot, SnapshotRequest, SnapshotTree, Source, StdinSource, StopReason,
    Stopped, TerminalOutput, TerminalSize, TerminalStream, UpdateSandbox,
};
use dormouse_types::{CommandId, SnapshotId};
use dormouse_wire as wire;
use futures::StreamExt as _;
use reqwest::Method;
use reqwest::header::{self, HeaderMap, HeaderValue};

use crate::follow::Followed;
use crate::transport::{Call, late};
use crate::{Vercel, creation, replies, requests};

/// Between two looks at a run that is ending.
const POLL: Duration = Duration::from_millis(500);

/// Longest that a body may take either way.
const TRANSFER: Duration = Duration::from_secs(3600);

/// Longest silence in the middle of a file.
const SILENCE: Duration = Duration::from_secs(120);

fn run_path(run: &RunRef, rest: &str) -> String {
    format!("/v2/sandboxes/sessions/{}{rest}", run.id)
}

fn of_run(run: &RunRef) -> String {
    format!("run {}", run.id)
}

impl Vercel {
    fn project(&self, call: Call, parameter: &'static str) -> Call {
        match &self.project {
            Some(project) => call.query(parameter, project),
            None => call,
        }
    }

    fn named(&self, key: &SandboxKey, rest: &str) -> Call {
        // Names have no character that a path would change.
        let call = Call::get(format!("/v2/sandboxes/{}{rest}", key.name), format!("sandbox {}", key.name));
        self.project(call, "projectId")
    }

    /// The call that looks at a sandbox; only `resume` wakes it.
    pub(crate) fn lookup(&self, key: &SandboxKey, resume: bool) -> Call {
        let call = self.named(key, "").query("resume", if resume { "true" } else { "false" });
        if resume { call.patient() } else { call }
    }

    pub(crate) fn deletion(&self, key: &SandboxKey, with_snapshots: bool) -> Call {
        let call = self.named(key, "").method(Method::DELETE).patient();
        if with_snapshots { call.query("deleteOrphanSnapshots", "true") } else { call }
    }

    fn listing(&self, path: &str, list: ListOf) -> Call {
        let mut call = self.project(Call::get(path, "a list"), "project");
        call = paged(call, &list.page).query("sortOrder", requests::order(list.order));
        match list.sandbox {
            Some(name) => call.query("name", name),
            None => call,
        }
    }

    fn followed(&self, run: &RunRef, limit: Option<Duration>) -> Followed {
        Followed { transport: self.transport.clone(), run: run.id.clone(), limit }
    }

    async fn session(&self, run: &RunRef) -> Result<wire::SessionReply> {
        self.transport.json(&Call::get(run_path(run, ""), of_run(run))).await
    }

    /// The other side must know standard input, which is ours alone: one that
    /// does not would run the command without.
    async fn check_stdin(&self, run: &RunRef, spec: &CommandSpec) -> Result<()> {
        if spec.stdin == StdinSource::Stream && !self.session(run).await?.session.stdin {
            return Err(ProviderError::Invalid(
                "this sandbox provider cannot pass standard input to commands".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Copies of a run that goes on are ours alone: a server that does not know
/// them would stop it, or copy something else.
fn check_live(session: &wire::Session) -> Result<()> {
    if session.live {
        return Ok(());
    }
    Err(ProviderError::Invalid(
        "this sandbox provider cannot copy the files of a sandbox that goes on".to_owned(),
    ))
}

fn paged(call: Call, page: &Page) -> Call {
    let call = call.query("limit", page.limit.to_string());
    match &page.cursor {
        Some(cursor) => call.query("cursor", cursor),
        None => call,
    }
}

#[async_trait]
impl SandboxProvider for Vercel {
    async fn create(&self, request: CreateSandbox) -> Result<SandboxView> {
        let key = request.key;
        let clones = match &request.source {
            Some(Source::Git(git)) => Some(git.directory),
            _ => None,
        };
        let (runtime, image) = match request.environment {
            Environment::Default => (self.runtime.clone(), None),
            Environment::Image(image) => (None, Some(image)),
            Environment::Runtime(runtime) => (Some(runtime), None),
        };
        // Clients name a runtime to version 2 only, and where a clone goes
        // depends on the version (provider contract, sections 2 and 3).
        let version = match clones {
            Some(dormouse_provider::CloneDirectory::Workdir) => "v2",
            Some(dormouse_provider::CloneDirectory::Named) => "v3",
            None if runtime.is_some() => "v2",
            None => "v3",
        };
        // What nobody limits is kept: the other side's own default is days.
        let forever = (request.retention == Retention::Current).then_some(Expiration::Never);
        let mut tags = request.tags;
        let mark = creation::mark(&mut tags)?;
        let body = wire::CreateRequest {
            project_id: self.project.clone(),
            name: Some(key.name.to_string()),
            ports: Some(request.ports),
            source: request.source.as_ref().map(requests::source),
            timeout: request.timeout.map(requests::millis),
            resources: request.resources.map(requests::resources),
            runtime,
            image,
            persistent: Some(request.persistent),
            network_policy: Some(requests::policy(&request.network)?),
            env: (!request.env.is_empty()).then_some(request.env),
            tags: (!tags.is_empty()).then_some(tags),
            snapshot_expiration: request.snapshot_expiration.or(forever).map(requests::expiration),
            keep_last_snapshots: requests::retention(request.retention),
            ephemeral: request.ephemeral,
            ..wire::CreateRequest::default()
        };
        let call =
            Call::post(format!("/{version}/sandboxes"), format!("sandbox {}", key.name)).json(&body)?;
        self.make(call, &key, mark).await
    }

    async fn get(&self, key: &SandboxKey) -> Result<SandboxView> {
        replies::found(self.transport.json(&self.lookup(key, false)).await?)
    }

    async fn resume(&self, key: &SandboxKey) -> Result<SandboxView> {
        replies::found(self.transport.json(&self.lookup(key, true)).await?)
    }

    async fn list(&self, _: &Namespace, list: ListSandboxes) -> Result<(Vec<Sandbox>, Option<String>)> {
        let mut call = self.project(Call::get("/v2/sandboxes", "the list of sandboxes"), "project");
        call = paged(call, &list.page)
            .query("sortBy", requests::sort(list.sort))
            .query("sortOrder", requests::order(list.order));
        if let Some(prefix) = list.name_prefix {
            call = call.query("namePrefix", prefix);
        }
        for (key, value) in list.tags {
            call = call.query("tags", format!("{key}:{value}"));
        }
        let page: wire::SandboxList = self.transport.json(&call).await?;
        let sandboxes = page.sandboxes.into_iter().map(replies::sandbox).collect::<Result<_>>()?;
        Ok((sandboxes, page.pagination.next))
    }

    async fn update(&self, key: &SandboxKey, changes: UpdateSandbox) -> Result<SandboxView> {
        let body = requests::changes(changes)?;
        let call = self.named(key, "").method(Method::PATCH).json(&body)?;
        self.transport.json::<wire::ChangeReply>(&call).await?;
        self.get(key).await
    }

    async fn fork(&self, request: ForkSandbox) -> Result<SandboxView> {
        let key = request.key;
        let source = SandboxKey { namespace: key.namespace.clone(), name: request.source };
        if request.live {
            let found: wire::SandboxReply = self.transport.json(&self.lookup(&source, false)).await?;
            check_live(&found.session)?;
        }
        let mut changes = request.changes;
        // Labels are copied whole or not at all, and ours must be a new one.
        let mut tags = match changes.tags.take() {
            Some(tags) => tags,
            None => self.get(&source).await?.sandbox.tags,
        };
        let mark = creation::mark(&mut tags)?;
        changes.tags = Some(tags);
        let body = wire::ForkRequest {
            name: Some(key.name.to_string()),
            env: request.env,
            live: request.live,
            changes: requests::changes(changes)?,
            ..wire::ForkRequest::default()
        };
        self.make(self.named(&source, "/fork").json(&body)?, &key, mark).await
    }

    async fn delete(&self, key: &SandboxKey, with_snapshots: bool) -> Result<Sandbox> {
        let reply: wire::ChangeReply = self.transport.json(&self.deletion(key, with_snapshots)).await?;
        replies::sandbox(reply.sandbox)
    }

    async fn run(&self, run: &RunRef) -> Result<Run> {
        replies::run(self.session(run).await?.session, None)
    }

    async fn routes(&self, run: &RunRef) -> Result<Vec<Route>> {
        Ok(replies::routes(self.session(run).await?.routes))
    }

    async fn runs(&self, _: &Namespace, list: ListOf) -> Result<(Vec<Run>, Option<String>)> {
        let of = list.sandbox.clone();
        let call = self.listing("/v2/sandboxes/sessions", list);
        let page: wire::SessionList = self.transport.json(&call).await?;
        let runs = page.sessions.into_iter().map(|session| replies::run(session, of.as_deref()));
        Ok((runs.collect::<Result<_>>()?, page.pagination.next))
    }

    async fn stop(&self, run: &RunRef, _reason: StopReason) -> Result<Stopped> {
        // Ending what has ended changes nothing, so it may be said again.
        let call = Call::post(run_path(run, "/stop"), of_run(run)).idempotent().patient();
        let reply: wire::StopReply = self.transport.json(&call).await?;
        let name = reply.sandbox.as_ref().map(|sandbox| sandbox.name.clone());
        let mut stopped = Stopped {
            run: replies::run(reply.session, name.as_deref())?,
            sandbox: reply.sandbox.map(replies::sandbox).transpose()?,
            snapshot: reply.snapshot.map(replies::snapshot).transpose()?,
        };
        // Older servers answer while it goes on.
        let deadline = Instant::now() + self.long_timeout;
        while !stopped.run.status.is_ended() {
            if Instant::now() > deadline {
                return Err(late(&of_run(run)));
            }
            tokio::time::sleep(POLL).await;
            stopped.run = self.run(run).await?;
        }
        Ok(stopped)
    }

    async fn snapshot(&self, run: &RunRef, request: SnapshotRequest) -> Result<MadeSnapshot> {
        if request.live {
            check_live(&self.session(run).await?.session)?;
        }
        let expiration = request.expiration.map(requests::expiration);
        let body = wire::SnapshotRequest { expiration, live: request.live };
        let call = Call::post(run_path(run, "/snapshot"), of_run(run)).json(&body)?.patient();
        let reply: wire::MadeSnapshotReply = self.transport.json(&call).await?;
        Ok(MadeSnapshot {
            snapshot: replies::snapshot(reply.snapshot)?,
            run: replies::run(reply.session, None)?,
            stall: reply.stall_micros.map(Duration::from_micros),
        })
    }

    async fn snapshots(&self, _: &Namespace, list: ListOf) -> Result<(Vec<Snapshot>, Option<String>)> {
        let call = self.listing("/v2/sandboxes/snapshots", list);
        let page: wire::SnapshotList = self.transport.json(&call).await?;
        Ok((replies::snapshots(page.snapshots)?, page.pagination.next))
    }

    async fn get_snapshot(&self, _: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        let call = Call::get(format!("/v2/sandboxes/snapshots/{id}"), format!("snapshot {id}"));
        replies::snapshot(self.transport.json::<wire::SnapshotReply>(&call).await?.snapshot)
    }

    async fn delete_snapshot(&self, _: &Namespace, id: &SnapshotId) -> Result<Snapshot> {
        let call = Call::get(format!("/v2/sandboxes/snapshots/{id}"), format!("snapshot {id}"));
        let reply: wire::SnapshotReply = self.transport.json(&call.method(Method::DELETE)).await?;
        replies::snapshot(reply.snapshot)
    }

    async fn snapshot_tree(
        &self,
        _: &Namespace,
        id: &SnapshotId,
        order: Direction,
        limit: u32,
    ) -> Result<SnapshotTree> {
        let call = Call::get("/v2/sandboxes/snapshots/tree", format!("snapshot {id}"))
            .query("snapshotId", id.to_string())
            .query("limit", limit.to_string())
            .query("sortOrder", requests::order(order));
        replies::tree(self.transport.json(&self.project(call, "project")).await?)
    }

    async fn set_network_policy(&self, run: &RunRef, policy: NetworkPolicy) -> Result<Run> {
        let call = Call::post(run_path(run, "/network-policy"), of_run(run));
        // The same policy twice is the same policy.
        let call = call.json(&requests::policy(&policy)?)?.idempotent();
        let session = self.transport.json::<wire::SessionReply>(&call).await?.session;
        // There the sandbox is told apart from its session: without this the
        // next run would start with the policy of before.
        if let Some(name) = session.source_sandbox_name.as_ref().and_then(|name| name.parse().ok()) {
            let key = SandboxKey { namespace: run.namespace.clone(), name };
            let changes = UpdateSandbox { network: Some(policy), ..UpdateSandbox::default() };
            let call = self.named(&key, "").method(Method::PATCH).json(&requests::changes(changes)?)?;
            self.transport.json::<wire::ChangeReply>(&call).await?;
        }
        replies::run(session, None)
    }

    async fn terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        self.open_terminal(run, spec, size, input).await
    }

    async fn extend(&self, run: &RunRef, by: Duration) -> Result<Run> {
        let body = wire::ExtendRequest { duration: requests::millis(by) };
        let call = Call::post(run_path(run, "/extend-timeout"), of_run(run)).json(&body)?;
        replies::run(self.transport.json::<wire::SessionReply>(&call).await?.session, None)
    }

    /// The other side names the command: the id in the answer counts, and a
    /// start with an unknown outcome is not repeated.
    async fn start(&self, run: &RunRef, _: CommandId, spec: CommandSpec) -> Result<Command> {
        self.check_stdin(run, &spec).await?;
        let call = Call::post(run_path(run, "/cmd"), of_run(run)).json(&requests::command(&spec)?)?;
        let reply: wire::CommandReply = self.transport.json(&call).await?;
        replies::command(reply.command, spec.timeout)
    }

    async fn command(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        self.followed(run, None).command(id, false).await
    }

    async fn commands(&self, run: &RunRef) -> Result<Vec<Command>> {
        let call = Call::get(run_path(run, "/cmd"), of_run(run));
        let reply: wire::CommandList = self.transport.json(&call).await?;
        reply.commands.into_iter().map(|command| replies::command(command, None)).collect()
    }

    async fn wait(&self, run: &RunRef, id: &CommandId) -> Result<Command> {
        self.followed(run, None).exited(id).await
    }

    async fn logs(&self, run: &RunRef, id: &CommandId) -> Result<BoxStream<LogEvent>> {
        let followed = self.followed(run, None);
        let call = Call::get(followed.path(id, "/logs"), format!("command {id}")).patient();
        let answer = self.transport.stream(&call).await?;
        Ok(followed.after_logs(id.clone(), answer))
    }

    async fn exec(&self, run: &RunRef, _: CommandId, spec: CommandSpec) -> Result<BoxStream<LogEvent>> {
        self.check_stdin(run, &spec).await?;
        let body = wire::CommandRequest { wait: true, logs: true, ..requests::command(&spec)? };
        let call = Call::post(run_path(run, "/cmd"), of_run(run)).json(&body)?.patient();
        let answer = self.transport.stream(&call).await?;
        Ok(self.followed(run, spec.timeout).after_start(answer))
    }

    async fn stdin(&self, run: &RunRef, id: &CommandId, body: BodyStream) -> Result<()> {
        let path = self.followed(run, None).path(id, "/stdin");
        let call = Call::post(path, format!("command {id}"));
        let kind = HeaderValue::from_static("application/octet-stream");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        self.transport.upload(&call, headers, reqwest::Body::wrap_stream(body), TRANSFER).await
    }

    async fn drives(&self, _: &Namespace, list: ListDrives) -> Result<(Vec<Drive>, Option<String>)> {
        let sort = match list.sort {
            DriveSort::CreatedAt => "createdAt",
            DriveSort::UpdatedAt => "updatedAt",
            DriveSort::Name => "name",
        };
        let order = if list.order == Direction::Ascending { "asc" } else { "desc" };
        let mut call = Call::get("/v2/sandboxes/drives".to_owned(), "drives".to_owned())
            .query("sortBy", sort)
            .query("sortOrder", order)
            .query("limit", list.page.limit.to_string());
        if let Some(cursor) = list.page.cursor {
            call = call.query("cursor", cursor);
        }
        if let Some(prefix) = list.name_prefix {
            call = call.query("namePrefix", prefix);
        }
        let reply: wire::DriveList = self.transport.json(&call).await?;
        let drives = reply.drives.into_iter().map(replies::drive).collect::<Result<_>>()?;
        Ok((drives, reply.pagination.next))
    }

    /// The protocol's own clients find one in the list.
    async fn drive(&self, namespace: &Namespace, name: &str) -> Result<Drive> {
        let list = ListDrives {
            page: Page { limit: 50, cursor: None },
            sort: DriveSort::Name,
            order: Direction::Ascending,
            name_prefix: Some(name.to_owned()),
        };
        let found = self.drives(namespace, list).await?.0.into_iter().find(|drive| drive.name == name);
        found.ok_or_else(|| ProviderError::NotFound(format!("drive {name}")))
    }

    /// Whether it was there the answer does not say.
    async fn get_or_create_drive(
        &self,
        _: &Namespace,
        name: &str,
        max_size: Option<u64>,
    ) -> Result<(Drive, bool)> {
        let body = wire::DriveRequest { max_size_bytes: max_size, ..wire::DriveRequest::default() };
        let call = Call::post(format!("/v2/sandboxes/drives/{name}"), format!("drive {name}")).json(&body)?;
        let reply: wire::DriveReply = self.transport.json(&call).await?;
        Ok((replies::drive(reply.drive)?, false))
    }

    async fn fork_drive(&self, _: &Namespace, from: &str, name: &str) -> Result<Drive> {
        let body = wire::DriveForkRequest { name: name.to_owned() };
        let call =
            Call::post(format!("/v2/sandboxes/drives/{from}/fork"), format!("drive {from}")).json(&body)?;
        replies::drive(self.transport.json::<wire::DriveReply>(&call).await?.drive)
    }

    async fn delete_drive(&self, _: &Namespace, name: &str) -> Result<Drive> {
        let call = Call::post(format!("/v2/sandboxes/drives/{name}"), format!("drive {name}"))
            .method(Method::DELETE);
        replies::drive(self.transport.json::<wire::DriveReply>(&call).await?.drive)
    }

    async fn input(&self, run: &RunRef, id: &CommandId, input: Input) -> Result<u64> {
        let path = self.followed(run, None).path(id, "/stdin");
        let Input { data, offset, close } = input;
        let body = wire::InputRequest { data: BASE64_STANDARD.encode(&data), offset, close };
        let call = Call::post(path, format!("command {id}")).json(&body)?;
        let reply: wire::InputReply = self.transport.json(&call).await?;
        let silent = || ProviderError::internal("feed a command", "the answer has no bytesWritten");
        reply.bytes_written.ok_or_else(silent)
    }

    async fn kill(&self, run: &RunRef, id: &CommandId, signal: i32, tree: bool) -> Result<Command> {
        if tree && !self.session(run).await?.session.stdin {
            return Err(ProviderError::Invalid(
                "this sandbox provider sends signals to process groups only".to_owned(),
            ));
        }
        let path = self.followed(run, None).path(id, "/kill");
        let call = Call::post(path, format!("command {id}")).json(&wire::KillRequest { signal, tree })?;
        replies::command(self.transport.json::<wire::CommandReply>(&call).await?.command, None)
    }

    async fn write_files(&self, run: &RunRef, cwd: &str, gzip: bool, body: BodyStream) -> Result<()> {
        let cwd = HeaderValue::from_str(cwd).map_err(|_| {
            ProviderError::Invalid("cwd: it has characters that no header can carry".to_owned())
        })?;
        let mut headers = HeaderMap::new();
        headers.insert("x-cwd", cwd);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
        let body = if gzip { body } else { packed(body) };
        let call = Call::post(run_path(run, "/fs/write"), of_run(run));
        self.transport.upload(&call, headers, reqwest::Body::wrap_stream(body), TRANSFER).await
    }

    async fn read_file(&self, run: &RunRef, path: &str, cwd: Option<&str>) -> Result<BoxStream<Bytes>> {
        let body = wire::PathRequest { path: path.to_owned(), cwd: cwd.map(str::to_owned), recursive: None };
        // It only reads, whatever its method.
        let call = Call::post(run_path(run, "/fs/read"), format!("file {path}")).json(&body)?.idempotent();
        let content = self.transport.stream(&call).await?.bytes_stream();
        let content = tokio_stream::StreamExt::timeout(content, SILENCE).map(|chunk| match chunk {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(ProviderError::internal("read a file", crate::transport::describe(&error))),
            Err(_) => Err(late("the rest of a file")),
        });
        Ok(Box::pin(content))
    }

    async fn mkdir(&self, run: &RunRef, path: &str, cwd: Option<&str>, recursive: bool) -> Result<()> {
        let body = wire::PathRequest {
            path: path.to_owned(),
            cwd: cwd.map(str::to_owned),
            recursive: Some(recursive),
        };
        let call = Call::post(run_path(run, "/fs/mkdir"), format!("the parent of {path}")).json(&body)?;
        // With parents, what exists is no error.
        let call = if recursive { call.idempotent() } else { call };
        self.transport.json::<serde_json::Value>(&call).await.map(drop)
    }
}

/// The same, compressed: the protocol takes nothing else.
fn packed(body: BodyStream) -> BodyStream {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    Box::pin(futures::stream::unfold((body, Some(encoder)), |(mut body, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            let chunk = match body.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Some((Err(error), (body, None))),
                None => return Some((encoder.finish().map(Bytes::from), (body, None))),
            };
            if let Err(error) = encoder.write_all(&chunk) {
                return Some((Err(error), (body, None)));
            }
            let ready = std::mem::take(encoder.get_mut());
            if !ready.is_empty() {
                return Some((Ok(Bytes::from(ready)), (body, Some(encoder))));
            }
        }
    }))
}
