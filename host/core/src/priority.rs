//! The rule that orders a tenant's tasks: oldest first, and a priority counts as time already waited.
//!
//! - Each level is worth [`AGEING_MS`] of waiting: a task of priority 9 goes before those of priority 0 that came due
//!   up to nine minutes before it, and behind all older ones. Nobody is overtaken for longer, so nobody starves.
//! - The order is one number, the task's *place*, which is why a lease walks one index in order. A task that is not due
//!   yet stands at its due time, where no lease finds it too early, and takes its place when it has come due.

use std::fmt;

/// Time of waiting that each level of a priority is worth, in milliseconds.
pub const AGEING_MS: i64 = 60_000;
/// The most urgent priority.
pub const PRIORITY_MAX: u8 = 9;

/// How urgent a task is among its tenant's: 0, which is ordinary, to [`PRIORITY_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// The priority of this level, if there is one.
    pub fn new(level: u64) -> Option<Priority> {
        u8::try_from(level).ok().filter(|level| *level <= PRIORITY_MAX).map(Priority)
    }

    /// From 0 to [`PRIORITY_MAX`].
    pub const fn level(self) -> u8 {
        self.0
    }

    /// Whether it is as every task's that names none.
    pub const fn is_ordinary(self) -> bool {
        self.0 == 0
    }

    /// Where a task stands that came due at `due_ms`.
    pub fn place_ms(self, due_ms: i64) -> i64 {
        due_ms.saturating_sub(i64::from(self.0) * AGEING_MS)
    }

    /// Where a task stands at `now_ms`: at its due time until that has come.
    pub fn place_at_ms(self, due_ms: i64, now_ms: i64) -> i64 {
        if due_ms <= now_ms { self.place_ms(due_ms) } else { due_ms }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn priority(level: u64) -> Priority {
        Priority::new(level).unwrap()
    }

    #[test]
    fn a_priority_is_one_of_ten() {
        assert_eq!(Priority::new(0), Some(Priority::default()));
        assert_eq!(priority(9).level(), PRIORITY_MAX);
        assert_eq!(Priority::new(10), None);
        assert_eq!(Priority::new(256), None, "a large number does not wrap");
        assert!(priority(0).is_ordinary() && !priority(1).is_ordinary());
    }

    #[test]
    fn a_level_is_worth_a_minute_of_waiting() {
        let check = |level, due_ms, now_ms, expected| {
            let place = priority(level).place_at_ms(due_ms, now_ms);
            assert_eq!(place, expected, "priority {level}, due {due_ms}, now {now_ms}");
        };
        check(0, 1_000_000, 1_000_000, 1_000_000);
        check(1, 1_000_000, 1_000_000, 940_000);
        check(9, 1_000_000, 2_000_000, 460_000);
        check(9, 1_000_001, 1_000_000, 1_000_001);
        check(9, i64::MIN, 0, i64::MIN);
    }

    proptest! {
        #[test]
        fn nobody_is_overtaken_for_longer_than_the_levels_between(
            level in 0u64..=9, other in 0u64..=9, due_ms in 0i64..10_000_000, later_ms in 0i64..1_000_000,
        ) {
            let (waits, fresh) = (priority(level).place_ms(due_ms), priority(other).place_ms(due_ms + later_ms));
            let between = (other as i64 - level as i64).max(0) * AGEING_MS;
            prop_assert_eq!(fresh < waits, later_ms < between);
        }
    }
}
