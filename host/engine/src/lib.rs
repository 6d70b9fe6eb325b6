//! The engine: WebAssembly components as plugins for tasks and batches, compiled apart, held to a budget, and classified once.
//!
//! [`Engine`] is the [`Runner`] of a host. What it promises:
//! - A guest reaches nothing but what its world imports, and every such call passes one gate.
//! - A guest ends inside its fuel, memory, stack, handles, host calls and wall clock, with the limit's own code.
//! - A component is compiled only in a child process with limits of its own, and machine code is believed only with a
//!   MAC under the cluster key.
//! - [`Runner::run`] never fails and never panics.
//!
//! - A component that needs the concurrent profile runs on an engine of its own, and only for tenants that may have that.
//!
//! It does not retry, keep accounts over attempts, or know tenants. Threads: one for the epoch of each engine. Processes: one
//! per compilation, a few at once. Compiling needs a tokio runtime with I/O and time, running one with time; what takes
//! long beside them goes to that runtime's blocking threads.

mod adapt;
mod artifact;
mod attempt;
mod bindings;
mod compile;
#[doc(hidden)]
pub mod config;
mod console;
mod epoch;
mod exceeded;
mod export;
mod flight;
mod gate;
mod import;
mod inspect;
mod install;
mod kept;
mod key;
mod limiter;
mod machine;
mod need;
mod places;
mod registry;
mod scan;
mod section;
mod share;
mod state;
mod symbols;
mod weight;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::VersionId;
use keiko_core::code::Code;
use keiko_core::id::Digest;
use keiko_core::limit::{COMPONENT_BYTES_CEILING, COMPONENT_BYTES_MAX, LimitFact, SetBy};
use keiko_core::outcome::{AttemptReport, Failure};
use keiko_core::port::{
    Attempt, BatchReport, BatchRun, Compiled, Components, HostPort, InstallError, Runner, Stage,
};
use keiko_core::profile::{Profile, Profiles};
use keiko_core::stop::Stop;
use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;

use crate::artifact::{Artifacts, Made};
use crate::attempt::Home;
use crate::compile::{Compilers, internal};
use crate::flight::Flights;
use crate::machine::Machines;
use crate::registry::{Generation, Registry, Tasks};
use crate::scan::Scanned;
use crate::symbols::Library;

pub use compile::{ChildLimits, Compiler, compile_child, compile_child_within};
pub use inspect::{Imported, Inspection, Need, Producer, Sizes, World, inspect};
pub use key::{ClusterKey, KeyError};
pub use places::Places;

/// WebAssembly's page, in which memories are measured.
const PAGE_BYTES: u64 = 65_536;

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Folder of compiled artifacts, writable by the host only; made when it is missing.
    pub artifacts_dir: PathBuf,
    /// What authenticates artifacts.
    pub cluster_key: ClusterKey,
    /// How to start the compile child.
    pub compiler: Compiler,
    /// Attempts that run at once; sizes the pool of instances.
    pub running_max: usize,
}

/// What an engine has and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Components that are loaded for attempts to come.
    pub loaded: usize,
    /// Components in memory: those, and what swaps left behind and attempts still run on.
    pub held: usize,
    /// Artifacts that were altered, foreign or stale, since the start.
    pub artifacts_refused: u64,
    /// Artifacts that another host of the database had made, since the start.
    pub artifacts_received: u64,
    /// Instances that are kept for their next attempt.
    pub kept: usize,
    /// Attempts that ran on a kept instance, since the start.
    pub reused: u64,
    /// Attempts that wanted one and ran on a fresh one, since the start.
    pub fresh: u64,
    /// Kept instances whose `reset` failed, since the start.
    pub resets_failed: u64,
    /// Whether the engine of the concurrent profile was made: some component needed it.
    pub concurrent: bool,
    /// Readings of debug information for the lines of backtraces, since the start.
    pub symbol_readings: u64,
}

/// Compiles, loads and runs components. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    machines: Machines,
    components: Arc<dyn Components>,
    library: Arc<Library>,
    artifacts: Artifacts,
    /// How many of them other hosts had made.
    received: AtomicU64,
    compilers: Compilers,
    registry: Registry,
    /// One loading of a component at a time.
    flights: Flights,
}

