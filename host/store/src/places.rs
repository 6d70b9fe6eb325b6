//! How much of what all tenants share one of them may hold at once.

use std::collections::HashMap;
use std::sync::Arc;

use keiko_core::id::TenantId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places of each tenant that holds one or waits for one; clones share them.
#[derive(Clone)]
pub(crate) struct Places {
    tenants: Arc<Mutex<HashMap<TenantId, Arc<Semaphore>>>>,
    each: usize,
}

impl Places {
    /// At most half of `count` for each tenant, and one at least.
    pub(crate) fn half_of(count: u32) -> Places {
        Places { tenants: Arc::default(), each: count.div_ceil(2).max(1) as usize }
    }

    /// Waits for one of the tenant's.
    pub(crate) async fn take(&self, tenant: TenantId) -> Place {
        let semaphore = {
            let mut tenants = self.tenants.lock();
            Arc::clone(tenants.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
        };
        let mut place = Place { places: self.clone(), tenant, permit: None };
        // Nobody closes it.
        place.permit = semaphore.acquire_owned().await.ok();
        place
    }
}

/// A tenant's place, until it is dropped.
pub(crate) struct Place {
    places: Places,
    pub(crate) tenant: TenantId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tenants = self.places.tenants.lock();
        self.permit = None;
        // Whoever holds or waits for a place shares the semaphore.
        if tenants.get(&self.tenant).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn a_tenant_has_half_of_the_places_and_leaves_the_others_to_others() {
        let places = Places::half_of(5);
        let held =
            [places.take(TenantId(1)).await, places.take(TenantId(1)).await, places.take(TenantId(1)).await];
        let mut fourth = pin!(places.take(TenantId(1)));
        assert!(poll!(fourth.as_mut()).is_pending());
        let other = places.take(TenantId(2)).await;
        drop(held);
        let fourth = fourth.await;
        assert_eq!(places.tenants.lock().len(), 2);
        drop((fourth, other));
        assert!(places.tenants.lock().is_empty(), "nobody is remembered");
    }
}
