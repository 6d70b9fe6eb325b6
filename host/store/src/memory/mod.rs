//! A store in memory, for simulations and for the tests of other crates: every seam over plain maps under one lock.
//!
//! - It keeps the promises of the other stores, by the same conformance suite, except that nothing outlives it.
//! - It has no clock, no randomness and no task of its own: equal calls in equal order give equal answers, and a call
//!   is done at its first poll unless [`Faults::slow`] says otherwise.
//! - Clones are one host's; [`MemoryStore::another_host`] is a second host on the same data, with faults and news of
//!   its own.

mod agents;
mod batches;
mod branch;
mod cache;
mod canaries;
mod catalog;
mod groups;
mod history;
mod leases;
mod link;
mod listed;
mod mutation;
mod next;
mod onces;
mod pauses;
mod records;
mod schedules;
mod seen;
mod settles;
mod slots;
mod state;
mod tasks;
#[cfg(test)]
mod tests;
mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use keiko_core::id::{GroupId, Holder, TaskId, TenantId, Token};
use keiko_core::port::{
    Ask, Beat, Dead, Expired, IdBlock, Lease, LeaseRequest, Pruned, Rescued, StoreError, TaskStore, Until,
};
use keiko_core::retention::KeptFrom;
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, RetryAnswer, Settled, Settlement, Submit, Submitted,
};
use keiko_core::tree::{Branch, Cut};

pub use self::cache::{LevelFault, MemoryLevel, MemoryPlane};
pub use self::link::Faults;
use self::link::{Link, Shared};
#[doc(hidden)]
pub use self::mutation::Mutation;
use self::next::Next;
use self::state::State;

/// Calls that a store answers which breaks a promise: several times what the longest body of the suite makes.
const CALLS_OF_BROKEN_MAX: u32 = 200_000;

/// A store in memory, as one host has it.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    link: Arc<Link>,
    next: Arc<Next>,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::of(State::default())
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// An empty store that breaks one promise.
    #[doc(hidden)]
    pub fn broken(mutation: Mutation) -> MemoryStore {
        let store = MemoryStore::of(State { mutation: Some(mutation), ..State::default() });
        store.link.limit_calls(CALLS_OF_BROKEN_MAX);
        store
    }

    fn of(state: State) -> MemoryStore {
        let shared = Arc::new(Shared::of(state));
        MemoryStore { link: Arc::new(Link::new(Arc::clone(&shared))), shared, next: Arc::default() }
    }

    /// The same store as another host has it.
    #[must_use]
    pub fn another_host(&self) -> MemoryStore {
        let shared = Arc::clone(&self.shared);
        MemoryStore { link: Arc::new(Link::new(Arc::clone(&shared))), shared, next: Arc::default() }
    }

    /// Settles and leases that broke the rules of tokens, as they were seen when they were written: none, unless the
    /// store breaks a promise.
    #[doc(hidden)]
    pub fn seen_broken(&self) -> Vec<String> {
        self.shared.state.lock().seen_broken.clone()
    }

    /// Waits until something of that was seen.
    #[doc(hidden)]
    pub async fn until_broken(&self) {
        self.shared.broken.notified().await;
    }

    /// Tasks that are leased under a holder that is gone: none at any time, unless the store breaks a promise.
    #[doc(hidden)]
    pub fn orphans(&self) -> Vec<TaskId> {
        self.shared.state.lock().orphans()
    }

    /// Everything that is live below a task.
    #[doc(hidden)]
    pub fn open_below(&self, task: TaskId) -> Vec<TaskId> {
        self.shared.state.lock().open_below(task)
    }

    /// How many calls have written ends of attempts.
    #[doc(hidden)]
    pub fn settles(&self) -> u64 {
        self.shared.state.lock().settles
    }

    /// How many tasks were leased by leases that went with submits.
    #[doc(hidden)]
    pub fn leased_along(&self) -> u64 {
        self.shared.state.lock().leased_along
    }

    /// What goes wrong for this host from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.link.set_faults(faults);
    }

    /// Ends this host's use of the store: whatever it asks afterwards answers `Down`.
    pub fn close(&self) {
        self.link.close();
    }

    async fn call<T>(&self, work: impl FnOnce(&mut State) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.link.call(work).await
    }
}

