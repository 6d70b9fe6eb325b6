//! Starting and draining a host.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::crash::runs_alone;
use keiko_core::port::{
    Agents, BatchRecords, BatchStore, CanaryStore, CatalogStore, Clock, Components, Dead, History, Records,
    Runner, Schedules, Signal, Signals, StoreError, StoreErrorKind, TaskStore, Usage,
};
use keiko_core::profile::Profiles;
use keiko_core::stop::StopReason;
use keiko_core::{TaskId, TenantId, TenantName, Token};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::batch::{self, Batches};
use crate::cache::{Cache, CacheParts, SignalPlane};
use crate::canary::Canaries;
use crate::catalog::Catalog;
use crate::expirer::{self, TimeOuts};
use crate::gauge::Gauge;
use crate::groups::{self, Failing};
use crate::handle::Handle;
use crate::ids::Ids;
use crate::journal::Journal;
use crate::meters::Meters;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::pauses::{self, Pauses};
use crate::point::Points;
use crate::pulse::Pulse;
use crate::queue::LocalQueue;
use crate::relay::{self, Relay};
use crate::request::{Error, TenantOptions};
use crate::running::Running;
use crate::schedules::{self, Almanac};
use crate::service::{Apart, Services, Standing};
use crate::settler::{self, Ended};
use crate::shared::{Counters, Job, Shared, TenantEntry};
use crate::tenure::Tenures;
use crate::trees::Trees;
use crate::waiters::Waiters;
use crate::{ahead, direct, dispatcher, heart, listener, long, meters, rescuer, stale, upkeep, worker};

/// How long a stop waits for attempts that were told to stop: a tick, and what a slow machine adds.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long a stop waits for the loops, the last settles and the leases that are given back, in all; and for each of these
/// though the time was used up before.
const STOP_LIMIT: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(1));
/// How much less than others the operating system favours the threads of long attempts: a third of the time of a
/// thread that has work too. What they compete with is short, or answers somebody.
const LONG_NICE: i32 = 5;
/// Ended attempts that wait for the settler; workers wait when it is full.
const ENDED_MAX: usize = 2_000;

/// What a runtime is built of.
#[derive(Clone)]
pub struct Parts {
    /// Where tasks are written.
    pub tasks: Arc<dyn TaskStore>,
    /// Where tasks are read.
    pub records: Arc<dyn Records>,
    /// Where plugins are kept.
    pub catalog: Arc<dyn CatalogStore>,
    /// Where it is kept how canaries stand.
    pub canaries: Arc<dyn CanaryStore>,
    /// Where components are kept.
    pub components: Arc<dyn Components>,
    /// Where agents and users are kept.
    pub agents: Arc<dyn Agents>,
    /// What answers questions about many tasks.
    pub history: Arc<dyn History>,
    /// Where batches are written.
    pub batches: Arc<dyn BatchStore>,
    /// Where batches are read.
    pub batch_records: Arc<dyn BatchRecords>,
    /// Where values are kept that can be had again.
    pub cache: CacheParts,
    /// Where usage is kept.
    pub usage: Arc<dyn Usage>,
    /// Where schedules are kept.
    pub schedules: Arc<dyn Schedules>,
    /// The way to other hosts of the same database.
    pub signals: Arc<dyn Signals>,
    /// What runs guests.
    pub runner: Arc<dyn Runner>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What a drain did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Attempts that ran when the drain began and ended by themselves.
    pub finished: u64,
    /// Tasks given back to the queue, none charged an attempt.
    pub handed_back: u64,
    /// Names of the loops and threads that had not stopped when their time was over; none when everything went in order.
    pub unstopped: Vec<String>,
}

/// A running host: owns its loops and its threads. [`Runtime::drain`] ends it; dropping it without leaves the
/// leases to be rescued, as a crash would.
pub struct Runtime {
    shared: Arc<Shared>,
    /// Leases tasks; stops first.
    intake: Services,
    /// Begins attempts and ends the short ones; stops when nothing runs.
    workers: Services,
    /// Goes on with long attempts; stops after the workers, which wait for their reports.
    long: Services,
    /// Settles and beats; stops last.
    keeping: Services,
}

