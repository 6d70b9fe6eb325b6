//! Returns the tasks of dead hosts, corrects the gauge, and forgets old idempotency keys.

use std::sync::Arc;
use std::time::Duration;

use keiko_core::port::{Dead, Rescued, StoreError};
use tokio_util::sync::CancellationToken;

use crate::shared::{Counters, Shared};

/// Time between two looks for dead hosts: a lost task is back within its lease and this.
const EVERY: Duration = Duration::from_secs(2);
/// Looks between two corrections of the gauge.
const CORRECT_EVERY: u32 = 15;
/// Looks between two rounds of forgetting.
const PRUNE_EVERY: u32 = 30;
/// Keys forgotten in one transaction.
const PRUNE_COUNT: u32 = 1_000;

/// Rescues until stopped.
pub(crate) async fn rescue(shared: Arc<Shared>, stop: CancellationToken) {
    for look in 1u32.. {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = look_once(&shared, look).await {
            tracing::warn!(error = %error, "a round of rescue failed");
        }
    }
}

async fn look_once(shared: &Shared, look: u32) -> Result<(), StoreError> {
    let now_ms = shared.clock.now_ms();
    let rescued = shared.tasks.rescue(Dead::Expired, Vec::new(), now_ms).await?;
    note(shared, &rescued);
    if look.is_multiple_of(CORRECT_EVERY) {
        shared.gauge.correct(&shared.records.live().await?);
    }
    if look.is_multiple_of(PRUNE_EVERY) {
        while shared.tasks.prune(now_ms, PRUNE_COUNT).await? == u64::from(PRUNE_COUNT) {}
    }
    Ok(())
}

/// Counts and tells what a rescue did.
pub(crate) fn note(shared: &Shared, rescued: &Rescued) {
    if rescued.returned == 0 && rescued.quarantined.is_empty() {
        return;
    }
    Counters::add(&shared.counters.rescued, rescued.returned);
    tracing::info!(
        items = rescued.returned,
        crashed = rescued.crashed,
        quarantined = rescued.quarantined.len(),
        "tasks of a dead host were returned to the queue"
    );
    shared.waiters.tell(rescued.quarantined.iter().copied());
    shared.wake.notify_one();
}
