//! What the loops and the handle of one runtime share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use keiko_core::batch::Wish;
use keiko_core::catalog::Tenant;
use keiko_core::code::Code;
use keiko_core::compile::Compiling;
use keiko_core::policy::{Grants, TenantPolicy};
use keiko_core::port::{
    Agents, Clock, FailedByKind, History, Records, Runner, Signal, Signals, StoreError, StoreErrorKind,
    TaskStore, Usage,
};
use keiko_core::stop::StopReason;
use keiko_core::task::LeasedTask;
use keiko_core::{PluginName, ProcessorName, TaskId, TenantId, TenantName, Token};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::batch::job::BatchJob;
use crate::batch::{self, BatchFigures, Batches};
use crate::cache::{self, Cache};
use crate::canary::{Canaries, Refused};
use crate::catalog::{Catalog, Snapshot};
use crate::direct::Direct;
use crate::expirer::TimeOuts;
use crate::gauge::Gauge;
use crate::groups::Failing;
use crate::ids::Ids;
use crate::journal::{Journal, Slot};
use crate::long;
use crate::meters::Meters;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::pauses::Pauses;
use crate::point::Points;
use crate::pulse::Pulse;
use crate::queue::{Lanes, LocalQueue};
use crate::relay::Relay;
use crate::running::Running;
use crate::schedules::Almanac;
use crate::service::Apart;
use crate::settler::Ended;
use crate::tenure::{Tenure, Tenures};
use crate::trees::{Known, Trees};
use crate::waiters::Waiters;

/// One runtime's state. Every field is made at start; what changes afterwards synchronizes itself.
pub(crate) struct Shared {
    pub(crate) apart: Apart,
    pub(crate) tasks: Arc<dyn TaskStore>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: Options,
    pub(crate) tenants: HashMap<TenantId, Arc<TenantEntry>>,
    pub(crate) catalog: Catalog,
    pub(crate) canaries: Canaries,
    pub(crate) pauses: Pauses,
    pub(crate) ids: Ids,
    pub(crate) gauge: Gauge,
    pub(crate) queue: LocalQueue<Job>,
    pub(crate) long: Arc<long::Pool>,
    pub(crate) running: Running,
    /// How far the trees of leased tasks are spent.
    pub(crate) trees: Trees,
    /// Runs that are no tasks; a lost lease does not concern them.
    pub(crate) runs: Running,
    /// The number that the next run is known by.
    pub(crate) next_run: AtomicI64,
    pub(crate) waiters: Waiters,
    pub(crate) journal: Option<Journal>,
    /// Ended attempts on their way to the settler.
    pub(crate) ended: mpsc::Sender<Ended>,
    pub(crate) agents: Arc<dyn Agents>,
    pub(crate) history: Arc<dyn History>,
    pub(crate) cache: Cache,
    pub(crate) usage: Arc<dyn Usage>,
    pub(crate) schedules: Almanac,
    /// What runs spent and nobody has stored yet.
    pub(crate) meters: Meters,
    /// What is counted by plugin, and by how tasks failed.
    pub(crate) metrics: Metrics,
    /// What tasks say that are watched on another host than the one that runs them.
    pub(crate) relay: Relay,
    /// The way to other hosts of the same database.
    pub(crate) signals: Arc<dyn Signals>,
    /// There may be something to lease.
    pub(crate) wake: Notify,
    /// A plugin that waits for its last task may have none.
    pub(crate) sweep: Notify,
    /// What is worked on here may no longer be this host's.
    pub(crate) stale: Notify,
    /// Under which names this host holds leases.
    pub(crate) tenures: Tenures,
    /// When tasks are over.
    pub(crate) time_outs: TimeOuts,
    pub(crate) failing: Failing,
    /// What keeps the holder alive.
    pub(crate) pulse: Pulse,
    /// Whether submits are taken: cleared by a drain.
    pub(crate) accepting: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) batches: Batches,
    pub(crate) points: Points,
}

impl Shared {
    /// What is leased from now on is leased under this.
    pub(crate) fn tenure(&self) -> Arc<Tenure> {
        self.tenures.current()
    }