impl Engine {
    /// An engine over the host's kept components.
    pub fn new(options: EngineOptions, components: Arc<dyn Components>) -> Result<Engine, InstallError> {
        let machines = Machines::new(options.running_max)?;
        let artifacts = Artifacts::open(options.artifacts_dir, options.cluster_key)
            .map_err(|error| internal(format!("the folder of artifacts cannot be used: {error}")))?;
        let settings = [machines.settings(Profile::Strict)?, machines.settings(Profile::Concurrent)?];
        artifacts
            .sweep(&settings)
            .map_err(|error| internal(format!("the folder of artifacts cannot be swept: {error}")))?;
        let ticked = machines.strict().engine.clone();
        let engine = Engine(Arc::new(Inner {
            machines,
            library: Library::new(components.clone()),
            components,
            artifacts,
            received: AtomicU64::new(0),
            compilers: Compilers::new(options.compiler),
            registry: Registry::default(),
            flights: Flights::default(),
        }));
        let inner = Arc::downgrade(&engine.0);
        let sweep = move || {
            if let Some(inner) = inner.upgrade() {
                inner.registry.pool.sweep();
            }
        };
        epoch::start(&ticked, sweep).map_err(|error| internal(format!("no epoch thread: {error}")))?;
        Ok(engine)
    }

    /// What it has and did.
    pub fn counts(&self) -> EngineCounts {
        let pool = &self.0.registry.pool;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineCounts {
            kept: pool.len(),
            reused: read(&pool.reused),
            fresh: read(&pool.fresh),
            resets_failed: read(&pool.resets_failed),
            loaded: self.0.registry.len(),
            held: self.0.registry.held(),
            artifacts_refused: self.0.artifacts.refused(),
            artifacts_received: read(&self.0.received),
            concurrent: self.0.machines.is_concurrent(),
            symbol_readings: self.0.library.readings(),
        }
    }

    /// What the pool of each profile holds now.
    pub fn places(&self) -> Vec<Places> {
        Profile::ALL.iter().map(|&profile| self.0.machines.places(profile)).collect()
    }

    /// The component of an artifact that is on disk and believed, with the artifact's size.
    async fn kept(&self, digest: Digest, profile: Profile) -> Result<Option<(Component, u64)>, InstallError> {
        let inner = self.0.clone();
        apart(move || {
            let (machine, settings) = (inner.machines.of(profile)?, inner.machines.settings(profile)?);
            let artifact = inner.artifacts.read(digest, settings).unwrap_or_else(|error| {
                tracing::warn!(error = %error, "an artifact could not be read");
                None
            });
            let Some(artifact) = artifact else { return Ok(None) };
            let bytes = artifact.len();
            match artifact.load(&machine.engine) {
                Ok(component) => Ok(Some((component, bytes))),
                Err(error) => {
                    // Ours by its MAC and still not loadable: made by another build under the same settings.
                    tracing::warn!(error = %format!("{error:#}"), "an artifact does not load");
                    inner.artifacts.refuse(digest, settings);
                    Ok(None)
                }
            }
        })
        .await?
    }

    /// Compiles a component in the child and keeps the artifact.
    async fn make(&self, bytes: Bytes, digest: Digest, profile: Profile) -> Result<Ready, InstallError> {
        let (artifact, compile_ms) = self.0.compilers.compile(bytes).await?;
        let inner = self.0.clone();
        let kept = apart(move || inner.keep(digest, profile, &artifact)).await.flatten();
        let (component, artifact_bytes) = kept.map_err(|error| InstallError { compile_ms, ..error })?;
        Ok(Ready { component, artifact_bytes, compile_ms })
    }

    /// The component of its artifact, of this host or another one, or else compiled.
    async fn kept_or_made(
        &self,
        bytes: Bytes,
        digest: Digest,
        profile: Profile,
    ) -> Result<Ready, InstallError> {
        let of_others = async || {
            if self.receive(digest, profile).await { self.kept(digest, profile).await } else { Ok(None) }
        };
        let kept = match self.kept(digest, profile).await? {
            Some(kept) => Some(kept),
            None => of_others().await?,
        };
        match kept {
            Some((component, artifact_bytes)) => Ok(Ready { component, artifact_bytes, compile_ms: 0 }),
            None => self.make(bytes, digest, profile).await,
        }
    }
}

/// A component whose machine code is there.
struct Ready {
    component: Component,
    artifact_bytes: u64,
    /// Milliseconds that the compiler took just now; 0 when it was there.
    compile_ms: u64,
}

impl Inner {
    /// The generation of a component that has everything it needs and starts.
    async fn prove(
        &self,
        component: &Component,
        digest: Digest,
        scanned: &Scanned,
    ) -> Result<Generation, InstallError> {
        install::check_resources(component)?;
        let generation = self.link(component, digest, scanned.profile())?;
        install::try_out(&generation, scanned.manifest.as_ref()).await?;
        Ok(generation)
    }

