//! Batches on this host: who the processors are, what waits for them, and how a batch is worked.
//!
//! Data flows one way here too: [`face`] → store → [`service`] forms a batch → local queue → a worker ([`job`]) runs the
//! processor ([`runs`]) and settles → store. When a batch is due is the rule of `core::batch::machine`; nothing here decides it.

mod face;
pub(crate) mod job;
mod memory;
mod processors;
pub(crate) mod promise;
pub(crate) mod quota;
mod runs;
pub(crate) mod service;
mod volatile;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keiko_core::batch::Group;
use keiko_core::port::{BatchRecords, BatchStore, StoreError};
use keiko_core::{ProcessorId, TenantId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::face::{AddedItems, ProcessorView};
use self::memory::Memory;
use self::processors::Processors;
pub(crate) use self::processors::taken;
pub(crate) use self::processors::{Entry, MadeBy};
use self::quota::Quota;
use self::volatile::Volatile;
use crate::shared::Shared;

/// News that wait for the service; whoever has more waits.
const EVENTS_MAX: usize = 4_096;

/// What the parts of batches share.
pub(crate) struct Batches {
    pub(crate) store: Arc<dyn BatchStore>,
    pub(crate) records: Arc<dyn BatchRecords>,
    pub(crate) processors: Processors,
    /// Bytes of items in memory.
    memory: Memory,
    /// Items that are in memory only.
    volatile: Volatile,
    pub(crate) quota: Quota,
    events: mpsc::Sender<Event>,
    /// Batches that are formed or worked on this host; written by the service, read by a drain.
    in_flight: watch::Sender<u64>,
    /// Set when no batch may begin any more.
    halted: AtomicBool,
    /// Groups of batches that are no longer here, because the lease was lost.
    lost: Mutex<Vec<Group>>,
    lost_told: Notify,
    pub(crate) counters: Counters,
}

/// What the service is told.
pub(crate) enum Event {
    /// Items were added.
    Added { group: Group, items: u64, bytes: u64 },
    /// A batch is over.
    Ended(Ended),
    /// Somebody asks for a flush; the answer is how many groups had something.
    Flush { processor: ProcessorId, reply: oneshot::Sender<u64> },
    /// There may be items or batches that this host does not know of.
    Look,
    /// Processors have come, gone or changed.
    Changed,
    /// The host stops: everything is flushed.
    Close,
}

/// How a batch ended.
pub(crate) struct Ended {
    pub(crate) group: Group,
    /// When the first of its items that wait again is due.
    pub(crate) again_ms: Option<i64>,
    /// Items of the whole batch and milliseconds that its first run took.
    pub(crate) worked: Option<(u64, u64)>,
    /// Whether it found its processor broken, and has told of that.
    pub(crate) told_broken: bool,
}

/// What this host has counted of batches since it started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) added: AtomicU64,
    pub(crate) formed: AtomicU64,
    pub(crate) runs: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dead: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) stopped: AtomicU64,
}

/// A look at the counters of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchFigures {
    /// Items added through this host.
    pub added: u64,
    /// Batches formed or taken over.
    pub formed: u64,
    /// Runs of processors.
    pub runs: u64,
    /// Items done.
    pub done: u64,
    /// Times items were put off.
    pub retried: u64,
    /// Items that became dead letters.
    pub dead: u64,
    /// Batches whose end came too late.
    pub stale: u64,
    /// Volatile items dropped.
    pub dropped: u64,
    /// Processors stopped because they were broken.
    pub stopped: u64,
    /// Batches formed or worked now.
    pub in_flight: u64,
}

impl Batches {
    /// The shared part, and the service's end of its channel.
    pub(crate) fn new(
        store: Arc<dyn BatchStore>,
        records: Arc<dyn BatchRecords>,
        memory_bytes_max: u64,
        tenants: HashMap<TenantId, u64>,
    ) -> (Batches, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let batches = Batches {
            store,
            records,
            processors: Processors::default(),
            memory: Memory::new(memory_bytes_max, tenants),
            volatile: Volatile::default(),
            quota: Quota::default(),
            events,
            in_flight: watch::channel(0).0,
            halted: AtomicBool::default(),
            lost: Mutex::default(),
            lost_told: Notify::new(),
            counters: Counters::default(),
        };
        (batches, receiver)
    }

    /// Tells the service. One that has ended needs nothing any more.
    pub(crate) async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// Flushes everything, and waits until nothing of it is left to be formed or worked.
    pub(crate) async fn close(&self) {
        let mut in_flight = self.in_flight.subscribe();
        self.tell(Event::Close).await;
        // The service says so once it has formed what is due.
        let _ = in_flight.wait_for(|in_flight| *in_flight == service::CLOSED).await;
    }

    /// Begins no batch from now on: what waits stays where it is.
    pub(crate) fn halt(&self) {
        self.halted.store(true, Ordering::Release);
    }

    /// Tells that batches of these groups are no longer here, and that some may be nobody's; never waits.
    pub(crate) fn lose(&self, groups: impl IntoIterator<Item = Group>) {
        self.lost.lock().extend(groups);
        self.lost_told.notify_one();
    }

    fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    pub(crate) fn figures(&self) -> BatchFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { added, formed, runs, done, retried, dead, stale, dropped, stopped } = &self.counters;
        let in_flight = Some(*self.in_flight.borrow()).filter(|count| *count != service::CLOSED);
        BatchFigures {
            added: read(added),
            formed: read(formed),
            runs: read(runs),
            done: read(done),
            retried: read(retried),
            dead: read(dead),
            stale: read(stale),
            dropped: read(dropped),
            stopped: read(stopped),
            in_flight: in_flight.unwrap_or_default(),
        }
    }
}

/// Reads the processors for the first time.
pub(crate) async fn read(shared: &Shared) -> Result<(), StoreError> {
    processors::refresh(shared).await
}

/// Reads the processors again and tells the service.
pub(crate) async fn refresh(shared: &Shared) {
    match processors::refresh(shared).await {
        Ok(()) => shared.batches.tell(Event::Changed).await,
        Err(error) => tracing::warn!(error = %error, "the processors could not be read again"),
    }
}

/// Corrects what is known of what waits by what the store counts.
pub(crate) async fn correct(shared: &Shared) -> Result<(), StoreError> {
    shared.batches.quota.correct(&shared.batches.records.waiting().await?);
    Ok(())
}
