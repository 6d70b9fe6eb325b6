//! What the runtime asks of the engine, and what a running guest asks of the runtime.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::agent::{Agent, AgentFilter, AgentStatistics};
use crate::batch::{Item, ItemOutcome, ItemWish, NewItem};
use crate::cache::InvalidKey;
use crate::code::Code;
use crate::effect::{ChildWish, Effects};
use crate::history::{DateRange, Statistics, UserTask};
use crate::id::{AgentId, Digest, KindId, TaskId, UserId, VersionId};
use crate::limit::LimitFact;
use crate::log::LogBuffer;
use crate::manifest::{Command, Manifest, Random, Reuse};
use crate::metric::{Measured, MetricRefused};
use crate::name::{KindName, ProcessorName, TenantName};
use crate::outcome::{AttemptReport, Failure, Meter};
use crate::page::Page;
use crate::policy::{Budget, BudgetRequest, Grants};
use crate::profile::{Profile, Profiles};
use crate::stop::{Stop, StopReason};
use crate::task::{Lineage, Payload};

/// What a guest may learn of its attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptFacts {
    /// The tenant's name.
    pub tenant: TenantName,
    /// The task.
    pub task: TaskId,
    /// Its place in its tree.
    pub lineage: Lineage,
    /// From 1.
    pub number: u32,
    /// Attempts the task may have.
    pub attempts_max: u32,
    /// W3C `traceparent`.
    pub trace: Option<String>,
}

/// One run, with everything it needs.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What the guest may learn.
    pub facts: AttemptFacts,
    /// The component to run.
    pub digest: Digest,
    /// Which of its handlers.
    pub kind: KindName,
    /// What it is given.
    pub input: Payload,
    /// What it may spend.
    pub budget: Budget,
    /// What it may ask for.
    pub grants: Arc<Grants>,
    /// Settings the tenant granted to the plugin.
    pub settings: Arc<BTreeMap<String, String>>,
    /// How it is run, when the component is a program and its manifest says so.
    pub command: Option<Box<Command>>,
    /// That its instance is kept for the next attempt, when the manifest asks for it.
    pub keep: Option<Keep>,
    /// What it is given for secure random numbers.
    pub random: Random,
}

/// How an instance is kept for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Whose attempts use it again: those of this version, which is one tenant's, and no others.
    pub version: VersionId,
    /// For how long.
    pub reuse: Reuse,
}

/// One run of a batch, or of a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRun {
    /// What the processor is told.
    pub id: String,
    /// Which of the component's processors.
    pub processor: ProcessorName,
    /// The key of all items; empty for none.
    pub key: String,
    /// What it is handed.
    pub items: Vec<Item>,
}

/// How a run of a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// The processor answered: an outcome for each item, if it kept to its contract.
    Answered(Vec<ItemOutcome>),
    /// It did not, for this reason.
    Failed(Failure),
    /// The host ended it.
    Stopped(StopReason),
}

/// Everything a run of a batch leaves behind.
#[derive(Debug)]
pub struct BatchReport {
    /// How it ended.
    pub outcome: BatchOutcome,
    /// What it spent.
    pub meter: Meter,
    /// What it asked to be written; empty unless the processor answered.
    pub effects: Effects,
    /// What it logged.
    pub log: LogBuffer,
}

/// A component that was checked, compiled, kept as an artifact, and instantiated once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// SHA-256 of the component.
    pub digest: Digest,
    /// Its size.
    pub component_bytes: u64,
    /// Size of the artifact.
    pub artifact_bytes: u64,
    /// Milliseconds that the compiler took; 0 when the artifact was there.
    pub compile_ms: u64,
    /// The manifest embedded in it, when there is one.
    pub manifest: Option<Manifest>,
    /// The engine profile that it runs on.
    pub profile: Profile,
    /// What it imports, by the component's own names, in order.
    pub imports: Vec<String>,
    /// Whether it runs tasks.
    pub runs_tasks: bool,
    /// Whether it works batches.
    pub works_batches: bool,
    /// Whether it is a WASI program, and no plugin of our worlds.
    pub is_program: bool,
}

/// How far an upload has come on its way to a plugin that runs. Nothing of one that did not come to the end is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its bytes are taken in.
    Receive,
    /// Its sections are looked at, without compiling.
    Scan,
    /// It is compiled, in a process of its own.
    Compile,
    /// It is linked and instantiated once.
    Instantiate,
    /// It becomes its plugin's current version.
    Activate,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: &'static [Stage] =
        &[Stage::Receive, Stage::Scan, Stage::Compile, Stage::Instantiate, Stage::Activate];

    /// The name that people and programs see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Receive => "receive",
            Stage::Scan => "scan",
            Stage::Compile => "compile",
            Stage::Instantiate => "instantiate",
            Stage::Activate => "activate",
        }
    }
}

