//! How many items of each tenant wait, and how large they are together, as this host knows it; and how much more is promised
//! to guests.
//!
//! The store's own counts decide what is added from outside. These follow every change that this host makes, are corrected
//! from the store at times, and decide what a guest is promised before it is stored.

use std::collections::HashMap;

use keiko_core::TenantId;
use keiko_core::batch::{NewItem, Waiting};

use crate::gauge::Gauge;

/// What waits and what is promised, in items and in bytes.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    items: Gauge,
    bytes: Gauge,
}

/// What these items are together.
pub(crate) fn sum(items: &[NewItem]) -> Waiting {
    Waiting { items: items.len() as u64, bytes: items.iter().map(NewItem::size).sum() }
}

impl Quota {
    /// Replaces what is known of the store.
    pub(crate) fn correct(&self, waiting: &[(TenantId, Waiting)]) {
        let of = |number: fn(&Waiting) -> u64| -> HashMap<TenantId, u64> {
            waiting.iter().map(|(tenant, waiting)| (*tenant, number(waiting))).collect()
        };
        self.items.correct(&of(|waiting| waiting.items));
        self.bytes.correct(&of(|waiting| waiting.bytes));
    }

    /// Follows what the store has taken.
    pub(crate) fn added(&self, tenant: TenantId, more: Waiting) {
        self.items.change(tenant, signed(more.items));
        self.bytes.change(tenant, signed(more.bytes));
    }

    /// Follows what has left the store.
    pub(crate) fn left(&self, tenant: TenantId, gone: Waiting) {
        self.items.change(tenant, -signed(gone.items));
        self.bytes.change(tenant, -signed(gone.bytes));
    }

    /// Promises room for more within the limits of `most`, or says which number of them is reached.
    pub(crate) fn promise(&self, tenant: TenantId, more: Waiting, most: Waiting) -> Result<(), u64> {
        self.items.promise(tenant, more.items, most.items).map_err(|_| most.items)?;
        self.bytes.promise(tenant, more.bytes, most.bytes).map_err(|_| {
            self.items.release(tenant, more.items);
            most.bytes
        })
    }

    /// Takes a promise back, kept or not.
    pub(crate) fn release(&self, tenant: TenantId, promised: Waiting) {
        self.items.release(tenant, promised.items);
        self.bytes.release(tenant, promised.bytes);
    }

    /// Whether items of the tenant wait in the store.
    pub(crate) fn has_rows(&self, tenant: TenantId) -> bool {
        self.items.live(tenant) > 0
    }

    /// What is promised to guests and not stored yet.
    pub(crate) fn promised(&self, tenant: TenantId) -> Waiting {
        Waiting { items: self.items.promised(tenant), bytes: self.bytes.promised(tenant) }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);

    fn waiting(items: u64, bytes: u64) -> Waiting {
        Waiting { items, bytes }
    }

    #[test]
    fn promises_fill_items_and_bytes_to_their_limits_and_no_further() {
        let (quota, most) = (Quota::default(), waiting(10, 1_000));
        quota.added(A, waiting(3, 400));
        assert_eq!(quota.promise(A, waiting(8, 1), most), Err(10));
        assert_eq!(quota.promise(A, waiting(1, 601), most), Err(1_000));
        assert_eq!(quota.promised(A), waiting(0, 0), "what was refused holds nothing");
        assert_eq!(quota.promise(A, waiting(7, 600), most), Ok(()));
        assert_eq!(quota.promised(A), waiting(7, 600));
        quota.release(A, waiting(7, 600));
        quota.left(A, waiting(3, 400));
        assert!(!quota.has_rows(A));
        assert_eq!(quota.promise(A, waiting(10, 1_000), most), Ok(()));
    }

    #[test]
    fn a_correction_replaces_both_counts() {
        let (quota, most) = (Quota::default(), waiting(10, 1_000));
        quota.added(A, waiting(9, 900));
        quota.correct(&[(TenantId(2), waiting(4, 40))]);
        assert_eq!(quota.promise(A, waiting(10, 1_000), most), Ok(()));
        assert_eq!(quota.promise(TenantId(2), waiting(6, 961), most), Err(1_000));
        assert!(quota.has_rows(TenantId(2)));
    }
}
