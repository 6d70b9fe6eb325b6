//! Where tasks are kept.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::code::Code;
use crate::group::{Group, Outcome};
use crate::id::{GroupId, Holder, KindId, TaskId, TenantId, Token};
use crate::retention::KeptFrom;
use crate::slot::Concurrencies;
use crate::task::{
    Amendment, CancelAnswer, DropAnswer, LeasedTask, Payload, RetryAnswer, Settled, Settlement, Submit,
    Submitted, TaskCounts, TaskFilter, TaskSummary, TaskView,
};
use crate::tree::{Branch, Cut};

/// What kind of trouble a store has; decides the code and whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// Another user of the database is in the way.
    Busy,
    /// It cannot be reached.
    Down,
    /// It has no room.
    Full,
    /// What is stored is not what was stored.
    Integrity,
    /// It refuses this very write, whatever else happens.
    Refused,
    /// Anything else: a fault of ours.
    Internal,
}

/// A store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    kind: StoreErrorKind,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error of `kind`, said in `message`.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> StoreError {
        StoreError { kind, message: message.into(), source: None }
    }

    /// The same error, caused by `source`.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
        self.source = Some(source.into());
        self
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The code a client gets.
    pub fn code(&self) -> Code {
        match self.kind {
            StoreErrorKind::Busy => Code::StorageBusy,
            StoreErrorKind::Down => Code::StorageDown,
            StoreErrorKind::Full => Code::StorageFull,
            StoreErrorKind::Integrity => Code::Integrity,
            StoreErrorKind::Refused | StoreErrorKind::Internal => Code::Internal,
        }
    }
}

/// Task ids that belong to this host alone: `first`, `first + 1`, … `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdBlock {
    /// The first id.
    pub first: TaskId,
    /// How many.
    pub count: u32,
}

/// What a beat found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The holder lives.
    Alive {
        /// When the first lease of another holder ends unless it beats, on this host's clock: then, and not before, is
        /// there something to rescue. `None` when there is no other holder.
        others_end_ms: Option<i64>,
        /// Grows whenever a plugin is installed or removed.
        catalog: i64,
    },
    /// The holder was rescued: nothing it leased is its own any more.
    Lost,
}

/// What a dispatcher asks for.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// Who asks.
    pub holder: Holder,
    /// Tasks to lease at most.
    pub room: usize,
    /// The most of one tenant, where it is not `cap_default`.
    pub caps: HashMap<TenantId, usize>,
    /// The most of any other tenant.
    pub cap_default: usize,
    /// The tenant served last: see [`crate::share::shares`].
    pub after: Option<TenantId>,
    /// How many tasks of kinds run at once, on all hosts, as this host knows it.
    pub slots: Arc<Concurrencies>,
    /// Whether there should be something to lease. If not, a store may look first, which costs less than a lease.
    pub expects: bool,
    /// The holder's lease lasts this long from now on.
    pub lease_ms: i64,
    /// Now.
    pub now_ms: i64,
}

/// Says what to lease when it comes to it.
pub type Ask = Box<dyn FnOnce() -> Option<LeaseRequest> + Send>;

/// What ends a wait.
pub type Until<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What a dispatcher gets.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// Tasks that are this host's to run.
    pub tasks: Vec<LeasedTask>,
    /// The tenant served last.
    pub after: Option<TenantId>,
    /// When the next task that is not due yet comes due, on this host's clock; looked up only when the room was not
    /// filled.
    pub next_run_at_ms: Option<i64>,
    /// The holder is not registered any more: it was rescued.
    pub lost: bool,
}

/// Which holders to treat as dead.
#[derive(Clone, Copy, Debug)]
pub enum Dead {
    /// All but this one: the caller knows that no other host can be alive.
    AllBut(Holder),
    /// Those whose lease has ended, and those that hold one of the tasks that had `started`: whoever names such a task
    /// knows that the process which ran it is gone.
    Expired,
}

/// Tasks that a store has ended as failed by itself: how many of each kind.
pub type FailedByKind = BTreeMap<(TenantId, KindId), u64>;

