//! Guest workers: threads that run attempts and nothing else, so that the API's threads never wait for a guest.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::attempt;
use crate::service::spawn_local;
use crate::shared::{Job, Shared};

/// Runs attempts on this thread, `running_per_worker` at once, until stopped; then waits for those that run.
pub(crate) async fn work(shared: Arc<Shared>, stop: CancellationToken) {
    let slots = Rc::new(Semaphore::new(shared.options.running_per_worker));
    loop {
        let next = async {
            let slot = Rc::clone(&slots).acquire_owned_local().await;
            (slot, shared.queue.next().await)
        };
        let (slot, (tenant, job)) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = next => next,
        };
        let shared = Arc::clone(&shared);
        spawn_local(async move {
            end(&shared, tenant, job).await;
            drop(slot);
        });
    }
    slots.all(shared.options.running_per_worker).await;
}

async fn end(shared: &Arc<Shared>, tenant: keiko_core::TenantId, job: Job) {
    let ended = attempt::run(shared, job).await;
    shared.queue.done(tenant);
    if let Some(ended) = ended {
        // The settler goes last; without it the lease ends and the task is rescued.
        let _ = shared.ended.send(ended).await;
    }
}

/// Permits of one thread.
trait LocalSlots {
    async fn acquire_owned_local(self) -> Slot;
    async fn all(&self, count: usize);
}

/// A permit, given back when dropped.
struct Slot(Rc<Semaphore>);

impl LocalSlots for Rc<Semaphore> {
    async fn acquire_owned_local(self) -> Slot {
        if let Ok(permit) = self.acquire().await {
            permit.forget();
        }
        Slot(self)
    }

    async fn all(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // The semaphore is never closed, so this only waits.
        let _ = self.acquire_many(count).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}
