//! Takes news from other hosts of the same database.

use std::sync::Arc;

use keiko_core::catalog::Tenant;
use keiko_core::port::{Heard, Signal};
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
    if signal.many_ended || signal.ended.iter().any(|id| shared.running.tenant(*id).is_some()) {
        // They were cancelled elsewhere, or retried by hand since: only the store knows.
        shared.stale.notify_one();
    }
    if signal.items {
        // Only the host that has left may have known when its tasks are over.
        shared.time_outs.look();
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
    // What was said before an end is heard before it.
    shared.hear(signal.watched, signal.said);
    shared.waiters.tell(signal.ended);
    match signal.hearing {
        Some(false) => shared.cache.take_signal(Heard::Lost, &[]),
        None if !signal.cache_many => {}
        _ => shared.cache.take_signal(Heard::Found, &[]),
    }
    let tenants: Vec<Tenant> = shared.tenants.iter().map(|(id, entry)| entry.row(*id)).collect();
    shared.cache.take_signal(Heard::Changes(signal.cache), &tenants);
}
