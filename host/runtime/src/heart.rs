//! Keeps this host's lease alive, from a thread of its own that no guest and no request can hold up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keiko_core::port::{Beat, Dead};
use keiko_core::stop::StopReason;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shared::{Counters, Shared};

/// Beats until stopped.
pub(crate) async fn beat(shared: Arc<Shared>, stop: CancellationToken) {
    let options = shared.options.clone();
    let mut last = Instant::now();
    let mut alive = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(options.beat) => {}
        }
        let lease_ms = options.lease.as_millis() as i64;
        let beat = shared.tasks.beat(shared.holder(), shared.clock.now_ms(), lease_ms);
        // A beat that does not come back in time is one that failed: the store may be stalled, not gone.
        let limit = options.self_cancel.saturating_sub(last.elapsed()).max(Duration::from_millis(100));
        match tokio::time::timeout(limit, beat).await {
            Ok(Ok(Beat::Alive { .. })) if alive => last = Instant::now(),
            Ok(Ok(_)) => {
                if alive {
                    lose(&shared);
                }
                alive = reopen(&shared, lease_ms).await;
                last = Instant::now();
            }
            Ok(Err(error)) => tracing::warn!(error = %error, "a heartbeat failed"),
            Err(_) => tracing::warn!("a heartbeat was not answered in time"),
        }
        if alive && last.elapsed() >= options.self_cancel {
            lose(&shared);
            alive = false;
        }
    }
}

/// The lease is gone, or may be by the time anybody looks: stop what runs before another host may start it.
fn lose(shared: &Shared) {
    Counters::add(&shared.counters.leases_lost, 1);
    let dropped = shared.queue.clear().len();
    let stopped = shared.running.stop_all(StopReason::LeaseLost);
    tracing::error!(stopped, dropped, "this host lost its lease and stopped its attempts");
}

/// Starts over as a new incarnation.
async fn reopen(shared: &Shared, lease_ms: i64) -> bool {
    let now_ms = shared.clock.now_ms();
    match shared.tasks.open_holder(now_ms, lease_ms).await {
        Ok(holder) => {
            shared.holder.store(holder.0, Ordering::Release);
            if let Err(error) = shared.tasks.rescue(Dead::Expired, Vec::new(), now_ms).await {
                tracing::warn!(error = %error, "tasks of the lost lease could not be rescued yet");
            }
            shared.wake.notify_one();
            tracing::info!("this host holds a new lease");
            true
        }
        Err(error) => {
            tracing::warn!(error = %error, "no new lease could be had");
            false
        }
    }
}