#[async_trait]
impl TaskStore for MemoryStore {
    async fn open_holder(&self, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError> {
        self.call(|state| Ok(state.open_holder(now_ms, lease_ms))).await
    }

    async fn beat(&self, holder: Holder, now_ms: i64, lease_ms: i64) -> Result<Beat, StoreError> {
        self.call(|state| Ok(state.beat(holder, now_ms, lease_ms))).await
    }

    async fn close_holder(&self, holder: Holder, _now_ms: i64) -> Result<u64, StoreError> {
        self.call(|state| Ok(state.close_holder(holder))).await
    }

    async fn reserve_ids(&self, count: u32, now_ms: i64) -> Result<IdBlock, StoreError> {
        self.call(|state| Ok(state.reserve_ids(count, now_ms))).await
    }

    async fn enqueue(&self, submits: Vec<Submit>, now_ms: i64) -> Result<Vec<Submitted>, StoreError> {
        let mut along = None;
        let answers = self.call(|state| {
            let mut answers = state.enqueue(&submits, now_ms)?;
            along = self.next.go(state, &mut answers);
            Ok(answers)
        });
        let answers = answers.await?;
        if let Some(along) = along {
            along.tell(&self.shared);
        }
        Ok(answers)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        self.call(|state| Ok(state.lease(&request))).await
    }

    async fn lease_next(
        &self,
        ask: Ask,
        until: Until<'_>,
    ) -> Result<Option<(LeaseRequest, Lease)>, StoreError> {
        self.next.wait(ask, until).await
    }

    async fn settle(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        self.call(|state| {
            state.settles += 1;
            state.settle(holder, &settlements, now_ms)
        })
        .await
    }

    async fn rescue(
        &self,
        dead: Dead,
        started: Vec<(TaskId, Token)>,
        now_ms: i64,
    ) -> Result<Rescued, StoreError> {
        self.call(|state| Ok(state.rescue(dead, started, now_ms))).await
    }

    async fn stale(&self, leases: Vec<(TaskId, Token)>) -> Result<Vec<(TaskId, Token)>, StoreError> {
        self.call(|state| Ok(state.stale(leases))).await
    }

    async fn cancel(&self, tenant: TenantId, id: TaskId, now_ms: i64) -> Result<CancelAnswer, StoreError> {
        self.call(|state| Ok(state.cancel(tenant, id, now_ms))).await
    }

    async fn cancel_group(
        &self,
        tenant: TenantId,
        id: GroupId,
        only_failed: bool,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Option<Vec<TaskId>>, StoreError> {
        self.call(|state| Ok(state.cancel_group(tenant, id, only_failed, now_ms, count_max))).await
    }

    async fn cancel_branch(
        &self,
        tenant: TenantId,
        branch: Branch,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Cut, StoreError> {
        self.call(|state| Ok(state.cancel_branch(tenant, branch, now_ms, count_max))).await
    }

    async fn expire(&self, now_ms: i64, count_max: u32) -> Result<Expired, StoreError> {
        self.call(|state| Ok(state.expire(now_ms, count_max))).await
    }

    async fn retry(
        &self,
        tenant: TenantId,
        id: TaskId,
        amendment: Amendment,
        queue_max: u64,
        now_ms: i64,
    ) -> Result<RetryAnswer, StoreError> {
        self.call(|state| Ok(state.retry(tenant, id, &amendment, queue_max, now_ms))).await
    }

    async fn prune_finished(
        &self,
        tenant: TenantId,
        kept: KeptFrom,
        after: Option<TaskId>,
        count_max: u32,
    ) -> Result<Pruned, StoreError> {
        self.call(|state| Ok(state.prune_finished(tenant, &kept, after, count_max))).await
    }

    async fn drop_task(&self, tenant: TenantId, id: TaskId) -> Result<DropAnswer, StoreError> {
        self.call(|state| Ok(state.drop_task(tenant, id))).await
    }

    async fn prune(&self, now_ms: i64, count_max: u32) -> Result<u64, StoreError> {
        self.call(|state| Ok(state.prune_keys(now_ms, count_max) + state.prune_onces(now_ms, count_max)))
            .await
    }
}
