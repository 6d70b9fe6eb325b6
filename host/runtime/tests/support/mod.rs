//! A runtime over a real SQLite store, with a scripted runner instead of a sandbox and a store that can fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use keiko_core::batch::{ItemOutcome, Wish};
use keiko_core::effect::Effects;
use keiko_core::log::LogBuffer;
use keiko_core::manifest::Manifest;
use keiko_core::outcome::{AttemptReport, Failure, Meter, Outcome, Taint};
use keiko_core::policy::{BudgetRequest, TenantPolicy};
use keiko_core::port::{
    Attempt, BatchOutcome, BatchReport, BatchRun, Beat, Clock, Compiled, Dead, Expired, HostPort, IdBlock,
    InstallError, Lease, LeaseRequest, Pruned, Rescued, Runner, Schedules, StoreError, StoreErrorKind,
    TaskStore,
};
use keiko_core::priority::Priority;
use keiko_core::profile::{Profile, Profiles};
use keiko_core::retention::KeptFrom;
use keiko_core::stop::Stop;
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, Payload, RetryAnswer, Settled, Settlement, Submit, Submitted,
};
use keiko_core::tree::{Branch, Cut};
use keiko_core::{
    Code, Digest, GroupId, Holder, ProcessorName, TaskId, TenantId, TenantName, Token, VersionId,
};
use keiko_runtime::cache::CacheParts;
use keiko_runtime::{Handle, Options, Parts, Runtime, TaskRequest, TenantOptions};
use keiko_store::memory::MemoryStore;
use keiko_store::sqlite::{SqliteOptions, SqliteStore};

/// The plugin `script` with the kinds `a` and `b`.
pub const MANIFEST: &str =
    "[plugin]\nname = \"script\"\nversion = \"1\"\n[[kind]]\nname = \"a\"\n[[kind]]\nname = \"b\"\n";

/// Longest wait of a test for something that must happen.
pub const SOON: Duration = Duration::from_secs(20);

/// What a scripted guest does.
pub type Play = dyn Fn(Attempt, Arc<dyn HostPort>, Stop) -> BoxFuture<'static, AttemptReport> + Send + Sync;

/// What a scripted processor does.
pub type BatchPlay =
    dyn Fn(Attempt, BatchRun, Arc<dyn HostPort>, Stop) -> BoxFuture<'static, BatchReport> + Send + Sync;

/// Runs a script instead of a component. A "component" is its manifest.
pub struct Script(pub Arc<Play>, pub Arc<BatchPlay>);

#[async_trait]
impl Runner for Script {
    async fn compile(
        &self,
        bytes: Bytes,
        _component_bytes_max: u64,
        _profiles: Profiles,
    ) -> Result<Compiled, InstallError> {
        let mut digest = [0; 32];
        let length = bytes.len().min(32);
        digest[..length].copy_from_slice(&bytes[bytes.len() - length..]);
        let text = String::from_utf8_lossy(&bytes);
        let took = text.lines().find_map(|line| line.strip_prefix("# compiled for "));
        let compile_ms = took.map_or(0, |ms| ms.parse().expect("milliseconds"));
        if text.contains("# refused") {
            let error = InstallError::new(Code::ComponentInvalid, "it is refused");
            return Err(InstallError { compile_ms, ..error });
        }
        let manifest = Manifest::parse(&bytes).expect("scripts have good manifests");
        Ok(Compiled {
            digest: Digest(digest),
            component_bytes: bytes.len() as u64,
            artifact_bytes: 0,
            compile_ms,
            profile: Profile::Strict,
            manifest: Some(manifest),
            imports: Vec::new(),
            is_program: false,
            runs_tasks: true,
            works_batches: true,
        })
    }

    async fn load(&self, _digest: Digest, _profiles: Profiles) -> Result<(), InstallError> {
        Ok(())
    }

    async fn profile(&self, _digest: Digest) -> Result<Profile, InstallError> {
        Ok(Profile::Strict)
    }

    async fn run(&self, attempt: Attempt, port: Arc<dyn HostPort>, stop: Stop) -> AttemptReport {
        (self.0)(attempt, port, stop).await
    }

    async fn process(
        &self,
        attempt: Attempt,
        batch: BatchRun,
        port: Arc<dyn HostPort>,
        stop: Stop,
    ) -> BatchReport {
        (self.1)(attempt, batch, port, stop).await
    }

    fn retain(&self, _components: &[Digest], _versions: &[VersionId]) {}
}

/// A report with nothing but an outcome.
pub fn report(outcome: Outcome) -> AttemptReport {
    AttemptReport {
        outcome,
        meter: Meter::default(),
        taint: Taint::NONE,
        effects: Effects::default(),
        log: LogBuffer::default(),
    }
}

