//! One computes while the others wait: on this host by a queue per key, between hosts by a lease on the first shared level
//! that answers.
//!
//! - The right to compute goes along: to the next who waits, when its holder gives up, fails, or is gone.
//! - What was computed while somebody else got the right (a host that was stopped past its lease) is not kept.
//! - A value's stamp is of when its computation began: what was removed or set since then is not overwritten.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use keiko_core::cache::{CacheKey, Content, Entry, Wish};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::figures::Event;
use super::lease::Lease;
use super::read::Look;
use super::safeguard::{Safeguard, on};
use super::{Begun, Cache, Stored};
use crate::service::spawn_beside;

/// First and longest wait before somebody who waits for another host looks again.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How long a caller waits for a computation, which goes on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// While there is a stale value to be had instead.
    pub soft: Duration,
    /// In any case.
    pub hard: Duration,
    /// How long a stale value is served before the next try, after one has failed.
    pub throttle: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            soft: Duration::from_millis(100),
            hard: Duration::from_secs(30),
            throttle: Duration::from_secs(30),
        }
    }
}

/// What a computation has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// The value; `None` when there is none, which is kept only if the wish says for how long.
    pub value: Option<Bytes>,
    /// How it is to be kept, if otherwise than was said before.
    pub wish: Option<Wish>,
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError<E> {
    /// The computation failed.
    #[error(transparent)]
    Failed(E),
    /// It takes longer than the caller waits; it goes on.
    #[error("the value could not be computed in time")]
    Late,
}

/// The right to compute has gone to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the right to compute this value has gone to another host")]
pub struct Fenced;

/// What somebody gets who wants a value or the right to compute it.
#[derive(Debug)]
pub enum Filling {
    /// The value.
    Hit(Bytes),
    /// The right: complete it or drop it.
    Fill(FillGuard),
}

/// What is handed to somebody who waits.
enum Handed {
    Value(Content),
    Failed(Arc<dyn Any + Send + Sync>),
    Turn(Ticket),
}

/// Who computes and who waits, by key.
#[derive(Default)]
pub(super) struct Fills {
    queues: Mutex<HashMap<CacheKey, Queue>>,
    /// Leases that this host holds, by key, with their owner.
    pub(super) held: Mutex<HashMap<CacheKey, Arc<Lease>>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<oneshot::Sender<Handed>>,
    changed: Arc<Notify>,
}

enum Entered {
    Chosen(Ticket),
    Wait(oneshot::Receiver<Handed>),
}

impl Fills {
    fn enter(self: &Arc<Fills>, key: &CacheKey, waits: bool) -> Option<Entered> {
        let mut queues = self.queues.lock();
        match queues.get_mut(key) {
            None => {
                queues.insert(key.clone(), Queue::default());
                Some(Entered::Chosen(Ticket { fills: Arc::clone(self), key: key.clone(), done: false }))
            }
            Some(_) if !waits => None,
            Some(queue) => {
                let (sender, receiver) = oneshot::channel();
                queue.waiting.push_back(sender);
                Some(Entered::Wait(receiver))
            }
        }
    }

    /// Another host has changed a key: whoever waits for it looks again.
    pub(super) fn nudge(&self, key: &CacheKey) {
        if let Some(queue) = self.queues.lock().get(key) {
            queue.changed.notify_one();
        }
    }
}

