//! What every provider must do, as a suite that any of them can be put
//! through: the engine in process, a client of a server, a third one. A case
//! uses nothing but the port. It cleans up after itself, pass or fail, and
//! leaves no more than records of deleted snapshots.
//!
//! ```no_run
//! # async fn example(provider: std::sync::Arc<dyn dormouse_provider::SandboxProvider>) {
//! use dormouse_provider::{Namespace, conformance};
//! let suite = conformance::Suite::new(provider, Namespace::default_of("acc_1"));
//! for case in conformance::CASES {
//!     println!("{} {:?}", case.name, suite.run(case).await);
//! }
//! # }
//! ```

mod commands;
mod files;
mod lifecycle;
mod listings;
mod snapshots;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dormouse_types::{CommandId, SandboxName};
use futures::StreamExt as _;

use crate::{
    CommandSpec, CreateSandbox, LogEvent, Namespace, ProviderError, Run, RunRef, SandboxKey, SandboxProvider,
    SandboxView,
};

/// No case takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a provider did not do.
#[derive(Debug)]
pub struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ProviderError> for Failure {
    fn from(error: ProviderError) -> Self {
        Self(format!("unexpected error: {}", error.detail()))
    }
}

type Outcome<T = ()> = Result<T, Failure>;

type CaseFuture<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One thing that a provider must do.
#[derive(Debug)]
pub struct Case {
    /// What it does, in a few words.
    pub name: &'static str,
    run: for<'a> fn(&'a Bench) -> CaseFuture<'a>,
}

/// Fails the case with a message.
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure(format!($($message)+)));
        }
    };
}

/// Fails the case unless an error of this kind came.
macro_rules! check_error {
    ($result:expr, $kind:pat) => {
        match $result {
            Err($kind) => {}
            other => {
                let other = other.map(drop).map_err(|error| error.detail());
                return Err($crate::conformance::Failure(format!(
                    "{}: {}, not {other:?}",
                    stringify!($result),
                    stringify!($kind)
                )));
            }
        }
    };
}

macro_rules! cases {
    ($($module:ident :: { $($name:ident),+ $(,)? })+) => {
        /// The suite, in an order that finds the simplest failure first.
        pub const CASES: &[Case] = &[$($(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            run: |bench| Box::pin($module::$name(bench)),
        }),+),+];
    };
}

use {check, check_error};

cases! {
    lifecycle::{
        a_new_sandbox_takes_commands,
        names_are_taken_and_free_again,
        everything_survives_a_stop,
        files_need_no_snapshot_to_survive,
        looking_does_not_wake,
        two_resumes_give_one_run,
        stop_may_be_said_again,
        what_is_not_persistent_begins_anew,
        a_lifetime_ends_in_a_stop,
        lifetimes_grow_up_to_a_limit,
        deletion_is_legal_in_every_state,
        changes_apply,
        policies_are_reported_and_kept,
    }
    commands::{
        exit_codes,
        output_comes_whole_and_again,
        environment_directory_user,
        time_limits_kill,
        signals_reach_the_group,
        standard_input,
        input_by_offset,
        commands_are_remembered,
        terminals,
    }
    files::{
        written_and_read_back,
        archives_end_and_break,
        missing_and_forbidden,
        directories,
    }
    snapshots::{
        a_snapshot_starts_others,
        a_deleted_snapshot_is_gone_everywhere,
        snapshots_of_others,
        forks,
        the_last_ones_are_kept,
        trees,
        live_copies,
        rollbacks,
    }
    listings::{
        pages_of_sandboxes,
        filters,
        runs_of_a_sandbox,
    }
}

/// A provider that is put through the cases.
#[derive(Debug)]
pub struct Suite {
    provider: Arc<dyn SandboxProvider>,
    namespace: Namespace,
    prefix: String,
    count: AtomicU32,
}

impl Suite {
    /// The cases make sandboxes in `namespace`, whose names begin with
    /// `conformance-`.
    #[must_use]
    pub fn new(provider: Arc<dyn SandboxProvider>, namespace: Namespace) -> Self {
        let unique = SandboxName::generate();
        let unique = unique.as_str().rsplit('-').next().unwrap_or_default();
        let prefix = format!("conformance-{unique}");
        Self { provider, namespace, prefix, count: AtomicU32::new(0) }
    }