/// A report of a batch with nothing but an outcome.
pub fn worked(outcome: BatchOutcome) -> BatchReport {
    let (meter, effects, log) = (Meter::default(), Effects::default(), LogBuffer::default());
    BatchReport { outcome, meter, effects, log }
}

/// Ends at once with what it was given.
pub fn echo(attempt: &Attempt) -> AttemptReport {
    report(Outcome::Completed(attempt.input.clone()))
}

/// Fails at once.
pub fn fails(failure: Failure) -> AttemptReport {
    report(Outcome::Failed(failure))
}

/// The wall clock, moved by the test.
#[derive(Default)]
pub struct Shifted(pub AtomicI64);

impl Clock for Shifted {
    #[allow(clippy::disallowed_methods, reason = "this is a clock")]
    fn now_ms(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        now.as_millis() as i64 + self.0.load(Ordering::Relaxed)
    }
}

#[allow(dead_code, reason = "used where time is virtual")]
/// Virtual time that began then.
pub struct Virtual {
    start: tokio::time::Instant,
    began_ms: i64,
}

impl From<i64> for Virtual {
    fn from(began_ms: i64) -> Virtual {
        Virtual { start: tokio::time::Instant::now(), began_ms }
    }
}

impl Clock for Virtual {
    fn now_ms(&self) -> i64 {
        self.began_ms + self.start.elapsed().as_millis() as i64
    }
}

/// A store in front of the real one that fails as it is told.
pub struct Faulty {
    pub store: SqliteStore,
    /// Every write fails as if the database were gone.
    pub down: AtomicBool,
    /// Beats find the holder rescued.
    pub lost: AtomicBool,
    /// Groups with the end of this task are refused, and so is its retry.
    pub poison: AtomicI64,
}

impl Faulty {
    fn up(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Down, "the test took the store away"));
        }
        Ok(())
    }
}

#[async_trait]
impl TaskStore for Faulty {
    async fn open_holder(&self, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError> {
        self.up()?;
        self.store.open_holder(now_ms, lease_ms).await
    }

    async fn beat(&self, holder: Holder, now_ms: i64, lease_ms: i64) -> Result<Beat, StoreError> {
        self.up()?;
        if self.lost.swap(false, Ordering::SeqCst) {
            self.store.close_holder(holder, now_ms).await?;
        }
        self.store.beat(holder, now_ms, lease_ms).await
    }

    async fn close_holder(&self, holder: Holder, now_ms: i64) -> Result<u64, StoreError> {
        self.up()?;
        self.store.close_holder(holder, now_ms).await
    }

    async fn reserve_ids(&self, count: u32, now_ms: i64) -> Result<IdBlock, StoreError> {
        self.up()?;
        self.store.reserve_ids(count, now_ms).await
    }

    async fn enqueue(&self, submits: Vec<Submit>, now_ms: i64) -> Result<Vec<Submitted>, StoreError> {
        self.up()?;
        self.store.enqueue(submits, now_ms).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        self.up()?;
        self.store.lease(request).await
    }

    async fn settle(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        self.up()?;
        let poison = TaskId(self.poison.load(Ordering::SeqCst));
        let completes =
            |end: &Settlement| matches!(end.transition, keiko_core::task::Transition::Complete(_));
        if settlements.iter().any(|end| end.id == poison && completes(end)) {
            return Err(StoreError::new(StoreErrorKind::Refused, "the test refuses this end"));
        }
        self.store.settle(holder, settlements, now_ms).await
    }

    async fn rescue(
        &self,
        dead: Dead,
        started: Vec<(TaskId, Token)>,
        now_ms: i64,
    ) -> Result<Rescued, StoreError> {
        self.up()?;
        self.store.rescue(dead, started, now_ms).await
    }

    async fn stale(&self, leases: Vec<(TaskId, Token)>) -> Result<Vec<(TaskId, Token)>, StoreError> {
        self.up()?;
        self.store.stale(leases).await
    }

    async fn cancel(&self, tenant: TenantId, id: TaskId, now_ms: i64) -> Result<CancelAnswer, StoreError> {
        self.up()?;
        self.store.cancel(tenant, id, now_ms).await
    }

    async fn cancel_group(
        &self,
        tenant: TenantId,
        id: GroupId,
        only_failed: bool,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Option<Vec<TaskId>>, StoreError> {
        self.up()?;
        self.store.cancel_group(tenant, id, only_failed, now_ms, count_max).await
    }

    async fn cancel_branch(
        &self,
        tenant: TenantId,
        branch: Branch,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Cut, StoreError> {
        self.up()?;
        self.store.cancel_branch(tenant, branch, now_ms, count_max).await
    }

    async fn expire(&self, now_ms: i64, count_max: u32) -> Result<Expired, StoreError> {
        self.up()?;
        self.store.expire(now_ms, count_max).await
    }

    async fn retry(
        &self,
        tenant: TenantId,
        id: TaskId,
        amendment: Amendment,
        queue_max: u64,
        now_ms: i64,
    ) -> Result<RetryAnswer, StoreError> {
        self.up()?;
        if id.0 == self.poison.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Refused, "the test refuses this retry"));
        }
        self.store.retry(tenant, id, amendment, queue_max, now_ms).await
    }