/// Why a component was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InstallError {
    /// `component_invalid`, `compile_limit`, `quota_exceeded`, `denied`, `integrity` or `internal`.
    pub code: Code,
    /// Names the import, the section or the limit.
    pub message: String,
    /// The limit that was met, if one was.
    pub limit: Option<LimitFact>,
    /// Where it was refused, when it was an upload.
    pub stage: Option<Stage>,
    /// Milliseconds that the compiler took until then.
    pub compile_ms: u64,
}

impl InstallError {
    /// A refusal that names no limit.
    pub fn new(code: Code, message: impl Into<String>) -> InstallError {
        InstallError { code, message: message.into(), limit: None, stage: None, compile_ms: 0 }
    }

    /// The refusal of a component by a policy that does not permit the engine profile it needs, for this reason if known.
    pub fn not_permitted(profile: Profile, reason: Option<&str>) -> InstallError {
        let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let message = format!(
            "the component needs the engine profile `{profile}`{reason}, which the tenant's policy does not permit"
        );
        InstallError::new(Code::Denied, message)
    }

    /// The same refusal, at this stage.
    #[must_use]
    pub fn at(self, stage: Stage) -> InstallError {
        InstallError { stage: Some(stage), ..self }
    }
}

/// Runs guests.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// Checks and compiles a component that may have these profiles; afterwards [`Runner::run`] finds it by its digest.
    async fn compile(
        &self,
        bytes: Bytes,
        component_bytes_max: u64,
        profiles: Profiles,
    ) -> Result<Compiled, InstallError>;

    /// Loads a component that was compiled before, or compiles it again from its kept bytes; refuses one that needs another
    /// profile than these, also when it is loaded.
    async fn load(&self, digest: Digest, profiles: Profiles) -> Result<(), InstallError>;

    /// The engine profile that a component needs which was installed before, loaded or not.
    async fn profile(&self, digest: Digest) -> Result<Profile, InstallError>;

    /// Hands what [`Runner::compile`] made of a component, which is kept now, to the other hosts of the database, where that is
    /// possible: they need not make it again.
    async fn share(&self, _digest: Digest) {}

    /// Runs one attempt to its end. Never fails and never panics: whatever happens is an outcome.
    async fn run(&self, attempt: Attempt, port: Arc<dyn HostPort>, stop: Stop) -> AttemptReport;

    /// Works a batch, or a part of one, to its end: `attempt` says with which component and budget, on whose behalf; its
    /// kind and input are not looked at. Never fails and never panics.
    async fn process(
        &self,
        attempt: Attempt,
        batch: BatchRun,
        port: Arc<dyn HostPort>,
        stop: Stop,
    ) -> BatchReport;

    /// Forgets components that are not among these, once their attempts have ended, and instances that were kept for versions that are
    /// not: two versions may have one component.
    fn retain(&self, components: &[Digest], versions: &[VersionId]);

    /// Removes the machine code that this host has made or fetched before a time and that is of none of these components.
    async fn forget(&self, _kept: &[Digest], _before_ms: i64) {}
}

/// What the host reserved for a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Its id.
    pub id: TaskId,
    /// Which handler.
    pub kind: KindId,
    /// What it asks of the policy, with the time-outs that its kind's manifest asks for.
    pub budget: BudgetRequest,
}

/// Why nothing was reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// No such plugin or kind.
    #[error("{0}")]
    NotFound(String),
    /// A child asks for what it may not have; the text says for what.
    #[error("{0}")]
    Invalid(String),
    /// The task has this many children and may have no more.
    #[error("the task exceeds the limit of {0} children")]
    FanOutExceeded(u64),
    /// Children would be deeper than this.
    #[error("children exceed the depth limit of {0}")]
    DepthExceeded(u32),
    /// The tenant has this many live tasks and may have no more.
    #[error("the queue exceeds the limit of {0} tasks")]
    QueueFull(u64),
    /// Trying again may help.
    #[error("the host cannot take children now")]
    Unavailable,
}

/// Why no items were reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemsError {
    /// The tenant has no such processor.
    #[error("there is no processor `{0}`")]
    NotFound(String),
    /// The tenant has as many items waiting as it may.
    #[error("the tenant's items exceed the limit of {0}")]
    QueueFull(u64),
    /// Trying again may help.
    #[error("the host cannot take items now")]
    Unavailable,
}

/// Why a question about the tenant's data has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The tenant has no such user.
    #[error("no user {0}")]
    NoUser(UserId),
    /// The answer would be larger than this many bytes.
    #[error("the answer exceeds the limit of {0} bytes")]
    TooLarge(u64),
    /// Trying again may help.
    #[error("the host cannot answer now")]
    Unavailable,
}

/// How a guest wants a value to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// How long it may be read; `None` leaves it to the host.
    pub lifetime_ms: Option<u64>,
    /// What it has in common with others.
    pub tags: Vec<String>,
}

