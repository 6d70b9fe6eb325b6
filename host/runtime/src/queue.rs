//! Leased tasks that wait for a worker: one lane per tenant, served in turn.
//!
//! [`Lanes`] is the rule, without a clock or a thread; [`LocalQueue`] lets many workers wait on it. Permits are
//! part of the rule: a tenant's first, then the host's, both counted in the same place.
//!
//! Runs, which are no tasks and whose callers wait, go before the tasks of their own tenant and take its turns. Of them
//! as many may wait as may run, of a tenant and in all, so that who comes later is told at once that there is no room.

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
    /// Tasks that wait, runs not counted.
    waiting: usize,
    /// Runs that wait.
    offered: usize,
    last_ticket: u64,
    running: usize,
    running_max: usize,
    /// Who leases is told when at most so many tasks wait.
    mark: usize,
}

#[derive(Debug)]
struct Lane<T> {
    /// By place; of equal ones the earlier pushed first.
    waiting: VecDeque<(i64, T)>,
    /// Runs, each with its ticket.
    offered: VecDeque<(u64, T)>,
    running: usize,
    running_max: usize,
    /// Who leases is told when at most so many tasks wait here: set while the tenant has as many as it may.
    mark: Option<usize>,
}

/// A run that waits, until it is popped: how it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    tenant: TenantId,
    number: u64,
}

/// Whose room for runs is used up, and how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The tenant's.
    Tenant(usize),
    /// The host's.
    Host(usize),
}

impl<T> Lane<T> {
    fn new() -> Lane<T> {
        Lane { waiting: VecDeque::new(), offered: VecDeque::new(), running: 0, running_max: 0, mark: None }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.offered.is_empty()
    }
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
            offered: 0,
            last_ticket: 0,
            running: 0,
            running_max,
            mark: 0,
        }
    }

    /// Adds a task to its tenant's lane, at its place there; `running_max` is how many of the tenant's may run at once.
    pub(crate) fn push(&mut self, tenant: TenantId, running_max: usize, alone: bool, place_ms: i64, item: T) {
        self.waiting += 1;
        let lane = self.lanes.entry(tenant).or_insert_with(Lane::new);
        lane.running_max = running_max;
        if alone {
            self.alone.push_back((tenant, item));
            return;
        }
        if lane.is_empty() {
            self.turns.push_back(tenant);
        }
        let place = lane.waiting.partition_point(|(other_ms, _)| *other_ms <= place_ms);
        lane.waiting.insert(place, (place_ms, item));
    }

    /// Adds a run to its tenant's lane, unless as many of them wait as may run.
    pub(crate) fn offer(&mut self, tenant: TenantId, running_max: usize, item: T) -> Result<Ticket, Full> {
        if self.offered >= self.running_max {
            return Err(Full::Host(self.running_max));
        }
        let lane = self.lanes.entry(tenant).or_insert_with(Lane::new);
        lane.running_max = running_max;
        if lane.offered.len() >= running_max {
            return Err(Full::Tenant(running_max));
        }
        if lane.is_empty() {
            self.turns.push_back(tenant);
        }
        self.last_ticket += 1;
        self.offered += 1;
        lane.offered.push_back((self.last_ticket, item));
        Ok(Ticket { tenant, number: self.last_ticket })
    }

    /// Takes a run back that has not been popped.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> Option<T> {
        let lane = self.lanes.get_mut(&ticket.tenant)?;
        let at = lane.offered.iter().position(|(number, _)| *number == ticket.number)?;
        let (_, item) = lane.offered.remove(at)?;
        self.offered -= 1;
        if lane.is_empty() {
            self.turns.retain(|tenant| *tenant != ticket.tenant);
            if lane.running == 0 {
                self.lanes.remove(&ticket.tenant);
            }
        }
        Some(item)
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
            self.waiting -= 1;
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
            let item = match lane.offered.pop_front() {
                Some((_, item)) => {
                    self.offered -= 1;
                    item
                }
                None => {
                    self.waiting -= 1;
                    lane.waiting.pop_front()?.1
                }
            };
            if !lane.is_empty() {
                self.turns.push_back(tenant);
            }
            self.start(tenant);
            return Some((tenant, item));
        }
        None
    }

    fn start(&mut self, tenant: TenantId) {
        self.running += 1;
        self.lanes.entry(tenant).or_insert_with(Lane::new).running += 1;
    }

    /// A task that was popped has ended.
    pub(crate) fn done(&mut self, tenant: TenantId) {
        self.alone_runs = false;
        self.running -= 1;
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.running -= 1;
            if lane.running == 0 && lane.is_empty() {
                self.lanes.remove(&tenant);
            }
        }
    }

    /// Takes every waiting task out, and leaves the runs.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.waiting = 0;
        let mut items: Vec<T> = self.alone.drain(..).map(|(_, item)| item).collect();
        for lane in self.lanes.values_mut() {
            items.extend(lane.waiting.drain(..).map(|(_, item)| item));
        }
        self.keep_what_is_left();
        items
    }

    /// Takes every waiting run out.
    pub(crate) fn clear_offered(&mut self) -> Vec<T> {
        self.offered = 0;
        let lanes = self.lanes.values_mut();
        let items = lanes.flat_map(|lane| lane.offered.drain(..)).map(|(_, item)| item).collect();
        self.keep_what_is_left();
        items
    }

    /// Sets when these are low: at `mark` tasks in all, or when half of what waits now has left the lane of one of `capped`,
    /// who could have no more.
    pub(crate) fn mark(&mut self, mark: usize, capped: &[TenantId]) {
        self.mark = mark;
        for lane in self.lanes.values_mut() {
            lane.mark = None;
        }
        for tenant in capped {
            if let Some(lane) = self.lanes.get_mut(tenant) {
                lane.mark = Some(lane.waiting.len() / 2);
            }
        }
    }

    /// Whether they are low. A lane that went has nothing any more.
    pub(crate) fn are_low(&self, capped: &[TenantId]) -> bool {
        let is_low = |lane: &Lane<T>| lane.mark.is_none_or(|mark| lane.waiting.len() <= mark);
        self.waiting <= self.mark || capped.iter().any(|tenant| self.lanes.get(tenant).is_none_or(is_low))
    }

    /// Whether they may be low since this tenant's lane lost a task.
    fn may_be_low_by(&self, tenant: TenantId) -> bool {
        let is_low = |lane: &Lane<T>| lane.mark.is_some_and(|mark| lane.waiting.len() <= mark);
        self.waiting <= self.mark || self.lanes.get(&tenant).is_some_and(is_low)
    }

    fn keep_what_is_left(&mut self) {
        self.lanes.retain(|_, lane| lane.running > 0 || !lane.is_empty());
        let lanes = &self.lanes;
        self.turns.retain(|tenant| lanes.get(tenant).is_some_and(|lane| !lane.is_empty()));
    }

    /// Whether anything waits.
    fn has_more(&self) -> bool {
        self.waiting + self.offered > 0
    }

    /// Tasks that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Runs that wait.
    pub(crate) fn offered(&self) -> usize {
        self.offered
    }

    /// Tasks and runs that run.
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
    /// The lanes are low: the dispatcher has room again.
    low: Notify,
    /// The last running task ended.
    idle: Notify,
}

