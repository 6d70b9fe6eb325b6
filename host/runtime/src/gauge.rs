//! How many live tasks each tenant has, as this host knows it, and how many more are promised to guests.
//!
//! The store keeps the counter that decides a submit. This one lets a guest's children be promised before they
//! are stored; it follows every change this host makes and is corrected from the store at times.

use std::collections::HashMap;

use keiko_core::TenantId;
use parking_lot::Mutex;

/// Counts by tenant.
#[derive(Debug, Default)]
pub(crate) struct Gauge(Mutex<HashMap<TenantId, Count>>);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    live: u64,
    promised: u64,
}

impl Gauge {
    /// Replaces what is known of live tasks.
    pub(crate) fn correct(&self, live: &HashMap<TenantId, u64>) {
        let mut counts = self.0.lock();
        for (tenant, count) in counts.iter_mut() {
            count.live = live.get(tenant).copied().unwrap_or(0);
        }
        for (&tenant, &live) in live {
            counts.entry(tenant).or_default().live = live;
        }
    }

    /// Follows a change that the store has committed.
    pub(crate) fn change(&self, tenant: TenantId, by: i64) {
        let mut counts = self.0.lock();
        let count = counts.entry(tenant).or_default();
        count.live = count.live.saturating_add_signed(by);
    }

    /// Promises room for `more` tasks, or says how many there are.
    pub(crate) fn promise(&self, tenant: TenantId, more: u64, queue_max: u64) -> Result<(), u64> {
        let mut counts = self.0.lock();
        let count = counts.entry(tenant).or_default();
        let held = count.live + count.promised;
        if held + more > queue_max {
            return Err(held);
        }
        count.promised += more;
        Ok(())
    }

    /// Takes a promise back, kept or not.
    pub(crate) fn release(&self, tenant: TenantId, promised: u64) {
        let mut counts = self.0.lock();
        let count = counts.entry(tenant).or_default();
        count.promised = count.promised.saturating_sub(promised);
    }

    /// What the store has, as this host knows it.
    pub(crate) fn live(&self, tenant: TenantId) -> u64 {
        self.0.lock().get(&tenant).map_or(0, |count| count.live)
    }

    /// Tasks promised to guests and not stored yet.
    pub(crate) fn promised(&self, tenant: TenantId) -> u64 {
        self.0.lock().get(&tenant).map_or(0, |count| count.promised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);

    #[test]
    fn promises_fill_the_queue_to_its_limit_and_no_further() {
        let gauge = Gauge::default();
        gauge.change(A, 7);
        assert_eq!(gauge.promise(A, 3, 10), Ok(()));
        assert_eq!(gauge.promise(A, 1, 10), Err(10));
        gauge.release(A, 3);
        assert_eq!(gauge.promised(A), 0);
        gauge.change(A, -7);
        assert_eq!(gauge.promise(A, 10, 10), Ok(()));
    }

    #[test]
    fn a_correction_replaces_what_was_counted() {
        let gauge = Gauge::default();
        gauge.change(A, 9);
        gauge.correct(&HashMap::from([(TenantId(2), 4)]));
        assert_eq!(gauge.promise(A, 10, 10), Ok(()));
        assert_eq!(gauge.promise(TenantId(2), 7, 10), Err(4));
    }
}
