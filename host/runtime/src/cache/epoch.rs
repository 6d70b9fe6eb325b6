//! In which epoch this host is. What is in memory was known to be the newest in one epoch, and is looked up again in the
//! next: so a loss of other hosts' messages is never unnoticed.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// While nothing is heard, an epoch lasts this long, in milliseconds: the longest that a value may then be old.
pub const BLIND_MS: i64 = 1_000;
/// Epochs of one time of blindness at most: 31 years.
const EPOCHS: u32 = 30;
const HEARING: i64 = -1;

/// Counts epochs.
#[derive(Debug)]
pub(crate) struct Epoch {
    base: AtomicU64,
    /// Since when nothing is heard; [`HEARING`] while everything is.
    blind_since_ms: AtomicI64,
}

impl Epoch {
    /// Everything is heard, or there is nobody to hear.
    pub(crate) fn new() -> Epoch {
        Epoch { base: AtomicU64::new(0), blind_since_ms: AtomicI64::new(HEARING) }
    }

    /// The epoch now.
    pub(crate) fn now(&self, now_ms: i64) -> u64 {
        let base = self.base.load(Ordering::Acquire) << EPOCHS;
        match self.blind_since_ms.load(Ordering::Acquire) {
            HEARING => base,
            since_ms => base + 1 + (now_ms.saturating_sub(since_ms).max(0) / BLIND_MS) as u64,
        }
    }

    /// From now on nothing is heard.
    pub(crate) fn lost(&self, now_ms: i64) {
        self.base.fetch_add(1, Ordering::AcqRel);
        self.blind_since_ms.store(now_ms.max(0), Ordering::Release);
    }

    /// From now on everything is heard; what happened before may not have been.
    pub(crate) fn found(&self) {
        self.blind_since_ms.store(HEARING, Ordering::Release);
        self.base.fetch_add(1, Ordering::AcqRel);
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
        epoch.lost(5_000);
        let lost = epoch.now(5_000);
        assert!(lost > first);
        assert_eq!(epoch.now(5_999), lost);
        assert_eq!(epoch.now(6_000), lost + 1);
        epoch.found();
        let found = epoch.now(6_000);
        assert!(found > lost + 1);
        assert_eq!(epoch.now(9_000_000), found);
        // Clocks that go back invent nothing.
        epoch.lost(5_000);
        assert_eq!(epoch.now(4_000), epoch.now(5_000));
    }
}