    /// Whether what is leased now is leased under this name.
    pub(crate) fn is_current(&self, tenure: &Tenure) -> bool {
        self.tenure().holder == tenure.holder
    }

    /// The holder of this name is gone. When it is the name of a call that was on its way while this host took another, that
    /// says nothing of the current one.
    pub(crate) fn lost(&self, tenure: &Tenure) {
        if self.is_current(tenure) {
            self.pulse.lose();
        }
    }

    /// A call that leases failed: perhaps its answer was lost and it leased all the same.
    pub(crate) fn doubt(&self, error: &StoreError) {
        if error.kind() == StoreErrorKind::Down && !self.options.keeps_doubtful_leases {
            self.tenures.doubt();
        }
    }

    /// Notes in the journal, if there is one, that something runs for as long as the answer is held.
    pub(crate) fn noted(&self, id: TaskId, token: Token) -> Option<Slot<'_>> {
        let slot = self.journal.as_ref()?.start(id, token);
        slot.inspect_err(|error| tracing::warn!(error = %error, "an attempt runs without a note of it")).ok()
    }

    /// Whether a drain has begun.
    pub(crate) fn is_stopping(&self) -> bool {
        !self.accepting.load(Ordering::Acquire)
    }

    /// There is something to lease: for this host, and for others when this one, or a tenant on it, has all it can run or is paused.
    pub(crate) fn ready(&self) {
        self.wake.notify_one();
        let full = self.pauses.of_host() || self.queue.is_full();
        if full && self.pulse.has_others() {
            self.signals.tell(Signal { ready: true, ..Signal::default() });
        }
    }

    /// The plugins have changed since `before`: other hosts read them again, and what components that no longer run have
    /// kept in the cache goes.
    pub(crate) async fn swapped(&self, before: &Snapshot) {
        batch::refresh(self).await;
        self.metrics.retain(&self.catalog);
        self.signals.tell(Signal { catalog: true, ..Signal::default() });
        for plugin in self.catalog.gone_since(before) {
            if let Some(entry) = self.tenant(plugin.tenant) {
                cache::plugin::forget(&self.cache, &entry.row(plugin.tenant), &plugin).await;
            }
        }
    }

    /// Tasks have ended: whoever waits for them, here or on another host, looks again.
    pub(crate) fn ended(&self, ids: Vec<TaskId>) {
        self.waiters.tell(ids.iter().copied());
        if !ids.is_empty() && self.catalog.is_draining() {
            self.sweep.notify_one();
        }
        if !ids.is_empty() && self.pulse.has_others() {
            self.signals.tell(Signal { ended: ids, ..Signal::default() });
        }
    }

    /// The store has cancelled tasks: what runs of them here stops, who waits is told, and what waited for one of them, by
    /// its group or its slot, may go now.
    pub(crate) fn cancelled(&self, tenant: TenantId, ids: Vec<TaskId>) {
        for id in &ids {
            self.running.stop(*id, StopReason::Cancelled);
        }
        if self.queue.look(Lanes::waiting) > 0 {
            // Some of them may be among those that were to begin.
            self.stale.notify_one();
        }
        self.gauge.change(tenant, -(ids.len() as i64));
        self.ended(ids);
        self.ready();
    }

    /// Counts tasks that the store has ended as failed by itself.
    pub(crate) fn count_failed(&self, failed: &FailedByKind, code: Code) {
        for (&(tenant, kind), &count) in failed {
            self.metrics.failed(&self.catalog, tenant, kind, code, count);
        }
    }

    /// A tenant of the configuration.
    pub(crate) fn tenant(&self, id: TenantId) -> Option<&Arc<TenantEntry>> {
        self.tenants.get(&id)
    }
}

/// A tenant with everything its attempts need.
#[derive(Debug)]
pub(crate) struct TenantEntry {
    pub(crate) name: TenantName,
    pub(crate) policy: TenantPolicy,
    pub(crate) grants: Arc<Grants>,
    /// The same for runs, which have no end to write anything with.
    pub(crate) run_grants: Arc<Grants>,
    pub(crate) settings: BTreeMap<PluginName, Arc<BTreeMap<String, String>>>,
    /// Processors of the host's own.
    pub(crate) processors: BTreeMap<ProcessorName, Wish>,
    /// What its uploads have taken of the compiler here.
    pub(crate) compiling: Mutex<Compiling>,
}