    /// Puts the provider through one case.
    ///
    /// # Errors
    /// [`Failure`] says what it did not do.
    pub async fn run(&self, case: &Case) -> Result<(), Failure> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let bench = Bench {
            provider: self.provider.clone(),
            namespace: self.namespace.clone(),
            prefix: format!("{}-{number}", self.prefix),
            made: Mutex::default(),
        };
        let outcome = tokio::time::timeout(PATIENCE, (case.run)(&bench)).await;
        let outcome = outcome
            .unwrap_or_else(|_| Err(Failure(format!("it was not through after {} s", PATIENCE.as_secs()))));
        let cleaned = bench.clean_up().await;
        outcome.and(cleaned)
    }
}

/// Where one case works.
struct Bench {
    provider: Arc<dyn SandboxProvider>,
    namespace: Namespace,
    prefix: String,
    made: Mutex<Vec<SandboxKey>>,
}

/// What a command did.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Bench {
    /// A bench in another project of the same owner.
    fn in_project(&self, project: &str) -> Self {
        Self {
            provider: self.provider.clone(),
            namespace: Namespace::new(self.namespace.owner.clone(), project),
            prefix: self.prefix.clone(),
            made: Mutex::default(),
        }
    }

    /// A key whose sandbox is deleted at the end, if there is one.
    fn key(&self, name: &str) -> SandboxKey {
        // The prefix has nothing that a name may not have, and cases' own words
        // neither.
        let name = format!("{}-{name}", self.prefix).parse().unwrap_or_else(|_| SandboxName::generate());
        let key = SandboxKey { namespace: self.namespace.clone(), name };
        self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(key.clone());
        key
    }

    async fn clean_up(&self) -> Outcome {
        let made: Vec<_> = {
            let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            made.drain(..).collect()
        };
        for key in made {
            match self.provider.delete(&key, true).await {
                Ok(_) | Err(ProviderError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A persistent sandbox with its first run.
    async fn sandbox(&self, name: &str) -> Outcome<SandboxView> {
        self.sandbox_with(name, |_| {}).await
    }

    async fn sandbox_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CreateSandbox) + Send,
    ) -> Outcome<SandboxView> {
        let mut request = CreateSandbox::new(self.key(name));
        request.timeout = Some(Duration::from_secs(600));
        change(&mut request);
        Ok(self.provider.create(request).await?)
    }

    fn run_ref(&self, run: &Run) -> RunRef {
        RunRef { namespace: self.namespace.clone(), id: run.id.clone() }
    }

    fn key_of(&self, found: &SandboxView) -> SandboxKey {
        SandboxKey { namespace: self.namespace.clone(), name: found.sandbox.name.clone() }
    }

    async fn exec(&self, run: &Run, spec: CommandSpec) -> Outcome<Ran> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut events = self.provider.exec(&self.run_ref(run), CommandId::generate(), spec).await?;
        let mut started = false;
        while let Some(event) = events.next().await {
            match event? {
                LogEvent::Started(_) => started = true,
                LogEvent::Lost(bytes) => return Err(Failure(format!("{bytes} bytes of output were lost"))),
                LogEvent::Stdout(data) => stdout.extend_from_slice(&data),
                LogEvent::Stderr(data) => stderr.extend_from_slice(&data),
                LogEvent::Exited(command) => {
                    check!(started, "the exit came before the start");
                    check!(events.next().await.is_none(), "something came after the exit");
                    return Ok(Ran {
                        code: command.exit_code.unwrap_or(-1),
                        stdout: String::from_utf8_lossy(&stdout).into_owned(),
                        stderr: String::from_utf8_lossy(&stderr).into_owned(),
                    });
                }
            }
        }
        Err(Failure("the output ended without an exit".to_owned()))
    }

    async fn sh(&self, run: &Run, script: &str) -> Outcome<Ran> {
        self.exec(run, CommandSpec::new(["sh", "-c", script])).await
    }

    /// What a script that must succeed printed.
    async fn ok(&self, run: &Run, script: &str) -> Outcome<String> {
        let ran = self.sh(run, script).await?;
        check!(ran.code == 0, "{script:?} exited {}: {}{}", ran.code, ran.stdout, ran.stderr);
        Ok(ran.stdout.trim().to_owned())
    }
}
