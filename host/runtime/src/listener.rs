//! Takes news from other hosts of the same database.

use std::sync::Arc;

use keiko_core::TaskId;
use keiko_core::catalog::Tenant;
use keiko_core::port::{Heard, Signal};
use keiko_core::stop::StopReason;
use tokio_util::sync::CancellationToken;

use crate::batch;
use crate::pauses;
use crate::shared::Shared;

/// Listens until stopped.
pub(crate) async fn listen(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let signal = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            signal = shared.signals.next() => signal,
        };
        take(&shared, signal).await;
    }
}

async fn take(shared: &Shared, signal: Signal) {
    if signal.ready {
        shared.wake.notify_one();
    }
    if signal.catalog
        && let Err(error) = shared.catalog.refresh().await
    {
        // The next beat tells that the catalog has changed, and tries again.
        tracing::warn!(error = %error, "the plugins could not be read again");
    }
    if signal.catalog {
        pauses::refresh(shared).await;
    }
    if signal.catalog || signal.items {
        batch::refresh(shared).await;
        shared.batches.tell(batch::Event::Look).await;
        shared.schedules.look();
    }
    if signal.many_ended {
        shared.waiters.tell_all();
    }
    let running: Vec<(TaskId, _)> =
        signal.ended.iter().filter_map(|id| Some((*id, shared.running.tenant(*id)?))).collect();
    for (id, tenant) in running {
        // It was cancelled elsewhere, or it was retried by hand since: only the store knows.
        let view = shared.records.task(tenant, id).await;
        if view.is_ok_and(|view| view.is_none_or(|view| view.summary.state.is_terminal())) {
            shared.running.stop(id, StopReason::Cancelled);
        }
    }
    // What was said before an end is heard before it.
    shared.hear(signal.watched, signal.said);
    shared.waiters.tell(signal.ended);
    if signal.cache_many {
        shared.cache.take_signal(Heard::Found, &[]);
    }
    let tenants: Vec<Tenant> = shared.tenants.iter().map(|(id, entry)| entry.row(*id)).collect();
    shared.cache.take_signal(Heard::Changes(signal.cache), &tenants);
}
