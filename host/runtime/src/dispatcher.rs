//! Leases tasks for the room this host has, fairly across tenants, and sleeps when there are none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keiko_core::crash::runs_alone;
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::slot::Concurrencies;
use keiko_core::{Holder, KindName, PluginName, TenantId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pauses;
use crate::shared::{Counters, Job, Leased, Shared};
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
    while !stop.is_cancelled() {
        let wake = shared.wake.notified();
        let tenure = shared.tenure();
        let sleep = match lease(&shared, tenure.holder, after).await {
            Ok(lease) => {
                backoff = BACKOFF.0;
                after = lease.after.or(after);
                let got = lease.tasks.len();
                let next_run_at_ms = lease.next_run_at_ms;
                take(&shared, tenure, lease).await;
                if got > 0 {
                    // There may be more: look again as soon as half of this is gone.
                    let low = shared.queue.low(got / 2);
                    tokio::select! { biased; () = stop.cancelled() => {}, () = low => {}, () = wake => {} }
                    continue;
                }
                let due = next_run_at_ms.map(|at| at.saturating_sub(shared.clock.now_ms()).max(1) as u64);
                due.map_or(shared.options.poll, |ms| Duration::from_millis(ms).min(shared.options.poll))
            }
            Err(error) => {
                tracing::warn!(error = %error, "no tasks could be leased");
                shared.doubt(&error);
                // Kept, it would look like work.
                drop(tenure);
                backoff = (backoff * 2).min(BACKOFF.1);
                backoff
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = wake => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

async fn lease(shared: &Shared, holder: Holder, after: Option<TenantId>) -> Result<Lease, StoreError> {
    let (held, waiting) = shared.queue.look(|lanes| (lanes.held(), lanes.waiting()));
    let room =
        if shared.pauses.of_host() { 0 } else { shared.options.local_queue_max.saturating_sub(waiting) };
    let cap = |tenant: &TenantId| {
        let policy_max = shared.tenant(*tenant).map_or(1, |entry| entry.policy.running_max);
        let running_max = policy_max.min(shared.options.running_max);
        (running_max * ROUNDS_AHEAD).saturating_sub(held.get(tenant).copied().unwrap_or(0))
    };
    let caps: HashMap<TenantId, usize> = shared.tenants.keys().map(|tenant| (*tenant, cap(tenant))).collect();
    if room == 0 || (!caps.is_empty() && caps.values().all(|cap| *cap == 0)) {
        return Ok(Lease::default());
    }
    let request = LeaseRequest {
        holder,
        room,
        caps,
        // A tenant that left the configuration: its tasks fail one by one with a clear error.
        cap_default: ROUNDS_AHEAD,
        after,
        slots: slots(shared),
        lease_ms: shared.options.lease.as_millis() as i64,
        now_ms: shared.clock.now_ms(),
    };
    let began = Instant::now();
    let lease = shared.tasks.lease(request).await?;
    if lease.lost {
        shared.pulse.lose();
    } else {
        shared.pulse.prove(began);
    }
    Ok(lease)
}

/// How many tasks of kinds run at once, as the plugins and their tenants' policies say now.
fn slots(shared: &Shared) -> Arc<Concurrencies> {
    let of_tenant = |tenant, plugin: &PluginName, kind: &KindName, own| match shared.tenant(tenant) {
        Some(entry) => entry.policy.concurrency_of(plugin, kind, own),
        None => own,
    };
    shared.catalog.concurrencies(of_tenant)
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
        (tenant, running_max, alone, place_ms, Job::Task(Leased { tenure: Arc::clone(&tenure), task, tree }))
    });
    shared.queue.push(jobs);
    shared.pulse.quicken();
}
