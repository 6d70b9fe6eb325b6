//! The clocks of hosts that live in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use keiko_core::port::Clock;
use tokio::time::Instant;

/// The time when every life begins.
pub const NOW_MS: i64 = 1_800_000_000_000;

/// A host's clock: virtual time, and what it is wrong by.
pub struct HostClock {
    /// When the life began.
    pub start: Instant,
    /// What it is wrong by now, in milliseconds.
    pub shift_ms: Arc<AtomicI64>,
}

impl Clock for HostClock {
    fn now_ms(&self) -> i64 {
        NOW_MS + self.start.elapsed().as_millis() as i64 + self.shift_ms.load(Ordering::Relaxed)
    }

    fn about_now_ms(&self) -> i64 {
        self.now_ms() / 10 * 10
    }
}
