//! Leased tasks that wait for a worker.
//!
//! [`Lanes`] is the rule, without a clock or a thread; [`LocalQueue`] lets many workers wait on it. Permits are
//! part of the rule: a tenant's first, then the host's, both counted in the same place.
//!
//! How many tasks are likely to begin soon is told by free places and by what ended lately: see [`crate::ahead`].

mod lanes;

use std::sync::Arc;

use keiko_core::TenantId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::ahead::{Load, Low};
use crate::options::Options;

pub(crate) use lanes::{Full, Lanes, Ticket};

/// Lanes that workers wait on.
#[derive(Debug)]
pub(crate) struct LocalQueue<T> {
    lanes: Mutex<Lanes<T>>,
    /// Where the lanes' time begins.
    made: Instant,
    /// Each worker's room for short attempts, which it alone takes from, with an attempt.
    slots: Vec<Arc<Semaphore>>,
    /// Something was pushed, or something ended.
    ready: Notify,
    /// Something waits, and nothing did before.
    filled: Notify,
    /// The lanes are low: the dispatcher has room again.
    low: Notify,
    /// The last running task ended.
    idle: Notify,
}

impl<T> LocalQueue<T> {
    /// The queue of a host; `size` says how many bytes a task has.
    pub(crate) fn new(options: &Options, size: fn(&T) -> usize) -> LocalQueue<T> {
        let slots = || Arc::new(Semaphore::new(options.running_per_worker));
        LocalQueue {
            lanes: Mutex::new(Lanes::new(options.running_max, size)),
            made: Instant::now(),
            slots: (0..options.workers).map(|_| slots()).collect(),
            ready: Notify::new(),
            filled: Notify::new(),
            low: Notify::new(),
            idle: Notify::new(),
        }
    }

    /// The lanes, which are told the time.
    fn lock(&self) -> MutexGuard<'_, Lanes<T>> {
        let mut lanes = self.lanes.lock();
        lanes.go_on(self.made.elapsed().as_secs());
        lanes
    }

    /// The room of one of the workers.
    pub(crate) fn slots(&self, worker: usize) -> Arc<Semaphore> {
        Arc::clone(&self.slots[worker])
    }

    /// Short attempts that workers have room for.
    fn free_slots(&self) -> usize {
        self.slots.iter().map(|slots| slots.available_permits()).sum()
    }

    /// What is here.
    pub(crate) fn load(&self) -> Load {
        self.lock().load(self.free_slots())
    }

    /// See [`Lanes::is_full`].
    pub(crate) fn is_full(&self) -> bool {
        self.lanes.lock().is_full(self.free_slots())
    }

    /// Waits until something waits.
    pub(crate) async fn filled(&self) {
        loop {
            let filled = self.filled.notified();
            if self.lanes.lock().waiting() > 0 {
                return;
            }
            filled.await;
        }
    }

    /// A look at the lanes.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Lanes<T>) -> R) -> R {
        look(&self.lanes.lock())
    }

    /// Adds tasks; see [`Lanes::push`].
    pub(crate) fn push(&self, items: impl IntoIterator<Item = (TenantId, usize, bool, i64, T)>) {
        let mut lanes = self.lock();
        let was_empty = lanes.waiting() == 0;
        for (tenant, running_max, alone, place_ms, item) in items {
            lanes.push(tenant, running_max, alone, place_ms, item);
        }
        drop(lanes);
        self.ready.notify_one();
        if was_empty {
            self.filled.notify_one();
        }
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
            let (popped, low, more) = {
                let mut lanes = self.lanes.lock();
                let popped = lanes.pop();
                // A worker that finds nothing has a place free.
                let low = popped.as_ref().map_or(lanes.beside, |(tenant, _)| lanes.may_be_low_by(*tenant));
                (popped, low, lanes.has_more())
            };
            if low {
                self.low.notify_one();
            }
            if let Some(popped) = popped {
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
        let (low, idle, more) = {
            let mut lanes = self.lock();
            let low = lanes.beside && lanes.may_be_low_by(tenant);
            lanes.done(tenant);
            (low, lanes.running() == 0, lanes.has_more())
        };
        // What waits may have waited for this permit.
        if more {
            self.ready.notify_one();
        }
        if low {
            self.low.notify_one();
        }
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

    /// See [`Lanes::take`].
    pub(crate) fn take(&self, goes: impl Fn(&T) -> bool) -> Vec<T> {
        let items = self.lanes.lock().take(goes);
        self.low.notify_one();
        // One that had to run alone was in the way of all others.
        self.ready.notify_one();
        items
    }

    /// See [`Lanes::take_late`].
    pub(crate) fn take_late(&self, may_go: impl Fn(&T) -> bool) -> Vec<T> {
        let items = self.lock().take_late(may_go);
        if !items.is_empty() {
            self.low.notify_one();
        }
        items
    }

    /// Waits until the lanes are low.
    pub(crate) async fn low(&self, until: &Low) {
        self.lanes.lock().mark(until);
        loop {
            let low = self.low.notified();
            if self.lock().are_low(until, self.free_slots()) {
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

    fn size(item: &u32) -> usize {
        *item as usize
    }

    #[tokio::test]
    async fn waiting_workers_get_what_is_pushed() {
        let queue = Arc::new(LocalQueue::new(&Options::default(), size));
        let two = {
            let queue = Arc::clone(&queue);
            async move { (queue.next().await.1, queue.next().await.1) }
        };
        let push = async {
            queue.push([(A, 10, false, 0, 1u32), (A, 10, false, 0, 2)]);
        };
        let (got, ()) = tokio::join!(two, push);
        assert_eq!(got, (1, 2));
        queue.low(&Low { mark: Some(0), capped: Vec::new(), beside: false }).await;
        queue.done(A);
        queue.done(A);
        queue.idle().await;
    }
}