impl TenantEntry {
    /// The tenant with its row.
    pub(crate) fn row(&self, id: TenantId) -> Tenant {
        Tenant { id, name: self.name.clone() }
    }
}

/// What is on its way to a worker: each in a place of its own, because it is handed on many times until its end is stored.
pub(crate) enum Job {
    /// A leased task.
    Task(Box<Leased>),
    /// A batch.
    Batch(Box<BatchJob>),
    /// A run whose caller waits.
    Run(Box<Direct>),
}

impl Job {
    /// Bytes of a task's input. The items of batches have a memory of their own, and of runs few wait.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Job::Task(leased) => leased.task.input.bytes.len(),
            Job::Batch(_) | Job::Run(_) => 0,
        }
    }
}

/// A leased task.
#[derive(Debug)]
pub(crate) struct Leased {
    /// The name it was leased under.
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) task: LeasedTask,
    /// Its tree, when it is below a root.
    pub(crate) tree: Option<Arc<Known>>,
    /// That it ran on a canary under this lease, whose end was refused.
    pub(crate) refused: Option<Box<Refused>>,
}

/// What this host has counted since it started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) leased: AtomicU64,
    pub(crate) settled: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) handed_back: AtomicU64,
    pub(crate) rescued: AtomicU64,
    pub(crate) leases_lost: AtomicU64,
    pub(crate) memoized: AtomicU64,
    pub(crate) runs: AtomicU64,
    pub(crate) runs_refused: AtomicU64,
    pub(crate) canary_attempts: AtomicU64,
    pub(crate) canary_failures: AtomicU64,
    pub(crate) canaries_worse: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// A look at a running host's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Tasks leased.
    pub leased: u64,
    /// Attempts whose end was stored.
    pub settled: u64,
    /// Settles that a stale lease made void.
    pub stale: u64,
    /// Tasks given back unstarted or unfinished.
    pub handed_back: u64,
    /// Tasks of dead hosts returned to the queue.
    pub rescued: u64,
    /// Times this host lost its own lease.
    pub leases_lost: u64,
    /// Tasks that were completed with a kept result.
    pub memoized: u64,
    /// Runs that ended, which are no tasks.
    pub runs: u64,
    /// Runs that there was no room for.
    pub runs_refused: u64,
    /// Tasks that tried a canary.
    pub canary_attempts: u64,
    /// Tasks that failed on one, and ran on the current version then.
    pub canary_failures: u64,
    /// Canaries that this host found worse.
    pub canaries_worse: u64,
    /// Tasks leased and not started.
    pub waiting: usize,
    /// Tenants and kinds that are paused, on every host.
    pub paused: usize,
    /// Whether this host is.
    pub host_paused: bool,
    /// Runs that wait for their turn.
    pub runs_waiting: usize,
    /// Attempts that run, runs among them.
    pub running: usize,
    /// Of batches.
    pub batches: BatchFigures,
}

impl Shared {
    /// The counters now.
    pub(crate) fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let look = |lanes: &Lanes<Job>| (lanes.waiting(), lanes.offered(), lanes.running());
        let (waiting, runs_waiting, running) = self.queue.look(look);
        Figures {
            leased: read(&self.counters.leased),
            settled: read(&self.counters.settled),
            stale: read(&self.counters.stale),
            handed_back: read(&self.counters.handed_back),
            rescued: read(&self.counters.rescued),
            leases_lost: read(&self.counters.leases_lost),
            memoized: read(&self.counters.memoized),
            runs: read(&self.counters.runs),
            runs_refused: read(&self.counters.runs_refused),
            canary_attempts: read(&self.counters.canary_attempts),
            canary_failures: read(&self.counters.canary_failures),
            canaries_worse: read(&self.counters.canaries_worse),
            waiting,
            paused: self.pauses.count(),
            host_paused: self.pauses.of_host(),
            runs_waiting,
            running,
            batches: self.batches.figures(),
        }
    }
}