impl Runtime {
    /// Recovers what an earlier host left, then leases and runs.
    pub async fn start(
        parts: Parts,
        options: Options,
        tenants: Vec<TenantOptions>,
    ) -> Result<(Runtime, Handle), Error> {
        let cores = options.cores.plan(options.workers)?;
        let (entries, names) = tenant_rows(&parts, tenants).await?;
        let (lease_ms, now_ms) = (options.lease.as_millis() as i64, parts.clock.now_ms());
        let holder = parts.tasks.open_holder(now_ms, lease_ms).await?;
        let started = left_running(options.journal_dir.as_deref())?;
        let dead = if options.exclusive { Dead::AllBut(holder) } else { Dead::Expired };
        let rescued = parts.tasks.rescue(dead, started, now_ms).await?;
        let (ended, endings) = mpsc::channel(ENDED_MAX);
        let Parts {
            tasks, records, catalog, components, agents, history, batches, batch_records, usage, ..
        } = parts.clone();
        let Parts { mut cache, canaries, schedules, signals, runner, clock, .. } = parts;
        cache.backplanes.push(Arc::new(SignalPlane(Arc::clone(&signals))));
        let (memory, profiles) = (memories(&entries), profiles(&entries));
        let (batches, events) = Batches::new(batches, batch_records, options.batch_memory_bytes, memory);
        let shared = Arc::new(Shared {
            apart: Apart::here(),
            ids: Ids::new(Arc::clone(&tasks), Arc::clone(&clock)),
            pauses: Pauses::new(Arc::clone(&catalog)),
            catalog: Catalog::new(catalog, components, Arc::clone(&runner), Arc::clone(&clock), profiles),
            canaries: Canaries::new(canaries),
            queue: LocalQueue::new(&options, Job::bytes),
            long: Arc::new(long::Pool::new()),
            tasks,
            records,
            runner,
            clock,
            tenants: entries,
            gauge: Gauge::default(),
            running: Running::default(),
            trees: Trees::default(),
            relay: Relay::default(),
            runs: Running::default(),
            next_run: AtomicI64::new(direct::first_number()),
            waiters: Waiters::default(),
            journal: new_journal(&options)?,
            ended,
            agents,
            history,
            cache: Cache::new(cache, options.cache),
            points: Points::new(options.kill_at),
            options,
            usage,
            schedules: Almanac::new(schedules),
            meters: Meters::default(),
            metrics: Metrics::default(),
            signals,
            wake: Notify::new(),
            time_outs: TimeOuts::default(),
            failing: Failing::default(),
            sweep: Notify::new(),
            stale: Notify::new(),
            pulse: Pulse::new(),
            tenures: Tenures::new(holder),
            accepting: AtomicBool::new(true),
            counters: Counters::default(),
            batches,
        });
        read_again(&shared).await?;
        rescuer::note(&shared, &rescued);
        groups::again(&shared).await;
        let handle = Handle { shared: Arc::clone(&shared), names: Arc::new(names) };
        Ok((Runtime::spawn(shared, &handle, &cores, endings, events), handle))
    }

