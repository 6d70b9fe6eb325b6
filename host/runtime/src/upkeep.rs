//! Corrects the gauge while there is work, forgets what is old, and takes drained plugins away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keiko_core::port::StoreError;
use tokio_util::sync::CancellationToken;

use crate::batch;
use crate::groups;
use crate::pauses;
use crate::shared::Shared;

/// Time between two corrections of the gauge.
const CORRECT_EVERY: Duration = Duration::from_secs(30);
/// Least time between two looks at plugins that wait for their last task.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Corrections between two rounds of forgetting: ten minutes.
const PRUNE_EVERY: u32 = 20;
/// Keys forgotten, and ended tasks looked at, in one transaction.
const PRUNE_COUNT: u32 = 1_000;
/// How long a component stays that nothing names, half of it at least: longer than from its upload to its version, and than a
/// backup takes from the tasks to the components.
const UNNAMED_MS: i64 = 24 * 60 * 60 * 1_000;

/// Keeps up until stopped.
pub(crate) async fn keep_up(shared: Arc<Shared>, stop: CancellationToken) {
    let mut leased = 0;
    for round in 1u32.. {
        let due = tokio::time::sleep(CORRECT_EVERY);
        tokio::pin!(due);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = &mut due => break,
                () = shared.failing.more() => {
                    groups::again(&shared).await;
                }
            }
        }
        let leased_now = shared.counters.leased.load(Ordering::Relaxed);
        let worked = std::mem::replace(&mut leased, leased_now) != leased_now;
        if let Err(error) = once(&shared, round, worked).await {
            tracing::warn!(error = %error, "a round of upkeep failed");
        }
    }
}

/// Takes away plugins whose last task has ended, until stopped.
pub(crate) async fn sweep(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.sweep.notified() => {}
            // An end on another host tells nobody here.
            () = tokio::time::sleep(CORRECT_EVERY) => {}
        }
        if !shared.catalog.is_draining() {
            continue;
        }
        let before = shared.catalog.snapshot();
        match shared.catalog.sweep().await {
            Ok(true) => shared.swapped(&before).await,
            Ok(false) => {}
            Err(error) => tracing::warn!(error = %error, "a drained plugin could not be removed"),
        }
        // Tasks end in great numbers; the tenant's live ones are counted each time.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn once(shared: &Shared, round: u32, worked: bool) -> Result<(), StoreError> {
    if shared.pauses.are_ending() {
        // Whoever resumed them was cut off.
        pauses::refresh(shared).await;
    }
    groups::again(shared).await;
    if worked {
        shared.gauge.correct(&shared.records.live().await?);
        batch::correct(shared).await?;
    }
    if round.is_multiple_of(PRUNE_EVERY) {
        shared.time_outs.look();
        let now_ms = shared.clock.now_ms();
        while shared.tasks.prune(now_ms, PRUNE_COUNT).await? == u64::from(PRUNE_COUNT) {}
        forget(shared, now_ms).await?;
        shared.catalog.forget(now_ms - UNNAMED_MS, now_ms).await?;
    }
    Ok(())
}

/// Forgets ended tasks of every tenant that are older than what is kept.
async fn forget(shared: &Shared, now_ms: i64) -> Result<(), StoreError> {
    let kept = shared.options.retention.kept_from(now_ms);
    if kept.latest_ms().is_none() {
        return Ok(());
    }
    for tenant in shared.tenants.keys() {
        let (mut after, mut forgotten) = (None, 0);
        loop {
            let round = shared.tasks.prune_finished(*tenant, kept, after, PRUNE_COUNT).await?;
            forgotten += round.pruned;
            after = round.next;
            if after.is_none() {
                break;
            }
        }
        if forgotten > 0 {
            tracing::info!(items = forgotten, "ended tasks were forgotten");
        }
    }
    Ok(())
}
