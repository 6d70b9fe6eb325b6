//! Leased tasks that wait for a worker: one lane per tenant, served in turn.
//!
//! [`Lanes`] is the rule, without a clock or a thread; [`LocalQueue`] lets many workers wait on it. Permits are
//! part of the rule: a tenant's first, then the host's, both counted in the same place.

use std::collections::{BTreeMap, VecDeque};

use keiko_core::TenantId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The lanes.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    lanes: BTreeMap<TenantId, Lane<T>>,
    /// Tenants with waiting tasks, in the order of their turns.
    turns: VecDeque<TenantId>,
    /// Tasks that must run with nothing beside them; they go before all others.
    alone: VecDeque<(TenantId, T)>,
    alone_runs: bool,
    waiting: usize,
    running: usize,
    running_max: usize,
}

#[derive(Debug)]
struct Lane<T> {
    /// By place; of equal ones the earlier pushed first.
    waiting: VecDeque<(i64, T)>,
    running: usize,
    running_max: usize,
}

impl<T> Lanes<T> {
    /// Lanes of which `running_max` tasks run at once in all.
    pub(crate) fn new(running_max: usize) -> Lanes<T> {
        Lanes {
            lanes: BTreeMap::new(),
            turns: VecDeque::new(),
            alone: VecDeque::new(),
            alone_runs: false,
            waiting: 0,
            running: 0,
            running_max,
        }
    }

    /// Adds a task to its tenant's lane, at its place there; `running_max` is how many of the tenant's may run at once.
    pub(crate) fn push(&mut self, tenant: TenantId, running_max: usize, alone: bool, place_ms: i64, item: T) {
        self.waiting += 1;
        let lane = self.lanes.entry(tenant).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            running: 0,
            running_max,
        });
        lane.running_max = running_max;
        if alone {
            self.alone.push_back((tenant, item));
            return;
        }
        if lane.waiting.is_empty() {
            self.turns.push_back(tenant);
        }
        let place = lane.waiting.partition_point(|(other_ms, _)| *other_ms <= place_ms);
        lane.waiting.insert(place, (place_ms, item));
    }

    /// The next task that may run now. It counts as running until [`Lanes::done`].
    pub(crate) fn pop(&mut self) -> Option<(TenantId, T)> {
        if self.alone_runs || self.running >= self.running_max {
            return None;
        }
        if !self.alone.is_empty() {
            if self.running > 0 {
                return None;
            }
            let (tenant, item) = self.alone.pop_front()?;
            self.alone_runs = true;
            self.start(tenant);
            return Some((tenant, item));
        }
        for _ in 0..self.turns.len() {
            let tenant = self.turns.pop_front()?;
            let lane = self.lanes.get_mut(&tenant)?;
            if lane.running >= lane.running_max {
                self.turns.push_back(tenant);
                continue;
            }
            let (_, item) = lane.waiting.pop_front()?;
            if !lane.waiting.is_empty() {
                self.turns.push_back(tenant);
            }
            self.start(tenant);
            return Some((tenant, item));
        }
        None
    }

    fn start(&mut self, tenant: TenantId) {
        self.waiting -= 1;
        self.running += 1;
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.running += 1;
        }
    }

    /// A task that was popped has ended.
    pub(crate) fn done(&mut self, tenant: TenantId) {
        self.alone_runs = false;
        self.running -= 1;
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.running -= 1;
            if lane.running == 0 && lane.waiting.is_empty() {
                self.lanes.remove(&tenant);
            }
        }
    }

    /// Takes every waiting task out.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.waiting = 0;
        self.turns.clear();
        let mut items: Vec<T> = self.alone.drain(..).map(|(_, item)| item).collect();
        for lane in self.lanes.values_mut() {
            items.extend(lane.waiting.drain(..).map(|(_, item)| item));
        }
        self.lanes.retain(|_, lane| lane.running > 0);
        items
    }

    /// Tasks that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Tasks that run.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// Tasks that wait or run, by tenant.
    pub(crate) fn held(&self) -> BTreeMap<TenantId, usize> {
        let mut held: BTreeMap<_, _> =
            self.lanes.iter().map(|(tenant, lane)| (*tenant, lane.waiting.len() + lane.running)).collect();
        for (tenant, _) in &self.alone {
            *held.entry(*tenant).or_default() += 1;
        }
        held
    }
}

/// Lanes that workers wait on.
#[derive(Debug)]
pub(crate) struct LocalQueue<T> {
    lanes: Mutex<Lanes<T>>,
    /// Something was pushed, or something ended.
    ready: Notify,
    /// Something was popped: the dispatcher may have room again.
    popped: Notify,
    /// The last running task ended.
    idle: Notify,
}

impl<T> LocalQueue<T> {
    pub(crate) fn new(running_max: usize) -> LocalQueue<T> {
        LocalQueue {
            lanes: Mutex::new(Lanes::new(running_max)),
            ready: Notify::new(),
            popped: Notify::new(),
            idle: Notify::new(),
        }
    }

