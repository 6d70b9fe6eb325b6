//! How many bytes of items are in memory, of each tenant and in all. Whoever wants more waits, or does without.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keiko_core::TenantId;
use keiko_core::limit::{LimitFact, SetBy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// What a permit counts.
const UNIT: u64 = 1024;

/// The limits and what is left of them.
#[derive(Debug)]
pub(super) struct Memory {
    all: Limit,
    tenants: HashMap<TenantId, Limit>,
}

#[derive(Clone, Debug)]
struct Limit {
    bytes: u64,
    set_by: SetBy,
    units: u32,
    left: Arc<Semaphore>,
}

/// Bytes that somebody has; given back when it is dropped. The tenant's come first, then the host's.
#[derive(Debug)]
pub(crate) struct Held {
    _tenant: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Limit {
    fn new(bytes: u64, set_by: SetBy) -> Limit {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3);
        Limit { bytes, set_by, units, left: Arc::new(Semaphore::new(units as usize)) }
    }

    /// As many units as so many bytes take; the whole limit for what is larger.
    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units)
    }

    async fn take(&self, bytes: u64) -> OwnedSemaphorePermit {
        let left = Arc::clone(&self.left);
        left.acquire_many_owned(self.units_of(bytes)).await.expect("nobody closes the semaphore")
    }

    async fn take_until(&self, bytes: u64, until: Instant) -> Result<OwnedSemaphorePermit, LimitFact> {
        timeout_at(until, self.take(bytes)).await.map_err(|_| LimitFact {
            name: "memory_bytes".to_owned(),
            limit: self.bytes,
            asked: Some(bytes),
            set_by: self.set_by,
        })
    }

    fn try_take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.left).try_acquire_many_owned(self.units_of(bytes)).ok()
    }
}

impl Memory {
    pub(super) fn new(bytes_max: u64, tenants: HashMap<TenantId, u64>) -> Memory {
        let tenants = tenants.into_iter().map(|(tenant, bytes)| (tenant, Limit::new(bytes, SetBy::Tenant)));
        Memory { all: Limit::new(bytes_max, SetBy::Host), tenants: tenants.collect() }
    }

    /// So many bytes, as soon as there is room.
    pub(super) async fn take(&self, tenant: TenantId, bytes: u64) -> Held {
        let tenant = match self.tenants.get(&tenant) {
            Some(limit) => Some(limit.take(bytes).await),
            None => None,
        };
        Held { _tenant: tenant, _all: self.all.take(bytes).await }
    }

    /// The same within a time; behind it, the limit that was short.
    pub(super) async fn take_within(
        &self,
        tenant: TenantId,
        bytes: u64,
        time: Duration,
    ) -> Result<Held, LimitFact> {
        let until = Instant::now() + time;
        let tenant = match self.tenants.get(&tenant) {
            Some(limit) => Some(limit.take_until(bytes, until).await?),
            None => None,
        };
        Ok(Held { _tenant: tenant, _all: self.all.take_until(bytes, until).await? })
    }

    /// So many bytes, if there is room now.
    pub(super) fn try_take(&self, tenant: TenantId, bytes: u64) -> Option<Held> {
        let tenant = match self.tenants.get(&tenant) {
            Some(limit) => Some(limit.try_take(bytes)?),
            None => None,
        };
        Some(Held { _tenant: tenant, _all: self.all.try_take(bytes)? })
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);

    fn memory() -> Memory {
        Memory::new(3 * UNIT, HashMap::from([(A, 2 * UNIT), (B, 2 * UNIT)]))
    }

    #[test]
    fn a_tenant_and_the_host_have_their_limits() {
        let memory = memory();
        let a = memory.try_take(A, 2 * UNIT).unwrap();
        assert!(memory.try_take(A, 1).is_none(), "the tenant has what it may");
        let b = memory.try_take(B, UNIT).unwrap();
        assert!(memory.try_take(B, 1).is_none(), "the host has what it may");
        drop((a, b));
        assert!(memory.try_take(B, 2 * UNIT).is_some());
        assert!(memory.try_take(A, u64::MAX).is_some(), "what is larger than everything gets everything");
    }

    #[tokio::test]
    async fn who_waits_is_served_when_there_is_room() {
        let memory = memory();
        let held = memory.take(A, 2 * UNIT).await;
        let mut waiting = Box::pin(memory.take(A, UNIT));
        assert!(poll!(waiting.as_mut()).is_pending());
        drop(held);
        assert!(poll!(waiting.as_mut()).is_ready());
    }
}