    fn spawn(
        shared: Arc<Shared>,
        handle: &Handle,
        cores: &[Option<usize>],
        endings: mpsc::Receiver<Ended>,
        events: mpsc::Receiver<batch::Event>,
    ) -> Runtime {
        let services = || Services::new(shared.options.in_place);
        let (keeping, workers, long, intake) = (services(), services(), services(), services());
        // The first beat tells who else is there.
        shared.pulse.poke();
        keeping.spawn("settler", settler::settle(Arc::clone(&shared), endings, keeping.stop_signal()));
        let (heart, stop) = (Arc::clone(&shared), keeping.stop_signal());
        let usual = Standing { nice: 0, core: None, blocking_max: shared.options.blocking_per_worker };
        keeping.thread("heart", usual, move || heart::beat(heart, stop));
        for (number, core) in cores.iter().copied().enumerate() {
            let (worker, stop) = (Arc::clone(&shared), workers.stop_signal());
            let standing = Standing { core, ..usual };
            workers.thread(format!("guest-{number}"), standing, move || worker::work(worker, number, stop));
            let (pool, stop) = (Arc::clone(&shared.long), long.stop_signal());
            // One of several spares a processor.
            let spares = number == 0 && shared.options.workers > 1;
            let standing = Standing { nice: LONG_NICE, ..standing };
            long.thread(format!("long-{number}"), standing, move || long::work(pool, spares, stop));
        }
        intake.spawn("dispatcher", dispatcher::dispatch(Arc::clone(&shared), intake.stop_signal()));
        intake.spawn("give-back", ahead::give_back(Arc::clone(&shared), intake.stop_signal()));
        intake.spawn("rescuer", rescuer::rescue(Arc::clone(&shared), intake.stop_signal()));
        shared.time_outs.look();
        intake.spawn("expirer", expirer::expire(Arc::clone(&shared), intake.stop_signal()));
        intake.spawn("schedules", schedules::occur(handle.clone(), intake.stop_signal()));
        intake.spawn("upkeep", upkeep::keep_up(Arc::clone(&shared), intake.stop_signal()));
        intake.spawn("sweep", upkeep::sweep(Arc::clone(&shared), intake.stop_signal()));
        keeping.spawn("batches", batch::service::serve(Arc::clone(&shared), events, keeping.stop_signal()));
        let tenants = shared.tenants.iter().map(|(id, entry)| entry.row(*id)).collect();
        shared.cache.keep(&keeping, tenants);
        keeping.spawn("listener", listener::listen(Arc::clone(&shared), keeping.stop_signal()));
        keeping.spawn("stale", stale::watch(Arc::clone(&shared), keeping.stop_signal()));
        keeping.spawn("relay", relay::tell(Arc::clone(&shared), keeping.stop_signal()));
        keeping.spawn("meters", meters::keep(Arc::clone(&shared), keeping.stop_signal()));
        Runtime { shared, intake, workers, long, keeping }
    }

    /// Takes no more tasks, lets what runs end until the drain time, hands the rest back, and stops.
    /// A store that does not answer delays this by no more than its limits.
    pub async fn drain(self) -> DrainReport {
        let Runtime { shared, intake, workers, long, keeping } = self;
        shared.accepting.store(false, Ordering::Release);
        shared.waiters.tell_all();
        let mut patience = Patience(STOP_LIMIT.0);
        let mut unstopped = patience.spend(|limit| intake.stop(limit)).await;
        let running = shared.queue.look(|lanes| lanes.running()) as u64;
        let mut handed_back = hand_back(&shared, shared.queue.clear());
        // Whoever waits for a run is told at once.
        shared.queue.clear_offered();
        let mut finished = running;
        let done = async {
            shared.batches.close().await;
            shared.queue.idle().await;
        };
        if tokio::time::timeout(shared.options.drain, done).await.is_err() {
            shared.batches.halt();
            let left = shared.queue.clear().into_iter().filter_map(|job| match job {
                Job::Batch(job) => Some(*job),
                Job::Task(_) | Job::Run(_) => None,
            });
            batch::job::hand_back_all(&shared, left.collect(), STOP_GRACE).await;
            let stopped = shared.running.stop_all(StopReason::Drained) as u64;
            handed_back += stopped;
            finished = finished.saturating_sub(stopped + shared.runs.stop_all(StopReason::Drained) as u64);
            // An attempt that does not stop by then is left to the rescuer.
            let _ = tokio::time::timeout(STOP_GRACE, shared.queue.idle()).await;
        }
        unstopped.extend(workers.stop(STOP_GRACE).await);
        unstopped.extend(long.stop(STOP_GRACE).await);
        unstopped.extend(patience.spend(|limit| keeping.stop(limit)).await);
        if !unstopped.is_empty() {
            tracing::warn!(services = %unstopped.join(", "), "parts of the host did not stop in time");
        }
        let closed = patience.spend(|limit| tokio::time::timeout(limit, close_holders(&shared))).await;
        match closed {
            Ok(Ok(left)) => handed_back += left,
            Ok(Err(error)) => tracing::warn!(error = %error, "leases could not be given back; they will end"),
            Err(_) => tracing::warn!("leases could not be given back in time; they will end"),
        }
        // Other hosts go on with what this one leaves, one that started a moment ago and is not known yet among them.
        shared.signals.tell(Signal { ready: true, items: true, ..Signal::default() });
        Counters::add(&shared.counters.handed_back, handed_back);
        tracing::info!(finished, handed_back, "the host has drained");
        DrainReport { finished, handed_back, unstopped }
    }
}

/// How long a stop still waits for what a store that does not answer holds up.
struct Patience(Duration);

