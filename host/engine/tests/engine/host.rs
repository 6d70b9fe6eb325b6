//! An engine to test with, a runtime that guests talk to, and the one function that runs a guest.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::agent::{Agent, AgentFilter, AgentStatistics};
use keiko_core::batch::{ItemWish, NewItem};
use keiko_core::effect::ChildWish;
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::limit::{COMPONENT_BYTES_MAX, SetBy};
use keiko_core::manifest::Random;
use keiko_core::metric::{Measured, MetricRefused};
use keiko_core::outcome::{AttemptReport, Failure, Outcome};
use keiko_core::page::Page;
use keiko_core::policy::{BUDGET_DEFAULT, Budget, BudgetRequest, Grants, Limit};
use keiko_core::port::{
    ArtifactName, AskError, Attempt, AttemptFacts, CacheFill, CacheFilling, CacheRefused, Compiled,
    Components, HostPort, InstallError, ItemsError, Keeping, ReserveError, Reserved, Runner, StoreError,
};
use keiko_core::profile::Profiles;
use keiko_core::stop::Stop;
use keiko_core::task::{Lineage, Payload};
use keiko_core::{AgentId, Code, Digest, ItemId, KindId, ProcessorId, TaskId, UserId};
use keiko_engine::{ClusterKey, Compiler, Engine, EngineOptions};

use crate::guest::Guest;

/// Components in memory, with the machine code that engines hand each other.
#[derive(Default)]
pub struct Kept(Mutex<HashMap<Digest, Bytes>>, Mutex<HashMap<(Digest, [u8; 32]), Bytes>>);

impl Kept {
    pub fn forget(&self, digest: Digest) {
        self.0.lock().unwrap().remove(&digest);
    }

    /// Changes all machine code, and says how much there is.
    pub fn alter(&self, change: impl Fn(&mut Vec<u8>)) -> usize {
        let mut artifacts = self.1.lock().unwrap();
        for bytes in artifacts.values_mut() {
            let mut altered = bytes.to_vec();
            change(&mut altered);
            *bytes = altered.into();
        }
        artifacts.len()
    }
}

#[async_trait]
impl Components for Kept {
    async fn put(&self, digest: Digest, bytes: Bytes, _: i64) -> Result<(), StoreError> {
        self.0.lock().unwrap().insert(digest, bytes);
        Ok(())
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().unwrap().get(&digest).cloned())
    }

    async fn put_artifact(&self, digest: Digest, name: ArtifactName, bytes: Bytes) -> Result<(), StoreError> {
        self.1.lock().unwrap().insert((digest, name.0), bytes);
        Ok(())
    }

    async fn artifact(&self, digest: Digest, name: ArtifactName) -> Result<Option<Bytes>, StoreError> {
        Ok(self.1.lock().unwrap().get(&(digest, name.0)).cloned())
    }
}

pub fn key(digit: char) -> ClusterKey {
    ClusterKey::from_hex(&digit.to_string().repeat(64)).unwrap()
}

pub fn compiler(arguments: &[&str]) -> Compiler {
    Compiler {
        program: PathBuf::from(env!("CARGO_BIN_EXE_keiko-compile")),
        arguments: arguments.iter().map(OsString::from).collect(),
    }
}

pub fn engine(
    dir: &Path,
    cluster_key: ClusterKey,
    components: Arc<dyn Components>,
    arguments: &[&str],
) -> Engine {
    let options = EngineOptions {
        artifacts_dir: dir.to_owned(),
        cluster_key,
        compiler: compiler(arguments),
        running_max: 16,
    };
    Engine::new(options, components).unwrap()
}

/// The engine that most tests share, with the folder of its artifacts.
pub fn shared() -> &'static Engine {
    static SHARED: OnceLock<(Engine, tempfile::TempDir)> = OnceLock::new();
    &SHARED
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            (engine(dir.path(), key('5'), Arc::<Kept>::default(), &[]), dir)
        })
        .0
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What the guests of a test talk to.
#[derive(Default)]
pub struct Port {
    pub progress: Mutex<Vec<(f64, String)>>,
    /// What was given out.
    pub given: Mutex<Vec<Bytes>>,
    pub refuse: Mutex<Option<ReserveError>>,
    pub never_answers: bool,
    pub panics: bool,
    pub reserving: tokio::sync::Notify,
    pub agents: Vec<Agent>,
    pub user_tasks: Vec<UserTask>,
    pub statistics: Vec<Statistics>,
    /// What every question about the tenant's data is answered with, when it is not answered.
    pub unanswered: Option<AskError>,
    /// What was asked about the tenant's data, as it came.
    pub asked: Mutex<Vec<String>>,
    /// What the cache has under every key.
    pub cached: Option<Bytes>,
    /// What every question to the cache is answered with, when it is not answered.
    pub uncached: Option<CacheRefused>,
    /// What is answered to items that are added, and to what is measured, when it is not taken.
    pub unadded: Option<ItemsError>,
    pub unmeasured: Option<MetricRefused>,
    /// What became of the fills that were given.
    pub fills: Arc<Fills>,
}

