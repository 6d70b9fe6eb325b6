//! Returns the tasks of dead hosts. It sleeps until the first lease of another host can have ended, which the heart
//! learns with every beat; without other hosts there is nothing to look for.

use std::sync::Arc;
use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::port::{Dead, Rescued};
use tokio_util::sync::CancellationToken;

use crate::batch::Event;
use crate::groups;
use crate::shared::{Counters, Shared};

/// Beyond the end of a lease, for clocks that differ by a little.
const MARGIN: Duration = Duration::from_millis(100);
/// Between two looks at the same lease.
const AGAIN: Duration = Duration::from_secs(1);

/// Rescues until stopped.
pub(crate) async fn rescue(shared: Arc<Shared>, stop: CancellationToken) {
    let mut others = shared.pulse.others();
    let mut wait = Duration::ZERO;
    loop {
        let end_ms = *others.borrow_and_update();
        let due = async {
            match end_ms {
                Some(end_ms) => {
                    let left = end_ms.saturating_sub(shared.clock.now_ms()).max(0) as u64;
                    tokio::time::sleep((Duration::from_millis(left) + MARGIN).max(wait)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = others.changed() => match changed {
                Ok(()) => { wait = Duration::ZERO; continue }
                Err(_) => return,
            },
            () = due => {}
        }
        round(&shared).await;
        groups::again(&shared).await;
        // The next beat tells whose lease ends next.
        shared.pulse.poke();
        wait = AGAIN;
    }
}

/// Looks once.
pub(crate) async fn round(shared: &Shared) {
    match shared.tasks.rescue(Dead::Expired, Vec::new(), shared.clock.now_ms()).await {
        Ok(rescued) => {
            note(shared, &rescued);
            // Nobody may be left who knows of the dead host's.
            shared.time_outs.look();
            shared.schedules.look();
            // The dead may have left batches, and items that nobody else knows.
            shared.batches.tell(Event::Look).await;
        }
        Err(error) => {
            tracing::warn!(error = %error, "a round of rescue failed");
            shared.failing.doubt();
        }
    }
}

/// Counts and tells what a rescue did.
pub(crate) fn note(shared: &Shared, rescued: &Rescued) {
    // Whoever was to cancel the rest of these may be gone.
    shared.failing.add(rescued.groups.iter().copied());
    if rescued.returned == 0 && rescued.quarantined.is_empty() {
        return;
    }
    Counters::add(&shared.counters.rescued, rescued.returned);
    shared.count_failed(&rescued.failed, Code::Quarantined);
    tracing::info!(
        items = rescued.returned,
        crashed = rescued.crashed,
        quarantined = rescued.quarantined.len(),
        "tasks of a dead host were returned to the queue"
    );
    shared.ended(rescued.quarantined.clone());
    shared.wake.notify_one();
}
