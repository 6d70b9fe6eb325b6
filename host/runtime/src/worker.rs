//! Guest workers: threads that run attempts and nothing else, so that the API's threads never wait for a guest.
//!
//! An attempt begins here and ends here when it is short; a long one goes on elsewhere (`long`) and leaves its slot to
//! the next, while its task here waits for its report.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use keiko_core::TenantId;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt;
use crate::batch;
use crate::direct;
use crate::service::spawn_beside;
use crate::shared::{Job, Shared};

/// Runs attempts on this thread, `running_per_worker` short ones at once, until stopped; then waits for those that run,
/// the long ones that began here included. `number` is this worker's.
pub(crate) async fn work(shared: Arc<Shared>, number: usize, stop: CancellationToken) {
    let slots = shared.queue.slots(number);
    let attempts = TaskTracker::new();
    loop {
        let next = async {
            // One that is free is free for whoever counts them until there is something to run in it.
            drop(slots.acquire().await.expect("nobody closes the semaphore"));
            shared.queue.next().await
        };
        let (tenant, job) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = next => next,
        };
        let slot = Arc::clone(&slots).try_acquire_owned().expect("nobody else takes one of this worker");
        let attempt = AssertUnwindSafe(end(Arc::clone(&shared), tenant, job, slot)).catch_unwind();
        let mut attempt = attempts.track_future(attempt).boxed();
        // The first poll is here and not behind those of the attempts that this thread has already, and no further
        // attempt is taken before it: another tenant's task that comes in the meantime has its turn after one slice
        // of this attempt and one of the others, and not after one of as many as there are slots.
        if futures::poll!(attempt.as_mut()).is_pending() {
            spawn_beside(attempt.map(drop));
        }
        // One of the others.
        tokio::task::yield_now().await;
    }
    attempts.close();
    attempts.wait().await;
}

async fn end(shared: Arc<Shared>, tenant: TenantId, job: Job, slot: OwnedSemaphorePermit) {
    let mut slot = Some(slot);
    let ended = match job {
        Job::Task(leased) => attempt::run(&shared, leased, &mut slot).await,
        Job::Batch(job) => {
            batch::job::run(&shared, *job, &mut slot).await;
            None
        }
        Job::Run(run) => {
            let report = direct::run(&shared, &run, &mut slot).await;
            // Before its caller is told, so that who asks again at once finds the room.
            shared.queue.done(tenant);
            return direct::answer(&shared, *run, report);
        }
    };
    let is_short = slot.is_some();
    // Ends that wait for a stalled settler keep room for as many others from starting: their slot when the attempt
    // was short, their permits when it was long and has no slot.
    if is_short {
        shared.queue.done(tenant);
    }
    if let Some(ended) = ended {
        // The settler goes last; without it the lease ends and the task is rescued.
        let _ = shared.ended.send(ended).await;
    }
    if !is_short {
        shared.queue.done(tenant);
    }
}