    fn link(
        &self,
        component: &Component,
        digest: Digest,
        profile: Profile,
    ) -> Result<Generation, InstallError> {
        let linked = install::link(&self.machines.of(profile)?.linker, component)?;
        Ok(self.registry.generation(linked, profile, self.library.of(digest)))
    }

    fn keep(
        &self,
        digest: Digest,
        profile: Profile,
        artifact: &Made,
    ) -> Result<(Component, u64), InstallError> {
        let component = artifact.load(&self.machines.of(profile)?.engine).map_err(|error| {
            let error = format!("{error:#}");
            // What the pool cannot hold is a matter of the component; what else does not load is ours.
            if error.contains("pooling allocator") {
                return install::beyond_pool(error);
            }
            internal(format!("the compiler is of another build than the host: {error}"))
        })?;
        if let Err(error) = self.artifacts.write(digest, self.machines.settings(profile)?, artifact) {
            // Running does not depend on it; the next start compiles again.
            tracing::warn!(error = %error, "an artifact could not be kept");
        }
        Ok((component, artifact.len()))
    }
}

#[async_trait]
impl Runner for Engine {
    async fn compile(
        &self,
        bytes: Bytes,
        component_bytes_max: u64,
        profiles: Profiles,
    ) -> Result<Compiled, InstallError> {
        let at = |stage: Stage| move |error: InstallError| error.at(stage);
        check_size(bytes.len() as u64, component_bytes_max).map_err(at(Stage::Receive))?;
        let scanned = bytes.clone();
        let scan = apart(move || scan::scan(&scanned).map(|found| (digest(&scanned), found)));
        let (digest, scanned) = scan.await?.map_err(at(Stage::Scan))?;
        scanned.check_profile(profiles).map_err(at(Stage::Scan))?;
        let _flight = self.0.flights.board(digest).await;
        let ready = self.kept_or_made(bytes.clone(), digest, scanned.profile()).await;
        let Ready { component, artifact_bytes, compile_ms } = ready.map_err(at(Stage::Compile))?;
        let proved = self.0.prove(&component, digest, &scanned).await;
        let refused = |error: InstallError| InstallError { compile_ms, ..error.at(Stage::Instantiate) };
        let generation = proved.map_err(refused)?;
        if compile_ms > 0 {
            generation.made_here();
        }
        let is_program = matches!(generation.tasks, Some(Tasks::Program(_)));
        let (runs_tasks, works_batches) = (generation.tasks.is_some(), generation.batch.is_some());
        self.0.registry.insert(generation);
        Ok(Compiled {
            digest,
            component_bytes: bytes.len() as u64,
            artifact_bytes,
            compile_ms,
            profile: scanned.profile(),
            manifest: scanned.manifest,
            imports: install::imports(&component),
            is_program,
            runs_tasks,
            works_batches,
        })
    }

    async fn load(&self, digest: Digest, profiles: Profiles) -> Result<(), InstallError> {
        let _flight = self.0.flights.board(digest).await;
        match self.0.registry.get(digest) {
            // It was loaded for a tenant that may have it.
            Some(generation) => permitted(generation.profile, profiles),
            None => self.loaded(digest, profiles).await.map(|generation| self.0.registry.insert(generation)),
        }
    }

    async fn share(&self, digest: Digest) {
        if let Some(generation) = self.0.registry.get(digest)
            && generation.take_unshared()
        {
            self.hand_over(digest, generation.profile).await;
        }
    }

    async fn profile(&self, digest: Digest) -> Result<Profile, InstallError> {
        if let Some(generation) = self.0.registry.get(digest) {
            return Ok(generation.profile);
        }
        match self.named(digest).await? {
            Some(profile) => Ok(profile),
            None => self.needed(digest).await.map(|(profile, _)| profile),
        }
    }

    async fn run(&self, attempt: Attempt, port: Arc<dyn HostPort>, stop: Stop) -> AttemptReport {
        match self.generation(attempt.digest).await {
            Ok(generation) => self.home(&generation).run(attempt, port, stop).await,
            Err(failure) => attempt::refused(failure),
        }
    }

    async fn process(
        &self,
        attempt: Attempt,
        batch: BatchRun,
        port: Arc<dyn HostPort>,
        stop: Stop,
    ) -> BatchReport {
        match self.generation(attempt.digest).await {
            Ok(generation) => self.home(&generation).process(attempt, batch, port, stop).await,
            Err(failure) => attempt::unworked(failure),
        }
    }

    fn retain(&self, components: &[Digest], versions: &[VersionId]) {
        self.0.registry.retain(components, versions);
    }

