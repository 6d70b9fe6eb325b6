//! A way to tell the other hosts, as the cache uses it: within a time, and not at all while it rests.

use std::sync::Arc;
use std::time::Duration;

use keiko_core::cache::Breaker;
use keiko_core::port::{Backplane, Change, Clock};
use parking_lot::Mutex;

/// A backplane, guarded.
pub(super) struct Plane {
    pub(super) backplane: Arc<dyn Backplane>,
    breaker: Mutex<Breaker>,
}

impl Plane {
    pub(super) fn new(backplane: Arc<dyn Backplane>) -> Plane {
        Plane { backplane, breaker: Mutex::default() }
    }

    /// Tells of a change; whether that worked. One that is away is left alone for a while, so that not each who changes
    /// something waits for it.
    pub(super) async fn tell(&self, change: &Change, patience: Duration, clock: &dyn Clock) -> bool {
        if !self.breaker.lock().allows(clock.now_ms()) {
            return false;
        }
        let told = self.backplane.tell(std::slice::from_ref(change));
        let is_told = matches!(tokio::time::timeout(patience, told).await, Ok(Ok(())));
        let mut breaker = self.breaker.lock();
        if is_told {
            breaker.answered();
        } else {
            breaker.failed(clock.now_ms());
        }
        is_told
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use keiko_core::TenantId;
    use keiko_core::cache::Stamp;
    use keiko_core::port::{ChangeKind, Heard, StoreError};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(1);

    #[derive(Default)]
    struct Stuck {
        asked: AtomicUsize,
        answers: AtomicBool,
    }

    #[async_trait]
    impl Backplane for Stuck {
        async fn tell(&self, _: &[Change]) -> Result<(), StoreError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.answers.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::future::pending().await
        }

        async fn next(&self) -> Heard {
            std::future::pending().await
        }
    }

    #[derive(Default)]
    struct Time(AtomicI64);

    impl Clock for Time {
        fn now_ms(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_plane_that_stands_still_is_waited_for_a_few_times_and_then_now_and_again() {
        let (stuck, time) = (Arc::new(Stuck::default()), Time::default());
        let plane = Plane::new(Arc::clone(&stuck) as Arc<dyn Backplane>);
        let change = Change {
            tenant: TenantId(1),
            namespace: "n".to_owned(),
            key: "k".to_owned(),
            kind: ChangeKind::Set,
            stamp: Stamp(1),
        };
        for _ in 0..1_000 {
            assert!(!plane.tell(&change, PATIENCE, &time).await);
        }
        let asked = stuck.asked.load(Ordering::Relaxed);
        assert!((1..20).contains(&asked), "{asked} of a thousand waited");

        // An hour later it is back, and the first to ask finds out.
        stuck.answers.store(true, Ordering::Relaxed);
        assert!(!plane.tell(&change, PATIENCE, &time).await, "it rests");
        time.0.store(3_600_000, Ordering::Relaxed);
        for _ in 0..10 {
            assert!(plane.tell(&change, PATIENCE, &time).await);
        }
        assert_eq!(stuck.asked.load(Ordering::Relaxed), asked + 10);
    }
}