/// Why the cache did not do what a guest asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheRefused {
    /// A key is none.
    #[error("{0}")]
    Key(InvalidKey),
    /// A tag is none.
    #[error("{0}")]
    Tag(InvalidKey),
    /// More tags than an entry may have.
    #[error("an entry has at most {0} tags")]
    TooManyTags(u64),
    /// More keys than a call may name.
    #[error("a call names at most {0} keys")]
    TooManyKeys(u64),
    /// The value is larger than it may be.
    #[error("the value exceeds the limit of {0} bytes")]
    TooLarge(u64),
    /// The values together are larger than an answer may be.
    #[error("the answer exceeds the limit of {0} bytes")]
    AnswerTooLarge(u64),
    /// The lifetime is 0 or longer than it may be.
    #[error("a lifetime is 1 to {0} milliseconds")]
    Lifetime(u64),
    /// The right to compute has gone to another.
    #[error("the right to compute this value has gone to another")]
    Lost,
    /// Trying again may help.
    #[error("the host cannot answer now")]
    Unavailable,
}

/// The right to compute a value. Dropped, it goes to the next who waits.
#[async_trait]
pub trait CacheFill: Send + Sync + 'static {
    /// Keeps the value and hands it to all who wait.
    async fn complete(self: Box<Self>, value: Bytes, keeping: Keeping) -> Result<(), CacheRefused>;
}

/// A value, or the right to compute it.
pub enum CacheFilling {
    /// The value.
    Hit(Bytes),
    /// The right.
    Fill(Box<dyn CacheFill>),
}

/// What one running attempt may ask of the runtime. Made for the attempt, so that it answers of the attempt's tenant
/// only; dropping it gives back whatever was reserved and not settled. Where no store is behind it, questions about the
/// tenant's data are `Unavailable`.
#[async_trait]
pub trait HostPort: Send + Sync + 'static {
    /// Milliseconds since 1970, for log lines.
    fn now_ms(&self) -> i64;

    /// Takes a progress report; fraction and message were checked.
    fn progress(&self, fraction: f64, message: String);

    /// Takes a piece of what the attempt gives out before it ends; how much of it there is was checked. Where nobody
    /// watches it is dropped.
    fn emit(&self, _piece: Bytes) {}

    /// Takes what was measured under a metric of the plugin's manifest.
    fn measure(
        &self,
        _name: &str,
        _labels: &[(String, String)],
        _measured: Measured,
    ) -> Result<(), MetricRefused> {
        Err(MetricRefused::Unavailable)
    }

    /// Reserves ids, handlers and room in the queue for children, all or none.
    async fn reserve(&self, wishes: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError>;

    /// Reserves ids and room for items of a processor, all or none; what they become when the run completes.
    async fn reserve_items(
        &self,
        _processor: &str,
        _items: Vec<ItemWish>,
    ) -> Result<Vec<NewItem>, ItemsError> {
        Err(ItemsError::Unavailable)
    }

    /// The agents with these ids, in the order of the ids; missing ones are `None`.
    async fn agents(&self, _ids: &[AgentId]) -> Result<Vec<Option<Agent>>, AskError> {
        Err(AskError::Unavailable)
    }

    /// Up to `limit` agents with the statistics of their tasks, newest first.
    async fn list_agents(
        &self,
        _filter: &AgentFilter,
        _limit: u32,
    ) -> Result<Page<(Agent, AgentStatistics)>, AskError> {
        Err(AskError::Unavailable)
    }

    /// Up to `limit` tasks of a user with agents and results, newest first, older than `before`; fewer when they would
    /// be larger than a host call may be.
    async fn user_tasks(
        &self,
        _user: UserId,
        _before: Option<TaskId>,
        _limit: u32,
    ) -> Result<Page<UserTask>, AskError> {
        Err(AskError::Unavailable)
    }

    /// Tasks created in the range by plugin, kind and state, in that order.
    async fn statistics(&self, _range: DateRange) -> Result<Vec<Statistics>, AskError> {
        Err(AskError::Unavailable)
    }

    /// What the cache has under these keys, in their order.
    async fn cache_get(&self, _keys: &[String]) -> Result<Vec<Option<Bytes>>, CacheRefused> {
        Err(CacheRefused::Unavailable)
    }

    /// Keeps a value.
    async fn cache_set(&self, _key: &str, _value: Bytes, _keeping: Keeping) -> Result<(), CacheRefused> {
        Err(CacheRefused::Unavailable)
    }

    /// Removes a key.
    async fn cache_remove(&self, _key: &str) -> Result<(), CacheRefused> {
        Err(CacheRefused::Unavailable)
    }

    /// Removes everything that has a tag.
    async fn cache_remove_tag(&self, _tag: &str) -> Result<(), CacheRefused> {
        Err(CacheRefused::Unavailable)
    }

    /// The value of a key or the right to compute it; waits while another has the right.
    async fn cache_fill(&self, _key: &str) -> Result<CacheFilling, CacheRefused> {
        Err(CacheRefused::Unavailable)
    }
}