    async fn prune_finished(
        &self,
        tenant: TenantId,
        kept: KeptFrom,
        after: Option<TaskId>,
        count_max: u32,
    ) -> Result<Pruned, StoreError> {
        self.up()?;
        self.store.prune_finished(tenant, kept, after, count_max).await
    }

    async fn drop_task(&self, tenant: TenantId, id: TaskId) -> Result<DropAnswer, StoreError> {
        self.up()?;
        self.store.drop_task(tenant, id).await
    }

    async fn prune(&self, now_ms: i64, count_max: u32) -> Result<u64, StoreError> {
        self.up()?;
        self.store.prune(now_ms, count_max).await
    }
}

/// A host with one tenant `default`, or others, and one plugin `script` with the kinds `a` and `b`.
pub struct Bench {
    /// Kept for as long as the store is open; gone with it.
    _folder: tempfile::TempDir,
    pub store: Arc<Faulty>,
    pub clock: Arc<Shifted>,
    pub options: Options,
    pub policy: TenantPolicy,
    /// What processors do.
    pub batch: Arc<BatchPlay>,
    /// Processors of the host's own.
    pub processors: BTreeMap<ProcessorName, Wish>,
}

impl Bench {
    pub async fn new() -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path()).await;
        let options = Options {
            workers: 2,
            drain: Duration::from_millis(200),
            beat: Duration::from_millis(20),
            lease: Duration::from_secs(2),
            self_cancel: Duration::from_secs(1),
            exclusive: true,
            journal_dir: Some(folder.path().to_owned()),
            ..Options::default()
        };
        let faulty = Faulty {
            store,
            down: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            poison: AtomicI64::new(0),
        };
        let clock = Arc::new(Shifted::default());
        Bench {
            _folder: folder,
            store: Arc::new(faulty),
            clock,
            options,
            policy: TenantPolicy::default(),
            batch: Arc::new(work_all),
            processors: BTreeMap::new(),
        }
    }

    /// A cache on the store's file alone.
    pub fn cache_parts(&self) -> CacheParts {
        let store = &self.store.store;
        CacheParts {
            installation: store.installation(),
            redis: None,
            database: Some(Arc::new(store.clone())),
            backplanes: Vec::new(),
            shared: false,
            clock: self.clock.clone(),
        }
    }

    pub async fn start<F>(&self, play: F) -> (Runtime, Handle, TenantId)
    where
        F: Fn(Attempt, Arc<dyn HostPort>, Stop) -> BoxFuture<'static, AttemptReport> + Send + Sync + 'static,
    {
        let (runtime, handle, [tenant]) = self.start_for(["default"], play).await;
        (runtime, handle, tenant)
    }

    /// Starts a host with these tenants, each of which has the plugin.
    pub async fn start_for<F, const COUNT: usize>(
        &self,
        names: [&str; COUNT],
        play: F,
    ) -> (Runtime, Handle, [TenantId; COUNT])
    where
        F: Fn(Attempt, Arc<dyn HostPort>, Stop) -> BoxFuture<'static, AttemptReport> + Send + Sync + 'static,
    {
        let store = Arc::new(self.store.store.clone());
        let parts = Parts {
            tasks: self.store.clone(),
            records: store.clone(),
            catalog: store.clone(),
            canaries: store.clone(),
            components: store.clone(),
            agents: store.clone(),
            history: store.clone(),
            batches: store.clone(),
            batch_records: store.clone(),
            cache: self.cache_parts(),
            usage: store.clone(),
            schedules: store.clone(),
            signals: store,
            runner: Arc::new(Script(Arc::new(play), self.batch.clone())),
            clock: self.clock.clone(),
        };
        let names = names.map(|name| name.parse().expect("a name"));
        let tenant = |name: &TenantName| TenantOptions {
            name: name.clone(),
            policy: self.policy.clone(),
            settings: BTreeMap::new(),
            processors: self.processors.clone(),
        };
        let tenants = names.iter().map(tenant).collect();
        let started = Runtime::start(parts, self.options.clone(), tenants).await;
        let (runtime, handle) = started.expect("the runtime starts");
        let tenants = names.map(|name| handle.tenant(&name).expect("a tenant"));
        for tenant in tenants {
            handle.install(tenant, Bytes::from(MANIFEST), None).await.expect("the script installs");
        }
        (runtime, handle, tenants)
    }
}

