//! Leases tasks for the room this host has, fairly across tenants. When there are none it sleeps, and leaves a lease with
//! the store that goes with the next submit.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keiko_core::crash::runs_alone;
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::slot::Concurrencies;
use keiko_core::{KindName, PluginName, TenantId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pauses;
use crate::queue::Lanes;
use crate::shared::{Counters, Job, Leased, Shared, TenantEntry};
use crate::tenure::Tenure;

/// Rounds of a tenant's running tasks that are leased ahead, so that workers never wait for the store and a
/// tenant that may run little does not fill the local queue.
const ROUNDS_AHEAD: usize = 4;
/// First and longest wait after the store failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Leases until stopped.
pub(crate) async fn dispatch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut after = None;
    let mut backoff = BACKOFF.0;
    let mut expects = false;
    let mut next = None;
    while !stop.is_cancelled() {
        let wake = shared.wake.notified();
        let (tenure, outcome) = match next.take() {
            Some(next) => next,
            None => lease(&shared, after, expects).await,
        };
        let rest = match outcome {
            Ok((lease, all)) => {
                backoff = BACKOFF.0;
                after = lease.after.or(after);
                let (got, next_run_at_ms) = (lease.tasks.len(), lease.next_run_at_ms);
                take(&shared, tenure, lease).await;
                Rest::after(&shared, got, all, next_run_at_ms)
            }
            Err(error) => {
                tracing::warn!(error = %error, "no tasks could be leased");
                shared.doubt(&error);
                // Kept, it would look like work.
                drop(tenure);
                backoff = (backoff * 2).min(BACKOFF.1);
                Rest { time: backoff, mark: None, idle: false }
            }
        };
        let low = async {
            match rest.mark {
                Some(mark) => shared.queue.low(mark, &capped(&shared)).await,
                None => pending().await,
            }
        };
        expects = false;
        let mut woken = false;
        let until = async {
            expects = tokio::select! {
                biased;
                () = stop.cancelled() => false,
                () = low => true,
                () = wake => {
                    woken = true;
                    true
                }
                () = tokio::time::sleep(rest.time) => rest.time < shared.options.poll,
            }
        };
        next = match rest.idle {
            true => lease_next(&shared, after, until).await,
            false => {
                until.await;
                None
            }
        };
        if next.is_some() && woken {
            // It came too late for the lease that was on its way.
            shared.wake.notify_one();
        }
    }
    if let Some((tenure, Ok((lease, _)))) = next {
        // Whoever drains hands it back.
        take(&shared, tenure, lease).await;
    }
}

/// How long to wait for news until the next lease.
struct Rest {
    time: Duration,
    /// Or until so many tasks wait here.
    mark: Option<usize>,
    /// Whether nothing more is due now.
    idle: bool,
}

impl Rest {
    /// After a lease that got so many tasks. Unless they are all that was due, look again as soon as half of them is gone,
    /// or half of what waits here already, which may be all that its tenant may have.
    fn after(shared: &Shared, got: usize, all: bool, next_run_at_ms: Option<i64>) -> Rest {
        let waits = if got > 0 { got } else { shared.queue.look(Lanes::waiting) };
        let due = next_run_at_ms.filter(|_| got == 0 || all);
        let due = due.map(|at| at.saturating_sub(shared.clock.now_ms()).max(1) as u64);
        let poll = shared.options.poll;
        Rest {
            time: due.map_or(poll, |ms| Duration::from_millis(ms).min(poll)),
            mark: (waits > 0 && !all).then_some(waits / 2),
            idle: all,
        }
    }
}

/// How many more tasks of a tenant may be leased, of whom this host holds so many.
fn cap(shared: &Shared, tenant: TenantId, held: usize) -> usize {
    let policy_max = shared.tenant(tenant).map_or(1, |entry| entry.policy.running_max);
    (policy_max.min(shared.options.running_max) * ROUNDS_AHEAD).saturating_sub(held)
}

/// Tenants of whom no more tasks may be leased now.
fn capped(shared: &Shared) -> Vec<TenantId> {
    let held = shared.queue.look(Lanes::held).into_iter();
    held.filter(|&(tenant, held)| cap(shared, tenant, held) == 0).map(|(tenant, _)| tenant).collect()
}

/// What a lease brought, and whether that was all that is due now.
type Outcome = Result<(Lease, bool), StoreError>;

/// Leases once, under the name that it says.
async fn lease(shared: &Shared, after: Option<TenantId>, expects: bool) -> (Arc<Tenure>, Outcome) {
    let (tenure, began) = (shared.tenure(), Instant::now());
    let Some(request) = request(shared, &tenure, after, expects) else {
        return (tenure, Ok((Lease::default(), false)));
    };
    let asked = request.clone();
    let leased = shared.tasks.lease(request).await;
    let outcome = leased.map(|lease| took(shared, &tenure, began, asked, lease));
    (tenure, outcome)
}