/// The right to compute on this host. Dropped, it goes to the next who waits.
struct Ticket {
    fills: Arc<Fills>,
    key: CacheKey,
    done: bool,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Ticket {
    /// Ends it: all who wait get the same.
    fn end(mut self, each: impl Fn() -> Handed) {
        self.done = true;
        let queue = self.fills.queues.lock().remove(&self.key);
        for waiting in queue.into_iter().flat_map(|queue| queue.waiting) {
            // One who is gone needs nothing.
            let _ = waiting.send(each());
        }
    }

    fn changed(&self) -> Arc<Notify> {
        let queues = self.fills.queues.lock();
        queues.get(&self.key).map(|queue| Arc::clone(&queue.changed)).unwrap_or_default()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        loop {
            let next = {
                let mut queues = self.fills.queues.lock();
                let next = queues.get_mut(&self.key).and_then(|queue| queue.waiting.pop_front());
                if next.is_none() {
                    queues.remove(&self.key);
                }
                next
            };
            let Some(next) = next else { return };
            let ticket = Ticket { fills: Arc::clone(&self.fills), key: self.key.clone(), done: false };
            match next.send(Handed::Turn(ticket)) {
                Ok(()) => return,
                // It is gone: its turn is handed to the one after it by this loop, and by nobody else.
                Err(Handed::Turn(mut ticket)) => ticket.done = true,
                Err(_) => {}
            }
        }
    }
}

/// The right to compute a value. Dropped without being completed, it goes to the next who waits, here or on another host.
#[derive(Debug)]
pub struct FillGuard {
    cache: Cache,
    /// There until this is completed or dropped.
    ticket: Option<Ticket>,
    lease: Option<Arc<Lease>>,
    begun: Begun,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl FillGuard {
    /// The key that is computed.
    pub fn key(&self) -> Option<&CacheKey> {
        self.ticket.as_ref().map(|ticket| &ticket.key)
    }

    /// Keeps the value and hands it to all who wait, on this host at once.
    pub async fn complete(self, value: Bytes, wish: &Wish) -> Result<Stored, Fenced> {
        self.end(Content::Value(value), Some(wish)).await
    }

    async fn end(mut self, content: Content, wish: Option<&Wish>) -> Result<Stored, Fenced> {
        let cache = self.cache.clone();
        let Some(key) = self.key().cloned() else { return Err(Fenced) };
        if let Some(lease) = self.lease.clone().filter(|_| on(Safeguard::Fence))
            && (lease.lost.load(Ordering::Acquire)
                || cache.take_lease(&key, lease.owner).await == Some(false))
        {
            cache.0.counters.event(Event::Fenced);
            return Err(Fenced);
        }
        let stored = match wish {
            Some(wish) => cache.store(&key, content.clone(), wish, self.begun()).await,
            None => Stored::Kept,
        };
        cache.0.counters.event(Event::Computed);
        self.free().await;
        if let Some(ticket) = self.ticket.take() {
            ticket.end(|| Handed::Value(content.clone()));
        }
        Ok(stored)
    }

    /// Tells all who wait that there is no value.
    async fn fail(mut self, error: Arc<dyn Any + Send + Sync>) {
        self.cache.0.counters.event(Event::Uncomputed);
        self.free().await;
        if let Some(ticket) = self.ticket.take() {
            ticket.end(|| Handed::Failed(Arc::clone(&error)));
        }
    }

    /// When the value began to be computed.
    fn begun(&self) -> Begun {
        if on(Safeguard::BeganThen) { self.begun } else { self.cache.begin() }
    }

    async fn free(&mut self) {
        if let (Some(lease), Some(key)) = (self.lease.take(), self.key()) {
            self.cache.free_lease(key, &lease).await;
        }
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        self.cache.0.counters.event(Event::Uncomputed);
        let (Some(lease), Ok(_)) = (self.lease.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        // First the lease, so that the next one here finds it free.
        let cache = self.cache.clone();
        spawn_beside(async move {
            if on(Safeguard::FreeOnDrop) {
                cache.free_lease(&ticket.key, &lease).await;
            }
            drop(ticket);
        });
    }
}

impl Cache {
    /// The value of a key, or the right to compute it. Waits while another has the right; whoever no longer wants to
    /// wait drops this.
    pub async fn fill(&self, key: &CacheKey) -> Filling {
        loop {
            if let Look::Fresh(Content::Value(value)) | Look::Eager(Content::Value(value)) =
                self.look(key).await
            {
                return Filling::Hit(value);
            }
            let ticket = match self.0.fills.enter(key, true) {
                Some(Entered::Chosen(ticket)) => ticket,
                Some(Entered::Wait(waiting)) => {
                    self.0.counters.event(Event::Waited);
                    match waiting.await {
                        Ok(Handed::Value(Content::Value(value))) => return Filling::Hit(value),
                        Ok(Handed::Turn(ticket)) => ticket,
                        _ => continue,
                    }
                }
                None => continue,
            };
            match self.chosen(ticket, false).await {
                Ok(guard) => return Filling::Fill(guard),
                Err(Content::Value(value)) => return Filling::Hit(value),
                Err(_) => {}
            }
        }
    }

    /// The right to compute for somebody who has it on this host, or what another host has computed meanwhile.
    /// The knowledge that there is no value counts as one with `absent`.
    async fn chosen(&self, ticket: Ticket, absent: bool) -> Result<FillGuard, Content> {
        let changed = ticket.changed();
        let owner = getrandom::u64().unwrap_or(u64::MAX);
        let mut pause = LOOK_AGAIN.0;
        loop {
            // Whoever had the right before may have completed between our look and our turn.
            if let Some(content) = self.computed_by_another(&ticket.key, absent).await {
                ticket.end(|| Handed::Value(content.clone()));
                return Err(content);
            }
            let begun = self.begin();
            let guard = |ticket, lease| FillGuard { cache: self.clone(), ticket: Some(ticket), lease, begun };
            if !self.0.shared || !on(Safeguard::Lease) {
                return Ok(guard(ticket, None));
            }
            match self.ask_lease(&ticket.key, owner).await {
                // No level answers: then each host computes for itself.
                None => return Ok(guard(ticket, None)),
                Some(true) => {
                    let lease = Arc::new(Lease { owner, lost: AtomicBool::new(false) });
                    self.0.fills.held.lock().insert(ticket.key.clone(), Arc::clone(&lease));
                    let guard = guard(ticket, Some(lease));
                    return self.unless_computed(guard, absent).await;
                }
                Some(false) => {
                    // Until it has, or its lease ends.
                    let _ = timeout(pause, changed.notified()).await;
                    pause = (pause * 2).min(LOOK_AGAIN.1);
                }
            }
        }
    }

    /// Another host may have completed before we got its lease.
    async fn unless_computed(&self, mut guard: FillGuard, absent: bool) -> Result<FillGuard, Content> {
        let Some(key) = guard.key().cloned() else { return Ok(guard) };
        let Some(content) = self.computed_by_another(&key, absent).await else { return Ok(guard) };
        guard.free().await;
        if let Some(ticket) = guard.ticket.take() {
            ticket.end(|| Handed::Value(content.clone()));
        }
        Err(content)
    }

    async fn computed_by_another(&self, key: &CacheKey, absent: bool) -> Option<Content> {
        match self.look(key).await {
            Look::Fresh(Content::Absent) if !absent => None,
            Look::Fresh(content) => Some(content),
            _ => None,
        }
    }

    /// The value of a key, computed when there is none that is fresh. The computation goes on when the caller is gone;
    /// of those who ask at the same time, on all hosts, one computes.
    pub async fn get_or_compute<E, F>(
        &self,
        key: &CacheKey,
        wish: &Wish,
        patience: Patience,
        compute: F,
    ) -> Result<Option<Bytes>, ComputeError<E>>
    where
        E: Clone + Send + Sync + 'static,
        F: FnOnce() -> BoxFuture<'static, Result<Computed, E>> + Send + 'static,
    {
        let stale = match self.look(key).await {
            Look::Fresh(content) => return Ok(value(content)),
            Look::Eager(content) => {
                if let Some(Entered::Chosen(ticket)) = self.0.fills.enter(key, false) {
                    let job = Job { wish: wish.clone(), patience, stale: None };
                    let computing = self.clone().compute(ticket, job, compute);
                    spawn_beside(async move { drop(computing.await) });
                }
                return Ok(value(content));
            }
            Look::Stale(entry) => Some(entry),
            Look::Gone(_) => None,
        };
        let patient = if stale.is_some() { patience.soft.min(patience.hard) } else { patience.hard };
        let deadline = Instant::now() + patient;
        let outcome = self.computed(key, wish, patience, &stale, deadline, compute).await;
        match (outcome, stale) {
            (Ok(content), _) => Ok(value(content)),
            (Err(_), Some(stale)) => {
                self.0.counters.level(keiko_core::cache::Level::Memory, super::Outcome::Stale);
                Ok(value(stale.content))
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn computed<E, F>(
        &self,
        key: &CacheKey,
        wish: &Wish,
        patience: Patience,
        stale: &Option<Entry>,
        deadline: Instant,
        compute: F,
    ) -> Result<Content, ComputeError<E>>
    where
        E: Clone + Send + Sync + 'static,
        F: FnOnce() -> BoxFuture<'static, Result<Computed, E>> + Send + 'static,
    {
        let mut compute = Some(compute);
        let mut entered = self.0.fills.enter(key, true);
        loop {
            let (waiting, ticket) = match entered.take() {
                Some(Entered::Wait(waiting)) => {
                    self.0.counters.event(Event::Waited);
                    (Some(waiting), None)
                }
                Some(Entered::Chosen(ticket)) => (None, Some(ticket)),
                None => return Err(ComputeError::Late),
            };
            let waiting = match (waiting, ticket, compute.take()) {
                (Some(waiting), _, unused) => {
                    compute = unused;
                    waiting
                }
                (None, Some(ticket), Some(compute)) => {
                    let (sender, receiver) = oneshot::channel();
                    let job = Job { wish: wish.clone(), patience, stale: stale.clone() };
                    let computing = self.clone().compute(ticket, job, compute);
                    spawn_beside(async move {
                        // A caller that is gone has no use for it.
                        let _ = sender.send(computing.await);
                    });
                    receiver
                }
                _ => return Err(ComputeError::Late),
            };
            match timeout_at(deadline, waiting).await {
                Err(_) => return Err(ComputeError::Late),
                Ok(Ok(Handed::Value(content))) => return Ok(content),
                Ok(Ok(Handed::Failed(error))) => {
                    return Err(error
                        .downcast_ref::<E>()
                        .cloned()
                        .map_or(ComputeError::Late, ComputeError::Failed));
                }
                Ok(Ok(Handed::Turn(ticket))) => entered = Some(Entered::Chosen(ticket)),
                // Whoever computed is gone without a word: it panicked.
                Ok(Err(_)) if compute.is_some() => entered = self.0.fills.enter(key, true),
                Ok(Err(_)) => return Err(ComputeError::Late),
            }
        }
    }

    async fn compute<E, F>(self, ticket: Ticket, job: Job, compute: F) -> Handed
    where
        E: Clone + Send + Sync + 'static,
        F: FnOnce() -> BoxFuture<'static, Result<Computed, E>> + Send + 'static,
    {
        match self.chosen(ticket, true).await {
            Ok(guard) => self.complete(guard, job, compute).await,
            Err(content) => Handed::Value(content),
        }
    }

    async fn complete<E, F>(&self, guard: FillGuard, job: Job, compute: F) -> Handed
    where
        E: Clone + Send + Sync + 'static,
        F: FnOnce() -> BoxFuture<'static, Result<Computed, E>> + Send + 'static,
    {
        match compute().await {
            Ok(computed) => {
                let content = computed.value.map_or(Content::Absent, Content::Value);
                let wish = computed.wish.unwrap_or(job.wish);
                let kept = (content != Content::Absent || wish.absent.is_some()).then_some(&wish);
                // What is not kept because another host computed it, too, is good for whoever waited here.
                let _ = guard.end(content.clone(), kept).await;
                Handed::Value(content)
            }
            Err(error) => {
                if let (Some(stale), Some(key)) = (&job.stale, guard.key()) {
                    self.throttle(key, stale, job.patience.throttle);
                }
                let error: Arc<dyn Any + Send + Sync> = Arc::new(error);
                guard.fail(Arc::clone(&error)).await;
                Handed::Failed(error)
            }
        }
    }
}

/// How a computation is to be done.
struct Job {
    wish: Wish,
    patience: Patience,
    stale: Option<Entry>,
}

fn value(content: Content) -> Option<Bytes> {
    match content {
        Content::Value(value) => Some(value),
        Content::Absent | Content::Removed => None,
    }
}
