//! Stops what this host works on though it is no longer its own, such as tasks that were cancelled through another host.
//!
//! News of that are a hint: they may get lost, do not name many tasks one by one, and are not sent by who knows of no other
//! host yet. So the store is asked, in one question for everything that runs or waits here: with every beat, when the listener
//! hears of ends that may concern this host, and after a cancel while tasks wait. Where nothing is worked on nobody is asked.
//! What has ended by itself, its end on the way to the store, is not found here any more, and nothing happens to it.

use std::collections::HashSet;
use std::sync::Arc;

use keiko_core::port::StoreError;
use keiko_core::stop::StopReason;
use keiko_core::{TaskId, Token};
use tokio_util::sync::CancellationToken;

use crate::shared::{Job, Shared};

/// Looks whenever it is asked to, until stopped.
pub(crate) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let looked = async {
            shared.stale.notified().await;
            look(&shared).await
        };
        let looked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            looked = looked => looked,
        };
        if let Err(error) = looked {
            // The next beat looks again.
            tracing::warn!(error = %error, "nobody could say which tasks are no longer this host's");
        }
    }
}

async fn look(shared: &Shared) -> Result<(), StoreError> {
    let mut leases = shared.running.leases();
    leases.extend(shared.queue.look(|lanes| lanes.tasks().filter_map(lease).collect::<Vec<_>>()));
    if leases.is_empty() {
        return Ok(());
    }
    let stale: HashSet<_> = shared.tasks.stale(leases).await?.into_iter().collect();
    if stale.is_empty() {
        return Ok(());
    }
    // First, so that none of them begins in the place of one that is stopped.
    drop(shared.queue.take(|job| lease(job).is_some_and(|lease| stale.contains(&lease))));
    for (id, token) in stale {
        shared.running.stop_leased(id, token, StopReason::Cancelled);
    }
    Ok(())
}

/// The lease of a task.
fn lease(job: &Job) -> Option<(TaskId, Token)> {
    match job {
        Job::Task(leased) => Some((leased.task.id, leased.task.token)),
        Job::Batch(_) | Job::Run(_) => None,
    }
}