impl Patience {
    /// Waits for something at most as long as it is told.
    async fn spend<F: Future>(&mut self, wait: impl FnOnce(Duration) -> F) -> F::Output {
        let began = Instant::now();
        let answer = wait(self.0.max(STOP_LIMIT.1)).await;
        self.0 = self.0.saturating_sub(began.elapsed());
        answer
    }
}

/// Gives back whatever this host still holds, under all its names; says how many tasks.
async fn close_holders(shared: &Shared) -> Result<u64, StoreError> {
    let mut left = 0;
    if !groups::again(shared).await {
        // Whoever rescues this host is told of them.
        return Err(StoreError::new(StoreErrorKind::Busy, "groups that failed could not be cancelled"));
    }
    for holder in shared.tenures.all() {
        left += shared.tasks.close_holder(holder, shared.clock.now_ms()).await?;
    }
    Ok(left)
}

/// Learns what the store has.
async fn read_again(shared: &Arc<Shared>) -> Result<(), Error> {
    shared.gauge.correct(&shared.records.live().await?);
    shared.catalog.refresh().await?;
    pauses::refresh(shared).await;
    batch::correct(shared).await?;
    Ok(batch::read(shared).await?)
}

type Entries = HashMap<TenantId, Arc<TenantEntry>>;
type Names = HashMap<TenantName, TenantId>;

/// Bytes of items that the tenants may have in memory.
fn memories(entries: &Entries) -> HashMap<TenantId, u64> {
    entries.iter().map(|(tenant, entry)| (*tenant, entry.policy.batches.memory_bytes_max)).collect()
}

/// Engine profiles that the tenants' components may have.
fn profiles(entries: &Entries) -> HashMap<TenantId, Profiles> {
    entries.iter().map(|(tenant, entry)| (*tenant, entry.policy.profiles)).collect()
}

async fn tenant_rows(parts: &Parts, tenants: Vec<TenantOptions>) -> Result<(Entries, Names), Error> {
    let wanted: Vec<TenantName> = tenants.iter().map(|tenant| tenant.name.clone()).collect();
    let rows = parts.catalog.ensure_tenants(&wanted).await?;
    let names = rows.iter().map(|row| (row.name.clone(), row.id)).collect();
    let entry = |tenant: TenantOptions| TenantEntry {
        name: tenant.name,
        grants: Arc::new(tenant.policy.grants.clone()),
        run_grants: Arc::new(tenant.policy.grants.clone().without_effects()),
        policy: tenant.policy,
        settings: tenant.settings.into_iter().map(|(name, map)| (name, Arc::new(map))).collect(),
        processors: tenant.processors,
        compiling: parking_lot::Mutex::default(),
    };
    let entries = rows.iter().zip(tenants).map(|(row, tenant)| (row.id, Arc::new(entry(tenant)))).collect();
    Ok((entries, names))
}

fn left_running(folder: Option<&Path>) -> Result<Vec<(TaskId, Token)>, Error> {
    folder.map_or(Ok(Vec::new()), |folder| {
        Journal::read(folder).map_err(|error| journal_failed(folder, &error))
    })
}

fn new_journal(options: &Options) -> Result<Option<Journal>, Error> {
    let Some(folder) = &options.journal_dir else {
        return Ok(None);
    };
    let journal = Journal::create(folder, options.running_max);
    journal.map(Some).map_err(|error| journal_failed(folder, &error))
}

fn journal_failed(folder: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Internal, format!("the journal of running attempts in {}: {error}", folder.display()))
}

/// Gives back tasks that were leased and not started; batches stay, to be worked before the host stops.
pub(crate) fn hand_back(shared: &Shared, jobs: Vec<Job>) -> u64 {
    let mut count = 0;
    for job in jobs {
        let job = match job {
            Job::Task(job) => job,
            Job::Batch(batch) => {
                let tenant = batch.entry.row.tenant;
                let running_max = shared.tenant(tenant).map_or(1, |entry| entry.policy.running_max);
                let alone = runs_alone(batch.batch.crashes);
                shared.queue.push([(tenant, running_max, alone, shared.clock.now_ms(), Job::Batch(batch))]);
                continue;
            }
            // Its caller is told that the host stops.
            Job::Run(_) => continue,
        };
        // A full channel means a stalled store: the rest goes back with the holder, or with its lease.
        if shared.ended.try_send(Ended::handed_back(job)).is_ok() {
            count += 1;
        }
    }
    count
}