/// A host on this store with the tenant `default`, which runs at most so many attempts at once; they echo.
pub async fn start_on(store: MemoryStore, running_max: usize) -> (Runtime, Handle) {
    let options = Options { workers: 1, running_max, ..Options::default() };
    start_playing(store, options, Arc::new(echoes)).await
}

/// A host on this store with the tenant `default`, whose attempts play something.
pub async fn start_playing(store: MemoryStore, options: Options, play: Arc<Play>) -> (Runtime, Handle) {
    start_with(store, Arc::new(Shifted::default()), Given { options, play, ..Given::default() }).await
}

fn echoes(attempt: Attempt, _: Arc<dyn HostPort>, _: Stop) -> BoxFuture<'static, AttemptReport> {
    Box::pin(async move { echo(&attempt) })
}

#[allow(dead_code, reason = "used where time is virtual")]
/// A host on this store with the tenant `default` that starts no threads: in virtual time, by this clock.
pub async fn start_virtual(store: MemoryStore, clock: Arc<dyn Clock>) -> (Runtime, Handle) {
    start_virtual_with(store, clock, Given::default()).await
}

#[allow(dead_code, reason = "used where time is virtual")]
/// The same with what it is given.
pub async fn start_virtual_with(
    store: MemoryStore,
    clock: Arc<dyn Clock>,
    given: Given,
) -> (Runtime, Handle) {
    let short = Duration::from_secs(3_600);
    let options = Options { workers: 1, short, in_place: true, ..given.options };
    start_with(store, clock, Given { options, ..given }).await
}

/// What a host is given beside a store and a clock.
pub struct Given {
    pub options: Options,
    pub policy: TenantPolicy,
    /// What guests do.
    pub play: Arc<Play>,
    /// What processors do.
    pub batch: Arc<BatchPlay>,
    /// Schedules in the place of the store's.
    pub schedules: Option<Arc<dyn Schedules>>,
}

impl Default for Given {
    fn default() -> Given {
        Given {
            options: Options::default(),
            policy: TenantPolicy::default(),
            play: Arc::new(echoes),
            batch: Arc::new(work_all),
            schedules: None,
        }
    }
}

async fn start_with(store: MemoryStore, clock: Arc<dyn Clock>, given: Given) -> (Runtime, Handle) {
    let Given { options, policy, play, batch, schedules } = given;
    let store = Arc::new(store);
    let schedules = schedules.unwrap_or_else(|| store.clone());
    let parts = Parts {
        tasks: store.clone(),
        records: store.clone(),
        catalog: store.clone(),
        canaries: store.clone(),
        components: store.clone(),
        agents: store.clone(),
        history: store.clone(),
        batches: store.clone(),
        batch_records: store.clone(),
        cache: CacheParts {
            installation: "memory".parse().expect("a name"),
            redis: None,
            database: None,
            backplanes: Vec::new(),
            shared: false,
            clock: clock.clone(),
        },
        usage: store.clone(),
        schedules,
        signals: store,
        runner: Arc::new(Script(play, batch)),
        clock,
    };
    let name = "default".parse().expect("a name");
    let tenant = TenantOptions { name, policy, settings: BTreeMap::new(), processors: BTreeMap::new() };
    Runtime::start(parts, options, vec![tenant]).await.expect("the runtime starts")
}

/// A processor that is done with every item.
fn work_all(_: Attempt, batch: BatchRun, _: Arc<dyn HostPort>, _: Stop) -> BoxFuture<'static, BatchReport> {
    let done = vec![ItemOutcome::Done; batch.items.len()];
    Box::pin(async move { worked(BatchOutcome::Answered(done)) })
}

async fn open(folder: &Path) -> SqliteStore {
    let options = SqliteOptions { data_dir: folder.to_owned(), readers: 2, statement_log: false };
    SqliteStore::open(options).await.expect("the store opens")
}

/// A task of kind `a`.
pub fn task(input: &str) -> TaskRequest {
    TaskRequest {
        plugin: Some("script".to_owned()),
        kind: Some("a".to_owned()),
        input: Payload::json(Bytes::copy_from_slice(input.as_bytes())),
        budget: BudgetRequest::default(),
        delay_ms: 0,
        run_at_ms: None,
        priority: Priority::default(),
        once: None,
        slot_key: None,
        agent: None,
        user: None,
        trace: None,
    }
}

/// Submits one task.
pub async fn submit(handle: &Handle, tenant: TenantId, input: &str) -> TaskId {
    handle.submit(tenant, vec![task(input)], None).await.expect("accepted").first
}