/// What a rescue did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Tasks given back to the queue.
    pub returned: u64,
    /// How many of them were charged a crash.
    pub crashed: u64,
    /// Tasks that ended as `quarantined`.
    pub quarantined: Vec<TaskId>,
    /// The same by kind.
    pub failed: FailedByKind,
    /// Groups that fail fast of which a task has failed and others have not ended: whoever was to cancel these may be gone.
    pub groups: Vec<(TenantId, GroupId)>,
}

/// What a round of ending did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Tasks that ended, with their tenants.
    pub ended: Vec<(TenantId, TaskId)>,
    /// The same by kind.
    pub failed: FailedByKind,
    /// Groups of which some of them are.
    pub groups: Vec<(TenantId, GroupId)>,
    /// When the next time-out is over, on this host's clock; now when there may be more already.
    pub next_ms: Option<i64>,
}

/// What a round of forgetting did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Tasks forgotten.
    pub pruned: u64,
    /// Where the next round begins; `None` when there is nothing more to look at.
    pub next: Option<TaskId>,
}

/// The writing side: the life of tasks.
///
/// What several hosts compare (the ends of leases, due times) is on the database's clock where it has one: `now_ms` is
/// the caller's, and times that come from the caller's clock are moved by the difference between the two.
///
/// Every method is one transaction, whole or not at all, and safe to drop while it runs: it then completes or
/// fails by itself. Writes that end an attempt carry its token and change nothing when it is stale.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Registers a new incarnation of a host, whose lease lasts until `now_ms + lease_ms`.
    async fn open_holder(&self, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError>;

    /// Prolongs the holder's lease, and so that of every task it holds.
    async fn beat(&self, holder: Holder, now_ms: i64, lease_ms: i64) -> Result<Beat, StoreError>;

    /// Hands everything back that the holder still has, uncharged, and forgets it.
    async fn close_holder(&self, holder: Holder, now_ms: i64) -> Result<u64, StoreError>;

    /// Reserves `count` consecutive ids, none below [`TaskId::floor`] of `now_ms`.
    async fn reserve_ids(&self, count: u32, now_ms: i64) -> Result<IdBlock, StoreError>;

    /// Stores submits, each whole or refused; the answers are in their order. One without tasks stores nothing: it is
    /// answered by what its key stands for, and when that is nothing, with no tasks accepted.
    async fn enqueue(&self, submits: Vec<Submit>, now_ms: i64) -> Result<Vec<Submitted>, StoreError>;

    /// Leases due tasks, fairly across tenants, in the order of [`crate::priority`] within one; tenants take turns in the answer.
    /// Prolongs the holder's lease; a holder that is not registered gets none. A task for which there is no slot waits for one, and is
    /// found again when one is kept for it: see [`crate::slot`]. Large inputs may keep due tasks for the next lease: then
    /// `next_run_at_ms` is now.
    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError>;

    /// Leases with the next submit that comes through this store, in one transaction, so that a host with nothing to do has
    /// a task as soon as it is stored; `ask` says then what for, if for anything. `None` when nothing was asked for, or
    /// `until` ended before. One caller at a time. A store to which a lease after the submit costs as little waits for
    /// `until`.
    async fn lease_next(
        &self,
        _ask: Ask,
        until: Until<'_>,
    ) -> Result<Option<(LeaseRequest, Lease)>, StoreError> {
        until.await;
        Ok(None)
    }

    /// Writes the ends of attempts of one holder; the answers are in their order.
    async fn settle(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError>;

    /// Returns the tasks of dead holders to the queue. `started` are those known to have been running, which
    /// are charged a crash by [`crate::crash::verdict`].
    async fn rescue(
        &self,
        dead: Dead,
        started: Vec<(TaskId, Token)>,
        now_ms: i64,
    ) -> Result<Rescued, StoreError>;

    /// Those of these leases, whichever holders', that are over: their tasks have ended, are back in the queue, or were leased
    /// again. However many they are, it is one statement.
    async fn stale(&self, leases: Vec<(TaskId, Token)>) -> Result<Vec<(TaskId, Token)>, StoreError>;

    /// Ends a task that has not ended; its token grows, so that a running attempt settles nothing.
    async fn cancel(&self, tenant: TenantId, id: TaskId, now_ms: i64) -> Result<CancelAnswer, StoreError>;

    /// Cancels up to `count_max` tasks of a group that have not ended, the last ones first, and returns them. `None` when the
    /// tenant has no such group; with `only_failed` also when none of it has failed, or it does not fail fast.
    async fn cancel_group(
        &self,
        tenant: TenantId,
        id: GroupId,
        only_failed: bool,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Option<Vec<TaskId>>, StoreError>;

    /// Cancels up to `count_max` tasks of a branch that have not ended. Until nothing is left of it, call again.
    async fn cancel_branch(
        &self,
        tenant: TenantId,
        branch: Branch,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Cut, StoreError>;

    /// Ends up to `count_max` tasks whose time is over by [`crate::time_out`]; a running one has a stale token then.
    async fn expire(&self, now_ms: i64, count_max: u32) -> Result<Expired, StoreError>;

    /// Makes a failed or cancelled task pending again, changed by the amendment, unless the tenant has `queue_max` live
    /// tasks, or it is to be the only one of its kind and key and another one is live. Such a key stands for it from then on.
    async fn retry(
        &self,
        tenant: TenantId,
        id: TaskId,
        amendment: Amendment,
        queue_max: u64,
        now_ms: i64,
    ) -> Result<RetryAnswer, StoreError>;

    /// Walks up to `count_max` ended tasks of a tenant, oldest id first, behind `after`, and forgets those that are not
    /// kept any more, with their attempts and logs. What is forgotten is not counted any more, but for its agent.
    async fn prune_finished(
        &self,
        tenant: TenantId,
        kept: KeptFrom,
        after: Option<TaskId>,
        count_max: u32,
    ) -> Result<Pruned, StoreError>;

    /// Forgets an ended task at once, as [`TaskStore::prune_finished`] does later: neither forgets tasks of a group that is
    /// open.
    async fn drop_task(&self, tenant: TenantId, id: TaskId) -> Result<DropAnswer, StoreError>;

    /// Forgets up to `count_max` idempotency keys that have expired; returns how many.
    async fn prune(&self, now_ms: i64, count_max: u32) -> Result<u64, StoreError>;
}

/// The reading side: what people and programs see of tasks. Always one tenant's.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// A task with its result and its attempts.
    async fn task(&self, tenant: TenantId, id: TaskId) -> Result<Option<TaskView>, StoreError>;

    /// What a task is given, as it is stored; of one that joins others see [`crate::join`]. `None` when the tenant has no such
    /// task, or it has completed: then it is not kept.
    async fn input(&self, tenant: TenantId, id: TaskId) -> Result<Option<Payload>, StoreError>;

    /// Up to `limit` tasks, newest first.
    async fn list(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, StoreError>;

    /// A group as it stands.
    async fn group(&self, tenant: TenantId, id: GroupId) -> Result<Option<Group>, StoreError>;

    /// Up to `limit` outcomes of tasks with numbers from the first to below the second, in order; fewer when their results
    /// are more than [`crate::limit::USER_RESULTS_BYTES_MAX`]: then the last one is that with which they are. Tasks that
    /// are forgotten are left out.
    async fn outcomes(
        &self,
        tenant: TenantId,
        tasks: (TaskId, TaskId),
        limit: u32,
    ) -> Result<Vec<Outcome>, StoreError>;

    /// How many tasks there are in each state.
    async fn counts(&self, tenant: TenantId) -> Result<TaskCounts, StoreError>;

    /// Live tasks of every tenant that has any, as the quota counts them.
    async fn live(&self) -> Result<HashMap<TenantId, u64>, StoreError>;

    /// The kept logs of a task's attempts, as (attempt, encoded log), in order.
    async fn logs(&self, tenant: TenantId, id: TaskId) -> Result<Vec<(u32, Bytes)>, StoreError>;

    /// Whether the database answers.
    async fn ping(&self) -> Result<(), StoreError>;
}