    async fn forget(&self, kept: &[Digest], before_ms: i64) {
        let kept: HashSet<String> = kept.iter().map(Digest::hex).collect();
        let before = UNIX_EPOCH + Duration::from_millis(before_ms.max(0).cast_unsigned());
        let inner = Arc::clone(&self.0);
        match apart(move || inner.artifacts.forget(&kept, before)).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(count)) => {
                tracing::info!(items = count, "artifacts of components that are not kept were removed");
            }
            Ok(Err(error)) => tracing::warn!(error = %error, "an artifact could not be removed"),
        }
    }
}

impl Engine {
    fn home<'a>(&'a self, generation: &'a Generation) -> Home<'a> {
        Home { generation, pool: &self.0.registry.pool }
    }

    /// The generation that a run of this component is of. One that was swapped out between the choice of the run's version
    /// and now is loaded for it alone: the run keeps its choice.
    async fn generation(&self, digest: Digest) -> Result<Arc<Generation>, Failure> {
        if let Some(generation) = self.0.registry.get(digest) {
            return Ok(generation);
        }
        self.loaded(digest, Profiles::ALL).await.map(Arc::new).map_err(|error| {
            Failure::new(error.code, format!("the component is not loaded on this host: {error}"))
        })
    }

    /// A generation of a component that was installed before, from its artifact or, without one, from its kept bytes.
    async fn loaded(&self, digest: Digest, profiles: Profiles) -> Result<Generation, InstallError> {
        // Its bytes say which profile it needs; a name only where to look first.
        if let Some(profile) = self.named(digest).await?
            && profiles.permit(profile)
            && let Some((component, _)) = self.kept(digest, profile).await?
        {
            return self.0.link(&component, digest, profile);
        }
        let (profile, bytes) = self.needed(digest).await?;
        permitted(profile, profiles)?;
        let ready = self.kept_or_made(bytes, digest, profile).await?;
        let generation = self.0.link(&ready.component, digest, profile)?;
        if ready.compile_ms > 0 {
            self.hand_over(digest, profile).await;
        }
        Ok(generation)
    }

    /// The profile under which there is something that has the name of a component's artifact.
    async fn named(&self, digest: Digest) -> Result<Option<Profile>, InstallError> {
        let inner = self.0.clone();
        apart(move || {
            for &profile in Profile::ALL {
                if inner.artifacts.has(digest, inner.machines.settings(profile)?) {
                    return Ok(Some(profile));
                }
            }
            Ok(None)
        })
        .await?
    }

    /// The profile that a component needs by its kept bytes, and these.
    async fn needed(&self, digest: Digest) -> Result<(Profile, Bytes), InstallError> {
        let bytes = self.bytes(digest).await?;
        let looked_at = bytes.clone();
        let profile = apart(move || need::profile(&looked_at)).await?;
        Ok((profile, bytes))
    }

    /// The kept bytes of a component, which must be the bytes that were kept.
    async fn bytes(&self, wanted: Digest) -> Result<Bytes, InstallError> {
        let kept = self.0.components.get(wanted).await;
        let unread = format!("the component {wanted} cannot be read");
        let kept = kept.map_err(|error| InstallError::new(error.code(), unread))?;
        let integrity = |message| InstallError::new(Code::Integrity, message);
        let bytes = kept.ok_or_else(|| integrity(format!("the component {wanted} is not kept")))?;
        let hashed = bytes.clone();
        if apart(move || digest(&hashed)).await? != wanted {
            return Err(integrity(format!("the bytes kept as {wanted} are others")));
        }
        Ok(bytes)
    }
}

fn permitted(profile: Profile, profiles: Profiles) -> Result<(), InstallError> {
    profiles.permit(profile).then_some(()).ok_or_else(|| InstallError::not_permitted(profile, None))
}

fn check_size(bytes: u64, bytes_max: u64) -> Result<(), InstallError> {
    let limit = bytes_max.min(COMPONENT_BYTES_CEILING);
    if bytes <= limit {
        return Ok(());
    }
    let by_host = limit == COMPONENT_BYTES_MAX || limit == COMPONENT_BYTES_CEILING;
    let set_by = if by_host { SetBy::Host } else { SetBy::Tenant };
    let fact = LimitFact { name: "component_bytes".to_owned(), limit, asked: Some(bytes), set_by };
    let refusal = InstallError::new(Code::QuotaExceeded, format!("the component is too large: {fact}"));
    Err(InstallError { limit: Some(fact), ..refusal })
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Does what takes long, or waits for a disk, on a thread where it holds up nobody.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, InstallError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(error = %error, "the engine panicked beside its attempts");
        internal("the host is at fault: it panicked while it worked on a component")
    })
}
