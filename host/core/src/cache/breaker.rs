//! Lets a level that fails rest, so that nobody waits for it again and again.

/// Failures in a row after which a level rests.
const FAILURES_MAX: u32 = 3;
/// First and longest rest, in milliseconds.
const REST_MS: (i64, i64) = (1_000, 10_000);

/// Whether a level is asked. Closed until [`FAILURES_MAX`] failures in a row; then it rests, after which one caller tries
/// it while the others still go without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    rest_ms: i64,
    until_ms: i64,
    /// Whether somebody finds out just now whether it is back.
    is_tried: bool,
}

impl Breaker {
    /// Whether the level is asked now. After a rest, the one who is told so finds out for the others.
    pub fn allows(&mut self, now_ms: i64) -> bool {
        if self.rest_ms == 0 {
            return true;
        }
        if now_ms < self.until_ms {
            return false;
        }
        self.until_ms = now_ms.saturating_add(self.rest_ms);
        self.is_tried = true;
        true
    }

    /// It answered. Says whether it had been resting.
    pub fn answered(&mut self) -> bool {
        let rested = self.rest_ms > 0;
        *self = Breaker::default();
        rested
    }

    /// It failed. Says whether it rests from now on and did not before. What was under way when the rest began tells nothing
    /// new.
    pub fn failed(&mut self, now_ms: i64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let began = self.rest_ms == 0;
        if self.failures < FAILURES_MAX || (!began && !std::mem::take(&mut self.is_tried)) {
            return false;
        }
        self.rest_ms = if began { REST_MS.0 } else { (self.rest_ms * 2).min(REST_MS.1) };
        self.until_ms = now_ms.saturating_add(self.rest_ms);
        began
    }

    /// Whether it rests.
    pub fn rests(&self) -> bool {
        self.rest_ms > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_rests_after_failures_in_a_row_and_is_tried_by_one() {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(0) && !breaker.failed(0));
        assert!(!breaker.answered() && !breaker.failed(0) && !breaker.failed(0));
        assert!(breaker.allows(0) && breaker.failed(0));
        for (now_ms, allowed) in [(0, false), (999, false), (1_000, true), (1_000, false), (1_999, false)] {
            assert_eq!(breaker.allows(now_ms), allowed, "{now_ms}");
        }
        assert!(breaker.rests() && breaker.answered() && !breaker.rests() && breaker.allows(1_999));
    }

    #[test]
    fn what_was_under_way_when_a_rest_began_does_not_prolong_it() {
        let mut breaker = Breaker::default();
        let fail_all = |breaker: &mut Breaker, now_ms: i64| {
            (0..50).for_each(|_| {
                breaker.failed(now_ms);
            });
        };
        fail_all(&mut breaker, 0);
        assert!(!breaker.allows(999) && breaker.allows(1_000));
        fail_all(&mut breaker, 1_001);
        assert!(!breaker.allows(3_000) && breaker.allows(3_001));
    }

    #[test]
    fn rests_grow_to_their_longest() {
        let mut breaker = Breaker::default();
        let mut now_ms = 0;
        for rest_ms in [1_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
            while !breaker.failed(now_ms) && !breaker.rests() {}
            assert!(!breaker.allows(now_ms + rest_ms - 1), "{rest_ms}");
            assert!(breaker.allows(now_ms + rest_ms), "{rest_ms}");
            now_ms += rest_ms;
        }
    }
}
