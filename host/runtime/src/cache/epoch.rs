//! In which epoch this host is. What is in memory was known to be the newest in one epoch, and is looked up again in the
//! next: so a loss of other hosts' messages is never unnoticed. Others tell by the first way that works for them, so a host
//! is blind while it hears nothing on any one of its ways.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::safeguard::{Safeguard, on};

/// While nothing is heard, an epoch lasts this long, in milliseconds: the longest that a value may then be old.
pub const BLIND_MS: i64 = 1_000;
/// Epochs of one time of blindness at most: 31 years.
const EPOCHS: u32 = 30;
const HEARING: i64 = -1;

/// Counts epochs.
#[derive(Debug)]
pub(crate) struct Epoch {
    base: AtomicU64,
    /// Since when something is not heard; [`HEARING`] while everything is.
    blind_since_ms: AtomicI64,
    /// The ways on which nothing is heard.
    lost: Mutex<BTreeSet<usize>>,
}

impl Epoch {
    /// Everything is heard, or there is nobody to hear.
    pub(crate) fn new() -> Epoch {
        let blind_since_ms = AtomicI64::new(HEARING);
        Epoch { base: AtomicU64::new(0), blind_since_ms, lost: Mutex::default() }
    }

    /// The epoch now.
    pub(crate) fn now(&self, now_ms: i64) -> u64 {
        let base = self.base.load(Ordering::Acquire) << EPOCHS;
        match self.blind_since_ms.load(Ordering::Acquire) {
            HEARING => base,
            _ if !on(Safeguard::BlindEnds) => base + 1,
            since_ms => base + 1 + (now_ms.saturating_sub(since_ms).max(0) / BLIND_MS) as u64,
        }
    }

    /// From now on nothing is heard on this way.
    pub(crate) fn lost(&self, way: usize, now_ms: i64) {
        let mut lost = self.lost.lock();
        lost.insert(way);
        self.base.fetch_add(1, Ordering::AcqRel);
        self.blind_since_ms.store(now_ms.max(0), Ordering::Release);
    }

    /// From now on everything is heard on this way; what happened before may not have been.
    pub(crate) fn found(&self, way: usize) {
        let mut lost = self.lost.lock();
        lost.remove(&way);
        // First the new epoch, so that none of before comes back for a moment.
        self.base.fetch_add(1, Ordering::AcqRel);
        if lost.is_empty() {
            self.blind_since_ms.store(HEARING, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_end_with_a_loss_and_every_second_until_it_is_over() {
        let epoch = Epoch::new();
        let first = epoch.now(0);
        assert_eq!(epoch.now(1_000_000), first);
        epoch.lost(0, 5_000);
        let lost = epoch.now(5_000);
        assert!(lost > first);
        assert_eq!(epoch.now(5_999), lost);
        assert_eq!(epoch.now(6_000), lost + 1);
        epoch.found(0);
        let found = epoch.now(6_000);
        assert!(found > lost + 1);
        assert_eq!(epoch.now(9_000_000), found);
        // Clocks that go back invent nothing.
        epoch.lost(0, 5_000);
        assert_eq!(epoch.now(4_000), epoch.now(5_000));
    }

    #[test]
    fn a_way_that_is_found_does_not_hide_that_another_is_lost() {
        let epoch = Epoch::new();
        epoch.lost(1, 5_000);
        epoch.found(0);
        let blind = epoch.now(5_999);
        assert_eq!(epoch.now(6_000), blind + 1, "nothing is heard on the other");
        epoch.lost(0, 7_000);
        epoch.found(1);
        assert!(epoch.now(9_000) > epoch.now(8_999));
        epoch.found(0);
        assert_eq!(epoch.now(9_000), epoch.now(60_000));
    }
}