/// The same with the next submit, unless `until` ends before. What there is room for is looked at when that comes.
async fn lease_next(
    shared: &Arc<Shared>,
    after: Option<TenantId>,
    until: impl Future<Output = ()> + Send,
) -> Option<(Arc<Tenure>, Outcome)> {
    let tenure = shared.tenure();
    let (of, under) = (Arc::clone(shared), Arc::clone(&tenure));
    let began = Arc::new(OnceLock::new());
    let begins = Arc::clone(&began);
    let ask = move || {
        begins.get_or_init(Instant::now);
        // Slots are taken behind the tasks that are to end; a submit has locked what those wait for.
        let fits = |asked: &LeaseRequest| asked.slots.is_empty() && of.is_current(&under);
        request(&of, &under, after, true).filter(fits)
    };
    let leased = shared.tasks.lease_next(Box::new(ask), Box::pin(until)).await.transpose()?;
    let began = *began.get_or_init(Instant::now);
    let outcome = leased.map(|(asked, lease)| took(shared, &tenure, began, asked, lease));
    Some((tenure, outcome))
}

/// Notes what a lease says of this host.
fn took(
    shared: &Shared,
    tenure: &Tenure,
    began: Instant,
    asked: LeaseRequest,
    lease: Lease,
) -> (Lease, bool) {
    if lease.lost {
        shared.lost(tenure);
    } else if shared.is_current(tenure) {
        shared.pulse.prove(began);
    }
    let all = lease.tasks.len() < asked.room && !is_capped(&lease, asked.caps);
    (lease, all)
}

/// What to ask for; `None` when nothing fits here. Under a name whose leases may have ended nothing is leased: it could not
/// run, would go back at once, and be leased again, until the heart has another name.
fn request(shared: &Shared, tenure: &Tenure, after: Option<TenantId>, expects: bool) -> Option<LeaseRequest> {
    if tenure.is_lost() {
        return None;
    }
    let (held, waiting) = shared.queue.look(|lanes| (lanes.held(), lanes.waiting()));
    let room =
        if shared.pauses.of_host() { 0 } else { shared.options.local_queue_max.saturating_sub(waiting) };
    let held = |tenant: &TenantId| held.get(tenant).copied().unwrap_or(0);
    let caps: HashMap<TenantId, usize> =
        shared.tenants.keys().map(|tenant| (*tenant, cap(shared, *tenant, held(tenant)))).collect();
    if room == 0 || (!caps.is_empty() && caps.values().all(|cap| *cap == 0)) {
        return None;
    }
    Some(LeaseRequest {
        holder: tenure.holder,
        room,
        caps,
        // A tenant that left the configuration: its tasks fail one by one with a clear error.
        cap_default: ROUNDS_AHEAD,
        after,
        slots: slots(shared),
        expects,
        lease_ms: shared.options.lease.as_millis() as i64,
        now_ms: shared.clock.now_ms(),
    })
}

/// Whether a tenant got as many tasks as it could, and so may have more.
fn is_capped(lease: &Lease, mut caps: HashMap<TenantId, usize>) -> bool {
    for task in &lease.tasks {
        let left = caps.entry(task.tenant).or_insert(ROUNDS_AHEAD);
        *left = left.saturating_sub(1);
    }
    caps.values().any(|left| *left == 0)
}

/// How many tasks of kinds and tenants run at once, as the plugins and the tenants' policies say now.
fn slots(shared: &Shared) -> Arc<Concurrencies> {
    let of_tenant = |tenant, plugin: &PluginName, kind: &KindName, own| match shared.tenant(tenant) {
        Some(entry) => entry.policy.concurrency_of(plugin, kind, own),
        None => own,
    };
    let total =
        |(tenant, entry): (&TenantId, &Arc<TenantEntry>)| Some((*tenant, entry.policy.running_max_total?));
    shared.catalog.concurrencies(of_tenant, || shared.tenants.iter().filter_map(total).collect())
}

async fn take(shared: &Shared, tenure: Arc<Tenure>, lease: Lease) {
    if lease.tasks.is_empty() {
        return;
    }
    if lease.tasks.iter().any(|task| shared.pauses.covers(task.tenant, task.kind)) {
        // The store leases nothing that is paused: it was resumed, or is paused just now, and the news was lost.
        pauses::refresh(shared).await;
    }
    Counters::add(&shared.counters.leased, lease.tasks.len() as u64);
    let jobs = lease.tasks.into_iter().map(|task| {
        let tenant = task.tenant;
        let running_max = shared.tenant(tenant).map_or(1, |entry| entry.policy.running_max);
        let tree = task.tree.map(|told| shared.trees.know(task.lineage.root, told));
        let (alone, place_ms) = (runs_alone(task.crashes), task.place_ms);
        let job = Leased { tenure: Arc::clone(&tenure), task, tree, refused: None };
        (tenant, running_max, alone, place_ms, Job::Task(job))
    });
    shared.queue.push(jobs);
    shared.pulse.quicken();
}