/// What became of fills.
#[derive(Default)]
pub struct Fills {
    pub completed: Mutex<Vec<(Bytes, Keeping)>>,
    pub given_up: AtomicUsize,
}

struct Fill {
    fills: Arc<Fills>,
    is_completed: bool,
}

#[async_trait]
impl CacheFill for Fill {
    async fn complete(mut self: Box<Self>, value: Bytes, keeping: Keeping) -> Result<(), CacheRefused> {
        self.is_completed = true;
        self.fills.completed.lock().unwrap().push((value, keeping));
        Ok(())
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if !self.is_completed {
            self.fills.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Port {
    fn cached<T>(&self, asked: String, answer: T) -> Result<T, CacheRefused> {
        self.asked.lock().unwrap().push(asked);
        self.uncached.clone().map_or(Ok(answer), Err)
    }

    fn answer<T>(&self, asked: String, answer: T) -> Result<T, AskError> {
        self.asked.lock().unwrap().push(asked);
        self.unanswered.clone().map_or(Ok(answer), Err)
    }
}

pub const NOW_MS: i64 = 1_700_000_000_123;

#[async_trait]
impl HostPort for Port {
    fn now_ms(&self) -> i64 {
        NOW_MS
    }

    fn progress(&self, fraction: f64, message: String) {
        assert!(!self.panics, "a host function that panics");
        self.progress.lock().unwrap().push((fraction, message));
    }

    fn emit(&self, piece: Bytes) {
        self.given.lock().unwrap().push(piece);
    }

    fn measure(
        &self,
        name: &str,
        labels: &[(String, String)],
        measured: Measured,
    ) -> Result<(), MetricRefused> {
        self.asked.lock().unwrap().push(format!("{name} {labels:?} {measured:?}"));
        self.unmeasured.clone().map_or(Ok(()), Err)
    }

    async fn reserve_items(&self, processor: &str, items: Vec<ItemWish>) -> Result<Vec<NewItem>, ItemsError> {
        self.asked.lock().unwrap().push(format!("{processor} {}", items.len()));
        if let Some(error) = self.unadded.clone() {
            return Err(error);
        }
        let item = |(id, ItemWish { key, payload })| NewItem {
            id: ItemId(id),
            processor: ProcessorId(7),
            key,
            payload,
            created_ms: NOW_MS,
        };
        Ok((1..).zip(items).map(item).collect())
    }

    async fn reserve(&self, wishes: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError> {
        self.reserving.notify_one();
        if self.never_answers {
            std::future::pending::<()>().await;
        }
        if let Some(error) = self.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        Ok((1..=wishes.len() as i64)
            .map(|n| Reserved { id: TaskId(n), kind: KindId(7), budget: BudgetRequest::default() })
            .collect())
    }

    async fn agents(&self, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, AskError> {
        let agent = |id: &AgentId| self.agents.iter().find(|agent| agent.id == *id).cloned();
        self.answer(format!("{ids:?}"), ids.iter().map(agent).collect())
    }

    async fn list_agents(
        &self,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Page<(Agent, AgentStatistics)>, AskError> {
        let statistics =
            AgentStatistics { total: 4, completed: 3, timed: 2, elapsed_us: 14, ..Default::default() };
        let rows = self.agents.iter().map(|agent| (agent.clone(), statistics)).collect();
        self.answer(format!("{filter:?} {limit}"), Page::of(rows, limit))
    }

    async fn user_tasks(
        &self,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Page<UserTask>, AskError> {
        self.answer(format!("{user} {before:?} {limit}"), Page::of(self.user_tasks.clone(), limit))
    }

    async fn statistics(&self, range: DateRange) -> Result<Vec<Statistics>, AskError> {
        self.answer(format!("{} {}", range.from_ms, range.to_ms), self.statistics.clone())
    }

    async fn cache_get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, CacheRefused> {
        self.cached(format!("get {keys:?}"), vec![self.cached.clone(); keys.len()])
    }

    async fn cache_set(&self, key: &str, value: Bytes, keeping: Keeping) -> Result<(), CacheRefused> {
        self.cached(format!("set {key} {value:?} {:?} {:?}", keeping.lifetime_ms, keeping.tags), ())
    }

    async fn cache_remove(&self, key: &str) -> Result<(), CacheRefused> {
        self.cached(format!("remove {key}"), ())
    }

    async fn cache_remove_tag(&self, tag: &str) -> Result<(), CacheRefused> {
        self.cached(format!("remove-tag {tag}"), ())
    }

    async fn cache_fill(&self, key: &str) -> Result<CacheFilling, CacheRefused> {
        if self.never_answers {
            std::future::pending::<()>().await;
        }
        let fill = || Fill { fills: Arc::clone(&self.fills), is_completed: false };
        let filling = match &self.cached {
            Some(value) => CacheFilling::Hit(value.clone()),
            None => CacheFilling::Fill(Box::new(fill())),
        };
        self.cached(format!("fill {key}"), filling)
    }
}

/// One run to be made.
pub struct Run {
    pub guest: Guest,
    pub input: Bytes,
    pub budget: Budget,
    pub grants: Grants,
    pub settings: BTreeMap<String, String>,
    pub random: Random,
    pub profiles: Profiles,
    pub port: Arc<Port>,
    pub stop: Stop,
}

pub fn budget() -> Budget {
    let limit = |value| Limit { value, set_by: SetBy::Tenant };
    Budget {
        fuel: limit(BUDGET_DEFAULT.fuel),
        memory_bytes: limit(BUDGET_DEFAULT.memory_bytes),
        wall_ms: limit(BUDGET_DEFAULT.wall_ms),
        host_calls: limit(BUDGET_DEFAULT.host_calls),
        attempts: limit(1),
        heartbeat_ms: None,
    }
}

impl Run {
    pub fn of(guest: Guest) -> Run {
        Run {
            guest,
            input: Bytes::from_static(b"null"),
            budget: budget(),
            grants: Grants::default(),
            settings: BTreeMap::new(),
            random: Random::default(),
            profiles: Profiles::STRICT,
            port: Arc::default(),
            stop: Stop::default(),
        }
    }

    pub fn profiles(mut self, profiles: Profiles) -> Run {
        self.profiles = profiles;
        self
    }

    pub fn fuel(mut self, fuel: u64) -> Run {
        self.budget.fuel.value = fuel;
        self
    }

    pub fn memory(mut self, bytes: u64) -> Run {
        self.budget.memory_bytes.value = bytes;
        self
    }

    pub fn wall_ms(mut self, wall_ms: u64) -> Run {
        self.budget.wall_ms.value = wall_ms;
        self
    }

    pub fn host_calls(mut self, calls: u64) -> Run {
        self.budget.host_calls.value = calls;
        self
    }

    pub fn grants(mut self, grants: Grants) -> Run {
        self.grants = grants;
        self
    }

    pub fn input(mut self, input: impl Into<Bytes>) -> Run {
        self.input = input.into();
        self
    }

    pub fn port(mut self, port: Port) -> Run {
        self.port = Arc::new(port);
        self
    }

    pub fn attempt(&self, digest: Digest) -> Attempt {
        Attempt {
            facts: AttemptFacts {
                tenant: "acme".parse().unwrap(),
                task: TaskId(3),
                lineage: Lineage { root: TaskId(1), parent: Some(TaskId(2)), depth: 2 },
                number: 4,
                attempts_max: 5,
                trace: Some("00-trace".to_owned()),
            },
            digest,
            kind: "kind".parse().unwrap(),
            input: Payload::json(self.input.clone()),
            budget: self.budget,
            grants: Arc::new(self.grants.clone()),
            settings: Arc::new(self.settings.clone()),
            command: None,
            keep: None,
            random: self.random,
        }
    }

    /// Runs it on the shared engine, alone on its thread.
    pub fn report(&self) -> AttemptReport {
        block_on(self.report_async())
    }

    pub async fn report_async(&self) -> AttemptReport {
        let compiled = install_with(&self.guest, self.profiles).await.unwrap();
        shared().run(self.attempt(compiled.digest), self.port.clone(), self.stop.clone()).await
    }

    #[track_caller]
    pub fn result(&self) -> String {
        completed(&self.report())
    }

    #[track_caller]
    pub fn failure(&self) -> Failure {
        failed(self.report())
    }

    /// The code of its failure, with the name of the limit and the limit.
    #[track_caller]
    pub fn limit(&self) -> (Code, String, u64) {
        let failure = self.failure();
        let limit = failure.limit.unwrap_or_else(|| panic!("no limit: {}", failure.message));
        (failure.code, limit.name, limit.limit)
    }
}

/// Installs a guest on the shared engine; equal guests are compiled once.
pub async fn install(guest: &Guest) -> Result<Compiled, InstallError> {
    install_with(guest, Profiles::STRICT).await
}

/// The same for a tenant that may have these profiles.
pub async fn install_with(guest: &Guest, profiles: Profiles) -> Result<Compiled, InstallError> {
    shared().compile(guest.bytes().into(), COMPONENT_BYTES_MAX, profiles).await
}

#[track_caller]
pub fn completed(report: &AttemptReport) -> String {
    match &report.outcome {
        Outcome::Completed(payload) => String::from_utf8_lossy(&payload.bytes).into_owned(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub fn failed(report: AttemptReport) -> Failure {
    match report.outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}