impl<T> LocalQueue<T> {
    pub(crate) fn new(running_max: usize) -> LocalQueue<T> {
        LocalQueue {
            lanes: Mutex::new(Lanes::new(running_max)),
            ready: Notify::new(),
            low: Notify::new(),
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

    /// Adds a run; see [`Lanes::offer`].
    pub(crate) fn offer(&self, tenant: TenantId, running_max: usize, item: T) -> Result<Ticket, Full> {
        let ticket = self.lanes.lock().offer(tenant, running_max, item)?;
        self.ready.notify_one();
        Ok(ticket)
    }

    /// See [`Lanes::withdraw`].
    pub(crate) fn withdraw(&self, ticket: Ticket) {
        // Outside of the lock, because dropping it may wake others.
        let withdrawn = self.lanes.lock().withdraw(ticket);
        drop(withdrawn);
    }

    /// See [`Lanes::clear_offered`].
    pub(crate) fn clear_offered(&self) {
        let items = self.lanes.lock().clear_offered();
        drop(items);
    }

    /// Waits for a task or a run that may run.
    pub(crate) async fn next(&self) -> (TenantId, T) {
        loop {
            let ready = self.ready.notified();
            let popped = {
                let mut lanes = self.lanes.lock();
                lanes.pop().map(|popped| {
                    let low = lanes.may_be_low_by(popped.0);
                    (popped, low, lanes.has_more())
                })
            };
            if let Some((popped, low, more)) = popped {
                if low {
                    self.low.notify_one();
                }
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
        self.low.notify_one();
        items
    }

    /// Waits until at most `mark` tasks wait, or until one of the `capped` tenants has room again; see [`Lanes::mark`].
    pub(crate) async fn low(&self, mark: usize, capped: &[TenantId]) {
        self.lanes.lock().mark(mark, capped);
        loop {
            let low = self.low.notified();
            if self.lanes.lock().are_low(capped) {
                return;
            }
            low.await;
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
    fn lanes_are_low_by_their_mark_or_by_that_of_a_tenant_who_had_all_it_may() {
        let mut lanes = Lanes::new(100);
        for item in 0..4 {
            lanes.push(A, 1, false, 0, item);
            lanes.push(B, 100, false, 0, 10 + item);
        }
        lanes.mark(1, &[A]);
        let mut seen = Vec::new();
        while let Some((tenant, item)) = lanes.pop() {
            seen.push((item, lanes.are_low(&[A]), lanes.are_low(&[]), lanes.may_be_low_by(tenant)));
            if tenant == A {
                lanes.done(A);
            }
        }
        let before = [(0, false, false, false), (10, false, false, false)];
        let by_lane = [
            (1, true, false, true),
            (11, true, false, false),
            (2, true, false, true),
            (12, true, false, false),
        ];
        assert_eq!(seen, [&before[..], &by_lane, &[(3, true, true, true), (13, true, true, true)]].concat());
        assert!(lanes.are_low(&[A]) && !lanes.held().contains_key(&A), "a lane that is gone is low");
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

    #[test]
    fn a_run_goes_before_its_tenants_tasks_and_takes_its_tenants_turns() {
        let mut lanes = Lanes::new(100);
        for item in 0..3 {
            lanes.push(A, 100, false, 0, item);
            lanes.push(B, 100, false, 0, 10 + item);
        }
        lanes.offer(B, 100, 20).unwrap();
        lanes.offer(B, 100, 21).unwrap();
        assert_eq!((lanes.waiting(), lanes.held()[&B]), (6, 3), "a run is no leased task");
        assert_eq!(pops(&mut lanes), [0, 20, 1, 21, 2, 10, 11, 12]);
        assert_eq!((lanes.waiting(), lanes.running(), lanes.has_more()), (0, 8, false));
    }

    #[test]
    fn as_many_runs_wait_as_may_run() {
        let mut lanes = Lanes::new(3);
        assert!(lanes.offer(A, 2, 0).is_ok() && lanes.offer(A, 2, 1).is_ok());
        assert_eq!(lanes.offer(A, 2, 2), Err(Full::Tenant(2)));
        assert!(lanes.offer(B, 2, 3).is_ok());
        assert_eq!(lanes.offer(B, 2, 4), Err(Full::Host(3)));
        assert_eq!(pops(&mut lanes), [0, 3, 1]);
        assert!(lanes.offer(B, 2, 5).is_ok(), "what runs leaves its place among those that wait");
        assert_eq!(pops(&mut lanes), [] as [u32; 0]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [5]);
    }

    #[test]
    fn a_run_that_is_withdrawn_leaves_nothing_behind() {
        let mut lanes = Lanes::new(3);
        let first = lanes.offer(A, 1, 0).unwrap();
        assert_eq!(lanes.withdraw(first), Some(0));
        assert!(lanes.lanes.is_empty() && lanes.turns.is_empty() && !lanes.has_more());
        lanes.push(A, 1, false, 0, 1);
        let second = lanes.offer(A, 1, 2).unwrap();
        assert_eq!(lanes.withdraw(first), None, "its ticket is nobody else's");
        assert_eq!(lanes.withdraw(second), Some(2));
        assert_eq!(pops(&mut lanes), [1]);
        let third = lanes.offer(A, 1, 3).unwrap();
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [3]);
        assert_eq!(lanes.withdraw(third), None, "it runs");
    }

    #[test]
    fn runs_and_tasks_are_cleared_apart() {
        let mut lanes = Lanes::new(3);
        lanes.push(A, 1, false, 0, 1);
        lanes.offer(A, 1, 2).unwrap();
        lanes.offer(B, 1, 3).unwrap();
        assert_eq!(lanes.clear(), [1]);
        assert_eq!(pops(&mut lanes), [2, 3]);
        lanes.offer(A, 1, 4).unwrap();
        lanes.push(A, 1, false, 0, 5);
        assert_eq!(lanes.clear_offered(), [4]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [5]);
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
        queue.low(0, &[]).await;
        queue.done(A);
        queue.done(A);
        queue.idle().await;
    }
}