    /// A look at the lanes.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Lanes<T>) -> R) -> R {
        look(&self.lanes.lock())
    }

    /// Adds tasks; see [`Lanes::push`].
    pub(crate) fn push(&self, items: impl IntoIterator<Item = (TenantId, usize, bool, i64, T)>) {
        let mut lanes = self.lanes.lock();
        for (tenant, running_max, alone, place_ms, item) in items {
            lanes.push(tenant, running_max, alone, place_ms, item);
        }
        drop(lanes);
        self.ready.notify_one();
    }

    /// Waits for a task that may run.
    pub(crate) async fn next(&self) -> (TenantId, T) {
        loop {
            let ready = self.ready.notified();
            let popped = {
                let mut lanes = self.lanes.lock();
                lanes.pop().map(|popped| (popped, lanes.waiting() > 0))
            };
            if let Some((popped, more)) = popped {
                self.popped.notify_one();
                if more {
                    self.ready.notify_one();
                }
                return popped;
            }
            ready.await;
        }
    }

    /// See [`Lanes::done`].
    pub(crate) fn done(&self, tenant: TenantId) {
        let idle = {
            let mut lanes = self.lanes.lock();
            lanes.done(tenant);
            lanes.running() == 0
        };
        self.ready.notify_one();
        if idle {
            self.idle.notify_waiters();
        }
    }

    /// See [`Lanes::clear`].
    pub(crate) fn clear(&self) -> Vec<T> {
        let items = self.lanes.lock().clear();
        self.popped.notify_one();
        items
    }

    /// Waits until at most `mark` tasks wait.
    pub(crate) async fn low(&self, mark: usize) {
        loop {
            let popped = self.popped.notified();
            if self.lanes.lock().waiting() <= mark {
                return;
            }
            popped.await;
        }
    }

    /// Waits until nothing runs.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.lanes.lock().running() == 0 {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);

    fn pops(lanes: &mut Lanes<u32>) -> Vec<u32> {
        std::iter::from_fn(|| lanes.pop().map(|(_, item)| item)).collect()
    }

    #[test]
    fn tenants_take_turns_whatever_was_pushed_first() {
        let mut lanes = Lanes::new(100);
        for item in 0..3 {
            lanes.push(A, 100, false, 0, item);
        }
        lanes.push(B, 100, false, 0, 10);
        lanes.push(B, 100, false, 0, 11);
        assert_eq!(pops(&mut lanes), [0, 10, 1, 11, 2]);
        assert_eq!((lanes.waiting(), lanes.running()), (0, 5));
    }

    #[test]
    fn a_lane_goes_by_place() {
        let mut lanes = Lanes::new(100);
        for (place_ms, item) in [(5, 1), (5, 2), (3, 3), (9, 4), (4, 5)] {
            lanes.push(A, 100, false, place_ms, item);
        }
        lanes.push(B, 100, false, 100, 10);
        assert_eq!(pops(&mut lanes), [3, 10, 5, 1, 2, 4]);
    }

    #[test]
    fn a_tenant_at_its_limit_blocks_only_itself() {
        let mut lanes = Lanes::new(100);
        for item in 0..3 {
            lanes.push(A, 1, false, 0, item);
        }
        lanes.push(B, 100, false, 0, 10);
        assert_eq!(pops(&mut lanes), [0, 10]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [1]);
        assert_eq!(lanes.held()[&A], 2);
    }

    #[test]
    fn the_host_runs_no_more_than_its_limit() {
        let mut lanes = Lanes::new(2);
        for item in 0..4 {
            lanes.push(A, 100, false, 0, item);
        }
        assert_eq!(pops(&mut lanes), [0, 1]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [2]);
    }

    #[test]
    fn a_task_that_runs_alone_has_nothing_beside_it() {
        let mut lanes = Lanes::new(100);
        lanes.push(A, 100, false, 0, 1);
        assert_eq!(pops(&mut lanes), [1]);
        lanes.push(B, 100, true, 0, 7);
        lanes.push(A, 100, false, 0, 2);
        assert_eq!(pops(&mut lanes), [] as [u32; 0], "waits for what runs");
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [7]);
        lanes.done(B);
        assert_eq!(pops(&mut lanes), [2]);
    }

    #[test]
    fn clearing_leaves_only_what_runs() {
        let mut lanes = Lanes::new(1);
        for item in 0..3 {
            lanes.push(A, 100, item == 2, 0, item);
        }
        assert_eq!(pops(&mut lanes), [2]);
        assert_eq!(lanes.clear(), [0, 1]);
        assert_eq!((lanes.waiting(), lanes.running()), (0, 1));
        lanes.done(A);
        assert!(lanes.held().is_empty());
    }

    #[tokio::test]
    async fn waiting_workers_get_what_is_pushed() {
        let queue = std::sync::Arc::new(LocalQueue::new(10));
        let two = {
            let queue = std::sync::Arc::clone(&queue);
            async move { (queue.next().await.1, queue.next().await.1) }
        };
        let push = async {
            queue.push([(A, 10, false, 0, 1u32), (A, 10, false, 0, 2)]);
        };
        let (got, ()) = tokio::join!(two, push);
        assert_eq!(got, (1, 2));
        queue.low(0).await;
        queue.done(A);
        queue.done(A);
        queue.idle().await;
    }
}
