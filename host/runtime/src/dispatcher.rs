//! Leases tasks for the room this host has, fairly across tenants. When there are none it sleeps, and leaves a lease with
//! the store that goes with the next submit.
//!
//! How many are leased ahead: of each tenant as many as run of it in some rounds; beside other hosts no more than are likely to
//! begin soon ([`crate::ahead`]); of all tenants what the local queue holds, by count and by the bytes of inputs. While those bytes
//! are there only tenants of whom nothing waits get more, one task each: another's large inputs do not hold them up.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keiko_core::crash::runs_alone;
use keiko_core::port::{Lease, LeaseRequest, Signal, StoreError};
use keiko_core::slot::Concurrencies;
use keiko_core::{KindName, PluginName, TenantId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ahead::Low;
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
    let mut leaves = false;
    while !stop.is_cancelled() {
        let wake = shared.wake.notified();
        let (tenure, outcome) = match next.take() {
            Some(next) => next,
            None => lease(&shared, after, expects).await,
        };
        let rest = match outcome {
            Ok((lease, left)) => {
                backoff = BACKOFF.0;
                after = lease.after.or(after);
                let (got, next_run_at_ms) = (lease.tasks.len(), lease.next_run_at_ms);
                take(&shared, tenure, lease).await;
                leaves = left.tell(&shared, leaves);
                Rest::after(&shared, got, left, next_run_at_ms)
            }
            Err(error) => {
                tracing::warn!(error = %error, "no tasks could be leased");
                shared.doubt(&error);
                // Kept, it would look like work.
                drop(tenure);
                backoff = (backoff * 2).min(BACKOFF.1);
                Rest { time: backoff, low: None, idle: false }
            }
        };
        let low = async {
            match &rest.low {
                Some(low) => shared.queue.low(low).await,
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
    /// Or until there is room again.
    low: Option<Low>,
    /// Whether nothing more is due now.
    idle: bool,
}

impl Rest {
    /// After a lease that got so many tasks. Unless they are all that was due, look again as soon as half of them is gone,
    /// or half of what waits here already; and as soon as a tenant who could have no more has room.
    fn after(shared: &Shared, got: usize, left: Left, next_run_at_ms: Option<i64>) -> Rest {
        let Left { all, short, capped } = left;
        let waits = if got > 0 { got } else { shared.queue.look(Lanes::waiting) };
        let due = next_run_at_ms.filter(|_| got == 0 || all);
        let due = due.map(|at| at.saturating_sub(shared.clock.now_ms()).max(1) as u64);
        let poll = shared.options.poll;
        let mark = (!all && (waits > 0 || short)).then_some(waits / 2);
        let beside = shared.pulse.has_others();
        Rest {
            time: due.map_or(poll, |ms| Duration::from_millis(ms).min(poll)),
            low: (mark.is_some() || !capped.is_empty()).then_some(Low { mark, capped, beside }),
            idle: all,
        }
    }
}

/// What a lease may have left with the store. Nothing is known of it by default.
#[derive(Default)]
struct Left {
    /// Nothing is due now, but of the tenants who could have no more before.
    all: bool,
    /// No tenant could have any, as none of it would have begun soon.
    short: bool,
    /// Tenants who may have no more.
    capped: Vec<TenantId>,
}

impl Left {
    /// Behind a lease that was asked for.
    fn behind(lease: &Lease, asked: LeaseRequest) -> Left {
        let mut got: BTreeMap<TenantId, usize> = BTreeMap::new();
        for task in &lease.tasks {
            *got.entry(task.tenant).or_default() += 1;
        }
        let cap = |tenant: &TenantId| asked.caps.get(tenant).copied().unwrap_or(asked.cap_default);
        got.retain(|tenant, count| *count >= cap(tenant));
        let all = lease.tasks.len() < asked.room && got.is_empty();
        let before = asked.caps.iter().filter(|(_, cap)| **cap == 0).map(|(tenant, _)| *tenant);
        Left { all, short: false, capped: before.chain(got.into_keys()).collect() }
    }

    /// Tells other hosts when this one begins to leave tasks, of which some may come due that only it knew of. Says whether it
    /// does, where it did `before` or not.
    fn tell(&self, shared: &Shared, before: bool) -> bool {
        let leaves = (self.short || !self.capped.is_empty()) && shared.pulse.has_others();
        if leaves && !before {
            shared.signals.tell(Signal { ready: true, ..Signal::default() });
        }
        leaves
    }
}

/// What a lease brought, and what it may have left.
type Outcome = Result<(Lease, Left), StoreError>;

/// Leases once, under the name that it says.
async fn lease(shared: &Shared, after: Option<TenantId>, expects: bool) -> (Arc<Tenure>, Outcome) {
    let (tenure, began) = (shared.tenure(), Instant::now());
    let request = match request(shared, &tenure, after, expects) {
        Ok(request) => request,
        Err(left) => return (tenure, Ok((Lease::default(), left))),
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
        request(&of, &under, after, true).ok().filter(fits)
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
) -> (Lease, Left) {
    if lease.lost {
        shared.lost(tenure);
    } else if shared.is_current(tenure) {
        shared.pulse.prove(began);
    }
    let left = Left::behind(&lease, asked);
    (lease, left)
}

/// What to ask for, or what is left when nothing fits here. Under a name whose leases may have ended nothing is leased: it
/// could not run, would go back at once, and be leased again, until the heart has another name.
fn request(
    shared: &Shared,
    tenure: &Tenure,
    after: Option<TenantId>,
    expects: bool,
) -> Result<LeaseRequest, Left> {
    if tenure.is_lost() || shared.pauses.of_host() {
        return Err(Left::default());
    }
    let (options, load, beside) = (&shared.options, shared.queue.load(), shared.pulse.has_others());
    let is_full = load.bytes >= options.local_queue_bytes_max || (beside && load.waiting >= load.soon);
    let cap = |(tenant, entry): (&TenantId, &Arc<TenantEntry>)| {
        let held = load.held.get(tenant).copied().unwrap_or_default();
        let running_max = entry.policy.running_max.min(options.running_max);
        let rounds = (running_max * ROUNDS_AHEAD).saturating_sub(held.count());
        let cap = if beside { rounds.min(held.room(running_max, load.soon)) } else { rounds };
        (*tenant, if is_full { cap.min(usize::from(held.waiting == 0)) } else { cap })
    };
    let caps: HashMap<TenantId, usize> = shared.tenants.iter().map(cap).collect();
    let mut room = options.local_queue_max.saturating_sub(load.waiting);
    if beside {
        room = room.min(if is_full { load.soon } else { load.soon - load.waiting });
    }
    let is_heavy = load.bytes >= options.local_queue_bytes_max.saturating_mul(2);
    if room == 0 || is_heavy || (!caps.is_empty() && caps.values().all(|cap| *cap == 0)) {
        // Whoever has nothing here has room when anybody has.
        let capped = caps.into_iter().filter(|(tenant, cap)| *cap == 0 && load.held.contains_key(tenant));
        let capped = capped.map(|(tenant, _)| tenant).collect();
        return Err(Left { all: false, short: beside && load.soon == 0, capped });
    }
    Ok(LeaseRequest {
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
        (tenant, running_max, alone, place_ms, Job::Task(Box::new(job)))
    });
    shared.queue.push(jobs);
    shared.pulse.quicken();
}
